"""Tasks and rows from files of the user, and from task folders."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from handful.data.advice import in_python
from handful.data.cells import check_row
from handful.data.columns import Columns
from handful.data.interpret import build_task, examples, repeat_notes, targets_of
from handful.data.label_sets import as_separator
from handful.data.nlg import RELEASES
from handful.data.references import records
from handful.data.tables import Table, as_path, is_readable, read_table, stem, takes_delimiter
from handful.data.task import Example, Task, TaskKind, TestRows, text_key
from handful.errors import ConfigError, DataError, nearest
from handful.objectives import KINDS, objective_of

_PARTS = {
    part: re.compile(rf"({names})(?![a-z])")
    for part, names in {"train": "train(ing)?", "test": "test(ing)?", "dev": "val|valid|validation|dev"}.items()
}
_OTHER_TEST = "leave the test rows out, and a share of the rows is set apart; or give other rows"


def read_task(
    source: Any,
    *,
    test: Any = None,
    dev: Any = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str = "label",
    kind: TaskKind | None = None,
    metric: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    name: str | None = None,
    label_separator: str | None = None,
) -> Task:
    """A task from what has named columns: files, data frames, lists of dicts, (texts, labels) and whatever else
    `read_table` takes.

    Where there is no column "text" or "label", one of another customary name is taken if only one qualifies.
    `text_pair` None finds the second text of a pair under a customary name; "" says that there is none. `kind` and
    `metric` are inferred from the labels, and from columns such as "source" and "references". For generation, `label`
    names the column of references, and rows of one source are one record. Several labels per text are lists, texts with
    `label_separator` between the labels ("a;b"), or columns of 0 and 1 that `label` names ("joy,anger"). All that was
    chosen is told in `Task.notes`.

    Raises: DataError naming the file and line of what is wrong.
    """
    given = [part for part in (source, test, dev) if part is not None]
    if delimiter is not None and not any(map(takes_delimiter, given)):
        raise ConfigError(f"delimiter: no file of delimited text was given, found {delimiter!r}", "leave it out")
    if encoding is not None and not any(isinstance(part, str | os.PathLike) for part in given):
        raise ConfigError(f"encoding: rows in memory have none, found {encoding!r}", "leave it out")

    if test is not None and _is_same(source, test):
        what = "the rows in memory" if not isinstance(source, str | os.PathLike) else str(source)
        raise DataError(f"test: expected other rows than the labelled ones, found the same: {what}", _OTHER_TEST)

    if label_separator is not None:
        as_separator(label_separator)
        if kind not in (None, "multilabel"):
            raise ConfigError(
                f"label_separator: {label_separator!r} contradicts kind {kind!r}, whose rows have one label each",
                "leave one of them out",
            )
        kind = "multilabel"

    def table(part: Any) -> Table:
        is_file = isinstance(part, str | os.PathLike)
        return read_table(
            part,
            encoding=encoding if is_file else None,
            delimiter=delimiter if takes_delimiter(part) else None,
            labelled=True,
        )

    pool, *others = [table(source), *(None if part is None else table(part) for part in (test, dev))]
    wanted = Columns(text or "", text_pair, label)
    try:
        task = build_task(pool, *others, wanted=wanted, kind=kind, metric=metric, separator=label_separator)
    except DataError as error:
        if not pool.in_memory or error.hint is None:
            raise
        raise DataError(error.message, in_python(error.hint)) from None
    if pool.in_memory:
        task = replace(task, notes=tuple(map(in_python, task.notes)))
    keys = {text_key(row) for row in task.pool} if task.test else set()
    if task.test and 0 < len(keys) <= len(task.test) and keys <= task.test.text_keys():
        raise DataError(
            f"{pool.path}: every one of its {len(task.pool):,} rows stands in the test rows too, so none is left to "
            "train on",
            _OTHER_TEST,
        )
    notes = [note for found in (pool, *others) if found for note in found.notes]
    own = pool.name if pool.in_memory else stem(Path(pool.path))
    origin = "memory" if pool.in_memory else pool.path
    return replace(task, name=name or own, origin=origin, notes=(*dict.fromkeys(notes), *task.notes))


def _is_same(source: Any, other: Any) -> bool:
    """Whether both are one file, by whatever path, or one object in memory."""
    if not all(isinstance(part, str | os.PathLike) for part in (source, other)):
        return source is other
    first, second = as_path(source), as_path(other)
    return first.exists() and second.exists() and first.samefile(second)


def read_folder(path: str | Path, *, metric: str | None = None) -> Task:
    """A task from a folder of task.json, pool.jsonl and test.jsonl, its row counts checked.

    The rows have "text", "text_pair" for pairs, and "label", or for generation "source" and "references"; task.json
    has name, kind, labels (null for regression and generation), metric, and the counts `pool_rows` and `test_rows`.
    A `metric` takes the place of the folder's.
    """
    folder = Path(path)
    record = _task_record(folder / "task.json")
    labels, objective = tuple(record["labels"] or ()), objective_of(record["kind"])
    notes = []

    def rows(part: str) -> tuple[Example, ...]:
        table = read_table(folder / f"{part}.jsonl", encoding="utf-8")
        expected = record[f"{part}_rows"]
        if len(table.rows) != expected:
            raise DataError(
                f"{table.path}: expected {expected} rows (task.json: {part}_rows), found {len(table.rows)}",
                "the file is incomplete, or task.json is of another version: copy the folder again",
            )
        if objective.generates:
            return records(table, Columns("source", None, "references"))
        label = "labels" if "label" not in table.columns and "labels" in table.columns else "label"
        columns = Columns("text", "text_pair" if "text_pair" in table.columns else None, label)
        found = examples(table, columns, targets_of(record["kind"], labels), empty=True)
        blank = [row.source for row in found if not row.text.strip()]
        if blank:
            notes.append(f"{len(blank)} row(s) with an empty text are kept as they are: {', '.join(blank[:5])}")
        return found

    pool, test = rows("pool"), TestRows(rows("test"))
    if metric is None:
        metric = objective.aliases.get(record["metric"], str(record["metric"]))
        if objective.generates and metric == "bleu" and record["name"] in RELEASES:
            metric = RELEASES[record["name"]].metric
            notes.append(f"metric {metric}: the variant of BLEU that {record['name']} is scored with")
    task = Task(
        name=record["name"],
        kind=record["kind"],
        labels=labels,
        metric=metric,
        pool=pool,
        test=test,
        origin=str(folder),
        notes=tuple(notes),
    )
    return replace(task, notes=(*notes, *repeat_notes(task)))


def files_hint(folder: Path) -> str | None:
    """The command that reads the files of rows in a folder that is no task folder; None where there are none."""
    places = {place: _readable(place) for place in (folder, folder / "data")}
    for files in places.values():
        parts = {part: [file for file in files if names.match(file.name.lower())] for part, names in _PARTS.items()}
        data = files if len(files) == 1 and not places[folder / "data"] else parts["train"]
        if len(data) == 1:
            test = next((parts[part] for part in ("test", "dev") if len(parts[part]) == 1), data)
            more = "" if test == data else f" --test {shlex.quote(str(test[0]))}"
            return f"give the file of labelled rows: handful fit {shlex.quote(str(data[0]))}{more}"
    found = [str(file.relative_to(folder)) for files in places.values() for file in files]
    names = ", ".join(found[:10]) + ", …" * (len(found) > 10)
    return (
        f"give one file of labelled rows, and one of test rows with --test; {folder} holds {names}" if found else None
    )


def _readable(folder: Path) -> list[Path]:
    """The files of a folder that can be read as tables, sorted; none where it cannot be listed."""
    try:
        return sorted(found for found in folder.iterdir() if is_readable(found))
    except OSError:
        return []


def _task_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        hint = None if (path.parent / "pool.jsonl").is_file() else files_hint(path.parent)
        hint = hint or "a task folder holds task.json, pool.jsonl and test.jsonl"
        raise DataError(f"{path}: no such file", hint)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "check the permissions of the file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON object in UTF-8, found {error}", "correct the file") from None
    types = {"name": str, "kind": str, "labels": list | None, "metric": str, "pool_rows": int, "test_rows": int}
    for key, expected in types.items():
        if not isinstance(record, dict) or key not in record:
            raise DataError(
                f"{path}: expected the key {key!r}", nearest(key, record if isinstance(record, dict) else ())
            )
        if not isinstance(record[key], expected):
            raise DataError(
                f"{path}: {key!r} is {record[key]!r}", f"expected {getattr(expected, '__name__', expected)}"
            )
    check_row(record, str(path))
    if record["kind"] not in KINDS:
        raise DataError(f"{path}: expected one of the kinds {', '.join(KINDS)}, found {record['kind']!r}")
    labels, none = record["labels"] or [], not objective_of(record["kind"]).has_labels
    if not all(isinstance(label, str) for label in labels) or (len(labels) < 2) != none:
        raise DataError(
            f"{path}: the labels of {record['kind']} are {labels!r}",
            "two or more texts, or null for regression and generation",
        )
    return record
