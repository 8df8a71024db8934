"""Training draws: a point of the simplex for every row, layer and step, as the settings say, and noise where it is due.

What is looked at is what the forward used, not what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.data.mixture import mix_tasks
from handful.evaluation.evaluate import encode_rows
from handful.evaluation.predict import predict_rows
from handful.methods import method_class
from handful.methods.prefix import PrefixAdapter
from handful.runs.experiment import train
from handful.runs.spec import resolve
from handful.testing import toy_task
from handful.training.events import StepDone
from handful.training.fit import fit

TASK, LAYERS, VERTICES, STEPS = toy_task(), 3, 3, 4


class Watched:
    """What the forwards of prefix-subspace adapters used: weights of prefixes and of heads, in training and apart."""

    def __init__(self, monkeypatch):
        self.training: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.predicting: list[tuple[torch.Tensor, torch.Tensor]] = []
        forward = PrefixAdapter.forward

        def watched(adapter, batch, draw=None):
            used = (draw or adapter.at()).rows
            (self.training if adapter.training else self.predicting).append((used["prefix"], used["head"]))
            return forward(adapter, batch, draw)

        monkeypatch.setattr(PrefixAdapter, "forward", watched)


def trained(monkeypatch, preset="default", **overrides) -> tuple[Watched, int]:
    """The watched fit of a preset on a tiny model, and how many rows it had."""
    small = {"method.prefix_length": 3, "training.epochs": 2, "training.batch_size": 6, "run.shots": 12}
    spec = resolve("prefix-subspace", preset=preset, overrides=small | overrides)
    watched = Watched(monkeypatch)
    training = train(TASK, spec, backbone=tiny_backbone("bert", pooling=spec.options.pooling))
    training.trained.adapter.detach()
    return watched, len(training.split.train)


def distinct(points: torch.Tensor) -> int:
    """How many different points (…, M) there are."""
    return len(torch.unique(points.reshape(-1, points.shape[-1]), dim=0))


def on_simplex(points: torch.Tensor) -> bool:
    return bool((points >= 0).all()) and torch.allclose(points.sum(-1), torch.ones(()))


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_row_layer_and_step_has_a_point_of_its_own(preset, monkeypatch):
    """A fit at the midpoint, or with one point for all rows, layers or steps, is another method."""
    watched, rows = trained(monkeypatch, preset, **({"training.patience": 0} if preset == "paper" else {}))
    batches = [len(prefixes) for prefixes, _ in watched.training]
    assert sum(batches) == 2 * rows and len(batches) == 2 * -(-rows // 6)
    assert all(prefixes.shape[1:] == (LAYERS, VERTICES) for prefixes, _ in watched.training)
    prefixes, heads = (torch.cat(parts) for parts in zip(*watched.training, strict=True))
    assert on_simplex(prefixes) and on_simplex(heads)
    assert distinct(prefixes) == 2 * rows * LAYERS
    assert distinct(heads) == 2 * rows, "the head has a point of its own for every row"
    assert distinct(torch.cat((prefixes.flatten(0, 1), heads))) == 2 * rows * (LAYERS + 1), (
        "independent of the prefix's"
    )
    assert 0.15 < float(prefixes.std()) < 0.3, "uniform on the simplex: standard deviation √(1/18) = 0.236"


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"method.draw_per": "batch"}, lambda steps, rows: steps * LAYERS),
        ({"method.draw_layers": "shared"}, lambda steps, rows: rows),
        ({"method.draw_per": "batch", "method.draw_layers": "shared"}, lambda steps, rows: steps),
    ],
)
def test_coarser_draws_are_as_the_settings_say(settings, points: Callable[[int, int], int], monkeypatch):
    watched, rows = trained(monkeypatch, **settings)
    prefixes = torch.cat([prefixes for prefixes, _ in watched.training])
    assert distinct(prefixes) == points(len(watched.training), 2 * rows)
    if settings.get("method.draw_layers") == "shared":
        assert torch.equal(prefixes, prefixes[:, :1].expand_as(prefixes))


@pytest.mark.parametrize(("preset", "validation"), [("paper", None), ("default", "averaged"), ("default", None)])
def test_validation_draws_when_it_is_stochastic_and_only_then(preset, validation, monkeypatch):
    """The paper's preset judges by random models, the default by the midpoint; the draws are common to evaluations."""
    chosen = {"training.validation": validation} if validation else {}
    settings = {"training.patience": 0, "training.validation_draws": STEPS, "run.dev": "carved", **chosen}
    watched, rows = trained(monkeypatch, preset, **settings)
    held = [prefixes for prefixes, _ in watched.predicting]
    if preset == "default" and not validation:
        assert len(held) == 3 and all(distinct(points) == 1 for points in held), "two evaluations and the temperature"
        return
    *held, last = held
    assert len(last) == 1, "the temperature is fitted at the midpoint"
    first, second = held[: len(held) // 2], held[len(held) // 2 :]
    assert len(first) == STEPS
    assert distinct(torch.cat(first)) == STEPS * (12 - rows) * LAYERS
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_ensembles_draw_for_every_row_and_point(monkeypatch):
    backbone = tiny_backbone("bert")
    adapter = method_class("prefix-subspace").from_settings({"prefix_length": 3}).attach(
        backbone, TASK, generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    rows, watched = encode_rows(backbone, TASK.pool, TASK, 64), Watched(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    for predictor, points in (("ensemble", STEPS), ("draw", 1)):
        watched.predicting.clear()
        predict_rows(adapter, rows, TASK.kind, predictor=predictor, draws=STEPS, generator=generator)
        assert distinct(torch.cat([prefixes for prefixes, _ in watched.predicting])) == points * len(rows) * LAYERS
    watched.predicting.clear()
    predict_rows(adapter, rows, TASK.kind)
    assert distinct(torch.cat([prefixes for prefixes, _ in watched.predicting])) == 1


OTHERS = {
    "prompt": ({"prompt_length": 3, "num_vertices": 3}, lambda draw: draw.rows["prompt"], "rows"),
    "prune": (
        {"importance": "learned", "num_vertices": 2, "close_share": 0.9},
        lambda draw: draw.shared["point"][None], "steps",
    ),
    "gates' noise": (
        {}, lambda draw: draw.shared["noise"][None, :8], "steps",
    ),
    "poly": ({"gate": "gumbel", "rank": 2}, lambda draw: draw.rows["noise"].flatten(1)[:, :8], "rows"),
}  # fmt: skip
"""Settings, what a forward draws, one row for each draw, and how often: once for every row, or once for a step."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_draw_in_training_too(name):
    settings, drawn, how_often = OTHERS[name]
    method = {"gates' noise": "fine-gates"}.get(name, name)
    task = mix_tasks("both", [replace(toy_task(), name=each) for each in ("a", "b")]) if method == "poly" else TASK
    backbone, found = tiny_backbone("bert"), []
    adapter = method_class(method).from_settings(settings).attach(
        backbone, task, generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    rows, forward = encode_rows(backbone, task.pool[:12], task, 64), adapter.forward

    def watched(batch, draw=None):
        if adapter.training:
            found.append(drawn(draw).detach().clone())
        return forward(batch, draw)

    adapter.forward = watched
    spec = resolve(method, overrides={"training.epochs": 2, "training.batch_size": 6})
    steps = []
    fit(
        adapter, rows, None, spec.training, kind=task.kind, metric=task.metric,
        generator=torch.Generator().manual_seed(1),
        on_event=lambda event: steps.append(event) if isinstance(event, StepDone) else None,
    )  # fmt: skip
    adapter.detach()
    expected = len(steps) if how_often == "steps" else 2 * len(rows)
    assert distinct(torch.cat(found)) == expected
