"""A text counts once: in the test rows and in training; labels that contradict each other are named."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.distinct import contradiction_notes, once
from handful.data.files import read_folder, read_task
from handful.data.holdout import with_held_out_test
from handful.data.split import Split
from handful.data.task import Example, Task, TestRows, text_key
from handful.errors import DataError

LABELS = ("no", "yes")


def row(text: str, label: int | float | None = 0, line: int = 1, **more) -> Example:
    return Example(text, label=label, source=f"data.csv:{line}", **more)


def keys(rows) -> list[bytes]:
    return [text_key(one) for one in rows]


def task_of(rows, labels=LABELS, kind="classification", **more) -> Task:
    metric = "accuracy" if labels else "spearman"
    return Task("made", kind, labels, metric, tuple(rows), **more)


labelled = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2)), max_size=12)


@given(labelled)
def test_every_row_is_kept_repeated_or_contradicting(pairs):
    rows = [row(text, label, line) for line, (text, label) in enumerate(pairs)]
    found = once(rows, keys(rows))
    assert len(found.rows) + found.repeated + found.contradicting == len(rows)
    assert (
        len({one.text for one in found.rows}) == len(found.rows) == len({text for text, _ in pairs}) - found.unsettled
    )
    assert set(found.rows) <= set(rows)
    for kept in found.rows:
        counts = Counter(label for text, label in pairs if text == kept.text)
        assert counts[kept.label] == max(counts.values())
    several = [text for text in {text for text, _ in pairs} if len({label for t, label in pairs if t == text}) > 1]
    assert len(found.contradictions) == len(several)


def test_texts_whose_labels_tie_are_left_out():
    rows = [row("a", 1, 2), row("A ", 0, 3), row("b", 0, 4), row("b", 0, 5)]
    found = once(rows, keys(rows))
    assert [one.text for one in found.rows] == ["b"]
    assert (found.repeated, found.contradicting, found.unsettled) == (1, 2, 1)


def test_numbers_are_averaged_and_references_joined():
    rows = [row("a", 1.0), row("a", 2.0), row("a", 2.0), row("b", 4.0)]
    found = once(rows, keys(rows))
    assert [one.label for one in found.rows] == [pytest.approx(5 / 3), 4.0]
    assert (found.repeated, found.contradicting) == (0, 2)
    (note,) = contradiction_notes(found, (), "test rows")
    assert (
        "several numbers among the test rows: 1 (data.csv:1) and 2 (data.csv:1). Of each, their mean is taken" in note
    )
    records = [row("Name  Ann", None, references=("x", "y")), row("name ann", None, references=("y", "z"))]
    assert [one.references for one in once(records, keys(records)).rows] == [("x", "y", "z")]


def test_pairs_repeat_only_where_both_texts_do():
    rows = [Example("a", "b", 0), Example("a", "c", 0), Example("A", "B", 0), Example("b", "a", 0)]
    assert [(one.text, one.text_pair) for one in TestRows(rows)._examples] == [("a", "b"), ("a", "c"), ("b", "a")]


def test_contradictions_are_named_with_their_lines_and_labels():
    rows = [row(f"text {i % 5}", i // 5, i + 2) for i in range(10)]
    found = once(rows, keys(rows))
    (note,) = contradiction_notes(found, LABELS, "labelled rows")
    assert note.startswith(
        "5 texts have several labels among the labelled rows: 'no' (data.csv:2) and 'yes' (data.csv:7); 'no' "
        "(data.csv:3) and 'yes' (data.csv:8); 'no' (data.csv:4) and 'yes' (data.csv:9); and 2 more. Of each, the label "
        "of most of its rows is taken; 5 without one were left out"
    )
    assert contradiction_notes(once(rows[:5], keys(rows[:5])), LABELS, "rows") == []


def test_test_rows_that_repeat_change_nothing_but_a_note():
    rows = [row(f"text {i}", i % 2, i) for i in range(6)]
    plain, repeated = TestRows(rows), TestRows(rows * 4)
    assert plain.fingerprint() == repeated.fingerprint()
    assert len(repeated) == 6 and plain.notes(LABELS) == []
    assert repeated.notes(LABELS) == ["n = 6 distinct test texts: 18 repeats were left out, since a text counts once"]
    torn = TestRows([*rows, row("text 0", 1, 9), row("text 1", 1, 10), row("text 1", 0, 11)])
    assert len(torn) == 5, "of text 0 nobody knows the label, of text 1 most do"
    assert (
        "2 texts have several labels among the test rows: 'no' (data.csv:0) and 'yes' (data.csv:9)"
        in torn.notes(LABELS)[1]
    )
    assert torn.notes(LABELS)[1].endswith("1 without one was left out")


@pytest.mark.parametrize("times", [1, 5])
def test_rows_that_are_held_out_count_once(times):
    rows = [row(f"text number {i}", i % 2, i) for i in range(40)]
    held = with_held_out_test(task_of(rows * times), 0.2)
    once_only = with_held_out_test(task_of(rows), 0.2)
    assert held.test and once_only.test
    assert held.test.fingerprint() == once_only.test.fingerprint()
    assert len(held.test) == 8
    assert any("n = 8 distinct" in note and "32 repeats" in note for note in held.notes) == (times == 5)
    assert not {text_key(one) for one in held.pool} & held.test.text_keys()


def test_what_has_no_right_answer_is_not_held_out():
    rows = [row(f"text number {i}", i % 2, i) for i in range(20)]
    torn = [replace(one, label=1 - int(one.label or 0), source=f"data.csv:{i + 50}") for i, one in enumerate(rows[:10])]
    held = with_held_out_test(task_of([*rows, *torn]), 0.4)
    assert held.test and held.test.notes(LABELS) == []
    assert not held.test.text_keys() & {text_key(one) for one in torn}


@pytest.mark.parametrize(
    ("sizes", "fraction", "said"),
    [
        ((1, 1, 1, 1), 0.2, "a share of 0.2 takes at least 3 distinct texts of a class, and no class has more than 1;"),
        ((4, 4), 0.1, "a share of 0.1 takes at least 6 distinct texts of a class, and no class has more than 4;"),
    ],
)
def test_no_rows_are_set_apart_for_a_reason(sizes, fraction, said):
    rows = [row(f"text {i} of {label}", label) for label, size in enumerate(sizes) for i in range(size)]
    held = with_held_out_test(task_of(rows, tuple(map(str, range(len(sizes))))), fraction)
    assert not held.test and len(held.pool) == len(rows)
    (note,) = held.notes
    assert note.startswith("no rows were set apart") and said in note
    assert "--test" in note and "--test-fraction" in note and "since no test file" not in note


def test_nothing_but_contradictions_is_said_so():
    rows = [row(f"text {i % 10}", i // 10) for i in range(20)]
    held = with_held_out_test(task_of(rows), 0.2)
    assert "not counting 10 whose labels contradict each other" in held.notes[0]
    assert held.notes[1].startswith("10 texts have several labels among the labelled rows")
    assert with_held_out_test(replace(task_of(rows), notes=held.notes[1:]), 0.2).notes == held.notes[::-1], "once"


def test_numbers_are_held_out_of_all_rows():
    (note,) = with_held_out_test(task_of([row("a", 1.5), row("b", 2.5)], (), "regression"), 0.2).notes
    assert "takes at least 3 distinct texts, and there are 2;" in note


def test_near_duplicates_of_test_rows_are_counted():
    rows = [row(f"text number {i}", i % 2) for i in range(20)]
    test = TestRows([row("Text, number 3!", 1), row("other", 0), row("text number 4", 0), row("🎉", 0)])
    assert test.count_alike(rows) == 1, "the words of one differ in punctuation; one is the very text, which is dropped"
    held = with_held_out_test(task_of([*rows, *(replace(one, text=f"{one.text}!") for one in rows)]), 0.3)
    assert any("differ from it in punctuation or signs alone" in note for note in held.notes)


def test_the_majority_trains_and_contradictions_are_counted_apart():
    rows = [row(f"text {i}", i % 2, i) for i in range(10)]
    more = [row("text 0", 1, 20), row("text 0", 1, 21), row("text 1", 1, 22), row("text 2", 1, 23)]
    split = Split(task_of([*rows, *more]), 9, 0)
    labels = {one.text: one.label for one in split.labelled}
    assert (labels["text 0"], labels["text 1"], labels.get("text 2")) == (1, 1, None)
    assert (split.dropped_duplicates, split.dropped_contradictions, split.dropped_overlap) == (2, 3, 0)


@pytest.mark.parametrize(
    ("more", "left"), [([], "no row is left"), (["new"], "all 1 that are left"), (["c", "d"], "all 2 that are left")]
)
def test_where_contradictions_leave_no_two_classes_they_are_the_error(more, left):
    torn = [row(f"text {i}", label, 2 * i + label) for i in range(10) for label in (0, 1)]
    with pytest.raises(DataError, match=f"10 texts have several labels among the labelled rows: .*{left}") as caught:
        Split(task_of([*torn * 3, *(row(text, 1) for text in more)]), 4, 0)
    assert "'no' (data.csv:0) and 'yes' (data.csv:1)" in caught.value.message
    assert "and 7 more" in caught.value.message and "correct the labels" in (caught.value.hint or "")


def test_a_class_that_contradictions_emptied_is_said_so():
    rows = [row(f"text {i}", i % 2, i) for i in range(8)]
    torn = [row("torn", 2), row("torn", 1)]
    with pytest.raises(DataError, match=r"'third' has 0 row\(s\), .* 2 have another label than the same text"):
        Split(task_of([*rows, *torn], (*LABELS, "third")), 6, 0)


def test_numbers_whose_means_are_one_are_named_as_contradictions():
    torn = [row(f"text {i}", label, i) for i in range(10) for label in (1.0, 3.0)]
    with pytest.raises(DataError, match="10 texts have several numbers"):
        Split(task_of(torn, (), "regression"), 10, 0)


def write(path: Path, rows) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


def test_files_and_folders_say_it(tmp_path):
    pool = write(tmp_path / "pool.csv", [("a", "x"), ("b", "y"), ("a", "y"), ("c", "x"), ("d", "y")])
    test = write(tmp_path / "test.csv", [("e", "x"), ("E", "x"), ("f", "y"), ("f", "x"), ("c!", "x")])
    task = read_task(pool, test=test)
    assert task.test is not None and len(task.test) == 2
    notes = "\n".join(task.notes)
    assert "1 text has several labels among the labelled rows: 'x' (pool.csv:2) and 'y' (pool.csv:4)" in notes
    assert "n = 2 distinct test texts: 1 repeat was left out" in notes
    assert "among the test rows: 'y' (test.csv:4) and 'x' (test.csv:5)" in notes
    assert "1 of the 2 test rows have the words of a labelled row" in notes
    record = '{"name": "m", "kind": "classification", "labels": ["x", "y"], "metric": "accuracy", "pool_rows": 2, '
    (tmp_path / "task.json").write_text(record + '"test_rows": 2}')
    for part, texts in (("pool", "ab"), ("test", "cc")):
        lines = [f'{{"text": "{text}", "label": "{label}"}}' for text, label in zip(texts, "xy", strict=True)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    folder = read_folder(tmp_path)
    assert (
        not folder.test
        and "several labels among the test rows: 'x' (test.jsonl:1) and 'y' (test.jsonl:2)" in folder.notes[0]
    )
