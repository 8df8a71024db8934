"""Columns by name, and cells that must be there: what tables of every kind of task are checked with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from handful.data.cells import missing as missing
from handful.data.layout import telling
from handful.data.names import COMMON_NAMES
from handful.data.tables import Table
from handful.errors import DataError, nearest

_NAMED_COLUMNS = 30
"""Columns that an error lists before it counts the rest."""


_LOOKED_AT = 200
"""Columns of which it is looked whether they say something, as one may be meant."""


@final
@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns. As a wish, "text" and "label" may be met by another name, and a pair may be found; a text
    of "" is one that nobody has named.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the text and its pair."""
        return (self.text, self.text_pair) if self.text_pair else (self.text,)


def present(table: Table, names: Sequence[str]) -> list[str]:
    """The table's columns of these names, upper or lower case."""
    folded = {name.lower(): name for name in table.columns}
    return [folded[name] for name in names if name in folded]


def only(
    table: Table,
    role: str,
    wanted: str,
    found: Sequence[str],
    option: str | None = None,
    *,
    looks: str | None = None,
    hint: str | None = None,
    more: str = "",
) -> str:
    """The one column found for a role. Raises: DataError naming the columns, with their `looks` where these are given,
    and the option that says which it is, or the `hint` where no name is near; with `more` that can be done.
    """
    if len(found) == 1:
        return found[0]
    option = option or "--" + role.replace(" ", "-")
    known = found or telling(table, table.columns[:_LOOKED_AT])
    named = f"name the column: {option} " + "|".join(known[:_NAMED_COLUMNS]) + "|…" * (len(known) > _NAMED_COLUMNS)
    hint = hint or named
    if nearest(wanted, table.columns).startswith("did you mean"):
        hint = f"{nearest(wanted, table.columns)} ({option} COLUMN)"
    columns = looks or _named(table.columns)
    for name, numbers in table.unread.items():
        columns += f"; columns {' and '.join(map(str, numbers))} are all named {name!r}"
        if name in (wanted, *found) or name.lower() == wanted.lower():
            hint = f"give each of the columns named {name!r} a name of its own"
    if uncut := _uncut(table):
        hint, more = uncut, ""
    sheet = "".join(f"; {note}" for note in table.notes if ": read the sheet " in note)
    raise DataError(
        f"{table.path}: expected a {role} column {wanted!r}, found the columns {columns}", hint + more + sheet
    )


def _uncut(table: Table) -> str | None:
    """What to do with a table whose only name of a column holds a mark that seems to part several names."""
    if len(table.columns) != 1 or not table.cells_are_texts or table.path.lower().endswith(".xlsx"):
        return None
    (name,) = table.columns
    cells = [str(row[name]) for row in table.rows[:_LOOKED_AT]]
    if re.search(r"\w {2,}\w", name) and all(re.search(r" {2,}", cell.strip()) for cell in cells):
        return "several spaces seem to part the columns: save the table with tabs or commas between them"
    marks = [mark for mark in dict.fromkeys(re.findall(r"[^\w\s\"'().-]", name)) if not name.startswith(mark)]
    for mark in marks:
        titles = {title.strip().lower() for title in name.split(mark)}
        if len(titles) > 1 and not titles.isdisjoint(COMMON_NAMES) and all(mark in cell for cell in cells):
            if f"{mark}{mark}" in name:
                return f"{mark * 2!r} seems to part the columns, and one character can: save the table with commas"
            return f"{mark!r} seems to part the columns: --delimiter {shlex.quote(mark)}"
    return None


def _named(columns: Sequence[str]) -> str:
    more = len(columns) - _NAMED_COLUMNS
    return ", ".join(f"{name!r:.80}" for name in columns[:_NAMED_COLUMNS]) + (f" and {more:,} more" if more > 0 else "")


def check_column(table: Table, name: str) -> None:
    """Raises: DataError naming the first line without this column."""
    for index, row in enumerate(table.rows):
        if name not in row:
            found = _named(tuple(row)) or "an object without any"
            if not row:
                raise DataError(
                    f"{table.where(index)}: expected the column {name!r}, found {found}", "fill it or remove it"
                )
            raise DataError(
                f"{table.where(index)}: expected the column {name!r}, found {found}",
                nearest(name, list(row)[:_NAMED_COLUMNS]),
            )


def check_text(table: Table, index: int, name: str, cell: Any) -> None:
    """Raises: DataError where a cell of this row and column is no text, or one that cannot be encoded."""
    if not isinstance(cell, str):
        hint = "put it in double quotes" if not table.holder else "make it a text, with str() or astype(str)"
        hint = "fill in or remove the row" if missing(cell) else hint
        if missing(cell) and (formula := formula_hint(table)):
            raise DataError(f"{table.where(index)}: expected a text in {name!r}, found none stored", formula)
        raise DataError(f"{table.where(index)}: expected a text in {name!r}, found {cell!r:.80}", hint)
    if re.search("[\ud800-\udfff]", cell):
        raise DataError(
            f"{table.where(index)}: the text in {name!r} holds half of a surrogate pair", "write the whole character"
        )


def formula_hint(table: Table) -> str | None:
    """What to do where an empty cell may be a formula of a workbook; None where there is no such formula."""
    return next(
        (note.partition(": ")[2] for note in table.notes if "a formula whose value is not stored" in note), None
    )


def complain_of_labels(table: Table, column: str) -> None:
    """Raises: DataError naming the rows without a label, and the words that were read as none."""
    cells = [row[column] for row in table.rows if table.missing_label(row[column])]
    words = sorted({cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()})
    called = f" (or with {', '.join(map(repr, words))}, which is read as none)" if words else ""
    formula = formula_hint(table)
    hint = f"fill in or remove them; if {words[0]!r} is a class of its own, write it otherwise" if words else formula
    complain(table, column, table.missing_label, f"without a label{called}", hint)


def complain(table: Table, column: str, wrong: Callable[[Any], bool], what: str, hint: str | None = None) -> None:
    """Raises: DataError naming the first lines whose cell of this column is wrong."""
    rows = [index for index, row in enumerate(table.rows) if wrong(row[column])]
    if rows:
        raise DataError(
            f"{table.path}: expected no row {what}, found {len(rows)} ({table.places(rows)})",
            hint or "fill in or remove them",
        )
