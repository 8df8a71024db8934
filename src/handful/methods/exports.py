"""What a trained adapter can be turned into for other libraries: plain data that a method names and its adapter makes.

`method.exports(backbone)` says before training which products there will be, `adapter.fold(product)` makes one, and the
formats in `handful.export` write them. A product:

- "merged weights": the backbone's model, an `nn.Module`, with everything that was trained inside folded into it;
- "smaller model": the same, with units and heads that are zero and can be taken out;
- "prefix": a `KeyValues` in front of those of attention;
- "peft state": a `PeftState` that stock PEFT loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import torch

from handful.backbone.attention import AttentionSite

if TYPE_CHECKING:
    from handful.backbone.load import Backbone

Product = Literal["merged weights", "smaller model", "prefix", "peft state"]
Exports = Mapping[Product, str | None]
"""Products with what stands in the way of each, such as the model's family; None where nothing does."""


@final
@dataclass(frozen=True)
class KeyValues:
    """A prefix (L, 2, H, P, d) of the deterministic predictor, its sites, and whether tokens move by P."""

    keys_values: torch.Tensor
    sites: Sequence[AttentionSite]
    shift: bool


@final
@dataclass(frozen=True)
class PeftState:
    """PEFT's configuration as JSON values, and tensors under the names of `save_pretrained`, of the deterministic
    predictor. `kind` says where they act: in layers, as a prefix or as a prompt.
    """

    kind: Literal["layers", "prefix", "prompt"]
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def prefix_state(prefix: torch.Tensor) -> PeftState:
    """PEFT's PREFIX_TUNING of a prefix (L, 2, H, P, d).

    Row p of `prompt_embeddings` (P, 2·L·H·d) holds, layer by layer, the key and the value of position p.
    """
    layers, _, heads, length, width = prefix.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "token_dim": heads * width,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }
    return PeftState("prefix", config, {"prompt_embeddings": prefix.permute(3, 0, 1, 2, 4).reshape(length, -1)})


def prompt_state(prompt: torch.Tensor, backbone: Backbone) -> PeftState:
    """PEFT's PROMPT_TUNING of a prompt (P, E).

    One submodule: by default PEFT stores a second prompt for the decoder of an encoder-decoder, and never reads it.
    """
    config = {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "num_virtual_tokens": len(prompt),
        "token_dim": prompt.shape[1],
        "num_layers": backbone.num_layers,
        "num_attention_heads": backbone.config.num_attention_heads,
        "num_transformer_submodules": 1,
    }
    return PeftState("prompt", config, {"prompt_embeddings": prompt})
