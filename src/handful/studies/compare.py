"""Finished runs: each method by itself, and two of them compared in pairs; `ranking` compares many.

Scores are compared where the rows were the same: one task, number of shots and seed, and one fingerprint of the rows.
Which one is better, and for what, is said by the rule of `verdicts` and in its words; whoever shows a comparison takes
them from `Comparison.statement`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from handful.errors import ConfigError, RunError, nearest
from handful.evaluation.estimate import Estimate, estimate_over_seeds
from handful.evaluation.metrics import Metric, get_metric
from handful.studies.results import Cell, Result
from handful.studies.row_noise import RowReader
from handful.studies.verdicts import NOT_TOLD_APART, RowNoise, Scope, judge


class Rows(NamedTuple):
    """What a pair shares."""

    cell: Cell
    fingerprint: str


@final
@dataclass(frozen=True)
class LeftOut:
    """Cells that could not be compared.

    `alone`: only one of the two was run there. `other_rows`: both were, on different rows. `other_metric`: the task
    was scored by different metrics. `unscored`: a run has no such score.
    """

    alone: int = 0
    other_rows: int = 0
    other_metric: int = 0
    unscored: int = 0


@final
@dataclass(frozen=True)
class TaskComparison:
    """One task's part of a `Comparison`: both means over its seeds, the advantage on this task, and its pairs."""

    task: str
    metric: str
    a: Estimate
    b: Estimate
    advantage: Estimate
    wins: int
    ties: int
    losses: int


@final
@dataclass(frozen=True)
class Comparison:
    """How much better `a` is than `b`.

    Advantages are positive where a is better, also for metrics of which less is better: `advantage` is that on these
    tasks, `elsewhere` has the same mean and the interval for tasks like these, None for one task. `scope` is the widest
    of the two for which one is better. `wins`, `ties` and `losses` of a add up to the number of pairs; `p` is that of
    the exact sign test. `notes` say what lessens the evidence.
    """

    a: str
    b: str
    advantage: Estimate
    elsewhere: Estimate | None
    scope: Scope | None
    wins: int
    ties: int
    losses: int
    p: float
    tasks: tuple[TaskComparison, ...]
    left_out: LeftOut
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def better(self) -> str | None:
        """The label that is better, or None where they are not told apart."""
        if self.scope is None:
            return None
        return self.a if self.advantage.mean > 0 else self.b

    @property
    def verdict(self) -> str:
        """What a comparison says: "better on", followed by `scope`, or "not told apart"."""
        return f"better on {self.scope}" if self.scope else NOT_TOLD_APART

    @property
    def statement(self) -> str:
        """The verdict as a sentence without its full stop."""
        return f"{self.better} is {self.verdict}" if self.better else f"{self.a} and {self.b} are {NOT_TOLD_APART}"


def labels_of(results: Iterable[Result]) -> list[str]:
    """Every label, sorted."""
    return sorted({result.label for result in results})


def quoted(labels: Iterable[str]) -> str:
    """Labels as messages show them: a label may have commas."""
    return ", ".join(map(repr, labels)) or "none"


def with_label(results: Sequence[Result], label: str) -> list[Result]:
    """The results of one label. Raises: ConfigError naming the nearest label and all there are."""
    if found := [result for result in results if result.label == label]:
        return found
    labels = labels_of(results)
    close = nearest(label, labels)
    raise ConfigError(
        f"expected the label of a run, found {label!r}; here are: {quoted(labels)}",
        close if close.startswith("did") else "labels are methods, or names given in a study",
    )


def compare(
    a: Sequence[Result],
    b: Sequence[Result],
    *,
    metric: str | None = None,
    level: float = 0.95,
    reader: RowReader | None = None,
) -> Comparison:
    """The results of one label against those of another, in pairs that had the same rows.

    Without `metric` each task counts by its own, in its own units. The advantage of a pair is its difference, with the
    sign that makes more better. Its mean is over the shots of a seed, then over the seeds of a task, then over tasks,
    so that each task counts the same however many runs it has; its intervals are those of `verdicts.judge`, with seeds
    shared where runs on several tasks started from the same run. Tasks that are the same rows under several names
    count as one. `reader` keeps what it has read of test rows, for the next comparison.

    The sign test asks whether wins and losses are equally likely: P(at least as uneven | Binomial(wins + losses, ½)),
    ties dropped. It takes pairs as independent. Those of one task share its test rows and those of one seed some of
    their training rows, so a small p speaks for these tasks, and less for others than it seems to.

    Raises: RunError where no pair is left, or where one label has two different runs on the same rows; ConfigError
    for an unknown metric.
    """
    if metric:
        get_metric(metric)
    reader = reader or RowReader()
    names, (first, second) = (_one_label(a), _one_label(b)), (by_rows(a), by_rows(b))
    pairs, left_out = _pair(first, second, metric)
    if not pairs:
        reasons = {
            "of which only one was run": left_out.alone,
            "run on different rows": left_out.other_rows,
            "scored by different metrics": left_out.other_metric,
            f"without a score{f' {metric}' if metric else ''}": left_out.unscored,
        }
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        raise RunError(
            f"{names[0]!r} and {names[1]!r} have no runs on the same rows ({told or 'no runs'})",
            "run both with the same task, shots, seed and development rows",
        )
    of_task: dict[tuple[str, str], list[tuple[Result, Result]]] = defaultdict(list)
    for rows in pairs:
        of_task[rows.cell.task, metric or first[rows].metric].append((first[rows], second[rows]))
    parts = [_compare_task(task, name, runs, reader, level) for (task, name), runs in of_task.items()]
    tasks = tuple(part.told for part in parts)
    groups, noise, notes = _independent(parts)
    shared = _share_a_start([run for runs in of_task.values() for pair in runs for run in pair])
    found = judge(groups, noise, jointly=shared and len(groups) > 1, level=level)
    wins, ties, losses = (sum(getattr(task, kind) for task in tasks) for kind in ("wins", "ties", "losses"))
    return Comparison(
        *names, found.here, found.elsewhere, found.scope, wins, ties, losses, sign_test(wins, losses), tasks, left_out,
        (*notes, *_notes(parts, found.here)),
    )  # fmt: skip


@final
@dataclass(frozen=True)
class _Part:
    """One task's advantages by seed, the noise of its test rows, the rows its seeds had, and what is shown of it."""

    told: TaskComparison
    gains: dict[int, float]
    noise: RowNoise | None
    rows: dict[int, frozenset[str]]

    @property
    def fingerprints(self) -> frozenset[str]:
        return frozenset[str]().union(*self.rows.values())


def _compare_task(
    task: str, metric: str, pairs: Sequence[tuple[Result, Result]], reader: RowReader, level: float
) -> _Part:
    of_a, of_b = ([(pair[side].cell.seed, score_of(pair[side], metric)) for pair in pairs] for side in (0, 1))
    advantages = [(a.cell.seed, _advantage(a, b, metric)) for a, b in pairs]
    gains, limits = over_shots(advantages), get_metric(metric).range
    noise = reader.noise([(a.cell.seed, a, b) for a, b in pairs], metric)
    rows: dict[int, set[str]] = defaultdict(set)
    for a, _ in pairs:
        rows[a.cell.seed].add(a.rows)
    told = TaskComparison(
        task=task,
        metric=metric,
        a=estimate_over_seeds([*over_shots(of_a).values()], level=level, limits=limits),
        b=estimate_over_seeds([*over_shots(of_b).values()], level=level, limits=limits),
        advantage=judge([np.array([*gains.values()])], [noise], level=level).here,
        wins=sum(value > 0 for _, value in advantages),
        ties=sum(value == 0 for _, value in advantages),
        losses=sum(value < 0 for _, value in advantages),
    )
    return _Part(told, gains, noise, {seed: frozenset(found) for seed, found in rows.items()})


def _independent(parts: Sequence[_Part]) -> tuple[list[np.ndarray], list[RowNoise | None], list[str]]:
    """Advantages by seed and noise of test rows (T), with a note; tasks that have rows of a run in common are one."""
    merged: list[list[_Part]] = []
    for part in parts:
        alike = [group for group in merged if any(part.fingerprints & one.fingerprints for one in group)]
        merged = [group for group in merged if group not in alike]
        merged.append([*(one for group in alike for one in group), part])
    groups, noise, notes = [], [], []
    for group in merged:
        gains = over_shots((seed, gain) for part in group for seed, gain in part.gains.items())
        known = [part.noise for part in group if part.noise]
        groups.append(np.array([*gains.values()]))
        noise.append(max(known, key=lambda one: (not one.paired, one.error)) if len(known) == len(group) else None)
        if len(group) > 1:
            names = ", ".join(part.told.task for part in group)
            notes.append(f"the same rows under several names count as one task: {names}")
    return groups, noise, notes


def _notes(parts: Sequence[_Part], here: Estimate) -> list[str]:
    """What lessens the evidence for these tasks."""
    notes = []
    same = [part.told.task for part in parts if len(part.rows) > len({*part.rows.values()})]
    if same:
        notes.append(
            f"seeds had the same training rows on {', '.join(same)}: nothing here says how other training rows would do"
        )
    if here.low is not None:
        unpaired = [part.told.task for part in parts if part.noise and not part.noise.paired]
        if unpaired:
            notes.append(
                f"no predictions of both for the test rows of {', '.join(unpaired)}: their noise is bounded by the "
                "intervals of both scores, which makes the interval wide"
            )
    return notes


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p of so many wins and losses, were both equally likely; 1 where there are none."""
    from scipy.stats import binomtest  # half a second to import

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _share_a_start(runs: Iterable[Result]) -> bool:
    """Whether runs on two tasks or more have started from the same run."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        if start := run.start:
            tasks[start].add(run.cell.task)
    return any(len(names) > 1 for names in tasks.values())


def by_rows(results: Iterable[Result]) -> dict[Rows, Result]:
    """The runs of one label by what they were run on. Raises: RunError for two different ones on the same rows."""
    found: dict[Rows, Result] = {}
    for result in results:
        other = found.setdefault(Rows(result.cell, result.rows), result)
        if other.run.key != result.run.key:
            raise RunError(
                f"{result.label!r} has two different runs on the same rows: {other.run.folder} and {result.run.folder}",
                "they differ in what their label does not tell; give the folder of one of them",
            )
    return found


def _one_label(results: Sequence[Result]) -> str:
    labels = labels_of(results)
    if len(labels) != 1:
        raise ConfigError(f"expected the results of one label, found {', '.join(labels) or 'none'}")
    return labels[0]


def _pair(
    first: Mapping[Rows, Result], second: Mapping[Rows, Result], metric: str | None
) -> tuple[list[Rows], LeftOut]:
    """The rows on which both have a score of the same metric, and the count of what could not be paired."""
    same = sorted(first.keys() & second.keys())
    of_first, of_second, paired = ({rows.cell for rows in each} for each in (first, second, same))
    pairs, other_metric, unscored = [], 0, 0
    for rows in same:
        runs = first[rows], second[rows]
        if metric is None and runs[0].metric != runs[1].metric:
            other_metric += 1
        elif any(run.estimate(metric) is None for run in runs):
            unscored += 1
        else:
            pairs.append(rows)
    return pairs, LeftOut(len(of_first ^ of_second), len((of_first & of_second) - paired), other_metric, unscored)


def over_shots(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """By seed, from (seed, score), the mean of each seed, whose runs share training rows: no evidence of their own."""
    seeds: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        seeds[seed].append(value)
    return {seed: float(np.mean(seeds[seed])) for seed in sorted(seeds)}


def score_of(result: Result, metric: str | None) -> float:
    """The mean of a score that the run is known to have."""
    estimate = result.estimate(metric)
    assert estimate is not None
    return estimate.mean


def direction(metric: str | Metric) -> int:
    """1 where more is better, else -1."""
    return 1 if get_metric(metric).higher_is_better else -1


def _advantage(a: Result, b: Result, metric: str) -> float:
    return direction(metric) * (score_of(a, metric) - score_of(b, metric))


@final
@dataclass(frozen=True)
class Summary:
    """The score of a label with so many shots: on one task over seeds, or (`task` None) the mean over tasks."""

    label: str
    task: str | None
    shots: int
    metric: str
    estimate: Estimate


def summary(results: Sequence[Result], *, metric: str | None = None, level: float = 0.95) -> list[Summary]:
    """Every label's score by task and shots, with Student's t interval over seeds.

    Where several tasks were run with as many shots by every label that has any, their mean follows: over those tasks
    alone, so that it is the same tasks for every label, with Student's t interval over tasks. That interval holds the
    difficulty of the tasks, so two methods whose intervals overlap may well differ: `compare` says. There is no mean
    over metrics of which more is better in some and less in others. Runs without the score are left out. Raises:
    RunError where a label has two different runs on the same rows, ConfigError for an unknown metric.
    """
    if metric:
        get_metric(metric)
    values: dict[tuple[str, int, str, str], list[tuple[int, float]]] = defaultdict(list)
    for label in labels_of(results):
        for rows, result in by_rows(with_label(results, label)).items():
            if result.estimate(metric) is not None:
                key = (label, rows.cell.shots, rows.cell.task, metric or result.metric)
                values[key].append((rows.cell.seed, score_of(result, metric)))
    summaries = [
        Summary(
            label, task, shots, name,
            estimate_over_seeds([*over_shots(scores).values()], level=level, limits=get_metric(name).range),
        )
        for (label, shots, task, name), scores in sorted(values.items())
    ]  # fmt: skip
    return summaries + _means_over_tasks(summaries, level)


def _means_over_tasks(summaries: Sequence[Summary], level: float) -> list[Summary]:
    means = []
    for shots in sorted({one.shots for one in summaries}):
        of_label: dict[str, dict[tuple[str | None, str], float]] = defaultdict(dict)
        for one in summaries:
            if one.shots == shots:
                of_label[one.label][one.task, one.metric] = one.estimate.mean
        shared = sorted(set.intersection(*map(set, of_label.values())), key=str)
        metrics = {name for _, name in shared}
        if len(shared) < 2 or len({direction(name) for name in metrics}) > 1:
            continue
        lowest, highest = zip(*(get_metric(name).range for name in metrics), strict=True)
        limits = (min(lowest), max(highest))
        for label, scores in of_label.items():
            estimate = estimate_over_seeds([scores[task] for task in shared], level=level, limits=limits)
            means.append(Summary(label, None, shots, " and ".join(sorted(metrics)), estimate))
    return means
