"""Rows from Parquet files and Excel workbooks, through packages of the extra "tables"."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from handful.data.cells import plain, repeated
from handful.data.delimited import Record
from handful.data.frames import memory_stream
from handful.data.grid import grid_stream
from handful.data.stream import TableStream
from handful.errors import DataError

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
        raise DataError(f"{path}: expected rows, found only a header", "give a file with labelled rows")
    found = memory_stream(table)
    return TableStream(str(path), path.name, found.columns, found.rows, (*notes, *found.notes), holder=str(path))


def workbook_stream(path: Path) -> TableStream:
    """The rows of the first sheet of an Excel workbook that is not empty, with their numbers there, and cells as texts,
    as in CSV; formulas count by their last value.

    Raises: DataError if it is damaged or `openpyxl` is missing.
    """
    openpyxl: Any = _package("openpyxl", path)
    damaged = (
        OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, zipfile.BadZipFile, ParseError
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # on styles and extensions, which matter to nobody here
            warnings.simplefilter("ignore")
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheets = [sheet.title for sheet in book.worksheets]
            rows, title = [], ""
            for sheet in book.worksheets:  # the first that is not empty
                rows = [list(row) for row in sheet.iter_rows(values_only=True)]
                title = sheet.title
                if any(cell is not None for row in rows for cell in row):
                    break
            book.close()
    except damaged as error:
        raise DataError(
            f"{path}: expected an Excel workbook, found a damaged one ({_first(error)})", "save it again, or as CSV"
        ) from None
    notes = [f"read the sheet {title!r}, one of {len(sheets)}"] if len(sheets) > 1 else []

    def records() -> Iterator[Record]:
        for number, row in enumerate(rows, 1):
            yield Record(number, [_as_written(cell) for cell in row])

    return grid_stream(str(path), path.name, records, notes=notes)


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
