"""Gates on what can be removed from a model: feed-forward units, and key/value heads with their query heads.

A gate multiplies the unit's activation, which is its column of the block's output matrix; a closed gate also makes the
unit's rows of the input matrices useless, so that all of them can be removed. A budget of parameters says how many
gates are closed. Ours (docs/methods/prune.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from handful.backbone.blocks import Attention
from handful.backbone.load import Backbone
from handful.data.batching import Batch, EncodedRows
from handful.data.task import Task
from handful.methods.base import Draw
from handful.methods.gates.adapter import AbstractGatedAdapter, GatedSide
from handful.methods.gates.budget import Budget, plan_budget
from handful.methods.gates.importance import Importance, activations, gradients, magnitudes
from handful.methods.simplex import Simplex, mix

if TYPE_CHECKING:
    from handful.methods.gates.prune import Prune


def group_sides(budget: Budget) -> list[GatedSide]:
    """A gate for each group: on the columns of the matrix out of its block."""
    sides: list[GatedSide] = []
    start = 0
    for block, size in zip(budget.gated, budget.sizes, strict=True):
        repeat = block.columns_per_group if isinstance(block, Attention) else 1
        sides.append(GatedSide(block.output, "columns", start, start + size, repeat))
        start += size
    return sides


@final
@dataclass(frozen=True)
class Closing:
    """How gates close while they are learned: see `GroupGatesAdapter`."""

    slope: float
    noise_std: float
    dense_share: float
    close_share: float
    num_vertices: int

    def share(self, progress: float) -> float:
        """The share of the budget that is closed after this share of training."""
        ramp = (progress - self.dense_share) / (self.close_share - self.dense_share)
        return 1 - (1 - min(max(ramp, 0.0), 1.0)) ** 3


@final
class GroupGatesAdapter(AbstractGatedAdapter):
    """z = clip((m − τ)·slope + ε, 0, 1) for each group; τ is a score of its block, so that the budget is closed.

    Scores m start at the rank of the group's importance in its block, from 0 to 1. The share closed rises from none
    after `dense_share` of training, as 1 − (1 − t)³, to the whole budget at `close_share`; from there on the closed
    ones stay closed, there is no noise, and the scales of the others are trained on. Without `learning`, the least
    important are closed at once.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        method: Prune,
        *,
        generator: torch.Generator,
        importance: Importance,
        learning: Closing | None,
    ):
        budget = plan_budget(backbone, method.target_sparsity, method.groups, method.multiple)
        super().__init__(
            backbone,
            task,
            group_sides(budget),
            generator=generator,
            head_init=method.head_init,
            train_biases=method.train_biases,
            lora_rank=method.lora_rank,
            match_features=method.match_features,
        )
        self.method, self.budget, self.importance, self.learning = method, budget, importance, learning
        self.simplex = Simplex(learning.num_vertices if learning else 1)
        scores = torch.zeros(self.num_vertices, self.num_gates)
        if learning:
            self.scores = nn.Parameter(scores)
        else:
            self.register_buffer("scores", scores)
        self.register_buffer("threshold", torch.full((self.num_gates,), -math.inf))
        self.register_buffer("closed", torch.zeros(self.num_gates, dtype=torch.bool))
        self.head.requires_grad_(method.train_head)

    scores: torch.Tensor
    threshold: torch.Tensor
    closed: torch.Tensor

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        super().warm_start(rows, generator)
        importance = self._importance(rows, generator)
        ranks = torch.cat([_ranks(importance[side.slice]) for side in self.sides])
        with torch.no_grad():
            spread = torch.randn(self.scores.shape, generator=generator).to(ranks) * SPREAD * (self.num_vertices > 1)
            self.scores.copy_(ranks + spread)
        self._close()

    def _importance(self, rows: EncodedRows, generator: torch.Generator) -> torch.Tensor:
        """The importance (n,) of each group."""
        kind, groups = self.importance, self.budget.gated
        device = self.backbone.device
        if kind == "random":
            return torch.rand(self.num_gates, generator=generator).to(device)
        if kind == "magnitude":
            return torch.cat(magnitudes(self.blocks, groups))
        with self.gating.open():
            if kind == "wanda":
                return torch.cat(activations(self.blocks, groups, rows, lambda b: self.backbone.features(b.inputs)))
        return gradients(self.num_gates, rows, self._loss_under, device)

    def _loss_under(self, batch: Batch, gates: torch.Tensor) -> torch.Tensor:
        """The task's loss of a batch under these gates (n,)."""
        self.gating.gates = self.gates(gates)
        scores = self.head(self.backbone.features(batch.inputs))
        assert batch.labels is not None
        return self.objective.loss(scores, self.standardise(batch.labels))

    @property
    def hardened(self) -> bool:
        """Whether gates are at the target sparsity: the closed ones stay closed."""
        return not self.learning or float(self.progress) >= self.learning.close_share

    @property
    def settled(self) -> bool:  # type: ignore[override]
        return self.hardened

    def after_step(self, step: int) -> None:
        before = self.hardened
        super().after_step(step)
        if not before:
            self._close()

    @torch.no_grad()
    def _close(self) -> None:
        """Set each block's threshold so that the budget of this moment is closed."""
        # the midpoint predicts, so its scores are ranked; vertices share one set of closed gates
        middle = mix(self.simplex.midpoint, self.scores)
        share = self.learning.share(float(self.progress)) if self.learning else 1.0
        for side, count in zip(self.sides, self.budget.closing, strict=True):
            scores, order = middle[side.slice].sort(stable=True)
            now = round(share * count)
            # chosen anew at every step until `close_share`: a gate that was closed too early can open again
            self.closed[side.slice] = False
            self.closed[side.start + order[:now]] = True
            self.threshold[side.slice] = scores[now - 1] if now else -math.inf

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor | None:
        if not self.learning or self.hardened:
            return None
        return torch.randn(self.num_gates, generator=generator) * self.learning.noise_std

    def values(self, draw: Draw | None = None) -> torch.Tensor:
        if not self.learning:
            return (~self.closed).to(self.scores)
        drawn = (draw or self.at()).shared
        u = (mix(drawn["point"], self.scores) - self.threshold) * self.learning.slope
        if "noise" not in drawn:
            return u.clamp(LEAST_OPEN, 1).masked_fill(self.closed, 0)
        return (u + drawn["noise"]).clamp(0, 1)

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        return self.matching_penalty(draw)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Shares of gates closed and soft, and the share of the gateable parameters that goes with the closed ones."""
        z = self.values()
        counts = [int((z[side.slice] <= 0).sum()) for side in self.sides]
        return {
            "closed": float((z <= 0).float().mean()),
            "soft": float(((z > 0) & (z < 1)).float().mean()),
            "removed": self.budget.removed(counts),
            "removable": self.removable("padded"),
        }


LEAST_OPEN = 0.01
"""The least a gate can be that is not closed, so that training on does not close more than the budget says."""

SPREAD = 0.05
"""Standard deviation between the vertices' scores at the start, in units of the whole range of ranks."""


def _ranks(importance: torch.Tensor) -> torch.Tensor:
    """The rank of each number, from 0 for the least to 1 for the greatest."""
    order = importance.argsort(stable=True)
    ranks = torch.empty_like(importance, dtype=torch.float32)
    ranks[order] = torch.linspace(0, 1, len(importance), device=importance.device)
    return ranks
