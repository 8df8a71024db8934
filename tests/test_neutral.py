"""Texts from outside, on terminals and in spreadsheets."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.neutral import cell, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"), ("a\x9b31mb", "a\\x9b31mb"), ("a\rb", "a\\x0db"),
        ("abc\u202edef", "abc\\u202edef"), ("\u2066x\u2069", "\\u2066x\\u2069"), ("\x07\x08\x7f", "\\x07\\x08\\x7f"),
        ("half \ud83d", "half \\ud83d"), ("tab\tand\nline", "tab\tand\nline"), ("ä 漢 👍🏽 ‍", "ä 漢 👍🏽 ‍"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_spelt_out(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_no_control_is_left(text):
    left = {c for c in printable(text) if unicodedata.category(c) in ("Cc", "Cs") or c in "\u202a\u202e\u2066\u200f"}
    assert left <= {"\t", "\n"}
    assert not {"\t", "\n"} & set(one_line(text))
    printable(text).encode()


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-a", "@SUM(A1)", "\tx", "\rx", "=", "-1+1", "+1-cmd|' /C calc'!A0"])
def test_no_text_is_a_formula(text):
    found = cell(text)
    assert found == (text if len(text) == 1 else f"'{text}")


@pytest.mark.parametrize("value", [-4.5, 7, None, True, "-3.5", "+1e-05", "-0", "plain", "", "a=b", "-", "−3"])
def test_numbers_and_other_texts_stay_as_they_are(value):
    assert cell(value) is value
