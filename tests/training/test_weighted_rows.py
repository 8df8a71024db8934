"""Epochs of rows that are drawn by weight: as often as that says, and the same after an interruption."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.data.mixture import Mixing, mixing_weights
from handful.data.task import Example, Task
from handful.methods.head import Head
from handful.training.config import TrainingConfig
from handful.training.events import StepDone
from handful.training.fit import fit

NAMES = ["rare"] * 2 + ["common"] * 10
POOL = tuple(Example(f"{'aaa' if n % 2 else 'zz 9'} {n}", label=n % 2, source=str(n)) for n in range(12))
TASK = Task("toy", "classification", ("z9", "ab"), "accuracy", POOL)


class Stopped(Exception):
    """In place of a power cut."""


def train(folder=None, stop_at=None, mixing: Mixing | None = "uniform"):
    """Rows of every step, final weights."""
    backbone = tiny_backbone("bert")
    adapter = Head().attach(backbone, TASK, generator=torch.Generator().manual_seed(0))
    rows = encode(POOL, backbone.tokenizer, 32, kind="classification")
    rows = replace(rows, weights=mixing_weights(NAMES, mixing) if mixing else None)
    forward, seen = adapter.forward, []
    adapter.forward = lambda batch, draw=None: seen.append(batch.rows.tolist()) or forward(batch, draw)

    def listen(event):
        if isinstance(event, StepDone) and event.step == stop_at:
            raise Stopped

    config = TrainingConfig(epochs=4, batch_size=5, learning_rate=0.1, cache_trunk=False)
    fit(
        adapter, rows, None, config, kind="classification", metric="accuracy",
        generator=torch.Generator().manual_seed(1), on_event=listen, checkpoint_folder=folder,
    )  # fmt: skip
    return seen, {name: tensor.clone() for name, tensor in adapter.state_dict().items()}


def epochs(steps):
    """Rows of each of the four epochs, in order of the rows."""
    return [sorted(chain(*steps[start : start + 3])) for start in range(0, 12, 3)]


def test_an_epoch_has_as_many_rows_and_of_every_task_its_share():
    steps, _ = train()
    assert len(steps) == 4 * 3
    for drawn in map(Counter, epochs(steps)):
        assert drawn.total() == 12
        assert drawn[0] == drawn[1] == 3  # two rows have half of twelve draws
        assert all(times == 1 for row, times in drawn.items() if row > 1)
    assert len(set(map(tuple, epochs(steps)))) > 1


@pytest.mark.parametrize("mixing", ["size", None])
def test_mixing_by_size_takes_every_row_once(mixing):
    steps, _ = train(mixing=mixing)
    assert epochs(steps) == [list(range(12))] * 4


def test_an_interrupted_fit_draws_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("handful.training.fit.SAVING_PAUSE", 0)
    whole, weights = train()
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=8)
    continued, found = train(tmp_path)
    assert continued == whole[6:]
    assert all(torch.equal(weights[name], found[name]) for name in weights)
