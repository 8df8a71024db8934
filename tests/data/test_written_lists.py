"""Lists written out as text are read as what they were, and nothing in them is run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.written_lists import read_list

NAMES = st.lists(st.text(max_size=8), max_size=5)


@given(NAMES)
def test_what_json_and_python_write_is_read_back(names):
    assert read_list(json.dumps(names)) == names
    assert read_list(json.dumps(names, ensure_ascii=False)) == names
    assert read_list(repr(names)) == names
    assert read_list(f" {names!r}\n") == names
    assert read_list(repr(tuple(names))) == names


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=8), max_size=5))
def test_what_numpy_writes_is_read_back(names):
    # numpy puts white space between texts, which Python would join into one
    for array in (np.array(names, dtype=object), np.array(names, dtype=str)):
        assert read_list(str(array)) == array.tolist()
        assert read_list(repr(array)) == array.tolist()
    assert read_list(str([np.str_(name) for name in names])) == names
    assert sorted(read_list(repr(frozenset(names))) or []) == sorted(set(names))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("['joy' 'anger']", ["joy", "anger"]),
        ("['a'\n 'b' \"it's\"]", ["a", "b", "it's"]),
        ("['it 5 6', 'b']", ["it 5 6", "b"]),
        ("[0 1 1]", [0, 1, 1]),
        ("[0. 1. 0.]", [0.0, 1.0, 0.0]),
        ("array([0, 1])", [0, 1]),
        ("[np.int64(3), -2]", [3, -2]),
        ("[True, False]", [True, False]),
        ("[true, false]", [True, False]),
        ("['a', nan]", ["a", None]),
        ('["a", null]', ["a", None]),
        ("set()", []),
        ("[]", []),
        ("()", []),
        ("{'a'}", ["a"]),
        ("[['a']]", [["a"]]),
    ],
)
def test_lists_of_every_hand(text, found):
    assert read_list(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "'a'",
        "(a)",
        "('a')",
        "[a, b]",
        "[a]",
        "{}",
        "{'a': 1}",
        '{"a": 1}',
        "[1",
        "a, b",
        "3",
        "[x for x in y]",
    ],
)
def test_other_texts_hold_no_list(text):
    assert read_list(text) is None


@pytest.mark.parametrize("text", ["[exit()]", "[open('x')]", "list(open('x'))", "set(x)", "[" * 5000, "[1, 2\0]"])
def test_nothing_is_run_and_nothing_breaks(text):
    assert read_list(text) is None
