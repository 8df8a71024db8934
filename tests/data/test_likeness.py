"""Names of classes that may mean the same, and ratings that are read as classes, are said."""

from __future__ import annotations

import pytest

from handful.data.labels import name_notes

SAME = "may mean the same"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("yes", "y", "no", "n"), "'yes' and 'y'; 'no' and 'n'"),
        (("ja", "j", "nein"), "'ja' and 'j'"),
        (("1", "true", "0"), "'1' and 'true'"),
        (("\u0440\u0430\u0443", "pay", "ship"), r"('\u0440\u0430\u0443') and 'pay'"),
        (("\u0420\u0410\u0423", "pay", "ship"), r"('\u0420\u0410\u0423') and 'pay'"),
        (("ship_late", "ship-late", "ship late", "pay"), "'ship_late' and 'ship-late' and 'ship late'"),
        (("a\u2013b", "a-b"), "and 'a-b'"),
    ],
)
def test_names_that_may_mean_the_same_are_named(names, shown):
    (note,) = name_notes([], names)
    assert SAME in note and shown in note


@pytest.mark.parametrize(
    "names",
    [("yes", "no"), ("0", "1"), ("-1", "1", "0"), ("n", "y", "t", "j"), ("true", "false"),
     ("en", "ja", "si", "de", "fr"), ("log in", "login"), ("\u0434\u0430", "\u043d\u0435\u0442")],
)  # fmt: skip
def test_other_names_are_not_remarked(names):
    assert name_notes([], names) == []


@pytest.mark.parametrize(
    "names",
    [[f"{i}/10" for i in range(10)], ["1 star", "2 stars", "5 stars"], ["1 out of 5", "2 out of 5", "3 out of 5"],
     ["\u2605", "\u2605\u2605", "\u2605\u2605\u2605"]],
)  # fmt: skip
def test_ratings_are_said(names):
    (note,) = name_notes([], names)
    assert "look like ratings" in note and f"{len(names)} classes" in note and "--kind regression" in note


def test_what_is_no_rating_is_not_called_one():
    assert name_notes([], ["1/2", "1/3", "1/4"]) == name_notes([], ["1", "2", "3"]) == []
