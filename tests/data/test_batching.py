"""Batching: every row once, like lengths together, padded on the right, cut rows counted."""

from __future__ import annotations

import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CanineTokenizer

from handful.backbone.tiny import tiny_tokenizer
from handful.data.batching import CHUNK_BATCHES, EncodedRows, encode, plan_batches
from handful.data.files import read_folder
from handful.data.task import Example, TestRows
from handful.errors import ConfigError, DataError, ModelError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("bert")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded_share(lengths, batches) -> float:
    """Tokens of padded batches as a multiple of the tokens there are."""
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches) / sum(lengths)


@given(st.lists(st.integers(1, 200), max_size=150), st.integers(1, 40), st.integers(0, 9) | st.none())
def test_every_row_stands_in_one_batch(lengths, batch_size, seed):
    batches = plan_batches(lengths, batch_size, None if seed is None else generator(seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(lengths) // batch_size)


def test_without_generator_rows_are_sorted_by_length():
    assert plan_batches([5, 1, 5, 3], 2) == [[1, 3], [0, 2]]


def test_same_generator_state_gives_the_same_plan():
    lengths = list(range(100))
    assert plan_batches(lengths, 16, generator(1)) == plan_batches(lengths, 16, generator(1))
    assert plan_batches(lengths, 16, generator(1)) != plan_batches(lengths, 16, generator(2))


def test_hundred_rows_are_bucketed_and_yet_mixed_between_epochs():
    lengths = [5 + (index * 37) % 50 for index in range(100)]
    draws = generator(0)
    epochs = [plan_batches(lengths, 16, draws) for _ in range(200)]
    shuffled = [torch.randperm(100, generator=draws).tolist() for _ in range(200)]
    plain = [[order[start : start + 16] for start in range(0, 100, 16)] for order in shuffled]
    bucketed_mean = sum(padded_share(lengths, epoch) for epoch in epochs) / 200
    plain_mean = sum(padded_share(lengths, epoch) for epoch in plain) / 200
    assert bucketed_mean - 1 < 0.5 * (plain_mean - 1)

    row = lengths.index(30)
    companions = [{other for batch in epoch if row in batch for other in batch} for epoch in epochs]
    assert len(set().union(*companions)) > 40  # the same rows do not always meet
    places = [next(place for place, batch in enumerate(epoch) if row in batch) for epoch in epochs]
    assert len(set(places)) == 7  # and not at the same step


def test_incomplete_batch_holds_random_rows():
    lengths = list(range(CHUNK_BATCHES * 4 + 1))
    rest = [
        next(batch[0] for batch in plan_batches(lengths, 4, generator(seed)) if len(batch) == 1) for seed in range(60)
    ]
    assert len(set(rest)) > 10


def test_padding_mask_and_types(tokenizer):
    rows = encode([Example("one"), Example("one two three", label=None)], tokenizer, 32, kind="classification")
    batch = rows.batch([1, 0])
    assert batch.rows.tolist() == [1, 0]
    assert len(batch) == 2
    assert batch.labels is None
    assert all(tensor.dtype == torch.int64 for tensor in batch.inputs.values())
    assert batch.inputs["input_ids"].shape == (2, max(rows.lengths))
    assert batch.inputs["input_ids"][0].tolist() == rows.input_ids[1]
    short = rows.lengths[0]
    assert batch.inputs["input_ids"][1].tolist() == rows.input_ids[0] + [tokenizer.pad_token_id] * (
        rows.lengths[1] - short
    )
    assert batch.inputs["attention_mask"].sum(1).tolist() == [rows.lengths[1], short]
    assert batch.inputs["attention_mask"][1, :short].all()
    expected = tokenizer(["one two three", "one"], padding=True, return_tensors="pt")
    assert set(batch.inputs) == set(expected)
    for name, tensor in batch.inputs.items():
        assert torch.equal(tensor, expected[name])


def test_batch_pads_only_to_its_own_longest_row(tokenizer):
    rows = encode([Example("a"), Example("a b c d e f g h")], tokenizer, 32, kind="classification")
    assert rows.batch([0]).inputs["input_ids"].shape == (1, rows.lengths[0])
    assert rows.batch([0]).inputs["attention_mask"].all()


def test_types_only_where_the_tokenizer_gives_them():
    rows = encode([Example("one", "two")], tiny_tokenizer("gpt2"), 32, kind="pair-classification")
    assert "token_type_ids" not in rows.batch([0]).inputs


def test_labels_by_kind(tokenizer):
    classes = encode([Example("a", label=1), Example("b", label=0)], tokenizer, 8, kind="classification").labels
    target = encode([Example("a", label=1), Example("b", label=0.5)], tokenizer, 8, kind="regression").labels
    assert classes is not None
    assert target is not None
    assert (classes.dtype, classes.tolist()) == (torch.int64, [1, 0])
    assert (target.dtype, target.tolist()) == (torch.float32, [1.0, 0.5])


def test_cut_rows_are_counted_and_the_longer_text_is_cut_first(tokenizer):
    long, short = " ".join(["word"] * 50), "word"
    rows = [Example(long, short), Example(short, long), Example(short, short)]
    encoded = encode(rows, tokenizer, 20, kind="pair-classification")
    assert encoded.truncated == 2
    assert encoded.lengths[:2] == [20, 20]
    assert encoded.lengths[2] < 20
    word = tokenizer("word", add_special_tokens=False)["input_ids"]
    assert encoded.token_type_ids is not None
    assert sum(encoded.token_type_ids[0]) == len(word) + 1  # the short second text and its separator are whole


@given(first=st.integers(1, 300), second=st.integers(1, 300), max_length=st.integers(4, 30))
def test_long_pairs_are_cut_as_the_tokenizer_would(tokenizer, first, second, max_length):
    texts = ("ab c" * 75)[:first], ("xyz " * 75)[:second]
    encoded = encode([Example(*texts)], tokenizer, max_length, kind="pair-classification")
    plain = tokenizer(*texts, truncation="longest_first", max_length=max_length)
    assert encoded.token_type_ids is not None
    if min(first, second) <= 2 * max_length:
        assert encoded.input_ids == [plain["input_ids"]] and encoded.token_type_ids == [plain["token_type_ids"]]
    else:  # of two texts that are both far too long, either may get the odd token
        assert encoded.lengths == [max_length]
        assert abs(sum(encoded.token_type_ids[0]) - sum(plain["token_type_ids"])) <= 1
    assert encoded.truncated == (len(tokenizer(*texts)["input_ids"]) > max_length)


def test_memory_grows_with_a_long_pair_and_not_with_its_square(tokenizer):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    long = [Example("ab " * 3000, "cd " * 3000)]
    assert encode(long, tokenizer, 64, kind="pair-classification").truncated == 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # the largest so far, in KiB
    assert grown < 400 * 1024  # with all pieces of one text beside all of the other: 4 GiB


def test_exactly_the_maximum_length_is_not_cut(tokenizer):
    length = encode([Example("a b c")], tokenizer, 64, kind="classification").lengths[0]
    assert encode([Example("a b c")], tokenizer, length, kind="classification").truncated == 0
    assert encode([Example("a b c")], tokenizer, length - 1, kind="classification").truncated == 1


def test_python_tokenizer_counts_cut_rows_too():
    rows = [Example("long" * 9, label=1), Example("long enough", label=0)]
    encoded = encode(rows, CanineTokenizer(), 13, kind="classification")
    assert (encoded.truncated, encoded.lengths) == (1, [13, 13])


def test_length_without_room_for_text_is_refused(tokenizer):
    assert encode([Example("word")], tokenizer, 3, kind="classification").lengths == [3]
    with pytest.raises(ConfigError, match="max_length: 2 leaves no room for text beside 2 special tokens"):
        encode([Example("word")], tokenizer, 2, kind="classification")
    with pytest.raises(ConfigError, match="beside 3 special tokens"):
        encode([Example("word", "word")], tokenizer, 3, kind="pair-classification")


def test_no_rows(tokenizer):
    rows = encode([], tokenizer, 8, kind="classification")
    assert (len(rows), rows.truncated, plan_batches(rows.lengths, 4)) == (0, 0, [])


def test_test_rows_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"found TestRows\n\nhint: .*evaluate"):
        encode(TestRows([Example("a", label=0)]), tokenizer, 8, kind="classification")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([Example("a", "b"), Example("a", source="f.csv:3")], "classification", r"^f\.csv:3: expected a pair of texts"),
        ([Example("a", source="f.csv:2")], "pair-classification", r"^f\.csv:2: expected a pair of texts"),
        ([Example("a", label=0), Example("a", source="f.csv:3")], "classification", r"^f\.csv:3: expected a label"),
    ],
)
def test_rows_of_mixed_shape_are_refused(tokenizer, rows, kind, message):
    with pytest.raises(DataError, match=message):
        encode(rows, tokenizer, 8, kind=kind)


def test_text_without_tokens_is_named():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.backend_tokenizer.post_processor = None  # type: ignore[assignment] - as GPT-2's: no start mark
    with pytest.raises(DataError, match=r"^f\.csv:9: the text '' gives no token"):
        encode([Example("", source="f.csv:9")], tokenizer, 8, kind="classification")


def test_tokenizer_without_padding_is_refused():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"no padding token\n\nhint: set tokenizer\.pad_token"):
        encode([Example("a")], tokenizer, 8, kind="classification")


def test_batch_moves_to_a_device():
    rows = EncodedRows([[1], [2, 3]], None, torch.tensor([0, 1]), 0, 0)
    moved = rows.batch([0, 1]).to("meta")
    assert moved.labels is not None
    assert {tensor.device.type for tensor in (*moved.inputs.values(), moved.labels, moved.rows)} == {"meta"}


def test_real_pairs(shared_data, tokenizer):
    task = read_folder(shared_data / "glue" / "mrpc")
    rows = encode(task.pool[:100], tokenizer, 64, kind=task.kind)
    assert max(rows.lengths) <= 64
    assert rows.labels is not None
    assert rows.labels.tolist() == [row.label for row in task.pool[:100]]
