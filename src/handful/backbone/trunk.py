"""Compute the layers below an adapter once, and hand their output to every later forward.

In few-shot work the same hundred rows pass through the same frozen lower layers at every epoch. `TrunkCache` keeps
the output of layer `stop − 1` for each row; while it is in use those layers cost nothing, forward or backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from handful.backbone.load import Backbone
from handful.data.batching import Batch, EncodedRows, plan_batches
from handful.errors import ModelError


class _TrunkDone(Exception):
    """Leaves a forward once the last cached layer has run."""


@final
class TrunkCache:
    """The hidden states (S, D) of every row behind the layers below `stop`.

    `run(batch)` must be the adapter's own forward, so that shifted positions and the like are part of what is kept.
    Use: `with cache: cache.choose(batch); adapter(batch)`.
    """

    def __init__(self, backbone: Backbone, rows: EncodedRows, stop: int, run: Callable[[Batch], Any]):
        self.backbone, self.layers = backbone, layer_lists(backbone)[0][:stop]
        self._hidden: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        self._current = torch.empty(0)
        self._others: tuple[Any, ...] | None = None
        handle = self.layers[-1].register_forward_hook(self._capture)
        try:
            with torch.no_grad():
                for indices in plan_batches(rows.lengths, 64):
                    batch = rows.batch(indices).to(backbone.device)
                    with suppress(_TrunkDone):
                        run(batch)
                    packing = backbone.packing(batch.inputs)
                    states = self._current if packing is None else packing.unpack(self._current)
                    for row, hidden in zip(indices, states, strict=True):
                        self._hidden[row] = hidden[: rows.lengths[row]].clone()
        finally:
            handle.remove()

    def _capture(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._current, self._others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        raise _TrunkDone

    def choose(self, batch: Batch) -> None:
        """Set the rows of the next forwards."""
        states = nn.utils.rnn.pad_sequence([self._hidden[row] for row in batch.rows.tolist()], batch_first=True)
        packing = self.backbone.packing(batch.inputs)
        self._current = states if packing is None else packing.pack(states)

    def __enter__(self) -> TrunkCache:
        for layer in self.layers:
            layer.forward = self._skip
        return self

    def __exit__(self, *exception: object) -> None:
        for layer in self.layers:
            del layer.forward

    def _skip(self, *arguments: Any, **named: Any) -> Any:
        return self._current if self._others is None else (self._current, *self._others)

    @property
    def complete(self) -> bool:
        """Whether the layers pass on nothing but the hidden states (T5's also pass on a position bias)."""
        return all(other is None for other in self._others or ())


@contextmanager
def recomputing(backbone: Backbone) -> Iterator[None]:
    """Gradient checkpointing: layers keep only their inputs, and are computed again in the backward pass.

    Each is computed with what the adapter had installed for its own forward, whatever forwards came after it.
    Not transformers' own, which needs the layers in training mode: in families whose layers drop out by themselves
    (OPT, T5, BART) that turns dropout on too. Raises: ModelError for a model without a list of layers, such as ALBERT.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _reinstalled(backbone.installed)

    layers = [layer for layers in layer_lists(backbone) for layer in layers]
    if not layers:
        raise ModelError(
            f"gradient checkpointing needs a model with a list of layers, found none in {backbone.family}",
            "leave training.gradient_checkpointing off, or choose another model",
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


@contextmanager
def _reinstalled(put: Callable[[], object] | None) -> Iterator[None]:
    """What one forward had in the backbone, there once more."""
    if put is not None:
        put()
    yield


def layer_lists(backbone: Backbone) -> list[nn.ModuleList]:
    """The lists of `num_layers` modules of one class: one for most models, two for an encoder with a decoder."""
    return [
        module
        for module in backbone.model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == backbone.num_layers
        and len({type(layer) for layer in module}) == 1
    ]


def trunk_cache(
    backbone: Backbone, rows: EncodedRows, stop: int | None, run: Callable[[Batch], Any]
) -> TrunkCache | None:
    """A cache for these rows, or None where there is nothing to keep or the model's layers pass on more than states.

    The cache is tried on one batch against the plain forward before it is trusted.
    """
    if not stop or len(layer_lists(backbone)) != 1 or not len(rows):
        return None
    cache = TrunkCache(backbone, rows, stop, run)
    if not cache.complete:
        return None
    batch = rows.batch(plan_batches(rows.lengths, 4)[0]).to(backbone.device)
    with torch.no_grad():
        expected = run(batch)
        with cache:
            cache.choose(batch)
            found = run(batch)
    return cache if torch.allclose(expected, found, rtol=1e-4, atol=1e-4) else None
