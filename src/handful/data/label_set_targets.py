"""Labels of texts with several: which columns hold them, what the classes are, and the label of one row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from handful.data.label_sets import SEPARATORS, as_separator, read_flag_columns, read_label_sets
from handful.data.labels import Targets, UnknownLabel
from handful.data.tables import Table
from handful.data.written_lists import read_list
from handful.errors import DataError, nearest
from handful.objectives import TaskKind


@final
@dataclass(frozen=True, slots=True)
class SetTargets:
    """What cells with several labels mean: 0 or 1 for each of `labels`.

    A cell is a list, as an object or written out; a text with a mark between labels; or one label. With `separator` the
    mark is that one, without it the one that divides a cell into known labels. `flags` says whether lists hold zeros
    and ones, one per class, as the column of training did; None where that is not known.
    """

    labels: tuple[str, ...]
    separator: str | None = None
    flags: bool | None = None
    _names: Targets = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", Targets(self.labels))

    def value(self, cell: Any, where: str) -> tuple[int, ...]:
        """The label of one row. Raises: DataError if it names an unknown class."""
        lists = not isinstance(cell, str | int | float) or (isinstance(cell, str) and read_list(cell) is not None)
        mark = None if lists else self._mark(cell)
        if not lists and mark is None:
            return self._flags({int(self._names.value(cell, where))})
        # names that are no 0 and 1 leave no doubt about lists that hold these alone
        flags = self.flags or (None if {"0", "1"}.isdisjoint(self.labels) else self.flags)
        found = read_label_sets([cell], separator=mark, labels=self.labels, where=lambda _: where, flags=flags)
        return self._flags(set(found.rows[0] or ()))

    def knows(self, cell: Any) -> bool:
        """False where a cell names a class that is none of these, and True where it cannot be read, which `value` says:
        an unknown name that holds a known one may be several labels with another mark between them.
        """
        try:
            self.value(cell, "")
        except UnknownLabel as error:
            return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", error.name) for name in self.labels)
        except DataError:
            return True
        return True

    def _mark(self, cell: Any) -> str | None:
        """The mark in a cell that is no list; None where it is one label."""
        if not isinstance(cell, str) or self._names.knows(cell):
            return None
        marks = [as_separator(self.separator)] if self.separator else SEPARATORS.values()
        found = [mark for mark in marks if mark in cell.strip()]
        parts = {mark: [part for part in cell.split(mark) if part.strip()] for mark in found}
        return next((mark for mark in found if all(map(self._names.knows, parts[mark]))), next(iter(found), None))

    def _flags(self, indices: set[int]) -> tuple[int, ...]:
        return tuple(int(index in indices) for index in range(len(self.labels)))


def set_targets(
    table: Table, label: str, kind: TaskKind | None, separator: str | None, named: tuple[str, ...] = ()
) -> tuple[SetTargets, list[str]] | None:
    """The classes in a column whose cells hold several labels, and notes; None where the table is of another kind.

    It is of several labels if that or a separator is asked for, or if all cells are lists and one has not just one
    label. Raises: DataError for cells of another kind (`read_label_sets`).
    """
    cells = [row.get(label) for row in table.rows]
    if kind not in (None, "multilabel"):
        return None
    notes = []
    if kind is None and separator is None:
        known = [cell for cell in cells if not table.missing_label(cell)]
        sizes = [len(found) if isinstance(found := _as_list(cell), list) else -1 for cell in known]
        if min(sizes, default=-1) < 0 or set(sizes) == {1}:
            return None
        notes.append(
            f"kind multilabel: the column {label!r} holds lists of labels; to take each combination as a class of its "
            "own give --kind classification"
        )
    found = read_label_sets(
        cells, separator=separator, labels=named or None, where=table.where, column=label,
        cells_are_texts=table.cells_are_texts,
    )  # fmt: skip
    return SetTargets(found.labels, separator, found.flags), [*notes, *found.notes]


def _as_list(cell: Any) -> Any:
    return read_list(cell) if isinstance(cell, str) else cell


def flag_columns(table: Table, label: str | None) -> list[str]:
    """The columns of 0 and 1 that `label` names with commas between; empty where it is no such list, or a column."""
    names = [] if label is None or label in table.columns else [name.strip() for name in label.split(",")]
    return names if len(names) > 1 and any(name in table.columns for name in names) else []


def with_flags(table: Table, label: str | None, *, first: bool = False) -> Table:
    """The table with a column of lists made of columns of 0 and 1, which are named with commas between ("joy,anger").

    As it is where `label` is no such list, or the name of a column. In the `first` table, which classes are
    learned from, not all rows may have the same labels.
    """
    if not (names := flag_columns(table, label)):
        return table
    for name in names:
        if name not in table.columns:
            raise DataError(f"{table.path}: expected the column {name!r} of 0 and 1", nearest(name, table.columns))
    cells = {name: [row.get(name) for row in table.rows] for name in names}
    found = read_flag_columns(cells, labels=None if first else names, where=table.where)
    lists = [None if row is None else [found.labels[index] for index in row] for row in found.rows]
    rows = [{**row, str(label): cell} for row, cell in zip(table.rows, lists, strict=True)]
    columns = (*(name for name in table.columns if name not in names), str(label))
    return replace(table, columns=columns, rows=rows, notes=(*table.notes, *found.notes))


def share_notes(rows: Sequence[tuple[int, ...]], labels: Sequence[str]) -> list[str]:
    """How many labels a row has on average, and of which labels there are the fewest rows."""
    counts = dict(zip(labels, map(sum, zip(*rows, strict=True)), strict=True))
    rarest = min(counts, key=lambda name: counts[name])
    mean = sum(counts.values()) / len(rows)
    return [
        f"{mean:.2f} labels per row on average, of {len(labels)}; the rarest is {rarest!r} with {counts[rarest]:,} rows"
    ]
