"""Rows from JSON: one object on each line, an array of objects, or an object of columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from handful.data.cells import check_row, missing, repeated
from handful.data.mappings import rows_of_mapping
from handful.data.names import check_names
from handful.data.stream import TableStream
from handful.data.text_files import LONE_RETURN, TextFile
from handful.errors import DataError

Rows = Iterator[tuple[int, dict[str, Any]]]

_BLANK = re.compile(r"[ \t\r\n]*")
_ONE_EACH = "put one JSON object on each line"


def lines_stream(path: str, name: str, file: TextFile) -> TableStream:
    """Rows of JSON lines, read one by one. Raises: DataError if the first is wrong, and for others when they come."""
    rows = partial(_line_rows, path, file)
    return TableStream(path, name, _first_columns(path, rows), rows)


def document_stream(path: str, name: str, file: TextFile) -> TableStream:
    """Rows of an array of objects, or of an object in one of the forms of `rows_of_mapping`.

    A file that is JSON lines in spite of its name is read as such. Raises: DataError with the line.
    """
    text = file.text()
    start = len(text) - len(text.lstrip())
    if not text.strip():
        raise _empty(path)
    where = f"{path}:{text.count(chr(10), 0, start) + 1}"
    if text[start] == "[":
        rows = list(_array(path, text, start))
        return TableStream(path, name, _first_columns(path, lambda: iter(rows)), lambda: iter(rows))
    value, end = _decode(path, text, start)
    if text[end:].strip():
        stream = lines_stream(path, name, file)
        note = f"{name}: read as JSON lines, one object on each line"
        return TableStream(path, name, stream.columns, stream.rows, (note,))
    if not isinstance(value, dict):
        raise _no_rows(where, value)
    found, note = rows_of_mapping(value, where)
    checked = [(number, _checked(row, f"row {number} of {path}")) for number, row in enumerate(found)]
    columns = _first_columns(path, lambda: iter(checked))
    return TableStream(path, name, columns, lambda: iter(checked), (f"{name}: {note}",) if note else (), path)


def _line_rows(path: str, file: TextFile) -> Rows:
    for line, content in enumerate(file.lines(), 1):  # a JSON string may hold U+2028, which ends no line here
        if not content.strip():
            continue
        where = f"{path}:{line}"
        content = content.replace(LONE_RETURN, "\r")
        row = _loads(where, partial(json.loads, content))
        yield line, _checked(row, where)


def _array(path: str, text: str, start: int) -> Rows:
    """The objects of an array, each with the line it begins on."""
    position, line, counted, separator = start + 1, 1, 0, True
    while True:
        position = _BLANK.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        where, mark = f"{path}:{line}", text[position : position + 1]
        if mark == "]":
            break
        if mark == "," and not separator:
            position, separator = position + 1, True
            continue
        if not separator or not mark:
            raise DataError(f"{where}: expected ',' or ']' in the array, found {mark or 'the end'!r}", "complete it")
        row, position = _decode(path, text, position, line)
        separator = False
        yield line, _checked(row, where)
    if text[position + 1 :].strip():
        raise DataError(f"{where}: expected one JSON array, found more behind it", "give one array of objects")


def _decode(path: str, text: str, position: int, line: int | None = None) -> tuple[Any, int]:
    line = line or text.count("\n", 0, position) + 1
    decoder = json.JSONDecoder(object_pairs_hook=partial(_unique, f"{path}:{line}"))
    return _loads(f"{path}:{line}", lambda **_: decoder.raw_decode(text, position))


def _loads(where: str, loads: Callable[..., Any]) -> Any:
    try:
        return loads(object_pairs_hook=partial(_unique, where))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        is_table = isinstance(error, json.JSONDecodeError) and error.doc[:1] not in ("{", "[", '"')
        hint = f"{_ONE_EACH}; a file of CSV is to end in .csv" if is_table else _ONE_EACH
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{where}: expected a JSON object, found invalid JSON{column}: {getattr(error, 'msg', str(error))}",
            hint,
        ) from None


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := repeated(key for key, _ in pairs):
        raise DataError(
            f"{where}: the object names {', '.join(map(repr, twice))} more than once", "give each column its own name"
        )
    return dict(pairs)


def _checked(row: Any, where: str) -> dict[str, Any]:
    """The row, NaN as None. Raises: DataError if it is no object, or holds a text that cannot be used."""
    if not isinstance(row, dict):
        raise _no_rows(where, row)
    check_row(row, where)
    return {name: None if isinstance(cell, float) and missing(cell) else cell for name, cell in row.items()}


def _no_rows(where: str, found: Any) -> DataError:
    hint = (
        "a file with one array of objects is to end in .json"
        if isinstance(found, list) and isinstance((*found, 0)[0], dict)
        else _ONE_EACH
    )
    return DataError(
        f'{where}: expected a JSON object such as {{"text": ..., "label": ...}}, found {type(found).__name__}', hint
    )


def _first_columns(path: str, rows: Callable[[], Rows]) -> tuple[str, ...]:
    for line, row in rows():
        if not row:
            raise DataError(
                f"{path}:{line}: expected an object with columns, found one without any ({{}})",
                'write columns into each object, such as {"text": ...}, or remove it',
            )
        check_names(row, path)
        return tuple(row)
    raise _empty(path)


def _empty(path: str) -> DataError:
    return DataError(f"{path}: expected rows, found an empty file", "give a file with one JSON object for each row")
