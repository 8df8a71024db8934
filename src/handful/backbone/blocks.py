"""What the layers of a model are made of: its matrices, and the units and heads that could be taken out of them.

Only for families in `FAMILIES`, whose smaller models were checked: a wrong guess here would be a wrong export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from handful.backbone.families import ROWS, BlockNames, HeadRule, family_of
from handful.errors import ModelError

FAMILIES: Mapping[str, BlockNames] = {row.model_type: row.blocks for row in ROWS if row.blocks}
"""Families whose blocks are known."""


@final
@dataclass(frozen=True)
class Attention:
    """One attention block: `projections` are the names of its matrices in (one, or query, key and value).

    Rows of query: H·d; of key and value: G·d, each of the G key/value heads shared by H/G query heads (GQA); columns
    of `output`: H·d. Side by side in one matrix, they stand in this order.
    """

    module: str
    projections: tuple[str, ...]
    output: str
    heads: int
    groups: int
    head_width: int

    @property
    def columns_per_group(self) -> int:
        """Columns of `output` that belong to one key/value head."""
        return self.heads // self.groups * self.head_width


@final
@dataclass(frozen=True)
class FeedForward:
    """One feed-forward block: units are rows of each of `inputs` (two where one gates the other), columns of `output`.

    `act(0) = 0`, so that a unit whose row or column is zero adds nothing.
    """

    module: str
    inputs: tuple[str, ...]
    output: str
    units: int


@final
@dataclass(frozen=True)
class Blocks:
    """All blocks of a model, in the order of its layers (of an encoder-decoder: encoder first)."""

    model: PreTrainedModel
    attention: tuple[Attention, ...]
    feed_forward: tuple[FeedForward, ...]

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of every matrix of every block."""
        names = [name for block in self.attention for name in (*block.projections, block.output)]
        return (*names, *(name for block in self.feed_forward for name in (*block.inputs, block.output)))

    def parameters(self) -> int:
        """Weights and biases of all matrices: what gates could remove at most."""
        return sum(
            p.numel() for name in self.matrices for p in self.model.get_submodule(name).parameters(recurse=False)
        )

    def group_cost(self, block: Attention) -> int:
        """Parameters that go with one key/value head and the query heads that share it."""
        per_width = sum(self._inputs_and_bias(name) for name in block.projections)
        if len(block.projections) == 1:
            return block.head_width * (3 * per_width + outputs(self._get(block.output)))
        queries = block.columns_per_group
        query, *key_value = (self._inputs_and_bias(name) for name in block.projections)
        return queries * (query + outputs(self._get(block.output))) + block.head_width * sum(key_value)

    def unit_cost(self, block: FeedForward) -> int:
        """Parameters that go with one unit."""
        return sum(self._inputs_and_bias(name) for name in block.inputs) + outputs(self._get(block.output))

    def _get(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _inputs_and_bias(self, name: str) -> int:
        module = self._get(name)
        return inputs(module) + (getattr(module, "bias", None) is not None)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as (in, out), as GPT-2's layers do, and not as (out, in)."""
    return isinstance(module, Conv1D)


def matrix(module: nn.Module) -> torch.Tensor:
    """The weight as (out, in): a view of the layer's own."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.t() if is_transposed(module) else weight


def outputs(module: nn.Module) -> int:
    """Rows of a matrix: its output's width."""
    return matrix(module).shape[0]


def inputs(module: nn.Module) -> int:
    """Columns of a matrix: its input's width."""
    return matrix(module).shape[1]


def obstacles(config: PreTrainedConfig) -> list[str]:
    """Reasons why a model of this configuration has no blocks that could be told exactly; empty when it has."""
    family = config.model_type
    if family not in FAMILIES:
        return [f"no exact export of a gated {family} is known; it is for {', '.join(sorted(FAMILIES))}"]
    if getattr(config, "quantization_config", None) is not None:
        return ["the weights are quantised, and gates cannot be folded into them; load the model in full precision"]
    if getattr(config, "add_cross_attention", False):
        return [f"a {family} with cross-attention has blocks of another kind"]
    name = activation(config)
    if float(ACT2FN[name](torch.zeros(()))) != 0:
        return [f"the activation {name!r} is not 0 at 0: a closed unit would still add a constant"]
    return []


def head_rule(config: PreTrainedConfig) -> HeadRule:
    """Who can do with fewer heads of a model of this configuration, whose family is one of `FAMILIES`.

    DeBERTa's layers read positions through their own queries and keys, whose rows go with the head; where the
    checkpoint does not share those (`share_att_key`), positions have matrices that are not cut.
    """
    apart = getattr(config, "relative_attention", False) and not getattr(config, "share_att_key", False)
    return "none" if apart and family_of(config.model_type).reads_positions else FAMILIES[config.model_type].heads


def why_heads_stay(config: PreTrainedConfig) -> str:
    """In words, why nobody can do with fewer heads, where the rule is "none"."""
    if family_of(config.model_type).reads_positions:
        family = config.model_type
        return f"positions have matrices of their own in this {family} (share_att_key is off), which are not cut"
    return f"a {config.model_type} has position biases of its own for each head, in one table for all layers"


def activation(config: PreTrainedConfig) -> str:
    """The name of the feed-forward blocks' activation."""
    for name in ("dense_act_fn", "hidden_act", "hidden_activation", "activation_function", "activation"):
        if isinstance(getattr(config, name, None), str):
            return getattr(config, name)
    raise ModelError(f"{config.model_type}: expected an activation in the configuration, found none")


def find_blocks(model: PreTrainedModel) -> Blocks:
    """The blocks of a model. Raises: ModelError with the reason where there is one against it."""
    reasons = obstacles(model.config)
    if reasons:
        raise ModelError(reasons[0])
    names = FAMILIES[model.config.model_type]
    attention = tuple(_attention(model, name, names.attention) for name in _holders(model, names.attention))
    feed_forward = tuple(
        _feed_forward(model, name, kind) for kind in names.feed_forward for name in _holders(model, kind)
    )
    blocks = Blocks(model, attention, feed_forward)
    _refuse_shared(blocks)
    return blocks


def _holders(model: nn.Module, names: tuple[str, ...]) -> Iterator[str]:
    """Names of the modules that hold matrices of all these names."""
    modules = dict(model.named_modules())
    for name in modules:
        prefix = f"{name}." if name else ""
        if all(isinstance(modules.get(prefix + part), nn.Linear | Conv1D) for part in names):
            yield name


def _attention(model: PreTrainedModel, holder: str, names: tuple[str, ...]) -> Attention:
    *projections, output = (f"{holder}.{name}" if holder else name for name in names)
    heads = int(model.config.num_attention_heads)
    width = inputs(model.get_submodule(output)) // heads
    rows = outputs(model.get_submodule(projections[-1]))
    groups = heads if len(projections) == 1 else rows // width
    return Attention(holder, tuple(projections), output, heads, groups, width)


def _feed_forward(model: PreTrainedModel, holder: str, names: tuple[str, ...]) -> FeedForward:
    *into, output = (f"{holder}.{name}" if holder else name for name in names)
    return FeedForward(holder, tuple(into), output, inputs(model.get_submodule(output)))


def _refuse_shared(blocks: Blocks) -> None:
    """Raises: ModelError where a matrix is used in two places: it could not be folded for each."""
    found: dict[int, str] = {}
    for name, parameter in blocks.model.named_parameters(remove_duplicate=False):
        other = found.setdefault(id(parameter), name)
        if other != name and {name.rpartition(".")[0], other.rpartition(".")[0]} & set(blocks.matrices):
            raise ModelError(f"{name} is the same tensor as {other}: tied weights cannot be gated apart")
