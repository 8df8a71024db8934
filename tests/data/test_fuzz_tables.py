"""Whatever stands in a file or in memory, reading ends in rows or in an error that says what is wrong."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handful.data.files import read_task
from handful.data.new_rows import unlabelled_rows
from handful.data.tables import read_table
from handful.errors import HandfulError

CASES = int(os.environ.get("HANDFUL_FUZZ_CASES", "60"))
"""Of each test; a search sets more."""

pytestmark = pytest.mark.timeout(300 if CASES <= 100 else 0)

SUFFIXES = [".csv", ".tsv", ".txt", ".jsonl", ".json", ".ndjson", ".csv.gz", ".json.gz", ".parquet", ".xlsx"]
ENCODINGS = [
    None,
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "utf-7",
    "latin-1",
    "cp1252",
    "shift_jis",
    "hz",
]
NAMES = [
    "idna",
    "punycode",
    "utf-8\0",
    "base64",
    "rot13",
    "undefined",
    "unicode_escape",
    "mbcs",
    "zip",
    "",
    "ü",
    "\ud83d",
]

marks = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0"])
table_like = st.text(st.sampled_from(list("ab1,;|\t\"\n\r '{}[]:.é😀\0\u2028")), max_size=80)
headed = st.builds(
    "{}{}".format, st.sampled_from(["text,label\n", "text;label\n", "text\tlabel\n", "sep=;\n", ""]), table_like
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
rows = st.lists(st.dictionaries(st.sampled_from(["text", "label", "a", "\ud83d"]), values, max_size=3), max_size=4)


def predicted(source: Any, **options: Any) -> None:
    """Rows to predict, all of them."""
    for _ in unlabelled_rows(source, kind="classification", **options):
        pass


def attempt(source: Any, **options: Any) -> None:
    """Every way of reading a source. Anything but a HandfulError fails the test."""
    for read in (read_table, read_task, predicted):
        try:
            read(source, **options)
        except HandfulError as error:
            str(error).encode()  # can be printed


def fuzz(test: Any) -> Any:
    return settings(max_examples=CASES, deadline=None)(test)


@fuzz
@given(st.sampled_from(SUFFIXES), marks, st.binary(max_size=200), st.sampled_from(ENCODINGS))
def test_bytes(tmp_path_factory, suffix, mark, content, encoding):
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(gzip.compress(mark + content, mtime=0) if suffix.endswith(".gz") else mark + content)
    attempt(path, **({"encoding": encoding} if suffix not in (".parquet", ".xlsx") else {}))


@fuzz
@given(
    st.sampled_from([".csv", ".tsv", ".txt", ".json", ".jsonl"]),
    headed,
    st.sampled_from([None, ",", ";", "tab", "x", ""]),
)
def test_texts(tmp_path_factory, suffix, content, delimiter):
    path = tmp_path_factory.getbasetemp() / f"text{suffix}"
    path.write_bytes(content.encode())
    attempt(path, delimiter=delimiter)


@fuzz
@given(st.sampled_from([".jsonl", ".json", ".ndjson"]), values | rows, st.booleans())
def test_json(tmp_path_factory, suffix, value, lines):
    path = tmp_path_factory.getbasetemp() / f"rows{suffix}"
    several = lines and isinstance(value, list)
    path.write_text("\n".join(map(json.dumps, value)) if several else json.dumps(value, indent=1 if lines else None))
    attempt(path)


@fuzz
@given(values | rows | st.tuples(values, values))
def test_memory(value):
    try:
        path = isinstance(value, str) and Path(value).exists()
    except ValueError:
        path = False
    if not path:
        attempt(value)


@fuzz
@given(st.sampled_from(NAMES), st.binary(max_size=40))
def test_encodings(tmp_path_factory, name, content):
    path = tmp_path_factory.getbasetemp() / "encoded.csv"
    path.write_bytes(b"text,label\n" + content)
    attempt(path, encoding=name)
