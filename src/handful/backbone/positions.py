"""Shifted positions: the real tokens move up by P, as if the prefix were P earlier tokens in a cache.

Stock prefix tuning puts its prefix into the cache, so it always shifts; adapters that are to be exported to it are
trained the same way. How positions are made differs by family: see `Family.positions`, which families that stock
prefix tuning cannot serve do not have.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from handful.backbone.families import family_of
from handful.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PositionShift:
    """The shift of one model; `move(P)` sets it, `move(0)` takes it back.

    In encoder-decoder models only the decoder's absolute positions move. T5 has none: there `prefix_bias` gives
    the prefix the bias of tokens that stand in front.
    """

    def __init__(self, model: PreTrainedModel):
        base = model.base_model
        self._config = model.config
        self._kind = family_of(model.config.model_type).positions
        self.length = 0
        self._hook = None
        self._tables: dict[Any, int] = {}
        self._biases: dict[bool, Any] = {}
        self._names: tuple[str, ...] = ()
        if self._kind in ("absolute", "padding", "rotary"):
            self._names = tuple(inspect.signature(base.forward).parameters)
            self._hook = base.register_forward_pre_hook(self._shift_inputs, with_kwargs=True)
        elif self._kind == "offset":
            encoder = set(model.get_encoder().modules()) if self._config.is_encoder_decoder else set()
            tables: list[Any] = [m for m in base.modules() if isinstance(m, nn.Embedding) and hasattr(m, "offset")]
            self._tables = {table: table.offset for table in tables if table not in encoder}
        elif self._kind == "bias":
            owners = (m for m in base.modules() if getattr(m, "has_relative_attention_bias", False))
            self._biases = {bool(owner.is_decoder): owner for owner in owners}

    @property
    def supported(self) -> bool:
        return self._hook is not None or bool(self._tables or self._biases)

    def move(self, length: int) -> None:
        """Shift by `length` (P) positions from now on. Raises: ModelError for a family that cannot."""
        if length and not self.supported:
            raise ModelError(
                f"expected a family whose positions stock prefix tuning shifts, found {self._config.model_type!r}",
                "leave shift_positions off; only an export as a stock prefix-tuning adapter needs it",
            )
        self.length = length
        for table, offset in self._tables.items():
            table.offset = offset + length

    def remove(self) -> None:
        self.move(0)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def prefix_bias(self, module: nn.Module, queries: int, keys: int, *, causal: bool) -> torch.Tensor | None:
        """T5's position bias (1, H, queries, P) of the prefix columns; None where the prefix gets no bias."""
        decoder = bool(getattr(module, "is_decoder", False))
        if not self.length or decoder not in self._biases or decoder != causal:  # cross-attention knows no distances
            return None
        total = self.length + keys
        bias = self._biases[decoder].compute_bias(queries, total, past_seen_tokens=total - queries)
        return bias[..., : self.length]

    def unshifted(self, ids: torch.Tensor) -> torch.Tensor:
        """The `position_ids` (B, S) that token ids (B, S) get by themselves in a family of kind absolute or padding."""
        if self._kind == "padding":
            real = ids.ne(self._config.pad_token_id).long()
            return real.cumsum(1) * real + self._config.pad_token_id
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

    def _shift_inputs(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Forward pre-hook of the base model: the same inputs with shifted `position_ids`."""
        if not self.length:
            return None
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        given = kwargs.get("position_ids")
        kwargs["position_ids"] = self._positions(kwargs) if given is None else given + self.length
        return (), kwargs

    def _positions(self, kwargs: dict[str, Any]) -> torch.Tensor:
        ids, embeddings, cache = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "past_key_values"))
        source = ids if ids is not None else embeddings
        assert source is not None
        first = self.length + (cache.get_seq_length() if cache is not None else 0)
        tokens, padding = source.shape[1], self._config.pad_token_id
        limit = None if self._kind == "rotary" else self._config.max_position_embeddings
        if self._kind == "padding":
            limit -= padding + 1
        if limit is not None and first + tokens > limit:
            raise ModelError(
                f"expected at most {limit} positions, found {tokens} tokens shifted by {first}",
                f"shorten the texts to {limit - first} tokens, or leave shift_positions off",
            )
        if self._kind != "padding":
            return torch.arange(first, first + tokens, device=source.device)[None]
        if ids is None:
            return torch.arange(first, first + tokens, device=source.device)[None] + padding + 1
        real = ids.ne(padding).long()
        return (real.cumsum(1) + first) * real + padding
