"""The loss of labelled rows over a triangle of an adapter's simplex."""

from __future__ import annotations

from typing import Any

import torch

from handful.data.batching import EncodedRows
from handful.data.task import TaskKind
from handful.errors import ConfigError
from handful.evaluation.metrics import get_metric, score
from handful.evaluation.predict import predict_rows
from handful.methods.base import AbstractAdapter
from handful.objectives import objective_of

CORNERS = 3


def triangle_grid(steps: int) -> torch.Tensor:
    """All points (N, 3) with weights i/steps, j/steps, k/steps that add up to 1; N = (steps + 1)(steps + 2)/2."""
    counts = [(i, j, steps - i - j) for i in range(steps, -1, -1) for j in range(steps - i, -1, -1)]
    return torch.tensor(counts, dtype=torch.float32) / steps


def measure_landscape(adapter: AbstractAdapter, rows: EncodedRows, kind: TaskKind, steps: int) -> dict[str, Any]:
    """The loss over the triangle of the first three vertices, prefix and head at the same point of it.

    `points` holds the weights of the three vertices and the loss there (nll, for regression mse), as predicted: with
    the temperature or the target's units. `midpoint` is the loss of the deterministic predictor, which for three
    vertices of a simplex lies in the middle of the triangle. Raises: ConfigError for less than three vertices.
    """
    count = adapter.num_vertices
    if count < CORNERS:
        raise ConfigError(f"a landscape needs at least {CORNERS} vertices, found {count}")
    metric = get_metric(objective_of(kind).loss_metric, kind)
    assert rows.labels is not None
    targets = rows.labels.numpy()

    def loss(predictor: str | torch.Tensor) -> float:
        return score(metric, predict_rows(adapter, rows, kind, predictor=predictor).needed_by(metric), targets)

    points = []
    for weights in triangle_grid(steps):
        others = weights.new_zeros(count - CORNERS)
        points.append([*(round(w, 6) for w in weights.tolist()), loss(torch.cat((weights, others)))])
    return {
        "metric": metric.name, "rows": len(rows), "steps": steps, "num_vertices": count,
        "points": points, "midpoint": loss("midpoint"),
    }  # fmt: skip
