"""What the columns of a table look like, and which of them can only be the text or the label, whatever their names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, final

from handful.data.cells import missing
from handful.data.numbers import read_number
from handful.data.tables import Table

Look = Literal["empty", "constant", "index", "id", "date", "list", "classes", "numbers", "texts", "names"]

LEAST_ROWS = 4
"""Rows from which on values that repeat say something."""

_WORDS_OF_A_CLASS = 4
_SHOWN = 12

_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([T ]\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(:\d{2})?")
_ID_NAME = re.compile(r"(.*[\W_])?(id|idx|index|key|uuid|guid|nr|no|number)|.*Id|unnamed: \d+|", re.DOTALL)
_CODE = re.compile(r"(?=.*[\d_-])[\w.:/+-]+")


@final
@dataclass(frozen=True, slots=True)
class Column:
    """A column by what it looks like, with a few words on it."""

    name: str
    look: Look
    words: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.words})"


def look_at(table: Table, name: str) -> Column:
    """What the cells of a column look like.

    "classes" are short values of which there are at most half as many as rows, whole numbers among them; "texts" have
    three words or more on average; "names" are what differs in most rows and is shorter.
    """
    cells = [cell for row in table.rows if not missing(cell := row.get(name))]
    if not cells:
        return Column(name, "empty", "empty")
    if any(isinstance(cell, list | dict) for cell in cells):
        return Column(name, "list", "lists or objects")
    values = [str(cell).strip() for cell in cells]
    distinct, rows = len(set(values)), len(values)
    numbers = [number for cell in cells if (number := read_number(cell)) is not None]
    only_numbers = len(numbers) == rows
    if distinct == 1 and rows > 1:
        return Column(name, "constant", f"always {values[0][:40]!r}")
    if only_numbers and distinct == rows > 1 and _counts(numbers):
        return Column(name, "index", "numbers the rows")
    if _ID_NAME.fullmatch(name) and distinct == rows and all(len(value.split()) == 1 for value in values):
        return Column(name, "id", "an id in every row")
    if all(_DATE.fullmatch(value) for value in values):
        return Column(name, "date", "dates or times")
    if only_numbers and (distinct * 2 > rows or any(not number.is_integer() for number in numbers)):
        return Column(name, "numbers", f"{distinct:,} different numbers")
    words = sum(len(value.split()) for value in values) / rows
    if distinct * 2 <= rows and words <= _WORDS_OF_A_CLASS:
        return Column(name, "classes", f"{distinct:,} different values in {rows:,} rows")
    if words >= 3:
        return Column(name, "texts", f"texts of {words:.0f} words")
    if distinct == rows and all(_CODE.fullmatch(value) for value in values):
        return Column(name, "id", "an id in every row")
    return Column(name, "names", f"{distinct:,} different values in {rows:,} rows")


def _counts(numbers: Sequence[float]) -> bool:
    """Whether numbers go up by one from row to row."""
    return all(later - earlier == 1 for earlier, later in pairwise(numbers))


def describe_columns(table: Table) -> str:
    """The columns and what each of them looks like, where there are rows enough to see."""
    if len(table.rows) < LEAST_ROWS:
        return ", ".join(map(repr, table.columns[:_SHOWN]))
    more = f" and {len(table.columns) - _SHOWN:,} more" if len(table.columns) > _SHOWN else ""
    return ", ".join(str(look_at(table, name)) for name in table.columns[:_SHOWN]) + more


def unused(table: Table, used: Collection[str | None]) -> list[str]:
    """A sentence on the columns that are not read; none where all are."""
    rest = [name for name in table.columns if name not in used]
    shown = [column for name in rest[:_SHOWN] if (column := look_at(table, name)).look != "empty"]
    more = f" and {len(rest) - _SHOWN:,} more" if len(rest) > _SHOWN else ""
    return [f"{table.name}: columns that are not read: {', '.join(map(str, shown))}{more}"] if shown else []


def telling(table: Table, names: Sequence[str]) -> list[str]:
    """Those of the columns that can be told to hold something: no ids, dates or constants. All, where none is left."""
    if len(table.rows) < LEAST_ROWS:
        return list(names)
    silent = ("empty", "constant", "index", "id", "date")
    return [name for name in names if look_at(table, name).look not in silent] or list(names)


def only_text(table: Table, taken: Collection[str | None]) -> Column | None:
    """The one column, apart from those that are `taken`, that can be the text; None where none or several can.

    Where there is at most one other column that says something, the texts may be short.
    """
    rest = [look_at(table, name) for name in table.columns if name not in taken]
    left = [column for column in rest if column.look not in ("empty", "constant", "index", "id", "date")]
    found = [column for column in left if column.look in ("texts", "names")]
    if len(found) != 1 or (found[0].look == "names" and len(left) > 2):
        return None
    return found[0]


def only_label(table: Table, taken: Collection[str | None]) -> Column | None:
    """The one column, apart from those that are `taken`, that can be the label; None where none or several can."""
    rest = [look_at(table, name) for name in table.columns if name not in taken]
    found = [column for column in rest if column.look in ("classes", "numbers", "list")]
    if len(found) != 1 or len(table.rows) < LEAST_ROWS or any(column.look in ("texts", "names") for column in rest):
        return None
    return found[0]


def one_hot(table: Table, taken: Collection[str | None]) -> list[str]:
    """Columns of 0 and 1, or of true and false, where there are two or more."""

    def flag(cell: Any) -> bool:
        return missing(cell) or str(cell).strip().lower() in ("0", "1", "0.0", "1.0", "true", "false")

    rest = [name for name in table.columns if name not in taken]
    found = [name for name in rest if all(flag(row.get(name)) for row in table.rows)]
    found = [name for name in found if look_at(table, name).look != "empty"]
    return found if len(found) > 1 else []


def flags_hint(table: Table, columns: Sequence[str]) -> str:
    """What to do with columns of 0 and 1."""
    true = ("1", "1.0", "true")
    counts = [sum(str(row.get(name)).strip().lower() in true for name in columns) for row in table.rows]
    names = ", ".join(map(repr, columns[:_SHOWN])) + (" …" if len(columns) > _SHOWN else "")
    if all(count == 1 for count in counts):
        return (
            f"{names} hold 0 and 1, in every row one 1: write the name of that column into a column 'label', or learn "
            f"one of them with --label {columns[0]}"
        )
    return (
        f"{names} hold 0 and 1, in some rows several or none: for several labels per text name them all, --label "
        f"{shlex.quote(','.join(columns))} --kind multilabel; to learn one of them, --label {columns[0]}"
    )
