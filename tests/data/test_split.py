"""Splits: exactly K rows, nested in K, stratified, the same for the same seed, and apart from the test rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handful.data.files import read_folder
from handful.data.split import Split
from handful.data.task import Example, Task, TestRows, text_key
from handful.errors import ConfigError, DataError

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")


def make_task(*sizes: int, dev=None, test=()) -> Task:
    """A task with this many rows of each class, in mixed order."""
    rows = [
        Example(f"text {index} of {label}", label=label) for label, size in enumerate(sizes) for index in range(size)
    ]
    rows.sort(key=lambda row: text_key(row))
    labels = tuple(f"class-{label}" for label in range(len(sizes)))
    return Task("made", "classification", labels, "accuracy", tuple(rows), TestRows(test), dev)


def make_regression(rows: int) -> Task:
    pool = tuple(Example(f"text {index}", label=float(index * 7 % rows)) for index in range(rows))
    return Task("made", "regression", (), "spearman", pool)


def texts(rows) -> set[str]:
    return {row.text for row in rows}


tasks = st.lists(st.integers(2, 60), min_size=2, max_size=6).map(lambda sizes: make_task(*sizes))
seeds = st.integers(0, 2**32)


def shots_for(data, task: Task, minimum: int = 2) -> int:
    return data.draw(st.integers(minimum * len(task.labels), len(task.pool)), "shots")


@given(task=tasks, seed=seeds, data=st.data())
def test_carved_rows_are_exactly_k_and_disjoint(task, seed, data):
    shots = shots_for(data, task)
    split = Split(task, shots, seed)
    assert len(split.train) + len(split.dev) == shots
    assert len(texts(split.train) | texts(split.dev)) == shots
    assert texts(split.train) | texts(split.dev) <= texts(task.pool)
    for rows in (split.train, split.dev):
        assert {row.label for row in rows} == set(range(len(task.labels)))


@given(task=tasks, seed=seeds, data=st.data(), dev=st.sampled_from(["carved", "none"]))
def test_fewer_shots_are_contained_in_more(task, seed, data, dev):
    few, many = sorted([shots_for(data, task), shots_for(data, task)])
    small, large = Split(task, few, seed, dev), Split(task, many, seed, dev)
    assert texts(small.train) <= texts(large.train)
    assert texts(small.dev) <= texts(large.dev)
    assert large.train[: len(small.train)] == small.train


@given(task=tasks, seed=seeds, data=st.data())
def test_classes_are_within_one_row_of_their_share(task, seed, data):
    sizes = Counter(row.label for row in task.pool)
    large_enough = -(-2 * len(task.pool) // min(sizes.values()))  # every class's share reaches its minimum
    shots = data.draw(st.integers(min(large_enough, len(task.pool)), len(task.pool)), "shots")
    split = Split(task, shots, seed)
    found = Counter(row.label for row in split.train + split.dev)
    for label, size in sizes.items():
        assert abs(found[label] - shots * size / len(task.pool)) < 1


@given(task=tasks, seed=seeds, fraction=st.floats(0.05, 0.95))
def test_dev_fraction_is_met_within_a_row_a_class(task, seed, fraction):
    split = Split(task, len(task.pool), seed, dev_fraction=fraction)
    train, dev = Counter(r.label for r in split.train), Counter(r.label for r in split.dev)
    for label in train:
        size = train[label] + dev[label]
        assert train[label] >= 1
        assert dev[label] >= 1
        assert abs(dev[label] - fraction * size) <= 1


def test_dev_fraction_is_met_over_many_small_classes():
    task = make_task(*[20] * 15)
    found = [len(Split(task, shots, 0).dev) for shots in range(75, 301)]
    assert max(abs(dev - 0.2 * shots) for dev, shots in zip(found, range(75, 301), strict=True)) <= 1


@given(seed=seeds)
@settings(max_examples=20)
def test_regression_is_stratified_by_fifths(seed):
    split = Split(make_regression(100), 20, seed)
    fifths = Counter(int((row.label or 0) // 20) for row in split.train + split.dev)
    assert fifths == dict.fromkeys(range(5), 4)
    assert {int((row.label or 0) // 20) for row in split.dev} == set(range(5))


def test_same_seed_same_rows_other_seed_other_rows():
    task = make_task(40, 40)
    first, again, other = Split(task, 20, 3), Split(task, 20, 3), Split(task, 20, 4)
    assert (first.train, first.dev) == (again.train, again.dev)
    assert first.fingerprint == again.fingerprint
    assert texts(first.train) != texts(other.train)
    assert first.fingerprint != other.fingerprint


def test_fingerprint_covers_train_dev_and_test():
    task = make_task(40, 40, test=[Example("kept apart", label=0)])
    base = Split(task, 20, 0)
    assert Split(replace(task, test=TestRows([Example("kept apart", label=1)])), 20, 0).fingerprint != base.fingerprint
    assert Split(task, 20, 0, dev_fraction=0.4).fingerprint != base.fingerprint
    assert Split(replace(task, name="renamed", origin="elsewhere"), 20, 0).fingerprint == base.fingerprint


def test_no_dev_trains_on_all_shots():
    split = Split(make_task(5, 5), 6, 0, dev="none")
    assert (len(split.train), split.dev) == (6, ())


def test_separate_dev_without_own_rows_takes_the_pool_after_the_shots():
    split = Split(make_task(30, 30), 20, 0, dev="separate", dev_rows=15)
    assert (len(split.train), len(split.dev)) == (20, 15)
    assert not texts(split.train) & texts(split.dev)
    with pytest.raises(DataError, match="no row is left after 60 shots"):
        Split(make_task(30, 30), 60, 0, dev="separate")


def test_separate_dev_takes_the_tasks_own_rows_the_same_for_every_k():
    own = tuple(Example(f"own {index}", label=index % 2) for index in range(50))
    task = make_task(30, 30, dev=(*own, Example("Text 0  of 0", label=0)))
    few, many = (Split(task, shots, 0, dev="separate", dev_rows=10) for shots in (10, 20))
    assert len(few.dev) == 10
    assert few.dev == many.dev
    assert Split(task, 10, 1, dev="separate", dev_rows=10).dev != few.dev
    whole = Split(task, 59, 0, dev="separate")
    assert "Text 0  of 0" in texts(whole.dev)
    assert "text 0 of 0" not in texts(whole.train)
    assert whole.dropped_overlap == 1


def test_duplicates_and_test_rows_are_dropped_and_counted():
    task = make_task(10, 10, test=[Example("TEXT 3 of  1", label=1)])
    task = replace(task, pool=(*task.pool, Example(" text 0\nof 0 ", label=0), Example("TEXT 0 OF 0", label=1)))
    split = Split(task, 19, 0)
    assert (split.dropped_duplicates, split.dropped_contradictions, split.dropped_overlap) == (1, 1, 1)
    assert next(row.label for row in split.labelled if row.text == "text 0 of 0") == 0, "as most of its rows have it"
    assert "text 3 of 1" not in texts(split.train + split.dev)
    with pytest.raises(DataError, match="expected at least 20 distinct labelled rows, found 19"):
        Split(task, 20, 0)


def test_pairs_are_duplicates_only_if_both_texts_are():
    rows = [Example("same", f"other {index}", label=index % 2) for index in range(8)]
    task = Task("pairs", "pair-classification", ("no", "yes"), "accuracy", tuple(rows))
    assert Split(task, 8, 0).dropped_duplicates == 0


@pytest.mark.parametrize(
    ("sizes", "shots", "dev", "message"),
    [
        ((20, 20), 41, "carved", r"expected at least 41 .* found 40\n\nhint: use at most --shots 40"),
        ((20, 1), 10, "carved", r"class 'class-1' has 1 row\(s\), needed 2 for training and development"),
        ((20, 0), 10, "none", r"all 20 rows have the class 'class-0'"),
        ((20, 20, 0), 10, "none", r"class 'class-2' has 0 row\(s\), needed 1 for training"),
        ((9, 9, 9), 5, "carved", r"5 shots are too few for 3 classes .*\n\nhint: .* --shots 6"),
        ((9, 9, 9), 2, "none", r"2 shots are too few for 3 classes .*\n\nhint: .* --shots 3"),
    ],
)
def test_refusals_name_what_is_missing(sizes, shots, dev, message):
    with pytest.raises(DataError, match=message):
        Split(make_task(*sizes), shots, 0, dev)


def test_smallest_shots_named_in_the_hint_work():
    assert len(Split(make_task(9, 9, 9), 6, 0).dev) == 3
    assert len(Split(make_task(9, 9, 9), 3, 0, "none").train) == 3


def test_regression_refusals():
    with pytest.raises(DataError, match=r"too few for 5 fifths of the target.*\n\nhint: .* --shots 10"):
        Split(make_regression(40), 9, 0)
    with pytest.raises(DataError, match=r"fifth 1 of the target has 1 row"):
        Split(make_regression(8), 8, 0)
    constant = replace(make_regression(40), pool=tuple(Example(f"t{i}", label=2.5) for i in range(40)))
    with pytest.raises(DataError, match=r"all 40 rows have the target 2\.5"):
        Split(constant, 20, 0)


def test_unlabelled_pool_row_is_named():
    task = make_task(5, 5)
    with pytest.raises(DataError, match=r"^data.csv:7: expected a label"):
        Split(replace(task, pool=(*task.pool, Example("new", source="data.csv:7"))), 4, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dev": "craved"}, "did you mean 'carved'"),
        ({"dev_fraction": 1.0}, "between 0 and 1"),
        ({"dev": "separate", "dev_rows": 0}, "at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Split(make_task(5, 5), 6, 0, **arguments)


def test_split_is_frozen():
    split = Split(make_task(5, 5), 6, 0)
    with pytest.raises(FrozenInstanceError):
        split.shots = 7  # type: ignore[misc]


@pytest.mark.parametrize("name", GLUE)
def test_glue_tasks(shared_data, name):
    task = read_folder(shared_data / "glue" / name)
    small, large = Split(task, 50, 0), Split(task, 100, 0)
    assert (len(small.train), len(small.dev), len(large.train), len(large.dev)) == (40, 10, 80, 20)
    assert set(small.train) < set(large.train)
    assert set(small.dev) < set(large.dev)
    assert task.test is not None
    assert not {text_key(row) for row in large.train + large.dev} & task.test.text_keys()


@pytest.mark.parametrize("task", [make_task(60, 30, 12), make_regression(120)], ids=["classes", "targets"])
def test_cell_is_the_same_however_its_rows_are_divided(task):
    splits = [Split(task, 40, 3, dev=dev) for dev in ("carved", "none", "separate")]
    assert len({split.fingerprint for split in splits}) == 3
    assert len({split.cell_fingerprint for split in splits}) == 1
    others = [
        Split(task, 40, 4),
        Split(task, 41, 3),
        Split(replace(task, test=TestRows([Example("new", label=0)])), 40, 3),
    ]
    assert all(other.cell_fingerprint != splits[0].cell_fingerprint for other in others)


def make_records(rows: int) -> Task:
    pool = tuple(
        Example(f"record {i}", references=tuple(f"text {j} of {i}" for j in range(i % 4 + 1))) for i in range(rows)
    )
    return Task("made", "generation", (), "bleu", pool)


@given(seed=seeds, data=st.data(), dev=st.sampled_from(["carved", "none"]), references=st.sampled_from(["all", "one"]))
def test_records_are_nested_and_counted(seed, data, dev, references):
    task = make_records(60)
    few, many = sorted(data.draw(st.lists(st.integers(2, 60), min_size=2, max_size=2), "shots"))
    small, large = (Split(task, shots, seed, dev, references=references) for shots in (few, many))
    assert large.train[: len(small.train)] == small.train
    assert set(small.dev) <= set(large.dev)
    assert len(small.labelled) == few == len(texts([*small.train, *small.dev]))
    known = {row.text: row.references for row in task.pool}
    for row in large.labelled:
        full = known[row.text]
        assert row.references == full if references == "all" else len(row.references) == 1 and row.references[0] in full


def test_record_splits_differ_by_seed_and_references():
    task = make_records(60)
    kinds = [Split(task, 20, seed, references=references) for seed in (0, 1) for references in ("all", "one")]
    assert len({split.fingerprint for split in kinds}) == 4
    assert len({split.cell_fingerprint for split in kinds}) == 4
    assert [row.text for row in kinds[0].train] == [row.text for row in kinds[1].train]
    drawn = [Split(task, 60, seed, "none", references="one").labelled for seed in range(20)]
    assert len(set(drawn)) == 20


def test_separate_development_records_are_never_more_than_shots():
    task = make_records(60)
    assert len(Split(task, 10, 0, "separate").dev) == 10
    own = replace(task, pool=task.pool[:30], dev=task.pool[30:])
    split = Split(own, 5, 0, "separate")
    assert len(split.dev) == 5 and texts(split.dev) <= texts(task.pool[30:])
    assert len(Split(own, 5, 0, "separate", dev_rows=2).dev) == 2


def test_records_that_cannot_be_had():
    with pytest.raises(DataError, match=r"1 record\(s\) are too few for training and development"):
        Split(make_records(5), 1, 0)
    with pytest.raises(DataError, match="expected at least 6 distinct labelled rows, found 5"):
        Split(make_records(5), 6, 0)
    with pytest.raises(DataError, match="expected at least one reference"):
        Split(replace(make_records(5), pool=(Example("a"), Example("b"))), 2, 0)
    with pytest.raises(ConfigError, match="expected all or one, found 'two'"):
        Split(make_records(5), 4, 0, references="two")  # type: ignore[arg-type]


def test_sampled_records_are_the_same_on_every_platform(shared_data):
    split = Split(read_folder(shared_data / "nlg" / "e2e"), 10, 0)
    assert [int(row.source.split(":")[1]) for row in split.train][:4] == [507, 1758, 1511, 311]
    assert (split.dropped_overlap, split.dropped_duplicates) == (7, 0)
