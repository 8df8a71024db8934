"""Tokens that a model does not know are counted, and said where they are many."""

from __future__ import annotations

import pytest

from handful.backbone.tiny import tiny_tokenizer
from handful.data.batching import encode, encode_generation, encode_mixed
from handful.data.coverage import NO_TEXTS, Coverage, count_known, coverage_sentences
from handful.data.task import Example


def counted(texts: list[str], family: str = "bert") -> Coverage:
    return encode([Example(text) for text in texts], tiny_tokenizer(family), 32, kind="classification").coverage


def test_unknown_signs_are_counted():
    found = counted(["abc", "ab☃", "☃☃"])
    assert (found.rows, found.without_token, found.all_unknown) == (3, 0, 1)
    assert 0 < found.unknown < found.tokens
    assert found.unknown == counted(["ab☃"]).unknown + counted(["☃☃"]).unknown
    assert counted(["abc"]).unknown == 0


def test_texts_without_a_token_are_counted():
    tokenizer = tiny_tokenizer("bert")
    marks = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    found = count_known([marks, [*marks, *tokenizer("ab", add_special_tokens=False)["input_ids"]], []], tokenizer)
    assert (found.rows, found.without_token, found.all_unknown, found.unknown) == (3, 2, 0, 0)


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_tokenizers_of_bytes_know_everything(family):
    found = counted(["ab☃", "☃☃", "一二"], family)
    assert found.tokens > 0
    if tiny_tokenizer(family).unk_token_id in (None, tiny_tokenizer(family).eos_token_id):
        assert (found.unknown, found.all_unknown, found.without_token) == (0, 0, 0)


def test_pairs_mixed_rows_and_records_are_counted_too():
    tokenizer = tiny_tokenizer("bert")
    mixed = encode_mixed([Example("ab"), Example("ab", "☃"), Example("☃")], tokenizer, 32).coverage
    assert (mixed.rows, mixed.all_unknown) == (3, 1) and mixed.unknown >= 2
    writer = tiny_tokenizer("t5")
    records = [Example("ab", references=("cd", "☃"))]
    found = encode_generation(records, writer, 32, encoder_decoder=True, target_length=8).coverage
    assert found.rows == 3 and found.unknown >= 1
    assert encode_generation(records, writer, 32, encoder_decoder=True).coverage.rows == 1


def test_longest_is_that_of_the_whole_texts():
    tokenizer = tiny_tokenizer("bert")
    rows = [Example("ab " * n) for n in (1, 40, 7)]
    whole = encode(rows, tokenizer, 512, kind="classification")
    cut = encode(rows, tokenizer, 16, kind="classification")
    assert whole.longest == max(whole.lengths) == cut.longest > max(cut.lengths) == 16
    pairs = [Example("ab " * 30, "cd " * 50)]
    assert encode(pairs, tokenizer, 16, kind="pair-classification").longest == len(
        tokenizer(pairs[0].text, pairs[0].text_pair)["input_ids"]
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (NO_TEXTS, []),
        (Coverage(100, 5, 10), []),
        (Coverage(100, 6, 10), ["6% of the tokens of 10 texts are unknown to the model"]),
        (Coverage(100, 1, 10, 0, 1), ["1 of 10 texts have no token that the model knows"]),
        (Coverage(100, 0, 10, 2), ["2 of 10 texts become no token at all"]),
        (Coverage(10, 10, 3, 1, 2), ["100% of the tokens", "2 of 3 texts have no", "1 of 3 texts become no token"]),
    ],
)
def test_what_is_said(found, said):
    lines = coverage_sentences(found)
    assert [line.startswith(start) for line, start in zip(lines, said, strict=True)] == [True] * len(said)
    assert found.is_poor == bool(said)
    assert [line.replace("new texts", "texts") for line in coverage_sentences(found, "new texts")] == lines
