"""Updates of matrices, in place, another one for each task of a batch, each mixed from an inventory of skills.

LoRA: y = W x + b + s (x A_t) B_t with A_t = ⊕_h Σ_s w_ths A_hs along the inputs and B_t = ⊕_h Σ_s w_ths B_hs along the
outputs, for h = 1 … q splits and s = 1 … S skills: the average of factors, which is of rank r again (Caccia et al.
2023). IA3: y = (W x + b) ⊙ l_t with l_t = ⊕_h Σ_s w_ths l_hs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, final

import torch
from torch import nn

from handful.backbone.blocks import matrix
from handful.backbone.gating import remove_gating


class AbstractUpdate(ABC):
    """What is done to the output of one matrix.

    `weights` (U, q, S) mix the skills of each of U tasks; `groups` (B,) says which of them each row is, None where U is
    1. A model that writes along several beams has a multiple of B rows, those of one row of the batch side by side.
    """

    def __init__(self, weights: torch.Tensor, groups: torch.Tensor | None):
        self.weights, self.groups = weights, groups
        self._mixed: Any = None

    def regroup(self, groups: torch.Tensor | None) -> None:
        """Rows of other of the tasks come next."""
        self.groups = groups

    def mixed(self) -> Any:
        """What `mix` gives; where no gradient is asked for, the same from one forward to the next."""
        if torch.is_grad_enabled():
            return self.mix()
        if self._mixed is None:
            self._mixed = self.mix()
        return self._mixed

    def groups_of(self, x: torch.Tensor) -> torch.Tensor | None:
        """The task of every row of x."""
        if self.groups is None or len(x) == len(self.groups):
            return self.groups
        return self.groups.repeat_interleave(len(x) // len(self.groups))

    @abstractmethod
    def mix(self) -> Any:
        """The update of each task."""

    @abstractmethod
    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The updated output for inputs x (B, …, D) and outputs y (B, …, O) of the matrix."""

    @abstractmethod
    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Put the update of the only task into a matrix (O, D) and its bias, in place."""


@final
class LowRank(AbstractUpdate):
    """y + s (x A_t) B_t, from `down` (q, S, D/q, r) and `up` (q, S, r, O/q)."""

    def __init__(
        self,
        down: torch.Tensor,
        up: torch.Tensor,
        weights: torch.Tensor,
        groups: torch.Tensor | None = None,
        scale: float = 1.0,
    ):
        super().__init__(weights, groups)
        self.down, self.up, self.scale = down, up, scale
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None

    def regroup(self, groups: torch.Tensor | None) -> None:
        super().regroup(groups)
        self._rows = None

    def mix(self) -> tuple[torch.Tensor, torch.Tensor]:
        return mix_factors(self.down, self.up, self.weights)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        groups = self.groups_of(x)
        if torch.is_grad_enabled():
            return y + _LowRank.apply(x, self.down, self.up, self.weights, groups, self.scale)  # type: ignore[operator]
        # generation: one token per row, so a batched product with each row's own factors beats a loop over tasks
        if x.dim() == 3 and x.shape[1] == 1 and groups is not None:
            down, up = self._of_rows(x, groups)
            return torch.baddbmm(y, torch.bmm(x, down), up)
        down, up = (factor.to(x.dtype) for factor in self.mixed())
        return y + _product(_product(x, down, groups), up, groups) * self.scale

    def _of_rows(self, x: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's own factors, scaled: while a text is written they are the same for every token."""
        if self._rows is None or len(self._rows[0]) != len(x):
            down, up = (factor.to(x.dtype)[groups] for factor in self.mixed())
            self._rows = down, up * self.scale
        return self._rows

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        del bias
        down, up = self.mix()
        weight += (self.scale * down[0] @ up[0]).T.to(weight.dtype)


@final
class Rescale(AbstractUpdate):
    """y ⊙ l_t, from `scales` (q, S, O/q)."""

    def __init__(self, scales: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor | None = None):
        super().__init__(weights, groups)
        self.scales = scales

    def mix(self) -> torch.Tensor:
        return torch.einsum("uqs,qso->uqo", self.weights, self.scales).flatten(1)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scales, groups = self.mixed().to(y.dtype), self.groups_of(x)
        if groups is None:
            return y * scales[0]
        return y * scales[groups].view(len(y), *(1,) * (y.dim() - 2), -1)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        scales = self.mix()[0].to(weight.dtype)
        weight *= scales[:, None]
        if bias is not None:
            bias *= scales


@final
class Updating:
    """Updates the output of matrices of a model until `remove`; `updates` may be set anew at any time.

    A matrix without an entry in `updates` computes what it always did.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.modules = {name: model.get_submodule(name) for name in names}
        self.updates: Mapping[str, AbstractUpdate] = {}
        for name, module in self.modules.items():
            module.forward = partial(self._forward, name, module)

    def _forward(self, name: str, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y, update = type(module).forward(module, x), self.updates.get(name)
        return y if update is None else update(x, y)

    def remove(self) -> None:
        """Give the matrices their own `forward` back. Idempotent."""
        remove_gating(self.modules.values())


@torch.no_grad()
def fold_updates(model: nn.Module, updates: Mapping[str, AbstractUpdate]) -> None:
    """Put the updates of a single task into the named matrices of a model, in place."""
    for name, update in updates.items():
        module = model.get_submodule(name)
        update.fold(matrix(module), getattr(module, "bias", None))


def mix_factors(down: torch.Tensor, up: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A (U, D, r) and B (U, r, O) at the weights (U, q, S), split h owning the h-th part of inputs and of outputs."""
    mixed_down = torch.einsum("uqs,qsdr->uqdr", weights, down).flatten(1, 2)
    return mixed_down, torch.einsum("uqs,qsro->urqo", weights, up).flatten(2, 3)


def _product(x: torch.Tensor, factors: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """Rows x (B, …, I) times each row's own factor of (U, I, J)."""
    if groups is None:
        return x @ factors[0]
    rows = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    return torch.bmm(rows, factors[groups]).view(*x.shape[:-1], -1)


def _outer(x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor | None, tasks: int) -> torch.Tensor:
    """Σ over rows and tokens of x ⊗ y, (U, I, J): each row's into its own task's."""
    if groups is None:
        return (x.flatten(0, -2).T @ y.flatten(0, -2)).unsqueeze(0)
    x, y = (t.flatten(1, -2) if t.dim() > 2 else t.unsqueeze(1) for t in (x, y))
    each = torch.bmm(x.transpose(1, 2), y)
    return each.new_zeros(tasks, *each.shape[1:]).index_add_(0, groups, each)


class _LowRank(torch.autograd.Function):
    """s (x A_t) B_t, keeping x and x A_t alone: factors are mixed again on the way back.

    With g = s ∂L/∂y and h = x A_t: ∂L/∂h = g B_tᵀ, ∂L/∂x = ∂L/∂h A_tᵀ, ∂L/∂A_t = Σ xᵀ ∂L/∂h, ∂L/∂B_t = Σ hᵀ g; from
    there to the skills and their weights by the chain rule through `mix_factors` (check 9 of docs/methods/poly.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        weights: torch.Tensor,
        groups: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        mixed_down, mixed_up = (factor.to(x.dtype) for factor in mix_factors(down, up, weights))
        hidden = _product(x, mixed_down, groups)
        ctx.save_for_backward(x, hidden, down, up, weights, groups)
        ctx.scale = scale
        return _product(hidden, mixed_up, groups) * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, hidden, down, up, weights, groups = ctx.saved_tensors
        gradient = gradient.to(x.dtype) * ctx.scale
        mixed_down, mixed_up = (factor.to(x.dtype) for factor in mix_factors(down, up, weights))
        d_hidden = _product(gradient, mixed_up.transpose(1, 2), groups)
        d_x = _product(d_hidden, mixed_down.transpose(1, 2), groups) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:4]):
            return d_x, None, None, None, None, None
        splits, tasks = down.shape[0], len(weights)
        d_down = _outer(x, d_hidden, groups, tasks).to(down.dtype).unflatten(1, (splits, -1))
        d_up = _outer(hidden.to(x.dtype), gradient, groups, tasks).to(up.dtype).unflatten(2, (splits, -1))
        d_weights = None
        if ctx.needs_input_grad[3]:
            d_weights = torch.einsum("uqdr,qsdr->uqs", d_down, down) + torch.einsum("urqo,qsro->uqs", d_up, up)
        from_tasks = (torch.einsum("uqs,uqdr->qsdr", weights, d_down), torch.einsum("uqs,urqo->qsro", weights, d_up))
        return d_x, *from_tasks, d_weights, None, None
