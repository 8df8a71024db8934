"""Threads: what is one for the whole process, and for all adapters of a backbone, is used by one of them at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from handful.backbone import load, sharing
from handful.backbone.classifier import output_layer
from handful.backbone.load import load_backbone
from handful.backbone.skeleton import load_skeleton
from handful.backbone.tiny import tiny_backbone
from handful.errors import ConfigError
from handful.evaluation.evaluate import encode_rows
from handful.evaluation.predict import predict_rows
from handful.evaluation.text.generate import GenerationOptions, token_nll, write
from handful.export.formats import export
from handful.methods import method_class
from handful.testing import toy_task
from handful.training.config import TrainingConfig
from handful.training.events import StepDone
from handful.training.fit import fit

TASK = toy_task()
PATIENCE = 1.0
"""Seconds that one thread waits for the other to do what it must not."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attached(method, backbone, seed=0, task=TASK, **settings):
    adapter = method_class(method).from_settings(settings).attach(backbone, task, generator=generator(seed))
    return adapter.eval()


def in_threads(*functions):
    """What the functions return, each called in a thread of its own; their first error is raised."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(60) for future in [pool.submit(function) for function in functions]]


def initialised():
    weight = torch.full((4, 4), 7.0)
    torch.nn.init.kaiming_uniform_(weight)
    return bool((weight != 7).any())


class SlowModel:
    """Loads as transformers does, and stays in it until somebody else has begun to load too, or is not going to."""

    def __init__(self, others=2):
        self.begun, self.first_is_done = threading.Semaphore(0), threading.Event()
        self.order, self.others = [], others

    def from_pretrained(self, *arguments, **options):
        first = not self.order
        with no_init_weights():
            self.order.append(threading.get_ident())
            if first:
                self.begun.acquire(timeout=PATIENCE)
            else:
                self.begun.release()
                self.first_is_done.wait(PATIENCE)
            model = AutoModel.from_pretrained(*arguments, **options)
        if first:
            self.first_is_done.set()
        return model


def test_two_threads_that_load_leave_torch_with_its_initialisers(monkeypatch, tiny_folder):
    """The second would find transformers' replacements in force, take them for torch's own and put those back."""
    before = torch.nn.init.kaiming_uniform_
    monkeypatch.setattr(load, "AutoModel", SlowModel())
    try:
        in_threads(*[partial(load_backbone, str(tiny_folder))] * 2)
        assert torch.nn.init.kaiming_uniform_ is before and initialised()
    finally:
        torch.nn.init.kaiming_uniform_ = before


def test_lora_starts_with_weights_while_another_thread_loads(monkeypatch, tiny_folder):
    backbone = tiny_backbone("bert")
    first = attached("lora", backbone)
    expected = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    first.detach()
    slow = SlowModel()
    monkeypatch.setattr(load, "AutoModel", slow)

    def attach():
        while not slow.order:
            time.sleep(0.001)
        return attached("lora", backbone)

    _, second = in_threads(partial(load_backbone, str(tiny_folder)), attach)
    found = second.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_whatever_makes_a_model_does_so_alone(monkeypatch, tmp_path, tiny_folder):
    """Every class of transformers is made under the lock, and so is what PEFT adds, by whichever way."""
    original, free = PreTrainedModel.__init__, []

    def watched(self, *arguments, **options):
        if not sharing._PROCESS._is_owned():  # type: ignore[attr-defined]
            free.append(type(self).__name__)
        original(self, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "__init__", watched)
    for pooling in ("mean", "family"):
        load_backbone(str(tiny_folder), pooling=pooling)
        load_skeleton(str(tiny_folder), pooling=pooling)
    output_layer("roberta")
    for method, format, pooling in (
        ("head", "dense", "mean"), ("head", "dense", "family"), ("prune", "compact", "mean"),
    ):  # fmt: skip
        backbone = load_backbone(str(tiny_folder), pooling=pooling)
        adapter = attached(method, backbone)
        export(adapter, backbone, TASK, tmp_path / f"{method}-{format}-{pooling}", format)
    assert not free, f"made without the lock: {set(free)}"


@pytest.mark.parametrize("method", ["lora", "prefix-subspace"])
def test_fits_in_two_threads_give_the_numbers_of_one(method):
    """LoRA's dropout draws from torch's own stream, of which there is one for all threads."""
    settings = {"dropout": 0.5} if method == "lora" else {"prefix_length": 3}
    config = TrainingConfig(epochs=3, batch_size=8, learning_rate=1e-2)
    meeting = threading.Barrier(2)

    def trained(seed, together):
        backbone = tiny_backbone("bert")
        adapter, rows = attached(method, backbone, **settings), encode_rows(backbone, TASK.pool, TASK, 64)

        def after(event):
            if together and isinstance(event, StepDone):
                with suppress(threading.BrokenBarrierError):
                    meeting.wait(PATIENCE)

        fit(
            adapter, rows, None, config, kind=TASK.kind, metric=TASK.metric, generator=generator(seed), on_event=after
        )  # fmt: skip
        return predict_rows(adapter, rows, TASK.kind).scores

    before = torch.get_rng_state()
    expected = [trained(seed, False) for seed in (1, 2)]
    found = in_threads(*(partial(trained, seed, True) for seed in (1, 2)))
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    if method == "lora":
        assert not np.array_equal(*found), "the seed decides the dropout"


def slowed(adapter, monkeypatch):
    """Between the choice of a point and the forward at it, other threads get their turn."""
    forward = adapter.forward

    def slow(batch, draw=None):
        time.sleep(0.003)
        return forward(batch, draw)

    monkeypatch.setattr(adapter, "forward", slow)
    return adapter


def ensemble(adapter, rows):
    return predict_rows(adapter, rows, TASK.kind, predictor="ensemble", draws=3, generator=generator(5), batch_size=8)


@pytest.mark.parametrize("method", ["prefix-subspace", "prompt"])
def test_predictions_are_the_same_while_other_threads_draw(method, monkeypatch):
    backbone = tiny_backbone("bert")
    length = {"prompt": "prompt_length"}.get(method, "prefix_length")
    adapter = slowed(attached(method, backbone, head_init="normal", num_vertices=3, **{length: 3}), monkeypatch)
    rows = encode_rows(backbone, TASK.pool, TASK, 64)
    asked = (
        partial(predict_rows, adapter, rows, TASK.kind, batch_size=8),
        partial(ensemble, adapter, rows),
        partial(predict_rows, adapter, rows, TASK.kind, predictor="vertex:1", batch_size=8),
        partial(predict_rows, adapter, rows, TASK.kind, batch_size=8),
    )
    expected = [ask().scores for ask in asked]
    for found in ([one.scores for one in in_threads(*asked)] for _ in range(2)):
        assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))


def test_two_models_on_one_backbone_keep_their_prefixes_apart(monkeypatch):
    backbone = tiny_backbone("bert")
    adapters = [
        slowed(attached("prefix-subspace", backbone, seed, head_init="normal", prefix_length=3), monkeypatch)
        for seed in (1, 2)
    ]
    rows = encode_rows(backbone, TASK.pool, TASK, 64)
    asked = [partial(predict_rows, adapter, rows, TASK.kind, batch_size=8) for adapter in adapters]
    expected = [ask().scores for ask in asked]
    assert not np.allclose(*expected)
    found = [one.scores for one in in_threads(*asked * 2)]
    assert all(np.array_equal(*pair) for pair in zip(expected * 2, found, strict=True))


def test_a_probe_beside_a_prefix_reads_the_plain_model():
    backbone = tiny_backbone("bert")
    head = attached("head", backbone, head_init="normal")
    rows = encode_rows(backbone, TASK.pool, TASK, 64)
    expected = predict_rows(head, rows, TASK.kind).scores
    prefix = attached("prefix", backbone, prefix_length=3)
    for use in (partial(predict_rows, prefix, rows, TASK.kind), lambda: prefix(rows.batch([0, 1]))):
        use()
        np.testing.assert_allclose(predict_rows(head, rows, TASK.kind).scores, expected, atol=1e-5)


def test_predictions_wait_for_a_fit_on_the_same_backbone(monkeypatch):
    """Within a fit with dropout and gradient checkpointing the model is not what another adapter expects."""
    backbone = tiny_backbone("bert")
    rows = encode_rows(backbone, TASK.pool, TASK, 64)
    ready, trained = (attached("prefix-subspace", backbone, seed, prefix_length=3) for seed in (1, 2))
    expected = predict_rows(ready, rows, TASK.kind).scores
    config = TrainingConfig(epochs=2, batch_size=8, trunk_dropout=True, gradient_checkpointing=True)
    begun, steps = threading.Event(), []

    def after(event):
        if isinstance(event, StepDone):
            steps.append(event)
            begun.set()
            time.sleep(0.02)

    def train():
        fit(
            trained, rows, None, config, kind=TASK.kind, metric=TASK.metric, generator=generator(), on_event=after
        )  # fmt: skip

    def predict():
        begun.wait(60)
        found = predict_rows(ready, rows, TASK.kind).scores
        return len(steps), found

    _, (seen, found) = in_threads(train, predict)
    assert seen == len(steps), "predicted within the fit"
    np.testing.assert_array_equal(found, expected)


def test_texts_are_the_same_while_other_threads_ask(monkeypatch):
    task, backbone = toy_task("generation"), tiny_backbone("t5", purpose="lm")
    options = GenerationOptions(beams=1, max_new_tokens=6)
    adapters = [attached("prefix", backbone, seed, task, prefix_length=3, init_std=3.0) for seed in (1, 2)]
    rows = encode_rows(backbone, task.pool[:6], task, 64, options)
    asked = [partial(write, adapter, rows, options, batch_size=2) for adapter in adapters]
    asked += [partial(token_nll, adapter, rows, batch_size=2) for adapter in adapters]
    expected = [ask() for ask in asked]
    assert expected[2] != expected[3]
    for adapter in adapters:
        install = adapter.install

        def slow(batch, draw, install=install):
            install(batch, draw)
            time.sleep(0.003)

        monkeypatch.setattr(adapter, "install", slow)
    assert in_threads(*asked) == expected


@pytest.mark.parametrize("method", ["lora", "full", "bias", "fine-gates", "prune", "poly"])
def test_a_model_that_one_adapter_changes_is_for_that_one_alone(method):
    """LoRA's layers, gates, or parameters trained in place would be in every other adapter's predictions."""
    backbone = tiny_backbone("bert")
    rows = encode_rows(backbone, TASK.pool, TASK, 64)
    before = attached("head", backbone, head_init="normal")
    expected = predict_rows(before, rows, TASK.kind).scores
    changing = attached(method, backbone)
    for use in (
        partial(attached, "head", backbone),
        partial(attached, method, backbone),
        partial(predict_rows, before, rows, TASK.kind),
        partial(token_nll, before, rows),
    ):
        with pytest.raises(ConfigError, match=r"tiny-bert carries an adapter already that changes the model itself \("):
            use()
    predict_rows(changing, rows, TASK.kind)
    changing.detach()
    np.testing.assert_array_equal(predict_rows(before, rows, TASK.kind).scores, expected)
    attached(method, backbone).detach()


def test_no_model_is_made_outside_of_the_lock_in_any_file():
    """Whoever lends torch's random numbers, or makes a model without weights, does so through `making_models`."""
    root = Path(load.__file__).parents[1]
    for path in root.rglob("*.py"):
        if path.name in ("sharing.py", "testing.py"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert "fork_rng(" not in line, f"{path.name}:{number}: use lent_seed or making_models"
            assert "no_init_weights()" not in line or "making_models()" in line, f"{path.name}:{number}"
