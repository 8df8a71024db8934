"""Numbers as people write them: decimal commas, groups of digits, percent and currency signs, fractions.

"1,234" is 1234 to some and 1.234 to others. So a column is read as a whole: the notation that fits all of its cells is
taken and said; where two fit and give different numbers, or none does, the column is refused.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from handful.data.cells import missing_label
from handful.errors import DataError

_CURRENCIES = "CHF|EUR|USD|GBP|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|Kč|zł|kr"
_SIGNS = "$€£¥₹₩₽₺"
_UNIT = re.compile(
    rf"^(?:{_CURRENCIES}|[^\W\d_]?[{_SIGNS}])(?=[\s\d.,+-])|(?:{_CURRENCIES}|[{_SIGNS}%‰])$", re.IGNORECASE
)
_SPACES = re.compile(r"[\s\u00a0\u2007\u202f]+")
_FRACTION = re.compile(r"^(\d*)\s?([\u00bc-\u00be\u2150-\u215e])$")
_EXPONENT = r"(?:[eE][+-]?\d{1,4})?"
_POINT, _COMMA = "point", "comma"
_PLAIN = {
    _POINT: re.compile(rf"(?:\d+\.?\d*|\.\d+){_EXPONENT}"),
    _COMMA: re.compile(rf"(?:\d+,?\d*|,\d+){_EXPONENT}"),
}
_GROUPED = {
    _POINT: re.compile(r"[1-9]\d{0,2}([,'’ ])\d{3}(?:\1\d{3})*(?:\.\d*)?"),
    _COMMA: re.compile(r"[1-9]\d{0,2}([.'’ ])\d{3}(?:\1\d{3})*(?:,\d*)?"),
}


@final
@dataclass(frozen=True, slots=True)
class _Reading:
    """What a cell may mean: its value in each notation that fits, and the unit that is written with it."""

    values: dict[str, float]
    unit: str = ""
    plain: bool = True

    @property
    def value(self) -> float:
        return self.values.get(_POINT, next(iter(self.values.values())))


def read_number(cell: Any) -> float | None:
    """The number in a cell, None where there is none. "1,234" alone is read as 1234, and "1,5" as 1.5.

    Not numbers: true and false, NaN and infinity, and digits with an underscore, which Python alone takes for one.
    """
    reading = _read(cell)
    return None if reading is None else reading.value


def read_numbers(
    cells: Sequence[Any], where: Callable[[int], str] = "row {}".format
) -> tuple[list[float | None], str | None]:
    """The numbers of a column in one notation, None where a cell holds no value, and a note where it is not the plain
    one. `where` names the place of a row for an error.

    Percent and currency signs are left out: "12 %" is 12. Raises: DataError with the row where a cell is no finite
    number, has another notation or unit than those above, or where the column can be read in two ways.
    """
    readings: list[_Reading | None] = []
    for row, cell in enumerate(cells):
        reading = None if missing_label(cell) else _read(cell)
        if reading is None and not missing_label(cell):
            raise DataError(
                f"{where(row)}: expected a finite number, found {cell!r:.80}",
                "correct the row, or say that the labels are classes: --kind classification",
            )
        readings.append(reading)
    known = [(row, reading) for row, reading in enumerate(readings) if reading is not None]
    _check_units(known, cells, where)
    notation = _common_notation(known, cells, where)
    values = [None if reading is None else reading.values[notation] for reading in readings]
    return values, _note(known, cells, notation)


def _read(cell: Any) -> _Reading | None:
    if isinstance(cell, bool):
        return None
    if isinstance(cell, int | float):
        try:
            value = float(cell)
        except OverflowError:
            return None
        return _Reading({_POINT: value, _COMMA: value}) if math.isfinite(value) else None
    if not isinstance(cell, str) or len(cell) > 100:
        return None
    text = _SPACES.sub(" ", cell).strip().replace("\u2212", "-")
    sign, text = (-1.0, text[1:].lstrip()) if text.startswith("-") else (1.0, text.removeprefix("+").lstrip())
    unit = ""
    if found := _UNIT.search(text):
        unit, text = found[0], (text[: found.start()] + text[found.end() :]).strip()
        if not unit.endswith(("%", "‰")) and text.startswith("-"):
            sign, text = -sign, text[1:]
    if fraction := _FRACTION.fullmatch(text):
        value = sign * (int(fraction[1] or 0) + unicodedata.numeric(fraction[2]))
        return _Reading({_POINT: value, _COMMA: value}, unit, plain=False)
    values = {notation: sign * value for notation in _PLAIN if (value := _in_notation(text, notation)) is not None}
    return _Reading(values, unit, plain=bool(_PLAIN[_POINT].fullmatch(text)) and not unit) if values else None


def _in_notation(text: str, notation: str) -> float | None:
    if not text.isascii() and "’" not in text:
        return None
    decimal = "." if notation == _POINT else ","
    if _PLAIN[notation].fullmatch(text):
        written = text.replace(decimal, ".")
    elif _GROUPED[notation].fullmatch(text):
        written = re.sub(r"[^\d.]", "", text.replace("." if decimal == "," else ",", "").replace(decimal, "."))
    else:
        return None
    value = float(written)
    return value if math.isfinite(value) else None


def _common_notation(known: Sequence[tuple[int, _Reading]], cells: Sequence[Any], where: Callable[[int], str]) -> str:
    """The notation that fits every cell. Raises: DataError where none does, or two do and differ."""
    fitting = {notation: all(notation in reading.values for _, reading in known) for notation in _PLAIN}
    if not any(fitting.values()):
        point = next(row for row, reading in known if _COMMA not in reading.values)
        comma = next(row for row, reading in known if _POINT not in reading.values)
        first, second = sorted((point, comma))
        raise DataError(
            f"{where(second)}: expected numbers in one notation, found {cells[second]!r} after {cells[first]!r} "
            f"({where(first)})",
            "write all of them with a decimal point, or all with a decimal comma",
        )
    doubtful = [row for row, reading in known if len(set(reading.values.values())) > 1]
    if fitting[_POINT] and fitting[_COMMA] and (unclear := [row for row in doubtful if "," in str(cells[row])]):
        one, other = (known_value(cells[unclear[0]], notation) for notation in (_POINT, _COMMA))
        raise DataError(
            f"{where(unclear[0])}: cannot tell whether {cells[unclear[0]]!r} is {one} or {other}: every number of the "
            "column can be read either way",
            "write the numbers without groups of digits and with a decimal point",
        )
    return _POINT if fitting[_POINT] else _COMMA


def known_value(cell: Any, notation: str) -> str:
    """The cell's number in a notation, as text."""
    reading = _read(cell)
    return f"{reading.values[notation]:.15g}" if reading else "none"


def _check_units(known: Sequence[tuple[int, _Reading]], cells: Sequence[Any], where: Callable[[int], str]) -> None:
    if known:
        row, first = known[0]
        other = next((row for row, reading in known if reading.unit.lower() != first.unit.lower()), None)
        if other is not None:
            raise DataError(
                f"{where(other)}: expected numbers of one unit, found {cells[other]!r} after {cells[row]!r} "
                f"({where(row)})",
                "write all of them with the same sign, or all without one",
            )


def _note(known: Sequence[tuple[int, _Reading]], cells: Sequence[Any], notation: str) -> str | None:
    """What was read otherwise than Python would, with the first example."""
    odd = [row for row, reading in known if not reading.plain or reading.values[notation] != reading.value]
    if not odd:
        return None
    grouped = [row for row in odd if _GROUPED[notation].fullmatch(_SPACES.sub(" ", str(cells[row])).strip())]
    shown = [f"{str(cells[row]).strip()!r} is {known_value(cells[row], notation)}" for row in (*odd[:1], *grouped[:1])]
    decimal = "with decimal commas" if notation == _COMMA else "as people write them"
    return f"{len(odd):,} of {len(known):,} numbers are read {decimal}: {', '.join(dict.fromkeys(shown))}"
