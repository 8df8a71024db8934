"""Which units and heads of a model add nothing, and how many of them a smaller model can do without.

A unit adds nothing where its row (weight and bias) in one of the matrices in is zero, since act(0) = 0, or where its
column in the matrix out is zero. A key/value head adds nothing where each of its value dimensions has a zero row (with
bias) in the value matrix, or zero columns in the output matrix for all query heads that share it. A head of which only
queries or keys are zero attends to all tokens alike and stays. At least one unit and one head of each layer stay.
Source: ours (docs/methods/prune.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from handful.backbone.blocks import Attention, Blocks, FeedForward, head_rule, matrix
from handful.backbone.resize import Kept, possible_groups

Layout = Literal["padded", "ragged"]
"""All layers alike, as a stock checkpoint must be, or each with what it needs."""
MULTIPLES = {"padded": 16, "ragged": 8}
"""Widths are rounded up to multiples of these: 922 units take a fifth longer than 928 (one CPU thread, float32)."""

Lines = Callable[[str], torch.Tensor]
"""Of a matrix by name, which of its rows (out,), or of its columns (in,), are not zero."""


def find_open(blocks: Blocks, rows: Lines | None = None, columns: Lines | None = None) -> Kept:
    """The units and key/value heads that add something.

    `rows` and `columns` say which lines are not zero: by default those of the model's weights, which gates are folded
    into.
    """
    rows = rows or (lambda name: nonzero_rows(blocks.model.get_submodule(name)))
    columns = columns or (lambda name: nonzero_columns(blocks.model.get_submodule(name)))
    units = [_open_units(block, rows, columns) for block in blocks.feed_forward]
    groups = [_open_groups(block, rows, columns) for block in blocks.attention]
    return Kept(tuple(_indices(each) for each in units), tuple(_indices(each) for each in groups))


def choose_kept(blocks: Blocks, open_parts: Kept, layout: Layout, multiple: int | None = None) -> Kept:
    """What a smaller model keeps: at least what is open; units rounded up to a multiple (`MULTIPLES`)."""
    choose = _padded if layout == "padded" else _ragged
    return choose(blocks, open_parts, multiple or MULTIPLES[layout])


def nonzero_rows(module: nn.Module) -> torch.Tensor:
    """(out,) of bool: whether a row or its bias is not zero."""
    rows, bias = (matrix(module) != 0).any(1), module.bias
    return rows if bias is None else rows | (bias != 0)  # type: ignore[operator]


def nonzero_columns(module: nn.Module) -> torch.Tensor:
    """(in,) of bool: whether a column is not zero."""
    return (matrix(module) != 0).any(0)


def all_parts(blocks: Blocks) -> Kept:
    """Everything there is."""
    return Kept.first((block.units for block in blocks.feed_forward), (block.groups for block in blocks.attention))


def without(every: Kept, some: Kept) -> Kept:
    """What is in `every` and not in `some`."""
    units = (tuple(sorted({*a} - {*b})) for a, b in zip(every.units, some.units, strict=True))
    groups = (tuple(sorted({*a} - {*b})) for a, b in zip(every.groups, some.groups, strict=True))
    return Kept(tuple(units), tuple(groups))


def lengths(parts: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """How many each block has."""
    return tuple(len(part) for part in parts)


def _open_units(block: FeedForward, rows: Lines, columns: Lines) -> torch.Tensor:
    """(units,) of bool: whether the unit adds something."""
    return torch.stack([rows(name) for name in block.inputs]).all(0) & columns(block.output)


def _open_groups(block: Attention, rows: Lines, columns: Lines) -> torch.Tensor:
    """(G,) of bool: whether the key/value head adds something through any of its value dimensions."""
    values = rows(block.projections[-1])[-block.groups * block.head_width :].view(block.groups, -1)
    outputs = columns(block.output).view(block.groups, block.heads // block.groups, block.head_width).any(1)
    return (values & outputs).any(1)


def _indices(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _fill(chosen: tuple[int, ...], number: int) -> tuple[int, ...]:
    """So many indices: the chosen ones, and the first others as padding."""
    taken = set(chosen)
    others = [index for index in range(number) if index not in taken]
    return tuple(sorted((*chosen, *others[: number - len(chosen)])))


def _pad_units(blocks: Blocks, open_parts: Kept, numbers: Iterable[int], multiple: int) -> tuple[tuple[int, ...], ...]:
    """For each block, at least so many units, rounded up to a multiple, but never more than there are."""
    rounded = (max(1, math.ceil(number / multiple)) * multiple for number in numbers)
    parts = zip(open_parts.units, rounded, blocks.feed_forward, strict=True)
    return tuple(_fill(part, min(number, block.units)) for part, number, block in parts)


def _ragged(blocks: Blocks, open_parts: Kept, multiple: int) -> Kept:
    units = _pad_units(blocks, open_parts, lengths(open_parts.units), multiple)
    if head_rule(blocks.model.config) == "none":
        return Kept(units, all_parts(blocks).groups)
    return Kept(units, tuple(part or (0,) for part in open_parts.groups))


def _padded(blocks: Blocks, open_parts: Kept, multiple: int) -> Kept:
    most = max(lengths(open_parts.units))
    units = _pad_units(blocks, open_parts, [most] * len(open_parts.units), multiple)
    config = blocks.model.config
    if head_rule(config) != "stock":
        return Kept(units, all_parts(blocks).groups)
    least = max(1, *lengths(open_parts.groups))
    number = min(groups for groups in possible_groups(config) if groups >= least)
    return Kept(units, tuple(_fill(part, number) for part in open_parts.groups))
