"""Reading cells: what was written is read back, and what cannot be read is named with its line."""

from __future__ import annotations

import csv
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.tables import MAX_CELL, read_table
from handful.errors import ConfigError, DataError

cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
rows = st.lists(st.tuples(cells, cells), min_size=1, max_size=8).filter(
    lambda found: any(cell.strip() for row in found for cell in row)  # blank rows alone are no table
)


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, message: str, encoding=None):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_table(path, encoding=encoding)


@pytest.mark.parametrize("delimiter", [",", "\t"])
@given(rows=rows)
def test_csv_round_trip(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("round") / ("data.csv" if delimiter == "," else "data.tsv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    assert [(row["text"], row["label"]) for row in read_table(path).rows] == rows


@given(rows=rows)
def test_jsonl_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "data.jsonl"
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    path.write_bytes("\n".join(lines).encode())
    table = read_table(path)
    assert [(row["text"], row["label"]) for row in table.rows] == rows
    assert table.lines == list(range(1, len(rows) + 1))


def test_lines_are_those_of_the_file(tmp_path):
    path = write(tmp_path / "data.csv", 'text,label\n"two\nlines",a\n\n"one, two",b\r\nlast,c')
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert table.lines == [2, 5, 6]
    assert table.where(1) == f"{path}:5"
    assert [row["text"] for row in table.rows] == ["two\nlines", "one, two", "last"]


def test_blank_json_lines_are_counted(tmp_path):
    assert read_table(write(tmp_path / "a.jsonl", '\n{"text": "a"}\r\n\n{"text": "b\u2028c"}')).lines == [2, 4]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path, codec):
    path = write(tmp_path / "data.csv", "text,label\nnaïve café,a\n".encode(codec))
    assert read_table(path).rows == [{"text": "naïve café", "label": "a"}]


def test_mark_does_not_stay_when_the_encoding_is_given(tmp_path):
    assert read_table(write(tmp_path / "data.csv", "text\na\n".encode("utf-8-sig")), encoding="utf-8").columns == (
        "text",
    )


def test_named_encoding(tmp_path):
    path = write(tmp_path / "data.csv", "text,label\nok,a\ncosts £5,b\n".encode("cp1252"))
    refused(path, rf"{path}:3: expected UTF-8 text, found the byte 0xA3 \(byte 23 of the file\).*--encoding cp1252")
    assert read_table(path, encoding="cp1252").rows[1]["text"] == "costs £5"
    refused(path, r"expected ASCII text.*\n\nhint: .*the one it was saved with", "ascii")
    with pytest.raises(ConfigError, match="encoding: 'klingon' is not known"):
        read_table(path, encoding="klingon")


def test_quoting_of_the_process_is_left_alone(tmp_path):
    before = csv.field_size_limit()
    read_table(write(tmp_path / "data.csv", "text\n" + "x" * 200_000 + "\n"))
    refused(write(tmp_path / "data.csv", "text\n" + "x" * (MAX_CELL + 1) + "\n"), "data.csv:2: a cell has more than")
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["huge.csv", "huge.jsonl"])
def test_ten_megabyte_cell_is_refused_at_once(tmp_path, name):
    cell, line = "x " * 5_000_000, 3
    content = f'text,label\nfine,a\n"{cell}",b\n' if name == "huge.csv" else f'\n\n{{"text": "{cell}"}}\n'
    path = write(tmp_path / name, content)
    start = time.process_time()
    refused(path, rf"{path}:{line}: .*more than 1,000,000 characters")
    assert time.process_time() - start < 2


def test_quote_that_is_never_closed_is_named_where_it_opens(tmp_path):
    refused(
        write(tmp_path / "a.csv", 'text,label\nfine,a\n"open,b\nc,d\n'), r"a\.csv:3: the double quotes do not match"
    )
    refused(
        write(tmp_path / "b.csv", 'text,label\n"a" b,c\n'), r'b\.csv:2: the double .*\n\nhint: .*a double quote as ""'
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "expected rows, found an empty file"),
        ("a.jsonl", " \n\n", "expected rows, found an empty file"),
        ("a.csv", "text,label\n", "found only a header"),
        ("a.csv", "text,label\na,b\nc\0d,e\n", r"a\.csv:3: found a NUL character"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), r"a\.csv:1: found a NUL .*--encoding utf-16-le"),
        ("a.csv", "text,label, text\na,b,c\n", r"a\.csv:1: the header names 'text' more than once"),
        ("a.csv", "text,label\na,b\nc, d, e\n", r"a\.csv:3: expected 2 cells \(text, label\), found 3.*double quotes"),
        ("a.tsv", "text\tlabel\na\n", r"a\.tsv:2: expected 2 cells \(text, label\), found 1"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r"a\.jsonl:2: expected a JSON object .* found list"),
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', r"a\.jsonl:2: .*invalid JSON at column 10: Expecting value"),
        ("a.jsonl", "7" * 5000, r"a\.jsonl:1: .*invalid JSON: Exceeds the limit"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: .*invalid JSON: .*recursion"),
        ("a.jsonl", '{"text": "a", "text": "b"}', r"a\.jsonl:1: the object names 'text' more than once"),
        ("a.pdf", "PK", r"expected a file ending in \.csv, \.tsv, .*\.jsonl, .*\.xlsx .*found \.pdf"),
        ("data", "text,label", "found no ending"),
    ],
)
def test_refusals(tmp_path, name, content, message):
    refused(write(tmp_path / name, content), message)


def test_missing_file_offers_its_neighbour(tmp_path):
    write(tmp_path / "reviews.csv", "text\na\n")
    refused(tmp_path / "revews.csv", r"no such file\n\nhint: did you mean 'reviews\.csv'\?")
    refused(tmp_path / "other.csv", r"no such file\n\nhint: check the path")
    refused(tmp_path / "nowhere" / "a.csv", "no such folder as")


def test_folder_in_place_of_a_file(tmp_path):
    refused(tmp_path, "expected a file, found a folder")
