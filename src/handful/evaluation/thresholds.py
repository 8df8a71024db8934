"""From probabilities of labels to sets of them: at what probability a label is predicted.

0.5 is right for the expected number of wrong labels, and wrong for F1: on calibrated probabilities the threshold that
maximises F1 is half of that maximum (Lipton, Elkan and Narayanaswamy 2014), and models of few rows rarely give a rare
label more than 0.5. Thresholds are chosen on out-of-fold probabilities of labelled rows, never on test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
from numpy.typing import ArrayLike

from handful.errors import ConfigError, nearest
from handful.evaluation.label_set_metrics import LABEL_SET_METRICS, check_label_sets

How = Literal["half", "shared", "per-label"]

LEAST_POSITIVES = 10
"""Rows with a label from which on it can have a threshold of its own; others take the shared one."""


@final
@dataclass(frozen=True, slots=True)
class Thresholds:
    """One threshold per label, above which it is predicted, and a sentence on where they come from."""

    values: tuple[float, ...]
    reasons: tuple[str, ...]


def apply_thresholds(probabilities: ArrayLike, thresholds: float | Sequence[float]) -> np.ndarray:
    """Predicted sets as zeros and ones (N, C): the labels whose probability is above their threshold.

    `thresholds` is one for all labels or one per label. Raises: ConfigError where one is not between 0 and 1.
    """
    array = np.asarray(probabilities, dtype=np.float64)
    return (array > check_thresholds(thresholds, array.shape[1])).astype(np.int64)


def check_thresholds(thresholds: float | Sequence[float], num_labels: int) -> np.ndarray:
    """The thresholds (C,). Raises: ConfigError for another number of them, and for one that is not between 0 and 1."""
    values = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if values.shape not in ((1,), (num_labels,)):
        raise ConfigError(f"expected one threshold, or one for each of {num_labels} labels, found {len(values)}")
    wrong = ~((values > 0) & (values < 1))
    if wrong.any():
        raise ConfigError(
            f"expected thresholds between 0 and 1, found {float(values[wrong][0])}",
            "0.5 predicts a label that is more likely than not",
        )
    return np.broadcast_to(values, (num_labels,))


def choose_thresholds(
    probabilities: ArrayLike, targets: ArrayLike, labels: Sequence[str], how: How = "shared"
) -> Thresholds:
    """Thresholds that maximise F1 on these rows.

    `probabilities` (N, C) of labelled rows are out of fold, each from a model that was not trained on its row, and
    `targets` (N, C) are zeros and ones. `how` is "half" (0.5), "shared" (one threshold, of the largest micro-averaged
    F1) or "per-label" (that of each label's largest F1, for labels of at least `LEAST_POSITIVES` rows; others take the
    shared one). Of thresholds that score the same the one closest to 0.5 is taken, halfway between probabilities.

    Raises: ConfigError for an unknown `how`, DataError for wrong arrays.
    """
    if how not in get_args(How):
        raise ConfigError(
            f"thresholds: expected one of {', '.join(get_args(How))}, found {how!r}", nearest(how, get_args(How))
        )
    scores, truth = check_label_sets(LABEL_SET_METRICS["nll"], probabilities, targets)
    num_labels, rows = truth.shape[1], len(truth)
    if how == "half":
        return Thresholds((0.5,) * num_labels, ("threshold 0.5 for every label, as asked for",))
    if not truth.any():
        return Thresholds((0.5,) * num_labels, (f"threshold 0.5: none of the {rows:,} rows has a label",))
    shared, best, plain = _best(scores.ravel(), truth.ravel())
    values = np.full(num_labels, shared)
    reasons = [f"shared threshold {shared:.3f}: micro-F1 {best:.3f} on {rows:,} out-of-fold rows, {plain:.3f} with 0.5"]
    if how == "per-label":
        counts = truth.sum(0)
        for label in map(int, np.flatnonzero((counts >= LEAST_POSITIVES) & (counts < rows))):
            values[label], best, plain = _best(scores[:, label], truth[:, label])
            reasons.append(
                f"{labels[label]!r}: threshold {values[label]:.3f}, F1 {best:.3f} on {counts[label]} rows with it, "
                f"{plain:.3f} with 0.5"
            )
        if rest := [name for name, count in zip(labels, counts, strict=True) if not LEAST_POSITIVES <= count < rows]:
            reasons.append(
                f"the shared threshold for {len(rest)} labels in fewer than {LEAST_POSITIVES} rows or in all"
            )
    return Thresholds(tuple(map(float, values)), tuple(reasons))


def _best(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """The threshold (M,) of the largest F1, that F1, and F1 at 0.5."""
    order = np.argsort(-probabilities, kind="stable")
    ranked, right = probabilities[order], np.cumsum(targets[order])
    taken = np.arange(1, len(ranked) + 1)
    scores = 2 * right / (taken + right[-1])  # F1 where the first so many are predicted
    below = np.append(ranked[1:], 0.0)
    possible = ranked > below  # equal probabilities are predicted together
    middles = np.clip((ranked + below) / 2, 1e-6, 1 - 1e-6)
    best = scores[possible].max()
    near = middles[possible & (scores >= best - 1e-12)]
    predicted = int((probabilities > 0.5).sum())
    plain = scores[predicted - 1] if predicted else 0.0
    return float(near[np.abs(near - 0.5).argmin()]), float(best), float(plain)
