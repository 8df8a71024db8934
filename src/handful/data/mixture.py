"""Many tasks as one: their rows under one list of labels, and how often each row is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from handful.data.task import Example, Task, as_member, as_text, instruction, reading, same_readings
from handful.errors import ConfigError, DataError

EXACT = "exact-match"
"""The metric of labels that are written."""

Mixing = Literal["size", "temperature", "uniform"]


def mix_tasks(name: str, tasks: Sequence[Task]) -> Task:
    """The task of these tasks, all of classes (of single texts, pairs or both) or all of generation.

    Its metric is one that every member can be scored by: the accuracy, of texts the metric that all share or ROUGE-L.
    It has development rows where all members have. Raises: DataError with everything that is wrong at once.
    """
    if wrong := _problems(tasks):
        raise DataError(
            f"the tasks of {name!r} cannot be mixed:\n  " + "\n  ".join(wrong),
            "tasks of classes go together, and tasks of generation; each needs a name and rows of its own",
        )
    writing = tasks[0].objective.generates
    metric = "accuracy"
    if writing:
        metrics = {task.metric for task in tasks}
        metric = metrics.pop() if len(metrics) == 1 else "rouge-l"
    notes = [f"{task.name}: {note}" for task in tasks for note in task.notes]
    mixed = Task(
        name=name,
        kind="generation" if writing else "classification",
        labels=tuple(f"{task.name}: {label}" for task in tasks for label in task.labels),
        metric=metric,
        pool=(),
        origin=", ".join(task.origin for task in tasks),
        notes=(*notes, f"metric {metric}: over all tasks; each keeps its own for its test rows"),
        members=tuple(tasks),
    )
    starts = {task: labels.start for task, labels in mixed.label_ranges.items()}
    pool = tuple(as_member(row, task.name, starts[task.name]) for task in tasks for row in task.pool)
    dev = None
    if all(task.dev for task in tasks):
        dev = tuple(as_member(row, task.name, starts[task.name]) for task in tasks for row in task.dev or ())
    return replace(mixed, pool=pool, dev=dev)


def text_to_text(task: Task) -> Task:
    """A task of classes as one of generation: the label is to be written, word for word.

    Raises: DataError for other tasks.
    """
    if not task.objective.has_classes:
        raise DataError(
            f"task {task.name!r} ({task.origin}): expected labels to be written, found a task of kind {task.kind!r}",
            "leave text_to_text out",
        )
    if wrong := _same_labels(task):
        raise DataError(f"task {task.name!r} ({task.origin}) {wrong[0]}")
    labels = [reading(label) for label in task.labels]
    return replace(
        task,
        instruction=instruction(labels),
        kind="generation",
        labels=(),
        metric=EXACT,
        pool=tuple(as_text(row, labels) for row in task.pool),
        dev=None if task.dev is None else tuple(as_text(row, labels) for row in task.dev),
        test=None if task.test is None else task.test.as_texts(labels),
    )


def _problems(tasks: Sequence[Task]) -> list[str]:
    """What stands against mixing these tasks, a sentence each with what to do."""
    found = []
    if len(tasks) < 2:
        found.append(f"expected at least two tasks, found {len(tasks)}; add one, or fit the one alone")
    for name, times in Counter(task.name for task in tasks).items():
        if times > 1:
            origins = ", ".join(task.origin for task in tasks if task.name == name)
            found.append(f"{times} tasks are called {name!r} ({origins}); give each a name of its own")
    for task in tasks:
        found += [f"task {task.name!r} ({task.origin}) {problem}" for problem in _member_problems(task)]
    writing = [task.name for task in tasks if task.objective.generates]
    if writing and len(writing) < len(tasks):
        found.append(f"texts are to be written in {', '.join(writing)}, and labels told in the others; mix them apart")
    return found


def _member_problems(task: Task) -> list[str]:
    found = []
    if task.members:
        found.append("is itself a task of tasks; give its members")
    if reason := task.objective.unmixable:
        found.append(f"{reason}; leave it out")
    if not task.pool:
        found.append("has no rows to learn from; give it labelled rows, or leave it out")
    return [*found, *_same_labels(task)]


def _same_labels(task: Task) -> list[str]:
    """The text of a label is what it is scored by, or what is written."""
    return [
        f"has labels that read the same: {', '.join(map(repr, same))}; rename all but one"
        for same in same_readings(task.labels)
    ]


def member_rows(task: Task, name: str) -> tuple[Example, ...]:
    """The pool rows of one member of a task of tasks, labelled among all labels."""
    return tuple(row for row in task.pool if row.task == name)


def mixing_weights(names: Sequence[str], mixing: Mixing, temperature: float = 1.0) -> torch.Tensor:
    """How often each row (N,) is drawn in an epoch on average, float64, from the name of its task; sums to N.

    A task of n rows gets a share of the draws ∝ n ("size": every row once), n^(1/temperature) ("temperature") or 1
    ("uniform"), spread evenly over its rows. Temperature as in Raffel et al. (2020), section 3.5.2.
    """
    if not temperature > 0:
        raise ConfigError(f"mixing_temperature: expected a number above 0, found {temperature}", "1 mixes by size")
    power = {"size": 1.0, "temperature": 1 / temperature, "uniform": 0.0}[mixing]
    sizes = Counter(names)
    rows = torch.tensor([sizes[name] for name in names], dtype=torch.float64)
    weights = rows ** (power - 1)
    return weights * (len(names) / weights.sum())


def draw_rows(weights: torch.Tensor, generator: torch.Generator) -> list[int]:
    """As many row positions as there are weights (N,), row i floor(w_i) or ceil(w_i) times and w_i times on average.

    Systematic sampling (Madow 1949) on a shuffled order: the weights stand end to end, and every whole number, moved by
    one uniform offset, takes the row it falls on. `weights` sum to N.
    """
    order = torch.randperm(len(weights), generator=generator)
    ends = weights[order].double().cumsum(0)
    offset = torch.rand((), generator=generator)  # float32: ends - offset is then exact enough to keep the total
    reached = (ends - offset.double()).ceil().long().clamp(max=len(weights))
    reached[-1:] = len(weights)
    times = reached.diff(prepend=reached.new_zeros(1))
    return torch.repeat_interleave(order, times).tolist()
