"""Metrics of label sets: several labels per text, or none.

Targets and predicted sets are zeros and ones (N, C); probabilities (N, C) are those of every label by itself, so that
rows need not sum to 1. Every metric says what it makes of empty sets and of labels that do not occur: with few test
rows and rare labels both are common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from handful.data.task import TaskKind
from handful.errors import ConfigError, DataError, nearest
from handful.evaluation.metric import Metric
from handful.evaluation.metrics import (
    CALIBRATION_BINS,
    SMALLEST_PROBABILITY,
    bin_by_confidence,
    check_numbers,
    check_same_length,
)

Sums = Callable[[np.ndarray, np.ndarray], np.ndarray]

MOST_COMPARED = 4_000_000
"""Pairs of labels that are compared at once, to rank them."""

_CUT = "predicted sets are 0 and 1: cut probabilities with apply_thresholds(probabilities, 0.5)"
_SIGMOID = "pass the probability of every label by itself (N, C), such as apply_sigmoid_temperature(logits, 1.0)"


def score_label_sets(metric: str | Metric, predictions: ArrayLike, targets: ArrayLike) -> float:
    """The metric of N rows.

    `predictions` (N, C) are what `metric.needs` says: "sets" of zeros and ones, or "set_probabilities"; `targets`
    (N, C) are zeros and ones. Raises: ConfigError for an unknown metric, DataError for wrong shape, length or content.
    """
    metric = get_label_set_metric(metric)
    predictions, targets = check_label_sets(metric, predictions, targets)
    if metric.combine is not None:
        sums = cast(np.ndarray, metric.function(predictions, targets)).sum(0, keepdims=True)
        return float(metric.combine(sums)[0])
    return float(metric.function(predictions, targets))


def get_label_set_metric(name: str | Metric) -> Metric:
    """The metric of that name (a `Metric` is passed through). Raises: ConfigError naming the nearest one."""
    if isinstance(name, Metric):
        return name
    if name not in LABEL_SET_METRICS:
        raise ConfigError(f"expected a metric of label sets, found {name!r}", nearest(name, LABEL_SET_METRICS))
    return LABEL_SET_METRICS[name]


def check_label_sets(metric: Metric, predictions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, as what the metric needs, and targets. Raises: DataError naming the first wrong row."""
    if metric.needs == "sets":
        predictions = check_indicators("predictions", predictions, _CUT)
    else:
        predictions = check_numbers("predictions", predictions, "NC", _SIGMOID)
        wrong = ((predictions < 0) | (predictions > 1)).any(axis=1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"expected probabilities from 0 to 1, found {predictions[row].tolist()} in row {row}", _SIGMOID
            )
    targets = check_indicators("targets", targets)
    check_same_length(predictions, targets)
    if predictions.shape[1] != targets.shape[1]:
        raise DataError(f"expected as many labels in both, found {predictions.shape[1]} and {targets.shape[1]}")
    return predictions, targets


def check_indicators(what: str, values: ArrayLike, hint: str | None = None) -> np.ndarray:
    """The values (N, C) as zeros and ones, int64. Raises: DataError naming the first wrong row."""
    array = np.asarray(values)
    array = check_numbers(what, array.astype(np.int64) if array.dtype == bool else array, "NC", hint)
    wrong = ((array != 0) & (array != 1)).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"expected {what} of 0 and 1, found {array[row].tolist()} in row {row}", hint)
    return array.astype(np.int64)


# --------------------------------------------------------------------------------------------------- of predicted sets


def _counts(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, 2C): of each row and label whether it is rightly predicted, and how often it is in prediction and target."""
    return np.hstack([predictions * targets, predictions + targets]).astype(np.float64)


def _micro_counts(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, 2): of each row the number of labels rightly predicted, and of labels in prediction and target together."""
    return np.stack([(predictions * targets).sum(1), (predictions + targets).sum(1)], axis=1).astype(np.float64)


def label_f1(predictions: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """F1 (C,) of every label; NaN for a label that is in no prediction and no target."""
    counts = _counts(check_indicators("predictions", predictions, _CUT), check_indicators("targets", targets)).sum(0)
    right, total = np.split(counts, 2)
    return np.divide(2 * right, total, out=np.full_like(right, np.nan), where=total > 0)


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """Micro-averaged F1: 2 TP / (2 TP + FP + FN) over all pairs of row and label.

    It weighs every label of every row alike, so frequent labels decide it, and it does not see rows without a label
    that are rightly left without one. Where no label is in any prediction or target it is 0, as scikit-learn's.

    `sums` (..., 2) of `_micro_counts`. Returns (...), from 0 to 1.
    """
    return _ratio(2 * sums[..., 0], sums[..., 1])


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """The unweighted mean over labels of each one's F1.

    The mean runs over the labels that are in some prediction or target (as `metrics.macro_f1`, and scikit-learn's with
    zero_division=nan); where none is, it is 0. A label of one test row counts as much as one of half the rows, so one
    row can move the score by many points.

    `sums` (..., 2C) of `_counts`. Returns (...), from 0 to 1.
    """
    right, total = np.split(sums, 2, axis=-1)
    return _ratio(_ratio(2 * right, total).sum(-1), (total > 0).sum(-1).astype(np.float64))


def samples_f1(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """F1 (N,) of each row's set. The metric is their mean.

    Every row weighs alike, however many labels it has. A row without a label is 1 if none is predicted, as that is the
    right answer, and else 0 (scikit-learn's with zero_division=1; its default is 0 for both).
    """
    right, total = _micro_counts(predictions, targets).T
    return np.where(total > 0, _ratio(2 * right, total), 1.0)


def subset_accuracy(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether each row's whole set is right (N,), 1 or 0. The metric is their mean.

    The strictest: one label too many counts as much as all of them wrong, so it falls with the number of labels. An
    empty set that is predicted empty is right.
    """
    return (predictions == targets).all(axis=1).astype(np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


# ---------------------------------------------------------------------------------------------------- of probabilities


def ranking_precision(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Label-ranking average precision (N,) of each row (Tsoumakas, Katakis and Vlahavas 2010). LRAP is their mean.

    For each of a row's labels, the share of its labels among those that score at least as much; then the mean over its
    labels. 1 where all of its labels are ranked first. Ties count against the model: a label shares the worst rank of
    those that score the same. Rows without a label, or with all, have nothing to rank and are 1 (as scikit-learn's), so
    data with many empty sets scores high. It needs no thresholds and does not see how sure the model was.
    """
    size = max(1, MOST_COMPARED // targets.shape[1] ** 2)
    return np.concatenate(
        [
            _ranking_precision(probabilities[start : start + size], targets[start : start + size])
            for start in range(0, len(targets), size)
        ]
    )


def _ranking_precision(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    above = probabilities[:, None, :] >= probabilities[:, :, None]  # (N, C, C): any label's at least that of one
    precision = (above & (targets[:, None, :] == 1)).sum(2) / above.sum(2)
    sizes = targets.sum(1)
    ranked = (sizes > 0) & (sizes < targets.shape[1])
    return np.where(ranked, (precision * targets).sum(1) / np.maximum(sizes, 1), 1.0)


def set_surprises(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Binary cross-entropy (N,) of each row: -ln p of what is true, as a mean over labels, in nats. NLL is their mean.

    ln 2 is a model that knows nothing, but where labels are rare always answering their shares is much better, so
    compare it with the baseline. The probability of what is true counts as
    at least 2.2e-16, as in `metrics.negative_log_likelihood`.
    """
    return _surprises(probabilities, targets).mean(1)


def label_nll(probabilities: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """The mean binary cross-entropy (C,) of every label."""
    return _surprises(*check_label_sets(LABEL_SET_METRICS["nll"], probabilities, targets)).mean(0)


def _surprises(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    of_target = np.where(targets == 1, probabilities, 1 - probabilities)
    return -np.log(np.clip(of_target, SMALLEST_PROBABILITY, 1.0))


def label_ece(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Expected calibration error (C,) of every label: rows in bins of its probability, the gap to its share there."""
    return _label_ece(*check_label_sets(LABEL_SET_METRICS["ece"], probabilities, targets), bins)


def _label_ece(probabilities: np.ndarray, targets: np.ndarray, bins: int) -> np.ndarray:
    place, gaps = calibration_cells(probabilities, bins), (targets - probabilities).ravel()
    cells = np.bincount(place.ravel(), gaps, minlength=bins * targets.shape[1])
    return np.abs(cells.reshape(targets.shape[1], bins)).sum(1) / len(targets)


def calibration_cells(probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """The cell (N, C) that each probability falls into, label by label: label * bins + bin, of equal width."""
    _, place = bin_by_confidence(probabilities.ravel(), bins, adaptive=False)
    return place.reshape(probabilities.shape) + bins * np.arange(probabilities.shape[1])


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The mean over labels of each one's expected calibration error, in 15 bins of equal width.

    By how much a label's probability and its share among such rows disagree. Labels that are nearly always improbable
    and absent score close to 0, so many rare labels make it small. Biased upwards on few rows, as `metrics.ece`.
    """
    return float(_label_ece(probabilities, targets, CALIBRATION_BINS).mean())


def _mean(rows: Sums) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda predictions, targets: float(rows(predictions, targets).mean())


_KINDS = cast("frozenset[TaskKind]", frozenset({"multilabel"}))
_LARGEST_NLL = -float(np.log(SMALLEST_PROBABILITY))


def _of_rows(name: str, summary: str, needs: Any, rows: Sums, most: float = 1.0, higher: bool = True) -> Metric:
    return Metric(name, summary, _KINDS, needs, higher, (0, most), _mean(rows), rows=rows)


_ALL = (
    Metric("micro_f1", "F1 over pairs of row and label", _KINDS, "sets", True, (0, 1), _micro_counts, combine=micro_f1),
    Metric(
        "macro_f1", "mean over the labels of each one's F1", _KINDS, "sets", True, (0, 1), _counts, combine=macro_f1
    ),
    _of_rows("samples_f1", "mean over the rows of each one's F1", "sets", samples_f1),
    _of_rows("subset_accuracy", "share of rows whose whole set is right", "sets", subset_accuracy),
    _of_rows("lrap", "label-ranking average precision", "set_probabilities", ranking_precision),
    _of_rows("nll", "mean binary cross-entropy", "set_probabilities", set_surprises, _LARGEST_NLL, higher=False),
    Metric("ece", "mean calibration error", _KINDS, "set_probabilities", False, (0, 1), expected_calibration_error),
)


def _estimate(metric: Metric, predictions: Any, targets: Any, **options: Any) -> Any:
    from handful.evaluation.label_set_intervals import estimate_label_sets  # which imports this module

    return estimate_label_sets(metric, predictions, targets, **options)


def _constant(train: np.ndarray, metric: Metric) -> np.ndarray:
    from handful.evaluation.label_set_baseline import constant_answer  # which imports this module

    return constant_answer(train, metric)


LABEL_SET_METRICS: dict[str, Metric] = {
    metric.name: replace(metric, check=check_label_sets, estimate=_estimate, constant=_constant) for metric in _ALL
}
