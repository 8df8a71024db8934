"""What a run will be, and what is wrong with it, before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

from handful.backbone.load import Backbone
from handful.backbone.skeleton import load_skeleton
from handful.data.batching import EncodedRows, encode, encode_mixed
from handful.data.split import Split
from handful.data.task import Example, Task
from handful.evaluation.evaluate import longest_row
from handful.evaluation.metrics import check_metric
from handful.methods.base import AbstractAdapter
from handful.runs.experiment import attach, make_split
from handful.runs.spec import RunSpec


@final
@dataclass(frozen=True)
class Preflight:
    """A run that has not begun.

    `classes` counts training rows, empty for regression. `truncated` counts texts that `max_length` tokens cut, and
    `longest` is the longest row in tokens, as far as the model could take it. `parameters` is None where only the
    loaded model can tell.
    """

    split: Split
    classes: dict[str, int]
    skeleton: Backbone
    parameters: int | None
    notes: tuple[str, ...]
    max_length: int
    longest: int
    truncated: dict[str, int]
    steps: int


def preflight(task: Task, spec: RunSpec) -> Preflight:
    """Everything about a run that rows, tokenizer and configuration tell; no weights are read.

    Raises: DataError, ConfigError or ModelError, as the run itself would.
    """
    check_metric(task.metric, task.kind, len(task.labels))
    spec = spec.suited(task.kind)
    split = make_split(task, spec)
    purpose = "lm" if spec.generation else "features"
    skeleton = load_skeleton(spec.model, pooling=spec.options.pooling, purpose=purpose)
    adapter = _attached(task, spec, skeleton)
    max_length = longest_row(adapter, spec.options.max_length) if adapter else spec.options.max_length
    lengths, truncated = [], {}
    for part, rows in (("train", split.train), ("dev", split.dev)):
        truncated[part] = _encoded(rows, task, skeleton, max_length).truncated
        lengths += _encoded(rows, task, skeleton, skeleton.max_length).lengths
    return Preflight(
        split=split,
        classes=_classes(task, split.train),
        skeleton=skeleton,
        parameters=_trained(adapter) if adapter else None,
        notes=tuple(getattr(adapter, "notes", ())),
        max_length=max_length,
        longest=max(lengths),
        truncated=truncated,
        steps=spec.training.epochs * ceil(len(split.train) / spec.training.batch_size),
    )


def _encoded(rows: Sequence[Example], task: Task, skeleton: Backbone, max_length: int) -> EncodedRows:
    if task.members and task.kind != "generation":
        return encode_mixed(rows, skeleton.tokenizer, max_length)
    return encode(rows, skeleton.tokenizer, max_length, kind=task.kind)


def _classes(task: Task, rows: Sequence[Example]) -> dict[str, int]:
    counts = Counter(row.label for row in rows)
    return {label: counts[index] for index, label in enumerate(task.labels)}


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
