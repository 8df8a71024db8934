"""Make a model smaller by what is zero in it: feed-forward units and key/value heads that add nothing.

What that is, and how much of it can go, says `backbone.closed`. How the zeros came about (gates, pruning, a folded
adapter) is no matter.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from handful.backbone.blocks import Blocks, find_blocks, head_rule, why_heads_stay
from handful.backbone.closed import (
    Layout,
    all_parts,
    choose_kept,
    find_open,
    lengths,
    nonzero_columns,
    nonzero_rows,
    without,
)
from handful.backbone.resize import Kept, clear, configure, cut
from handful.errors import RunError
from handful.export.precision import KeepFloat64

TOLERANCE = 1e-9


@final
@dataclass(frozen=True)
class Shrinkage:
    """What became of a model: `parameters` of all of it and of its blocks' matrices (`gateable`), before and after.

    `units` and `heads` are what each block has now, in the order of the layers; `open_units` and `open_heads` how many
    of them add anything (of shared heads, key/value heads are counted). `zeros` says in words what stays as zeros.
    `added` is what a layer holds that was added for the head, and is counted in `parameters` after.
    """

    parameters: tuple[int, int]
    gateable: tuple[int, int]
    units: tuple[int, ...] = ()
    open_units: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    open_heads: tuple[int, ...] = ()
    zeros: tuple[str, ...] = ()
    added: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything is gone from its blocks; a layer that holds the head may have been added."""
        return self.gateable[0] != self.gateable[1]

    @property
    def removed(self) -> float:
        """The share of the blocks' parameters that is gone."""
        return 1 - self.gateable[1] / self.gateable[0]


@final
@dataclass(frozen=True)
class Shrunk:
    """A smaller model that computes the same, and the record of how it became smaller."""

    model: Any
    record: Shrinkage


def shrink(model: Any, *, layout: Layout = "padded", multiple: int | None = None) -> Shrunk:
    """A copy of a transformers model without its closed units and heads; the very model where there are none.

    "padded": all layers alike, as a stock checkpoint must be; each has as many units as the layer that needs most, and
    closed ones of its own as padding. Fewer heads only where the stock class can have them. "ragged": every layer has
    what it needs; only `load_compact` loads that. Units are rounded up to a multiple of `multiple` (see `MULTIPLES`).
    Raises: ModelError for a family without a known export; RunError where the copy computes something else.
    """
    blocks = find_blocks(model)
    open_parts = find_open(blocks)
    kept = choose_kept(blocks, open_parts, layout, multiple)
    small, small_blocks = model, blocks
    if open_parts != all_parts(blocks):
        small = copy.deepcopy(model)
        small_blocks = find_blocks(small)
        clear(small_blocks, without(all_parts(blocks), open_parts))
        cut(small_blocks, kept)
        if layout == "padded":
            configure(small, *_sizes(blocks, kept))
        compare_outputs(model, small)
    record = Shrinkage(
        parameters=(count(model), count(small)),
        gateable=(blocks.parameters(), small_blocks.parameters()),
        units=lengths(kept.units),
        open_units=lengths(open_parts.units),
        heads=lengths(kept.groups),
        open_heads=lengths(open_parts.groups),
        zeros=tuple(_zeros(blocks, small_blocks, open_parts, kept, layout)),
    )
    return Shrunk(small, record)


def count(model: nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _sizes(blocks: Blocks, kept: Kept) -> tuple[int, int | None]:
    """Units, and key/value heads where these are fewer, of every layer."""
    (units,), (groups,) = set(lengths(kept.units)), set(lengths(kept.groups))
    return units, groups if groups < blocks.attention[0].groups else None


def _zeros(blocks: Blocks, small: Blocks, open_parts: Kept, kept: Kept, layout: Layout) -> list[str]:
    """What stays as zeros and why, in words."""
    config, sentences = blocks.model.config, []
    spare = without(kept, open_parts)
    left = 0
    units, heads = sum(map(len, spare.units)), sum(map(len, spare.groups))
    if units:
        cost = sum(blocks.unit_cost(b) * len(part) for b, part in zip(blocks.feed_forward, spare.units, strict=True))
        why = "widths are rounded up to what matrix kernels take fast"
        if layout == "padded":
            why = f"a stock {config.model_type} has one width for all layers, here {len(kept.units[0])}"
        sentences.append(f"closed feed-forward units: {units:,} ({cost:,} parameters); {why}")
        left += cost
    if heads:
        cost = sum(blocks.group_cost(b) * len(part) for b, part in zip(blocks.attention, spare.groups, strict=True))
        sentences.append(f"closed heads: {heads:,} ({cost:,} parameters); {_why_heads(config, layout, kept)}")
        left += cost
    others = count_zeros(small) - left
    if others:
        sentences.append(
            f"other rows and columns: {others:,} parameters, of the residual stream, of single dimensions of heads, or "
            "of queries and keys alone"
        )
    return sentences


def _why_heads(config: Any, layout: Layout, kept: Kept) -> str:
    can, family = head_rule(config), config.model_type
    if can == "none":
        return why_heads_stay(config)
    if layout == "ragged":
        return "every layer keeps at least one"
    if can == "stock":
        return f"a stock {family} has one number of heads for all layers, here {len(kept.groups[0])} key/value heads"
    return f"the number of heads of a stock {family} follows from its hidden width; the format 'compact' removes them"


def count_zeros(blocks: Blocks) -> int:
    """Parameters in rows (with bias) and columns of the blocks' matrices that are zero throughout."""
    total = 0
    for name in blocks.matrices:
        module = blocks.model.get_submodule(name)
        rows, columns = ~nonzero_rows(module), ~nonzero_columns(module)
        total += int((rows[:, None] | columns).sum()) + (int(rows.sum()) if module.bias is not None else 0)
    return total


@torch.no_grad()
def compare_outputs(model: Any, small: Any) -> None:
    """Both in float64 on a small padded batch, so that rounding, which deep models amplify, is out of the question.

    Raises: RunError where their outputs differ.
    """
    inputs = sample_inputs(model, rows=2, length=12, padded=True)
    with KeepFloat64():
        expected, found = (copy.deepcopy(each).double().eval()(**inputs)[0] for each in (model, small))
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise RunError(
            f"the smaller model gives other outputs (by up to {difference:.2g})",
            "nothing was saved; please report this with the versions that `handful doctor` prints",
        )


def sample_inputs(model: Any, *, rows: int, length: int, padded: bool = False) -> dict[str, torch.Tensor]:
    """Token ids and mask (B, S) that a model accepts, each row with an end mark; `padded` makes the first one short."""
    end = model.config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    ids = torch.arange(3, 3 + rows * length).view(rows, length) % model.get_input_embeddings().num_embeddings
    mask = torch.ones_like(ids)
    if isinstance(end, int):  # T5's and BART's classification classes look for it, and want as many in each row
        ids[ids == end] = end - 1 if end else end + 1
        ids[:, -1] = end
    if padded:
        short = length - length // 4
        mask[0, short:] = 0
        if isinstance(end, int):
            ids[0, short - 1] = end
            ids[0, short:] = model.config.pad_token_id or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    accepted = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = ids
    return {name: tensor.to(model.device) for name, tensor in inputs.items() if name in accepted}
