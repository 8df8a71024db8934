"""Importance of the units and heads of a model, from a few texts: one number for each.

magnitude: ‖weights of the group‖₂. wanda: Σ |W_ij| ‖x_j‖₂ over the group's columns j of the output matrix, x its input
over all real tokens (Sun et al. 2024, summed over the group), in a decoder behind an encoder over those with a label.
taylor: Σ |∂L/∂z| at z = 1 over batches of training rows (Michel et al. 2019). random: drawn. They are compared within
one block only, so their scale does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from handful.backbone.blocks import Attention, Blocks, FeedForward, matrix
from handful.backbone.device import exact
from handful.data.batching import NO_LOSS, Batch, EncodedRows, plan_batches

Importance = Literal["taylor", "wanda", "magnitude", "random"]


def magnitudes(blocks: Blocks, groups: Sequence[Attention | FeedForward]) -> list[torch.Tensor]:
    """‖weights‖₂ of each group of each block: its rows of the input matrices (value's, of attention), its columns."""
    found = []
    for block in groups:
        columns = matrix(blocks.model.get_submodule(block.output)).square().sum(0)
        if isinstance(block, FeedForward):
            rows = sum(matrix(blocks.model.get_submodule(name)).square().sum(1) for name in block.inputs)
            found.append((columns + rows).sqrt())
        else:
            value = matrix(blocks.model.get_submodule(block.projections[-1]))[-block.groups * block.head_width :]
            rows = value.square().sum(1).view(block.groups, -1).sum(1)
            found.append((columns.view(block.groups, -1).sum(1) + rows).sqrt())
    return found


@torch.no_grad()
def activations(
    blocks: Blocks, groups: Sequence[Attention | FeedForward], rows: EncodedRows, run: Callable[[Batch], Any]
) -> list[torch.Tensor]:
    """Σ |W_ij| ‖x_j‖₂ of each group of each block over these rows; `run` is the forward of a batch."""
    modules = {block.output: blocks.model.get_submodule(block.output) for block in groups}
    device = next(iter(modules.values())).weight.device
    with _input_squares(modules, blocks.model.config.is_encoder_decoder) as (squares, see):
        for indices in plan_batches(rows.lengths, 64):
            batch = rows.batch(indices).to(device)  # type: ignore[arg-type]
            see(batch)
            run(batch)
    scores = []
    for block in groups:
        weight = matrix(modules[block.output])
        column = weight.abs().sum(0) * squares[block.output].sqrt().float().to(weight.device)
        scores.append(column if isinstance(block, FeedForward) else column.view(block.groups, -1).sum(1))
    return scores


@contextmanager
def _input_squares(
    modules: Mapping[str, nn.Module], has_encoder: bool
) -> Iterator[tuple[dict[str, torch.Tensor], Callable[[Batch], None]]]:
    """Sums of squares (in,) of what goes into each module, over real tokens; and how to tell it the batch to come.

    A decoder that `has_encoder` runs over the labels, and not over the inputs that the mask is of.
    """
    squares: dict[str, torch.Tensor] = {}
    masks: dict[bool, torch.Tensor] = {}

    def see(batch: Batch) -> None:
        masks[False] = batch.inputs["attention_mask"]
        masks[True] = masks[False] if batch.labels is None else batch.labels != NO_LOSS

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def keep(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            del module
            square, mask = exact(arguments[0]).square(), masks[has_encoder and name.startswith("decoder.")]
            if square.shape[:-1] == mask.shape:  # otherwise the batch is packed: real tokens only
                square = square * mask.unsqueeze(-1).to(square.device)
            squares[name] = squares.get(name, 0) + square.flatten(0, -2).sum(0)

        return keep

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield squares, see
    finally:
        for handle in handles:
            handle.remove()


def gradients(
    count: int, rows: EncodedRows, loss: Callable[[Batch, torch.Tensor], torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Σ |∂L/∂z| (n,) over batches of four rows at z = 1; `loss` is that of a batch under given gates (n,)."""
    total = torch.zeros(count, device=device)
    for indices in plan_batches(rows.lengths, 4):
        gates = torch.ones(count, device=device, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(rows.batch(indices).to(device), gates), gates)
        total += gradient.abs()
    return total
