"""Rows that come after training: which columns are read, what they hold, and what is passed through."""

from __future__ import annotations

from pathlib import Path

import pytest

from handful.data.columns import Columns
from handful.data.new_rows import labelled_rows, unlabelled_rows
from handful.data.task import Example, Task
from handful.errors import DataError

TASK = Task("t", "classification", ("neg", "pos"), "accuracy", ())


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "options", "text"),
    [
        ("id,sentence", {}, "sentence"),
        ("id,text,body", {}, "text"),
        ("id,text,body", {"trained_on": Columns("body", None, "class")}, "body"),
        ("id,text,other", {"trained_on": Columns("body", None, "class")}, "text"),
        ("id,text,body", {"trained_on": Columns("text", None), "wanted": Columns("body", None, None)}, "body"),
        ("what", {}, "what"),
    ],
)
def test_the_column_is_the_named_one_then_that_of_training_then_a_customary_one(tmp_path, header, options, text):
    cells = [f"{name} {{}}" for name in header.split(",")]
    lines = [",".join(cell.format(row) for cell in cells) for row in (1, 2)]
    path = write(tmp_path / "new.csv", "\n".join([header, *lines]) + "\n")
    rows = list(unlabelled_rows(path, kind="classification", **options))
    assert [row for row, _ in rows] == [Example(f"{text} {n}", source=f"new.csv:{n + 1}") for n in (1, 2)]
    assert [list(cells) for _, cells in rows] == [header.split(",")] * 2


def test_a_column_of_another_name_is_said(tmp_path):
    path = write(tmp_path / "new.csv", "id,body\n1,a\n")
    found = unlabelled_rows(path, kind="classification", trained_on=Columns("body"))
    assert found.notes == ("new.csv: read the column 'body' as the text, as in training",)


def test_no_clear_column_is_refused_with_the_names_there_are(tmp_path):
    path = write(tmp_path / "new.csv", "subject,body\na few words,some more words\nother words,and others\n")
    with pytest.raises(DataError, match=r"expected a text column 'text', found .*subject.*body"):
        unlabelled_rows(path, kind="classification")
    with pytest.raises(DataError, match="expected a pair of texts, found one: the run predicts pairs"):
        unlabelled_rows(write(tmp_path / "one.csv", "text,id\na,1\n"), kind="pair-classification")


def test_missing_texts_are_empty_and_other_types_are_refused_by_line(tmp_path):
    path = write(tmp_path / "new.jsonl", '{"text": "a"}\n{"text": null}\n{"text": ""}\n')
    assert [row.text for row, _ in unlabelled_rows(path, kind="classification")] == ["a", "", ""]
    for line, said in (('{"text": 5}', "expected a text in 'text', found 5"), ('{"txt": "b"}', "did you mean 'txt'?")):
        wrong = write(tmp_path / "wrong.jsonl", f'{{"text": "a"}}\n{line}\n')
        with pytest.raises(DataError) as caught:
            list(unlabelled_rows(wrong, kind="classification"))
        assert "wrong.jsonl:2" in str(caught.value) and said in str(caught.value)


def test_labelled_rows_have_the_classes_of_the_task(tmp_path):
    path = write(tmp_path / "new.csv", "id,text,label\n1,a,pos\n2,b,neg\n")
    rows, _ = labelled_rows(path, TASK)
    assert [(row.text, row.label) for row in rows] == [("a", 1), ("b", 0)]
    with pytest.raises(DataError, match=r"new\.csv:2: the label 'pos' is none of the 2 classes"):
        labelled_rows(path, Task("t", "classification", ("a", "b"), "accuracy", ()))


def test_label_columns_are_remembered(tmp_path):
    path = write(tmp_path / "new.csv", "body,verdict,label\na,pos,x\n")
    task = Task("t", "classification", ("neg", "pos"), "accuracy", (), columns=Columns("body", None, "verdict"))
    rows, notes = labelled_rows(path, task)
    assert [(row.text, row.label) for row in rows] == [("a", 1)]
    assert notes[:2] == [
        "new.csv: read the column 'body' as the text, as in training",
        "new.csv: read the column 'verdict' as the label, as in training",
    ]


def test_rows_in_memory_are_read_as_files_are():
    rows = [{"id": 1, "text": "a"}, {"id": 2, "text": None}]
    found = list(unlabelled_rows(rows, kind="classification"))
    assert [(row.text, cells["id"]) for row, cells in found] == [("a", 1), ("", 2)]
