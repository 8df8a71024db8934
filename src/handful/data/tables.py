"""Rows of cells from CSV, TSV and JSONL files, every row with the line it begins on."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from handful.errors import ConfigError, DataError, nearest

MAX_CELL = 1_000_000
"""Characters in one cell. More is a quote that is never closed, or no text to classify."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".jsonl")
_BYTE_ORDER_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@final
@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells by column name. `columns` are those of the header, or of the first JSON object.

    `lines[i]` is the line, counted from 1, on which row i begins. `path` is for errors, `name` for `Example.source`.
    """

    path: str
    name: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]

    @property
    def cells_are_texts(self) -> bool:
        """Whether a cell can hold nothing but a text: in CSV and TSV a list has to be written out."""
        return Path(self.path).suffix.lower() in _DELIMITERS

    def where(self, row: int) -> str:
        """The row's place for an error: "folder/data.csv:17"."""
        return f"{self.path}:{self.lines[row]}"


def read_table(path: str | Path, encoding: str | None = None) -> Table:
    """The rows of a file, by its suffix. Raises: DataError with the line where it cannot be read."""
    path = Path(path)
    _check_path(path)
    text = _decode(path, encoding)
    if not text.strip():
        raise DataError(f"{path}: expected rows, found an empty file", "give a file with a header and labelled rows")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path}:{line}: found a NUL character, which no text has",
            "the file is binary, or UTF-16 without a mark: then give --encoding utf-16-le",
        )
    suffix = path.suffix.lower()
    records = _json_lines(path, text) if suffix == ".jsonl" else _cells(path, text, _DELIMITERS[suffix])
    rows, lines = [], []
    for line, row in records:
        rows.append(row)
        lines.append(line)
    if not rows:
        raise DataError(f"{path}: expected rows, found only a header", "give a file with labelled rows")
    return Table(str(path), path.name, tuple(rows[0]), rows, lines)


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: expected a file, found a folder", f"name a file in it ({', '.join(_SUFFIXES)})")
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if p.suffix in _SUFFIXES] if path.parent.is_dir() else []
        missing = "no such file" if path.parent.is_dir() else f"no such folder as {path.parent}"
        hint = nearest(path.name, beside)
        raise DataError(f"{path}: {missing}", hint if hint.startswith("did you mean") else "check the path")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{path}: expected a file ending in {', '.join(_SUFFIXES)}, found {path.suffix or 'no ending'}",
            "save the table as CSV (UTF-8) and give that file",
        )


def _decode(path: Path, encoding: str | None) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "check the permissions of the file") from None
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    codec = encoding or marked
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except LookupError:
        raise ConfigError(
            f"encoding: {encoding!r} is not known", "common ones: utf-8, cp1252, latin-1, utf-16, shift_jis"
        ) from None
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(codec, errors="replace")
        line = before.count("\n") + 1
        others = "cp1252 if it comes from a Windows program" if codec.startswith("utf") else "the one it was saved with"
        raise DataError(
            f"{path}:{line}: expected {codec.upper()} text, found the byte 0x{data[error.start]:02X} "
            f"(byte {error.start + 1} of the file) after {before[before.rfind(chr(10)) + 1 :][-20:]!r}",
            f"give the encoding of the file: --encoding {others}",
        ) from None


def _cells(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] | None = None
    for line, row in _csv_rows(path, text, delimiter):
        if header is None:
            header = [name.strip() for name in row]
            _check_unique(header, f"{path}:{line}: the header")
        elif len(row) != len(header):
            raise DataError(
                f"{path}:{line}: expected {len(header)} cells ({', '.join(header)}), found {len(row)}",
                f"put cells that contain {delimiter!r} or a line break in double quotes",
            )
        else:
            yield line, dict(zip(header, row, strict=True))


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(MAX_CELL)  # of the whole process, so it is put back after each row
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise DataError(
                    f"{path}:{line}: a cell has more than {MAX_CELL:,} characters",
                    "look for a double quote on that line which is never closed",
                ) from None
            raise DataError(
                f"{path}:{line}: the double quotes do not match ({error})",
                'inside a quoted cell, write a double quote as ""',
            ) from None
        finally:
            csv.field_size_limit(limit)
        if row:
            yield line, row


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):  # not splitlines(): JSON strings may hold U+2028
        if not content.strip():
            continue
        where = f"{path}:{line}"

        def unique(pairs: list[tuple[str, Any]], where: str = where) -> dict[str, Any]:
            _check_unique([key for key, _ in pairs], f"{where}: the object")
            return dict(pairs)

        try:
            row = json.loads(content, object_pairs_hook=unique)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            problem = getattr(error, "msg", str(error))
            raise DataError(
                f"{where}: expected a JSON object, found invalid JSON{column}: {problem}",
                "put one JSON object on each line",
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f'{where}: expected a JSON object such as {{"text": ..., "label": ...}}, found {type(row).__name__}',
                "put one JSON object on each line",
            )
        if any(len(text) > MAX_CELL for cell in row.values() for text in _texts_in(cell)):
            raise DataError(f"{where}: a text has more than {MAX_CELL:,} characters", "cut it or leave the row out")
        yield line, row


def _texts_in(cell: Any) -> list[str]:
    cells = cell if isinstance(cell, list) else [cell]
    return [cell for cell in cells if isinstance(cell, str)]


def _check_unique(names: list[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{what} names {', '.join(map(repr, repeated))} more than once", "give each column its own name"
        )
