"""Key/value injection for families whose attention does not go through transformers' AttentionInterface.

A patch replaces the `forward` of one attention module. Without a prefix it calls the original; with one it computes
the same thing as the original, the prefix in front of keys and values, through SDPA. Attention weights are then not
returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from handful.backbone.attention import Slot

Patch = Callable[..., tuple[torch.Tensor, ...]]
"""(slot, module, original forward, *what the original takes) -> what the original returns."""


def deberta_v2_attention(
    slot: Slot,
    module: Any,
    original: Patch,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """DeBERTa-v2/v3: the content-to-position and position-to-content terms are 0 for the prefix.

    `hidden_states` (B, S, H·D); `attention_mask` (B, 1, S, S), nonzero where visible.
    """
    heads = module.num_attention_heads

    def split(states: torch.Tensor) -> torch.Tensor:
        return _split(states, heads)

    if slot.recording:
        slot.record(
            module, split(module.key_proj(hidden_states)), split(module.value_proj(hidden_states)), causal=False
        )
    prefix = slot.prefix()
    if prefix is None:
        return original(hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings)
    query = split(module.query_proj(hidden_states if query_states is None else query_states))
    key, value = split(module.key_proj(hidden_states)), split(module.value_proj(hidden_states))
    terms = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    bias = query.new_zeros(query.shape[:3] + key.shape[2:3])
    if module.relative_attention:
        relative = module.pos_dropout(rel_embeddings)
        flat = query.flatten(0, 1), key.flatten(0, 1)  # (B·H, S, D)
        bias = bias + module.disentangled_attention_bias(*flat, relative_pos, relative, terms).view_as(bias)
    bias = bias.masked_fill(~attention_mask.bool(), torch.finfo(bias.dtype).min)
    scale = (query.shape[-1] * terms) ** -0.5
    context = _attend(module, query, *prefix.before(key, value), F.pad(bias, (prefix.length, 0)), scale=scale)
    return context, None  # pyright: ignore[reportReturnType]


def mpnet_attention(
    slot: Slot,
    module: Any,
    original: Patch,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, ...]:
    """MPNet: the relative position bias is 0 for the prefix.

    `hidden_states` (B, S, H·D); `attention_mask` (B, 1, 1 or S, S), 0 where visible; `position_bias` (B, H, S, S).
    """

    def split(states: torch.Tensor) -> torch.Tensor:
        return _split(states, module.num_attention_heads)

    if slot.recording:
        slot.record(module, split(module.k(hidden_states)), split(module.v(hidden_states)), causal=False)
    prefix = slot.prefix()
    if prefix is None:
        return original(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
    query, key, value = (split(projection(hidden_states)) for projection in (module.q, module.k, module.v))
    biases = [bias for bias in (position_bias, attention_mask) if bias is not None]
    bias = F.pad(sum(biases[1:], biases[0]), (prefix.length, 0)) if biases else None
    return (module.o(_attend(module, query, *prefix.before(key, value), bias)),)


def _split(states: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, S, H·D) → (B, H, S, D); by `view`, as torch's TorchScript exporter fixes the sizes that `unflatten` sees."""
    return states.view(*states.shape[:2], heads, -1).transpose(1, 2)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention with an additive bias (B, H, S, P + S): (B, S, H·D)."""
    dropout = module.dropout.p if module.training else 0.0
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)
    return context.transpose(1, 2).flatten(2)


_PATCHES: dict[str, Patch] = {
    "transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": deberta_v2_attention,
    "transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention": mpnet_attention,
}


def patch_of(module: nn.Module) -> Patch | None:
    """The patch for this module's class, by full name: nothing is imported, and DeBERTa-v1's namesake doesn't match."""
    return _PATCHES.get(f"{type(module).__module__}.{type(module).__qualname__}")
