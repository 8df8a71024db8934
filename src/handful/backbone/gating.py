"""Row and column gates on the matrices of a model, in place: y = r ⊙ (W (c ⊙ x) + b).

The bias stands inside the row gate (Svirsky et al., their code), so a closed row gives exactly 0 and the gated matrix
is a smaller one in disguise: W ← diag(r) W diag(c), b ← r ⊙ b (`fold`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from handful.backbone.blocks import matrix


@final
@dataclass
class Gates:
    """Gates of one matrix: `rows` (out,) and `columns` (in,), None where all are open.

    `low_rank` is LoRA's A (k, in) and B (out, k) inside the gates: r ⊙ ((W + B A) (c ⊙ x) + b).
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    low_rank: tuple[torch.Tensor, torch.Tensor] | None = None


@final
class Gating:
    """Puts gates in front of and behind matrices of a model until `remove`; `gates` may be set anew at any time.

    A matrix without an entry in `gates` computes what it always did, through its own `forward`. Where `mean_inputs` is
    not None, it has the mean (in,) over all tokens of what went last into each gated matrix.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.modules = {name: model.get_submodule(name) for name in names}
        self.gates: Mapping[str, Gates] = {}
        self.mean_inputs: dict[str, torch.Tensor] | None = None
        for name, module in self.modules.items():
            module.forward = partial(self._forward, name, module)

    def _forward(self, name: str, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        gates = self.gates.get(name)
        if gates is None:
            return type(module).forward(module, x)
        if self.mean_inputs is not None:
            self.mean_inputs[name] = x.detach().flatten(0, -2).mean(0, dtype=torch.float32)
        bias: Any = module.bias
        if gates.low_rank is None:
            return _GatedLinear.apply(x, matrix(module), bias, gates.rows, gates.columns)  # type: ignore[return-value]
        inner = x if gates.columns is None else x * gates.columns
        down, up = gates.low_rank
        y = F.linear(inner, matrix(module), bias) + F.linear(F.linear(inner, down), up)
        return y if gates.rows is None else (y * gates.rows).to(y.dtype)  # y is half under autocast, the gates are not

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it, every gate is open."""
        gates, self.gates = self.gates, {}
        try:
            yield
        finally:
            self.gates = gates

    def remove(self) -> None:
        """Give the matrices their own `forward` back. Idempotent."""
        remove_gating(self.modules.values())


def remove_gating(modules: Iterable[nn.Module]) -> None:
    """Give these matrices, or copies of gated ones, their own `forward` back."""
    for module in modules:
        vars(module).pop("forward", None)


@torch.no_grad()
def fold(model: nn.Module, gates: Mapping[str, Gates]) -> None:
    """Put the gates of the named matrices into their weights and biases, in place; rows and columns of 0 stay as 0."""
    for name, each in gates.items():
        module = model.get_submodule(name)
        weight, bias = matrix(module), getattr(module, "bias", None)
        if each.low_rank is not None:
            weight += each.low_rank[1] @ each.low_rank[0]
        if each.columns is not None:
            weight *= each.columns
        if each.rows is not None:
            weight *= each.rows[:, None]
            if bias is not None:
                bias *= each.rows


class _GatedLinear(torch.autograd.Function):
    """y = r ⊙ (W (c ⊙ x) + b) as one product with diag(r) W diag(c), and gradients without dW.

    With g = ∂L/∂y: ∂L/∂x = g diag(r) W diag(c), ∂L/∂b = r ⊙ Σ g, ∂L/∂r = Σ g ⊙ y / r, ∂L/∂c = Σ x ⊙ ∂L/∂x / c, sums
    over all tokens. Where a gate is 0 its gradient is given as 0: a clipped gate passes none on
    (check 4 of docs/methods/fine-gates.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor | None,
        columns: torch.Tensor | None,
    ) -> torch.Tensor:
        # one matrix product whatever the number of tokens: gates scale the weights, not the activations
        effective = weight if columns is None else weight * columns
        if rows is not None:
            effective = rows[:, None] * effective if columns is None else effective.mul_(rows[:, None])
        offset = bias if rows is None or bias is None else rows * bias
        y = F.linear(x, effective, offset)
        ctx.save_for_backward(x, effective, rows, columns, y if rows is not None else None)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, effective, rows, columns, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_rows, needs_columns = ctx.needs_input_grad
        assert not needs_weight, "a gated matrix is frozen"
        d_x = d_bias = d_rows = d_columns = None
        # `effective` contains both gates already, so one product serves x and the column gates
        if needs_x or needs_columns:
            d_x = gradient @ effective.to(gradient.dtype)
        if needs_columns:
            d_columns = _quotient(_sum(x * d_x), columns)
        if needs_rows:
            d_rows = _quotient(_sum(gradient * y), rows)
        if needs_bias:
            d_bias = _sum(gradient) if rows is None else rows * _sum(gradient)
        return d_x, None, d_bias, d_rows, d_columns


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """Over everything but the last axis, in float32 or more."""
    return tensor.flatten(0, -2).sum(0, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _quotient(numerator: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return torch.where(gate > 0, numerator / gate.where(gate > 0, 1), 0).to(gate.dtype)
