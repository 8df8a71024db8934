"""The final score: the only place where test rows are opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from handful.data.batching import EncodedRows, encode
from handful.data.task import Example, Task, TestRows
from handful.errors import DataError
from handful.evaluation.estimate import Estimate, bootstrap_score
from handful.evaluation.predict import Predictions, predict_rows
from handful.methods.base import AbstractAdapter

CLASSIFICATION_METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")
REGRESSION_METRICS = ("spearman", "pearson", "mse", "mae")


@final
@dataclass(frozen=True)
class Scores:
    """Scores of labelled rows, each with its interval over rows; `truncated` counts rows that were cut."""

    estimates: dict[str, Estimate]
    predictions: Predictions
    targets: np.ndarray
    sources: tuple[str, ...]
    truncated: int


def evaluate(
    adapter: AbstractAdapter,
    rows: TestRows | Sequence[Example],
    task: Task,
    *,
    max_length: int,
    predictor: str = "midpoint",
    draws: int = 10,
    generator: torch.Generator,
) -> Scores:
    """The task's metric and the usual others on these rows, with 95 % intervals.

    Raises: DataError where a row has no label.
    """
    examples = rows._examples if isinstance(rows, TestRows) else tuple(rows)
    encoded = encode_for(adapter, examples, task, max_length)
    if encoded.labels is None:
        raise DataError("expected labelled rows to evaluate, found none with a label")
    predictions = predict_rows(adapter, encoded, task.kind, predictor=predictor, draws=draws, generator=generator)
    targets = encoded.labels.numpy()
    sources = tuple(row.source for row in examples)
    estimates = score_predictions(predictions, targets, task, generator)
    return Scores(estimates, predictions, targets, sources, encoded.truncated)


def metric_names(task: Task) -> list[str]:
    """The task's own metric first, then the usual ones for its kind."""
    usual = REGRESSION_METRICS if task.kind == "regression" else CLASSIFICATION_METRICS
    return list(dict.fromkeys((task.metric, *usual)))


def score_predictions(
    predictions: Predictions, targets: np.ndarray, task: Task, generator: torch.Generator
) -> dict[str, Estimate]:
    """Every metric of `metric_names` with its bootstrap interval over rows."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return {
        name: bootstrap_score(name, predictions.needed_by(name), targets, generator=np.random.default_rng(seed))
        for name in metric_names(task)
    }


def encode_for(adapter: AbstractAdapter, rows: Sequence[Example], task: Task, max_length: int) -> EncodedRows:
    """Rows tokenised for an adapter's backbone, cut to the positions it leaves them."""
    return encode(rows, adapter.backbone.tokenizer, longest_row(adapter, max_length), kind=task.kind)


def longest_row(adapter: AbstractAdapter, max_length: int) -> int:
    """Most tokens of a row: `max_length`, or what backbone and adapter leave."""
    return min(max_length, adapter.backbone.max_length - adapter.reserved_positions)
