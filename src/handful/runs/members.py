"""What a run on a task of tasks needs beside what every run does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from handful.data.batching import EncodedRows
from handful.data.columns import Columns
from handful.data.mixture import mixing_weights
from handful.data.task import Example, Task
from handful.methods.base import AbstractMethod


def weighted(rows: EncodedRows, method: AbstractMethod) -> EncodedRows:
    """Training rows drawn as the method mixes tasks; as they are where there is one task, or it does not mix."""
    mixing = getattr(method, "mixing", None)
    if rows.tasks is None or mixing is None:
        return rows
    return replace(rows, weights=mixing_weights(rows.tasks, mixing, getattr(method, "mixing_temperature", 1.0)))


def first_of_members(rows: Sequence[Example]) -> list[Example]:
    """The first row of each member."""
    return list({row.task: row for row in reversed(rows)}.values())


def describe_task(task: Task) -> dict[str, Any]:
    """The "task" of `run.json`, with the "members" of a task of tasks."""
    record: dict[str, Any] = {
        "name": task.name, "kind": task.kind, "labels": list(task.labels), "metric": task.metric,
        "origin": task.origin, "notes": list(task.notes),
    }  # fmt: skip
    record |= {"instruction": task.instruction} if task.instruction else {}
    record |= {"columns": asdict(task.columns)} if task.columns else {}
    record |= {"label_separator": task.label_separator} if task.label_separator else {}
    record |= {"label_flags": task.label_flags} if task.label_flags is not None else {}
    if task.members:
        record["members"] = [as_member_record(describe_task(member)) for member in task.members]
    return record


def as_member_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a task's record where it is a member."""
    return {key: value for key, value in record.items() if key not in ("origin", "notes", "members")}


def recorded_task(record: dict[str, Any]) -> Task:
    """The task of `describe_task`, without rows."""
    members = tuple(recorded_task(member) for member in record.get("members", ()))
    columns = Columns(**record["columns"]) if "columns" in record else None
    return Task(
        record["name"], record["kind"], tuple(record["labels"]), record["metric"], pool=(), members=members,
        instruction=record.get("instruction", ""), columns=columns,
        label_separator=record.get("label_separator"), label_flags=record.get("label_flags"),
    )  # fmt: skip


def num_test_rows(task: Task) -> int:
    """Rows of the task's test, or of those of its members."""
    return sum(len(part.test or ()) for part in task.members or (task,))


def without_rows(task: Task, rows: Sequence[Example]) -> list[str]:
    """A sentence on the labels that no training row has, where a text may have several; others are drawn with all."""
    if task.objective.has_classes or not task.objective.has_labels:
        return []
    found = task.objective.classes_in([row.label for row in rows])
    absent = [name for index, name in enumerate(task.labels) if index not in found]
    named = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
    return [f"no training row has {len(absent)} of the {len(task.labels)} labels ({named})"] if absent else []
