"""Tasks from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handful.data.task import Example, Task, TestRows
from handful.errors import DataError


def read_folder(path: str | Path) -> Task:
    """A task from a folder of task.json, pool.jsonl and test.jsonl, its row counts checked."""
    folder = Path(path)
    record = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    labels = tuple(record["labels"] or ())

    def rows(part: str) -> tuple[Example, ...]:
        found = []
        with open(folder / f"{part}.jsonl", encoding="utf-8") as file:
            for line, text in enumerate(file, 1):
                row: dict[str, Any] = json.loads(text)
                label = labels.index(row["label"]) if labels else float(row["label"])
                found.append(Example(row["text"], row.get("text_pair"), label, f"{part}.jsonl:{line}"))
        if len(found) != record[f"{part}_rows"]:
            raise DataError(f"{folder / part}.jsonl: expected {record[f'{part}_rows']} rows, found {len(found)}")
        return tuple(found)

    return Task(
        record["name"],
        record["kind"],
        labels,
        record["metric"],
        rows("pool"),
        TestRows(rows("test")),
        None,
        str(folder),
    )
