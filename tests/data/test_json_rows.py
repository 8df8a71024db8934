"""JSON in its forms: lines, arrays, columns; what is no row is named with its line."""

from __future__ import annotations

import gzip
import json

import pytest

from handful.data.cells import MAX_CELL
from handful.data.files import read_task
from handful.data.tables import read_table
from handful.errors import DataError

ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.ndjson", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("a.json", json.dumps(ROWS), [1, 1]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 6]),
        ("a.json", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("a.json", json.dumps({"text": ["a", "b"], "label": ["x", "y"]}), [0, 1]),
        ("a.json", json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}), [0, 1]),
        ("a.json", json.dumps({"data": ROWS}), [0, 1]),
        ("a.json", json.dumps({"version": 1, "data": ROWS, "tags": {"a": 1}}), [0, 1]),
        ("a.json", json.dumps({"0": ROWS[0], "1": ROWS[1]}), [0, 1]),
        (
            "a.json",
            json.dumps({"columns": ["text", "label"], "index": [5, 7], "data": [["a", "x"], ["b", "y"]]}),
            [0, 1],
        ),
    ],
)
def test_forms(tmp_path, name, content, lines):
    table = read_table(write(tmp_path / name, content))
    assert (table.rows, table.columns, table.lines) == (ROWS, ("text", "label"), lines)
    assert read_table(write(tmp_path / f"{name}.gz", gzip.compress(content.encode()))).rows == ROWS
    assert read_task(tmp_path / f"{name}.gz").name == "a"


def test_forms_that_are_not_as_the_name_promises_are_said(tmp_path):
    lines = read_table(write(tmp_path / "a.json", "\n".join(map(json.dumps, ROWS))))
    assert lines.notes == ("a.json: read as JSON lines, one object on each line",)
    assert read_table(write(tmp_path / "a.json", json.dumps({"data": ROWS}))).notes == (
        "a.json: the rows are those of 'data'",
    )


def test_nan_and_null_are_missing_and_words_are_not(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"a": NaN, "b": null, "c": "NA", "d": "nan"}'))
    assert table.rows == [{"a": None, "b": None, "c": "NA", "d": "nan"}]
    assert [table.missing_label(cell) for cell in table.rows[0].values()] == [True, True, False, True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json.dumps(ROWS), r"a\.jsonl:1: expected a JSON object .*found list\n\nhint: .*end in \.json"),
        ("a.json", '[{"text": "a"},\n 5]', r"a\.json:2: expected a JSON object .*found int"),
        ("a.json", '[{"text": "a"},\n {"text": }]', r"a\.json:2: expected a JSON object, found invalid JSON"),
        ("a.json", '[{"text": "a"}\n {"text": "b"}]', r"a\.json:2: expected ',' or '\]' in the array, found '\{'"),
        ("a.json", '[{"text": "a"}', r"a\.json:1: expected ',' or '\]' in the array, found 'the end'"),
        ("a.json", '[{"text": "a"}]\n[]', r"a\.json:1: expected one JSON array, found more behind it"),
        ("a.json", "[]", "expected rows, found an empty file"),
        ("a.json", " \n", "expected rows, found an empty file"),
        ("a.json", "5", r"a\.json:1: expected a JSON object .*found int"),
        ("a.json", '{"text": ["a"], "label": ["x", "y"]}', r"expected columns of one length, found that .text"),
        ("a.json", '{"text": {"0": "a"}, "label": {"1": "x"}}', "expected columns with the same rows"),
        ("a.json", '{"text": "a", "label": "x"}', r"a\.json:1: expected columns as lists, found 'a' under 'text'"),
        ("a.json", '{"a": [{"b": 1}], "c": [{"d": 1}, {}]}', r"a\.json:1: expected one table, found several: 'a', 'c'"),
        ("a.json", '{"a": [{"b": 1}, 5]}', r"a\.json:1: expected rows under 'a', found 5 at position 1"),
        ("a.jsonl", "[1, 2]", r"a\.jsonl:1: expected a JSON object .*found list\n\nhint: put one JSON object on each"),
        ("a.jsonl", json.dumps({"x" * 1001: 1}), r"expected the name of a column, found a text of 1,001 characters"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"expected a text file, found one compressed by gzip\n\nhint: put "),
        ("a.json", "[" * 100_000, r"a\.json:1: .*invalid JSON: .*recursion"),
        ("a.json", '[{"a": ' + "7" * 5000 + "}]", r"a\.json:1: .*invalid JSON"),
        ("a.jsonl", '{"a": ' + "7" * 4000 + "}", r"a\.jsonl:1: the number in 'a' has thousands of digits"),
        ("a.json", '[{"a": "\\ud83d"}]', r"a\.json:1: the text in 'a' holds half of a surrogate pair \(\\ud83d, char"),
        ("a.jsonl", '{"text": "a"}\n{"label": "x\\ude00"}', r"a\.jsonl:2: the text in 'label' holds half"),
        ("a.jsonl", '{"a\\ud83d": 1}', r"a\.jsonl:1: the name of a column holds half of a surrogate pair"),
        ("a.jsonl", '{"a": [[{"b": "\\ud83d"}]]}', r"a\.jsonl:1: the text in 'a' holds half of a surrogate pair"),
        ("a.json", '[{"a": "' + "x" * (MAX_CELL + 1) + '"}]', r"a\.json:1: a text has more than 1,000,000 characters"),
        ("a.json", '[{"a": 1, "a": 2}]', r"a\.json:1: the object names 'a' more than once"),
        ("a.json.gz", b"no gzip", r"expected a file compressed by gzip, found a broken one"),
        ("a.json.gz", gzip.compress(b"[1]", mtime=0)[:-4], r"expected a file compressed by gzip, found a broken one"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, name, content, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_table(write(tmp_path / name, content))


def test_an_emoji_written_as_two_halves_is_whole(tmp_path):
    assert read_table(write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}')).rows == [{"text": "😀"}]


def test_a_deep_cell_is_kept_as_it_is(tmp_path):
    content = '[{"text": "a", "deep": ' + "[" * 500 + "]" * 500 + "}]"
    assert len(read_table(write(tmp_path / "a.json", content)).rows) == 1
