"""Rows that come after training: to predict, one after another, or labelled, to be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final

from handful.data.advice import in_python
from handful.data.cells import missing
from handful.data.columns import Columns
from handful.data.derived import told, with_derived
from handful.data.interpret import choose_columns, examples
from handful.data.labels import Targets, with_numbers
from handful.data.references import generation_columns, records, source_of
from handful.data.tables import Table, TableStream, read_table, stream_table
from handful.data.task import Example, Task, TaskKind
from handful.errors import DataError, nearest

HEAD_ROWS = 1000
"""Rows by which the columns of a table that is read row by row are told apart."""

Cells = Mapping[str, Any]


@final
@dataclass(frozen=True)
class UnlabelledRows:
    """Rows as examples without labels, each with all cells of its row. They are read as they are asked for.

    A missing text is an empty one. `notes` say how the table was read and which columns were chosen.
    """

    table: TableStream
    columns: Columns
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[Example, Cells]]:
        """Raises: DataError naming the place of a row without the column, or of a cell that is no text."""
        names = [name for name in (self.columns.text, self.columns.text_pair) if name]
        for line, cells in self.table:
            text, *pair = [self._text(line, cells, name) for name in names]
            yield Example(text, pair[0] if pair else None, source=f"{self.table.name}:{line}"), cells

    def _text(self, line: int, cells: Cells, name: str) -> str:
        if name not in cells:  # it may be a column that is made of others
            (cells,) = with_derived(_table(self.table, [(line, dict(cells))]))[0].rows
        if name not in cells:
            found = ", ".join(map(repr, cells)) or "nothing"
            where = self.table.where(line)
            hint = nearest(name, cells) if cells else "fill in or remove the row"
            raise DataError(f"{where}: expected the column {name!r}, found {found}", hint)
        if missing(cells[name]):
            return ""
        if not isinstance(cells[name], str):
            where, found = self.table.where(line), cells[name]
            raise DataError(f"{where}: expected a text in {name!r}, found {found!r}", "put it in double quotes")
        return cells[name]


def unlabelled_rows(
    source: Any,
    *,
    kind: TaskKind,
    wanted: Columns | None = None,
    trained_on: Columns | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> UnlabelledRows:
    """The rows of a file or of anything else that `stream_table` reads; see `columns_as_trained` for the columns."""
    stream = stream_table(source, encoding=encoding, delimiter=delimiter)
    head, made = with_derived(_table(stream, list(islice(stream, HEAD_ROWS))))
    try:
        columns, notes = columns_as_trained(head, kind, wanted or Columns("", None, None), trained_on)
    except DataError as error:
        if not head.in_memory:
            raise
        known = [repr(name) for name in (trained_on or Columns()).texts if name]
        raise DataError(error.message, f"call the columns as in training: {', '.join(known)}") from None
    notes += told(made, (columns.text, columns.text_pair))
    return UnlabelledRows(stream, columns, (*stream.notes, *notes))


def _table(stream: TableStream, numbered: list[tuple[int, dict[str, Any]]]) -> Table:
    """Some rows of a stream."""
    lines, rows = [line for line, _ in numbered], [row for _, row in numbered]
    return Table(
        stream.path, stream.name, stream.columns, rows, lines, stream.notes, stream.holder, stream.index, stream.unread
    )


def labelled_rows(
    source: Any,
    task: Task,
    *,
    wanted: Columns | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> tuple[tuple[Example, ...], list[str]]:
    """The rows of a labelled table for a trained `task`, and notes on how it was read.

    Raises: DataError naming the lines of what is wrong: a label that is none of the task's classes, say.
    """
    table, made = with_derived(read_table(source, encoding=encoding, delimiter=delimiter, labelled=True))
    try:
        return _labelled(table, made, task, wanted)
    except DataError as error:
        if not table.in_memory or error.hint is None:
            raise
        raise DataError(error.message, in_python(error.hint)) from None


def _labelled(
    table: Table, made: Mapping[str, str], task: Task, wanted: Columns | None
) -> tuple[tuple[Example, ...], list[str]]:
    wanted = wanted or Columns("", None, "label")
    if task.kind == "generation":
        wanted, notes = _as_trained(table, wanted, task.columns)
        found = generation_columns(table, wanted, "generation")
        assert found is not None  # None is for other kinds alone
        columns, chosen = found
        notes = [*notes, *chosen, *told(made, (columns.text, columns.label))]
        return records(table, columns), [*table.notes, *notes]
    columns, notes = columns_as_trained(table, task.kind, wanted, task.columns)
    notes += told(made, (columns.text, columns.text_pair, columns.label))
    if task.kind == "regression" and columns.label:
        (numbers,), read = with_numbers([table], columns.label)
        table, notes = numbers or table, [*notes, *read]
    return examples(table, columns, Targets(task.labels)), [*table.notes, *notes]


def columns_as_trained(
    table: Table, kind: TaskKind, wanted: Columns, trained_on: Columns | None
) -> tuple[Columns, list[str]]:
    """The columns of a later table: those `wanted`, else those that the run was `trained_on` where the table has them,
    else those of customary names, else the only ones that can be meant. With a note for each that was chosen.

    A label is looked for where one is wanted. Raises: DataError where it is not clear which column to read.
    """
    wanted, notes = _as_trained(table, wanted, trained_on)
    if kind == "generation":
        return replace(wanted, text=source_of(table, wanted.text or None), text_pair=None), notes
    if kind == "classification" or (trained_on and trained_on.text_pair is None):
        wanted = replace(wanted, text_pair="")  # whatever other columns there are, the run reads single texts
    if not wanted.text and len(table.columns) == 1:
        wanted = replace(wanted, text=table.columns[0])
    columns, chosen = choose_columns(table, wanted)
    if kind == "pair-classification" and columns.text_pair is None:
        raise DataError(
            f"{table.path}: expected a pair of texts, found one: the run predicts pairs",
            "name the column of the second text: --text-pair COLUMN",
        )
    return columns, notes + chosen


def _as_trained(table: Table, wanted: Columns, trained_on: Columns | None) -> tuple[Columns, list[str]]:
    """What is wanted, with the columns of training for what is not named, where the table has them."""
    notes = []
    unnamed = {"text": not wanted.text, "text_pair": wanted.text_pair is None, "label": wanted.label == "label"}
    for role in (role for role, is_unnamed in unnamed.items() if is_unnamed):
        known = getattr(trained_on, role, None)
        if known in table.columns:
            wanted = replace(wanted, **{role: known})
            if known != role:
                notes.append(f"{table.name}: read the column {known!r} as the {role.replace('_', ' ')}, as in training")
    return wanted, notes
