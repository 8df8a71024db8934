"""What cells with several labels mean in training, in test rows and in rows that come later."""

from __future__ import annotations

import pandas as pd
import pytest

import handful
from handful.data.files import read_task
from handful.data.label_set_targets import SetTargets
from handful.data.new_rows import labelled_rows
from handful.errors import ConfigError, DataError
from handful.runs.members import describe_task, recorded_task


def frame(labels, start=0):
    return pd.DataFrame({"text": [f"text {start + i}" for i in range(len(labels))], "label": labels})


def later(task, labels):
    """New rows of a run on the task, by its record."""
    return labelled_rows(frame(labels, 100), recorded_task(describe_task(task)))


def test_lists_of_classes_called_0_and_1_stay_sets():
    task = read_task(frame([[0, 1], [0], [1], []] * 3))
    assert task.labels == ("0", "1")
    assert [row.label for row in task.pool[:4]] == [(1, 1), (1, 0), (0, 1), (0, 0)]
    rows, _ = later(task, [[0, 1], [1]])
    assert [row.label for row in rows] == [(1, 1), (0, 1)]


def test_rows_of_flags_stay_flags():
    task = read_task(frame([[0, 1], [1, 0], [1, 1], [0, 0]]))
    assert [row.label for row in later(task, [[0, 1], [1, 1]])[0]] == [(0, 1), (1, 1)]
    with pytest.raises(DataError, match=r"expected a list of 2 zeros and ones, one per class, found \[1\]"):
        later(task, [[0, 1], [1]])


def test_the_separator_is_kept_with_the_run():
    task = read_task(frame(["joy&anger", "joy", "anger", "joy & fear"]), label_separator="&")
    rows, notes = later(task, ["joy&anger", "fear & joy"])
    assert [row.label for row in rows] == [(1, 0, 1), (0, 1, 1)]
    assert not any("left out" in note for note in notes)
    assert recorded_task({**describe_task(read_task(frame([["a"], ["b", "a"]])))}).label_separator is None


def test_only_unknown_names_are_left_out():
    task = read_task(frame([["joy", "anger"], ["joy"], ["anger"], []]))
    known = [["joy"]] * 40
    rows, notes = later(task, [*known, ["hope"]])
    assert len(rows) == 40
    assert any("'hope'" in note or "hope" in note for note in notes if "left out" in note)
    for cell, message in ((["joy", None], "expected names of classes"), ("joy&anger", "the label 'joy&anger' is none")):
        with pytest.raises(DataError, match=message):
            later(task, [*known, cell])


def test_test_rows_may_all_have_the_same_flags():
    flags = pd.DataFrame({"text": list("abcd"), "joy": [1, 0, 1, 0], "anger": [0, 1, 1, 0]})
    test = pd.DataFrame({"text": ["e", "f"], "joy": [0, 0], "anger": [1, 1]})
    task = read_task(flags, test=test, label="joy,anger")
    assert len(task.test or ()) == 2
    assert [row.label for row in labelled_rows(test, task)[0]] == [(1, 0), (1, 0)]
    with pytest.raises(DataError, match="all rows have the same set of labels"):
        read_task(test, label="joy,anger")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_separator": 5}, "label separator: expected a text, found 5"),
        ({"label_separator": ";", "kind": "classification"}, "label_separator: ';' contradicts kind 'classification'"),
    ],
)
def test_a_separator_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        read_task(frame(["a;b", "a", "b"]), **options)


@pytest.mark.parametrize("cell", [[0, 1, 1], ["0", "1", "1"], [False, True, True]])
def test_flags_among_names_leave_no_doubt(cell):
    assert SetTargets(("a", "b", "c"), flags=False).value(cell, "row 1") == (0, 1, 1)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_texts_with_a_frame_of_flags(library):
    make = pytest.importorskip(library).DataFrame
    texts = [f"text {i}" for i in range(4)]
    task = read_task((texts, make({"zeta": [1, 0, 1, 0], "alpha": [0, 1, 1, 0]})))
    assert (task.kind, task.labels) == ("multilabel", ("alpha", "zeta"))
    assert [row.label for row in task.pool] == [(0, 1), (1, 0), (1, 1), (0, 0)]
    assert read_task((texts, make({"y": ["a", "b", "a", "b"]}))).labels == ("a", "b")
    lists = [["zeta"], ["alpha"], ["alpha", "zeta"], []]
    assert [row.label for row in read_task((texts, lists)).pool] == [row.label for row in task.pool]
    with pytest.raises(DataError, match=r"row 1 of the labels: expected 0 or 1 .* in 'b', found 7"):
        read_task((texts, make({"a": [0, 1, 1, 0], "b": [1, 7, 0, 0]})))


def test_a_separator_is_not_dropped_where_rows_look_like_texts_to_be_written():
    rows = [{"source": "a", "references": "b;c"}, {"source": "b", "references": "c"}]
    task = read_task(rows, label_separator=";", text="source", label="references")
    assert (task.kind, task.labels) == ("multilabel", ("b", "c"))


def test_a_saved_run_reads_new_rows_by_its_separator(tiny_folder, tmp_path):
    labels = ["joy&anger", "joy", "anger", "joy & anger"] * 5
    model = handful.fit(
        frame(labels), columns={"label_separator": "&"}, model=str(tiny_folder), method="head", shots=12,
        test_fraction=None, output=tmp_path, settings={"max_length": 24},
    )  # fmt: skip
    assert model.run is not None
    loaded = handful.load(model.run.folder)
    assert loaded.evaluate(frame(["joy&anger"] * 3, 100)).scores.estimates["micro_f1"].n == 3
