"""From probabilities of labels to sets of them: at what probability a label is predicted.

0.5 is right for the expected number of wrong labels, and wrong for F1: on calibrated probabilities the threshold that
maximises F1 is half of that maximum (Lipton, Elkan and Narayanaswamy 2014), and models of few rows rarely give a rare
label more than 0.5. Thresholds are chosen on rows that the model was not trained on, never on test rows.
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

PRIOR_ROWS = 20
"""Rows with a label at which its threshold is halfway between the shared one and its own."""


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
    """Thresholds for a large F1, from labelled rows.

    `probabilities` (N, C) are out of fold, each from a model that was not trained on its row, and `targets` (N, C) are
    zeros and ones. `how` is

    - "half": 0.5, which is best for subset accuracy;
    - "shared": the one threshold of the largest micro-averaged F1. Within 0.01 to 0.02 of the best that is possible
      from 100 rows on, and 0.05 to 0.2 better than 0.5 (docs/experiments.md, "Thresholds of labels");
    - "per-label": for macro-averaged F1. That of each label's own largest F1, drawn towards the shared one: the mean of
      both, by weights of its number of rows and of `PRIOR_ROWS`. Without the shared one, thresholds of rare labels are
      noise, often so low that a label is predicted everywhere.

    Of thresholds that score the same the one closest to 0.5 is taken, halfway between probabilities.
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
    shared, best, plain = best_threshold(scores.ravel(), truth.ravel())
    values = np.full(num_labels, shared)
    reasons = [f"shared threshold {shared:.3f}: micro-F1 {best:.3f} on {rows:,} rows, {plain:.3f} with 0.5"]
    if how == "per-label":
        for label, count in enumerate(truth.sum(0).tolist()):
            if count == 0:
                reasons.append(f"{labels[label]!r}: the shared threshold, as no row has the label")
                continue
            own, best, plain = best_threshold(scores[:, label], truth[:, label])
            values[label] = (count * own + PRIOR_ROWS * shared) / (count + PRIOR_ROWS)
            reasons.append(
                f"{labels[label]!r}: threshold {values[label]:.3f}; on {count} rows with it {own:.3f} is best, F1 "
                f"{best:.3f} ({plain:.3f} with 0.5), drawn towards the shared one"
            )
    return Thresholds(tuple(map(float, values)), tuple(reasons))


def best_threshold(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """The threshold of the largest F1 of zeros and ones (M,), that F1, and F1 at 0.5. At least one target is 1."""
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
