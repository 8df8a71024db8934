"""One run from rows to numbers: split, attach, train, calibrate, score, save, check what was saved."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np

from handful.backbone.device import device_name
from handful.backbone.load import Backbone, hub_name, load_backbone
from handful.backbone.skeleton import load_skeleton
from handful.data.batching import EncodedRows
from handful.data.coverage import Coverage
from handful.data.split import Split, closed_keys, distinct
from handful.data.task import Task, TaskKind
from handful.errors import ConfigError, RunError
from handful.evaluation.calibration import fit_temperature
from handful.evaluation.evaluate import encode_for, longest_reference, longest_row
from handful.evaluation.landscape import measure_landscape
from handful.evaluation.metrics import check_metric
from handful.evaluation.predict import predict_rows
from handful.evaluation.text.generate import GenerationOptions, token_nll
from handful.evaluation.text.metrics import check_writing
from handful.evaluation.thresholds import choose_thresholds
from handful.methods import package_at
from handful.methods.base import AbstractAdapter, is_ours, path_of
from handful.objectives import objective_of
from handful.randomness import stream
from handful.runs.card import run_card, threshold_sentence
from handful.runs.members import describe_task, first_of_members, num_test_rows, recorded_task, weighted, without_rows
from handful.runs.memory import peak_memory
from handful.runs.scoring import AnyScores, OnWritten, describe_scores, prediction_records, score_task, untested_in
from handful.runs.seen import seen_rows, start_notes
from handful.runs.spec import RunOptions, RunSpec, recorded_method
from handful.runs.start import Start, carried_over, check_backbone, check_start
from handful.runs.store import LANDSCAPE, METRICS, Run, read_run, refuse_foreign, write_run
from handful.storage import (
    check_writable,
    clear_leftovers,
    exists,
    is_folder,
    open_append,
    parse_json,
    remove,
    short_name,
    write_file,
)  # fmt: skip
from handful.training.config import TrainingConfig
from handful.training.events import CheckpointSaved, Event, FitStarted, Listener, to_record
from handful.training.fit import FitResult, fit
from handful.training.process_group import ProcessGroup

HALF_IS_BEST = "subset_accuracy"
"""The metric of sets that the threshold 0.5 is better for than that of the largest F1 (docs/experiments.md)."""
WARM_ROWS = 8
"""Rows on which a saved adapter is compared with the one in memory."""


OF_SESSION = (
    "the class of the method ({}) belongs to this script or notebook: other programs can load the run where the class "
    "is in a module"
)


@final
@dataclass
class Trained:
    """A trained adapter on its backbone with everything needed to predict."""

    spec: RunSpec
    task: Task
    backbone: Backbone
    adapter: AbstractAdapter


@final
@dataclass
class Training:
    """What training one spec gave, before it is scored and saved."""

    trained: Trained
    split: Split
    result: FitResult
    temperature: float = 1.0
    truncated: dict[str, int] = field(default_factory=dict)
    truncated_references: int = 0
    notes: tuple[str, ...] = ()
    longest: int = 0
    coverage: dict[str, Coverage] = field(default_factory=dict)
    threshold: str = ""
    """Where the adapter's threshold of labels comes from; empty for kinds of tasks without."""


def check_task(task: Task) -> None:
    """Whether a run on the task could be scored. Raises: ConfigError or DataError, as `check_metric` and others do."""
    for part in (task, *task.members):
        check_metric(part.metric, part.kind, len(part.labels))
        if part.objective.generates:
            check_writing(part)


def make_split(task: Task, spec: RunSpec) -> Split:
    """The rows of a run. Without `shots`: every distinct row (of every member)."""
    options = spec.options
    shots = options.shots
    if shots is None:
        shots = distinct_rows(task)
    return Split(
        task, shots, options.seed, dev=options.dev, dev_fraction=options.dev_fraction, dev_rows=options.dev_rows,
        references=spec.generation.references if spec.generation else "all",
    )  # fmt: skip


def distinct_rows(task: Task) -> int:
    """Rows of the pool, of tasks of tasks of the largest member's, once repeats and rows of the test are dropped."""
    closed = closed_keys(task)
    return max(len(distinct(part.pool, closed)[0]) for part in task.members or (task,))


def open_backbone(spec: RunSpec, kind: TaskKind) -> Backbone:
    """The spec's model on its device, as tasks of this kind need it: to the features, or to the scores of tokens."""
    if objective_of(kind).generates:
        return load_backbone(spec.model, purpose="lm", device=spec.device)
    return load_backbone(spec.model, pooling=spec.options.pooling, device=spec.device)


def open_skeleton(spec: RunSpec, kind: TaskKind) -> Backbone:
    """What `open_backbone` would give, without its weights."""
    return load_skeleton(spec.model, pooling=spec.options.pooling, purpose=objective_of(kind).purpose)


def open_checked(task: Task, spec: RunSpec) -> Backbone:
    """The spec's model. Raises: ConfigError before its weights are read where the method cannot work on it."""
    skeleton = open_skeleton(spec, task.kind)
    with suppress(RuntimeError):  # where torch needs content; the loaded model is checked again
        check_method(task, spec, skeleton)
    return open_backbone(spec, task.kind)


def check_method(task: Task, spec: RunSpec, backbone: Backbone) -> None:
    """Raises: ConfigError when the method cannot work on this backbone and task."""
    reasons = spec.method.check(backbone, task)
    if task.members and not spec.method.shares_tasks:
        reasons.append("it knows of one task, and cannot learn many at once; 'poly' can")
    weighted = spec.training.class_weight != "none" or any(row.weight != 1 for row in task.pool)
    if weighted and not spec.method.weighs_rows:
        reasons.append("it cannot weigh rows or classes; leave the weights out")
    if reasons:
        raise ConfigError(
            f"method {spec.method.name!r} cannot be used with model {spec.model!r}:\n  " + "\n  ".join(reasons)
        )


def attach(task: Task, spec: RunSpec, backbone: Backbone) -> AbstractAdapter:
    """A fresh adapter. Raises: ConfigError as `check_method` does."""
    check_method(task, spec, backbone)
    with backbone.sharing.alone():
        adapter = _attached(task, spec, backbone)
        elsewhere = any(tensor.device != backbone.device for tensor in (*adapter.parameters(), *adapter.buffers()))
        return adapter.to(backbone.device) if elsewhere else adapter  # a skeleton's tensors cannot be moved


def _attached(task: Task, spec: RunSpec, backbone: Backbone) -> AbstractAdapter:
    adapter = spec.method.attach(backbone, task, generator=stream(spec.options.seed, "init"))
    if not hasattr(adapter, "method"):
        adapter.method = spec.method
    return adapter


def train(
    task: Task,
    spec: RunSpec,
    *,
    split: Split | None = None,
    backbone: Backbone | None = None,
    start: Start | None = None,
    on_event: Listener | None = None,
    checkpoint_folder: Path | None = None,
) -> Training:
    """Train one spec on one task, from the parameters of `start` where there is one; no test row is touched.

    Raises: DataError where that run has seen the test rows.
    """
    spec = spec.suited(task.kind)
    split = split or make_split(task, spec)
    notes = (*(start_notes(start, split) if start else ()), *without_rows(task, split.train))
    backbone = backbone or open_checked(task, spec)
    adapter = attach(task, spec, backbone)
    adapter.label_threshold = spec.options.threshold or adapter.label_threshold
    length = spec.options.max_length
    try:
        initial = carried_over(start, adapter) if start else None
        rows = encode_for(adapter, split.train, task, length, spec.generation)
        if spec.training.class_weight == "balanced":
            rows = rows.with_balanced_classes()
        dev = encode_for(adapter, split.dev, task, length, spec.generation) if split.dev else None
        result = fit(
            adapter, weighted(rows, spec.method), dev, spec.training, kind=task.kind, metric=task.metric,
            generator=stream(spec.options.seed, "fit"), on_event=on_event, checkpoint_folder=checkpoint_folder,
            initial=initial,
        )  # fmt: skip
    except BaseException:
        adapter.detach()
        raise
    temperature = 1.0
    if dev is not None and task.objective.calibrates:
        assert dev.labels is not None
        scores = predict_rows(adapter, dev, task.kind).scores[0]
        temperature = fit_temperature(scores, dev.labels.numpy())
        adapter.calibrate(temperature)
    threshold = _set_threshold(adapter, task, spec, dev) if task.objective.thresholds else ""
    truncated = {"train": rows.truncated, "dev": dev.truncated if dev else 0}
    truncated_references = rows.truncated_targets + (dev.truncated_targets if dev else 0)
    trained = Trained(spec, task, backbone, adapter)
    coverage = {"train": rows.coverage} | ({"dev": dev.coverage} if dev else {})
    longest = max(rows.longest, dev.longest if dev else 0)
    return Training(
        trained, split, result, temperature, truncated, truncated_references, notes, longest, coverage, threshold
    )  # fmt: skip


def _set_threshold(adapter: AbstractAdapter, task: Task, spec: RunSpec, dev: EncodedRows | None) -> str:
    """Give a calibrated adapter its threshold, unless the spec has: chosen on development rows. Returns the reason."""
    if spec.options.threshold is not None:
        return "as asked for"
    if dev is not None and task.metric == HALF_IS_BEST:
        return f"that is best for {HALF_IS_BEST}"
    if dev is None:
        return "there are no development rows to choose another on (run.dev), and none was asked for (run.threshold)"
    assert dev.labels is not None
    probabilities = predict_rows(adapter, dev, task.kind).probabilities
    chosen = choose_thresholds(probabilities, dev.labels.numpy(), task.labels)
    adapter.label_threshold = chosen.values[0]
    return f"chosen on development rows; {chosen.reasons[0]}"


def score(training: Training, on_written: OnWritten = lambda done, total: None) -> AnyScores | None:
    """The score on the task's test rows beside that of the training rows' most usual answer; None without test rows."""
    trained = training.trained
    return score_task(trained.adapter, trained.task, trained.spec, on_written, training.split.train)


def run(
    task: Task,
    spec: RunSpec,
    root: Path,
    *,
    backbone: Backbone | None = None,
    start: Start | None = None,
    study: Mapping[str, Any] | None = None,
    on_event: Listener | None = None,
    again: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
    on_written: OnWritten = lambda done, total: None,
) -> tuple[Run, Trained]:
    """Train, score and save one run below `root`; a run with the same key is opened and not trained again.

    `start` is what has the parameters that it starts from. `study` says what the run is in a study, for its record;
    its "job" is the name of the folder.

    An interrupted run keeps its checkpoint in a hidden folder and continues from there when started again. Of several
    processes (`accelerate launch`), which see the same files, the main one writes and the others read.
    """
    check_task(task)
    check_start(spec.method, start)
    spec = spec.suited(task.kind)
    split = make_split(task, spec)
    check_writable(root)
    clear_leftovers(root, on_message)
    backbone = backbone or open_checked(task, spec)
    spec = replace(spec, device=str(backbone.device), start=start.key if start else spec.start)
    identity = split.fingerprint, backbone.fingerprint
    key, before = spec.key(*identity, [*meaning_of(task), *_choosing(task, spec)]), spec.key(*identity)
    folder = root / (study["job"] if study else run_name(task, spec, key))
    if not study and not folder.exists() and _is_same(older := root / run_name(task, spec, before), before, task):
        folder = older
    group = ProcessGroup(backbone.device)
    if group.agree(folder.exists() and not again):
        existing = read_run(folder)
        if existing.key != key and not _is_same(folder, before, task):
            raise RunError(
                f"{folder}: holds a run of other settings, rows or weights", "give another --output, or delete it"
            )
        on_message(f"already trained: {folder} (train once more with --again)")
        if spec.options.landscape and not (folder / LANDSCAPE).is_file():
            on_message("it was trained without a landscape, which is measured when it is trained once more")
        return existing, open_trained(existing, backbone=backbone)
    if group.is_main and exists(folder):
        refuse_foreign(folder)  # before the training, and not behind it
    progress = root / f".{folder.name}{f'-{key[:8]}' if study else ''}.progress"
    if again and group.is_main:
        remove(progress)
    log = EventLog(progress, on_event)
    training = train(task, spec, split=split, backbone=backbone, start=start, on_event=log, checkpoint_folder=progress)
    trained = training.trained
    started = time.perf_counter()
    scores = score(training, on_written)
    record = describe(training, scores, key, time.perf_counter() - started)
    if study:
        record["study"] = dict(study)
    weights = trained.adapter.state_dict()
    predictions = prediction_records(scores, task) if scores else []
    landscape = dev_landscape(training)
    if group.is_main:
        write_run(
            folder, record, weights, metrics=log.records, predictions=predictions, seen=seen_rows(split, start),
            landscape=landscape, card=run_card(record),
        )  # fmt: skip
    group.wait()
    saved = read_run(folder)
    reopened = verify(saved, training)
    group.wait()
    if group.is_main:
        remove(progress)
    return saved, reopened


def meaning_of(task: Task) -> list[Any]:
    """What the labels of the rows mean, which hold indices of classes alone: kind, metric and names of classes."""
    return [task.kind, task.metric, list(task.labels), *map(meaning_of, task.members)]


def _choosing(task: Task, spec: RunSpec) -> list[str]:
    """What a run's key holds besides where a threshold is chosen: runs from before there was one have 0.5."""
    chooses = task.objective.thresholds and task.metric != HALF_IS_BEST
    chooses = chooses and spec.options.threshold is None and spec.options.dev != "none"
    return ["shared threshold"] if chooses else []


def _is_same(folder: Path, key: str, task: Task) -> bool:
    """Whether there is a run of this key, from before keys held what labels mean, whose labels mean the same."""
    if not is_folder(folder):
        return False
    existing = read_run(folder)
    return existing.key == key and meaning_of(recorded_task(existing.record["task"])) == meaning_of(task)


def dev_landscape(training: Training) -> dict[str, Any] | None:
    """The content of `landscape.json`, or None where none was asked for."""
    trained, options = training.trained, training.trained.spec.options
    if not options.landscape:
        return None
    rows = encode_for(trained.adapter, training.split.dev, trained.task, options.max_length)
    return measure_landscape(trained.adapter, rows, trained.task.kind, options.landscape)


@final
class EventLog:
    """A listener that keeps every event, those before an interruption too, and passes each on.

    When a checkpoint was saved depends on the clock, and says nothing about the run: that is passed on alone.

    Each goes to a file before the next checkpoint does, so that none is missing when a fit continues.
    """

    def __init__(self, folder: Path, on_event: Listener | None):
        self.path, self.on_event = folder / METRICS, on_event
        self.records: list[dict[str, Any]] = []

    def __call__(self, event: Event) -> None:
        with suppress(OSError):  # a full disk is for the checkpoint to complain about
            if isinstance(event, FitStarted):
                self._begin(event.resumed_at)
            if not isinstance(event, CheckpointSaved):
                self._append(to_record(event))
        if self.on_event:
            self.on_event(event)

    def _begin(self, resumed_at: int) -> None:
        """Take over what was logged up to the step that a checkpoint had reached."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().split(b"\n") if resumed_at and self.path.is_file() else []
        for line in lines:
            with suppress(ValueError):  # the last line of a killed process may be cut
                record = parse_json(line)
                if isinstance(record, dict) and isinstance(step := record.get("step", 0), int) and step <= resumed_at:
                    self.records.append(record)
        write_file(self.path, "".join(json.dumps(record) + "\n" for record in self.records))

    def _append(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with open_append(self.path) as file:
            file.write(f"{json.dumps(record)}\n".encode())


def run_name(task: Task, spec: RunSpec, key: str) -> str:
    """The folder's name: readable, and unique through the key."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in task.name[:40])
    shots = "all" if spec.options.shots is None else spec.options.shots
    return short_name(f"{safe}-{spec.method.name}-k{shots}-s{spec.options.seed}-{key[:8]}")


def describe(training: Training, scores: AnyScores | None, key: str, scoring_seconds: float) -> dict[str, Any]:
    """The content of `run.json`."""
    trained, split, result = training.trained, training.split, training.result
    task, backbone, generation = trained.task, trained.backbone, trained.spec.generation
    coverage = training.coverage | ({"test": scores.coverage} if scores else {})
    path = path_of(type(trained.spec.method))
    package = None if is_ours(type(trained.spec.method)) else package_at(path)
    own_notes = [OF_SESSION.format(path)] * path.startswith("__main__:")
    threshold = threshold_of(training)
    own_notes = [*own_notes, *([threshold_sentence(**threshold)] if threshold else [])]
    return {
        "key": key,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("handful", "torch", "transformers", "accelerate")}
        | {"python": platform.python_version()},
        "spec": trained.spec.resolved(),
        "preset": trained.spec.preset,
        "choices": [{"name": c.name, "value": c.value, "reason": c.reason} for c in trained.spec.choices],
        "notes": [*training.notes, *trained.adapter.notes, *own_notes],
        "method_package": package,
        "task": describe_task(task),
        "rows": {
            "train": len(split.train), "dev": len(split.dev), "test": num_test_rows(task),
            "dropped_duplicates": split.dropped_duplicates, "dropped_overlap": split.dropped_overlap,
            "dropped_contradictions": split.dropped_contradictions,
            "truncated": training.truncated | ({"test": scores.truncated} if scores else {}),
            "longest": max(training.longest, scores.longest if scores else 0),
            "most_tokens": longest_row(trained.adapter, backbone.max_length, generation),
            "coverage": {part: asdict(found) for part, found in coverage.items()},
            "truncated_references": training.truncated_references,
            "target_length": generation and longest_reference(backbone, generation),
            "max_length": longest_row(trained.adapter, trained.spec.options.max_length, generation),
            "fingerprint": split.fingerprint, "cell_fingerprint": split.cell_fingerprint,
            "untested_classes": untested_in(scores),
        },
        "backbone": {
            "name": backbone.name, "hub_name": hub_name(trained.spec.model), "family": backbone.family,
            "kind": backbone.kind, "pooling": backbone.pooling,
            "fingerprint": backbone.fingerprint, "parameters": sum(p.numel() for p in backbone.model.parameters()),
            "device": backbone.device.type, "device_name": device_name(backbone.device),
            "dtype": str(backbone.model.dtype).removeprefix("torch."),
        },
        "fit": {
            "parameters": result.parameters, "steps": result.steps, "chosen_step": result.chosen_step,
            "seconds": round(result.seconds, 3), "stopped": result.stopped, "history": result.history,
            "scoring_seconds": round(scoring_seconds, 3),
            "peak_memory_mb": peak_memory(),
        },
        "temperature": training.temperature,
        **({"threshold": threshold} if threshold else {}),
        "adapter": trained.adapter.report(),
        **describe_scores(scores),
    }  # fmt: skip


def threshold_of(training: Training) -> dict[str, Any] | None:
    """The "threshold" of `run.json`: its value and the reason; None for kinds of tasks without."""
    value = training.trained.adapter.label_threshold
    return {"value": value, "reason": training.threshold} if training.threshold else None


def verify(saved: Run, training: Training) -> Trained:
    """Open the saved run on the same backbone and compare its predictions with those in memory.

    Raises: RunError unless they are equal.
    """
    trained = training.trained
    expected = warm_scores(trained, training.split)
    trained.adapter.detach()
    reopened = open_trained(saved, backbone=trained.backbone)
    found = warm_scores(reopened, training.split)
    worst = float(np.abs(expected - found).max())
    # on a CPU the same to the bit; elsewhere kernels may be chosen by where in memory a tensor lies
    tolerance = 0.0 if trained.backbone.device.type == "cpu" else 1e-4 * max(1.0, float(np.abs(expected).max()))
    if not worst <= tolerance:
        raise RunError(f"{saved.folder}: read back, it predicts otherwise than before saving (by up to {worst:.2g})")
    return reopened


def warm_scores(trained: Trained, split: Split) -> np.ndarray:
    """The scores of a few training rows at the midpoint; of generation the mean NLL of their references' tokens."""
    spec, task = trained.spec, trained.task
    few = first_of_members(split.train) if task.members else split.train[:WARM_ROWS]
    rows = encode_for(trained.adapter, few, task, spec.options.max_length, spec.generation)
    if spec.generation:
        return np.asarray(token_nll(trained.adapter, rows))
    return predict_rows(trained.adapter, rows, task.kind).scores


def open_trained(saved: Run, *, backbone: Backbone | None = None, device: str = "cpu") -> Trained:
    """The trained adapter of a saved run, on the backbone that is given, or on one that is loaded onto the device.

    Raises: RunError for damaged weights, ModelError when run and backbone do not belong together.
    """
    record = saved.record
    spec_record, task_record = record["spec"], record["task"]
    weights = saved.weights()
    method = recorded_method(record)
    spec = RunSpec(
        spec_record["model"], method, TrainingConfig.from_settings(spec_record["training"]),
        RunOptions(**spec_record["run"]), record["preset"], start=spec_record.get("start", ""),
        generation=GenerationOptions(**spec_record["generation"]) if "generation" in spec_record else None,
        device=str(backbone.device) if backbone else device,
    )  # fmt: skip
    backbone = backbone or open_backbone(spec, task_record["kind"])
    check_backbone(saved, backbone)
    task = recorded_task(task_record)
    with backbone.sharing.alone():
        adapter = _attached(task, spec, backbone).to(backbone.device)
    expected = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        adapter.detach()
        raise RunError(
            f"{saved.folder}: the saved tensors are not those of its method: expected {expected}, found {found}"
        )
    adapter.load_state_dict(weights)
    adapter.label_threshold = record["threshold"]["value"] if record.get("threshold") else adapter.label_threshold
    adapter.eval()
    return Trained(spec, task, backbone, adapter)
