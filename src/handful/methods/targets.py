"""Which linear layers of a model a method changes, and how far down that reaches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from handful.backbone.load import Backbone
from handful.backbone.trunk import layer_lists
from handful.errors import nearest

Targets = str | tuple[str, ...]
"""Ends of module names, or a word or pattern that PEFT understands."""

_FUSED = "Wqkv|qkv|qkv_proj|query_key_value|c_attn"
_QUERY_VALUE = re.compile(rf"(?:q|v|query|value)(?:_proj|_lin)?|{_FUSED}")
_KEY_VALUE = re.compile(rf"(?:k|v|key|value)(?:_proj|_lin)?|{_FUSED}")


def linear_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """The linear layers of the model by name (GPT-2's `Conv1D` is one)."""
    return {n: m for n, m in backbone.model.named_modules() if isinstance(m, nn.Linear) or _is_transposed(m)}


def has_transposed_layers(backbone: Backbone) -> bool:
    """Whether the linear layers keep their weights as (in, out)."""
    return any(map(_is_transposed, linear_layers(backbone).values()))


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def choose_lora_targets(backbone: Backbone, known: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """Query and value projections, and where the choice comes from: PEFT's table (`known`) or a search by name."""
    if known:
        return tuple(known), f"PEFT's own choice for {backbone.family}"
    leaves = {name.rpartition(".")[2] for name in linear_layers(backbone)}
    found = tuple(sorted(leaf for leaf in leaves if _QUERY_VALUE.fullmatch(leaf)))
    return found, f"found by name, as PEFT has no choice for {backbone.family}"


def choose_ia3_targets(
    backbone: Backbone, known: Sequence[str] | None, feedforward: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Keys, values and second feed-forward layers; the feed-forward ones alone; where the choice comes from."""
    if known:
        return tuple(known), tuple(feedforward), f"PEFT's own choice for {backbone.family}"
    keys, second = [], []
    for name, layer in linear_layers(backbone).items():
        if _KEY_VALUE.fullmatch(name.rpartition(".")[2]):
            keys.append(name)
        elif isinstance(layer, nn.Linear) and layer.in_features > layer.out_features == backbone.hidden_size:
            second.append(name)
    return (*keys, *second), tuple(second), f"found by name and shape, as PEFT has no choice for {backbone.family}"


def check_targets(backbone: Backbone, targets: Targets, field: str = "target_modules") -> list[str]:
    """A reason where there is no target, or for every target that names no module of the model."""
    if isinstance(targets, str):
        return []
    if not targets:
        return [f"{field}: none found; {name_targets(backbone)}"]
    names = [name for name, _ in backbone.model.named_modules()]
    leaves = {name.rpartition(".")[2] for name in linear_layers(backbone)}
    missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    return [f"{field}: {backbone.family} has no module called {t!r}; {nearest(t, leaves)}" for t in missing]


def name_targets(backbone: Backbone) -> str:
    """A hint listing what can be a target."""
    return "give some of " + ", ".join(sorted({name.rpartition(".")[2] for name in linear_layers(backbone)}))


def listed(targets: Targets) -> str:
    """Targets as people read them: once for all layers."""
    return (
        targets if isinstance(targets, str) else ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", t) for t in targets))
    )


def lowest_layer(backbone: Backbone, parameters: Iterable[nn.Parameter]) -> int | None:
    """The lowest layer of the stack that holds one of these parameters; None where one lies outside the stack."""
    stacks = layer_lists(backbone)
    if len(stacks) != 1:
        return None
    layer_of = {id(parameter): index for index, layer in enumerate(stacks[0]) for parameter in layer.parameters()}
    found = [layer_of.get(id(parameter)) for parameter in parameters]
    inside = [index for index in found if index is not None]
    return min(inside) if inside and len(inside) == len(found) else None
