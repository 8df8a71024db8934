"""Key/value injection: prefixes that every token attends to, in any transformers model. All knowledge of
transformers' attention interface is in this file.

    K~ = [prefix K ; K],  V~ = [prefix V ; V],  mask~ = [1 ; mask],  attention = softmax(Q K~^T · scale + mask~) V~

The queries are not extended, so the output keeps its length S, and nothing enters the cache: the prefix is put in
front of the keys and values anew in every call, also in every step of `generate`. Where attention happens is found
by running the model once. Two families with attention code of their own are served by `attention_patches.py`.

Source: prefix tuning (Li and Liang 2021); injection through `AttentionInterface` is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from handful.backbone.attention_patches import patch_of
from handful.backbone.packing import Packing
from handful.backbone.positions import PositionShift
from handful.errors import ModelError

IMPLEMENTATION = "handful_prefix_sdpa"
"""The name under which transformers knows our attention function."""

_SLOT = "_handful_slot"
"""The attribute of attention modules that leads from a call to its controller."""

KeyValue = tuple[torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class AttentionSite:
    """One attention call of a forward: key/value `heads` of width `width` in a `layer`, counted from 0 in its stack."""

    index: int
    layer: int
    heads: int
    width: int
    kind: Literal["self", "cross"]
    stack: Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Prefix:
    """One site's prefix: `key` and `value`, each (B or 1, H, P, D)."""

    key: torch.Tensor
    value: torch.Tensor

    @property
    def length(self) -> int:
        return self.key.shape[2]

    def before(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix in front of real keys and values (B, H, S, D): two (B, H, P + S, D)."""
        return torch.cat((_fit(self.key, key), key), 2), torch.cat((_fit(self.value, value), value), 2)


def _fit(prefix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The prefix with the batch size and type of `like`.

    Beam search and several return sequences repeat each row of the batch in place; the prefixes follow.
    """
    if prefix.shape[0] != 1 and prefix.shape[0] != like.shape[0]:
        if like.shape[0] % prefix.shape[0]:
            raise ModelError(
                f"expected one prefix or one for each of {like.shape[0]} rows, found {prefix.shape[0]}",
                "set the prefixes of this very batch before the forward",
            )
        prefix = prefix.repeat_interleave(like.shape[0] // prefix.shape[0], 0)
    return prefix.expand(like.shape[0], -1, -1, -1).to(like.dtype)


@dataclass
class _Call:
    """One attention call as seen while recording: keys and values (B, H, S, D) before any repetition of heads."""

    module: nn.Module
    key: torch.Tensor
    value: torch.Tensor
    causal: bool


@dataclass
class Slot:
    """What an attention module knows: its controller, and its sites in call order (several where layers share it)."""

    injection: KeyValueInjection
    sites: list[int] = field(default_factory=list)
    turn: int = 0

    def prefix(self) -> Prefix | None:
        """The prefix of this call, or None."""
        prefixes = self.injection.prefixes
        if prefixes is None:
            return None
        if len(self.sites) == 1:
            return prefixes[self.sites[0]]
        self.turn += 1
        return prefixes[self.sites[(self.turn - 1) % len(self.sites)]]

    @property
    def recording(self) -> bool:
        return self.injection.calls is not None

    def record(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> None:
        assert self.injection.calls is not None
        self.injection.calls.append(_Call(module, key, value, causal))


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The SDPA attention of transformers, with the module's prefix in front of its keys and values if it has one."""
    if packing is not None:
        query, key, value = map(packing.unpack_heads, (query, key, value))
        attention_mask = packing.visible
    slot: Slot | None = module.__dict__.get(_SLOT)
    if slot is not None:
        causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))
        if slot.recording:
            _check_runs_as_sdpa(module, kwargs)
            slot.record(module, key, value, causal=causal)
        prefix = slot.prefix()
        if prefix is not None:
            length, queries, keys = prefix.length, query.shape[2], key.shape[2]
            if attention_mask is not None:  # True or 0 means visible
                visible = True if attention_mask.dtype == torch.bool else 0.0
                attention_mask = F.pad(attention_mask, (length, 0), value=visible)
            elif causal and queries > 1:  # SDPA would align its own causal mask to the prefix
                seen = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril()
                attention_mask = F.pad(seen, (length, 0), value=True)[None, None]
            if position_bias is not None:
                bias = slot.injection.positions.prefix_bias(module, queries, keys, causal=causal)
                padded = F.pad(position_bias, (length, 0))
                position_bias = padded if bias is None else torch.cat((bias, position_bias), 3)
            key, value = prefix.before(key, value)  # before key/value heads are repeated for the query heads
            is_causal = False
    output, weights = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        position_bias=position_bias,
        **kwargs,
    )
    return output if packing is None else packing.pack(output), weights


def _check_runs_as_sdpa(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    for name, what in (("softcap", "soft-capped scores"), ("s_aux", "attention sinks")):
        if kwargs.get(name) is not None:
            raise ModelError(
                f"expected plain softmax attention, found {what} in {type(module).__name__}",
                "choose a model without them; such attention cannot run as torch's SDPA",
            )


class KeyValueInjection:
    """Controls the prefixes of one transformers model; at most one controller a model at a time.

    `dummy_inputs` is a small batch that the model accepts; one forward of it finds the sites. Cross-attention
    counts as a site only with `cross`. Until `set` is called, and after `clear`, the model computes exactly what it
    did before; `remove` takes everything off again.

    Gradient checkpointing computes the forward again during backward and reads the prefix again, so don't call
    `set` between a forward and its backward. Not for `DataParallel` replicas or concurrent forwards of one model.
    Raises: ModelError for a model whose attention cannot be reached.
    """

    def __init__(self, model: nn.Module, dummy_inputs: Mapping[str, Any], *, cross: bool = False):
        if not isinstance(model, PreTrainedModel):
            raise ModelError(
                f"expected a transformers model, found {type(model).__name__}",
                "pass the PreTrainedModel itself, not a wrapper around it",
            )
        if any(_SLOT in module.__dict__ for module in model.modules()):
            raise ModelError(
                f"this {type(model).__name__} already has a key/value injection", "use that one, or remove() it first"
            )
        self.model = model
        self.sites: list[AttentionSite] = []
        self.prefixes: list[Prefix | None] | None = None
        self.calls: list[_Call] | None = None
        self.positions = PositionShift(model)
        self._implementations = [(config, config._attn_implementation) for config in _configs(model)]
        self._patched: list[tuple[nn.Module, Any]] = []
        self._shared: list[Slot] = []
        self._reset = model.base_model.register_forward_pre_hook(self._reset_turns)
        self._installed = True
        try:
            self._install()
            self._discover(dummy_inputs, cross)
        except BaseException:
            self.remove()
            raise

    @property
    def supports_shift(self) -> bool:
        """Whether `set(..., shift_positions=True)` is possible in this family."""
        return self.positions.supported

    def set(self, prefix: Sequence[KeyValue], *, shift_positions: bool = False) -> None:
        """Inject from now on one (K, V) a site, each (B or 1, H, P, D), or (None, None) to leave a site alone.

        With n < B prefixes and B a multiple of n, prefix i serves rows i·B/n to (i+1)·B/n - 1: the order in which
        `generate` repeats its rows for beams. With `shift_positions` the real tokens move to positions P, P + 1, …
        as under stock prefix tuning; without, they keep the positions they were pretrained with. Raises: ModelError
        for wrong shapes, or a family without shift.
        """
        if not self._installed:
            raise ModelError("this key/value injection was removed from its model", "make a new KeyValueInjection")
        if len(prefix) != len(self.sites):
            raise ModelError(
                f"expected one (key, value) for each of {len(self.sites)} attention sites, found {len(prefix)}",
                "give (None, None) for sites without a prefix",
            )
        prefixes = [_checked(site, *pair) for site, pair in zip(self.sites, prefix, strict=True)]
        lengths = {p.length for p in prefixes if p is not None}
        if shift_positions and len(lengths) > 1:
            raise ModelError(
                f"expected prefixes of one length to shift positions by, found lengths {sorted(lengths)}",
                "use one length, or leave shift_positions off",
            )
        self.positions.move(lengths.pop() if shift_positions and lengths else 0)
        self.prefixes = prefixes
        self._reset_turns()

    def clear(self) -> None:
        """Inject nothing, until the next `set`."""
        self.prefixes = None
        self.positions.move(0)

    def record(self, inputs: Mapping[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values (B, H, S, D) of each site in a plain forward (no prefix, eval mode, no gradient).

        They are what the attention itself receives: in rotary models the keys are already rotated to their
        positions. Padding rows are included.
        """
        return [(call.key, call.value) for call in self._trace(inputs)]

    def remove(self) -> None:
        """Take everything off the model, which is then exactly as before. Idempotent."""
        if not self._installed:
            return
        self.clear()
        self._installed = False
        self.positions.remove()
        self._reset.remove()
        for module, forward in self._patched:
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward
        for module in self.model.modules():
            module.__dict__.pop(_SLOT, None)
        for config, implementation in self._implementations:
            config._attn_implementation_internal = implementation

    def _install(self) -> None:
        for module in self.model.modules():
            slot = module.__dict__[_SLOT] = Slot(self)
            patch = patch_of(module)
            if patch is not None:
                self._patched.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = partial(patch, slot, module, module.forward)
        if self._patched:
            return
        AttentionInterface.register(IMPLEMENTATION, attention_forward)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without it a model silently gets no mask
        self.model.set_attn_implementation(IMPLEMENTATION)
        if self.model.config._attn_implementation != IMPLEMENTATION:
            raise ModelError(
                f"{self.model.config.model_type} has its own attention code, which does not go through transformers' "
                "AttentionInterface, and handful has no patch for it",
                "choose another model: `handful models` lists the families that work",
            )

    def _discover(self, dummy_inputs: Mapping[str, Any], cross: bool) -> None:
        paired = self.model.config.is_encoder_decoder
        encoder = set(self.model.get_encoder().modules()) if paired else set()
        layers = {"encoder": -1, "decoder": -1}
        for call in self._trace(dummy_inputs):
            stack = "decoder" if (call.module not in encoder if paired else call.causal) else "encoder"
            # a decoder looks back at itself and, without a causal mask, at the whole source
            kind = "cross" if paired and stack == "decoder" and not call.causal else "self"
            layers[stack] += kind == "self"
            if kind == "self" or cross:
                _, heads, _, width = call.key.shape
                call.module.__dict__[_SLOT].sites.append(len(self.sites))
                self.sites.append(AttentionSite(len(self.sites), layers[stack], heads, width, kind, stack))
        if not self.sites:
            raise ModelError(
                f"expected a model with attention, found none in a forward of {type(self.model).__name__}",
                "choose a transformer; the dummy inputs must run its attention layers",
            )
        for module in self.model.modules():
            if not module.__dict__[_SLOT].sites:
                del module.__dict__[_SLOT]
            elif len(module.__dict__[_SLOT].sites) > 1:
                self._shared.append(module.__dict__[_SLOT])

    def _trace(self, inputs: Mapping[str, Any]) -> list[_Call]:
        """The attention calls of one plain forward, in order."""
        prefixes, shift = self.prefixes, self.positions.length
        training = [module for module in self.model.modules() if module.training]
        self.clear()
        self.calls = calls = []
        try:
            with torch.no_grad():
                self.model.eval()(**inputs)
        finally:
            self.calls, self.prefixes = None, prefixes
            self.positions.move(shift)
            for module in training:
                module.training = True
        return calls

    def _reset_turns(self, *_: Any) -> None:
        """A forward that was broken off must not leave shared modules in the middle of their layers."""
        for slot in self._shared:
            slot.turn = 0


def _checked(site: AttentionSite, key: torch.Tensor | None, value: torch.Tensor | None) -> Prefix | None:
    if key is None and value is None:
        return None
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (key, value)]
    if key is None or value is None or shapes != [(*key.shape[:1], site.heads, *key.shape[2:3], site.width)] * 2:
        raise ModelError(
            f"expected key and value of shape (rows, {site.heads}, length, {site.width}) at attention site "
            f"{site.index}, found {shapes[0]} and {shapes[1]}",
            "give both, or (None, None)",
        )
    return Prefix(key, value)


def _configs(model: PreTrainedModel) -> Iterable[PreTrainedConfig]:
    """The model's configurations at any depth, each once."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            nested = (getattr(config, name, None) for name in config.sub_configs)
            waiting += [sub for sub in nested if sub is not None]
    return found.values()
