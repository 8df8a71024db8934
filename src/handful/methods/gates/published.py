"""FineGates as published: a row and a column gate for every matrix, independent of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import nn

from handful.backbone.blocks import find_blocks, matrix
from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.methods.base import Draw
from handful.methods.gates.adapter import AbstractGatedAdapter, matrix_sides
from handful.methods.gates.distribution import deviation, kurtosis_weights, location, open_probability
from handful.methods.simplex import Simplex, mix

if TYPE_CHECKING:
    from handful.methods.gates.fine_gates import FineGates


_MORE = (
    "train for longer, with a greater training.learning_rate (the default preset has 3e-2), or with a greater "
    "method.pressure"
)


@final
class MatrixGatesAdapter(AbstractGatedAdapter):
    """y = r ⊙ (W (c ⊙ x) + b), r and c drawn once per forward in training and shared by its examples.

    Penalty: Σₐ κₐ |mean p − (1 − s)| over the A = 2·matrices sides, with κₐ = λ / A, or κ·nₐ where the pressure κ on a
    single gate is given: it means the same for every size of model. With kurtosis, "mean p" is weighted by
    `kurtosis_weights`, from the inputs of the forward before (of this process's rows).
    """

    def __init__(self, backbone: Backbone, task: Task, method: FineGates, *, generator: torch.Generator):
        blocks = find_blocks(backbone.model)
        sides = matrix_sides({name: backbone.model.get_submodule(name) for name in blocks.matrices})
        super().__init__(
            backbone,
            task,
            sides,
            generator=generator,
            head_init=method.head_init,
            train_biases=method.train_biases,
            lora_rank=method.lora_rank,
            match_features=method.match_features,
        )
        self.method, self.simplex = method, Simplex(method.num_vertices)
        start = torch.randn(method.num_vertices, self.num_gates, generator=generator)
        self.logits = nn.Parameter(method.init_mean + method.init_std * start)
        self.head.requires_grad_(method.train_head)
        sizes = torch.tensor([side.stop - side.start for side in sides])
        self.register_buffer("_sizes", sizes.float(), persistent=False)
        self.register_buffer("_axes", torch.arange(len(sides)).repeat_interleave(sizes), persistent=False)
        count = len(sides)
        coefficients = self._sizes * method.pressure
        if method.penalty_weight is not None:
            coefficients = torch.full((count,), method.penalty_weight / count)
        self.register_buffer("_coefficients", coefficients, persistent=False)
        if method.kurtosis:
            self.gating.mean_inputs = {}

    _sizes: torch.Tensor
    _axes: torch.Tensor
    _coefficients: torch.Tensor

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(self.num_gates, generator=generator) * self.method.noise_std

    def locations(self, draw: Draw | None = None) -> torch.Tensor:
        """The locations u (n,) at the point drawn, by default the midpoint."""
        return location(mix((draw or self.at()).shared["point"], self.logits), self.method.squash)

    def values(self, draw: Draw | None = None) -> torch.Tensor:
        u, noise = self.locations(draw), draw.shared.get("noise") if draw else None
        return (u if noise is None else u + noise).clamp(0, 1)

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        matching = self.matching_penalty(draw)
        # a penalty from the first step moves nearly all gates into the soft zone before the task says which matter
        if float(self.progress) < self.method.penalty_start:
            return matching
        u = self.locations(draw)
        p, weights = open_probability(u, self.method.penalty_std), self._weights(u.detach() > 0)
        off = deviation(p, self._axes, self._sizes, 1 - self.method.target_sparsity, weights)
        penalty = (self._coefficients * off).sum()
        return penalty if matching is None else penalty + matching

    def _weights(self, is_open: torch.Tensor) -> torch.Tensor | None:
        """Of each gate (n,) in the mean of its side, or None where all weigh the same."""
        means = self.gating.mean_inputs
        if not means:
            return None
        parts = []
        for rows, columns in zip(self.sides[::2], self.sides[1::2], strict=True):
            weight = matrix(self.gating.modules[rows.matrix])
            parts += kurtosis_weights(weight, means[rows.matrix], is_open[rows.slice], is_open[columns.slice])
        return torch.cat(parts)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Shares of gates closed and soft, mean p, and shares of the parameters that are closed and can be left out.

        "removed" is Σ (out·in − |open rows|·|open columns|) of the matrices' weights, counted for each matrix
        alone; "removable" is what a stock checkpoint can do without: the rest of it stays as zeros.
        """
        u = self.locations()
        z = u.clamp(0, 1)
        kept = total = 0
        for rows, columns in zip(self.sides[::2], self.sides[1::2], strict=True):
            out, width = matrix(self.gating.modules[rows.matrix]).shape
            kept += int((z[rows.slice] > 0).sum()) * int((z[columns.slice] > 0).sum())
            total += out * width
        return {
            "closed": float((z <= 0).float().mean()),
            "soft": float(((z > 0) & (z < 1)).float().mean()),
            "open_probability": float(open_probability(u, self.method.penalty_std).mean()),
            "removed": 1 - kept / total,
            "removable": self.removable("padded"),
        }

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        """Warnings about the trained gates: few are closed, or fewer than the target."""
        if not self.steps:
            return []
        found, target = self.diagnostics(), self.method.target_sparsity
        off, near = found["open_probability"] - (1 - target), min(0.05, target / 4)
        if found["closed"] >= target / 3 and off < near:
            return []
        said = f"mean open probability {found['open_probability']:.2f}, target {1 - target:.2f}"
        counted = f"{found['closed']:.1%} of the gates are closed and {found['soft']:.0%} are soft"
        if found["closed"] >= target / 3:
            return [f"the penalty's target is not met ({said}): {counted}; {_MORE}"]
        if abs(off) < near:
            return [
                f"lock-step collapse: the penalty's target is met ({said}), but only {counted}: next to "
                "nothing can be removed; try a smaller method.pressure (or penalty_weight)"
            ]
        return [f"the gates have not closed: the penalty's target is not met ({said}) and only {counted}; {_MORE}"]
