"""Take units and key/value heads out of a model's blocks: matrices are cut, and every layer may keep another number.

A stock configuration has one number for all layers. `configure` writes such sizes into it; a model of unequal layers is
built by its stock class at full size and cut before its weights are loaded (`build_ragged`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from handful.backbone.blocks import FAMILIES, Attention, Blocks, FeedForward, find_blocks, is_transposed, matrix
from handful.backbone.load import without_bar
from handful.backbone.sharing import making_models
from handful.errors import ModelError


@final
@dataclass(frozen=True)
class Kept:
    """Units and key/value heads that stay: increasing indices, one tuple a block, in the order of `Blocks`."""

    units: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def first(cls, units: Iterable[int], groups: Iterable[int]) -> Kept:
        """The first so many of each block."""
        return cls(tuple(tuple(range(n)) for n in units), tuple(tuple(range(n)) for n in groups))

    def parameters(self, blocks: Blocks) -> int:
        """Weights and biases of all matrices that stay: what `cut` will leave."""
        closed = sum(
            (block.units - len(kept)) * blocks.unit_cost(block)
            for block, kept in zip(blocks.feed_forward, self.units, strict=True)
        )
        closed += sum(
            (block.groups - len(kept)) * blocks.group_cost(block)
            for block, kept in zip(blocks.attention, self.groups, strict=True)
        )
        return blocks.parameters() - closed


@torch.no_grad()
def cut(blocks: Blocks, kept: Kept) -> None:
    """Take everything but `kept` out of the model, in place; the model's configuration is left as it was."""
    model = blocks.model
    for block, units in zip(blocks.feed_forward, kept.units, strict=True):
        if len(units) < block.units:
            for name, rows, columns in _unit_parts(block, units):
                _select(model.get_submodule(name), rows, columns)
    for block, groups in zip(blocks.attention, kept.groups, strict=True):
        if len(groups) < block.groups:
            for name, rows, columns in _group_parts(block, groups):
                _select(model.get_submodule(name), rows, columns)
            holder = model.get_submodule(block.projections[0].rpartition(".")[0])
            counts = _head_counts(len(groups) * block.heads // block.groups, block.head_width)
            vars(holder).update({name: count for name, count in counts.items() if hasattr(holder, name)})


@torch.no_grad()
def clear(blocks: Blocks, closed: Kept) -> None:
    """Set whatever belongs to these units and key/value heads to zero, in place."""
    parts: list[Part] = []
    for block, units in zip(blocks.feed_forward, closed.units, strict=True):
        parts += _unit_parts(block, units)
    for block, groups in zip(blocks.attention, closed.groups, strict=True):
        parts += _group_parts(block, groups)
    for name, rows, columns in parts:
        module = blocks.model.get_submodule(name)
        if rows is None:
            matrix(module)[:, columns] = 0
        else:
            matrix(module)[rows] = 0
            if isinstance(module.bias, nn.Parameter):
                module.bias[rows] = 0


Part = tuple[str, torch.Tensor | None, torch.Tensor | None]
"""A matrix, and the indices of its rows or of its columns."""


def _unit_parts(block: FeedForward, units: Sequence[int]) -> list[Part]:
    """What belongs to these units in each of the block's matrices."""
    index = torch.tensor(units, dtype=torch.long)
    return [*((name, index, None) for name in block.inputs), (block.output, None, index)]


def _group_parts(block: Attention, groups: Sequence[int]) -> list[Part]:
    """What belongs to these key/value heads, and to their query heads, in each of the block's matrices."""
    index = torch.tensor(groups, dtype=torch.long)
    queries, keys = _spread(index, block.columns_per_group), _spread(index, block.head_width)
    rows = [queries, keys, keys]
    if len(block.projections) == 1:  # side by side, one after the other
        rows = [torch.cat([part * block.heads * block.head_width + keys for part in range(3)])]
    return [
        *((name, each, None) for name, each in zip(block.projections, rows, strict=True)),
        (block.output, None, queries),
    ]


def _head_counts(heads: int, width: int) -> dict[str, int]:
    """What the families' attention modules call their number of heads, and the width of all heads together."""
    return {
        **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads"), heads),
        **dict.fromkeys(("all_head_size", "split_size"), heads * width),
    }


def _spread(groups: torch.Tensor, width: int) -> torch.Tensor:
    """Indices of all rows of these groups, each `width` rows."""
    return (groups[:, None] * width + torch.arange(width)).flatten()


def _select(module: nn.Module, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
    """Keep these rows (with their biases) and columns of a layer, in place."""
    weight, bias = matrix(module), module.bias
    if rows is not None:
        weight = weight[rows]
        if isinstance(bias, nn.Parameter):
            module.bias = nn.Parameter(bias[rows], requires_grad=bias.requires_grad)
    if columns is not None:
        weight = weight[:, columns]
    out, width = weight.shape
    names = ("nf", "nx") if is_transposed(module) else ("out_features", "in_features")
    vars(module).update(zip(names, (out, width), strict=True))
    stored = weight.t() if is_transposed(module) else weight
    module.weight = nn.Parameter(stored.contiguous(), requires_grad=module.weight.requires_grad)  # type: ignore[union-attr]


def configure(model: PreTrainedModel, units: int | None = None, groups: int | None = None) -> None:
    """Say in the model's configurations that each layer has so many units and key/value heads.

    Raises: ModelError where the family's configuration refuses that number of heads.
    """
    found = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    for config in found.values():
        changes = _changes(config, units, groups)
        if groups is not None and not _accepts(config, changes):
            raise ModelError(f"{config.model_type}: the stock class cannot have {groups} key/value heads")
        for name, value in changes.items():
            setattr(config, name, value)


def possible_groups(config: PreTrainedConfig) -> tuple[int, ...]:
    """The numbers of key/value heads, rising, that the family's configuration takes for all layers.

    Llama's, for one, insists that the number of heads divides the hidden width.
    """
    most: int = config.num_key_value_heads
    return (*(groups for groups in range(1, most) if _accepts(config, _changes(config, None, groups))), most)


def _changes(config: PreTrainedConfig, units: int | None, groups: int | None) -> dict[str, int]:
    changes = {} if units is None else {FAMILIES[config.model_type].width: units}
    if groups is not None:
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        changes |= {
            "num_attention_heads": heads // config.num_key_value_heads * groups,
            "num_key_value_heads": groups,
            "head_dim": width,
        }
    return changes


def _accepts(config: PreTrainedConfig, changes: Mapping[str, Any]) -> bool:
    try:
        type(config).from_dict({**config.to_dict(), **changes})
    except (ValueError, StrictDataclassError):
        return False
    return True


@torch.no_grad()
def stock_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A new model of the same class with the same weights (shared, not copied) and nothing of ours in its forward."""
    config = type(model.config).from_dict(model.config.to_dict())
    with making_models(), no_init_weights():
        fresh: Any = type(model)(config)
    if getattr(model, "pooler", None) is None and getattr(fresh, "pooler", None) is not None:
        fresh.pooler = None
    fresh.load_state_dict(model.state_dict(), assign=True)
    _tie_as(model, fresh)
    return fresh.eval().requires_grad_(False)


def _tie_as(model: nn.Module, fresh: nn.Module) -> None:
    """Tie what is one tensor in the model, and nothing else.

    `tie_weights` goes by the configuration, which says of every T5 that the output layer is the embedding; in flan-t5
    it is not.
    """
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            holder, _, leaf = name.rpartition(".")
            setattr(fresh.get_submodule(holder), leaf, fresh.get_parameter(first))


def class_path(model: PreTrainedModel) -> str:
    """Where transformers has the model's class: "module:name", for `stock_class`."""
    return f"{type(model).__module__}:{type(model).__name__}"


def stock_class(path: str) -> type[PreTrainedModel]:
    """The class of transformers at "module:name". Raises: ModelError where it is no model class of theirs."""
    module, _, name = path.partition(":")
    found = None
    if module.startswith("transformers.models."):  # nothing else is imported because a file says so
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ModelError(
            f"expected a model class of transformers, found {path!r}", "install the version that the export names"
        )
    return found


def build_ragged(
    kind: type[PreTrainedModel],
    file: Path,
    tensors: Mapping[str, torch.Tensor],
    units: Sequence[int],
    groups: Sequence[int],
) -> PreTrainedModel:
    """A stock model in eval mode with so many units and key/value heads in each block, and exactly these weights.

    `file` is its configuration at full size.
    Raises: ModelError where sizes, class and weights do not fit each other.
    """
    config: Any = kind.config_class.from_dict(json.loads(file.read_text(encoding="utf-8")))  # type: ignore[union-attr]
    with making_models(), no_init_weights():
        model: Any = kind(config)
    if getattr(model, "pooler", None) is not None and not any(name.startswith("pooler.") for name in tensors):
        model.pooler = None
    blocks = find_blocks(model)
    have = [block.units for block in blocks.feed_forward], [block.groups for block in blocks.attention]
    for asked, most, what in zip((units, groups), have, ("units", "key/value heads"), strict=True):
        if len(asked) != len(most) or any(not 1 <= n <= limit for n, limit in zip(asked, most, strict=True)):
            raise ModelError(f"{file.parent}: expected {what} of {len(most)} blocks, 1 to {most}, found {list(asked)}")
    cut(blocks, Kept.first(units, groups))
    return load_exactly(model, tensors)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Configuration and weights into an existing folder."""
    with making_models(), without_bar():
        model.save_pretrained(folder)


def load_exactly(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The model with these weights, in eval mode; a tied weight may stand under any of its names.

    Raises: ModelError where a weight is missing, too many, or has another shape.
    """
    model.tie_weights()
    named = dict(model.named_parameters(remove_duplicate=False))
    given = {id(parameter) for name, parameter in named.items() if name in tensors}
    missing = [name for name, parameter in named.items() if id(parameter) not in given]
    try:
        found = model.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the model's sizes: {str(error).splitlines()[-1].strip()}") from None
    if missing or found.unexpected_keys:
        raise ModelError(f"expected exactly the model's weights, missing {missing}, too many {found.unexpected_keys}")
    return model.eval().requires_grad_(False)
