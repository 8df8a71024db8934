"""The training loop: reproducible, resumable, stopped in time, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import handful.training.fit as saving
from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone
from handful.data.batching import encode
from handful.data.task import TestRows
from handful.errors import ConfigError, DataError, ModelError
from handful.evaluation.predict import predict_rows
from handful.methods import method_class
from handful.testing import differences, toy_task
from handful.training.checkpoint import FILE
from handful.training.config import TrainingConfig
from handful.training.events import CheckpointSaved, Evaluated, FitFinished, FitStarted, StepDone, Stopped, to_record
from handful.training.fit import batch_loss, fit
from handful.training.selection import DevScore, Selector

TASK = toy_task()
SUBSPACE = {"prefix_length": 3, "head_init": "normal"}


class Training:
    """One fit on 16 training and 8 development rows (2 steps an epoch), and what was seen of it."""

    def __init__(self, method="prefix-subspace", settings=SUBSPACE, family="bert", task=TASK, backbone=None):
        self.backbone = backbone or tiny_backbone(family)
        self.task, self.events = task, []
        self.method = method_class(method).from_settings(settings)
        self.adapter = self.method.attach(self.backbone, task, generator=torch.Generator().manual_seed(0))
        self.rows, self.dev = (
            encode(rows, self.backbone.tokenizer, 64, kind=task.kind) for rows in (task.pool[:16], task.pool[16:])
        )

    def run(self, dev=True, seed=1, folder=None, listener=None, **config):
        def listen(event):
            self.events.append(event)
            if listener:
                listener(event)

        self.result = fit(
            self.adapter,
            self.rows,
            self.dev if dev else None,
            TrainingConfig(**{"epochs": 3, "batch_size": 8, **config}),
            kind=self.task.kind,
            metric=self.task.metric,
            generator=torch.Generator().manual_seed(seed),
            on_event=listen,
            checkpoint_folder=folder,
        )
        return self

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def losses(self):
        return [event.loss for event in self.seen(StepDone)]

    @property
    def weights(self):
        return {name: tensor.detach().clone() for name, tensor in self.adapter.state_dict().items()}


def same(first, second):
    return first.losses == second.losses and not differences(first.weights, second.weights)


# ------------------------------------------------------------------------------------------------ same numbers


@pytest.mark.parametrize("dropout", [False, True])
def test_the_same_seed_gives_the_same_numbers_whatever_the_global_random_state(dropout):
    config = {"trunk_dropout": dropout, "validation": "pooled", "selection": "best"}
    first = Training().run(**config)
    torch.rand(3)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # pyright: ignore
    second = Training().run(**config)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # pyright: ignore
    assert same(first, second) and first.result.history == second.result.history
    assert not same(first, Training().run(seed=2, **config))


def test_order_draws_and_dropout_do_not_depend_on_each_other():
    """A second vertex draws more from its generator; the batches must stay the same."""
    seen = []
    for vertices in (1, 3):
        training = Training(settings={"num_vertices": vertices, **SUBSPACE})
        forward, batches = training.adapter.forward, []
        training.adapter.forward = lambda batch, draw=None, forward=forward, batches=batches: (
            batches.append(batch) or forward(batch, draw)
        )
        training.run(dev=False, trunk_dropout=True)
        seen.append([batch.rows.tolist() for batch in batches])
    assert seen[0] == seen[1] and len(seen[0]) == 6
    assert all(sorted(seen[0][i] + seen[0][i + 1]) == list(range(16)) for i in (0, 2, 4))


def test_predicting_before_a_fit_changes_nothing():
    fresh = Training(settings={"head_init": "probe"}).run()
    used = Training(settings={"head_init": "probe"})
    predict_rows(used.adapter, used.rows, TASK.kind)
    assert same(fresh, used.run())


def test_afterwards_model_and_adapter_are_at_rest():
    training = Training().run(gradient_checkpointing=True)
    assert not any(module.training for module in training.backbone.model.modules())
    assert not training.adapter.training
    assert not any(p.requires_grad for p in training.backbone.model.parameters())
    assert not any("forward" in vars(layer) for layer in training.backbone.model.encoder.layer)  # pyright: ignore
    assert "forward" not in vars(training.adapter)


def test_events_tell_the_whole_story_and_are_plain_records():
    training = Training().run(epochs=2)
    names = [type(event).__name__ for event in training.events]
    assert names == ["FitStarted", *["StepDone", "StepDone", "Evaluated"] * 2, "FitFinished"]
    (started,), (finished,) = training.seen(FitStarted), training.seen(FitFinished)
    count = sum(p.numel() for p in training.adapter.parameters())
    assert (started.steps, started.train_rows, started.dev_rows, started.parameters) == (4, 16, 8, count)
    assert (finished.step, finished.chosen_step) == (4, 4) == (training.result.steps, training.result.chosen_step)
    assert [event.step for event in training.seen(StepDone)] == [1, 2, 3, 4]
    assert sum(event.tokens for event in training.seen(StepDone)[:2]) == sum(training.rows.lengths)
    record = to_record(training.seen(Evaluated)[0])
    assert record["event"] == "Evaluated" and record["diagnostics"]["spread"] > 0
    assert training.result.history[1]["score"] == training.seen(Evaluated)[1].score


def test_no_epochs_keep_the_warm_start():
    training = Training("head", {}).run(epochs=0)
    assert training.result.steps == 0 and not training.losses
    start = training.weights
    assert start["head.weight"].abs().sum() > 0
    assert differences(start, Training("head", {}).run(epochs=1).weights)


# ------------------------------------------------------------------------------------------------ refused


def test_what_cannot_be_trained_on_is_refused():
    training = Training()
    training.rows = TestRows(TASK.pool)  # pyright: ignore
    with pytest.raises(DataError, match=r"train: expected encoded training rows, found TestRows\n\nhint: test"):
        training.run()
    training = Training()
    training.dev = TestRows(TASK.pool)  # pyright: ignore
    with pytest.raises(DataError, match="dev: expected encoded training rows, found TestRows"):
        training.run()
    training = Training()
    training.rows = training.rows.__class__([[2, 9, 3]], None, None, 0, 1)
    with pytest.raises(DataError, match="train: expected labelled rows"):
        training.run()
    training.rows = training.rows.__class__([], None, torch.zeros(0, dtype=torch.int64), 0, 1)
    with pytest.raises(DataError, match="train: expected at least one row"):
        training.run()


def test_what_cannot_be_selected_or_trained_is_refused():
    with pytest.raises(ConfigError, match=r"selection = 'best' needs development rows, found none\n\nhint: use dev"):
        Training().run(dev=False, selection="best")
    with pytest.raises(ConfigError, match="average_last is a way of keeping the last weights, found selection"):
        Training().run(selection="best", average_last=0.5)
    training = Training()
    training.adapter.requires_grad_(False)
    with pytest.raises(ConfigError, match="this adapter has no trainable parameters"):
        training.run()


# ------------------------------------------------------------------------------------------------ stopping


def break_at(training, step, how):
    """Make the loss or the gradient of a step (counted from 1) infinite."""
    forward, steps = type(training.adapter).forward, []

    def broken(batch, draw=None):
        scores = forward(training.adapter, batch, draw)
        if training.adapter.training:
            steps.append(1)
            if len(steps) == step and how == "loss":
                return scores * torch.inf
            if len(steps) == step:
                scores.register_hook(lambda gradient: gradient * torch.inf)
        return scores

    training.adapter.forward = broken


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize(("how", "value"), [("loss", "nan"), ("gradient", "(nan|inf)")])
@pytest.mark.parametrize("selection", ["last", "best"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_best_state(how, value, selection, clip):
    training, states = Training(), {}
    break_at(training, 4, how)
    training.run(
        epochs=5,
        selection=selection,
        gradient_clip=clip,
        listener=lambda event: states.update({event.step: training.weights}) if isinstance(event, Evaluated) else None,
    )
    (stopped,) = training.seen(Stopped)
    assert training.result.stopped == stopped.reason
    assert re.fullmatch(
        rf"the loss or its gradient became {value} at step 4: kept the weights of step 2; "
        "try a lower training.learning_rate",
        stopped.reason,
    )
    assert stopped.step == training.result.steps == 3 and training.result.chosen_step == 2
    assert not differences(training.weights, states[2])
    assert all(tensor.isfinite().all() for tensor in training.weights.values())


def test_a_loss_that_is_never_finite_keeps_the_warm_start():
    training = Training()
    break_at(training, 1, "loss")
    training.run()
    assert training.result.chosen_step == 0 and training.result.steps == 0
    assert not differences(training.weights, Training().run(epochs=0).weights)


def scripted(monkeypatch, scores):
    """Development scores as if measured."""
    waiting = iter(scores)
    monkeypatch.setattr(Selector, "evaluate", lambda *_: DevScore(next(waiting)))


@pytest.mark.parametrize(
    ("config", "steps", "chosen"),
    [
        ({"selection": "best"}, 12, 4),
        ({"selection": "best", "tie": "latest"}, 12, 8),
        ({"selection": "best", "patience": 2}, 8, 4),
        ({"selection": "last", "patience": 2}, 8, 8),
        ({"selection": "last"}, 12, 12),
    ],
)
def test_selection_keeps_what_its_rules_say(monkeypatch, config, steps, chosen):
    scripted(monkeypatch, [0.5, 0.8, 0.6, 0.8, 0.7, 0.1])
    training, states = Training(), {}
    training.run(
        epochs=6,
        listener=lambda event: states.update({event.step: training.weights}) if isinstance(event, Evaluated) else None,
        **config,
    )
    assert (training.result.steps, training.result.chosen_step) == (steps, chosen)
    assert not differences(training.weights, states[chosen])
    if config.get("patience"):
        assert training.result.stopped == "no gain on dev in 2 evaluations"
    else:
        assert training.result.stopped is None


def test_the_late_average_is_the_mean_of_the_late_weights():
    training, states = Training(), []
    training.adapter.after_step = lambda step: states.append(training.weights)
    training.run(epochs=5, average_last=0.4)  # the last 4 of 10 steps
    for name, parameter in training.adapter.named_parameters():
        late = torch.stack([state[name] for state in states[6:]]).double().mean(0)
        assert torch.equal(parameter.detach(), late.float())
    assert differences(training.weights, states[-1])


# ------------------------------------------------------------------------------------------------ the loss


def test_label_smoothing_by_hand():
    training = Training()
    batch = training.rows.batch(range(4))
    scores = training.adapter(batch).detach()
    logs = scores.log_softmax(-1)
    labels = F.one_hot(batch.labels, 2) * 0.8 + 0.1  # pyright: ignore
    expected = -(labels * logs).sum(-1).mean()
    torch.testing.assert_close(batch_loss(scores, batch, training.adapter, "classification", 0.2), expected)
    plain, smooth = Training().run(epochs=1), Training().run(epochs=1, label_smoothing=0.2)
    assert plain.losses[0] != smooth.losses[0]


def test_numbers_are_learned_in_units_of_their_own_spread():
    task = toy_task("regression")
    training = Training(settings={"prefix_length": 3}, task=task).run(epochs=0)
    batch = training.rows.batch(range(16))
    scores = training.adapter(batch).detach()
    targets = batch.labels
    assert targets is not None
    expected = ((scores[:, 0] - (targets - targets.mean()) / targets.std(correction=0)) ** 2).mean()
    torch.testing.assert_close(batch_loss(scores, batch, training.adapter, "regression"), expected)
    assert expected < 10
    predictions = predict_rows(training.adapter, training.rows, "regression").values
    assert 800 < predictions.mean() < 1200


# ------------------------------------------------------------------------------------------------ the cached trunk

CACHED = {"prefix-subspace": {**SUBSPACE, "layers": (1, 3)}, "head": {"head_init": "normal"}}


@pytest.mark.parametrize("method", CACHED)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_cached_trunk_gives_the_same_numbers(family, method):
    config = {"learning_rate": 1e-2, "validation": "averaged", "validation_draws": 2, "epochs": 4}
    cached = Training(method, CACHED[method], family).run(**config)
    plain = Training(method, CACHED[method], family).run(cache_trunk=False, **config)
    np.testing.assert_allclose(cached.losses, plain.losses, atol=1e-5, rtol=1e-5)
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(cached.weights[name], tensor, atol=1e-4, rtol=1e-4)
    scores = [[record["score"] for record in training.result.history] for training in (cached, plain)]
    assert scores[0] == scores[1]


def calls_of_the_first_layer(training, **config):
    calls = []
    layer = training.backbone.model.encoder.layer[0].attention
    handle = layer.register_forward_hook(lambda *_: calls.append(training.adapter.training))
    training.run(**config)
    handle.remove()
    return sum(calls)


def test_a_cached_layer_is_not_computed_again_in_training():
    settings = {**SUBSPACE, "layers": (1, 3)}
    assert calls_of_the_first_layer(Training(settings=settings)) == 0
    assert calls_of_the_first_layer(Training(settings=settings), cache_trunk=False) == 6
    assert calls_of_the_first_layer(Training(settings=settings), trunk_dropout=True) == 6  # dropout differs every time
    assert calls_of_the_first_layer(Training(settings=SUBSPACE)) == 6  # the prefix starts at the first layer


# ------------------------------------------------------------------------------------------------ checkpointing


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "opt", "t5", "deberta-v2"])
def test_gradient_checkpointing_gives_the_same_losses(family, dropout):
    plain, recomputed = (
        Training(family=family).run(gradient_checkpointing=on, trunk_dropout=dropout, epochs=2) for on in (False, True)
    )
    assert same(plain, recomputed)


def test_gradient_checkpointing_computes_layers_twice():
    assert calls_of_the_first_layer(Training(), gradient_checkpointing=True) == 2 * 6


def test_gradient_checkpointing_works_beside_a_cached_trunk():
    settings = {**SUBSPACE, "layers": (1, 3)}
    plain, recomputed = (Training(settings=settings).run(gradient_checkpointing=on) for on in (False, True))
    assert same(plain, recomputed)


def test_a_model_without_a_list_of_layers_cannot_be_checkpointed():
    with pytest.raises(ModelError, match=r"needs a model with a list of layers, found none in albert\n\nhint: leave"):
        Training(family="albert").run(gradient_checkpointing=True)


# ------------------------------------------------------------------------------------------------ precision


def test_half_precision_is_for_training_alone_and_leaves_nothing_behind():
    half = Training().run(precision="bf16")
    full = Training().run()  # in the same process
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.1)
    assert half.losses != full.losses
    assert all(tensor.dtype == torch.float32 for tensor in half.weights.values())
    other = Training()
    other.adapter.load_state_dict(half.weights)
    expected = predict_rows(other.adapter, other.rows, TASK.kind).scores
    assert np.array_equal(predict_rows(half.adapter, half.rows, TASK.kind).scores, expected)


# ------------------------------------------------------------------------------------------------ resuming

RESUMED = {"epochs": 6, "trunk_dropout": True, "validation": "pooled", "fresh_draws": True, "validation_draws": 2}
RULES = {"best": {"selection": "best", "patience": 4}, "average": {"average_last": 0.5}}


def in_a_process_of_its_own(function, *arguments, **environment):
    """Call a function of this file."""
    code = f"import runpy; runpy.run_path({__file__!r})[{function!r}](*{arguments!r})"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def fit_until_killed(folder, rule, step, while_saving):
    """The process kills itself at a step, or in the middle of saving behind it."""

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def listen(event):
        if isinstance(event, StepDone) and event.step == step:
            if while_saving:
                os.replace = kill
            else:
                kill()

    saving.SAVING_PAUSE = 0
    Training().run(folder=Path(folder), listener=listen, **RESUMED, **RULES[rule])


def run_and_be_killed(folder, rule, step, while_saving=False):
    process = in_a_process_of_its_own("fit_until_killed", str(folder), rule, step, while_saving)
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]


@pytest.mark.parametrize(
    ("rule", "steps"), [("best", (3, 8)), pytest.param("average", (7, 10), marks=pytest.mark.slow)]
)
def test_a_killed_fit_goes_on_bit_for_bit(tmp_path, rule, steps):
    """Killed in the middle of an epoch, resumed, killed while saving, resumed again."""
    whole = Training().run(**RESUMED, **RULES[rule])
    run_and_be_killed(tmp_path, rule, steps[0])
    run_and_be_killed(tmp_path, rule, steps[1], while_saving=True)
    resumed = Training().run(folder=tmp_path, **RESUMED, **RULES[rule])
    (started,) = resumed.seen(FitStarted)
    assert 0 < started.resumed_at < 12
    assert resumed.losses == whole.losses[started.resumed_at :]
    assert not differences(resumed.weights, whole.weights)
    assert resumed.result.history == whole.result.history
    for name in ("steps", "chosen_step", "parameters", "stopped"):
        assert getattr(resumed.result, name) == getattr(whole.result, name)


def test_a_finished_fit_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SAVING_PAUSE", 0)
    whole = Training().run(folder=tmp_path)
    again = Training().run(folder=tmp_path)
    assert not again.losses and not differences(again.weights, whole.weights)
    assert again.result.history == whole.result.history


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SAVING_PAUSE", 1e6)
    whole = Training().run(folder=tmp_path, epochs=4)
    assert [event.step for event in whole.seen(CheckpointSaved)] == [2]
    again = Training().run(folder=tmp_path, epochs=4)
    assert again.seen(FitStarted)[0].resumed_at == 2 and again.losses == whole.losses[2:]
    assert not differences(again.weights, whole.weights)
    monkeypatch.setattr(saving, "SAVING_PAUSE", 0)
    assert len(Training().run(folder=tmp_path / "each", epochs=4).seen(CheckpointSaved)) == 4


def test_a_damaged_checkpoint_starts_again(tmp_path):
    whole = Training().run(folder=tmp_path)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-5] ^= 4
    (tmp_path / FILE).write_bytes(content)
    again = Training().run(folder=tmp_path)
    assert same(whole, again) and again.seen(FitStarted)[0].resumed_at == 0


# ------------------------------------------------------------------------------------------------ accelerate


def print_losses():
    print(Training().run().losses)  # noqa: T201


def test_the_environment_of_accelerate_launch_does_not_change_the_numbers():
    launched = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "no"}
    process = in_a_process_of_its_own("print_losses", **launched)
    assert process.stdout.strip() == str(Training().run().losses), process.stderr[-2000:]
