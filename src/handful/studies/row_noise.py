"""How far the test rows alone can move a difference between two methods.

All seeds of a task are scored on the same test rows. Where one method happens to be right on more of them than it is
on texts at large, it is so with every seed, and the spread over seeds does not show it. A run folder keeps the
prediction of every test row, so the difference can be taken row by row.

A run's score is a mean over rows, or is made one by the jackknife: θ's pseudo-value of row i is n θ - (n - 1) θ_(-i),
whose mean is θ up to its bias (Efron and Stein 1981). With d_i the difference of both runs' pseudo-values, averaged
over seeds, the squared standard error of the mean difference is (Σ d_i² + 2 max d_i²) / n². It is not centred, since
what is tested is a difference of 0, and it has two rows more than there are, as Agresti and Min (2005) add a pair on
either side: for shares of right answers it then takes six rows on which one method alone is right to tell them apart,
just as the exact test of McNemar does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, final

import numpy as np
from scipy.special import ndtri

from handful.data.task import Example
from handful.errors import DataError, HandfulError
from handful.evaluation.metric import Metric
from handful.evaluation.metrics import get_metric, measure, score
from handful.objectives import objective_of
from handful.runs.store import PREDICTIONS
from handful.studies.results import Result
from handful.studies.verdicts import RowNoise

GROUPS = 200
"""For a score that is no mean over rows: groups of rows that are left out in turn; single rows where they are fewer."""

Effects = dict[tuple[Any, ...], float]
"""What each test row, or group of rows, adds to a score; their sum is the score, up to the jackknife's bias."""


@final
@dataclass
class RowReader:
    """Reads what test rows add to the scores of runs, each run once."""

    _effects: dict[tuple[str, str, str], Effects | None] = field(default_factory=dict)

    def noise(self, pairs: Sequence[tuple[int, Result, Result]], metric: str) -> RowNoise | None:
        """The noise that test rows leave of the mean difference of these pairs (seed, a, b) of one task.

        Pairs count within their seed, and seeds alike. Where a run's predictions are not at hand, or do not give its
        score, a bound from the intervals of both scores: as if what is hard for one were easy for the other. None
        where these are missing too.
        """
        seeds: dict[int, int] = defaultdict(int)
        for seed, *_ in pairs:
            seeds[seed] += 1
        weights = [1 / (len(seeds) * seeds[seed]) for seed, *_ in pairs]
        sums: Effects = defaultdict(float)
        for weight, (_, a, b) in zip(weights, pairs, strict=True):
            of_a, of_b = self.effects(a, metric), self.effects(b, metric)
            if of_a is None or of_b is None or of_a.keys() != of_b.keys():
                return _bound(pairs, weights, metric)
            for row, effect in of_a.items():
                sums[row] += weight * (effect - of_b[row])
        squares = np.fromiter(sums.values(), float) ** 2
        return RowNoise(sqrt(float(squares.sum() + 2 * squares.max())))

    def effects(self, result: Result, metric: str) -> Effects | None:
        """What each test row adds to a run's score; None where its predictions cannot tell."""
        key = (str(result.run.folder), result.run.key, metric)
        if key not in self._effects:
            self._effects[key] = _read(result, metric)
        return self._effects[key]


def _bound(pairs: Sequence[tuple[int, Result, Result]], weights: Sequence[float], metric: str) -> RowNoise | None:
    """From the intervals of scores over test rows, as if all seeds erred alike; None where one is missing or empty."""
    total = 0.0
    for weight, (_, *runs) in zip(weights, pairs, strict=True):
        squares = 0.0
        for run in runs:
            estimate = run.estimate(metric)
            if estimate is None or estimate.low is None or estimate.high is None:
                return None
            squares += ((estimate.high - estimate.low) / (2 * float(ndtri((1 + estimate.level) / 2)))) ** 2
        total += weight * sqrt(squares)
    return RowNoise(total, paired=False) if total else None


def _read(result: Result, metric: str) -> Effects | None:
    """The effects of a run's rows, if they make up the score that it has on record."""
    recorded, found = result.estimate(metric), get_metric(metric, result.record["task"]["kind"])
    if recorded is None:
        return None
    try:
        lines = result.run.lines(PREDICTIONS)
        parts: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for line in lines:
            parts[line.get("task")].append(line)
        effects: Effects = {}
        total = 0.0
        for part, rows in parts.items():
            values, whole = _pseudo_values(found, rows, result.record["task"])
            total += whole / len(parts)
            # Rows are the same where sources and targets are; runs on other rows share nothing.
            rows_id = hash(tuple((str(row["source"]), str(row.get("target"))) for row in rows))
            effects |= {
                (part, rows_id, place): value / (len(values) * len(parts))
                for place, value in enumerate(values.tolist())
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HandfulError):
        return None  # a damaged file: the intervals on record bound the noise
    return effects if effects and abs(total - recorded.mean) <= 1e-3 * max(1.0, abs(recorded.mean)) else None


def _pseudo_values(
    metric: Metric, rows: Sequence[Mapping[str, Any]], task: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
    """The pseudo-values (N,) or, by groups, (G,), and the score."""
    if metric.needs == "texts":
        return _of_texts(metric, rows)
    targets, predictions = objective_of(task["kind"]).columns(rows, metric.needs, task["labels"])
    if means := metric.rows if metric.check else MEANS.get(metric.name):
        values = means(predictions, targets)
        return values, float(values.mean())
    whole, group_of, groups = score(metric, predictions, targets), *_groups(len(rows))
    kept = [score(metric, predictions[group_of != group], targets[group_of != group]) for group in range(groups)]
    return groups * whole - (groups - 1) * np.array(kept), whole


def _of_texts(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, float]:
    """The pseudo-values (G,) of written texts, and their score, from what each text adds to it."""
    assert metric.combine is not None
    if metric.ready is not None:
        metric.ready()
    texts, records = np.empty(len(rows), object), np.empty(len(rows), object)
    texts[:] = [row["written"] for row in rows]
    records[:] = [Example(row["text"], references=tuple(row["references"])) for row in rows]
    measured, (group_of, groups) = measure(metric, texts, records), _groups(len(rows))
    of_groups = np.zeros((groups, measured.shape[1]))
    np.add.at(of_groups, group_of, measured)
    total = measured.sum(0, keepdims=True)
    whole = float(metric.combine(total)[0])
    return groups * whole - (groups - 1) * np.asarray(metric.combine(total - of_groups), float), whole


def _groups(rows: int) -> tuple[np.ndarray, int]:
    """The group (N,) of each row, and their number. Raises: DataError for a single row."""
    if rows < 2:
        raise DataError(f"expected two test rows or more, found {rows}")
    groups = min(GROUPS, rows)
    return np.arange(rows) % groups, groups


def _nll(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], LEAST))


def _brier(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return ((probabilities - np.eye(probabilities.shape[1])[targets]) ** 2).sum(1)


LEAST = 5e-7
"""Probabilities are kept with six decimals."""

MEANS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": lambda predictions, targets: (predictions == targets).astype(float),
    "nll": _nll,
    "brier": _brier,
    "mse": lambda predictions, targets: (predictions - targets) ** 2,
    "mae": lambda predictions, targets: np.abs(predictions - targets),
}
"""Metrics that are the mean over rows of what each row scores alone (N,)."""
