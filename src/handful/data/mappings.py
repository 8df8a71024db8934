"""Rows of a mapping, in the forms of dicts and JSON documents: columns, rows by their index, rows under a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handful.data.names import COMMON_NAMES
from handful.errors import DataError

_SPLIT = {"columns", "data"}
_SPLIT_MORE = {"index", "index_names", "column_names"}


def rows_of_mapping(source: Mapping[Any, Any], where: str) -> tuple[list[Mapping[Any, Any]], str | None]:
    """The rows of a mapping, and a note where these are not columns.

    A mapping is of columns (lists of one length, or mappings with the same keys, as `DataFrame.to_dict` gives), of rows
    by their index, of "columns" and "data", or holds a list of rows under one of its keys. Raises: DataError for any
    other.
    """
    if source.keys() >= _SPLIT and source.keys() <= _SPLIT | _SPLIT_MORE and _is_matrix(source):
        titles = source["columns"]
        return [dict(zip(titles, row, strict=True)) for row in source["data"]], None
    listed = [
        key for key, value in source.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)
    ]
    others = [value for key, value in source.items() if key not in listed]
    if len(listed) > 1 and len(listed) == len(source):
        raise DataError(
            f"{where}: expected one table, found several: {', '.join(f'{key!r:.80}' for key in listed[:10])}",
            "give one of them alone, and the test rows as such (--test, test=)",
        )
    if len(listed) == 1 and not any(is_column(value) for value in others):
        rows = list(source[listed[0]])
        wrong = next((number for number, row in enumerate(rows) if not isinstance(row, Mapping)), None)
        if wrong is not None:
            raise DataError(
                f"{where}: expected rows under {listed[0]!r:.80}, found {rows[wrong]!r:.80} at position {wrong}",
                "give every row as an object with the names of its columns",
            )
        return rows, f"the rows are those of {listed[0]!r:.80}"
    inner = [value for value in source.values() if isinstance(value, Mapping)]
    if inner and len(inner) == len(source):
        titles = {str(key).lower() for row in inner for key in row}
        if not titles.isdisjoint(COMMON_NAMES) and COMMON_NAMES.isdisjoint(str(key).lower() for key in source):
            return inner, "each value of the mapping is read as a row"
        if len({tuple(column) for column in inner}) > 1:
            raise DataError(f"{where}: expected columns with the same rows, found others", "complete the columns")
        return _zipped({key: list(column.values()) for key, column in source.items()}, where), None
    wrong = [key for key, column in source.items() if not is_column(column)]
    if wrong:
        raise DataError(
            f"{where}: expected columns as lists, found {source[wrong[0]]!r:.80} under {wrong[0]!r:.80}",
            "give the columns as lists of one length; one row alone goes into a list",
        )
    check_order({f"{where}: {key!r:.80}": column for key, column in source.items()})
    return _zipped({key: as_list(column) for key, column in source.items()}, where), None


def _is_matrix(source: Mapping[Any, Any]) -> bool:
    """Whether every row of "data" has a cell for each of "columns"."""
    titles, data = source["columns"], source["data"]
    return (
        isinstance(titles, list)
        and isinstance(data, list)
        and all(isinstance(row, list) and len(row) == len(titles) for row in data)
        and not any(isinstance(title, list | dict) for title in titles)
    )


def _zipped(columns: dict[Any, list[Any]], where: str) -> list[Mapping[Any, Any]]:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key!r:.80} has {length}" for key, length in list(lengths.items())[:10])
        raise DataError(
            f"{where}: expected columns of one length, found that {shown}", "give every column a cell for each row"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_order(columns: Mapping[str, Any]) -> None:
    """Raises: DataError for columns of pandas with different indexes, which position and index pair differently."""
    indexed = [(name, column.index) for name, column in columns.items() if hasattr(column, "iloc")]
    for name, index in indexed[1:]:
        first, other = indexed[0]
        if len(index) == len(other) and not index.equals(other):
            raise DataError(
                f"{name} and {first} have different indexes, so it is not clear which rows belong together",
                "to pair them by index, give one of them as column.loc[other.index]; by position, both as lists",
            )


def is_column(value: Any) -> bool:
    """Whether a value is a sequence of cells: a list, tuple, array or series."""
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    return isinstance(value, list | tuple | range) or hasattr(value, "tolist") or hasattr(value, "to_list")


def as_list(column: Any) -> list[Any]:
    """The cells of a column. A lone array without dimensions is one cell."""
    convert = getattr(column, "tolist", None) or getattr(column, "to_list", None)
    found = convert() if convert else list(column)
    return found if isinstance(found, list) else [found]
