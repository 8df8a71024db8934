"""Predictions of an adapter: at the midpoint, over random draws of its simplex, or at a vertex."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch

from handful.backbone.trunk import TrunkCache
from handful.data.batching import EncodedRows, plan_batches
from handful.data.task import TaskKind
from handful.errors import ConfigError, DataError, shown
from handful.evaluation.metrics import Metric, get_metric
from handful.methods.base import AbstractAdapter, Draw
from handful.objectives import objective_of
from handful.objectives.base import Objective

PREDICTORS = ("midpoint", "ensemble", "draw", "vertex:N")


@final
@dataclass(frozen=True)
class Predictions:
    """Scores (S, N, C) of N rows under S points of the simplex: logits, or for regression values in target units.

    A row whose text has no tokens has NaN scores: there is nothing to predict it from. Its probabilities and its value
    are NaN, its label is -1. Everything derived from the scores is computed once for all rows, on first use.
    """

    scores: np.ndarray
    kind: TaskKind
    threshold: float = 0.5
    """Of several labels per text, those of a larger probability are predicted."""

    @property
    def objective(self) -> Objective:
        """What the kind of the task answers."""
        return objective_of(self.kind)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, C): the mean over points of softmax(logits)."""
        points = self.point_probabilities
        return points[0] if len(points) == 1 else points.mean(0)

    @property
    def point_probabilities(self) -> np.ndarray:
        """(S, N, C), one set per point. Not kept: it is S times as large as what is derived from it."""
        return self.objective.probabilities(self.scores)

    @cached_property
    def values(self) -> np.ndarray:
        """(N,): the predicted number, for kinds of task without classes."""
        return self.objective.answers(self.scores, lambda: self.probabilities, self.threshold)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,): the most probable class index; -1 where a text has no tokens."""
        found = self.objective.answers(self.scores, lambda: self.probabilities, self.threshold)
        found[self.blank] = -1  # argmax of NaN would be class 0
        return found

    @cached_property
    def blank(self) -> np.ndarray:
        """(N,) of bool: the rows without tokens."""
        return np.isnan(self.scores[0, :, 0])

    @cached_property
    def disagreement(self) -> np.ndarray:
        """(N,): how far the points of the simplex disagree about a row; 0 for a single point. Ours."""
        return self.objective.disagreement(self.scores)

    def needed_by(self, metric: str | Metric) -> np.ndarray:
        """What a metric scores: classes (N,), probabilities (N, C) or values (N,)."""
        return self.objective.needed(self, get_metric(metric, self.kind).needs)


def check_predictor(predictor: str, num_vertices: int) -> None:
    """Raises: ConfigError for an unknown predictor or a vertex that there is not."""
    vertex = re.fullmatch(r"vertex:([0-9]{1,6})", predictor)
    if vertex and int(vertex[1]) < num_vertices:
        return
    if vertex:
        raise ConfigError(f"predictor {predictor!r}: expected a vertex from 0 to {num_vertices - 1}")
    if predictor not in PREDICTORS[:3]:
        raise ConfigError(f"unknown predictor {shown(predictor)}", "known: " + ", ".join(PREDICTORS))


@torch.no_grad()
def predict_rows(
    adapter: AbstractAdapter,
    rows: EncodedRows,
    kind: TaskKind,
    *,
    predictor: str | torch.Tensor = "midpoint",
    draws: int = 10,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    trunk: TrunkCache | None = None,
) -> Predictions:
    """Predict rows with a predictor (docs/methods/prefix-subspace.md), or at the point of these weights (M,).

    "ensemble" takes `draws` random points for each row, "draw" one; both need a generator. An adapter without a
    simplex has one point, whatever is asked. Threads may predict at the same time, with this adapter or with others on
    its backbone: they take turns, batch by batch. Raises: ConfigError for an unknown predictor, or where another
    adapter has changed the backbone; DataError without rows.
    """
    if not len(rows):
        raise DataError("expected at least one row to predict, found none")
    place = _place(predictor, adapter)
    points = num_points(adapter, predictor, draws)
    if place is None and generator is None:
        raise ConfigError(f"predictor {predictor!r} draws random points and needs a generator")
    was_training = adapter.training
    device = next(adapter.parameters()).device
    scores: torch.Tensor | None = None
    with trunk or nullcontext():
        for indices in plan_batches(rows.lengths, batch_size):
            batch = rows.batch(indices).to(device)
            if trunk:
                trunk.choose(batch)
            with adapter.backbone.lent_to(adapter):  # what is drawn is in the backbone until the forward is done
                adapter.eval()
                for point in range(points):
                    draw = place or adapter.draw(batch, generator)  # pyright: ignore[reportArgumentType]
                    result = adapter.target_scores(batch, draw).float().cpu()
                    if scores is None:
                        scores = torch.empty(points, len(rows), result.shape[1])
                    scores[point, indices] = result
                adapter.train(was_training)
    assert scores is not None
    return Predictions(scores.double().numpy(), kind, adapter.label_threshold)


def num_points(adapter: AbstractAdapter, predictor: str | torch.Tensor, draws: int) -> int:
    """S: how many points of the simplex a predictor looks at."""
    return draws if isinstance(predictor, str) and predictor == "ensemble" and adapter.num_vertices > 1 else 1


def _place(predictor: str | torch.Tensor, adapter: AbstractAdapter) -> Draw | None:
    """The place of the simplex that a predictor looks at; None where it draws."""
    if isinstance(predictor, torch.Tensor):
        return adapter.at(weights=predictor)
    check_predictor(predictor, adapter.num_vertices)
    if predictor.startswith("vertex:"):
        return adapter.at(vertex=int(predictor[7:]))
    return adapter.at() if predictor == "midpoint" or adapter.num_vertices == 1 else None
