"""Score the development rows: at the midpoint, or over random draws of the simplex with common random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import final

import numpy as np
import torch

from handful.backbone.trunk import TrunkCache
from handful.data.batching import EncodedRows
from handful.data.task import TaskKind
from handful.evaluation.metric import Metric
from handful.evaluation.metrics import get_metric, score
from handful.evaluation.predict import Predictions, predict_rows
from handful.evaluation.text.generate import token_nll
from handful.methods.base import AbstractAdapter
from handful.objectives import objective_of
from handful.training.config import TrainingConfig, Validation


@final
@dataclass(frozen=True)
class DevScore:
    """`score` of the dev rows and, over draws, its standard deviation."""

    score: float
    deviation: float = 0.0


def combine(
    predictions: Predictions,
    targets: np.ndarray,
    metric: str | Metric,
    validation: Validation,
    groups: Sequence[np.ndarray] | None = None,
) -> DevScore:
    """The dev score from scores (S, N, C); of `groups` of rows (positions) the mean over them.

    pooled: the metric once over the S·N predictions; averaged: the mean over S of the metric of one pass.
    The two agree for accuracy and MSE but not for F1, Matthews or correlations. With one point both are the metric.
    """
    metric = get_metric(metric, predictions.kind)
    singles = [
        Predictions(points[None], predictions.kind, predictions.threshold).needed_by(metric)
        for points in predictions.scores
    ]
    groups = groups or [np.arange(len(targets))]
    each = [np.mean([score(metric, single[rows], targets[rows]) for rows in groups]) for single in singles]
    combined = float(np.mean(each))
    if validation == "pooled" and len(singles) > 1:
        pooled = [np.concatenate([single[rows] for single in singles]) for rows in groups]
        repeated = [np.concatenate([targets[rows]] * len(singles)) for rows in groups]
        combined = float(np.mean([score(metric, *both) for both in zip(pooled, repeated, strict=True)]))
    return DevScore(combined, float(np.std(each)))


def rows_by_task(rows: EncodedRows) -> list[np.ndarray]:
    """Positions of each task's rows; all together where they are of one task."""
    if rows.tasks is None:
        return [np.arange(len(rows))]
    names = np.array(rows.tasks)
    return [np.flatnonzero(names == name) for name in dict.fromkeys(rows.tasks)]


@final
class Selector:
    """Scores dev rows at every evaluation and says which evaluation is the best so far.

    The draws come from a generator reset to the same state at every evaluation (common random numbers), unless
    `fresh_draws` is set.
    """

    def __init__(self, config: TrainingConfig, kind: TaskKind, metric: str, draws_seed: int):
        self.config = config
        self.kind: TaskKind = kind
        self.objective = objective_of(kind)
        by_loss = config.selection_metric == "nll" or self.objective.generates  # generating takes longer than training
        self.metric = self.objective.loss_metric if by_loss else metric
        self._seed, self._evaluations = draws_seed, 0
        self.best: float | None = None
        self.since_best = 0

    def evaluate(self, adapter: AbstractAdapter, dev: EncodedRows, trunk: TrunkCache | None = None) -> DevScore:
        """The dev score of the adapter as it is now; for generation the NLL of a reference's token at the midpoint.

        Of a task of tasks it is the mean over tasks, each counting alike.
        """
        groups = rows_by_task(dev)
        if self.objective.generates:
            return DevScore(float(np.mean([token_nll(adapter, dev, only=rows.tolist()) for rows in groups])))
        stochastic = self.config.validation != "deterministic"
        self._evaluations += 1
        seed = self._seed + (self._evaluations if self.config.fresh_draws else 0)
        predictions = predict_rows(
            adapter,
            dev,
            self.kind,
            predictor="ensemble" if stochastic else "midpoint",
            draws=self.config.validation_draws,
            generator=torch.Generator().manual_seed(seed) if stochastic else None,
            trunk=trunk,
        )
        assert dev.labels is not None
        return combine(predictions, dev.labels.numpy(), self.metric, self.config.validation, groups)

    def improves(self, value: float) -> bool:
        """Whether this evaluation is now the chosen one, by the tie rule; counts evaluations without a gain."""
        sign = 1 if get_metric(self.metric).higher_is_better else -1
        better = not isnan(value) and (self.best is None or sign * value > sign * self.best)
        chosen = better or (value == self.best and self.config.tie == "latest")
        self.since_best = 0 if better else self.since_best + 1
        if chosen:
            self.best = value
        return chosen

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return bool(self.config.patience) and self.since_best >= self.config.patience

    def state(self) -> dict[str, float | int | None]:
        """What a checkpoint has to hold."""
        return {"best": self.best, "since_best": self.since_best, "evaluations": self._evaluations}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.best, self.since_best, self._evaluations = state["best"], state["since_best"], state["evaluations"]
