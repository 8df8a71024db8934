"""Salted digests of rows: what can be asked of them, and what cannot."""

from __future__ import annotations

import pytest

from handful.data.seen import SeenRows
from handful.data.task import Example, TestRows, overlap_keys

KEYS = [key for i in range(5) for key in overlap_keys(Example(f"text {i}"))]


def test_what_was_seen_is_known_and_the_file_holds_no_key():
    seen = SeenRows(KEYS)
    content = seen.dumps()
    again = SeenRows.loads(content)
    assert all(key in again for key in KEYS) and len(again) == len(seen) == 5
    assert not any(key in again for key in overlap_keys(Example("another")))
    assert not any(key.hex() in content for key in KEYS)
    assert SeenRows(KEYS).dumps() != content  # another salt every time


def test_groups_of_other_runs_are_kept_and_asked_too():
    first = SeenRows.loads(SeenRows(KEYS[:2]).dumps())
    both = SeenRows.loads((SeenRows(KEYS[2:4]) | first).dumps())
    assert [key in both for key in KEYS] == [True] * 4 + [False]
    assert len(both | first) == 4 and len(both | KEYS) == 9
    rows = TestRows([Example("text 1"), Example("text 3"), Example("text 4")])
    assert rows.count_overlap(both) == 2


def test_older_files_have_no_salt():
    old = "".join(f"{key.hex()}\n" for key in KEYS[:3])
    seen = SeenRows.loads(old)
    assert [key in seen for key in KEYS] == [True] * 3 + [False] * 2
    assert KEYS[0].hex() not in seen.dumps()
    assert SeenRows.loads("").dumps() == ""


@pytest.mark.parametrize("content", ["no digest", "salt x", "salt"])
def test_what_is_no_such_file(content):
    with pytest.raises(ValueError, match=r"hexadecimal"):
        SeenRows.loads(content)
