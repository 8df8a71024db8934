"""The final score: the only place where test rows are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from handful.backbone.load import Backbone
from handful.data.batching import EncodedRows, encode, encode_generation, encode_mixed
from handful.data.coverage import NO_TEXTS, Coverage
from handful.data.task import Example, Task, TestRows, as_member
from handful.errors import ConfigError, DataError
from handful.evaluation.baseline import Baseline, constant_baseline
from handful.evaluation.estimate import Estimate, bootstrap_score
from handful.evaluation.metrics import get_metric
from handful.evaluation.predict import Predictions, predict_rows
from handful.evaluation.text.generate import GenerationOptions, write, writing_vertex
from handful.evaluation.text.metrics import usual_metrics
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.prompt import LEAST_ROOM


@final
@dataclass(frozen=True)
class Scores:
    """Scores of labelled rows, each with its interval over rows; `truncated` counts rows that were cut, `longest` is
    the number of tokens of the longest before that, and `coverage` says how many the model knows.

    `baseline` is that of the training rows, where these were given; `untested` names the classes that none of the rows
    belongs to.
    """

    estimates: dict[str, Estimate]
    predictions: Predictions
    targets: np.ndarray
    sources: tuple[str, ...]
    truncated: int
    baseline: Baseline | None = None
    untested: tuple[str, ...] = ()
    longest: int = 0
    coverage: Coverage = NO_TEXTS


def evaluate(
    adapter: AbstractAdapter,
    rows: TestRows | Sequence[Example],
    task: Task,
    *,
    max_length: int,
    predictor: str = "midpoint",
    draws: int = 10,
    generator: torch.Generator,
    member: Task | None = None,
    train: Sequence[Example] = (),
) -> Scores:
    """The task's metric and the usual others on these rows, with 95 % intervals.

    `member` is the one of a task of tasks that all rows belong to: it is scored by its metrics, among its labels.
    `train` are the training rows, whose most usual answer is scored beside the model (`Baseline`).
    Raises: DataError where a row has no label.
    """
    examples = rows._examples if isinstance(rows, TestRows) else tuple(rows)
    encoded = encode_for(adapter, examples, task, max_length)
    if encoded.labels is None:
        raise DataError("expected labelled rows to evaluate, found none with a label")
    predictions = predict_rows(adapter, encoded, task.kind, predictor=predictor, draws=draws, generator=generator)
    targets = encoded.labels.numpy()
    if member:
        labels = task.label_ranges[member.name]
        predictions = Predictions(predictions.scores[..., labels.start : labels.stop], member.kind)
        targets = targets - labels.start
        train = [as_member(row, "", -labels.start) for row in train if row.task == member.name]
    sources = tuple(row.source for row in examples)
    scored = member or task
    estimates = score_predictions(predictions, targets, scored, generator)
    baseline = constant_baseline(scored, train, targets, metric_names(scored)) if train else None
    return Scores(
        estimates, predictions, targets, sources, encoded.truncated, baseline, _without_rows(scored, targets.tolist()),
        longest=encoded.longest, coverage=encoded.coverage,
    )  # fmt: skip


def untested_classes(task: Task) -> tuple[str, ...]:
    """The classes that no test row belongs to; of a task of tasks as "member: label". None without test rows.

    Nothing else of the test rows is looked at, so that it can be said before anything is trained.
    """
    parts = task.members or (task,)
    names = [
        f"{part.name}: {label}" if task.members else label
        for part in parts
        for label in (_without_rows(part, [row.label for row in part.test._examples]) if part.test else ())
    ]
    return tuple(names)


def _without_rows(task: Task, targets: Sequence[int | float | None]) -> tuple[str, ...]:
    present = task.objective.classes_in(targets)
    return tuple(label for index, label in enumerate(task.labels) if index not in present)


def metric_names(task: Task) -> list[str]:
    """The task's own metric first, then the usual ones for its kind."""
    return list(dict.fromkeys((task.metric, *task.objective.metrics)))


def score_predictions(
    predictions: Predictions, targets: np.ndarray, task: Task, generator: torch.Generator
) -> dict[str, Estimate]:
    """Every metric of `metric_names` with its bootstrap interval over rows."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return {
        name: bootstrap_score(
            get_metric(name, task.kind), predictions.needed_by(name), targets, generator=np.random.default_rng(seed)
        )
        for name in metric_names(task)
    }


def encode_for(
    adapter: AbstractAdapter,
    rows: Sequence[Example],
    task: Task,
    max_length: int,
    generation: GenerationOptions | None = None,
    *,
    to_write: bool = False,
) -> EncodedRows:
    """Rows tokenised for an adapter's backbone, cut to the positions it leaves them.

    Of generation: with the references to learn from, or `to_write` without them.
    """
    longest = longest_row(adapter, max_length, generation)
    return encode_rows(adapter.backbone, rows, task, longest, generation, to_write=to_write)


def encode_rows(
    backbone: Backbone,
    rows: Sequence[Example],
    task: Task,
    longest: int,
    generation: GenerationOptions | None = None,
    *,
    to_write: bool = False,
) -> EncodedRows:
    """Rows tokenised for a backbone; see `encode_for`. References are cut to what its decoder has positions for."""
    if generation is None and task.members:
        return encode_mixed(rows, backbone.tokenizer, longest)
    if generation is None:
        return encode(rows, backbone.tokenizer, longest, kind=task.kind)
    return encode_generation(
        rows, backbone.tokenizer, longest, encoder_decoder=backbone.kind == "encoder-decoder",
        prefix=generation.source_prefix, separator=generation.separator,
        target_length=None if to_write else longest_reference(backbone, generation),
    )  # fmt: skip


def longest_reference(backbone: Backbone, generation: GenerationOptions) -> int:
    """Most tokens of a reference to learn, the end token included: what is asked for, or the decoder has room for."""
    return min(generation.target_length, backbone.longest_text)


@final
@dataclass(frozen=True)
class Written:
    """Texts written for records, and their scores with intervals over records."""

    estimates: dict[str, Estimate]
    texts: tuple[str, ...]
    records: tuple[Example, ...]
    truncated: int
    longest: int = 0
    coverage: Coverage = NO_TEXTS

    @property
    def sources(self) -> tuple[str, ...]:
        """Where each record came from."""
        return tuple(record.source for record in self.records)


def evaluate_writing(
    adapter: AbstractHeadedAdapter,
    rows: TestRows | Sequence[Example],
    task: Task,
    generation: GenerationOptions,
    *,
    max_length: int,
    predictor: str = "midpoint",
    generator: torch.Generator,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Texts for these records by the run's decoding, and every metric of `usual_metrics`, with 95 % intervals.

    Raises: DataError where a record has no reference.
    """
    records = rows._examples if isinstance(rows, TestRows) else tuple(rows)
    if bare := [record for record in records if not record.references]:
        raise DataError(f"{bare[0].source}: expected a reference to score against, found none")
    encoded = encode_for(adapter, records, task, max_length, generation, to_write=True)
    texts = write(adapter, encoded, generation, vertex=writing_vertex(predictor), on_progress=on_progress)
    seed = int(torch.randint(2**62, (), generator=generator))
    estimates = {
        name: bootstrap_score(name, texts, records, generator=np.random.default_rng(seed))
        for name in usual_metrics(task.metric, records)
    }
    return Written(
        estimates, tuple(texts), tuple(records), encoded.truncated, longest=encoded.longest, coverage=encoded.coverage
    )


def longest_row(adapter: AbstractAdapter, max_length: int, generation: GenerationOptions | None = None) -> int:
    """Most tokens of a row, of generation of a source: `max_length`, or what backbone and adapter leave.

    Raises: ConfigError where that is next to nothing, a text could be longer than the decoder has positions, or an
    encoder-decoder is given a decoder's options.
    """
    backbone, reserved = adapter.backbone, adapter.reserved_positions
    room = backbone.max_length - reserved
    if generation is None:
        return min(max_length, room)
    if backbone.kind != "encoder-decoder":  # source and text stand in one sequence
        text = max(generation.target_length, generation.max_new_tokens)
        room -= text
        if room < LEAST_ROOM:
            ahead = f" behind {reserved} of the method's" if reserved else ""
            raise ConfigError(
                f"generation: a text of up to {text} tokens leaves {max(room, 0)} of the model's {backbone.max_length} "
                f"positions for its source{ahead}, expected at least {LEAST_ROOM}",
                "lower generation.target_length and generation.max_new_tokens, or what the method puts in front",
            )
    elif generation.separator != GenerationOptions.separator:
        raise ConfigError(
            f"generation.separator: found {generation.separator!r}, but an encoder-decoder reads the source by itself",
            "leave it out",
        )
    elif generation.max_new_tokens > backbone.longest_text:
        raise ConfigError(
            f"generation.max_new_tokens: {generation.max_new_tokens}, but the model can write "
            f"{backbone.longest_text} tokens at most",
            "lower it",
        )
    return min(max_length, room)
