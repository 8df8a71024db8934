"""Rows that come after training: which columns are read, what they hold, and what is passed through."""

from __future__ import annotations

from dataclasses import replace
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


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("parcel late\nbill paid\n", "classification"),
        ("the parcel is late,17\nthe bill is paid,18\n", "classification"),
        ("late,17\npaid for,18\n", "classification"),
        ("parcel late;my parcel\nbill paid;my bill\n", "pair-classification"),
        ("parcel late\nbill paid\n", "generation"),
    ],
)
def test_a_first_row_of_data_is_no_header(tmp_path, content, kind):
    path, options = write(tmp_path / "new.csv", content), {"kind": kind, "trained_on": Columns("text", None, "label")}
    if kind == "pair-classification":
        options |= {"wanted": Columns("parcel late", "my parcel", None), "trained_on": None}
        assert len(list(unlabelled_rows(path, **options))) == 1  # whoever names the columns means them
        return
    with pytest.raises(DataError, match=r"(?s)expected a header, found what looks like a row of data.*a header line"):
        unlabelled_rows(path, **options)
    first = content.partition("\n")[0].split(",")[0]
    (row,) = [row for row, _ in unlabelled_rows(path, wanted=Columns(first, None, None), **options)]
    assert row.text


@pytest.mark.parametrize("header", ["what,17x", "id,Customer comment", "0", "Customer comment"])
def test_names_that_may_be_names_are_a_header(tmp_path, header):
    path = write(tmp_path / "new.csv", "\n".join([header, *[",".join("ab"[: header.count(",") + 1])] * 2]) + "\n")
    column = Columns("Customer comment", None, "label")
    wanted = None if header != "what,17x" else Columns("what", None, None)
    assert len(list(unlabelled_rows(path, kind="classification", trained_on=column, wanted=wanted))) == 2


def test_the_name_of_the_only_column_is_said_and_that_of_a_class_is_a_row(tmp_path):
    found = unlabelled_rows(write(tmp_path / "new.csv", "what\na\n"), kind="classification")
    assert found.notes == ("new.csv: read 'what', the first row, as the name of the only column",)
    three = Task("t", "classification", ("fair", "neg", "pos"), "accuracy", ())
    rows = [f"the bill {i} is paid in full,{'neg' if i % 2 else 'fair'}\n" for i in range(9)]
    with pytest.raises(DataError, match="found what looks like a row of data in the first line \\('late', 'pos'\\)"):
        labelled_rows(write(tmp_path / "new.csv", "late,pos\n" + "".join(rows)), three)


@pytest.mark.parametrize(
    ("header", "cell"),
    [
        ("Customer comment", "a b"),
        ("Free text comments", "late"),
        ("What guests wrote", "the bill that we paid was never taken off"),
        ("Kommentar des Gastes", "die Rechnung wurde nie bezahlt und niemand ruft an"),
    ],
)
def test_several_words_may_be_the_name_of_the_texts_and_that_is_said(tmp_path, header, cell):
    found = unlabelled_rows(
        write(tmp_path / "new.csv", f"{header}\n{cell} 1\n{cell} 2\n"),
        kind="classification",
        trained_on=Columns("text"),
    )
    assert [row.text for row, _ in found] == [f"{cell} 1", f"{cell} 2"]
    assert found.notes == found.guesses == (f"new.csv: read {header!r}, the first row, as the name of the only column",)
    rows = "".join(f"{i},the bill of table {i} is not what we had,{'neg' if i % 2 else 'pos'}\n" for i in range(20))
    labelled = write(tmp_path / "labelled.csv", f"Case,{header},mood\n{rows}")
    read, notes = labelled_rows(labelled, replace(TASK, columns=Columns("text", None, "mood")))
    assert len(read) == 20 and any(repr(header) in note for note in notes)


@pytest.mark.parametrize("first", ["The bill was never paid", "Very late!", "Late, and cold,", "Great food"])
def test_a_text_in_the_first_row_is_not_taken_for_a_name(tmp_path, first):
    path = write(tmp_path / "new.csv", f'"{first}"\nthe parcel never came\nall of it was good\n')
    with pytest.raises(DataError, match=r"(?s)expected a header.*if it is the header: --text"):
        unlabelled_rows(path, kind="classification", trained_on=Columns("text"))


def test_a_line_of_json_without_the_text_is_an_empty_text(tmp_path):
    rows = ['{"id": 0}', '{"id": 1, "text": "a"}', '{"id": 2}']
    found = unlabelled_rows(write(tmp_path / "new.jsonl", "\n".join(rows)), kind="classification", trained_on=Columns())
    assert [row.text for row, _ in found] == ["", "a", ""]


def test_rows_without_a_text_or_a_label_are_left_out_and_named(tmp_path):
    path = write(tmp_path / "new.csv", "id,text,label\n1,a,pos\n2,,neg\n3,c,\n4,d,NA\n5,e,neg\n")
    rows, notes = labelled_rows(path, TASK)
    assert [row.text for row in rows] == ["a", "e"]
    assert notes[-2:] == [
        "new.csv: 1 of 5 rows have an empty text and are left out (line 3)",
        "new.csv: 2 of 5 rows have no label (or 'NA', which is read as none) and are left out (line 4, 5)",
    ]
    with pytest.raises(DataError, match=r"expected rows with a text and a label, found none: .* an empty text"):
        labelled_rows(write(path, "id,text,label\n1,,pos\n"), TASK)
    rows, _ = labelled_rows([{"text": "a", "label": "pos"}, {"text": "b"}, {"label": "neg"}], TASK)
    assert [row.text for row in rows] == ["a"]
    numbers, notes = labelled_rows(
        [{"text": "a", "label": 1.5}, {"text": "b", "label": None}], Task("t", "regression", (), "mse", ())
    )
    assert [row.label for row in numbers] == [1.5] and "1 of 2 rows have no label" in notes[-1]
    task = Task("t", "generation", (), "bleu", (), columns=Columns("source", None, "target"))
    written, notes = labelled_rows([{"source": "a", "target": "b"}, {"source": "", "target": "c"}], task)
    assert [row.text for row in written] == ["a"] and "1 of 2 rows have an empty text" in notes[-1]


def test_few_labels_of_other_classes_are_left_out_and_said(tmp_path):
    lines = [f"t {i},{'neg' if i % 2 else 'pos'}" for i in range(30)]
    rows, notes = labelled_rows(write(tmp_path / "new.csv", "\n".join(["text,label", "x,lost", *lines])), TASK)
    assert len(rows) == 30
    assert notes[-1] == (
        "new.csv: 1 of 31 rows have a label that is none of the 2 classes ('lost'; line 2) and are left out; the run "
        "gets every such row wrong"
    )
    with pytest.raises(DataError, match=r"new\.csv:2: the label 'lost' is none of the 2 classes"):
        labelled_rows(write(tmp_path / "new.csv", "\n".join(["text,label", "x,lost", *lines[:19]])), TASK)


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
