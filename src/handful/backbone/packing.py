"""Batches without padding: real tokens side by side, so that no layer computes anything for padding.

    (B, S) tokens, N of them real  →  (1, N);   for attention alone back to rows: (1, H, N, d) → (B, H, S, d)

Everything but attention works on one token at a time, so the numbers are those of the padded batch. Rows of a few
dozen tokens are a third to a half padding, and most of a step is spent in those layers.
Source: known as unpadding (Zeng et al. 2022, arXiv 2208.08124) and from ModernBERT; through `AttentionInterface` ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from handful.backbone.families import ROWS

PACKED_FAMILIES = frozenset(row.model_type for row in ROWS if row.packs)
"""Families whose layers learn nothing about places from where a token stands: positions are an input of the model,
and each layer's mask is the same and hides padding alone."""


@final
@dataclass(frozen=True)
class Packing:
    """Where the tokens of one batch go. `visible` (B, 1, 1, S) is True at real tokens."""

    visible: torch.Tensor
    real: torch.Tensor
    source: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> Packing:
        """The packing of a batch with this mask (B, S) of real tokens."""
        flat = mask.flatten().bool()
        # padding is filled with the first token: it costs less than zeros, and nothing looks at it
        return cls(flat.view(mask.shape)[:, None, None], flat.nonzero()[:, 0], (flat.cumsum(0) - 1) * flat)

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, S, …) → (1, N, …)."""
        return rows.flatten(0, 1).index_select(0, self.real)[None]

    def unpack(self, tokens: torch.Tensor) -> torch.Tensor:
        """(1, N, …) → (B, S, …), with anything at all in place of padding."""
        batch, _, _, length = self.visible.shape
        return tokens[0].index_select(0, self.source).unflatten(0, (batch, length))

    def unpack_heads(self, heads: torch.Tensor) -> torch.Tensor:
        """(1, H, N, d) → (B, H, S, d)."""
        return self.unpack(heads.transpose(1, 2)).transpose(1, 2)
