"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from handful.data.task import TaskKind

Needs = Literal["labels", "probabilities", "values", "texts", "sets", "set_probabilities"]


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    `kinds` are the kinds of task it is for; `num_labels` the only number of classes it is defined for, or None.
    `range` holds its smallest and largest value. `needs` says what predictions it scores, and with that what
    `function` takes:

    - "labels": confusion counts (..., C, C) from `confusion_counts`; returns (...)
    - "probabilities": probabilities (N, C) and target classes (N,); returns a number
    - "values": predicted and target values (..., N); returns (...)
    - "texts": written texts (N,) and their records (N,); returns statistics (N, F) that add up over rows, of whose sums
      (R, F) `combine` makes scores (R,)
    - "sets" and "set_probabilities": zeros and ones, or probabilities of each label (N, C), and targets (N, C); with
      `combine` as for texts, else returns a number (`label_set_metrics`)

    `metrics.score` does the conversion and all checks. `rows` gives the value of each row (N,) where the metric is
    their mean and takes what `function` does. `signature` tells the exact variant of a metric of texts, and `ready`
    raises ConfigError where something that it needs is not installed.

    A metric of needs of its own brings `check`, which gives predictions and targets as arrays, `estimate`, which gives
    the score with its interval as `estimate.bootstrap_score` does, and `constant`, the constant answer that is best on
    training targets.
    """

    name: str
    summary: str
    kinds: frozenset[TaskKind]
    needs: Needs
    higher_is_better: bool
    range: tuple[float, float]
    function: Callable[..., np.ndarray | float]
    num_labels: int | None = None
    combine: Callable[[np.ndarray], np.ndarray] | None = None
    signature: Callable[[], str] | None = None
    ready: Callable[[], None] | None = None
    rows: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    check: Callable[[Metric, Any, Any], tuple[np.ndarray, np.ndarray]] | None = None
    estimate: Callable[..., Any] | None = None
    constant: Callable[[np.ndarray, Metric], np.ndarray] | None = None
