"""Methods by name. Importing this package imports no method."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from handful.errors import ConfigError, nearest

if TYPE_CHECKING:
    from handful.methods.base import AbstractMethod

METHODS: dict[str, str] = {
    "head": "head:Head",
    "prefix": "prefix:Prefix",
    "prefix-subspace": "prefix_subspace:PrefixSubspace",
    "fine-gates": "gates.fine_gates:FineGates",
    "prune": "gates.prune:Prune",
    "prompt": "prompt:Prompt",
    "scaled-prompt": "scaled_prompt:ScaledPrompt",
    "poly": "poly.method:Poly",
    "full": "full:Full",
    "bias": "bias:Bias",
    "lora": "peft_bridge:LoRA",
    "ia3": "peft_bridge:IA3",
    "prompt-tuning": "peft_bridge:PromptTuning",
    "peft": "peft_bridge:Peft",
    "setfit": "setfit_bridge:SetFit",
}
"""Where each method is: module and class."""


def method_names() -> list[str]:
    """Every method's name."""
    return list(METHODS)


def method_class(name: str) -> type[AbstractMethod]:
    """The method of that name. Raises: ConfigError naming the nearest one."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", nearest(name, METHODS))
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(f"handful.methods.{module}"), attribute)
