"""Tasks of tasks: one list of labels, refusals told at once, and rows drawn as often as their weights say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil, floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful.backbone.tiny import tiny_tokenizer
from handful.data.batching import encode, encode_generation, encode_mixed
from handful.data.mixture import Mixing, draw_rows, member_rows, mix_tasks, mixing_weights, text_to_text
from handful.data.task import Example, Task, TestRows, overlap_keys
from handful.errors import ConfigError, DataError


def classes(name: str, labels: tuple[str, ...], rows: int = 6, *, pair: bool = False, **fields) -> Task:
    pool = tuple(
        Example(f"{name} number {n}", f"second {n}" if pair else None, n % len(labels), f"{name}:{n}")
        for n in range(rows)
    )
    kind = "pair-classification" if pair else "classification"
    return Task(name, kind, labels, fields.pop("metric", "accuracy"), pool, origin=f"{name}.csv", **fields)


def writing(name: str, metric: str = "bleu", references: int = 2) -> Task:
    pool = tuple(
        Example(f"{name} {n}", references=tuple(f"say {n} {r}" for r in range(references)), source=f"{name}:{n}")
        for n in range(4)
    )
    return Task(name, "generation", (), metric, pool, origin=f"{name}.jsonl")


@pytest.fixture
def mixed() -> Task:
    reviews = classes("reviews", ("bad", "good"), metric="f1", notes=("read the column 'text'",))
    return mix_tasks("both", [reviews, classes("nli", ("no", "maybe", "yes"), 9, pair=True)])


def test_labels_and_rows_are_the_members_in_order(mixed):
    assert mixed.kind == "classification" and mixed.metric == "accuracy" and mixed.test is None and mixed.dev is None
    assert mixed.labels == ("reviews: bad", "reviews: good", "nli: no", "nli: maybe", "nli: yes")
    assert mixed.label_ranges == {"reviews": range(2), "nli": range(2, 5)}
    assert [row.label for row in member_rows(mixed, "nli")] == [2, 3, 4] * 3
    assert {row.task for row in mixed.pool} == {"reviews", "nli"} and len(mixed.pool) == 15
    assert mixed.notes[0] == "reviews: read the column 'text'" and mixed.origin == "reviews.csv, nli.csv"
    assert [member.metric for member in mixed.members] == ["f1", "accuracy"]


def test_development_rows_only_where_all_members_have_some():
    dev = (Example("kept apart", label=1),)
    a, b = classes("a", ("x", "y"), dev=dev), classes("b", ("x", "y"), dev=dev)
    assert [(row.task, row.label) for row in mix_tasks("all", [a, b]).dev or ()] == [("a", 1), ("b", 3)]
    assert mix_tasks("some", [a, replace(b, dev=None)]).dev is None


def test_rows_for_the_test_stay_closed_and_get_the_labels_of_all():
    rows = TestRows([Example("a", label=1), Example("b")]).of_member("nli", 2)
    assert rows.fingerprint() == TestRows([Example("a", label=3, task="nli"), Example("b", task="nli")]).fingerprint()
    with pytest.raises(TypeError):
        iter(rows)  # type: ignore[call-overload]


def test_texts_are_mixed_with_the_metric_all_share():
    assert mix_tasks("t", [writing("a", "chrf"), writing("b", "chrf")]).metric == "chrf"
    task = mix_tasks("t", [writing("a"), writing("b", "chrf")])
    assert (task.kind, task.metric, task.labels) == ("generation", "rouge-l", ())
    assert task.pool[4].task == "b" and task.pool[4].label is None


def test_fingerprint_tells_mixtures_apart(mixed):
    swapped = mix_tasks("both", mixed.members[::-1])
    tested = mix_tasks("both", [replace(mixed.members[0], test=TestRows([Example("new", label=0)])), mixed.members[1]])
    assert len({mixed.fingerprint(), swapped.fingerprint(), tested.fingerprint()}) == 3
    a, b = writing("a"), writing("b")
    assert mix_tasks("t", [a, b]).fingerprint() != mix_tasks("t", [a, replace(b, name="c")]).fingerprint()


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([], "expected at least two tasks, found 0; add one"),
        ([classes("a", ("x", "y"))], "expected at least two tasks, found 1; add one, or fit the one alone"),
        ([classes("a", ("x", "y"))] * 2, "2 tasks are called 'a' (a.csv, a.csv); give each a name of its own"),
        ([Task("s", "regression", (), "mse", (Example("x", label=1.0),), origin="s.csv")], "task 's' (s.csv) asks for"),
        ([classes("a", ("x", "y")), writing("w")], "texts are to be written in w, and labels told in the others"),
        ([classes("a", ("x", "y"), 0)], "task 'a' (a.csv) has no rows to learn from; give it labelled rows"),
        ([classes("a", ("no", "Not  sure", "not sure", "NO"))], "read the same: 'no', 'NO'; rename all but one"),
        ([mix_tasks("m", [writing("a"), writing("b")])], "is itself a task of tasks; give its members"),
    ],
)
def test_tasks_that_cannot_be_mixed(tasks, expected):
    with pytest.raises(DataError, match=r"^the tasks of 'all' cannot be mixed:\n") as caught:
        mix_tasks("all", tasks)
    assert expected in caught.value.message
    assert caught.value.hint


def test_everything_wrong_is_told_at_once():
    empty = classes("a", ("x", "X "), 0)
    with pytest.raises(DataError) as caught:
        mix_tasks("all", [empty, empty, writing("w")])
    assert len(caught.value.message.splitlines()) == 1 + 1 + 2 * 2 + 1


# ------------------------------------------------------------------------------------------------------- the draws

names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)


@given(names, st.floats(0.25, 10))
def test_tasks_get_their_shares(names, temperature):
    sizes = Counter(names)
    powers: dict[Mixing, float] = {"size": 1, "temperature": 1 / temperature, "uniform": 0}
    for mixing, power in powers.items():
        weights = mixing_weights(names, mixing, temperature)
        assert float(weights.sum()) == pytest.approx(len(names))
        total = sum(size**power for size in sizes.values())
        for task, size in sizes.items():
            share = sum(float(w) for w, name in zip(weights, names, strict=True) if name == task) / len(names)
            assert share == pytest.approx(size**power / total)


def test_mixing_by_size_draws_every_row_once():
    weights = mixing_weights(["a", "b", "b"], "size", 1.0)
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert mixing_weights(["a", "b", "b"], "temperature", 1.0).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="mixing_temperature: expected a number above 0, found 0"):
        mixing_weights(["a"], "temperature", 0)


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=80), st.integers(0, 2**40))
def test_rows_are_drawn_as_often_as_their_weights_say(raw, seed):
    weights = torch.tensor(raw, dtype=torch.float64)
    weights *= len(weights) / weights.sum()
    rows = draw_rows(weights, torch.Generator().manual_seed(seed))
    times = Counter(rows)
    assert len(rows) == len(weights)
    for row, weight in enumerate(weights.tolist()):
        assert floor(weight - 1e-9) <= times[row] <= ceil(weight + 1e-9)


def test_draws_are_unbiased_and_shuffled():
    weights = mixing_weights([*"aaaaaaa", "b", *"cccc"], "uniform", 1.0)
    generator = torch.Generator().manual_seed(0)
    epochs = [draw_rows(weights, generator) for _ in range(4000)]
    mean = torch.stack([torch.bincount(torch.tensor(rows), minlength=12) for rows in epochs]).double().mean(0)
    assert (mean - weights).abs().max() < 4 * 0.5 / 4000**0.5  # one draw deviates by at most 1/2
    assert len({tuple(rows) for rows in epochs}) > 3900


# ---------------------------------------------------------------------------------------------------------- tokens


def test_single_texts_and_pairs_are_encoded_as_alone(mixed):
    tokenizer = tiny_tokenizer("bert")
    examples = [row for pair in zip(mixed.pool[:6], mixed.pool[6:], strict=False) for row in pair]
    rows = encode_mixed(examples, tokenizer, 12)
    for index, row in enumerate(examples):
        alone = encode([row], tokenizer, 12, kind="classification")
        assert rows.input_ids[index] == alone.input_ids[0]
        assert rows.token_type_ids and alone.token_type_ids
        assert rows.token_type_ids[index] == alone.token_type_ids[0]
    assert rows.labels is not None and rows.labels.tolist() == [row.label for row in examples]
    assert rows.truncated == sum(encode([row], tokenizer, 12, kind="classification").truncated for row in examples) > 0
    batch = rows.batch([3, 0]).to("cpu")
    assert batch.tasks == ("nli", "reviews") == (examples[3].task, examples[0].task)


def test_rows_of_one_shape_and_no_rows_are_encoded_as_ever(mixed):
    tokenizer = tiny_tokenizer("bert")
    singles = member_rows(mixed, "reviews")
    assert (
        encode_mixed(singles, tokenizer, 12).input_ids
        == encode(singles, tokenizer, 12, kind="classification").input_ids
    )
    assert len(encode_mixed([], tokenizer, 12)) == 0
    plain = encode([Example("a", label=0)], tokenizer, 12, kind="classification")
    assert plain.tasks is None and plain.batch([0]).tasks == ()


def test_half_labelled_rows_are_refused(mixed):
    examples = [mixed.pool[0], replace(mixed.pool[6], label=None)]
    with pytest.raises(DataError, match="nli:0: expected a label, found none"):
        encode_mixed(examples, tiny_tokenizer("bert"), 12)


def test_a_reference_is_a_row_of_its_task():
    task = mix_tasks("t", [writing("a", references=2), writing("b", references=1)])
    tokenizer = tiny_tokenizer("t5")
    learnt = encode_generation(task.pool, tokenizer, 32, encoder_decoder=True, target_length=16)
    assert learnt.tasks == ("a",) * 8 + ("b",) * 4
    assert learnt.batch([8, 0]).tasks == ("b", "a")
    assert encode_generation(task.pool, tokenizer, 32, encoder_decoder=True).tasks == ("a",) * 4 + ("b",) * 4


# ------------------------------------------------------------------------------------------------- labels as texts


def test_labels_as_texts_keep_the_rows_and_what_they_share_with_other_tasks():
    rows = (Example("Fine.", None, 1, "a:1"), Example("Bad", "worse", 0, "a:2"))
    test = TestRows([Example("Fine.", None, 1)])
    task = Task("moods", "classification", ("very_low", "high"), "accuracy", rows, test)
    written = text_to_text(task)
    assert (written.kind, written.metric, written.labels) == ("generation", "exact-match", ())
    assert [row.references for row in written.pool] == [("high",), ("very low",)]
    assert [row.text for row in written.pool] == ["Fine.", "Bad / worse"]
    assert {row.instruction for row in written.pool} == {"choices: very low, high. text: "}
    other = text_to_text(replace(task, name="other", labels=("yes", "no")))
    assert other.test is not None
    assert not overlap_keys(written.pool[0]).isdisjoint(other.test.overlap_keys())  # whatever the choices
    assert written.instruction == written.pool[0].instruction
    with pytest.raises(DataError, match="labels that read the same: 'a_b', 'A b'"):
        text_to_text(replace(task, labels=("a_b", "A b")))
    assert text_to_text(replace(task, labels=("-1", "1"))).pool[1].references == ("-1",)
    with pytest.raises(DataError, match="expected labels to be written, found a task of kind 'generation'"):
        text_to_text(written)
