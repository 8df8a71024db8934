"""What a run will be, and what is wrong with it, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

from handful.backbone.load import Backbone
from handful.data.coverage import Coverage
from handful.data.split import Split
from handful.data.task import Example, Task
from handful.evaluation.evaluate import encode_rows, longest_reference, longest_row
from handful.methods.base import AbstractAdapter
from handful.runs.experiment import attach, check_task, make_split, open_skeleton
from handful.runs.spec import RunSpec


@final
@dataclass(frozen=True)
class Preflight:
    """A run that has not begun.

    `classes` counts training rows, empty for regression. `truncated` counts texts that `max_length` tokens cut, and
    `longest` is the longest row in tokens, of generation the longest source; `most_tokens` is what the model could take
    of it, and `coverage` how many of the tokens it knows.
    `truncated_references` counts references of more than `target_length` tokens, which is None where none are learnt.
    `parameters` is None where only the loaded model can tell.
    """

    split: Split
    classes: dict[str, int]
    skeleton: Backbone
    parameters: int | None
    notes: tuple[str, ...]
    max_length: int
    longest: int
    truncated: dict[str, int]
    truncated_references: int
    target_length: int | None
    steps: int
    most_tokens: int
    coverage: dict[str, Coverage]


def preflight(task: Task, spec: RunSpec) -> Preflight:
    """Everything about a run that rows, tokenizer and configuration tell; no weights are read.

    Raises: DataError, ConfigError or ModelError, as the run itself would.
    """
    check_task(task)
    spec = spec.suited(task.kind)
    split = make_split(task, spec)
    skeleton = open_skeleton(spec, task.kind)
    adapter = _attached(task, spec, skeleton)
    max_length = longest_row(adapter, spec.options.max_length, spec.generation) if adapter else spec.options.max_length
    train, dev = (encode_rows(skeleton, rows, task, max_length, spec.generation) for rows in (split.train, split.dev))
    most = longest_row(adapter, skeleton.max_length, spec.generation) if adapter else skeleton.max_length
    return Preflight(
        split=split,
        classes=_classes(task, split.train),
        skeleton=skeleton,
        parameters=_trained(adapter) if adapter else None,
        notes=tuple(adapter.notes) if adapter else (),
        max_length=max_length,
        longest=max(train.longest, dev.longest),
        truncated={"train": train.truncated, "dev": dev.truncated},
        truncated_references=train.truncated_targets + dev.truncated_targets,
        target_length=longest_reference(skeleton, spec.generation) if spec.generation else None,
        steps=spec.training.epochs * ceil(len(train) / spec.training.batch_size),
        most_tokens=most,
        coverage={"train": train.coverage, "dev": dev.coverage},
    )


def _classes(task: Task, rows: Sequence[Example]) -> dict[str, int]:
    counts = task.objective.counts([row.label for row in rows], len(task.labels))
    return dict(zip(task.labels, counts, strict=True))


def _attached(task: Task, spec: RunSpec, skeleton: Backbone) -> AbstractAdapter | None:
    """The adapter on the skeleton, or None where torch cannot do every step of that without content."""
    try:
        return attach(task, spec, skeleton)
    except RuntimeError:
        return None


def _trained(adapter: AbstractAdapter) -> int | None:
    if adapter.backbone.pooling == "family":  # its pooler is trained as well, where the checkpoint lacks it
        return None
    return sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad)
