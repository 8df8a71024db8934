"""Columns found by what they hold, only where one reading is possible; else an error that says what each looks like."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from handful.data.advice import in_python
from handful.data.columns import Columns
from handful.data.files import read_task
from handful.data.layout import look_at
from handful.data.new_rows import unlabelled_rows
from handful.data.tables import Table
from handful.data.task import Example, TaskKind
from handful.errors import DataError


def read_rows(source: Any, kind: TaskKind = "classification", text: str = "") -> list[Example]:
    """The rows to predict."""
    return [row for row, _ in unlabelled_rows(source, kind=kind, wanted=Columns(text, None, None))]


ROWS = 12
COLUMNS: dict[str, list[Any]] = {
    "texts": [f"this is sentence {i} of many" for i in range(ROWS)],
    "other texts": [f"one more long sentence {i} here" for i in range(ROWS)],
    "names": [f"word{'abcdefghijkl'[i]}" for i in range(ROWS)],
    "classes": [("pos", "neg", "meh")[i % 3] for i in range(ROWS)],
    "more classes": [("web", "mail")[i % 2] for i in range(ROWS)],
    "stars": [str(i % 5 + 1) for i in range(ROWS)],
    "numbers": [f"{i * 0.37:.2f}" for i in range(ROWS)],
    "flag": [str(i % 2) for i in range(ROWS)],
    "index": [str(i) for i in range(ROWS)],
    "ids": [f"a-{i * 7919 % 1000}" for i in range(ROWS)],
    "dates": [f"2024-01-{i + 1:02}" for i in range(ROWS)],
    "constant": ["same"] * ROWS,
    "empty": [""] * ROWS,
}


def write(path: Path, **columns: str) -> Path:
    """A table with these columns, each with the cells of that name."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(COLUMNS[name] for name in columns.values()), strict=True))
    return path


@pytest.mark.parametrize(
    ("cells", "look"),
    [
        ("texts", "texts"), ("names", "names"), ("classes", "classes"), ("stars", "classes"), ("flag", "classes"),
        ("numbers", "numbers"), ("index", "index"), ("ids", "id"), ("dates", "date"), ("constant", "constant"),
        ("empty", "empty"),
    ],
)  # fmt: skip
def test_what_a_column_looks_like(cells, look):
    rows = [{"column": cell} for cell in COLUMNS[cells]]
    table = Table("t.csv", "t.csv", ("column",), rows, list(range(2, ROWS + 2)))
    assert look_at(table, "column").look == look
    lists = Table("t.csv", "t.csv", ("column",), [{"column": [1]}], [2])
    assert look_at(lists, "column").look == "list"


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        ({"message": "texts", "sentiment": "classes"}, "message", "sentiment"),
        ({"sentiment": "classes", "message": "texts"}, "message", "sentiment"),
        ({"body": "texts", "stars": "stars"}, "body", "stars"),
        ({"essay": "texts", "grade": "numbers"}, "essay", "grade"),
        ({"word": "names", "polarity": "classes"}, "word", "polarity"),
        ({"message": "texts", "label": "classes"}, "message", "label"),
        ({"word": "names", "label": "classes"}, "word", "label"),
        ({"text": "texts", "sentiment": "classes"}, "text", "sentiment"),
        ({"nr": "index", "utterance": "texts", "intent": "classes"}, "utterance", "intent"),
        ({"uid": "ids", "when": "dates", "utterance": "texts", "intent": "classes"}, "utterance", "intent"),
        ({"utterance": "texts", "intent": "classes", "lang": "constant", "spare": "empty"}, "utterance", "intent"),
    ],
)
def test_columns_of_any_name_are_found_where_no_other_reading_is_possible(tmp_path, columns, text, label):
    task = read_task(write(tmp_path / "data.csv", **columns))
    assert task.columns is not None
    assert (task.columns.text, task.columns.label) == (text, label)
    found = [name for name in (text, label) if name not in ("text", "label")]
    assert all(any(f"read the column {name!r}" in note for note in task.notes) for name in found)
    rest = [name for name, cells in columns.items() if name not in (text, label) and cells != "empty"]
    assert any("columns that are not read" in note for note in task.notes) == bool(rest)
    assert all(any(f"{name!r} (" in note for note in task.notes) for name in rest)


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (
            {"title": "other texts", "body": "texts", "topic": "classes"},
            r"--text title\|body; for pairs both: --text ti",
        ),
        ({"body": "texts", "topic": "classes", "channel": "more classes"}, r"--label topic\|channel"),
        ({"body": "texts", "topic": "classes", "price": "numbers"}, r"--label topic\|price"),
        ({"first": "classes", "second": "more classes"}, r"--text first\|second"),
        ({"body": "texts", "author": "names", "topic": "classes"}, "--"),
        ({"message": "texts", "nr": "index"}, "--label nr"),
        ({"message": "texts"}, "the file has texts alone"),
    ],
)
def test_what_is_not_clear_is_asked_with_the_look_of_every_column(tmp_path, columns, hint):
    path = write(tmp_path / "data.csv", **columns)
    with pytest.raises(DataError, match=hint) as caught:
        read_task(path)
    assert all(f"{name!r} (" in caught.value.message for name in columns)


def test_columns_of_zeros_and_ones_are_recognised(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,a,b\n" + "".join(f"some text {i},{i % 2},{1 - i % 2}\n" for i in range(8)))
    with pytest.raises(DataError, match="'a', 'b' hold 0 and 1, in every row one 1: write the name"):
        read_task(path)
    assert read_task(path, label="a").labels == ("0", "1")
    path.write_text("text,a,b\n" + "".join(f"some text {i},{i % 2},1\n" for i in range(7)) + "no text,0,0\n")
    with pytest.raises(DataError, match="in some rows several or none: for several labels per text") as caught:
        read_task(path)
    assert '"label": "a,b", "kind": "multilabel"' in in_python(str(caught.value))


def test_rows_to_predict_are_found_the_same_way(tmp_path):
    assert read_rows(write(tmp_path / "new.csv", id="ids", message="texts"))[0].text == COLUMNS["texts"][0]
    assert read_rows(write(tmp_path / "one.csv", message="names"))[0].text == COLUMNS["names"][0]
    with pytest.raises(DataError, match=r"--text title\|body"):
        read_rows(write(tmp_path / "two.csv", title="other texts", body="texts"))
