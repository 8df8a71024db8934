"""What a language model writes through an adapter, and how probable it finds what it should write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from handful.data.batching import EncodedRows, plan_batches
from handful.errors import ConfigError
from handful.evaluation.text.options import GenerationOptions
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter
from handful.objectives.generation import token_targets


def writing_vertex(predictor: str) -> int | None:
    """The vertex at which a predictor writes; None for the midpoint. Raises: ConfigError for any other predictor."""
    if predictor == "midpoint":
        return None
    if not re.fullmatch(r"vertex:[0-9]{1,6}", predictor):
        raise ConfigError(
            f"run.predictor: texts are written at one point of a simplex, found {predictor!r}",
            "use 'midpoint' or 'vertex:N'",
        )
    return int(predictor.removeprefix("vertex:"))


@torch.no_grad()
def token_nll(
    adapter: AbstractAdapter, rows: EncodedRows, batch_size: int = 32, *, only: Sequence[int] | None = None
) -> float:
    """Mean negative log-likelihood of a reference's token, at the midpoint; rows with targets, or `only` some."""
    was_training = adapter.training
    total, count = 0.0, 0
    lengths, chosen = rows.lengths, range(len(rows)) if only is None else only
    for places in plan_batches([lengths[row] for row in chosen], batch_size):
        batch = rows.batch([chosen[place] for place in places]).to(adapter.backbone.device)
        assert batch.labels is not None
        targets = token_targets(batch.labels)
        with adapter.backbone.lent_to(adapter):
            adapter.eval()
            total += float(F.cross_entropy(adapter(batch).float(), targets, reduction="sum"))
            adapter.train(was_training)
        count += len(targets)
    return total / count


@torch.no_grad()
def write(
    adapter: AbstractHeadedAdapter,
    rows: EncodedRows,
    options: GenerationOptions,
    *,
    vertex: int | None = None,
    batch_size: int = 16,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """What the model writes for each row, at the midpoint or at a vertex; rows of like length go together.

    `on_progress` hears how many rows are done.
    """
    was_training = adapter.training
    texts, done = [""] * len(rows), 0
    for indices in plan_batches(rows.lengths, batch_size):
        batch = rows.batch(indices).to(adapter.backbone.device)
        with adapter.backbone.lent_to(adapter):
            adapter.eval()
            written = adapter.generate(batch, adapter.at(vertex=vertex), **options.decoding())
            adapter.train(was_training)
        for index, text in zip(
            indices, adapter.backbone.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True
        ):
            texts[index] = text.strip()
        done += len(indices)
        on_progress(done)
    return texts
