"""Rows that come after training: to predict, one after another, or labelled, to be scored."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final

from handful.data.advice import in_python
from handful.data.cells import missing
from handful.data.columns import Columns
from handful.data.derived import told, with_derived
from handful.data.grid import is_number
from handful.data.interpret import choose_columns, examples, targets_of
from handful.data.label_set_targets import SetTargets, with_flags
from handful.data.labels import Targets, class_name, with_numbers
from handful.data.names import COMMON_NAMES, is_title
from handful.data.references import generation_columns, records, source_of
from handful.data.tables import Table, TableStream, read_table, stream_table
from handful.data.task import Example, Task, TaskKind
from handful.errors import DataError, nearest
from handful.objectives import objective_of

HEAD_ROWS = 1000
"""Rows by which the columns of a table that is read row by row are told apart."""

FEW_UNKNOWN = 0.05
"""Share of labelled rows below which labels of classes that the run does not know are left out, and said. From there on
the wrong column is the likelier cause.
"""

_AS_TRAINED = ", as in training"
"""End of the note on a column that was not asked for, and is no guess either."""

Cells = Mapping[str, Any]


@final
@dataclass(frozen=True)
class UnlabelledRows:
    """Rows as examples without labels, each with all cells of its row. They are read as they are asked for.

    A missing text is an empty one, also where the row lacks its column, as a line of JSON can. `notes` say how the
    table was read and which columns were chosen; `guesses` are those but for columns that are called as in training.
    """

    table: TableStream
    columns: Columns
    notes: tuple[str, ...]

    @property
    def guesses(self) -> tuple[str, ...]:
        return tuple(note for note in self.notes if not note.endswith(_AS_TRAINED))

    def __iter__(self) -> Iterator[tuple[Example, Cells]]:
        """Raises: DataError naming the place of a row whose column seems misspelt, or of a cell that is no text."""
        names = [name for name in (self.columns.text, self.columns.text_pair) if name]
        for line, cells in self.table:
            text, *pair = [self._text(line, cells, name) for name in names]
            yield Example(text, pair[0] if pair else None, source=f"{self.table.name}:{line}"), cells

    def _text(self, line: int, cells: Cells, name: str) -> str:
        if name not in cells:  # it may be a column that is made of others
            (cells,) = with_derived(_table(self.table, [(line, dict(cells))]))[0].rows
        if name not in cells:
            _check_spelling(self.table.where(line), name, cells)
        if missing(cells.get(name)):
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
    stream, wanted = stream_table(source, encoding=encoding, delimiter=delimiter), wanted or Columns("", None, None)
    head, made = with_derived(_with_later_columns(_table(stream, list(islice(stream, HEAD_ROWS))), wanted, trained_on))
    try:
        columns, notes = columns_as_trained(head, kind, wanted, trained_on)
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


def _with_later_columns(table: Table, wanted: Columns, trained_on: Columns | None) -> Table:
    """The table with the columns that are named and stand in a later row alone, as they can in lines of JSON."""
    every = [columns for columns in (wanted, trained_on) if columns]
    names = [name for each in every for name in (each.text, each.text_pair, each.label) if name]
    later = [name for name in dict.fromkeys(names) if any(name in row for row in table.rows)]
    return replace(table, columns=tuple(dict.fromkeys((*table.columns, *later))))


def _check_spelling(where: str, name: str, cells: Cells) -> None:
    """Raises: DataError where a row lacks a column and has one of nearly that name."""
    hint = nearest(name, cells)
    if hint.startswith("did you mean"):
        found = ", ".join(map(repr, cells))
        raise DataError(f"{where}: expected the column {name!r}, found {found}", hint)


def labelled_rows(
    source: Any,
    task: Task,
    *,
    wanted: Columns | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> tuple[tuple[Example, ...], list[str]]:
    """The rows of a labelled table for a trained `task`, and notes on how it was read.

    Rows with an empty text or without a label are left out, and those of a class that the task has not where these are
    few (`FEW_UNKNOWN`); notes name their lines. Raises: DataError naming the lines of what is wrong otherwise.
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
    wanted, targets = (
        wanted or Columns("", None, "label"),
        targets_of(task.kind, task.labels, task.label_separator, task.label_flags),
    )
    for label in (wanted.label, task.columns and task.columns.label):
        table = with_flags(table, label)
    table = _with_later_columns(table, wanted, task.columns)
    if task.objective.generates:
        wanted, notes = _as_trained(table, wanted, task.columns)
        found = generation_columns(table, wanted, task.kind)
        assert found is not None  # None is for other kinds alone
        columns, chosen = found
        _check_header(table, columns, wanted, task.columns)
        table, left_out = _complete(table, columns)
        notes = [*notes, *chosen, *told(made, (columns.text, columns.label)), *left_out]
        return records(table, columns), [*table.notes, *notes]
    columns, notes = columns_as_trained(table, task.kind, wanted, task.columns, task.labels)
    notes += told(made, (columns.text, columns.text_pair, columns.label))
    table, left_out = _complete(table, columns)
    notes += left_out
    if columns.label and not task.objective.has_labels:
        (numbers,), read = with_numbers([table], columns.label)
        table, notes = numbers or table, [*notes, *read]
    elif columns.label:
        table, left_out = _of_known_classes(table, columns.label, targets)
        notes += left_out
    return examples(table, columns, targets), [*table.notes, *notes]


def _complete(table: Table, columns: Columns) -> tuple[Table, list[str]]:
    """The rows with a text and a label, and notes on the others. Raises: DataError where none is left."""
    texts = [name for name in (columns.text, columns.text_pair) if name]
    empty, unlabelled = [], []
    for index, row in enumerate(table.rows):
        for name in (name for name in (*texts, columns.label) if name and name not in row):
            _check_spelling(table.where(index), name, row)
        if any(missing(row.get(name)) for name in texts):
            empty.append(index)
        elif columns.label and table.missing_label(row.get(columns.label)):
            unlabelled.append(index)
    labels = (table.rows[index].get(columns.label or "") for index in unlabelled)
    words = sorted({cell.strip() for cell in labels if isinstance(cell, str) and cell.strip()})
    called = f" (or {', '.join(map(repr, words))}, which is read as none)" if words else ""
    table_without, notes = _without(table, {*empty, *unlabelled}), []
    for indices, what in ((empty, "an empty text"), (unlabelled, f"no label{called}")):
        if indices:
            notes.append(
                f"{table.name}: {len(indices):,} of {len(table.rows):,} rows have {what} and are left out "
                f"({table.places(indices)})"
            )
    if not table_without.rows:
        raise DataError(f"{table.path}: expected rows with a text and a label, found none: {'; '.join(notes)}")
    return table_without, notes


def _of_known_classes(table: Table, label: str, targets: Targets | SetTargets) -> tuple[Table, list[str]]:
    """The rows without those of other classes, where these are few enough to be left out, and a note on them."""
    unknown = []
    for index, row in enumerate(table.rows):
        if not targets.knows(row[label]):
            unknown.append(index)
    if not unknown or len(unknown) >= FEW_UNKNOWN * len(table.rows):
        return table, []
    names = dict.fromkeys(class_name(table.rows[index][label]) for index in unknown)
    shown = ", ".join(map(repr, list(names)[:5])) + (", …" if len(names) > 5 else "")
    return _without(table, {*unknown}), [
        f"{table.name}: {len(unknown):,} of {len(table.rows):,} rows have a label that is none of the "
        f"{len(targets.labels)} classes ({shown}; {table.places(unknown)}) and are left out; the run gets "
        "every such row wrong"
    ]


def _without(table: Table, indices: Collection[int]) -> Table:
    kept = [index for index in range(len(table.rows)) if index not in indices]
    return replace(table, rows=[table.rows[index] for index in kept], lines=[table.lines[index] for index in kept])


def columns_as_trained(
    table: Table, kind: TaskKind, wanted: Columns, trained_on: Columns | None, classes: Sequence[str] = ()
) -> tuple[Columns, list[str]]:
    """The columns of a later table: those `wanted`, else those that the run was `trained_on` where the table has them,
    else those of customary names, else the only ones that can be meant. With a note for each that was chosen.

    A label is looked for where one is wanted. Raises: DataError where it is not clear which column to read, or the
    names of the columns seem to be a row of data, such as one of the `classes`.
    """
    asked = wanted
    wanted, notes = _as_trained(table, wanted, trained_on)
    objective = objective_of(kind)
    if objective.generates:
        columns = replace(wanted, text=source_of(table, wanted.text or None), text_pair=None)
        _check_header(table, columns, asked, trained_on)
        return columns, notes
    if objective.pairs is False or (trained_on and trained_on.text_pair is None):
        wanted = replace(wanted, text_pair="")  # whatever other columns there are, the run reads single texts
    if not wanted.text and len(table.columns) == 1:
        wanted = replace(wanted, text=table.columns[0])
        if table.cells_are_texts and wanted.text.lower() not in COMMON_NAMES:
            notes.append(f"{table.name}: read {wanted.text!r}, the first row, as the name of the only column")
    columns, chosen = choose_columns(table, wanted)
    _check_header(table, columns, asked, trained_on, classes)
    if objective.pairs and columns.text_pair is None:
        raise DataError(
            f"{table.path}: expected a pair of texts, found one: the run predicts pairs",
            "name the column of the second text: --text-pair COLUMN",
        )
    return columns, notes + chosen


def _check_header(
    table: Table, columns: Columns, asked: Columns, trained_on: Columns | None, classes: Sequence[str] = ()
) -> None:
    """Raises: DataError where the first row of a file is data: no name in it is customary, asked for or one of
    training, and the name of a text has several words and is no title, another is a number, or that of the labels is a
    class.
    """
    known = {name for each in (asked, trained_on) if each for name in (each.text, each.text_pair, each.label) if name}
    if not table.cells_are_texts or known.intersection(table.columns):
        return
    if any(name.lower() in COMMON_NAMES for name in table.columns):
        return
    texts = [name for name in (columns.text, columns.text_pair) if name]
    words = any(len(name.split()) > 1 and not is_title(name, _filled(table, name)) for name in texts)
    numbers = [name for name in table.columns if is_number(name)]
    if words or 0 < len(numbers) < len(table.columns) or columns.label in classes:
        first = ", ".join(f"{name!r:.80}" for name in table.columns[:5]) + (", …" if len(table.columns) > 5 else "")
        names = ",".join(filter(None, ("text", columns.text_pair and "text_pair", columns.label and "label")))
        raise DataError(
            f"{table.path}: expected a header, found what looks like a row of data in the first line ({first})",
            f"give the file a header line, e.g. {names}; if it is the header: --text {shlex.quote(columns.text)}",
        )


def _filled(table: Table, name: str) -> Iterator[str]:
    return (cell for row in table.rows if isinstance(cell := row.get(name), str) and cell.strip())


def _as_trained(table: Table, wanted: Columns, trained_on: Columns | None) -> tuple[Columns, list[str]]:
    """What is wanted, with the columns of training for what is not named, where the table has them."""
    notes = []
    unnamed = {"text": not wanted.text, "text_pair": wanted.text_pair is None, "label": wanted.label == "label"}
    for role in (role for role, is_unnamed in unnamed.items() if is_unnamed):
        known = getattr(trained_on, role, None)
        if known in table.columns:
            wanted = replace(wanted, **{role: known})
            if known != role:
                notes.append(f"{table.name}: read the column {known!r} as the {role.replace('_', ' ')}{_AS_TRAINED}")
    return wanted, notes
