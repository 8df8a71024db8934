"""Intervals of the metrics of label sets, for other test rows like these; their coverage is in `docs/experiments.md`.

As in `intervals`: percentiles of resampled rows know nothing of errors that no row shows, so each interval also spans
a Bayesian bootstrap (Rubin 1981) with a fraction of a row added whose target is that of another row. Rows are drawn
whole, as the labels of a row depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from handful.evaluation import intervals
from handful.evaluation.estimate import Estimate, check_level, wilson
from handful.evaluation.label_set_metrics import (
    calibration_cells,
    check_label_sets,
    get_label_set_metric,
    score_label_sets,
)
from handful.evaluation.metric import Metric

ADDED_ROW = 1.0
"""Rows added to the counts of F1."""

ADDED_RIGHT = 0.5
"""Rows added to every label that occurs, in which it is rightly predicted, for the upper end of F1: a label of one or
two rows that are wrong has an F1 of 0 in every resample."""

MOST_DRAWN, LEAST_RESAMPLES = 4_000_000, 200
"""Numbers that are drawn at once for an interval of the ECE, and resamples at least, where labels are very many."""

_TINY = 1e-9


def estimate_label_sets(
    metric: str | Metric,
    predictions: Any,
    targets: Any,
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """The metric of N rows with an interval for other rows of the same kind, as `estimate.bootstrap_score`.

    `predictions` and `targets` (N, C) as for `score_label_sets`, which also gives the mean. Shares of 95 % intervals
    that cover the metric of endless rows, in simulation of 30, 60 and 300 rows with 6 and 28 labels
    (`docs/experiments.md`, "Coverage of the intervals of label sets"):

    - subset_accuracy: Wilson's, as accuracy.
    - micro_f1, samples_f1, lrap: bootstraps over rows; 92 to 99 %, and up to 100 % where a model makes almost no error.
    - macro_f1: the same, but wide: 94 to 100 %. On few rows most rare labels are in no row, or in one or two. Labels
      that are in no row count as 0 at the lower end, and those of few rows as partly right at the upper one.
    - nll: 91 to 99 %, and up to 100 % where errors are rare but dear.
    - ece: for the ECE of the same bins on endless rows; 94 to 100 %, wide, and down to 0 for models that may be
      calibrated.

    One row alone has no interval, except for subset_accuracy, and neither have rows that all score alike.
    """
    metric = get_label_set_metric(metric)
    predictions, targets = check_label_sets(metric, predictions, targets)
    rows, mean = len(targets), score_label_sets(metric, predictions, targets)
    if metric.name == "subset_accuracy":
        return wilson(round(mean * rows), rows, level=level)
    check_level(level)
    if rows == 1:
        return Estimate(mean, None, None, 1, level, "one row")
    if metric.combine is not None:
        low, high = _of_counts(metric, predictions, targets, level, generator, resamples)
        method = "bootstrap, with one row added"
    elif metric.rows is not None:
        low, high = _of_rows(metric, predictions, targets, level, generator, resamples)
        method = "bootstrap, with half a row added"
    else:
        low, high = _of_calibration_error(predictions, targets, level, generator, resamples)
        method = "tested against calibrated models; above, bootstrap"
    if high - low < _TINY:
        return Estimate(mean, None, None, rows, level, "every row scores alike: resampling cannot tell")
    least, most = metric.range
    return Estimate(mean, max(min(low, mean), least), min(max(high, mean), most), rows, level, method)


def _weights(rows: int, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights (size, N) of resampled rows, and of a Bayesian bootstrap; a row weighs 1 on average."""
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=size), generator.standard_exponential((size, rows))


def _of_counts(
    metric: Metric,
    predictions: np.ndarray,
    targets: np.ndarray,
    level: float,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[float, float]:
    """Micro- and macro-averaged F1, from sums over rows of (right, in prediction and in target)."""
    combine = cast(Callable[[np.ndarray], np.ndarray], metric.combine)
    statistics = cast(np.ndarray, metric.function(predictions, targets))
    (rows, width), edge = statistics.shape, intervals.tail(len(targets), level)
    counted = np.arange(width) >= width // 2  # the second half counts labels in predictions and targets
    occurs = np.tile(statistics[:, counted].sum(0) > 0, 2)
    resampled, with_absent, with_right = [], [], []
    for size in intervals.portions(resamples, rows + width):
        whole, bayesian = _weights(rows, size, generator)
        one, other = generator.integers(rows, size=(2, size))
        wrong = cast(np.ndarray, metric.function(predictions[one], targets[other]))
        sums = bayesian @ statistics + generator.standard_gamma(ADDED_ROW, size=(size, 1)) * wrong
        right = np.tile(generator.standard_gamma(ADDED_RIGHT, size=(size, width // 2)), 2) * occurs
        resampled.append(combine(whole @ statistics))
        with_absent.append(combine(sums + _TINY * counted))  # where in no row, a label counts as 0, not as nothing
        with_right.append(combine(sums + right * (1 + counted)))  # once as right, twice as predicted and true
    draws = (resampled, with_absent, with_right)
    lows, highs = zip(*(np.quantile(np.concatenate(draw), [edge, 1 - edge]) for draw in draws), strict=True)
    return float(min(lows[:2])), float(max(highs))


def _of_rows(
    metric: Metric,
    predictions: np.ndarray,
    targets: np.ndarray,
    level: float,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[float, float]:
    """Samples-F1, LRAP and NLL: means over rows."""
    of_rows = cast(Callable[[np.ndarray, np.ndarray], np.ndarray], metric.rows)
    rows, values, edge = len(targets), of_rows(predictions, targets), intervals.tail(len(targets), level)
    resampled, bayesian = [], []
    for size in intervals.portions(resamples, rows + predictions.shape[1]):
        whole, weights = _weights(rows, size, generator)
        one, other = generator.integers(rows, size=(2, size))
        more = generator.standard_gamma(intervals.ADDED, size=size)
        resampled.append(whole @ values / rows)
        wrong = of_rows(predictions[one], targets[other])
        bayesian.append((weights @ values + more * wrong) / (weights.sum(1) + more))
    ends = [np.quantile(np.concatenate(draws), [edge, 1 - edge]) for draws in (resampled, bayesian)]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _of_calibration_error(
    probabilities: np.ndarray, targets: np.ndarray, level: float, generator: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """The ECE that endless rows would show in the same bins, for which that of few rows is too high.

    As `intervals.of_calibration_error`, with two noises of which the larger counts: outcomes drawn in each bin of each
    label, which is right for calibrated models, and the gaps of whole rows with random signs, which keeps how labels
    of a row depend on each other, and is right where bins have one or two rows, whose shares of 0 and 1 draw no noise.
    """
    (rows, labels), edge = targets.shape, intervals.tail(len(targets), level)
    _, place, sizes = np.unique(calibration_cells(probabilities), return_inverse=True, return_counts=True)
    right, sure = np.bincount(place.ravel(), targets.ravel()), np.bincount(place.ravel(), probabilities.ravel()) / sizes
    found = float(np.abs(right - sizes * sure).sum()) / rows / labels

    gaps = np.zeros((rows, len(sizes)))  # of every row in the cells that it is in
    gaps[np.arange(rows)[:, None], place.reshape(rows, labels)] = targets - probabilities
    count = min(resamples, max(MOST_DRAWN // max(len(sizes), rows), LEAST_RESAMPLES))
    weights = generator.standard_exponential((count, rows))
    high = float(np.quantile(np.abs(weights @ gaps).sum(1) / weights.sum(1), 1 - edge)) / labels
    signed = generator.choice([-1.0, 1.0], size=(count, rows)) @ gaps
    seed = int(generator.integers(2**62))

    def usual(distance: float) -> float:
        """What hardly any set of rows exceeds where the model is so far off, 1 being what these rows say."""
        accuracy = np.clip(sure + distance * (right / sizes - sure), 0, 1)
        again = np.random.default_rng(seed)  # the same draws at every distance
        hits = again.binomial(sizes, accuracy, size=signed.shape)
        off = [np.abs(noise).sum(1) for noise in (hits - sizes * sure, signed + distance * (right - sizes * sure))]
        return max(float(np.quantile(one, 1 - edge)) for one in off) / rows / labels

    near, far = 0.0, 1.0
    if usual(0.0) < found:
        for _ in range(intervals.BISECTIONS):
            middle = (near + far) / 2
            near, far = (middle, far) if usual(middle) < found else (near, middle)
    return near * found, high
