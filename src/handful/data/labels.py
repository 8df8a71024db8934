"""What a column of labels holds: classes as they are written, numbers, several labels in a cell, or no labels."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from handful.data.cells import missing
from handful.data.layout import telling
from handful.data.likeness import alike_notes, rating_notes
from handful.data.numbers import read_number, read_numbers
from handful.data.tables import Table
from handful.data.written_lists import read_list
from handful.errors import DataError, nearest

LEAST_ROWS = 8
"""Labelled rows from which on the number of classes is judged."""

MOST_CLASSES = 0.5
"""Classes per row from which on a column does not hold classes: most of them would have one row."""

MOSTLY = 0.8
"""Share of the rows in one class from which on accuracy says little."""

_DOUBTFUL = {"none", "null", "nil", "na", "n/a", "n.a.", "missing", "undefined", "-", "--", "?"}
"""Names of classes, in lower case, that may stand for a missing label."""

WEAK_MARKS = (",", "/", "&", "+", "#", "and", "\n", "\t", "\uff0c", "\uff1b", "\u3001", "\u2022", "\u00b7", "\\", "~")
"""Marks between labels that are common within names too."""

SEPARATORS = {"semicolon": ";", "pipe": "|", "comma": ",", "slash": "/", "tab": "\t", "newline": "\n", "space": " "}
"""Names of marks between labels, for where the mark itself is hard to type; those that seldom stand within names come
first.
"""

_MARKS = {"and": r"\s+(?:and|und|et)\s+"}
_COMMAND = re.compile("\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]")
"""A control sequence of terminals, whose own marks divide nothing."""

_SHOWN = 5
_WORDS_OF_A_TEXT = 4


@final
class UnknownLabel(DataError):
    """A `name` that is none of the classes."""

    def __init__(self, message: str, hint: str | None = None, name: str = ""):
        super().__init__(message, hint)
        self.name = name


@final
@dataclass(frozen=True, slots=True)
class Targets:
    """What labels mean: indices into `labels`, or numbers where there are none."""

    labels: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        alike = {_whole(name): index for index, name in reversed([*enumerate(self.labels)])}
        object.__setattr__(self, "_index", alike | {name: index for index, name in enumerate(self.labels)})

    def value(self, cell: Any, where: str) -> int | float:
        """The label of one row; the class "1" is also meant by "1.0". Raises: DataError if it is unknown or no finite
        number.
        """
        if self.labels:
            name = class_name(cell)
            index = self._class(name)
            if index is None:
                found = f"{where}: the label {name!r} is none of the {len(self.labels)} classes"
                raise UnknownLabel(found, nearest(name, self.labels), name)
            return index
        number = read_number(cell)
        if number is None:
            raise DataError(
                f"{where}: expected a finite number as label, found {cell!r}",
                "correct the row, or say that the labels are classes: --kind classification",
            )
        return number

    def knows(self, cell: Any) -> bool:
        """Whether a cell names one of the classes."""
        return self._class(class_name(cell)) is not None

    def _class(self, name: str) -> int | None:
        return self._index.get(name, self._index.get(_whole(name)))


def class_name(cell: Any) -> str:
    """The class a cell names, as it is written but for outer white space; JSON's true and false; several labels in one
    order.
    """
    if isinstance(cell, bool):
        return str(cell).lower()
    cell = as_list(cell) or cell
    if isinstance(cell, list):
        return "; ".join(sorted(map(class_name, cell)))
    return str(cell).strip()


def as_list(cell: Any) -> list[Any] | None:
    """The list in a cell, also one of texts written out as in JSON or Python; None where there is none."""
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str) or not re.fullmatch(r"""\s*\[\s*["'].*["']\s*\]\s*""", cell, re.DOTALL):
        return None
    found = read_list(cell)
    return found if found is not None and all(isinstance(part, str) for part in found) else None


def _whole(name: str) -> str:
    """The name of a class without the ".0" that data frames put behind whole numbers."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", name)


def with_numbers(tables: Sequence[Table | None], label: str) -> tuple[list[Table | None], list[str]]:
    """The tables with numbers in the label column, read in one notation, and a note where it is not the plain one.

    Raises: DataError with the place of what is no number, or where the notation is not clear.
    """
    places = [(table, row) for table in tables if table for row in range(len(table.rows))]
    cells = [table.rows[row].get(label) for table, row in places]
    values, note = read_numbers(cells, lambda index: places[index][0].where(places[index][1]))
    numbers = iter(values)
    read: list[Table | None] = []
    for table in tables:
        rows = []
        for row in table.rows if table else ():
            number = next(numbers)  # None for a missing label, which is left as it is, to be complained of
            rows.append(row if number is None else {**row, label: number})
        read.append(replace(table, rows=rows) if table else None)
    return read, [note] if note else []


def check_cells(table: Table, label: str, *, lists: bool = False) -> None:
    """Raises: DataError for a label that is neither a text nor a number (nor with `lists` a list of such), or that
    cannot be written down.
    """
    for index, row in enumerate(table.rows):
        cell = row.get(label)
        for part in cell if lists and isinstance(cell, list) else [cell]:
            if not (isinstance(part, str | int | float) or missing(part)):
                raise DataError(f"{table.where(index)}: expected one label, found {cell!r}", "write a text or a number")
            if isinstance(part, str) and re.search("[\ud800-\udfff]", part):
                raise DataError(
                    f"{table.where(index)}: the label {cell!r} holds half of a surrogate pair",
                    "write the whole character",
                )


def class_names(cells: Sequence[Any]) -> tuple[tuple[str, ...], list[str]]:
    """The classes that cells name, numbers by their value and other names by their letters, with a note for each
    spelling that was taken for another one. Whole numbers with and without ".0" are one class.
    """
    spellings: dict[str, Counter[str]] = {}
    for cell in cells:
        name = class_name(cell)
        spellings.setdefault(_whole(name), Counter())[name] += 1
    names = {whole: min(found, key=lambda name: (-found[name], len(name))) for whole, found in spellings.items()}
    notes = [
        f"{' and '.join(map(repr, found))} are one class, called {names[whole]!r}"
        for whole, found in spellings.items()
        if len(found) > 1
    ]
    numbers = all(re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", name) for name in names.values())
    return tuple(sorted(names.values(), key=lambda name: (float(name) if numbers else 0, name))), notes


def name_notes(cells: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Sentences on names of classes that look like one another, or like no label."""
    notes = []
    if spaced := sum(isinstance(cell, str) and cell != cell.strip() for cell in cells):
        notes.append(f"{spaced:,} labels have white space around them, which is no part of their class")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_folded(name), []).append(name)
    found = [same for same in alike.values() if len(same) > 1]
    if found:
        shown = "; ".join(" and ".join(map(_told_apart, same)) for same in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        notes.append(
            "classes whose names differ in case, white space, Unicode form or invisible characters alone are kept "
            f"apart: {shown}{more}; where they mean the same, write them alike"
        )
    notes += alike_notes(names, _folded) + rating_notes(names)
    if doubtful := [name for name in names if name.lower() in _DOUBTFUL]:
        which = " and ".join(map(repr, doubtful))
        notes.append(f"{which} is read as the name of a class; where it stands for a missing label, remove those rows")
    return notes


def _folded(name: str) -> str:
    letters = [" " if letter.isspace() else letter for letter in unicodedata.normalize("NFKC", name)]
    visible = "".join(letter for letter in letters if unicodedata.category(letter) not in ("Cf", "Cc"))
    return " ".join(visible.casefold().split())


def _told_apart(name: str) -> str:
    """The name in quotes, with what cannot be seen written out."""
    plain = unicodedata.normalize("NFC", name) == name and all(map(str.isprintable, name)) and "\u00a0" not in name
    return repr(name) if plain else ascii(name)


def share_notes(counts: Counter[str], metric: str | None) -> list[str]:
    """A sentence where nearly all rows are of one class and no metric was chosen."""
    (name, most), total = counts.most_common(1)[0], sum(counts.values())
    if metric is not None or most <= MOSTLY * total:
        return []
    return [
        f"{most:,} of {total:,} labelled rows are of the class {name!r}, so that always answering it has an accuracy "
        f"of {most / total:.3f}; --metric macro_f1 gives every class the same weight"
    ]


def check_number_of_classes(table: Table, label: str, cells: Sequence[Any], names: Sequence[str]) -> None:
    """Raises: DataError, with what the column seems to hold, where it has nearly as many classes as rows."""
    if (found := no_classes(cells, names)) is None:
        return
    others = telling(table, [name for name in table.columns if name != label])
    said, hint = found
    raise DataError(
        f"{table.path}: the column {label!r} has {said}",
        f"{hint}; for another column: --label {'|'.join(others) or 'COLUMN'}; to take every value as a class all the "
        "same: --kind classification",
    )


def no_classes(cells: Sequence[Any], names: Sequence[str]) -> tuple[str, str] | None:
    """What labels with nearly as many classes as rows seem to be, and what to do; None for others."""
    if len(cells) < LEAST_ROWS or len(names) <= MOST_CLASSES * len(cells):
        return None
    single = sum(times == 1 for times in Counter(map(class_name, cells)).values())
    texts = sum(len(str(cell).split()) >= _WORDS_OF_A_TEXT for cell in cells)
    numbers = sum(read_number(cell) is not None for cell in cells)
    if texts * 2 > len(cells):
        what, hint = "texts", "texts to be written: --kind generation"
    elif numbers:
        what = f"{numbers:,} numbers among other labels"
        hint = "for numbers, correct the other rows and give --kind regression"
    elif single == len(cells):
        what, hint = "a name or number of its own in every row", "an id is no label"
    else:
        what, hint = "names of which most stand in one row", "classes need several rows each"
    return (
        f"{len(names):,} different values in {len(cells):,} rows, {single:,} of them once: it holds {what}, and no "
        "classes",
        hint,
    )


def check_one_label(table: Table, label: str, known: Sequence[tuple[int, Any]], marks: Sequence[str] = ";|") -> None:
    """Raises: DataError that shows cells which seem to hold several labels each.

    That are lists, and texts with one of the `marks` whose parts stand in other labels too, alone or in other company.
    """
    several = [(index, cell) for index, cell in known if (found := as_list(cell)) is not None and len(found) != 1]
    shown, how = f"{several[0][1]!r} ({table.where(several[0][0])})" if several else "", "--kind multilabel"
    names = dict.fromkeys(class_name(cell) for _, cell in known if isinstance(cell, str))
    for mark in marks:
        if not shown and (found := recombined(list(names), mark)):
            part, (one, other) = found
            index = next(index for index, cell in known if class_name(cell) == one)
            shown = f"{one!r} ({table.where(index)}), of which {part!r} is also in {other!r}"
            how = separated(mark)
    if shown:
        raise DataError(
            f"{table.path}: expected one label per row, but the column {label!r} seems to hold several: {shown}",
            f"for several labels per text: {how}; to take each combination as a class of its own: --kind "
            "classification",
        )


def separated(mark: str) -> str:
    """The option that says that a mark divides labels."""
    name = next((name for name, sign in SEPARATORS.items() if sign == mark), None if mark.isalnum() else repr(mark))
    return f"--label-separator {name}" if name else 'write lists, such as ["a", "b"], and give --kind multilabel'


def shared_part_notes(names: Sequence[str]) -> list[str]:
    """A sentence on names that share a part behind a mark, which is too little to take them for several labels."""
    for mark in WEAK_MARKS:
        if found := recombined(names, mark, sure=False):
            part, (one, other) = found
            return [
                f"the labels {one!r} and {other!r} share the part {part!r} and are read as one class each; where they "
                f"are several labels each: {separated(mark)}"
            ]
    return []


def recombined(names: Sequence[str], mark: str, sure: bool = True) -> tuple[str, tuple[str, str]] | None:
    """A part that stands in two of the names and these names, one of which has several parts; None where the names do
    not look like combinations: where no part recurs, or parts recur as the first alone ("Sport, tennis" and
    "Sport, golf" are places in a tree).

    Marks other than ; and | are common within names, so that more is asked of them: a part of "Austin, TX" recurs in
    "Dallas, TX". With a comma a part must be a class too, or recur in the first place and in another one; with others
    ("TCP/IP", "R&D") all parts must be classes, or a part of several letters recur so. Without `sure` less will do.
    """
    parts = {name: _parts(name, mark) for name in names}
    joined = [name for name, own in parts.items() if len(own) > 1 and all(len(part.split()) <= 3 for part in own)]
    places: dict[str, list[tuple[str, int]]] = {}
    for name, own in parts.items():
        for place, part in enumerate(own):
            places.setdefault(part.casefold(), []).append((name, place))
    for name in joined:
        for part in parts[name]:
            found = places[part.casefold()]
            others = [other for other, _ in found if other != name]
            alone = [other for other in others if len(parts[other]) == 1]
            moved = others and {0} < {min(place, 1) for other, place in found if len(parts[other]) > 1}
            if mark in ";|" or not sure:
                recurs = alone or any(place for _, place in found)
            elif mark == ",":
                recurs = alone or moved
            else:
                classes = all(any(len(parts[other]) == 1 for other, _ in places[one.casefold()]) for one in parts[name])
                recurs = classes or (moved and len(part) > 1)
            if others and recurs:
                return part, (name, (alone or others)[0])
    return None


def _parts(name: str, mark: str) -> list[str]:
    """The parts of a name at a mark, but for marks within a control sequence, an entity ("R&amp;D") or numbers."""
    name = re.sub(r"&(#\d+|#[xX][0-9a-fA-F]+|\w+);", lambda found: html.unescape(found[0]), _COMMAND.sub("", name))
    if mark == "#" and not re.fullmatch(r"(#[^\s#]+[\s,;]*)+", name):
        return [name]
    parts = [part.strip(" \t,;" if mark == "#" else None) for part in re.split(_MARKS.get(mark, re.escape(mark)), name)]
    parts = [part for part in parts if part]
    if mark not in (*";|,", "#") and all(re.fullmatch(r"[\d.]+", part) for part in parts):
        return [name]  # "7/10" is a number out of ten
    return parts
