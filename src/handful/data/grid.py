"""From records of cells to named columns: the header, what spreadsheets and data frames leave behind, and its removal.

One pass over the records decides which columns and rows are read; a second one yields them. What is left out is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from handful.data.cells import check_row, listed, repeated
from handful.data.delimited import Record
from handful.data.names import COMMON_NAMES, check_names, clean_name, is_header
from handful.data.stream import TableStream
from handful.errors import DataError

Records = Callable[[], Iterator[Record]]

_LONGEST_NAME = 60
_KNOWN_LENGTH, _KNOWN_VALUES = 40, 2000


@final
@dataclass(slots=True)
class _Column:
    """What one pass has seen in a column: `values` are the short ones, as long as there are not too many."""

    filled: bool = False
    whole_numbers: bool = True
    numbers: bool = True
    values: Counter[str] = field(default_factory=Counter)

    def add(self, cell: Any) -> None:
        text = cell.strip() if isinstance(cell, str) else "" if cell is None else str(cell)
        if not text:
            return
        self.filled = True
        self.whole_numbers = self.whole_numbers and text.isascii() and text.isdigit()
        self.numbers = self.numbers and is_number(text)
        if len(text) <= _KNOWN_LENGTH and (text in self.values or len(self.values) < _KNOWN_VALUES):
            self.values[text] += 1

    def has(self, cell: str) -> bool:
        """Whether a cell is a value of this column, as far as that can be known."""
        return bool(cell) and (cell in self.values or (self.filled and self.numbers and is_number(cell)))


@final
@dataclass(slots=True)
class _Survey:
    path: str
    header: list[str]
    header_line: int
    columns: list[_Column]
    blank: list[int] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)
    title: int | None = None
    rows: int = 0
    spanning: list[Record] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)


def grid_stream(path: str, name: str, records: Records, *, delimiter: str = "", notes: list[str]) -> TableStream:
    """The rows below the header. `delimiter` is for advice.

    Left out and said: blank rows, columns without a name or with one that stands there twice if they are empty, an
    unnamed column of whole numbers (the index of a data frame), the header where it is repeated, and empty cells beyond
    the header. Raises: DataError where there is no row, a row has another number of cells, a name is there twice, the
    first row is no header, or a cell has swallowed rows.
    """
    survey = _survey(path, records, delimiter)
    kept, dropped, unread = _choose(survey)
    if not survey.rows:
        raise DataError(f"{path}: expected rows, found only a header", "give a file with rows below the header")
    _check_header(survey)
    found = [*notes, *dropped, *_row_notes(survey, delimiter)]

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        skipped = frozenset((*survey.blank, *survey.repeats, survey.header_line, survey.title))
        for record in records():
            if record.line not in skipped and not _is_blank(record.cells):
                yield record.line, {name: _at(record.cells, position) for position, name in kept}

    return TableStream(
        path, name, tuple(name for _, name in kept), rows, tuple(f"{name}: {note}" for note in found), unread=unread
    )


def _at(cells: list[Any], position: int) -> Any:
    return cells[position] if position < len(cells) else ""


def _is_blank(cells: list[Any]) -> bool:
    """Whether a row holds nothing; a lone quoted "" is an empty text."""
    return cells != [""] and _holds_nothing(cells)


def _holds_nothing(cells: list[Any]) -> bool:
    return all(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells)


def _survey(path: str, records: Records, delimiter: str) -> _Survey:
    survey: _Survey | None = None
    leading: list[int] = []
    for record in records():
        if survey is None:
            if _is_blank(record.cells):
                leading.append(record.line)
                continue
            header = ["" if cell is None else clean_name(cell) for cell in record.cells]
            survey = _Survey(path, header, record.line, [_Column() for _ in header], blank=leading)
            check_names(header, f"{path}:{record.line}")
        elif not survey.rows and survey.title is None and _is_title(survey.header) and is_header(record.cells):
            header = [clean_name(cell) if cell is not None else "" for cell in record.cells]
            columns = [_Column() for _ in header]
            survey = _Survey(path, header, record.line, columns, blank=survey.blank, title=survey.header_line)
        else:
            _add(survey, record, delimiter)
    if survey is None:
        raise DataError(f"{path}: expected rows, found an empty file", "give a file with a header and rows")
    return survey


def _is_title(header: list[str]) -> bool:
    """Whether the first row may be a title above the header: it fills one cell, which is no name of a column."""
    filled = [title for title in header if title]
    return len(filled) == 1 and filled[0].lower() not in COMMON_NAMES


def _add(survey: _Survey, record: Record, delimiter: str) -> None:
    cells, width = record.cells, len(survey.header)
    if _is_blank(cells):
        survey.blank.append(record.line)
        return
    if len(cells) == width and [clean_name(cell) for cell in cells] == survey.header:
        survey.repeats.append(record.line)
        return
    if len(cells) > width and _holds_nothing(cells[width:]):
        survey.longer.append(record.line)
    elif len(cells) > width or (len(cells) < width and any(survey.header[len(cells) :])):
        raise _ragged(survey, record, delimiter)
    survey.rows += 1
    check_row(dict(zip(survey.header, cells, strict=False)), f"{survey.path}:{record.line}")
    if record.source:
        survey.spans.append(record.line)
        if len(survey.spanning) < _KNOWN_VALUES:
            survey.spanning.append(record)
    else:
        for column, cell in zip(survey.columns, cells, strict=False):
            column.add(cell)
        return
    for column, cell in zip(survey.columns, cells, strict=False):
        column.filled = column.filled or bool(cell)
        column.whole_numbers = column.whole_numbers and (not cell or cell.strip().isdigit())


def _ragged(survey: _Survey, record: Record, delimiter: str) -> DataError:
    width, found = len(survey.header), len(record.cells)
    if any("\r" in cell for cell in record.cells if isinstance(cell, str)):
        hint = "the row holds a carriage return; if that ends a line, save the file with one kind of line end"
    elif found < width:
        hint = "complete the row; a line break inside a text must be in double quotes"
    elif width == 1:
        hint = f"put texts that contain {delimiter!r} in double quotes; a title above the header must be removed"
    else:
        hint = f"put cells that contain {delimiter!r} or a line break in double quotes"
    names = ", ".join(survey.header) if width <= 20 else ", ".join(survey.header[:20]) + ", …"
    return DataError(
        f"{survey.path}:{record.line}: expected {width} cell{'s' * (width > 1)} ({names}), found {found}", hint
    )


def _choose(survey: _Survey) -> tuple[list[tuple[int, str]], list[str], Mapping[str, tuple[int, ...]]]:
    """Positions and names of the columns to read, notes on the others, and names that stand for several columns."""
    empty, index, nameless, kept = [], [], [], []
    taken = set(survey.header)
    twice = frozenset(repeated(filter(None, survey.header)))
    filled: dict[str, list[int]] = {title: [] for title in twice}
    for position, title in enumerate(survey.header):
        column = survey.columns[position]
        if not column.filled and (not title or title in twice):
            empty.append(position)
        elif (not title or title.startswith("Unnamed: ")) and column.whole_numbers and len(survey.header) > 1:
            index.append(position)
        elif not title:
            made = f"column {position + 1}"
            nameless.append(f"{made} has no name and is called {made!r}" if made not in taken else "")
            kept.append((position, made))
        elif title in twice:
            filled[title].append(position)
        else:
            kept.append((position, title))
    first = {title: position for position, title in reversed(list(enumerate(survey.header)))}
    notes = []
    unread: dict[str, tuple[int, ...]] = {}
    for title, positions in filled.items():
        numbers = tuple(position + 1 for position in positions)
        if len(positions) == 1:
            kept.append((positions[0], title))
        elif positions and title.lower() in COMMON_NAMES:
            raise _named_twice(survey, title, numbers)
        elif positions:
            unread[title] = numbers
            notes.append(f"columns {_and(numbers)} are all named {title!r}, so none of them is read")
        else:  # all of them are empty: one is kept, so that its name is known
            kept.append((first[title], title))
    chosen = {position for position, _ in kept}
    empty = [position for position in empty if position not in chosen]
    if empty:
        names = [repr(survey.header[position]) for position in empty if survey.header[position]]
        called = f" (named {', '.join(sorted(set(names)))} like others)" if names else ""
        notes.append(f"{_columns([p + 1 for p in empty])} empty{called} and left out")
    if index:
        notes.append(f"{_columns([p + 1 for p in index])} an index without a name and left out")
    notes += list(filter(None, nameless))
    return sorted(kept), notes, unread


def _named_twice(survey: _Survey, title: str, numbers: tuple[int, ...]) -> DataError:
    return DataError(
        f"{survey.path}:{survey.header_line}: the header names {title!r} more than once (columns {_and(numbers)})",
        "give each column its own name, or remove the one that is not meant",
    )


def _columns(numbers: list[int]) -> str:
    return f"column {numbers[0]} is" if len(numbers) == 1 else f"columns {listed(numbers)} are"


def _and(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _check_header(survey: _Survey) -> None:
    """Raises: DataError where the first row is data: none of its cells is a customary name, and one is a value."""
    titles = [title for title in survey.header if title]
    if any(title.lower() in COMMON_NAMES for title in titles):
        return
    for position, title in enumerate(survey.header):
        column = survey.columns[position]
        number = column.filled and column.numbers and is_number(title)
        if title.isdigit():  # "0" and "1" are what pandas calls columns without names
            number = number and column.values[title] > 1 and sum(map(is_number, titles)) == 1
        if number or (not is_number(title) and column.values[title] > 1):
            raise DataError(
                f"{survey.path}:{survey.header_line}: expected a header, found a row of data "
                f"({title!r} is a value of column {position + 1} too)",
                "put a line with the names of the columns first, such as: text,label",
            )


def _row_notes(survey: _Survey, delimiter: str) -> list[str]:
    notes = []
    if all(len(title.split()) > 3 for title in survey.header):
        notes.append(f"the first row is read as the header: {survey.header[0][:_LONGEST_NAME]!r}")
    if survey.title is not None:
        notes.append(f"line {survey.title} is read as a title, the header is on line {survey.header_line}")
    if survey.blank:
        notes.append(f"{len(survey.blank):,} blank row(s) left out (line {listed(survey.blank)})")
    if survey.repeats:
        notes.append(f"the header is repeated on line {listed(survey.repeats)}, which is left out")
    if survey.longer:
        notes.append(f"{len(survey.longer):,} row(s) end with more empty cells than the header has, which are left out")
    _check_swallowed(survey, delimiter)
    if survey.spans:
        notes.append(f"{len(survey.spans):,} row(s) have a cell with line breaks (line {listed(survey.spans)})")
    return notes


def _check_swallowed(survey: _Survey, delimiter: str) -> None:
    """Raises: DataError for a quoted cell whose lines are rows of their own: all have as many cells as the header, and
    at least half of those with a whole cell inside the quotes have a value there that the column has elsewhere.
    """
    for record in survey.spanning:
        lines = [line.rstrip("\r\n").split(delimiter) for line in record.source]
        if len(survey.header) < 2 or any(len(cells) != len(survey.header) for cells in lines):
            continue
        inside = [dict(enumerate(cells)) for cells in lines]
        opening = next((position for position, cell in enumerate(lines[0]) if cell.startswith('"')), -1)
        closing = next((position for position, cell in enumerate(lines[-1]) if cell.endswith('"')), len(lines[-1]))
        inside[0] = {position: cell for position, cell in inside[0].items() if position > opening}
        inside[-1] = {position: cell for position, cell in inside[-1].items() if position < closing}
        known = [
            any(survey.columns[position].has(cell) for position, cell in cells.items()) for cells in inside if cells
        ]
        if known and sum(known) * 2 >= len(known):
            raise DataError(
                f"{survey.path}:{record.line}: a cell in double quotes goes on over {len(lines)} lines that look like "
                "rows of their own",
                'close the double quote on that line, or write it as "" in a quoted cell if it belongs to the text',
            )


def is_number(text: str) -> bool:
    """Whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
