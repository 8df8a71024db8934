"""Tasks and the closed test rows."""

from __future__ import annotations

from typing import Any

import pytest

from handful.data.task import Example, Task, TestRows, text_key


def test_test_rows_cannot_be_read_by_accident():
    rows: Any = TestRows([Example("a", label=0)])
    assert len(rows) == 1
    for use in (iter, list, lambda closed: closed[0], lambda closed: Example("a", label=0) in closed):
        with pytest.raises(TypeError):
            use(rows)


def test_text_keys_ignore_case_and_white_space_only():
    same = {text_key(Example(text, "B")) for text in ("a b", " A\n b ", "a\u00a0B")}
    assert len(same) == 1
    others = {text_key(row) for row in (Example("a b"), Example("ab", "B"), Example("a", "b B"), Example("a b B"))}
    assert len(others | same) == 5
    assert TestRows([Example("a b", "B")]).text_keys() == same


def test_fingerprint_is_of_content():
    task = Task("one", "classification", ("a", "b"), "accuracy", (Example("x", label=0), Example("y", label=1)))
    moved = Task("two", "classification", ("a", "b"), "f1", task.pool, origin="elsewhere", notes=("read",))
    assert task.fingerprint() == moved.fingerprint()
    swapped = Task("one", "classification", ("a", "b"), "accuracy", task.pool[::-1])
    assert task.fingerprint() != swapped.fingerprint()


def test_num_outputs():
    assert Task("a", "classification", ("x", "y", "z"), "accuracy", ()).num_outputs == 3
    assert Task("a", "regression", (), "spearman", ()).num_outputs == 1
