"""Search for a method's settings on the labelled rows of one run, and on nothing else.

Each trial trains on a part of the run's K rows and is judged on the rest, which is carved out of them whatever the
run itself does with development rows: no trial sees a row that the run would not have. Test rows are not merely left
alone, they are not there. The first trial has the preset's own values, so that on these development rows a search ends
at least as well as it starts; on twenty rows that says little about others.

A search that is killed and started again goes on from its journal as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, final

from handful.backbone.load import Backbone
from handful.data.split import Split
from handful.data.task import Task
from handful.errors import ConfigError, HandfulError
from handful.evaluation.evaluate import encode_for
from handful.evaluation.metrics import get_metric, score
from handful.evaluation.predict import Predictions, predict_rows
from handful.evaluation.text.generate import token_nll
from handful.methods.search_space import SearchSpace
from handful.randomness import stream
from handful.runs.experiment import Training, make_split, open_backbone, train
from handful.runs.memory import release_memory
from handful.runs.spec import RunSpec, resolve
from handful.runs.store import Run
from handful.studies.strategies import STRATEGIES
from handful.studies.trials import Journal, SearchSettings, Trial
from handful.training.events import Evaluated, Event, FitStarted, Listener

TENTHS = 10
"""Parts of a run at whose ends its dev curve is read, so that runs of 10 and of 40 epochs can be compared midway."""


@final
@dataclass(frozen=True)
class SearchOutcome:
    """`overrides` of the best trial (empty: the preset's own values), all trials, and a sentence on what was done."""

    overrides: dict[str, Any]
    trials: tuple[Trial, ...]
    note: str

    @property
    def tried(self) -> int:
        """How many settings the choice was made from, failed and pruned ones among them; 1 without a search."""
        return max(1, len(self.trials))


def search(
    task: Task,
    spec: RunSpec,
    settings: SearchSettings,
    space: SearchSpace,
    *,
    journal: Path,
    backbone: Backbone | None = None,
    start: Run | None = None,
    on_event: Listener = lambda event: None,
) -> SearchOutcome:
    """Try settings from `space` on the rows of `spec` and choose the best: by dev score, then dev loss, then number.

    `spec` is the run that they are for, with the preset's values, and `start` the run that it starts from, if any.
    Trials are kept in the file `journal` and not repeated. With one trial, or nothing to vary, nothing is trained. A
    trial that diverges or ends in an error of ours has failed, and counts. `on_event` hears every fit.
    Raises: ConfigError for a search that cannot be done, or whose trials all failed; DataError where no development
    rows can be carved; RunError for the journal of another search.
    """
    name, spec = spec.method.name, spec.suited(task.kind)
    if not space or settings.trials == 1:
        return SearchOutcome({}, (), f"{name}: 1 trial, {'as asked' if space else 'there is nothing to search'}")
    preset = {setting: _value(spec, setting) for setting in space}
    higher = get_metric(judged_by(task)).higher_is_better
    strategy = STRATEGIES[settings.strategy](settings, space, preset, seed=spec.options.seed, maximise=higher)
    split = carve(task, spec, settings.dev_fraction)
    backbone = backbone or open_backbone(spec, task.kind)
    judge = _Judge(spec, split, backbone, start, on_event)
    book = Journal(journal, _identity(split, spec, settings, space, backbone))
    while len(book.trials) < settings.trials:
        number = len(book.trials)
        overrides = strategy.propose(book.trials) if number else {}
        if overrides is None:
            break
        same = next((t for t in book.trials if {**preset, **t.overrides} == {**preset, **overrides}), None)
        if same:
            trial = replace(same, number=number, seconds=0.0)  # it would give the same numbers again
        else:
            trial = judge.attempt(number, overrides, strategy.gives_up if number else _never)
        book.append(trial)
    best = choose(book.trials, higher)
    if best is None:
        raise ConfigError(
            f"{name}: all {len(book.trials)} trials failed, the first with: {book.trials[0].error}",
            f"the trials are in {journal}; remove it to try again",
        )
    return SearchOutcome(best.overrides, tuple(book.trials), _note(name, best, book.trials, judged_by(task)))


def carve(task: Task, spec: RunSpec, fraction: float) -> Split:
    """The run's labelled rows, this fraction of them for development, in a task that has no other rows.

    Raises: DataError where a class has a single row.
    """
    split = make_split(task, spec)
    rows = split.train + (split.dev if spec.options.dev == "carved" else ())
    alone = replace(task, pool=rows, test=None, dev=None)
    return Split(alone, len(rows), spec.options.seed, dev="carved", dev_fraction=fraction)


def choose(trials: Sequence[Trial], higher_is_better: bool) -> Trial | None:
    """The trial with the best dev score; of those the one with the lowest dev loss; of those the first."""
    sign = -1 if higher_is_better else 1
    finished = [trial for trial in trials if trial.status == "done"]
    return min(finished, key=lambda t: (sign * (t.score or 0), t.loss or 0, t.number), default=None)


def with_overrides(spec: RunSpec, overrides: Mapping[str, Any]) -> RunSpec:
    """The spec with some of its settings changed, by dotted name. Raises: ConfigError for a wrong value."""
    parts = {part: spec.resolved()[part] for part in ("method", "training", "run")}
    settings = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    del settings["method.name"]
    changed = resolve(type(spec.method), model=spec.model, preset=spec.preset, overrides={**settings, **overrides})
    kept = tuple(choice for choice in spec.choices if choice.name not in overrides)
    return replace(spec, method=changed.method, training=changed.training, options=changed.options, choices=kept)


@final
class _Judge:
    """Trains one setting after another on the same carved rows, and scores it there."""

    def __init__(self, spec: RunSpec, split: Split, backbone: Backbone, start: Run | None, on_event: Listener):
        self.spec = with_overrides(spec, {"run.dev": "carved"})
        self.split, self.backbone, self.start, self.on_event = split, backbone, start, on_event

    def attempt(self, number: int, overrides: dict[str, Any], gives_up: Callable[[int, float], bool]) -> Trial:
        """One trial; what goes wrong with it is its outcome."""
        started, curve = time.perf_counter(), DevCurve(judged_by(self.split.task), self.on_event, gives_up)
        result: dict[str, Any]
        try:
            result = self._train(overrides, curve)
        except _GivenUp:
            result = {"status": "pruned"}
        except HandfulError as error:
            result = {"status": "failed", "error": error.message}
        seconds = round(time.perf_counter() - started, 3)
        release_memory()  # a job has as many fits as trials
        return Trial(number, overrides, seconds=seconds, curve=tuple(curve.scores.items()), **result)

    def _train(self, overrides: dict[str, Any], curve: DevCurve) -> dict[str, Any]:
        spec = with_overrides(self.spec, overrides)
        training = train(
            self.split.task, spec, split=self.split, backbone=self.backbone, start=self.start, on_event=curve
        )
        try:
            if training.result.diverged:
                return {"status": "failed", "error": training.result.stopped}
            return dev_scores(training)
        finally:
            training.trained.adapter.detach()


@final
class DevCurve:
    """A listener of one fit that keeps the dev score after each tenth of it, and ends a fit that is given up.

    A fit that selects by another metric than the task's has no such curve.
    """

    def __init__(self, metric: str, on_event: Listener, gives_up: Callable[[int, float], bool]):
        self.metric, self.on_event, self.gives_up = metric, on_event, gives_up
        self.epochs = 0
        self.scores: dict[int, float] = {}

    def __call__(self, event: Event) -> None:
        self.on_event(event)
        if isinstance(event, FitStarted):
            self.epochs = event.epochs
        elif isinstance(event, Evaluated) and event.metric == self.metric:
            tenth = TENTHS * event.epoch // self.epochs
            if tenth and tenth not in self.scores and isfinite(event.score):
                self.scores[tenth] = event.score
                if tenth < TENTHS and self.gives_up(tenth, event.score):
                    raise _GivenUp


class _GivenUp(Exception):
    """Leaves a fit from inside its listener."""


def _never(tenth: int, score: float) -> bool:
    del tenth, score
    return False


def judged_by(task: Task) -> str:
    """What trials are compared by: the task's metric; of generation the NLL of a reference's token."""
    return task.objective.loss_metric if task.objective.generates else task.metric


def dev_scores(training: Training) -> dict[str, Any]:
    """Score and loss of the trained adapter on the development rows, by the run's own predictor.

    The loss is of the scores before calibration, which was fitted on these same rows.
    """
    adapter, task, options = training.trained.adapter, training.trained.task, training.trained.spec.options
    rows = encode_for(adapter, training.split.dev, task, options.max_length, training.trained.spec.generation)
    if task.objective.generates:
        nll = token_nll(adapter, rows)
        if not isfinite(nll):
            return {"status": "failed", "error": "its nll on dev is no finite number"}
        return {"status": "done", "score": nll, "loss": nll}
    calibrated = predict_rows(
        adapter, rows, task.kind, predictor=options.predictor, draws=options.draws,
        generator=stream(options.seed, "search/dev"),
    )  # fmt: skip
    predictions = Predictions(calibrated.scores * training.temperature, task.kind, calibrated.threshold)
    assert rows.labels is not None
    targets, loss = rows.labels.numpy(), task.objective.loss_metric
    metrics = {what: get_metric(name, task.kind) for what, name in (("score", task.metric), ("loss", loss))}
    values = {what: score(metric, predictions.needed_by(metric), targets) for what, metric in metrics.items()}
    if not all(map(isfinite, values.values())):
        return {"status": "failed", "error": f"its {task.metric} or {loss} on dev is no finite number"}
    return {"status": "done", **values}


def _value(spec: RunSpec, name: str) -> Any:
    """The value of a setting by its dotted name."""
    section, _, field = name.partition(".")
    return getattr({"method": spec.method, "training": spec.training}[section], field)


def _identity(
    split: Split, spec: RunSpec, settings: SearchSettings, space: SearchSpace, backbone: Backbone
) -> dict[str, Any]:
    """What decides a search's trials. Not how many there are: a search may be continued with more."""
    fixed = {name: value for name, value in asdict(settings).items() if name != "trials"}
    dimensions = {name: {k: v for k, v in asdict(dim).items() if k != "reason"} for name, dim in space.items()}
    device = backbone.device.type
    return {
        "rows": split.fingerprint,
        "backbone": backbone.fingerprint,
        "spec": spec.resolved(),
        "settings": fixed,
        "space": dimensions,
        **({"device": device} if device != "cpu" else {}),
    }


def _note(name: str, best: Trial, trials: Sequence[Trial], metric: str) -> str:
    """How many trials of what kind, and which was chosen."""
    kinds = [(status, sum(trial.status == status for trial in trials)) for status in ("pruned", "failed")]
    counts = [f"{len(trials)} trials", *(f"{count} {status}" for status, count in kinds if count)]
    chosen = ", ".join(f"{setting} = {value}" for setting, value in best.overrides.items()) or "the preset's own values"
    return f"{name}: {', '.join(counts)}; chosen on dev ({metric} {best.score:.3f}): {chosen}"
