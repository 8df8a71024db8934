"""Cells of a table, whatever it was read from: plain Python values, and which of them stand for nothing."""

from __future__ import annotations

import datetime
import decimal
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from handful.errors import DataError

MAX_CELL = 1_000_000
"""Characters in one cell. More is a quote that is never closed, or no text to classify."""

MAX_BITS = 8192
"""Bits of a whole number in a cell; Python refuses to write out much longer ones."""

NAMED_PLACES = 5
"""Lines that an error or a note lists before it counts the rest."""

NO_VALUE = frozenset(
    {"#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>", "n/a", "nan", "nat"}
)
"""Words, in lower case, that programs write where there is no value, and that name no class in any source."""

NO_VALUE_IN_TEXT = frozenset({"NA", "NULL", "null", "None"})
"""Words that pandas reads as no value in CSV. A format with a null of its own may have them as names of classes."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def missing(cell: Any) -> bool:
    """Whether a cell is empty: None, NaN, pandas' NA and NaT, or a blank text."""
    if isinstance(cell, str):
        return not cell.strip()
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, float | complex | decimal.Decimal) and cell != cell


def missing_label(cell: Any, *, cells_are_texts: bool = True) -> bool:
    """Whether a cell of a label column holds no label: an empty one, or a word for "no value" such as "NaN".

    Where `cells_are_texts`, "NA", "NULL", "null" and "None" are such words too, as in pandas.
    """
    if not isinstance(cell, str):
        return missing(cell)
    word = cell.strip()
    return not word or word.lower() in NO_VALUE or (cells_are_texts and word in NO_VALUE_IN_TEXT)


def plain(cell: Any) -> Any:
    """The cell as str, bool, int, float, list, dict or None: numpy's scalars and arrays, dates, decimals, NA and NaN.

    Anything else is returned as it is.
    """
    if isinstance(cell, str):
        return cell if type(cell) is str else str.__str__(cell)
    if isinstance(cell, bool | int):
        return cell
    if missing(cell):
        return None
    if isinstance(cell, float):
        return cell if type(cell) is float else float(cell)
    if isinstance(cell, datetime.date | datetime.time | datetime.timedelta):  # a datetime is a date
        return str(cell)
    if isinstance(cell, decimal.Decimal):
        return int(cell) if cell == cell.to_integral_value() else float(cell)
    if isinstance(cell, Mapping):
        return {str(key): plain(value) for key, value in cell.items()}
    if isinstance(cell, set | frozenset):
        return sorted(map(plain, cell), key=repr)  # a set has no order, and another one in the next process
    if isinstance(cell, list | tuple):
        return [plain(value) for value in cell]
    if hasattr(cell, "dtype") and hasattr(cell, "tolist"):  # numpy and its like; a scalar becomes Python's
        value = cell.tolist()
        return float(cell) if type(value) is type(cell) else plain(value)  # a long double stays one
    return cell


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Raises: DataError for a text that is too long, or holds half of a surrogate pair, which no file can hold, and for
    a number of thousands of digits.
    """
    for name, cell in row.items():
        if not name.isascii():
            _check_text(name, where, "the name of a column")
        if isinstance(cell, str) and cell.isascii() and len(cell) <= MAX_CELL:
            continue  # nearly all cells
        for text in _texts_in(cell):
            _check_text(text, where, f"the text in {name!r}")
        if isinstance(cell, int) and cell.bit_length() > MAX_BITS:
            raise DataError(f"{where}: the number in {name!r} has thousands of digits", "correct it")


def _check_text(text: str, where: str, what: str) -> None:
    if len(text) > MAX_CELL:
        raise DataError(f"{where}: a text has more than {MAX_CELL:,} characters", "cut it or leave the row out")
    if found := _SURROGATE.search(text):
        raise DataError(
            f"{where}: {what} holds half of a surrogate pair (\\u{ord(found[0]):04x}, character {found.start() + 1})",
            "write the whole character; it was probably cut in two",
        )


def _texts_in(cell: Any) -> Iterable[str]:
    stack = [cell]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            stack.extend(value)
            stack.extend(value.values())


def repeated(names: Iterable[Any]) -> list[Any]:
    """The names that stand there more than once, in order."""
    return [name for name, count in Counter(names).items() if count > 1]


def listed(places: Sequence[int]) -> str:
    """The first few of these lines or rows, and how many more there are."""
    more = f" and {len(places) - NAMED_PLACES:,} more" if len(places) > NAMED_PLACES else ""
    return ", ".join(map(str, places[:NAMED_PLACES])) + more
