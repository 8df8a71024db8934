"""Parquet files and Excel workbooks: their rows, what they leave behind, and damage."""

from __future__ import annotations

import datetime

import pytest

from handful.data.files import read_task
from handful.data.tables import read_table
from handful.errors import ConfigError, DataError


def workbook(path, *sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook(tmp_path):
    date = datetime.datetime(2024, 1, 2)
    header, blank = ("text", "label", "when", None), (None, None, None, None)
    rows = [(), header, ("a", 1, date, None), blank, ("b\nc", 2.5, None, None)]
    table = read_table(workbook(tmp_path / "a.xlsx", [], rows, [("other",)]))
    assert table.rows == [
        {"text": "a", "label": "1", "when": "2024-01-02 00:00:00"},
        {"text": "b\nc", "label": "2.5", "when": None},
    ]
    assert table.lines == [3, 5]
    assert table.notes == (
        "a.xlsx: read the sheet 'sheet 1', one of 3 ('sheet 0', 'sheet 1', 'sheet 2')",
        "a.xlsx: column 4 is empty and left out",
        "a.xlsx: 2 blank row(s) left out (line 1, 4)",
    )


def test_a_task_from_a_workbook(tmp_path):
    task = read_task(workbook(tmp_path / "a.xlsx", [("text", "label"), ("good", "pos"), ("bad", "neg")]))
    assert (task.name, task.labels, task.pool[1].source) == ("a", ("neg", "pos"), "a.xlsx:3")


def test_a_parquet_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", None]}, index=[7, 8, 9])
    frame.to_parquet(path)
    table = read_table(path)
    assert table.rows[1:] == [{"text": "b", "label": "y"}, {"text": "c", "label": None}]
    assert table.where(1) == f"row 1 of {path}"
    assert table.notes == ("a.parquet: the index of a pandas frame is left out",)
    with pytest.raises(DataError, match=r"without a label, found 1 \(row 2\)"):
        read_task(path)
    frame.iloc[:0].to_parquet(path)
    with pytest.raises(DataError, match="found only a header"):
        read_table(path)


def test_repeated_names_in_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table([["a"], ["b"]], names=["text", "text"])
    arrow.parquet = pytest.importorskip("pyarrow.parquet")
    arrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"columns have the same name \('text'"):
        read_table(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"columns have the same name \('text'"):
        read_table(table)


@pytest.mark.parametrize("name", ["a.parquet", "a.xlsx"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4 nothing", b"PAR1 nothing PAR1", b"text,label\na,b\n"])
def test_damage(tmp_path, name, content):
    pytest.importorskip("pyarrow" if name == "a.parquet" else "openpyxl")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"expected (a Parquet file|an Excel workbook), found a (damaged one|text file)"
    ):
        read_table(path)
    with pytest.raises(ConfigError, match="no text to decode"):
        read_table(path, encoding="utf-8")


def test_a_truncated_workbook(tmp_path):
    whole = workbook(tmp_path / "a.xlsx", [("text", "label"), ("a", "b")]).read_bytes()
    for end in range(100, len(whole), 700):
        path = tmp_path / "b.xlsx"
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="found a damaged one"):
            read_table(path)


INFO = [("Reviews of 2024",), ("Author", "Jo"), ("Date", "today")]


@pytest.mark.parametrize(
    ("columns", "options"), [(("text", "label"), {}), (("frage", "klasse"), {"text": "frage", "label": "klasse"})]
)
def test_the_sheet_that_is_a_table_is_read(tmp_path, columns, options):
    path = workbook(tmp_path / "a.xlsx", INFO, [columns, ("a b", "x"), ("c d", "y")])
    task = read_task(path, **options)
    assert len(task.pool) == 2
    assert "a.xlsx: read the sheet 'sheet 1', one of 2 ('sheet 0', 'sheet 1')" in task.notes


def test_where_no_sheet_will_do_they_are_named(tmp_path):
    path = workbook(tmp_path / "a.xlsx", INFO, [("other",)])
    with pytest.raises(DataError, match="expected a text column 'text'") as caught:
        read_task(path)
    assert "read the sheet 'sheet 0', one of 2 ('sheet 0', 'sheet 1')" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("row", "message"),
    [(('="a"&"b"', "x"), "expected a text in 'text', found none stored"), (("a", "=1+1"), "no row without a label")],
)
def test_formulas_without_a_stored_value(tmp_path, row, message):
    path = workbook(tmp_path / "a.xlsx", [("text", "label"), row, ("c", "y")])
    with pytest.raises(DataError, match=message) as caught:
        read_task(path)
    said = "1 cell holds a formula whose value is not stored (row 2): open and save it in Excel"
    assert caught.value.hint == said


def test_text_that_is_called_a_workbook(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_text("text,label\na,b\n")
    with pytest.raises(DataError, match="expected an Excel workbook, found a text file") as caught:
        read_task(path)
    assert caught.value.hint == "its name is to end in .csv"
