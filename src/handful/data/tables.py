"""Rows of cells from files and from memory, every row with its place: the one way in for data of the user."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

from handful.data.binary_tables import parquet_stream, workbook_stream
from handful.data.cells import MAX_CELL, listed, missing_label
from handful.data.delimited import DELIMITERS, Dialect, Record, find_dialect, is_consistent, read_records
from handful.data.frames import memory_stream
from handful.data.grid import grid_stream
from handful.data.json_rows import document_stream, lines_stream
from handful.data.names import COMMON_NAMES
from handful.data.stream import TableStream, place
from handful.data.text_files import LONE_RETURN, TextFile
from handful.errors import ConfigError, DataError, nearest

__all__ = [
    "MAX_CELL", "Table", "TableStream", "as_path", "read_table", "stem", "stream_table", "takes_delimiter",
    "takes_encoding",
]  # fmt: skip

_DELIMITED = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
_JSON = {".jsonl": lines_stream, ".ndjson": lines_stream, ".json": document_stream}
_BINARY = {".parquet": parquet_stream, ".xlsx": workbook_stream}
SUFFIXES = (*_DELIMITED, *_JSON, *_BINARY)
"""Endings of files that can be read; those of text also with ".gz" behind."""


@final
@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells by column name. `columns` are those of the header, or of the first JSON object.

    `lines[i]` is the line, counted from 1, on which row i begins; in memory its position, counted from 0. `path` is for
    errors, `name` for `Example.source`, `holder` what holds rows without lines ("the DataFrame"), `index` what that
    calls them. `notes` say what was found, left out or guessed in reading. `unread` are names that stand for several
    columns, with their numbers. A missing value is None, or in delimited text an empty cell.
    """

    path: str
    name: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]
    notes: tuple[str, ...] = ()
    holder: str = ""
    index: Sequence[Any] | None = field(default=None, repr=False)
    unread: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def cells_are_texts(self) -> bool:
        """Whether a cell can hold nothing but a text: in CSV, TSV and Excel a list has to be written out."""
        return not self.holder and _suffix(Path(self.path)) in (*_DELIMITED, ".xlsx")

    @property
    def in_memory(self) -> bool:
        """Whether the rows never were in a file."""
        return self.holder not in ("", self.path)

    def where(self, row: int) -> str:
        """The row's place for an error: "folder/data.csv:17", or "row 3 of the DataFrame"."""
        return place(self.path, self.lines[row], self.holder, self.index)

    def places(self, rows: Sequence[int]) -> str:
        """Several rows for an error or a note: "line 3, 5, 9, 12, 13 and 4 more", or "row 3, 5"."""
        return f"{'row' if self.holder else 'line'} {listed([self.lines[row] for row in rows])}"

    def missing_label(self, cell: Any) -> bool:
        """Whether a cell of a label column holds no label: empty, NaN, or in delimited text a word such as "NA"."""
        return missing_label(cell, cells_are_texts=self.cells_are_texts)


def read_table(
    source: Any, *, encoding: str | None = None, delimiter: str | None = None, labelled: bool = False
) -> Table:
    """All rows of a file, or of a data frame, `datasets.Dataset`, list of dicts, dict of lists, (texts, labels) or
    list of texts.

    In a list of tuples of two texts the second is the pair of the first, or its label where the rows are `labelled`.
    Raises: DataError with the place where it cannot be read, ConfigError for a wrong encoding or delimiter.
    """
    stream = stream_table(source, encoding=encoding, delimiter=delimiter, labelled=labelled)
    lines, rows = [], []
    for line, row in stream:
        lines.append(line)
        rows.append(row)
    return Table(
        stream.path, stream.name, stream.columns, rows, lines, stream.notes, stream.holder, stream.index, stream.unread
    )


def stream_table(
    source: Any, *, encoding: str | None = None, delimiter: str | None = None, labelled: bool = False
) -> TableStream:
    """The same rows one by one. Delimited text and JSON lines are never in memory as a whole; JSON lines are checked
    as they come. Raises: as `read_table`.
    """
    if not isinstance(source, str | os.PathLike):
        for option, value in (("encoding", encoding), ("delimiter", delimiter)):
            if value is not None:
                raise ConfigError(f"{option}: rows in memory have none, found {value!r}", "leave it out")
        return memory_stream(source, labelled=labelled)
    path = as_path(source)
    _check_path(path)
    suffix = _suffix(path)
    if delimiter is not None and suffix not in _DELIMITED:
        raise ConfigError(f"delimiter: {path} has none, found {delimiter!r}", "leave it out")
    if suffix in _BINARY:
        if encoding is not None:
            raise ConfigError(f"encoding: {path} is no text to decode, found {encoding!r}", "leave it out")
        return _BINARY[suffix](path)
    file = TextFile(path, encoding)
    if suffix in _JSON:
        return _JSON[suffix](str(path), path.name, file)
    return _delimited_stream(path, file, _DELIMITED[suffix], delimiter)


def is_readable(path: Path) -> bool:
    """Whether a path is a file whose ending says that it can be read."""
    return path.is_file() and _suffix(path) in SUFFIXES


def takes_delimiter(source: Any) -> bool:
    """Whether a source is a file of delimited text, by its ending."""
    return isinstance(source, str | os.PathLike) and _suffix(Path(source)) in _DELIMITED


def takes_encoding(source: Any) -> bool:
    """Whether a source is a file of text, delimited or JSON, by its ending."""
    return isinstance(source, str | os.PathLike) and _suffix(Path(source)) in (*_DELIMITED, *_JSON)


def stem(path: Path) -> str:
    """The name of a file without its ending: "data" of "data.csv" and of "data.csv.gz"."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def as_path(source: str | os.PathLike[str]) -> Path:
    """The path. Raises: DataError for a text that no path is, such as the content of a file."""
    text = os.path.expanduser(os.fspath(source))
    if not isinstance(text, str):
        raise DataError(f"expected a path as text, found {type(text).__name__}", "decode it: os.fsdecode(path)")
    try:
        longest = max(len(os.fsencode(part)) for part in text.split(os.sep))
    except UnicodeError:
        raise DataError(f"expected a path, found {text[:40]!r}, which no file is called", "check the name") from None
    if not text:
        raise DataError("expected a path, found an empty text", "give the name of a file")
    if "\n" in text or "\r" in text or "\0" in text or longest > 255 or len(text) > 4000:
        raise DataError(
            f"expected a path, found a text of {len(text):,} characters ({text[:40]!r} …)",
            "give the name of a file; rows in memory as a data frame, a list of dicts or (texts, labels)",
        )
    if "://" in text:
        raise DataError(
            f"expected a path, found the address {text[:80]!r}",
            "download the file and give its path; a dataset of the Hugging Face Hub is hub:OWNER/NAME",
        )
    return Path(text)


def _delimited_stream(path: Path, file: TextFile, usual: str, delimiter: str | None) -> TableStream:
    if not any(line.strip() for line in file.lines()):
        raise DataError(f"{path}: expected rows, found an empty file", "give a file with a header and rows")
    _refuse_json(path, next(line for line in file.lines() if line.strip()).strip())
    if _suffix(path) == ".txt" and delimiter is None and not _has_header(file):
        return _texts_stream(path, file)
    dialect, notes = find_dialect(str(path), file.lines, usual, delimiter)
    records: Callable[[], Iterator[Any]] = partial(read_records, str(path), file.lines, dialect)
    return grid_stream(str(path), path.name, records, delimiter=dialect.delimiter, notes=notes)


def _refuse_json(path: Path, first: str) -> None:
    """Raises: DataError where the first line of a file of delimited text is JSON."""
    try:
        found = json.loads(first) if first[:1] in "{[" else None
    except (ValueError, RecursionError):
        found = [{}] if re.match(r'\[\s*($|\{\s*($|"[^"]*"\s*:))', first) else None
    is_array = isinstance(found, list) and all(isinstance(row, dict) for row in found)
    if (isinstance(found, dict) and found) or is_array:
        what, ending = ("an array of JSON objects", ".json") if is_array else ("JSON lines", ".jsonl")
        raise DataError(f"{path}: expected delimited text, found {what}", f"its name is to end in {ending}")


def _has_header(file: TextFile) -> bool:
    """Whether a file of any text is a table: its first line holds a customary name of a column, or tabs cut it."""
    first = next(line for line in file.lines() if line.strip())
    titles = {title.strip(' "\r\n').lower() for title in re.split("|".join(map(re.escape, DELIMITERS)), first)}
    return not titles.isdisjoint(COMMON_NAMES) or ("\t" in first and is_consistent(file.lines, "\t"))


def _texts_stream(path: Path, file: TextFile) -> TableStream:
    """Every line that is not blank as a text."""

    def records() -> Iterator[Record]:
        yield Record(0, ["text"])
        yield from read_records(str(path), file.lines, Dialect(LONE_RETURN, quoted=False))

    return grid_stream(str(path), path.name, records, notes=["every line is read as a text, there is no header"])


def _suffix(path: Path) -> str:
    """The ending that says what the file holds: ".csv" of "data.csv" and of "data.csv.gz"."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _check_path(path: Path) -> None:
    try:
        _check_file(path)
    except OSError as error:  # a folder above it that may not be entered
        raise DataError(f"{path}: cannot be read: {error.strerror}", "check the permissions of the folder") from None


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: expected a file, found a folder", f"name a file in it ({', '.join(SUFFIXES)})")
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if _suffix(p) in SUFFIXES] if path.parent.is_dir() else []
        missing = (
            "not a regular file"
            if path.exists()
            else "no such file"
            if path.parent.is_dir()
            else f"no such folder as {path.parent}"
        )
        hint = nearest(path.name, beside)
        raise DataError(f"{path}: {missing}", hint if hint.startswith("did you mean") else "check the path")
    if _suffix(path) not in SUFFIXES or (path.suffix.lower() == ".gz" and _suffix(path) in _BINARY):
        raise DataError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)} (text also with .gz), found "
            f"{path.suffix or 'no ending'}",
            "save the table as CSV (UTF-8) and give that file",
        )
