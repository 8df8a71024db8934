"""Whether one method is better than another: the one rule behind every "better" that handful prints.

Two statements, for two questions. With T tasks, S_t seeds of task t, the mean advantage m_t of its seeds, their
variance s_t² and the standard error r_t that its test rows leave (`row_noise`):

- "better on these tasks" (of one task: "better on this task"): had there been other training rows, other initial
  values and other test rows of these very tasks. The interval is
  mean ± √(t² Σ s_t² / S_t + z² Σ r_t²) / T: Student's t for the seeds, with the degrees of freedom of Welch and
  Satterthwaite over tasks, and the normal z for test rows. Two parts with a quantile each (Banerjee 1960) rather than
  one quantile for their sum: of two seeds whose scores happen to agree, the sum would look as sure as its test rows
  are many, and be wrong in 14 % of cases.
- "better on tasks like these": had the tasks been others, of which these are a fair sample. Student's t over the T
  values m_t, and never narrower than the test rows of these tasks alone allow.

Seeds share the test rows of their task, so what is special about those rows is in every seed, and seeds alone cannot
see it: without r_t there is no statement about these tasks. Where runs on several tasks started from the same run,
its luck is in all of them (`jointly`): then seeds count as if they were fully correlated across tasks, with the
degrees of freedom of the task with the fewest.

Both are said at `level`, and where test rows are paired "on tasks like these" needs "on these tasks" as well, so that
the chance of any false verdict stays that of one statement. `benchmarks/verdicts.py` counts false verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from typing import Literal, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from handful.evaluation.estimate import Estimate

NOT_TOLD_APART = "not told apart"
ROUNDING = 1e-12
"""Differences no larger than this are none: means of equal scores differ by as much."""

Scope = Literal["this task", "these tasks", "tasks like these"]


@final
@dataclass(frozen=True)
class RowNoise:
    """What a task's test rows leave open of the mean advantage over its seeds.

    `error` is its standard error had the test rows been others; `paired` says that it comes from the predictions of
    both methods for the same rows, and is no upper bound.
    """

    error: float
    paired: bool = True


@final
@dataclass(frozen=True)
class Verdict:
    """The advantage of one method over another, and for what it speaks.

    `here`: on these tasks (or this one); `elsewhere`: on tasks like these, None for one task. `scope` is the widest for
    which one is better, None where they are not told apart; the sign of the mean says which one.
    """

    here: Estimate
    elsewhere: Estimate | None
    scope: Scope | None


def judge(
    groups: Sequence[np.ndarray],
    noise: Sequence[RowNoise | None],
    *,
    jointly: bool = False,
    level: float = 0.95,
) -> Verdict:
    """The verdict on advantages: `groups` holds one array (seeds) per task, `noise` what its test rows leave open.

    Tasks count alike, however many seeds each has. An interval is missing, and with it the statement, where the data
    cannot tell: for these tasks where one has a single seed or test rows of unknown noise, for tasks like these where
    there is one task, or (`jointly`) one seed.
    """
    means, seeds = np.array([group.mean() for group in groups]), np.array([len(group) for group in groups])
    squares = np.array([square_of_mean(group) for group in groups])
    rows = np.array([np.nan if one is None else one.error for one in noise])
    paired = all(one is not None and one.paired for one in noise)
    mean, tasks = float(means.mean()), len(groups)
    widths = half_widths(means, squares, seeds, rows, paired=paired, jointly=jointly, level=level)
    why = "one seed" if seeds.max() == 1 else "one seed of a task" if seeds.min() == 1 else "noise of test rows unknown"
    how = f"Student's t over {'seeds that tasks share' if jointly else 'seeds'}, and {'' if paired else 'a bound for '}"
    here = _estimate(mean, float(widths.here), int(seeds.sum()), level, f"{how}test rows", why)
    if tasks == 1:
        return Verdict(here, None, "this task" if told_apart(mean, widths.here) else None)
    how = f"Student's t over tasks{', and seeds that they share' if jointly else ''}"
    elsewhere = _estimate(mean, float(widths.elsewhere), tasks, level, how, "one seed that tasks share")
    these, like = statements(mean, widths, paired=paired)
    return Verdict(here, elsewhere, "tasks like these" if like else "these tasks" if these else None)


class Widths(NamedTuple):
    """Half the interval of the mean advantage (...), NaN where there is none: on these tasks, and on others."""

    here: np.ndarray
    elsewhere: np.ndarray


def half_widths(
    means: np.ndarray,
    squares: np.ndarray,
    seeds: np.ndarray,
    rows: np.ndarray,
    *,
    paired: bool = True,
    jointly: bool = False,
    level: float = 0.95,
) -> Widths:
    """Half the width of both intervals of any number of studies at once.

    `means` (..., T) of each task's seeds, `squares` (..., T) those means' squared standard errors over seeds, `seeds`
    (T,) their numbers, `rows` (..., T) the standard errors that test rows leave, NaN where not known.
    """
    tasks, fewest = means.shape[-1], int(seeds.min())
    normal = float(ndtri((1 + level) / 2))
    of_rows = normal * np.sqrt((rows**2).sum(-1)) / tasks
    # Seeds that tasks share: standard errors add up over tasks, not their squares.
    shared = _student(max(1, fewest - 1), level) * np.sqrt(squares).sum(-1) / tasks
    if fewest == 1:
        here = np.full(of_rows.shape, np.nan)
    elif jointly:
        here = np.hypot(shared, of_rows)
    else:
        # The square of two seeds says little of their variance, so one noisy task among quiet ones looks like several:
        # with a weight of 1 it is told apart too often, with 18 such tasks in up to 10 % of studies.
        weights = np.where(seeds == 2, 1.5, 1 / np.maximum(1, seeds - 1))
        total, spread = squares.sum(-1), (weights * squares**2).sum(-1)
        freedom = np.divide(total**2, spread, out=np.ones_like(total), where=spread > 0)
        here = np.hypot(_student(np.maximum(freedom, fewest - 1), level) * np.sqrt(total) / tasks, of_rows)
    if tasks == 1 or (jointly and fewest == 1):
        return Widths(here, np.full(of_rows.shape, np.nan))
    variance = np.where(np.ptp(means, axis=-1) <= ROUNDING, 0.0, means.var(-1, ddof=1))
    elsewhere = _student(tasks - 1, level) * np.sqrt(variance / tasks)
    if paired:
        elsewhere = np.fmax(elsewhere, of_rows)
    # Equal means are evidence where they are as many as the sign test needs, six at 95 %; fewer may agree by chance.
    alike = normal * np.abs(means.mean(-1)) * sqrt(tasks + 2) / tasks
    elsewhere = np.where(elsewhere == 0, alike, elsewhere)
    return Widths(here, np.hypot(elsewhere, shared) if jointly else elsewhere)


def statements(mean: ArrayLike, widths: Widths, *, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Whether one is better (...): on these tasks, and on tasks like these. One `told_apart` each, the second only
    with the first where there is one of paired test rows.
    """
    these, like = told_apart(mean, widths.here), told_apart(mean, widths.elsewhere)
    return these, like & (these | np.isnan(widths.here) | (not paired))


def told_apart(mean: ArrayLike, half: ArrayLike) -> np.ndarray:
    """Whether 0 lies outside of mean ± half, by more than rounding; not where half is NaN."""
    return np.abs(mean) > np.asarray(half) + ROUNDING


def square_of_mean(values: np.ndarray) -> float:
    """The squared standard error of the mean of values (n,); 0 for one value, and where they differ by rounding."""
    return 0.0 if np.ptp(values) <= ROUNDING else float(values.var(ddof=1)) / len(values)


def _student(freedom: float | np.ndarray, level: float) -> np.ndarray:
    return stdtrit(freedom, (1 + level) / 2)


def _estimate(mean: float, half: float, n: int, level: float, method: str, missing: str) -> Estimate:
    if isnan(half):
        return Estimate(mean, None, None, n, level, missing)
    return Estimate(mean, mean - half, mean + half, n, level, method)
