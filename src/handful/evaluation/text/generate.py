"""What a language model writes through an adapter, and how probable it finds what it should write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F

from handful.data.batching import EncodedRows, plan_batches
from handful.errors import ConfigError
from handful.methods.base import AbstractAdapter, convert_settings, setting
from handful.methods.head import AbstractHeadedAdapter
from handful.objectives.generation import token_targets

_PROTOCOL = "sheet 3, ours"


@final
@dataclass(frozen=True)
class GenerationOptions:
    """How records are shown to a language model, and how it writes. The paper's values are not known to us."""

    name: ClassVar[str] = "generation"

    beams: Annotated[int, setting("beams of the search; 1 is greedy", source=_PROTOCOL, ge=1, le=64)] = 5
    length_penalty: Annotated[float, setting("exponent of the length that a beam's score is divided by")] = 1.0
    max_new_tokens: Annotated[int, setting("most tokens written", source=_PROTOCOL, unit="tokens", ge=1, le=4096)] = 128
    no_repeat_ngram_size: Annotated[
        int, setting("n-grams of this size are written once at most; 0: no such rule", source=_PROTOCOL, ge=0)
    ] = 0
    target_length: Annotated[
        int, setting("tokens kept of a reference in training, the end token included", unit="tokens", ge=2)
    ] = 128
    references: Annotated[
        Literal["all", "one"], setting("train on every reference of a record, or on one that the seed draws")
    ] = "all"
    source_prefix: Annotated[str, setting("put in front of every source, such as 'summarize: '")] = ""
    separator: Annotated[str, setting("between source and text, for models without an encoder")] = "\n"

    def __post_init__(self) -> None:
        convert_settings(self)

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def decoding(self) -> dict[str, Any]:
        """The arguments of transformers' `GenerationConfig`, with what a checkpoint might otherwise add of its own."""
        return {
            "num_beams": self.beams, "length_penalty": self.length_penalty, "max_new_tokens": self.max_new_tokens,
            "no_repeat_ngram_size": self.no_repeat_ngram_size, "do_sample": False,
            "early_stopping": False, "min_length": 0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
            "encoder_no_repeat_ngram_size": 0,
        }  # fmt: skip


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
