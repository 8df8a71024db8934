"""Numbers in the notations of people: read where they are clear, refused with their row where they are not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.numbers import read_number, read_numbers
from handful.errors import DataError


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.5", 1.5), (" 1.5 ", 1.5), (".5", 0.5), ("1.", 1.0), ("1e-5", 1e-5), ("+3", 3.0), ("-5", -5.0),
        ("1,5", 1.5), ("1.234,5", 1234.5), ("1,234.5", 1234.5), ("0,123", 0.123), ("1,234", 1234.0),
        ("1 000", 1000.0), ("1\u00a0000,5", 1000.5), ("12\u202f345\u202f678", 12345678.0), ("1'000.5", 1000.5),
        ("\u22125", -5.0), ("12 %", 12.0), ("12%", 12.0), ("€ 3", 3.0), ("3,50 €", 3.5), ("$1,200.50", 1200.5),
        ("-$3", -3.0), ("CHF 5", 5.0), ("½", 0.5), ("1½", 1.5), (3, 3.0), (2.5, 2.5),
    ],
)  # fmt: skip
def test_notations_of_one_cell(cell, value):
    assert read_number(cell) == value


@pytest.mark.parametrize(
    "cell",
    ["", " ", "abc", "A0", "1_000", "nan", "inf", "1e999", "9" * 400, 10**400, math.nan, math.inf, True, None, [1],
     "1,2,3", "1.2.3", "1,00,000", "0x10", "5k", "3/4", "4 stars", "1 2", "²", "%", "€", "-", "\u0663"],
    ids=repr,
)  # fmt: skip
def test_what_is_no_number(cell):
    assert read_number(cell) is None


@pytest.mark.parametrize(
    ("cells", "values", "note"),
    [
        (["1.5", "2", 3], [1.5, 2.0, 3.0], None),
        (["1.234", "2.345"], [1.234, 2.345], None),
        (["4,22", "3,79", "2"], [4.22, 3.79, 2.0], "2 of 3 numbers are read with decimal commas: '4,22' is 4.22"),
        (["1,234", "0,5"], [1.234, 0.5], "2 of 2 numbers are read with decimal commas: '1,234' is 1.234"),
        (["1.234", "2.345,5"], [1234.0, 2345.5], "with decimal commas: '1.234' is 1234"),
        (["1,234", "2.5"], [1234.0, 2.5], "1 of 2 numbers are read as people write them: '1,234' is 1234"),
        (["12 %", "0,5 %"], [12.0, 0.5], "'12 %' is 12"),
        (["1", "NaN", "", None, "2"], [1.0, None, None, None, 2.0], None),
        ([], [], None),
    ],
)
def test_a_column_is_read_in_one_notation(cells, values, note):
    found, said = read_numbers(cells)
    assert found == values
    assert said is None if note is None else note in (said or "")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "x"], r"row 1: expected a finite number, found 'x'\n\nhint: .*--kind classification"),
        (["1", "inf"], r"row 1: expected a finite number, found 'inf'"),
        (["1", True], r"row 1: expected a finite number, found True"),
        (["1,5", "3", "2.5"], r"row 2: expected numbers in one notation, found '2\.5' after '1,5' \(row 0\)"),
        (["950", "1,000"], r"row 1: cannot tell whether '1,000' is 1000 or 1: .*\n\nhint: .*decimal point"),
        (["12 %", "13"], r"row 1: expected numbers of one unit, found '13' after '12 %' \(row 0\)"),
        (["€ 3", "$ 3"], r"row 1: expected numbers of one unit, found '\$ 3' after '€ 3'"),
    ],
)
def test_columns_that_are_not_clear(cells, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_numbers(cells)


def test_the_place_of_an_error_is_named_by_the_caller():
    with pytest.raises(DataError, match=r"^data\.csv:3: expected a finite number"):
        read_numbers(["1", "x"], lambda row: f"data.csv:{row + 2}")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8))
def test_what_python_writes_is_read_back(numbers):
    assert read_numbers([repr(number) for number in numbers]) == (numbers, None)


@given(st.lists(st.decimals(-(10**9), 10**9, places=2, allow_nan=False), min_size=1, max_size=8))
def test_both_ways_of_grouping_are_read_back(numbers):
    english = [f"{number:,.2f}" for number in numbers]
    german = [cell.translate(str.maketrans(",.", ".,")) for cell in english]
    values = [float(number) for number in numbers]
    assert read_numbers(english)[0] == values
    assert read_numbers(german)[0] == values


@given(st.lists(st.text(max_size=12), max_size=5))
def test_any_text_is_a_number_a_missing_value_or_refused(cells):
    try:
        values, _ = read_numbers(cells)
    except DataError:
        return
    assert all(value is None or math.isfinite(value) for value in values)
