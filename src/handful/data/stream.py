"""Rows that come one by one, with the place of each: what every reader returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class TableStream:
    """Rows of cells by column name, read anew each time it is iterated: `(line, row)` in order.

    `path` is for errors, `name` for `Example.source`. `columns` are those of the header, of the frame, or of the first
    object. `notes` say what was found, left out or guessed, and are complete before the first row is read.

    Where rows have no lines of their own, `line` is the row's position counted from 0, `holder` says of what ("the
    DataFrame", or the path of a Parquet file), and `index` what the frame calls its rows, if that is more than their
    position. `unread` are names that stand for several columns, with their numbers.

    Files of delimited text and of JSON lines are read row by row, in memory that does not grow with them.
    """

    path: str
    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[tuple[int, dict[str, Any]]]] = field(repr=False)
    notes: tuple[str, ...] = ()
    holder: str = ""
    index: Sequence[Any] | None = field(default=None, repr=False)
    unread: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self.rows()

    def where(self, line: int) -> str:
        """The place of the row that came with this line, for an error: "folder/data.csv:17"."""
        return place(self.path, line, self.holder, self.index)


def place(path: str, line: int, holder: str, index: Sequence[Any] | None) -> str:
    """Where a row is: "folder/data.csv:17", "row 3 of the DataFrame", or "row 3 (index 'x') of the DataFrame"."""
    if not holder:
        return f"{path}:{line}"
    return f"row {line}{f' (index {index[line]!r})' if index is not None else ''} of {holder}"
