"""Rows from Parquet files and Excel workbooks, through packages of the extra "tables"."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from handful.data.cells import listed, plain, repeated
from handful.data.delimited import Record
from handful.data.frames import memory_stream
from handful.data.grid import grid_stream
from handful.data.names import is_header
from handful.data.stream import TableStream
from handful.errors import DataError

_NAMED_SHEETS = 10
_PANDAS_INDEX = "__index_level_"


def parquet_stream(path: Path) -> TableStream:
    """The rows of a Parquet file. Raises: DataError if it is damaged or `pyarrow` is missing."""
    parquet: Any = _package("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:  # pyarrow's own are OSError or ValueError
        raise DataError(
            f"{path}: expected a Parquet file, found a damaged one ({_first(error)})", "copy it again"
        ) from None
    index = [title for title in table.column_names if title.startswith(_PANDAS_INDEX)]
    if twice := repeated(table.column_names):
        raise DataError(f"{path}: columns have the same name ({', '.join(map(repr, twice))})", "rename one of them")
    table = table.drop_columns(index)
    notes = [f"{path.name}: the index of a pandas frame is left out"] if index else []
    if table.num_rows == 0:
        raise DataError(f"{path}: expected rows, found only a header", "give a file with rows")
    found = memory_stream(table)
    return TableStream(str(path), path.name, found.columns, found.rows, (*notes, *found.notes), holder=str(path))


def workbook_stream(path: Path) -> TableStream:
    """The rows of one sheet of an Excel workbook, with their numbers there, and cells as texts, as in CSV; formulas
    count by their last value.

    Of several sheets it is the first whose first rows name columns by customary names, else the first that has two
    columns or more, else the first that is not empty; it is said which. Raises: DataError if it is damaged or
    `openpyxl` is missing.
    """
    openpyxl: Any = _package("openpyxl", path)
    damaged = (
        OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, zipfile.BadZipFile, ParseError
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # on styles and extensions, which matter to nobody here
            warnings.simplefilter("ignore")
            sheets = _sheets(openpyxl, path, values=True)
            title = max(sheets, key=lambda title: _likeness(sheets[title]), default="")  # of equals the first
            rows = sheets.get(title, [])
            found = _unstored(rows, _sheets(openpyxl, path, values=False, only=title)[title]) if _has_gap(rows) else []
    except damaged as error:
        if not zipfile.is_zipfile(path) and (text := _as_text(path)) is not None:
            hint = f"its name is to end in {'.json or .jsonl' if text.lstrip()[:1] in ('{', '[') else '.csv'}"
            raise DataError(f"{path}: expected an Excel workbook, found a text file", hint) from None
        raise DataError(
            f"{path}: expected an Excel workbook, found a damaged one ({_first(error)})", "save it again, or as CSV"
        ) from None
    names = ", ".join(map(repr, list(sheets)[:_NAMED_SHEETS])) + ", …" * (len(sheets) > _NAMED_SHEETS)
    notes = [f"read the sheet {title!r}, one of {len(sheets)} ({names})"] if len(sheets) > 1 else []
    if found:
        cells = f"{len(found):,} cells hold" if len(found) > 1 else "1 cell holds"
        notes.append(f"{cells} a formula whose value is not stored (row {listed(found)}): open and save it in Excel")

    def records() -> Iterator[Record]:
        for number, row in enumerate(rows, 1):
            yield Record(number, [_as_written(cell) for cell in row])

    try:
        return grid_stream(str(path), path.name, records, notes=notes)
    except DataError as error:
        if len(sheets) == 1:
            raise
        raise DataError(error.message, f"{error.hint}; {notes[0]}") from None


def _sheets(openpyxl: Any, path: Path, *, values: bool, only: str | None = None) -> dict[str, list[list[Any]]]:
    """The cells of the sheets, of formulas the last values or themselves."""
    book = openpyxl.load_workbook(path, read_only=True, data_only=values)
    sheets = [sheet for sheet in book.worksheets if only in (None, sheet.title)]
    found = {sheet.title: [list(row) for row in sheet.iter_rows(values_only=True)] for sheet in sheets}
    book.close()
    return found


def _likeness(rows: list[list[Any]]) -> int:
    """How much a sheet looks like a table: 3 with customary names, 2 with two columns, 1 with anything, 0 if empty."""
    filled = [row for row in rows if any(cell is not None for cell in row)]
    if len(filled) > 1 and any(is_header(cell for cell in row if cell is not None) for row in filled[:2]):
        return 3
    wide = len(filled) > 1 and sum(cell is not None for cell in filled[0]) > 1
    return 2 if wide else min(len(filled), 1)


def _has_gap(rows: list[list[Any]]) -> bool:
    """Whether a row that is not empty has an empty cell, which may be a formula without a value."""
    return any(None in row and any(cell is not None for cell in row) for row in rows)


def _unstored(rows: list[list[Any]], formulas: list[list[Any]]) -> list[int]:
    """The numbers of the rows of formulas that have no value, one for each."""
    return [
        number
        for number, (row, written) in enumerate(zip(rows, formulas, strict=False), 1)
        for cell, formula in zip(row, written, strict=False)
        if cell is None and isinstance(formula, str) and formula.startswith("=")
    ]


def _as_text(path: Path) -> str | None:
    """The beginning of a file, where that is text in UTF-8."""
    with open(path, "rb") as file:
        beginning = file.read(1000)
    text = beginning.decode("utf-8", "replace").rstrip("\ufffd")  # the last letter may be cut
    odd = any(mark == "\ufffd" or (mark < " " and mark not in "\t\r\n") for mark in text)
    return None if odd or not text.strip() or beginning.startswith((b"PK", b"PAR1")) else text


def _as_written(cell: Any) -> str | None:
    """A cell as Excel would write it to CSV, so that a number is a text where texts are meant."""
    value = plain(cell)
    return None if value is None else f"{value:.0f}" if _is_whole(value) else str(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**53


def _package(name: str, path: Path) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise DataError(
            f"{path}: {path.suffix} files are read through the package {package!r}, which is not installed",
            "pip install 'handful[tables]'",
        ) from None


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]
