"""Many methods compared by their average ranks over tasks (Demšar 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import factorial, inf, isclose, prod, sqrt
from typing import final

import numpy as np

from handful.errors import RunError
from handful.evaluation.estimate import Estimate, estimate_over_seeds
from handful.evaluation.metrics import get_metric
from handful.studies.compare import Rows, by_rows, direction, labels_of, quoted, score_of, with_label
from handful.studies.results import Result

ENOUGH_TASKS = 10
"""From so many tasks on the approximations behind tests of ranks are good (Demšar 2006, section 3.2.2)."""


@final
@dataclass(frozen=True)
class Standing:
    """One label's place: its average rank over tasks (1 is best), and its cells won, tied and lost against each other
    label.
    """

    label: str
    rank: Estimate
    wins: int
    ties: int
    losses: int


@final
@dataclass(frozen=True)
class Ranking:
    """Labels by average rank, best first.

    `friedman` is the statistic χ², `p` that of the correction by Iman and Davenport. Average ranks that differ by less
    than `critical_difference` are no evidence that labels rank differently on tasks like these; `groups` are the
    largest sets of neighbours of which that holds. The three are None or empty with one task. `cells` were shared by
    all labels, `left_out` were not. Which of two labels is better is not said here: `compare` says.
    """

    standings: tuple[Standing, ...]
    tasks: tuple[str, ...]
    cells: int
    left_out: int
    friedman: float | None
    p: float | None
    critical_difference: float | None
    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def rank(results: Sequence[Result], *, metric: str | None = None, level: float = 0.95) -> Ranking:
    """All labels by their average rank on the cells that all of them share (Demšar 2006).

    Within each cell the best has rank 1, ties share their mean rank. A task's ranks are those of the average ranks
    over its cells, so that tasks, not runs, are what the tests count. With n tasks, k labels, rank r_tj of label j on
    task t and average rank R_j:

    - Friedman's χ² = (k - 1) Σ_j n² (R_j - (k + 1) / 2)² / (Σ_tj r_tj² - n k (k + 1)² / 4), right for ties too
    - Iman and Davenport (1980): F = (n - 1) χ² / (n (k - 1) - χ²) with k - 1 and (k - 1)(n - 1) degrees of freedom.
      Where all tasks agree F is infinite; p is then the exact chance of that, (1 / orders)^(n - 1)
    - Nemenyi's critical difference = q √(k (k + 1) / 6n), q the studentised range's upper quantile / √2

    Raises: RunError for fewer than two labels, no cell that all share, or two different runs of one label there;
    ConfigError for an unknown metric.
    """
    if metric:
        get_metric(metric)
    labels = labels_of(results)
    if len(labels) < 2:
        raise RunError(f"expected runs of at least two labels, found {quoted(labels)}", "run another method")
    tables = [by_rows(with_label(results, label)) for label in labels]
    shared = _shared(labels, tables, metric)
    scores = np.array(
        [[direction(metric or t[rows].metric) * score_of(t[rows], metric) for t in tables] for rows in shared]
    )  # (cells, labels), more is better
    tasks = sorted({rows.cell.task for rows in shared})
    ranks = _task_ranks(scores, [rows.cell.task for rows in shared])
    above = (scores[:, :, None] > scores[:, None, :]).sum((0, 2))
    below = (scores[:, :, None] < scores[:, None, :]).sum((0, 2))
    ties = len(shared) * (len(labels) - 1) - above - below
    averages = [estimate_over_seeds(column, level=level, limits=(1, len(labels))) for column in ranks.T]
    if len(tasks) == 1:
        averages = [replace(average, method="one task") for average in averages]
    standings = sorted(map(Standing, labels, averages, above.tolist(), ties.tolist(), below.tolist()), key=_place)
    friedman, p = friedman_test(ranks) if len(tasks) > 1 else (None, None)
    difference = critical_difference(len(labels), len(tasks), level) if len(tasks) > 1 else None
    return Ranking(
        standings=tuple(standings),
        tasks=tuple(tasks),
        cells=len(shared),
        left_out=len({rows for table in tables for rows in table}) - len(shared),
        friedman=friedman,
        p=p,
        critical_difference=difference,
        groups=_groups(standings, difference) if difference else (),
        notes=_limits(len(labels), len(tasks), difference),
    )


def friedman_test(ranks: np.ndarray) -> tuple[float, float]:
    """Friedman's χ² of ranks (tasks, labels), and p by Iman and Davenport; the formulas are in `rank`."""
    from scipy.stats import f

    n, k = ranks.shape
    between = ((ranks.sum(0) - n * (k + 1) / 2) ** 2).sum()
    within = (ranks**2).sum() - n * k * (k + 1) ** 2 / 4
    if within == 0:  # every task has all labels tied
        return 0.0, 1.0
    statistic = float((k - 1) * between / within)
    rest = n * (k - 1) - statistic
    if isclose(statistic, n * (k - 1)):
        repeats = np.unique(ranks[0], return_counts=True)[1].tolist()
        return statistic, float((prod(map(factorial, repeats)) / factorial(k)) ** (n - 1))
    return statistic, float(f.sf((n - 1) * statistic / rest, k - 1, (k - 1) * (n - 1)))


def critical_difference(labels: int, tasks: int, level: float = 0.95) -> float:
    """Nemenyi's: by how much average ranks over so many tasks differ by chance, any two of so many labels."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(level, labels, inf)) / sqrt(2)
    return quantile * sqrt(labels * (labels + 1) / (6 * tasks))


def _shared(labels: Sequence[str], tables: Sequence[Mapping[Rows, Result]], metric: str | None) -> list[Rows]:
    """The rows on which every label has a score, all by one metric. Raises: RunError where there are none."""
    everywhere = set(tables[0]).intersection(*tables[1:])
    shared = [
        rows
        for rows in sorted(everywhere)
        if all(table[rows].estimate(metric) is not None for table in tables)
        and (metric or len({table[rows].metric for table in tables}) == 1)
    ]
    if not shared:
        counts = ", ".join(f"{label!r} {len(table)}" for label, table in zip(labels, tables, strict=True))
        raise RunError(
            f"no rows were run and scored by all {len(labels)} labels (cells: {counts})",
            "name the labels that were run on the same tasks, shots and seeds",
        )
    return shared


def _task_ranks(scores: np.ndarray, task_of: Sequence[str]) -> np.ndarray:
    """Ranks (tasks, labels) from scores (cells, labels), tasks in alphabetical order."""
    from scipy.stats import rankdata

    of_cells, names = rankdata(-scores, axis=1), np.array(task_of)
    return np.array([rankdata(of_cells[names == task].mean(0)) for task in sorted(set(task_of))])


def _place(standing: Standing) -> tuple[float, str]:
    return standing.rank.mean, standing.label


def _groups(standings: Sequence[Standing], difference: float) -> tuple[tuple[str, ...], ...]:
    """The largest sets of two or more neighbours whose average ranks lie less than the difference apart."""
    groups, end = [], 0
    for start, first in enumerate(standings):
        reach = sum(standing.rank.mean - first.rank.mean < difference for standing in standings[start:]) + start
        if reach - start > 1 and reach > end:
            groups.append(tuple(standing.label for standing in standings[start:reach]))
        end = max(end, reach)
    return tuple(groups)


def _limits(labels: int, tasks: int, difference: float | None) -> tuple[str, ...]:
    """What so few tasks cannot show."""
    if difference is None:
        return ("one task: ranks are over tasks, so nothing is tested, and other tasks may rank otherwise",)
    if difference >= labels - 1:
        return (
            f"too few tasks: on {tasks}, even the ranks of the best everywhere and the worst everywhere are too close "
            f"(critical difference {difference:.2f}, largest possible {labels - 1})",
        )
    if tasks < ENOUGH_TASKS:
        return (f"{tasks} tasks: the tests of ranks are approximations that are good from {ENOUGH_TASKS} tasks on",)
    return ()
