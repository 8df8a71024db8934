"""Records of delimited text: which delimiter a file has, whether double quotes quote, and the cells of every record.

Both are decided by the whole file. A delimiter qualifies if it stands in the first record; of several, the one that
cuts every record into as many cells as the first. Between tabs, double quotes are letters unless all of them quote.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

from handful.data.cells import MAX_CELL
from handful.data.names import is_header
from handful.data.text_files import LONE_RETURN
from handful.errors import ConfigError, DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_NAMED = {name: delimiter for delimiter, name in DELIMITERS.items()} | {"\\t": "\t"}

Lines = Callable[[], Iterator[str]]


@final
@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is cut into cells; `skipped` lines stand before the first record, and where it is
    `spaced`, spaces before a quoted cell. `LONE_RETURN` cuts none.
    """

    delimiter: str
    quoted: bool = True
    skipped: int = 0
    spaced: bool = False


@final
@dataclass(frozen=True, slots=True)
class Record:
    """Cells and the line on which they begin; `source` are the lines they were written on, where these are several."""

    line: int
    cells: list[Any]
    source: tuple[str, ...] = ()


def check_delimiter(delimiter: str) -> str:
    """The delimiter as one character, also by its name. Raises: ConfigError for anything else."""
    found = _NAMED.get(delimiter, delimiter)
    if not isinstance(found, str) or len(found) != 1 or found in '"\r\n\0 ' or found.isalnum():
        raise ConfigError(
            f"delimiter: expected one character, found {delimiter!r}", f"common ones: {', '.join(_NAMED)}"
        )
    return found


def find_dialect(path: str, lines: Lines, usual: str, delimiter: str | None) -> tuple[Dialect, list[str]]:
    """How the file is to be read, and notes on what is not as its ending promises.

    Raises: DataError where several delimiters would do, ConfigError for a `delimiter` that is none.
    """
    notes: list[str] = []
    skipped, said = _said_delimiter(lines)
    if delimiter is not None:
        found = check_delimiter(delimiter)
    elif said:
        found = said
        notes.append(f"the delimiter is {shown(said)}: the first line says so")
    else:
        found = _find_delimiter(path, lines, usual)
        if found != usual:
            notes.append(f"the delimiter is {shown(found)}, which cuts every record alike; --delimiter says otherwise")
    quoted = True
    if found == "\t":
        quoted, note = _find_quoting(path, lines, found)
        notes += [note] if note else []
    spaced = Dialect(found, quoted, skipped, spaced=True)
    if quoted and _has_spaced_quotes(lines, found) and _reads_as_quoted(path, lines, spaced):
        return spaced, [*notes, "spaces before cells are left out, as cells in double quotes follow them"]
    return Dialect(found, quoted, skipped), notes


def _has_spaced_quotes(lines: Lines, delimiter: str) -> bool:
    """Whether a cell begins with a space and a double quote, as in `text, "label"`."""
    return any(
        cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for row in _leniently(lines, delimiter) for cell in row[1:]
    )


def shown(delimiter: str) -> str:
    """A delimiter for people: "';' (semicolon)"."""
    return f"{delimiter!r} ({DELIMITERS[delimiter]})" if delimiter in DELIMITERS else repr(delimiter)


def read_records(path: str, lines: Lines, dialect: Dialect) -> Iterator[Record]:
    """The records; a blank line is one without cells. Raises: DataError for quotes that do not match and for a cell
    that is too long.
    """
    return _quoted(path, lines, dialect) if dialect.quoted else _literal(path, lines, dialect)


def split_literally(line: str, delimiter: str) -> list[str]:
    """The cells of one line whose double quotes are letters."""
    content = line.removesuffix("\n").removesuffix("\r")
    cells = content.split(delimiter) if delimiter != LONE_RETURN else [content]
    return [cell.replace(LONE_RETURN, "\r") for cell in cells] if LONE_RETURN in content else cells


def _literal(path: str, lines: Lines, dialect: Dialect) -> Iterator[Record]:
    for line, content in enumerate(lines(), 1):
        if line > dialect.skipped:
            cells = split_literally(content, dialect.delimiter) if content.strip("\r\n") else []
            if any(len(cell) > MAX_CELL for cell in cells):
                raise DataError(f"{path}:{line}: a cell has more than {MAX_CELL:,} characters", "cut it")
            yield Record(line, cells)


def _quoted(path: str, lines: Lines, dialect: Dialect) -> Iterator[Record]:
    taken: list[str] = []

    def feed() -> Iterator[str]:
        for number, content in enumerate(lines(), 1):
            if number > dialect.skipped:
                taken.append(content)
                yield content

    reader = csv.reader(feed(), delimiter=dialect.delimiter, strict=True, skipinitialspace=dialect.spaced)
    while True:
        line = dialect.skipped + reader.line_num + 1
        taken.clear()
        limit = csv.field_size_limit(MAX_CELL)  # of the whole process, so it is put back after each row
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _quoting_error(path, line, str(error), escaped='\\"' in "".join(taken)) from None
        finally:
            csv.field_size_limit(limit)
        if any(LONE_RETURN in content for content in taken):
            row = [cell.replace(LONE_RETURN, "\r") for cell in row]
        yield Record(line, row, tuple(taken) if len(taken) > 1 else ())


def _quoting_error(path: str, line: int, error: str, *, escaped: bool = False) -> DataError:
    if "field limit" in error:
        return DataError(
            f"{path}:{line}: a cell has more than {MAX_CELL:,} characters",
            "look for a double quote on that line which is never closed",
        )
    if escaped:
        return DataError(
            f'{path}:{line}: double quotes inside a cell are escaped by backslashes (\\"), expected doubled ones ("")',
            "save it again with doubled quotes (in pandas to_csv without escapechar, in Spark escape='\"'), or as JSON "
            "lines",
        )
    return DataError(
        f"{path}:{line}: the double quotes do not match ({error})", 'inside a quoted cell, write a double quote as ""'
    )


def _said_delimiter(lines: Lines) -> tuple[int, str]:
    """What Excel reads and writes as a first line, "sep=;": the lines to skip and the delimiter."""
    first = next(lines(), "")
    found = re.fullmatch(r'"?sep=([^"\r\n])"?\r?\n?', first, re.IGNORECASE)
    return (1, found[1]) if found else (0, "")


def _find_delimiter(path: str, lines: Lines, usual: str) -> str:
    widths = {delimiter: _first_width(lines, delimiter) for delimiter in DELIMITERS}
    candidates = [delimiter for delimiter, width in widths.items() if width > 1]
    if not candidates:  # the first record may be a title
        return next((delimiter for delimiter in DELIMITERS if is_header(_second(lines, delimiter))), usual)
    if len(candidates) == 1:
        return candidates[0]
    fitting = [delimiter for delimiter in candidates if is_consistent(lines, delimiter)]
    if len(fitting) > 1:
        raise DataError(
            f"{path}: cannot tell the delimiter: {' and '.join(map(shown, fitting))} each cut every record alike",
            "name it: --delimiter " + "|".join(DELIMITERS[delimiter] for delimiter in fitting),
        )
    return fitting[0] if fitting else usual if usual in candidates else candidates[0]


def _first_width(lines: Lines, delimiter: str) -> int:
    """How many cells the first record has."""
    for row in _leniently(lines, delimiter):
        return len(row)
    return 0


def _second(lines: Lines, delimiter: str) -> list[str]:
    """The second record."""
    return next(islice(_leniently(lines, delimiter), 1, None), [])


def is_consistent(lines: Lines, delimiter: str) -> bool:
    """Whether every record has as many cells as the first, but for blank ones and empty cells at the end."""
    width = _first_width(lines, delimiter)
    for row in _leniently(lines, delimiter):
        if len(row) != width and any(map(str.strip, row)) and (len(row) < width or any(map(str.strip, row[width:]))):
            return False
    return True


def _leniently(lines: Lines, delimiter: str) -> Iterator[list[str]]:
    """Records of a file that may be of another dialect; its errors are found later."""
    if delimiter == "\t":
        yield from (split_literally(line, delimiter) for line in lines() if line.strip("\r\n"))
        return
    reader = csv.reader(lines(), delimiter=delimiter)
    while True:
        limit = csv.field_size_limit(MAX_CELL)
        try:
            row = next(reader)
        except (StopIteration, csv.Error):
            return
        finally:
            csv.field_size_limit(limit)
        if row:
            yield row


def _find_quoting(path: str, lines: Lines, delimiter: str) -> tuple[bool, str | None]:
    """Whether double quotes quote, in a file with tabs, with a note where they are there at all.

    They do where the header is quoted; where every cell that begins with one is a well-formed quoted cell; and where
    lines have unlike numbers of cells unless they do (a quoted cell may hold tabs and line ends).
    """
    width, uneven, whole, broken = 0, False, 0, 0
    for content in lines():
        cells = split_literally(content, delimiter)
        quotes = [_is_quoted_cell(cell) for cell in cells if cell.startswith('"')]
        if not width and any(cells):
            width = len(cells)
            if len(quotes) == width and all(quotes):
                return True, None
        uneven |= any(cells) and len(cells) != width and (len(cells) < width or any(cells[width:]))
        whole, broken = whole + sum(quotes), broken + len(quotes) - sum(quotes)
    if not whole and not broken:
        return False, None
    if (uneven or not broken) and _reads_as_quoted(path, lines, Dialect(delimiter)):
        return True, f"{whole or broken} cell(s) are in double quotes, which are taken off"
    return False, (
        f"double quotes are read as part of the texts: {broken} of {whole + broken} cell(s) that begin with one do not "
        "end with one"
    )


def _is_quoted_cell(cell: str) -> bool:
    return len(cell) > 1 and cell.endswith('"') and '"' not in cell[1:-1].replace('""', "")


def _reads_as_quoted(path: str, lines: Lines, dialect: Dialect) -> bool:
    width = 0
    try:
        for record in _quoted(path, lines, dialect):
            width = width or len(record.cells)
            if (
                record.cells
                and len(record.cells) != width
                and any(record.cells[width:] or [""] * (len(record.cells) < width))
            ):
                return False
    except DataError:
        return False
    return True
