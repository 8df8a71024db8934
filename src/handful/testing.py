"""The public conformance suite: holds a method to the contract of `handful.methods.base`, an engine to that of studies.

    from handful.testing import check_method

    check_method(MyMethod(rank=4))                                   # on a tiny BERT, in some seconds
    check_method(MyMethod(rank=4), tiny_backbone("llama"), my_task)

Each check is a function of a `Case` that raises AssertionError with a sentence; `METHOD_CHECKS` holds them all for
those who want one test a check. Nothing here needs pytest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import load, save

from handful.backbone.load import Backbone
from handful.backbone.tiny import tiny_backbone, tiny_model, tiny_tokenizer
from handful.data.batching import Batch, EncodedRows, encode
from handful.data.task import Example, Task, TaskKind
from handful.evaluation.predict import predict_rows
from handful.methods.base import AbstractAdapter, AbstractMethod
from handful.methods.settings import describe_settings
from handful.objectives import objective_of
from handful.studies.engines import AbstractEngine, JobDone, JobEvent, JobFailed, JobStarted, SequentialEngine
from handful.studies.recipe import Recipe
from handful.studies.study import Study, results_lines
from handful.testing_life import check_life
from handful.training.config import TrainingConfig
from handful.training.fit import batch_loss, fit

EPOCHS = 8
"""Passes over the toy rows within which the loss has to fall."""

LONGEST = 512
"""Tokens of the longest row that is tried."""


def toy_task(kind: TaskKind = "classification", rows: int = 24) -> Task:
    """A task that random features can learn: each class has letters of its own, but every sixth label is wrong.

    So the probe that many heads start from leaves something to learn. Texts differ in length, and regression targets
    lie around 1000, far from the units of the loss. Of generation a text is to be written backwards.
    """
    letters, objective = ("abcd", "wxyz"), objective_of(kind)
    pool = []
    for index in range(rows):
        alphabet, length = letters[index % 2], 4 + (5 * index) % 7
        text = "".join(alphabet[(index + place) % 4] for place in range(length))
        label = (index + (index % 6 == 5)) % 2
        pair = text[::-1] if objective.pairs else None
        if objective.generates:
            pool.append(Example(text, source=f"toy:{index + 1}", references=(text[::-1],)))
            continue
        target = 1000.0 + 50 * (2 * label - 1) + length if not objective.has_classes else label
        pool.append(Example(text, pair, target, f"toy:{index + 1}"))
    if not objective.has_labels:
        return Task("toy", kind, (), "rouge-l" if objective.generates else objective.loss_metric, tuple(pool))
    return Task("toy", kind, ("first", "last"), "accuracy", tuple(pool))


@final
@dataclass(frozen=True)
class Case:
    """One method on one backbone and task."""

    method: AbstractMethod
    backbone: Backbone
    task: Task
    learning_rate: float | None = None

    @cached_property
    def rows(self) -> EncodedRows:
        """The task's rows, tokenised."""
        return encode(self.task.pool, self.backbone.tokenizer, self.backbone.max_length, kind=self.task.kind)

    @property
    def batch(self) -> Batch:
        """A batch of five rows of different lengths."""
        return self.rows.batch(range(5)).to(self.backbone.device)

    @contextmanager
    def attached(self, seed: int = 0) -> Iterator[AbstractAdapter]:
        """A fresh adapter, in eval mode, that is detached again."""
        adapter = (
            self.method.attach(self.backbone, self.task, generator=generator(seed)).to(self.backbone.device).eval()
        )
        try:
            yield adapter
        finally:
            adapter.detach()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Requires that the backbone is the same afterwards, bit for bit: modules, modes, weights and features."""
        _ = self.backbone.injection  # made once and kept
        expected = self._outline()
        yield
        found = self._outline()
        for (what, before), after in zip(expected.items(), found.values(), strict=True):
            self.require(not (names := differences(before, after)), f"detach() did not restore {what}: {names[:5]}")

    def _outline(self) -> dict[str, dict[str, Any]]:
        model, inputs = self.backbone.model, self.batch.inputs
        with torch.no_grad():
            features = self.backbone.features(inputs)
        return {
            "modules": {name: type(module) for name, module in model.named_modules()},
            "modes": {name: module.training for name, module in model.named_modules()},
            "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            "weights": copy_of(model.state_dict()),
            "features": {"of a batch, though all weights are as before": features},
        }

    def train(self, adapter: AbstractAdapter, epochs: int) -> None:
        """Fit the adapter with the default preset's training settings; 0 epochs are the warm start alone."""
        settings = {**self.method.presets["default"].training, "epochs": epochs, "batch_size": 8}
        if self.learning_rate:
            settings["learning_rate"] = self.learning_rate
        config = TrainingConfig.from_settings(settings)
        kind, metric = self.task.kind, self.task.metric
        fit(adapter, self.rows, None, config, kind=kind, metric=metric, generator=generator(1))

    def loss(self, adapter: AbstractAdapter) -> float:
        """The loss of all rows at the deterministic predictor."""
        batch = self.rows.batch(range(len(self.rows))).to(self.backbone.device)
        with torch.no_grad():
            return float(batch_loss(adapter(batch), batch, adapter, self.task.kind))

    def predict(self, adapter: AbstractAdapter, predictor: str = "midpoint", **options: Any) -> np.ndarray:
        """Scores (S, N, C) of all rows."""
        return predict_rows(adapter, self.rows, self.task.kind, predictor=predictor, draws=3, **options).scores

    def require(self, condition: bool, sentence: str) -> None:
        """Raises: AssertionError that names method and model."""
        if not condition:
            raise AssertionError(f"{self.method.name} on {self.backbone.name}: {sentence}")


def check_method(
    method: AbstractMethod,
    backbone: Backbone | None = None,
    task: Task | None = None,
    *,
    learning_rate: float | None = None,
) -> None:
    """Hold a method to the whole contract on a backbone (default: a tiny BERT) and a task (default: a toy one).

    The task should be small and easy: the loss has to fall on it within a few passes, at `learning_rate` (default: the
    default preset's). Trains a few adapters for a few steps each and leaves the backbone as it was. At the end the
    method goes through its whole life (`handful.testing_life`), from a run that is killed to an export.
    Raises: AssertionError saying what does not hold.
    """
    case = Case(method, backbone or tiny_backbone("bert"), task or toy_task(), learning_rate)
    for check in METHOD_CHECKS:
        check(case)
    check_life(method, case.backbone, case.task)


def check_description(case: Case) -> None:
    """The method takes this backbone and task, and describes itself and each of its settings."""
    reasons = case.method.check(case.backbone, case.task)
    case.require(not reasons, f"check() refuses this backbone and task: {reasons}")
    method, cls = case.method, type(case.method)
    for name in ("name", "summary", "source"):
        text = getattr(cls, name, None)
        case.require(isinstance(text, str) and bool(text), f"class attribute {name!r} should be a text, found {text!r}")
    case.require(cls.__dataclass_params__.frozen, "a method should be a frozen dataclass")  # pyright: ignore
    case.require(not cls.__subclasses__(), "a method is final and never subclassed")
    case.require("default" in cls.presets, f"there should be a preset 'default', found {sorted(cls.presets)}")
    for name, preset in cls.presets.items():
        case.require(bool(preset.reason), f"preset {name!r} should say its reason")
        cls.from_settings(preset.settings)
        TrainingConfig.from_settings({**preset.training, **preset.writing})
        known = preset.writing.keys() <= preset.training.keys()
        case.require(known, f"preset {name!r}: `writing` takes the place of values in `training`, and of no others")
    stored = json.loads(json.dumps(method.settings()))
    case.require(cls.from_settings(stored) == method, f"settings() should survive JSON and give the method: {stored}")
    silent = [record["name"] for record in describe_settings(cls) if not record["description"]]
    case.require(not silent, f"every field needs setting('what it does'), found none for {silent}")
    case.require(len(describe_settings(cls)) == len(fields(method)), "every field is a setting")


def check_attach(case: Case) -> None:
    """Attaching draws from its generator alone, and the adapter's parameters are exactly what is trained."""
    before = torch.get_rng_state()
    with case.unchanged(), case.attached() as adapter:
        case.require(torch.equal(before, torch.get_rng_state()), "attach() drew from torch's global random state")
        first = copy_of(adapter.state_dict())
        parameters = dict(adapter.named_parameters())
        case.require(bool(parameters), "the adapter has no parameters")
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        case.require(not frozen, f"the adapter's parameters should all be trainable, found frozen {frozen}")
        own = {id(parameter) for parameter in parameters.values()}
        strays = [n for n, p in case.backbone.model.named_parameters() if p.requires_grad and id(p) not in own]
        case.require(not strays, f"trainable parameters of the model that the adapter does not list: {strays[:5]}")
        grouped = [id(p) for group in adapter.parameter_groups() for p in group.parameters]
        case.require(sorted(grouped) == sorted(own), "parameter_groups() should hold every parameter once")
        lowest = adapter.lowest_layer
        valid = lowest is None or 0 <= lowest <= case.backbone.num_layers
        case.require(valid, f"lowest_layer should be None or in 0..{case.backbone.num_layers}, found {lowest}")
        case.require(adapter.num_vertices >= 1, f"num_vertices should be at least 1, found {adapter.num_vertices}")
    with case.attached() as again:
        changed = differences(first, again.state_dict())
        case.require(not changed, f"two attach() with equal generators differ in {changed}")


def check_scores(case: Case) -> None:
    """Scores are (B, C), finite, and without a generator always the same, for batches of any size."""
    with case.attached() as adapter, torch.no_grad():
        for size in (5, 1):
            batch = case.rows.batch(range(size)).to(case.backbone.device)
            scores = adapter(batch)
            expected = (size, case.task.num_outputs)
            case.require(tuple(scores.shape) == expected, f"scores should be {expected}, found {tuple(scores.shape)}")
            case.require(scores.is_floating_point(), f"scores should be floating point, found {scores.dtype}")
            case.require(bool(scores.isfinite().all()), "scores should be finite at the start")
        room = min(case.backbone.max_length - adapter.reserved_positions, LONGEST)
        text = " ".join(row.text for row in case.task.pool)
        text = " ".join([text] * (1 + room // len(text.split())))
        long = [Example(text, None if case.task.pool[0].text_pair is None else text)]
        batch = encode(long, case.backbone.tokenizer, room, kind=case.task.kind).batch([0]).to(case.backbone.device)
        case.require(bool(adapter(batch).isfinite().all()), f"a row of {room} tokens should leave room for the adapter")
        batch = case.batch
        expected = adapter(batch)
        adapter(batch, adapter.draw(batch, generator(5)))
        case.require(
            torch.equal(adapter(batch), expected), "forward() without a draw should give the same scores again"
        )


def check_draws(case: Case) -> None:
    """What is drawn depends on the generator alone; vertices exist; one point where there is no simplex."""
    with case.attached() as adapter, torch.no_grad():

        def drawn(seed: int, global_seed: int) -> torch.Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(global_seed)
                return adapter(case.batch, adapter.draw(case.batch, generator(seed)))

        case.require(
            torch.equal(drawn(2, 3), drawn(2, 4)),
            "equal generators gave different scores: something else is drawn from",
        )
        if adapter.num_vertices > 1:
            case.require(not torch.equal(drawn(2, 3), drawn(5, 3)), "two generators gave the same point of the simplex")
        for vertex in range(adapter.num_vertices):
            scores = adapter(case.batch, adapter.at(vertex=vertex))
            case.require(bool(scores.isfinite().all()), f"scores of vertex {vertex} should be finite")
            corner = adapter(case.batch, adapter.at(weights=torch.eye(adapter.num_vertices)[vertex]))
            case.require(
                torch.allclose(scores, corner, atol=1e-4), f"at(weights=…) of vertex {vertex} should be that vertex"
            )


def check_values(case: Case) -> None:
    """A draw is a value: other draws in between change nothing, and a part of it serves those rows of its batch."""
    with case.attached() as adapter, torch.no_grad():
        draw = adapter.draw(case.batch, generator(2))
        whole = adapter(case.batch, draw)
        adapter(case.batch, adapter.draw(case.batch, generator(3)))
        case.require(torch.equal(adapter(case.batch, draw), whole), "a draw should give the same scores again")
        part = None
        with suppress(RuntimeError):  # draws for five rows do not go with two
            part = adapter(case.rows.batch([1, 3]).to(case.backbone.device), draw[1::2])
        kept = part is not None and torch.allclose(part, whole[1::2], atol=1e-4)
        case.require(kept, "draw[rows] should keep what was drawn for those rows of a batch")


def check_gradients(case: Case) -> None:
    """One training loss reaches every parameter with a finite gradient, and the frozen model with none."""
    with case.attached() as adapter:
        adapter.train()
        draw = adapter.draw(case.batch, generator(2))
        loss = batch_loss(adapter(case.batch, draw), case.batch, adapter, case.task.kind)
        penalty = adapter.penalty(draw)
        (loss if penalty is None else loss + penalty).backward()
        unreached = [name for name, parameter in adapter.named_parameters() if parameter.grad is None]
        case.require(not unreached, f"no gradient reaches {unreached}")
        broken = [n for n, p in adapter.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        case.require(not broken, f"the gradient of {broken} is not finite")
        own = {id(parameter) for parameter in adapter.parameters()}
        leaves = [(n, p) for n, p in case.backbone.model.named_parameters() if p.is_leaf and id(p) not in own]
        leaks = [n for n, p in leaves if p.grad is not None]
        case.require(not leaks, f"frozen parameters of the model got a gradient: {leaks[:5]}")
        adapter.zero_grad(set_to_none=True)


def check_training(case: Case) -> None:
    """The loss falls, the base stays as it was, and what is saved, calibrated, predicts the same in a new adapter."""
    model = case.backbone.model
    originals = [(n, t, t.detach().clone()) for n, t in (*model.named_parameters(), *model.named_buffers())]
    with case.attached() as adapter:
        case.train(adapter, 0)
        start = case.loss(adapter)
    with case.attached() as adapter:
        case.train(adapter, EPOCHS)
        end = case.loss(adapter)
        case.require(end < start, f"the loss should fall in training, found {start:.4f} before and {end:.4f} after")
        own = {id(parameter) for parameter in adapter.parameters()}
        moved = [name for name, tensor, value in originals if id(tensor) not in own and not torch.equal(tensor, value)]
        case.require(not moved, f"training changed frozen tensors of the model: {moved[:5]}")
        adapter.calibrate(1.5)
        saved = save({name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()})
        expected = case.predict(adapter)
        ensemble = case.predict(adapter, "ensemble", generator=generator(3))
        case.require(bool(np.isfinite(expected).all()), "predictions should be finite after training")
        order = np.random.default_rng(0).permutation(len(case.rows))
        shuffled = encode(
            [case.task.pool[row] for row in order],
            case.backbone.tokenizer,
            case.backbone.max_length,
            kind=case.task.kind,
        )
        found = predict_rows(adapter, shuffled, case.task.kind, batch_size=5).scores
        gap = float(np.abs(found - expected[:, order]).max() / max(1.0, np.abs(expected).max()))
        case.require(gap < 1e-4, f"a row's prediction should not depend on its batch, found a gap of {gap:.1g}")
    with case.attached(seed=7) as adapter:
        adapter.load_state_dict(load(saved))
        case.require(
            np.array_equal(case.predict(adapter), expected)
            and np.array_equal(case.predict(adapter, "ensemble", generator=generator(3)), ensemble),
            "loaded into a new adapter, the state_dict() predicts otherwise: it does not hold all that was trained",
        )


def check_detach(case: Case) -> None:
    """After training too, `detach` (called once or twice) makes the backbone what it was."""
    with case.unchanged(), case.attached() as adapter:
        case.train(adapter, 1)
        case.predict(adapter)
        adapter.detach()


def check_units(case: Case) -> None:
    """`forward` is in units of the loss; `target_scores` are calibrated logits, or numbers in the targets' units."""
    if case.task.objective.calibrates:
        with case.attached() as adapter, torch.no_grad():
            adapter.calibrate(2.0)
            case.require(
                torch.allclose(2 * adapter.target_scores(case.batch), adapter(case.batch), atol=1e-5),
                "calibrate(2.0) should halve the logits of target_scores(), and not those of forward()",
            )
        case = Case(case.method, case.backbone, toy_task("regression"), case.learning_rate)
        if case.method.check(case.backbone, case.task):
            return
    labels = case.rows.labels
    assert labels is not None
    with case.attached() as adapter:
        case.train(adapter, 2)
        with torch.no_grad():
            scores, targets = adapter(case.batch)[:, 0], adapter.target_scores(case.batch)[:, 0]
        case.require(
            torch.allclose(adapter.standardise(targets), scores, rtol=1e-3, atol=1e-3),
            "standardise() should undo what target_scores() does to forward()",
        )
        error, spread = float(np.abs(case.predict(adapter)[0, :, 0] - labels.numpy()).mean()), float(labels.std())
        case.require(
            error < 8 * spread,
            f"predictions should be in the targets' units, found an error of {error:.3g} for a spread of {spread:.3g}",
        )


METHOD_CHECKS: tuple[Callable[[Case], None], ...] = (
    check_description,
    check_attach,
    check_scores,
    check_draws,
    check_gradients,
    check_training,
    check_values,
    check_detach,
    check_units,
)
"""The checks of `check_method` but the last, in its order."""


def generator(seed: int) -> torch.Generator:
    """A generator of its own; a check needs several that differ or agree."""
    return torch.Generator().manual_seed(seed)


def copy_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names that only one has, or whose tensors (bit for bit) or values differ."""

    def equal(first: Any, second: Any) -> bool:
        return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second

    return sorted(
        name
        for name in {*expected, *found}
        if name not in expected or name not in found or not equal(expected[name], found[name])
    )


def check_engine(engine: AbstractEngine, folder: Path) -> None:
    """Raises: AssertionError unless an engine does a small study, in `folder`, to the last bit as `SequentialEngine`.

    The study has a stage that others start from, a job that fails, and one that was to start from that.
    """
    recipe = toy_study(folder / "data")
    expected = Study(recipe, folder / "expected", folder / "data").run(SequentialEngine(), lambda event: None)
    events: list[JobEvent] = []
    found = Study(recipe, folder / "found", folder / "data").run(engine, events.append)
    assert len(found.done) == len(expected.done) > 0 and len(found.failed) == len(expected.failed) > 0
    assert list(results_lines(found)) == list(results_lines(expected)), "the numbers differ from one process's"
    for job in found.jobs:
        own = [event for event in events if event.job == job]
        ends = [event for event in own if isinstance(event, JobDone | JobFailed)]
        assert len(ends) == 1 and own[-1] is ends[0], f"{job.name}: expected one end, found {own}"
        begun = [event for event in own if isinstance(event, JobStarted)]
        orphan = isinstance(ends[0], JobFailed) and job.start in found.failed
        assert bool(begun) != orphan, f"{job.name}: expected that it is begun unless its start failed, found {own}"
        if job.start in found.done:
            before = next(e for e in events if isinstance(e, JobDone) and e.job.name == job.start)
            assert events.index(before) < events.index(begun[0]), f"{job.name} was begun before {job.start} was done"


def toy_study(data: Path, *, seeds: int = 2, epochs: int = 2) -> Recipe:
    """A recipe of a few seconds on a tiny random model, with its tasks and the model written below `data`."""
    model = data / "tiny-bert"
    tiny_model("bert").save_pretrained(model)
    tiny_tokenizer("bert").save_pretrained(model)
    for name in ("letters", "others"):
        _write_task(data / name, toy_task(rows=60))
    stage = {"method": "prefix-subspace", "set": {"prefix_length": 2}}
    return Recipe.from_dict(
        {
            "name": "toy-study",
            "model": str(model),
            "tasks": ["letters", "others"],
            "shots": [16],
            "seeds": seeds,
            "set": {"training.epochs": epochs},
            "methods": [
                "head",
                {**stage, "name": "first", "stage": True},
                {**stage, "name": "second", "start": {"method": "first", "task": "others", "shots": 24}},
                {"method": "bias", "name": "lost", "model": str(data / "missing")},
                {"method": "bias", "name": "orphan", "start": {"method": "lost"}},
            ],
        }
    )


def _write_task(folder: Path, task: Task) -> None:
    folder.mkdir(parents=True)
    half = len(task.pool) // 2
    for part, rows in (("pool", task.pool[half:]), ("test", task.pool[:half])):
        named = [(f"{row.text} {folder.name} {part}", task.labels[int(row.label or 0)]) for row in rows]
        lines = [{"text": text, "label": label} for text, label in named]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"name": folder.name, "kind": task.kind, "labels": list(task.labels), "metric": task.metric}
    record |= {"pool_rows": len(task.pool) - half, "test_rows": half}
    (folder / "task.json").write_text(json.dumps(record))
