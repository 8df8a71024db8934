"""Several labels per text: sets of classes from lists, texts with a separator, columns of 0 and 1, and matrices.

However they are written, the result is one `LabelSets`. An empty set is a label like any other: none of the classes. A
missing cell (`cells.missing_label`: None, NaN, blank) is no label: its row is None and is counted, unless `blank` says
that blank cells mean "none of the classes".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

from handful.data.cells import missing, missing_label, plain
from handful.data.labels import SEPARATORS, Targets, class_name, class_names, name_notes, recombined
from handful.data.written_lists import read_list
from handful.errors import ConfigError, DataError, nearest, shown

if TYPE_CHECKING:
    import numpy as np

Blank = Literal["missing", "none"]
Where = Callable[[int], str]

MOST_LABELS = 1000
"""More classes than this are free tags or ids, which a few hundred rows cannot teach."""

_YES, _NO = ("1", "1.0", "true", "yes", "t", "y"), ("0", "0.0", "false", "no", "f", "n")
_BITS = {"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1}


@final
@dataclass(frozen=True, slots=True)
class LabelSets:
    """The classes, and of each row the indices of its own in rising order, () for none of them, None without a label.

    `notes` say what was merged, dropped, guessed and left without a label, `flags` that lists were zeros and ones, one
    per class.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[int, ...] | None, ...]
    notes: tuple[str, ...] = ()
    flags: bool = False

    def counts(self) -> Counter[int]:
        """Number of rows of each class, by its index."""
        return Counter(index for row in self.rows for index in row or ())

    def indicators(self) -> np.ndarray:
        """Zeros and ones (N, C) of the rows that have a label."""
        return indicators([row for row in self.rows if row is not None], len(self.labels))


def indicators(rows: Sequence[Iterable[int]], num_labels: int) -> np.ndarray:
    """Zeros and ones (N, C), int64, of rows of class indices."""
    import numpy as np

    matrix = np.zeros((len(rows), num_labels), dtype=np.int64)
    for place, row in enumerate(rows):
        matrix[place, [*row]] = 1
    return matrix


def row_number(index: int) -> str:
    """The place of a row that has no other."""
    return f"row {index}"


def as_separator(name: str) -> str:
    """The mark that is meant by itself, by its name ("semicolon") or escaped (a backslash and "t").

    Raises: ConfigError for what is no text, an empty one, and letters and digits, which stand within names.
    """
    if not isinstance(name, str):
        raise ConfigError(f"label separator: expected a text, found {shown(name)}", "give a mark such as ';'")
    mark = SEPARATORS.get(name.strip().lower(), {r"\t": "\t", r"\n": "\n"}.get(name, name))
    if not mark or re.search(r"[^\W_]", mark):
        near = nearest(name, SEPARATORS)
        raise ConfigError(
            f"label separator: expected a mark such as ';' or its name, found {name!r}",
            near if near.startswith("did you mean") else f"names of marks: {', '.join(SEPARATORS)}",
        )
    return mark


# ------------------------------------------------------------------------------------------------ cells of one column


def read_label_sets(
    cells: Sequence[Any],
    *,
    separator: str | None = None,
    labels: Sequence[str] | None = None,
    blank: Blank = "missing",
    where: Where = row_number,
    column: str = "label",
    cells_are_texts: bool = True,
    flags: bool | None = None,
) -> LabelSets:
    """The label sets in the cells of one column.

    Without a `separator` every cell is a list: a list, tuple, set or array, or one written as text (`read_list`). With
    one, cells are texts whose parts are labels ("a;b"); a cell without it is a set of one. Lists of equal length that
    hold 0 and 1 alone are rows of an indicator matrix, as many datasets of the Hugging Face Hub have them; `flags` says
    that lists are such rows, or are not.

    Classes are named and ordered as those of single labels (`labels.class_names`). With `labels`, such as for test
    rows, these are the classes, and the separator may stand in no cell. `where` gives the place of a row for errors,
    `cells_are_texts` is as in `missing_label`.

    Raises: DataError for cells of another kind, lists mixed with single labels, a separator that no cell holds, names
    that are no class, and what `LabelSets` cannot be learned from: fewer than two classes, or more than `MOST_LABELS`.
    """
    mark = None if separator is None else as_separator(separator)
    counted: Counter[str] = Counter()
    parsed: list[list[Any] | None] = []
    for index, cell in enumerate(cells):
        if missing_label(cell, cells_are_texts=cells_are_texts):
            empty = blank == "none" and missing(cell)
            counted["blank"] += empty
            parsed.append([] if empty else None)
        elif mark is None:
            parsed.append(_as_list(plain(cell)))
        else:
            parsed.append(_divided(plain(cell), mark, where(index), counted))
        if parsed[-1] is None and mark is None and not missing_label(cell, cells_are_texts=cells_are_texts):
            _complain_of_single(cells, column, where, cells_are_texts)
    _check_any(parsed, column)
    width = _flag_width(parsed) if mark is None and flags is not False else 0
    if flags and mark is None and labels is not None:
        width = len(labels)
        _check_width(parsed, width, where)
    if width and (flags or labels is None or width == len(labels)):
        found = read_indicators([[None] * width if row is None else row for row in parsed], labels, where=where)
        note = f"the lists in the column {column!r} hold 0 and 1 alone and are read as one place per class"
        return LabelSets(found.labels, found.rows, (note, *found.notes), flags=True)
    if mark is not None and labels is None:
        _check_divided(cells, mark, column)
    for index, row in enumerate(parsed):
        _check_parts(row or (), where(index) if row else "")
    return _named(parsed, labels, counted, where, column)


def _as_list(cell: Any) -> list[Any] | None:
    return cell if isinstance(cell, list) else read_list(cell) if isinstance(cell, str) else None


def _divided(cell: Any, mark: str, place: str, counted: Counter[str]) -> list[Any]:
    """The labels in a cell of text; empty parts, such as behind a last mark, are dropped and counted."""
    if isinstance(cell, int | float):  # of a column in which other cells hold several
        return [cell]
    if not isinstance(cell, str) or read_list(cell) is not None:
        raise DataError(
            f"{place}: expected a text with labels between {mark!r}, found the list {shown(cell)}",
            "lists need no separator: leave it out",
        )
    parts = [part.strip() for part in cell.split(mark)]
    kept = [part for part in parts if part]
    if mark.strip():  # several blanks in a row are one
        counted["empty parts"] += len(parts) - len(kept)
    if not kept:
        raise DataError(f"{place}: expected labels between {mark!r}, found none in {cell!r}", "leave the cell blank")
    return kept


def _complain_of_single(cells: Sequence[Any], column: str, where: Where, cells_are_texts: bool) -> None:
    """Raises: DataError for single labels where lists are expected."""
    known = [(i, c) for i, c in enumerate(cells) if not missing_label(c, cells_are_texts=cells_are_texts)]
    single = [(index, cell) for index, cell in known if _as_list(plain(cell)) is None]
    listed = [(index, cell) for index, cell in known if _as_list(plain(cell)) is not None]
    index, cell = single[0]
    if not isinstance(plain(cell), str | int | float):
        raise DataError(f"{where(index)}: expected a list of labels, found {shown(cell)}", 'write it as ["a", "b"]')
    if listed:
        place, example = listed[0]
        raise DataError(
            f"column {column!r}: expected a list in every row, as {shown(example)} ({where(place)}), found single "
            f"labels in {len(single)} of {len(known)} rows, the first {shown(cell)} ({where(index)})",
            'write every cell as a list: ["a"] for one label, [] for none of the classes'
            + ("; quote the names in it" if str(cell).strip().startswith("[") else ""),
        )
    mark = likely_mark([cell for _, cell in known])
    raise DataError(
        f"column {column!r}: expected several labels per row, found single ones such as {shown(cell)} ({where(index)})",
        f"name what stands between labels: --label-separator {mark}; one label per row is --kind classification"
        if mark
        else 'write lists, ["a", "b"], or name what stands between labels (--label-separator semicolon); one label '
        "per row is --kind classification",
    )


def likely_mark(cells: Iterable[Any]) -> str | None:
    """The name of the mark that seems to stand between the labels in texts ("semicolon"); None where none does."""
    names = [*dict.fromkeys(class_name(cell) for cell in cells if isinstance(cell, str))]
    return next((name for name, mark in SEPARATORS.items() if mark.strip() and recombined(names, mark)), None)


def _check_divided(cells: Sequence[Any], mark: str, column: str) -> None:
    texts = [cell for cell in cells if isinstance(cell, str) and not missing(cell)]
    if any(mark in cell.strip() for cell in texts):
        return
    other = likely_mark(texts)
    example = f", such as {shown(texts[0])}" if texts else ""
    raise DataError(
        f"column {column!r}: expected labels between {mark!r}, found it in none of the {len(cells)} cells{example}",
        f"{SEPARATORS[other]!r} seems to stand between labels: --label-separator {other}"
        if other
        else "one label per row is --kind classification",
    )


def _check_parts(parts: Iterable[Any], place: str) -> None:
    for part in parts:
        if missing(part):
            raise DataError(
                f"{place}: expected names of classes in the list, found {part!r}",
                "remove it; [] is none of the classes, and a blank cell is a row without a label",
            )
        if not isinstance(part, str | int | float):
            raise DataError(f"{place}: expected names of classes, found {shown(part)}", 'write a flat list: ["a", "b"]')


def _flag_width(parsed: Sequence[list[Any] | None]) -> int:
    """The length of lists that can be nothing but rows of an indicator matrix; 0 for others.

    A list that repeats a zero or a one is such a row, as sets of classes repeat nothing; so are lists of one length.
    """
    rows = [row for row in parsed if row is not None]
    if not all(isinstance(part, str | int | float) and str(part).strip() in _BITS for row in rows for part in row):
        return 0
    widths = Counter(map(len, rows))
    repeats = any(len({_BITS[str(part).strip()] for part in row}) < len(row) for row in rows)
    return widths.most_common(1)[0][0] if repeats or (len(widths) == 1 and min(widths) > 1) else 0


def _check_width(parsed: Sequence[list[Any] | None], width: int, where: Where) -> None:
    for index, row in enumerate(parsed):
        if row is not None and len(row) != width:
            raise DataError(
                f"{where(index)}: expected a list of {width} zeros and ones, one per class, found {shown(row)}",
                "give every row one place per class",
            )


def _named(
    parsed: Sequence[list[Any] | None], labels: Sequence[str] | None, counted: Counter[str], where: Where, column: str
) -> LabelSets:
    """The sets of names as sets of indices."""
    parts = [part for row in parsed for part in row or ()]
    names, notes = (tuple(labels), []) if labels is not None else class_names(parts)
    if labels is None:
        notes += name_notes(parts, names)
        check_labels(names, f"column {column!r}")
    targets, rows, doubled = Targets(names), [], []
    for index, row in enumerate(parsed):
        found = sorted({int(targets.value(part, where(index))) for part in row or ()})
        rows.append(None if row is None else tuple(found))
        doubled += [index] if len(found) < len(row or ()) else []
    if counted["empty parts"]:
        notes.append(f"{counted['empty parts']:,} empty parts between separators are left out")
    if counted["blank"]:
        notes.append(f"{counted['blank']:,} blank cells are read as none of the classes")
    if doubled:
        notes.append(f"{len(doubled):,} rows name a class twice, which counts once (first: {where(doubled[0])})")
    return _checked(LabelSets(names, tuple(rows), tuple(notes)), labels is None, where, column)


# ------------------------------------------------------------------------------------------- zeros and ones per class


def read_flag_columns(
    columns: Mapping[str, Sequence[Any]],
    *,
    labels: Sequence[str] | None = None,
    blank: Blank = "missing",
    where: Where = row_number,
) -> LabelSets:
    """The label sets in columns of 0 and 1, one per class, also true/false, yes/no and 1.0/0.0 in any case.

    Classes are named as the columns and ordered as those of single labels, or are `labels`, which are then the columns
    that are read. A row that is blank in all columns has no label; with blank="none" every blank cell is a 0.

    Raises: DataError for other values, and for rows that are blank in some columns only.
    """
    names = [*columns]
    if labels is not None and (absent := [name for name in labels if name not in columns]):
        raise DataError(f"expected a column for the class {absent[0]!r}, found none", nearest(absent[0], names))
    order = tuple(labels) if labels is not None else class_names(names)[0]
    if labels is None and len(order) < len(names):
        raise DataError(f"expected a class per column, found names that mean the same: {', '.join(map(repr, names))}")
    by_name = {class_name(name): column for name, column in columns.items()}
    check_labels(order, "columns of 0 and 1")
    cells = [*zip(*(by_name[class_name(name)] for name in order), strict=True)]
    return _of_flags(cells, order, labels is None, blank, where)


def read_indicators(
    matrix: Any, labels: Sequence[str] | None = None, *, blank: Blank = "missing", where: Where = row_number
) -> LabelSets:
    """The label sets in a matrix (N, C) of zeros and ones: a list of lists, an array, a sparse matrix or a data frame.

    `labels` name the columns of all but a data frame, which names its own, and are the classes in this order; without
    them classes are called "0", "1" and so on. Raises: DataError for rows of different lengths, other values and
    another number of names.
    """
    if hasattr(matrix, "columns"):
        check_labels([*map(str, matrix.columns)], "columns of 0 and 1")
        by_name = {str(name): list(matrix[name]) for name in matrix.columns}
        return read_flag_columns(by_name, labels=labels, blank=blank, where=where)
    rows = _dense(matrix)
    width = len(rows[0]) if rows else 0
    for index, row in enumerate(rows):
        if len(row) != width:
            raise DataError(
                f"{where(index)}: expected {width} zeros and ones, as in the first row, found {len(row)}",
                "give every row one place per class",
            )
    if labels is not None and len(labels) != width:
        raise DataError(f"expected a name for each of the {width} columns, found {len(labels)} names")
    names = tuple(labels) if labels is not None else tuple(map(str, range(width)))
    check_labels(names, "indicator matrix")
    found = _of_flags(rows, names, labels is None, blank, where)
    note = f"the classes have no names and are called '0' to {str(width - 1)!r}"
    return found if labels is not None else LabelSets(found.labels, found.rows, (note, *found.notes))


def _dense(matrix: Any) -> Sequence[Sequence[Any]]:
    """The rows of a matrix. Raises: DataError where it has none."""
    if hasattr(matrix, "tocsr"):
        matrix = matrix.toarray()
    rows = plain(matrix) if hasattr(matrix, "dtype") else [plain(row) for row in matrix]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise DataError(
            f"expected a matrix of zeros and ones (N, C), found {shown(matrix)}", "give every row a list of 0 and 1"
        )
    return rows


def _of_flags(
    cells: Sequence[Sequence[Any]], names: Sequence[str], first: bool, blank: Blank, where: Where
) -> LabelSets:
    rows: list[tuple[int, ...] | None] = []
    blanks = 0
    for index, row in enumerate(cells):
        absent = sum(not isinstance(cell, int) and missing_label(cell) for cell in row)
        if absent and blank == "missing":
            if absent < len(row):
                name = next(name for name, cell in zip(names, row, strict=True) if missing_label(cell))
                raise DataError(
                    f"{where(index)}: expected 0 or 1 for every class, found {absent} of {len(row)} blank, the first "
                    f"in {name!r}",
                    "fill them in: 0 where the text does not have the class",
                )
            rows.append(None)
            continue
        blanks += absent
        flags = [_flag(cell, name, index, where) for name, cell in zip(names, row, strict=True)]
        rows.append(tuple(place for place, flag in enumerate(flags) if flag))
    notes = (f"{blanks:,} blank cells are read as 0",) if blanks else ()
    return _checked(LabelSets(tuple(names), tuple(rows), notes), first, where, "of 0 and 1")


def _flag(cell: Any, name: str, index: int, where: Where) -> bool:
    if isinstance(cell, int) and cell in (0, 1):  # nearly all cells
        return bool(cell)
    if missing_label(cell):
        return False
    word = str(plain(cell)).strip().lower()
    if word in _YES or word in _NO:
        return word in _YES
    raise DataError(
        f"{where(index)}: expected 0 or 1 (or true/false, yes/no) in {name!r}, found {shown(cell)}",
        "write 1 where the text has this class and 0 elsewhere; cut probabilities and counts at a value of your choice",
    )


# ------------------------------------------------------------------------------------------------ what all must fulfil


def check_labels(labels: Sequence[str], what: str) -> None:
    """Raises: DataError for fewer than two classes, more than `MOST_LABELS`, or a name that stands there twice."""
    if doubled := [name for name, times in Counter(labels).items() if times > 1]:
        raise DataError(f"{what}: expected different names of classes, found {doubled[0]!r} twice")
    if len(labels) < 2:
        found = f"only {labels[0]!r}" if labels else "none"
        raise DataError(
            f"{what}: expected at least two classes, found {found}",
            "for one class write yes or no into each row: --kind classification",
        )
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"{what}: expected at most {MOST_LABELS:,} classes, found {len(labels):,}",
            "leave rare ones out or join them; free tags and ids are no classes",
        )


def _check_any(rows: Sequence[Any], column: str) -> None:
    if all(row is None for row in rows):
        raise DataError(f"column {column!r}: expected labels, found none in {len(rows)} rows", "name another column")


def _checked(found: LabelSets, first: bool, where: Where, column: str) -> LabelSets:
    """The sets with notes on missing and empty ones. Raises: DataError where all of the `first` rows are alike."""
    _check_any(found.rows, column)
    known = {row for row in found.rows if row is not None}
    if first and len(known) == 1 and len(found.rows) > 1:
        names = [found.labels[index] for index in known.pop()]
        said = f"the same set of labels, {names}"
        raise DataError(f"column {column!r}: all rows have {said}", "at least two different ones are needed")
    notes, total = list(found.notes), len(found.rows)
    if empty := sum(row == () for row in found.rows):
        notes.append(f"{empty:,} of {total:,} rows have none of the classes")
    if absent := [index for index, row in enumerate(found.rows) if row is None]:
        notes.append(f"{len(absent):,} of {total:,} rows have no label (first: {where(absent[0])})")
    return LabelSets(found.labels, found.rows, tuple(notes))
