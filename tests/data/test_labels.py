"""What a column of labels holds: classes as written, numbers in one notation, several labels, too many classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.files import read_task
from handful.data.labels import WEAK_MARKS, Targets, check_one_label, class_names, name_notes, recombined
from handful.data.new_rows import labelled_rows
from handful.data.tables import read_table
from handful.errors import DataError


def rows_of(values: Sequence[Any], times: int = 1) -> list[dict[str, Any]]:
    cells = [value for _ in range(times) for value in values]
    return [{"text": f"some text of number {index}", "label": cell} for index, cell in enumerate(cells)]


def write(path: Path, values: Sequence[Any], times: int = 1) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows_of(values, times)), encoding="utf-8")
    return path


def csv(path: Path, values: Sequence[str], times: int = 1) -> Path:
    lines = [f'{row["text"]},"{row["label"]}"' for row in rows_of(values, times)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


def noted(task: Any, *words: str) -> str:
    """The one note with all of these words."""
    (note,) = [note for note in task.notes if all(word in note for word in words)]
    return note


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (("1.0", "1.1", "2.0"), ("1.0", "1.1", "2.0")),
        (("1.10", "1.1", "1.9"), ("1.1", "1.10", "1.9")),
        (("01", "1", "02"), ("01", "1", "02")),
        (("10", "9", "1"), ("1", "9", "10")),
        (("v2", "v10"), ("v10", "v2")),
        (("-1", "0", "1"), ("-1", "0", "1")),
        (("True", "False"), ("False", "True")),
        (("Straße", "STRASSE"), ("STRASSE", "Straße")),
    ],
)
def test_classes_come_back_as_they_are_written(tmp_path, values, classes):
    task = read_task(csv(tmp_path / "data.csv", values, 5), kind="classification")
    assert task.labels == classes
    assert [task.labels[int(row.label or 0)] for row in task.pool[: len(values)]] == list(values)


def test_whole_numbers_with_and_without_a_fraction_are_one_class_and_said(tmp_path):
    task = read_task(csv(tmp_path / "data.csv", ("1", "1.0", "1", "2"), 4))
    assert task.labels == ("1", "2")
    assert noted(task, "'1'", "'1.0'", "one class")
    test = csv(tmp_path / "test.csv", ("2.0", "1"))
    assert read_task(tmp_path / "data.csv", test=test).test is not None
    assert [Targets(("1.0", "2.0")).value(cell, "here") for cell in (1, "2", 2.0, "1.0")] == [0, 1, 1, 0]
    with pytest.raises(DataError, match=r"'1\.10' is none of the 2 classes"):
        Targets(("1.1", "2")).value("1.10", "here")


@given(st.lists(st.text(min_size=1).filter(lambda name: name.strip() == name), min_size=1, max_size=8))
def test_no_spelling_is_lost_unless_it_is_a_whole_number(cells):
    names, merged = class_names(cells)
    assert set(names) <= set(cells)
    assert (len(names) == len(set(cells))) == (not merged)
    assert all(Targets(names).value(cell, "here") in range(len(names)) for cell in cells)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("billing", "Billing"), ["'billing' and 'Billing'"]),
        (("True", "true", "TRUE"), ["'True' and 'true' and 'TRUE'"]),
        (("caf\u00e9", "cafe\u0301"), ["'cafe\\u0301'"]),
        (("ja", "ja\u200b"), [r"'ja\u200b'"]),
        (("a b", "a\u00a0b"), [r"'a\xa0b'"]),
        (("a  b", "a b"), ["'a  b' and 'a b'"]),
        (("\uff21\uff22", "ab"), ["kept apart"]),
        (("straße", "STRASSE"), ["kept apart"]),
    ],
)
def test_names_that_look_alike_are_named(names, shown):
    (note,) = name_notes([], names)
    assert all(text in note for text in shown)


def test_ordinary_names_are_not_remarked():
    assert name_notes(["a", "b"], ["billing", "bill", "login", "log in", "yes", "no", "c++", "c"]) == []
    (spaced,) = name_notes([" a", "b ", "c"], ["a", "b", "c"])
    assert spaced.startswith("2 labels have white space around them")
    (doubtful,) = name_notes([], ["none", "pos"])
    assert "'none'" in doubtful and "missing label" in doubtful


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "#N/A", "NaT"])
def test_nan_is_never_a_class(tmp_path, word):
    path = csv(tmp_path / "data.csv", ("1.0", word, "2.0"))
    with pytest.raises(DataError, match=r"without a label .* found 1 \(line 3\)"):
        read_task(path)
    for rows in (rows_of(("a", float("nan"), "b")), rows_of((1.0, float("nan"), 2.0)), rows_of(("a", None, "b"))):
        with pytest.raises(DataError, match="without a label"):
            read_task(rows)


SEVERAL = [
    ("billing", "delivery;urgent", "login", "praise;urgent"),
    ("billing", "billing;urgent", "urgent"),
    ("a|b", "b|c", "c"),
    ("billing, urgent", "urgent", "login"),
    ("billing,urgent", "urgent,login", "praise"),
    ("ship", "pay", "tech", "ship/pay", "pay/tech", "ship/tech"),
    ("ship/pay/tech", "pay/ship", "tech/ship", "tech"),
    ("ship", "pay", "ship & pay"),
    ("ship", "pay", "ship &amp; pay"),
    ("ship", "pay", "ship+pay"),
    ("#ship", "#pay", "#ship #pay"),
    ("ship", "pay", "ship and pay"),
    ("ship", "pay", "pay、ship"),
    ("billing ; urgent", "Urgent", "login"),
    ("a;", "a;b;", "b"),
]


@pytest.mark.parametrize("values", SEVERAL)
def test_several_labels_in_a_cell_are_asked_about(tmp_path, values):
    path = csv(tmp_path / "data.csv", values, 10)
    with pytest.raises(
        DataError,
        match=r"(?s)one label per row, .* several: .*hint: .*several labels per text: .*--kind classification",
    ) as caught:
        read_task(path)
    assert "data.csv:" in caught.value.message
    assert len(read_task(path, kind="classification").labels) == len({value.strip() for value in values})


@pytest.mark.parametrize(
    ("values", "option"),
    [
        (("a|b", "b|c", "c"), "--label-separator pipe;"),
        (("billing", "billing;urgent", "urgent"), "--label-separator semicolon;"),
        (("billing, urgent", "urgent", "login"), "--label-separator comma;"),
        (("ship", "pay", "ship & pay"), "--label-separator '&';"),
        (("ship", "pay", "ship and pay"), 'write lists, such as ["a", "b"], and give --kind multilabel;'),
        (("['a', 'b']", "['b']"), "several labels per text: --kind multilabel;"),
    ],
)
def test_the_question_leads_to_the_option(values, option):
    table = read_table(rows_of(values, 4))
    known = [(index, row["label"]) for index, row in enumerate(table.rows)]
    with pytest.raises(DataError) as caught:
        check_one_label(table, "label", known, (";", "|", *WEAK_MARKS))
    assert option in caught.value.hint


@pytest.mark.parametrize(
    ("values", "mark"),
    [
        (("Sports, outdoors", "Books, music", "Toys"), ","),
        (("Health, beauty", "Health, fitness", "Toys, games"), ","),
        (("a;b", "c;d", "e"), ";"),
        (("Electronics|Phones", "Electronics|TV"), "|"),
        (("Smith, John", "Doe, Jane"), ","),
        (("New York, NY", "Austin, TX", "Dallas, TX"), ","),
        (("A/B test", "I/O", "R&D", "Q&A", "TCP/IP", "UDP/IP"), "/"),
        (("R&D", "Q&A", "M&A", "C++", "C", "C#"), "&"),
        (("0/10", "7/10", "10/10"), "/"),
        (("AC/DC", "DC"), "/"),
        (("ship\x1b]0;pwn\x07", "pwn", "ship"), ";"),
        (("please call back, it is urgent now", "it is urgent now and later"), ","),
    ],
)
def test_names_with_marks_that_do_not_recombine_are_classes(tmp_path, values, mark):
    assert recombined(values, mark) is None
    assert set(read_task(csv(tmp_path / "data.csv", values, 10)).labels) == set(values)


@pytest.mark.parametrize(
    "values", [("billing,urgent", "login,urgent", "praise"), ("Austin, TX", "Dallas, TX"), ("TCP/IP", "UDP/IP")]
)
def test_names_that_share_a_part_are_classes_and_said(tmp_path, values):
    task = read_task(csv(tmp_path / "data.csv", values, 10))
    assert noted(task, repr(values[0]), repr(values[1]), "share the part", "one class each")
    apart = read_task(
        csv(tmp_path / "apart.csv", ("New York, NY", "Austin, TX", "I/O", "Sport, golf", "Sport, run"), 9)
    )
    assert not any("share the part" in note for note in apart.notes)


def test_lists_of_labels(tmp_path):
    single = read_task(write(tmp_path / "one.jsonl", (["a"], ["b"], "a"), 4))
    assert single.labels == ("a", "b")
    assert noted(single, "8 labels are lists of one")
    several = write(tmp_path / "several.jsonl", (["a"], ["b", "a"], ["a", "b"], []), 4)
    assert read_task(several).kind == "multilabel"
    assert noted(read_task(several), "holds lists of labels; to take each combination as a class")
    mixed = write(tmp_path / "mixed.jsonl", (["a"], ["b", "a"], "a"), 4)
    with pytest.raises(DataError, match=r"several: \['b', 'a'\] \(.*mixed\.jsonl:2\)") as caught:
        read_task(mixed)
    assert "--kind multilabel" in caught.value.hint
    with pytest.raises(DataError, match="expected one label, found"):
        read_task(write(tmp_path / "deep.jsonl", (["a"], [["b"]])))
    written = csv(tmp_path / "written.csv", ("['a']", "['b']"), 4)
    assert read_task(written).labels == ("a", "b")
    assert read_task(csv(tmp_path / "numbered.csv", ("[1]", "[x]"), 4)).labels == ("[1]", "[x]")
    assert read_task(csv(tmp_path / "lists.csv", ("['a', 'b']", "['b']"), 4)).kind == "multilabel"
    combined = write(tmp_path / "combined.jsonl", (["a"], ["b", "a"], ["a", "b"]), 4)
    assert read_task(combined, kind="classification").labels == ("a", "a; b")


@pytest.mark.parametrize(
    "values", [("3.10", "3.12"), ("1.0", "1.10"), ("1.0", "1.1", "2.0"), ("3.10", "3.1"), (0.5, 1.5)]
)
def test_few_fractions_that_repeat_are_classes_and_said(tmp_path, values):
    task = read_task(write(tmp_path / "data.jsonl", values, 20))
    assert (task.kind, set(task.labels)) == ("classification", set(map(str, values)))
    assert noted(task, "kind classification", f"only {len(values)} different numbers", "--kind regression")
    many = read_task(write(tmp_path / "many.jsonl", [index / 8 for index in range(12)], 5))
    assert many.kind == "regression"
    assert read_task(write(tmp_path / "once.jsonl", [*values * 8, 2.25])).kind == "regression"


SENTENCES = [f"The cafe of number {i} serves French food at a low price." for i in range(20)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"c{i}" for i in range(12)], "a name or number of its own in every row.*an id is no label"),
        (SENTENCES, "it holds texts, and no classes\n\nhint: texts to be written: --kind generation"),
        ([f"n{i}" for i in range(10)] + ["x"] * 4, "11 different values in 14 rows, 10 of them once"),
        (["A0", "A1"] * 10 + [str(i) for i in range(19)], "19 numbers among other labels.*--kind regression"),
    ],
)
def test_nearly_as_many_classes_as_rows(tmp_path, values, message):
    path = csv(tmp_path / "data.csv", values)
    with pytest.raises(DataError, match=f"(?s){message}.*--label text.*--kind classification"):
        read_task(path)
    assert len(read_task(path, kind="classification").labels) == len(set(values))


def test_few_rows_of_many_classes_are_left_to_the_split(tmp_path):
    assert len(read_task(csv(tmp_path / "data.csv", ("a", "b", "c", "d"))).labels) == 4
    assert len(read_task(csv(tmp_path / "more.csv", [f"c{i}" for i in range(40)], 2)).labels) == 40


@pytest.mark.parametrize(
    ("values", "first", "note"),
    [
        (("4,22", "3,79", "2,10", "1"), 4.22, "with decimal commas: '4,22' is 4.22"),
        (("1.234,5", "2,25", "0,5"), 1234.5, "decimal commas"),
        (("12 %", "7 %", "3.5 %"), 12.0, "'12 %' is 12"),
    ],
)
def test_targets_in_a_notation_are_numbers_and_said(tmp_path, values, first, note):
    path = csv(tmp_path / "data.csv", values, 5)
    test = csv(tmp_path / "test.csv", values[:1])
    task = read_task(path, test=test)
    assert (task.kind, task.pool[0].label) == ("regression", first)
    assert noted(task, note)
    assert [row.label for row in labelled_rows(test, task)[0]] == [first]


def test_a_class_with_nearly_all_rows_is_said_unless_the_metric_was_chosen(tmp_path):
    path = csv(tmp_path / "data.csv", ["common"] * 18 + ["rare"] * 2)
    assert noted(read_task(path), "18 of 20", "'common'", "0.900", "--metric macro_f1")
    assert not any("macro_f1" in note for note in read_task(path, metric="accuracy").notes)
    even = csv(tmp_path / "even.csv", ["a"] * 8 + ["b"] * 2)
    assert not any("macro_f1" in note for note in read_task(even).notes)
