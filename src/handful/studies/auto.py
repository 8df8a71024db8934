"""Method "auto": chosen by resampling the K labelled rows; the probe, unless another is better on this task.

The K rows are cut into folds, several times over. Each candidate is trained on all folds but one, just as the run
itself will be, and scored on that one. Test rows stay closed throughout: the task of a fold has none.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import ceil, inf, sqrt
from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from handful.backbone.load import Backbone
from handful.data.split import Split
from handful.data.task import DevRows, Example, Task, TaskKind
from handful.errors import ConfigError, HandfulError
from handful.evaluation.estimate import Estimate
from handful.evaluation.evaluate import encode_for
from handful.evaluation.metrics import check_metric, check_numbers, get_metric, score
from handful.evaluation.predict import predict_rows
from handful.objectives import objective_of
from handful.randomness import stream
from handful.runs.defaults import AUTO, WRITING_METHOD
from handful.runs.experiment import make_split, train
from handful.runs.spec import Choice, RunSpec
from handful.studies.verdicts import square_of_mean
from handful.training.events import Listener

PROBE = "head"
CANDIDATES = (PROBE, "prefix-subspace", "lora")
FOLDS, REPEATS, BUDGET = 5, 3, 300.0

Clock = Callable[[], float]


@final
@dataclass(frozen=True)
class Fold:
    """Rows to train on and rows to score, and the seed of what is drawn in between, the same for every candidate."""

    train: tuple[Example, ...]
    held: tuple[Example, ...]
    seed: int


@final
@dataclass(frozen=True)
class Chosen:
    """The spec to train, with the choice in its `choices`, and why it was chosen.

    `advantages` over the probe are positive where a candidate is better; `problems` say why others were not judged.
    Of the `planned` folds, `folds` were done.
    """

    spec: RunSpec
    reason: str
    advantages: dict[str, Estimate]
    problems: dict[str, str]
    folds: int
    planned: int


def candidate_specs(resolve: Callable[[str], RunSpec], kind: TaskKind | None) -> list[RunSpec]:
    """The run of every candidate whose package is installed, the probe first; `resolve` makes it from the name.

    Raises: ConfigError for a task of texts to write, and for settings that not every candidate has.
    """
    if kind and objective_of(kind).generates:
        raise ConfigError(
            f"method {AUTO!r} chooses among methods for labels, and this task is of texts to write",
            f"leave the method out, which takes {WRITING_METHOD!r}, or name one",
        )
    specs = []
    for name in CANDIDATES:
        if name == "lora" and not find_spec("peft"):
            continue
        try:
            specs.append(resolve(name))
        except ConfigError as error:
            raise ConfigError(
                f"method {AUTO!r} tries {', '.join(CANDIDATES)}; for {name!r} there are {error.message}",
                "give settings that all of them have, or choose one of them with --method",
            ) from None
    return specs


def choose(
    task: Task,
    specs: Sequence[RunSpec],
    *,
    backbone: Backbone,
    budget: float = BUDGET,
    on_message: Callable[[str], None] = lambda message: None,
    clock: Clock = time.perf_counter,
) -> Chosen:
    """Of the specs whose advantage over the probe, `specs[0]`, has its interval above 0, that with the largest.

    Where there is none, the probe. The intervals are those of `advantages_over`, so where none is better another is
    taken in at most 5 % of cases. The specs share rows, model and pooling. The first fold is timed; what cannot finish
    `FOLDS` folds within the `budget` (seconds) is given up, the slowest first, and the rest get as many of the planned
    folds as fit. Where all do and nothing is given up, the choice depends on rows, seed and model alone; else the
    choices say so. The budget is for choosing; training the chosen spec comes on top.

    Raises: what the run of the probe itself would.
    """
    check_metric(task.metric, task.kind, len(task.labels))
    probe, seed = specs[0], specs[0].options.seed
    split = make_split(task, probe)
    rows = _labelled(split, probe)
    count = number_of_folds(rows, task, probe.options.dev)
    inner = replace(task, pool=(), test=None, dev=split.dev if probe.options.dev == "separate" else None)
    resampling = _Resampling(inner, list(specs), backbone, budget, on_message, clock)
    if count:
        on_message(
            f"auto: {' or '.join(spec.method.name for spec in specs)}, by {task.metric} in up to {count * REPEATS} "
            f"folds of the {len(rows):,} training rows and at most {budget:,.0f} s"
        )
        resampling.run(make_folds(rows, task, count, seed, least=_least(probe.options.dev)))
    return _conclude(specs, resampling, resampling.advantages(count, len(rows)), len(rows), count * REPEATS)


def count_folds(task: Task, probe: RunSpec) -> int:
    """How many folds `choose` plans for these rows. Raises: DataError where the rows cannot be had."""
    return number_of_folds(_labelled(make_split(task, probe), probe), task, probe.options.dev) * REPEATS


def _labelled(split: Split, spec: RunSpec) -> tuple[Example, ...]:
    """The K rows: those to train on, and the development rows where they are carved out of the K."""
    return split.train + (split.dev if spec.options.dev == "carved" else ())


def _conclude(
    specs: Sequence[RunSpec], done: _Resampling, advantages: dict[str, Estimate], rows: int, planned: int
) -> Chosen:
    """Choose, say why, and write it into the choices of the spec."""
    better = best_of(advantages)
    name = better or specs[0].method.name
    cut = f", of {planned} planned: more did not fit into {done.budget:,.0f} s" if done.folds < planned else ""
    level = f" at {100 * next(iter(advantages.values())).level:.4g} %" if advantages else ""
    where = f"in {done.folds} folds of the {rows:,} training rows{cut} (corrected resampled t{level})"
    if better:
        reason = f"better on this task than the probe, by {advantages[better]} {done.task.metric} {where}"
    elif advantages:
        reason = f"it is the probe, and nothing else is better on this task {where}"
    elif planned:
        reason = "it is the probe, and nothing else could be judged"
    else:
        reason = f"it is the probe, and {rows:,} training rows, or those of the rarest class, are too few to resample"
    choices = [Choice("method", name, reason)]
    choices += [Choice(f"{AUTO}.{n}", gain.to_dict(), "advantage over the probe") for n, gain in advantages.items()]
    choices += [Choice(f"{AUTO}.{n}", None, f"not judged: {problem}") for n, problem in done.problems.items()]
    for other, gain in advantages.items():
        done.say(f"auto: advantage of {other} over {specs[0].method.name}: {gain}")
    for other, problem in done.problems.items():
        done.say(f"auto: {other} was not judged: {problem}")
    done.say(f"auto: chose {name}: {reason}")
    chosen = next(spec for spec in specs if spec.method.name == name)
    spec = replace(chosen, choices=(*choices, *chosen.choices))
    return Chosen(spec, reason, advantages, done.problems, done.folds, planned)


def number_of_folds(rows: Sequence[Example], task: Task, dev: DevRows) -> int:
    """`FOLDS`, or as many as the rarest class (or fifth of the target) has rows; 0 where there are too few.

    Where a fold is left out, a row of every class remains, and a second one where development rows are carved.
    """
    strata = task.objective.strata([row.label for row in rows], len(task.labels))
    rarest = min(map(len, strata))
    count = min(FOLDS, rarest)
    return count if count > 1 and rarest - ceil(rarest / count) >= _least(dev) else 0


def _least(dev: DevRows) -> int:
    """Rows of a class without which nothing can be trained."""
    return 2 if dev == "carved" else 1


def make_folds(rows: Sequence[Example], task: Task, count: int, seed: int, *, least: int = 1) -> list[Fold]:
    """`REPEATS` rounds of `count` folds, each row held out once a round.

    Every class is spread evenly over the folds of a round; for regression every `count` rows that are neighbours in
    their target are; for several labels per text the rows of like label sets are. A row is not held out where fewer
    than `least` rows of one of its labels would be left to train on.
    """
    generator = stream(seed, "auto/folds")
    stratum = dict(zip(rows, task.objective.ranks([row.label for row in rows], count), strict=True))
    folds = []
    for _ in range(REPEATS):
        shuffled = [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
        dealt = sorted(shuffled, key=lambda row: stratum[row])
        seeds = torch.randint(2**31, (count,), generator=generator).tolist()
        for number in range(count):
            kept = [row for place, row in enumerate(dealt) if place % count != number]
            held, needed = _without_the_last(dealt[number::count], kept, task, least)
            if held:
                folds.append(Fold((*kept, *needed), held, seeds[number]))
    return folds


def _without_the_last(
    held: Sequence[Example], kept: Sequence[Example], task: Task, least: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The rows to hold out, and those without which a label would have fewer than `least` rows to train on."""
    left = Counter(label for row in kept for label in task.objective.classes_in([row.label]))
    apart, needed = [], []
    for row in held:
        own = task.objective.classes_in([row.label])
        short = any(left[label] < least for label in own)
        (needed if short else apart).append(row)
        left.update(own if short else ())
    return tuple(apart), tuple(needed)


def corrected_difference(
    differences: ArrayLike, ratio: float, level: float = 0.95, rows: int | None = None
) -> Estimate:
    """The mean difference over J folds, with the interval of the corrected resampled t test.

    mean ± t(J - 1) √((1 / J + ratio) s²), where s is the standard deviation of the differences (J,) and `ratio` the
    number of rows held out by the number trained on. Plain t would take the folds as independent, but any two share
    most of their training rows: the added `ratio` is Nadeau and Bengio's (2003) correction, for repeated folds as in
    Bouckaert and Frank (2004). A rule of thumb that works, not exact.

    Folds may all agree by chance, since each holds few rows, and s is then 0. With `rows`, for scores that are shares
    of that many rows in all, the interval is then mean ± z √(rows |mean| + 2) / rows, that of as many rows as the mean
    makes up, all in favour of the same side: it takes 6 of them (see `row_noise`). Without, there is none.
    """
    values = check_numbers("differences", differences, "N")
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, None, None, n, level, "one fold")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * sqrt((1 / n + ratio) * n * square_of_mean(values))
    if not half and rows is not None:
        half = float(ndtri((1 + level) / 2)) * sqrt(rows * abs(mean) + 2) / rows
    if not half:
        return Estimate(mean, None, None, n, level, "the same difference in every fold")
    return Estimate(mean, mean - half, mean + half, n, level, "corrected resampled t")


def advantages_over(
    probe: str, scores: Mapping[str, ArrayLike], *, ratio: float, rows: int | None = None, sign: int = 1
) -> dict[str, Estimate]:
    """Every other candidate's `corrected_difference` to the probe, from scores in the same folds (J,) of each.

    The intervals are at 1 - 5 % / m for m candidates besides the probe (Bonferroni). Only their upper half takes
    another than the probe, which leaves room for what the correction leaves out: where all are equally good, that comes
    in 1 to 5 % of cases, most with 16 rows (`benchmarks/verdicts.py`).
    """
    others = [name for name in scores if name != probe]
    level = 1 - 0.05 / max(1, len(others))
    gains = {name: sign * (np.asarray(scores[name]) - np.asarray(scores[probe])) for name in others}
    return {name: corrected_difference(gain, ratio, level, rows) for name, gain in gains.items()}


def best_of(advantages: Mapping[str, Estimate]) -> str | None:
    """The candidate with the largest advantage of those whose interval is above 0."""
    better = {name: gain.mean for name, gain in advantages.items() if gain.low is not None and gain.low > 0}
    return max(better, key=lambda name: better[name]) if better else None


def fold_score(task: Task, spec: RunSpec, fold: Fold, backbone: Backbone, on_event: Listener | None = None) -> float:
    """The task's metric on the rows held out, after training on the others. `task` has no test rows."""
    options = replace(spec.options, shots=None, seed=fold.seed)
    trained = train(
        replace(task, pool=fold.train), replace(spec, options=options), backbone=backbone, on_event=on_event
    ).trained  # fmt: skip
    try:
        held = encode_for(trained.adapter, fold.held, task, options.max_length)
        predictions = predict_rows(
            trained.adapter, held, task.kind,
            predictor=options.predictor, draws=options.draws, generator=stream(fold.seed, "auto/predict"),
        )  # fmt: skip
    finally:
        trained.adapter.detach()
    assert held.labels is not None
    return score(get_metric(task.metric, task.kind), predictions.needed_by(task.metric), held.labels.numpy())


class _OutOfTime(Exception):
    """Time ran out in the middle of a fold."""


@final
@dataclass
class _Resampling:
    """Candidates, the probe first, and their scores in the same folds, as far as the budget goes."""

    task: Task
    alive: list[RunSpec]
    backbone: Backbone
    budget: float
    say: Callable[[str], None]
    clock: Clock
    scores: dict[str, list[float]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def folds(self) -> int:
        """How many folds were done by all that are still judged."""
        return min((len(self.scores.get(spec.method.name, ())) for spec in self.alive), default=0)

    def run(self, folds: Sequence[Fold]) -> None:
        """Time the first fold, give up what is too slow, and do as many of the others as fit."""
        seconds = self._first(folds[0], self.budget / FOLDS)
        fitting = self._plan(seconds, len(folds))
        for number, fold in enumerate(folds[1:fitting], 2):
            try:
                scores = [self._score(spec, fold, self.started + self.budget) for spec in self.alive]
            except _OutOfTime:
                self.say(f"auto: time ran out in fold {number}")
                return
            for spec, value in zip(self.alive, scores, strict=True):
                self.scores[spec.method.name].append(value)
            told = ", ".join(f"{s.method.name} {value:.3f}" for s, value in zip(self.alive, scores, strict=True))
            self.say(f"auto: fold {number} of {fitting}: {told}")

    def advantages(self, round_size: int, rows: int) -> dict[str, Estimate]:
        """Of every candidate over the probe; none with fewer than `FOLDS` folds, which may agree by chance."""
        if self.folds < FOLDS:
            return {}
        metric, probe = get_metric(self.task.metric, self.task.kind), self.alive[0].method.name
        scores = {spec.method.name: self.scores[spec.method.name] for spec in self.alive}
        return advantages_over(
            probe, scores, ratio=1 / (round_size - 1), rows=rows if metric.needs == "labels" else None,
            sign=1 if metric.higher_is_better else -1,
        )  # fmt: skip

    def _first(self, fold: Fold, limit: float) -> dict[str, float]:
        """Seconds of the first fold by candidate. Those that fail or take longer than the limit are given up."""
        seconds = {}
        for spec in list(self.alive):
            name, started = spec.method.name, self.clock()
            is_probe = spec is self.alive[0]
            try:
                self.scores[name] = [self._score(spec, fold, inf if is_probe else started + limit)]
                seconds[name] = self.clock() - started
            except _OutOfTime:
                self._give_up(spec, f"a fold takes more than {limit:.0f} s, and {FOLDS} of them more than the budget")
            except HandfulError as error:
                if is_probe:
                    raise
                self._give_up(spec, error.message)
        return seconds

    def _plan(self, seconds: dict[str, float], planned: int) -> int:
        """How many folds fit, once the candidates that are too slow for `FOLDS` of them are given up."""
        left = self.budget - (self.clock() - self.started)
        cost = sum(seconds[spec.method.name] for spec in self.alive)
        while len(self.alive) > 1 and (FOLDS - 1) * cost > left:
            slowest = max(self.alive[1:], key=lambda spec: seconds[spec.method.name])
            self._give_up(slowest, f"{FOLDS} folds would take longer than the budget")
            cost -= seconds[slowest.method.name]
        if len(self.alive) < 2:
            return 1
        fitting = min(planned, 1 + int(left / cost)) if cost else planned
        told = ", ".join(f"{spec.method.name} {seconds[spec.method.name]:.1f} s" for spec in self.alive)
        self.say(f"auto: a fold takes {told}: {fitting} of {planned} folds fit")
        return fitting

    def _score(self, spec: RunSpec, fold: Fold, deadline: float) -> float:
        def watch(event: object) -> None:
            if self.clock() > deadline:
                raise _OutOfTime

        return fold_score(self.task, spec, fold, self.backbone, watch)

    def _give_up(self, spec: RunSpec, problem: str) -> None:
        self.alive.remove(spec)
        self.problems[spec.method.name] = problem
