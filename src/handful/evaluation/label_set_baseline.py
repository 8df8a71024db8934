"""The score of always giving the same answer to texts with several labels, chosen by the training rows alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from handful.evaluation.label_set_metrics import check_indicators, get_label_set_metric, score_label_sets
from handful.evaluation.metric import Metric

MOST_SETS = 200
"""Each is scored on all training rows: with all of them the time would grow with the square of the rows."""


def label_set_baseline(train: ArrayLike, test: ArrayLike, metrics: Sequence[str]) -> dict[str, float]:
    """By metric, the score on `test` targets (N, C) of the constant answer that is best for it on `train` targets.

    Different metrics have different best answers: always predicting every label is hard to beat in macro-averaged F1.
    For metrics of probabilities the answer is the share of each label among the training rows, with one row added that
    has it and one that has not.
    """
    known, rows = check_indicators("training targets", train), check_indicators("test targets", test)
    answers = {name: constant_answer(known, name) for name in metrics}
    return {name: score_label_sets(name, np.tile(answer, (len(rows), 1)), rows) for name, answer in answers.items()}


def constant_answer(train: ArrayLike, metric: str | Metric) -> np.ndarray:
    """The constant answer (C,) to a metric by training `targets` (N, C): zeros and ones, or probabilities.

    Sets are the best, on the training rows, of the `MOST_SETS` that are most frequent there and of the k most frequent
    labels for every k from 0 to C; of equally good ones the smallest, and of these the first in the order of labels.
    """
    metric, known = get_label_set_metric(metric), check_indicators("training targets", train)
    if metric.needs != "sets":
        return (known.sum(0) + 1) / (len(known) + 2)
    frequent = np.argsort(-known.sum(0), kind="stable")
    prefixes = np.zeros((known.shape[1] + 1, known.shape[1]), dtype=np.int64)
    for size in range(1, known.shape[1] + 1):
        prefixes[size, frequent[:size]] = 1
    sets, counts = np.unique(known, axis=0, return_counts=True)
    usual = sets[np.argsort(-counts, kind="stable")[:MOST_SETS]]
    candidates = np.unique(np.vstack([usual, prefixes]), axis=0)[::-1]
    candidates = candidates[np.argsort(candidates.sum(1), kind="stable")]
    sign = 1 if metric.higher_is_better else -1
    scores = [sign * score_label_sets(metric, np.broadcast_to(one, known.shape), known) for one in candidates]
    return candidates[int(np.argmax(np.round(scores, 12)))]


def describe_answer(answer: np.ndarray, labels: Sequence[str]) -> str:
    """A constant answer in words, such as "always predicting 'joy' and 'anger'"."""
    names = [repr(name) for name, flag in zip(labels, answer, strict=True) if flag]
    if answer.dtype.kind == "f":
        return "always giving each label its share of the training rows"
    if len(names) == len(labels):
        return "always predicting every label"
    shown = " and ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more labels"
    return f"always predicting {shown}" if names else "always predicting none of the labels"
