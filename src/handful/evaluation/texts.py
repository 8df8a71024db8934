"""Predictions for texts of any number, a chunk at a time: memory does not grow with the number of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import final

import numpy as np
import torch

from handful.data.batching import EncodedRows
from handful.data.coverage import NO_TEXTS, Coverage
from handful.data.task import Example, Task
from handful.errors import DataError
from handful.evaluation.evaluate import encode_for
from handful.evaluation.predict import Predictions, num_points, predict_rows
from handful.evaluation.text.generate import GenerationOptions, write
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter

CHUNK = 1024
"""Rows that are tokenised and predicted together. Rows of like length share a batch only within a chunk."""


@final
@dataclass(frozen=True)
class PredictedTexts:
    """A chunk of rows with their predictions. Rows without tokens have none: their scores are NaN.

    `disagreement` (N,) is there where it was asked for. `truncated` counts rows that were longer than the
    maximum, and `coverage` says how many of the tokens the model knows.
    """

    rows: Sequence[Example]
    predictions: Predictions
    truncated: int
    disagreement: np.ndarray | None = None
    coverage: Coverage = NO_TEXTS


@final
@dataclass(frozen=True)
class GeneratedTexts:
    """A chunk of rows with the text generated for each; None for rows without tokens."""

    rows: Sequence[Example]
    texts: Sequence[str | None]
    truncated: int
    coverage: Coverage = NO_TEXTS


def predict_texts(
    adapter: AbstractAdapter,
    rows: Iterable[Example],
    task: Task,
    *,
    max_length: int,
    predictor: str,
    draws: int,
    generator: Callable[[], torch.Generator],
    disagreement: bool = False,
) -> Iterator[PredictedTexts]:
    """Predict rows under a predictor and, with `disagreement`, under `draws` random points of the simplex as well.

    `generator` makes a generator of the draws. It is called twice, so that asking for the disagreement changes no
    prediction. Raises: ConfigError for an unknown predictor, DataError for a row of the wrong shape.
    """
    own, of_disagreement = generator(), generator()

    def scores(
        size: int, readable: list[int], encoded: EncodedRows, by: str, draws_from: torch.Generator
    ) -> Predictions:
        found = np.full((num_points(adapter, by, draws), size, task.num_outputs), np.nan)
        if readable:
            options = {"predictor": by, "draws": draws, "generator": draws_from}
            found[:, readable] = predict_rows(adapter, encoded, task.kind, **options).scores
        return Predictions(found, task.kind, adapter.label_threshold)

    for chunk in _chunks(rows):
        readable, encoded = _encode(adapter, chunk, task, max_length)
        part = len(chunk), readable, encoded
        spread = scores(*part, "ensemble", of_disagreement).disagreement if disagreement else None
        yield PredictedTexts(chunk, scores(*part, predictor, own), encoded.truncated, spread, encoded.coverage)


def generate_texts(
    adapter: AbstractHeadedAdapter,
    rows: Iterable[Example],
    task: Task,
    options: GenerationOptions,
    *,
    max_length: int,
    vertex: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[GeneratedTexts]:
    """Generate a text for each row, at the midpoint or at a vertex. `on_progress` hears how many rows are done."""
    done = 0
    for chunk in _chunks(rows):
        readable, encoded = _encode(adapter, chunk, task, max_length, options)
        texts: list[str | None] = [None] * len(chunk)
        before = done
        written = write(
            adapter,
            encoded,
            options,
            vertex=vertex,
            on_progress=lambda count, before=before: on_progress(before + count),
        )
        for place, text in zip(readable, written, strict=True):
            texts[place] = text
        done += len(chunk)
        yield GeneratedTexts(chunk, texts, encoded.truncated, encoded.coverage)


def _chunks(rows: Iterable[Example]) -> Iterator[tuple[Example, ...]]:
    rows = iter(rows)
    while chunk := tuple(islice(rows, CHUNK)):
        yield chunk


def _encode(
    adapter: AbstractAdapter,
    rows: Sequence[Example],
    task: Task,
    max_length: int,
    generation: GenerationOptions | None = None,
) -> tuple[list[int], EncodedRows]:
    """The places of the rows that have tokens of their own, and these rows tokenised, under the task's instruction."""
    _check_shape(rows, task)
    given = [place for place, row in enumerate(rows) if not is_empty(row)]
    read = [rows[place] for place in given]
    texts = [replace(row, label=None, instruction=row.instruction or task.instruction) for row in read]
    encoded = encode_for(adapter, texts, task, max_length, generation, to_write=generation is not None)
    if generation is not None:
        return given, encoded
    marks = [adapter.backbone.tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)]
    kept = [index for index, row in enumerate(texts) if encoded.lengths[index] > marks[row.text_pair is not None]]
    return [given[index] for index in kept], encoded.subset(kept)


def _check_shape(rows: Sequence[Example], task: Task) -> None:
    """Raises: DataError for a pair where the task is of single texts, and for one text where it is of pairs."""
    pairs = task.objective.pairs
    if pairs is None and task.columns:
        pairs = task.columns.text_pair is not None
    if task.members or pairs is None:
        return  # rows of several kinds, or of one that nothing says
    for row in rows:
        if row.text_pair is not None and not pairs:
            raise DataError(
                f"{row.source}: expected a single text, found a pair: the run predicts single texts",
                "give a list of texts; join the two where both are to be read",
            )
        if row.text_pair is None and pairs:
            raise DataError(
                f"{row.source}: expected a pair of texts, found one: the run predicts pairs",
                "give every row a second text",
            )


def is_empty(row: Example) -> bool:
    """Whether a row lacks a text, or a pair one of its texts."""
    return not row.text.strip() or (row.text_pair is not None and not row.text_pair.strip())
