"""Label sets: every way of writing them gives the same classes and sets; what is unclear is an error or is said."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from handful.data.label_sets import MOST_LABELS, LabelSets, as_separator, read_flag_columns, read_indicators
from handful.data.label_sets import read_label_sets as read
from handful.errors import ConfigError, DataError

SETS = [["b", "a"], [], ["c"], ["a", "c"]]
LABELS, ROWS = ("a", "b", "c"), ((0, 1), (), (2,), (0, 2))
FLAGS = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]])


def noted(found: LabelSets, *parts: str) -> bool:
    return any(all(part in note for part in parts) for note in found.notes)


WRITERS = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "json": json.dumps,
    "python": repr,
    "python set": lambda names: repr(set(names)),
    "array": lambda names: np.array(names, dtype=object),
    "numpy": lambda names: str(np.array(names, dtype=object)),
    "numpy texts": lambda names: str([np.str_(name) for name in names]),
    "series": lambda names: pd.Series(names, dtype=object),
}


@pytest.mark.parametrize("form", WRITERS)
def test_lists_however_they_are_written(form):
    write = WRITERS[form]
    found = read([write(names) for names in SETS])
    assert (found.labels, found.rows) == (LABELS, ROWS)
    assert noted(found, "1 of 4 rows have none of the classes")
    assert found.counts() == {0: 2, 1: 1, 2: 2}
    assert (found.indicators() == FLAGS).all()


@pytest.mark.parametrize(
    ("separator", "mark"),
    [(";", ";"), ("semicolon", ";"), (",", ", "), ("|", "|"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("->", "->")],
)
def test_texts_with_a_separator(separator, mark):
    cells = [mark.join(names) for names in SETS]
    found = read(cells, separator=separator, blank="none")
    assert (found.labels, found.rows) == (LABELS, ROWS)
    assert noted(found, "1 blank cells are read as none of the classes")
    missing = read(cells, separator=separator)
    assert missing.rows == ((0, 1), None, (2,), (0, 2))
    assert noted(missing, "1 of 4 rows have no label (first: row 1)")


PAIRS = [(1, 0), ("1", "0"), (1.0, 0.0), ("1.0", "0.0"), (True, False), ("TRUE", "false"), ("yes", "No"), ("1", "")]


@pytest.mark.parametrize(("yes", "no"), PAIRS, ids=repr)
def test_columns_of_zeros_and_ones(yes, no):
    columns = {name: [yes if flag else no for flag in FLAGS[:, place]] for place, name in enumerate("abc")}
    blank = "none" if no == "" else "missing"
    found = read_flag_columns(dict(reversed(columns.items())), blank=blank)
    assert (found.labels, found.rows) == (LABELS, ROWS)  # in the order of single labels, not that of the columns
    assert noted(found, "7 blank cells are read as 0") == (no == "")
    given = read_flag_columns(columns, labels=("c", "b", "a"), blank=blank)
    assert (given.labels, given.rows[0]) == (("c", "b", "a"), (1, 2))


MATRICES = {
    "array": FLAGS,
    "lists": FLAGS.tolist(),
    "floats": FLAGS.astype(float),
    "bools": FLAGS.astype(bool),
    "csr": scipy.sparse.csr_matrix(FLAGS),
    "coo": scipy.sparse.coo_array(FLAGS),
    "tuples": [tuple(row) for row in FLAGS],
    "list of arrays": [*FLAGS],
}


@pytest.mark.parametrize("form", MATRICES)
def test_matrices(form):
    named = read_indicators(MATRICES[form], ("x", "b", "a"))
    assert (named.labels, named.rows) == (("x", "b", "a"), ROWS)  # names that are given keep their order
    unnamed = read_indicators(MATRICES[form])
    assert unnamed.labels == ("0", "1", "2")
    assert noted(unnamed, "called '0' to '2'")


def test_a_data_frame_names_its_columns():
    frame = pd.DataFrame(FLAGS, columns=["a", "b", "c"])
    found = read_indicators(frame)
    assert (found.labels, found.rows) == (LABELS, ROWS)
    with pytest.raises(DataError, match=r"different names of classes, found 'a' twice"):
        read_indicators(pd.DataFrame(FLAGS, columns=["a", "a", "c"]))


def test_lists_of_zeros_and_ones_are_rows_of_a_matrix():
    for cells in (FLAGS.tolist(), FLAGS.astype(float).tolist(), [str(row) for row in FLAGS], [*FLAGS]):
        found = read(cells)
        assert (found.labels, found.rows) == (("0", "1", "2"), ROWS)
        assert noted(found, "hold 0 and 1 alone", "one place per class")
        assert read(cells, labels=LABELS).labels == LABELS
    assert read([[3, 7], [7], []]).labels == ("3", "7")
    assert read([[0, 1], [2]]).rows == ((0, 1), (2,))
    assert read([[0, 1], [1, 0]], labels=("0", "1", "7")).rows == ((0, 1), (0, 1))  # ids of classes


@given(st.lists(st.lists(st.sampled_from(["a b", "É", "x-1", "10", "9"]), max_size=4), min_size=2, max_size=8))
def test_every_way_of_writing_says_the_same(sets):
    if len({frozenset(names) for names in sets}) < 2 or len({name for names in sets for name in names}) < 2:
        return
    lists = read(sets)
    joined = read([" | ".join(names) for names in sets], separator="pipe", blank="none", labels=lists.labels)
    flags = read_flag_columns({name: [int(name in names) for names in sets] for name in lists.labels})
    assert lists.rows == joined.rows == flags.rows == read_indicators(lists.indicators(), lists.labels).rows
    assert lists.labels == joined.labels == flags.labels
    for names, row in zip(sets, lists.rows, strict=True):
        assert {lists.labels[index] for index in row or ()} == set(names)


def test_names_are_kept_as_written_and_numbers_are_sorted_as_numbers():
    found = read([["Very happy ", "élan"], ["10", "9"], ["9.0"]])
    assert found.labels == ("10", "9", "Very happy", "élan")
    assert noted(found, "'9' and '9.0' are one class")
    assert noted(found, "1 labels have white space around them")
    assert read([[10, 9], [2]]).labels == ("2", "9", "10")
    assert noted(read([["Joy"], ["joy"]]), "kept apart: 'Joy' and 'joy'")
    assert read(["a b; c", "c"], separator=";").labels == ("a b", "c")


def test_duplicates_are_merged_and_said():
    found = read([["a", "b"], ["b", "a", "b"], ["a", "a"]], where=lambda row: f"d.csv:{row + 2}")
    assert found.rows == ((0, 1), (0, 1), (0,))
    assert noted(found, "2 rows name a class twice", "d.csv:3")
    assert noted(read(["a;b;", ";;a"], separator=";"), "3 empty parts between separators")
    assert read(["a  b", "a"], separator="space").notes == ()


@pytest.mark.parametrize("empty", [None, float("nan"), pd.NA, "", "  ", "NaN", "null"], ids=repr)
def test_missing_cells_are_no_empty_sets(empty):
    found = read([["a"], empty, ["b"], []])
    assert found.rows == ((0,), None, (1,), ())
    assert noted(found, "1 of 4 rows have no label (first: row 1)")
    assert noted(found, "1 of 4 rows have none of the classes")
    assert len(found.indicators()) == 3
    said = read([["a"], empty, ["b"]], blank="none")
    assert said.rows[1] == (None if isinstance(empty, str) and empty.strip() else ())
    assert read_indicators([[1, 0], [empty, empty], [0, 1]]).rows[1] is None
    assert read([["a"], "null", ["b"]], blank="none", cells_are_texts=True).rows[1] is None


def test_test_rows_take_the_classes_of_the_pool():
    found = read(["c", "a"], separator=";", labels=LABELS)
    assert (found.labels, found.rows) == (LABELS, ((2,), (0,)))
    with pytest.raises(DataError, match=r"row 1: the label 'bb' is none of the 3 classes\n\nhint: did you mean 'b'"):
        read([["a"], ["bb"]], labels=LABELS)
    assert read([["a"], ["a"]], labels=LABELS).rows == ((0,), (0,))


def place(row: int) -> str:
    return f"data.csv:{row + 2}"


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([["a", "b"], "c", ["d"]], {}, r"as \['a', 'b'\] .*, found .* in 1 of 3 rows, the first 'c'.*hint: write"),
        (['["a"]', "[b, c]"], {}, r"found single labels in 1 of 2 rows, the first '\[b, c\]'.*quote the names"),
        (["a;b", "b", "c;a"], {}, r"found single ones such as 'a;b' \(data.csv:2\).*--label-separator semicolon"),
        (["a|b", "b", "c|a"], {}, r"--label-separator pipe"),
        (["a", "b"], {}, r"several labels per row, found single ones such as 'a'.*--kind classification"),
        ([1, 2], {}, r"found single ones such as 1 \(data.csv:2\)"),
        ([{"a": 1}, ["b"]], {}, r"data.csv:2: expected a list of labels, found \{'a': 1\}"),
        (["a;b", ["c"]], {"separator": ";"}, r"data.csv:3: .* labels between ';', found the list.*leave it out"),
        (['["a","b"]', '["c"]'], {"separator": ","}, r"data.csv:2: expected a text.*lists need no separator"),
        (["a|b", "b", "c|a"], {"separator": ";"}, r"';', .* none of the 3 .*'\|' seems .*--label-separator pipe"),
        (["a", "b"], {"separator": ";"}, r"in none of the 2 cells.*--kind classification"),
        (["a;b", ";"], {"separator": ";"}, r"data.csv:3: expected labels between ';', found none in ';'"),
        ([["a"], ["b", None]], {}, r"data.csv:3: expected names of classes in the list, found None"),
        ([["a"], [""]], {}, r"data.csv:3: .* found ''.*\[\] is none of the classes"),
        ([["a"], [["b"]]], {}, r"data.csv:3: expected names of classes, found \['b'\]"),
        ([["a"], []], {}, r"at least two classes, found only 'a'.*--kind classification"),
        ([[], []], {}, r"at least two classes, found none"),
        ([["a", "b"], ["b", "a"]], {}, r"all rows have the same set of labels, \['a', 'b'\]"),
        ([None, ""], {}, r"expected labels, found none in 2 rows"),
        ([[str(i)] for i in range(MOST_LABELS + 1)], {}, r"at most 1,000 classes, found 1,001"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_an_error(cells, options, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(cells, where=place, **options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [0, 1], "b": [1, 0.5]}, r"data.csv:3: expected 0 or 1 \(or true/false, yes/no\) in 'b', found 0.5"),
        ({"a": [0, -1], "b": [1, 1]}, r"data.csv:3: .* in 'a', found -1"),
        ({"a": ["x", ""], "b": ["", "x"]}, r"data.csv:2: .* 1 of 2 blank, the first in 'b'.*0 where"),
        ({"a": ["x", "0"], "b": ["0", "x"]}, r"data.csv:2: .* in 'a', found 'x'"),
        ({"a": [0, 2], "b": [1, 1]}, r"in 'a', found 2"),
        ({"a": [0, 1]}, r"at least two classes, found only 'a'"),
        ({"1": [0, 1], "1.0": [1, 0]}, r"names that mean the same"),
        ({"a": [1, 1], "b": [0, 0]}, r"all rows have the same set of labels, \['a'\]"),
    ],
)  # fmt: skip
def test_wrong_flags(columns, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_flag_columns(columns, where=place)


def test_wrong_matrices():
    with pytest.raises(DataError, match=r"row 1: expected 3 zeros and ones, as in the first row, found 2"):
        read_indicators([[0, 1, 1], [1, 0]])
    with pytest.raises(DataError, match="a name for each of the 3 columns, found 2 names"):
        read_indicators(FLAGS, ("a", "b"))
    with pytest.raises(DataError, match=r"expected a matrix of zeros and ones \(N, C\)"):
        read_indicators([0, 1])
    with pytest.raises(DataError, match="at most 1,000 classes, found 1,001"):
        read_indicators(np.zeros((2, 1001)))
    with pytest.raises(DataError, match="expected a column for the class 'd', found none"):
        read_indicators(pd.DataFrame(FLAGS, columns=["a", "b", "c"]), ("a", "d"))


@pytest.mark.parametrize(
    ("name", "hint"), [("", "semicolon"), ("and", "semicolon"), ("semicolom", "'semicolon'"), ("1", "")]
)
def test_wrong_separators(name, hint):
    with pytest.raises(ConfigError, match=f"(?s)expected a mark such as ';' or its name, found {name!r}.*{hint}"):
        as_separator(name)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=6), st.sampled_from("ab;|,[]'\"")
)
CELLS = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(st.lists(SCALARS, max_size=2), max_size=2),
    st.sets(st.text(max_size=2), max_size=2),
    st.lists(st.text(max_size=3), max_size=3).map(repr),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.binary(max_size=2),
    st.just({"a": 1}),
)  # fmt: skip


@given(st.lists(CELLS, max_size=5), st.sampled_from([None, ";", "space"]), st.sampled_from(["missing", "none"]))
def test_whatever_the_cells_hold_they_are_sets_or_an_error_of_ours(cells, separator, blank):
    try:
        found = read(cells, separator=separator, blank=blank)
    except DataError:
        return
    assert len(found.rows) == len(cells)
    assert all(row is None or all(0 <= index < len(found.labels) for index in row) for row in found.rows)


@given(st.lists(st.lists(SCALARS, max_size=3), max_size=4))
def test_whatever_a_matrix_holds_it_is_sets_or_an_error_of_ours(matrix):
    try:
        found = read_indicators(matrix)
    except DataError:
        return
    assert len(found.rows) == len(matrix)


def test_flags_written_as_text_are_flags():
    assert read([["1", "0"], ["0", "1"]]).rows == read([[1, 0], [0, 1]]).rows == ((0,), (1,))
    assert read([["1", "0", "0"], ["0", "1", "1"]]).flags
    assert not read([["1"], ["0"], ["0", "1"]]).flags


@pytest.mark.parametrize("cells", [[[0, 1], [1, 0, 1]], [["0", "1", "1"], []], ["[0, 1, 1]", "[1]"]])
def test_ragged_flags_are_an_error(cells):
    with pytest.raises(DataError, match="zeros and ones, as in the first row, found"):
        read(cells)
