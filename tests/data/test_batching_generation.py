"""Batches of generation: labels where there is loss and nowhere else, whole texts with an end, cut ones without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.data.batching import NO_LOSS, encode_generation, plan_batches
from handful.data.files import read_folder
from handful.data.split import Split
from handful.data.task import Example, TestRows
from handful.errors import ConfigError, DataError, ModelError

RECORDS = (
    Example("a | b | c", references=("Ab is c.", "C it is.")),
    Example("a longer source | of | words", references=("Short.",)),
)
FAMILIES = {"t5": True, "bart": True, "llama": False, "gpt2": False}


def encoded(family: str, records=RECORDS, max_length: int = 64, **options):
    return encode_generation(records, tiny_tokenizer(family), max_length, encoder_decoder=FAMILIES[family], **options)


def text(family: str, ids) -> str:
    return tiny_tokenizer(family).decode([i for i in ids if i != NO_LOSS], skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_a_reference_to_train_on_and_one_a_record_to_write(family):
    rows = encoded(family, target_length=40)
    assert rows.target_ids is not None
    assert [text(family, ids) for ids in rows.target_ids] == ["Ab is c.", "C it is.", "Short."]
    end = tiny_tokenizer(family).eos_token_id
    assert all(ids[-1] == end for ids in rows.target_ids)
    to_write = encoded(family)
    assert len(to_write) == 2
    assert to_write.target_ids is None
    assert (rows.truncated, rows.truncated_targets, to_write.truncated) == (0, 0, 0)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_batches(family):
    batch = encoded(family, target_length=40, prefix="say: ").batch([0, 2])
    assert batch.labels is not None
    assert text(family, batch.inputs["input_ids"][0]) == "say: a | b | c"
    assert batch.labels.shape[1] < batch.inputs["input_ids"].shape[1]
    assert (batch.labels == NO_LOSS).sum(1).tolist() == [0, 2]


def test_decoder_batches_have_loss_on_the_reference_alone():
    batch = encoded("llama", target_length=40).batch([0, 2])
    ids, mask, labels = batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels
    assert labels is not None
    assert ids.shape == mask.shape == labels.shape
    learned = labels != NO_LOSS
    assert (labels[learned] == ids[learned]).all()
    assert not (learned & (mask == 0)).any()
    assert text("llama", ids[0][~learned[0] & mask[0].bool()]).startswith("a | b | c")
    assert [text("llama", row[on]) for row, on in zip(ids, learned, strict=True)] == ["Ab is c.", "Short."]
    assert mask[0, 0] == 1 and mask[0, -1] == 0


def test_rows_to_write_for_end_together():
    batch = encoded("llama").batch([0, 1])
    mask, ids = batch.inputs["attention_mask"], batch.inputs["input_ids"]
    assert batch.labels is None
    assert mask[:, -1].all() and mask[0, 0] == 0
    assert (ids[0][mask[0] == 0] == tiny_tokenizer("llama").pad_token_id).all()
    training = encoded("llama", target_length=40)
    for row, source in ((0, 0), (2, 1)):  # what is written for begins as what was trained on
        start = encoded("llama").input_ids[source]
        assert training.input_ids[row][: len(start)] == start
    right = encoded("t5").batch([0, 1]).inputs["attention_mask"]
    assert right[:, 0].all() and right[0, -1] == 0


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_padding_changes_nothing(family):
    model = tiny_model(family, head="lm")
    rows = encoded(family, target_length=40)
    together = rows.batch([0, 2])
    assert together.labels is not None
    with torch.no_grad():
        logits = model(**together.inputs).logits
        for place, index in enumerate((0, 2)):
            alone = rows.batch([index])
            assert alone.labels is not None
            expected = model(**alone.inputs).logits[0]
            torch.testing.assert_close(logits[place, : len(expected)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_cut_and_counted(family):
    long = (Example("s" * 100, references=("t" * 100, "short")), Example("s", references=("t" * 9,)))
    rows = encoded(family, long, max_length=20, target_length=10)
    assert rows.target_ids is not None
    assert (rows.truncated, rows.truncated_targets) == (1, 1 + FAMILIES[family])  # the start mark counts
    end = tiny_tokenizer(family).eos_token_id
    targets = [[i for i in ids if i != NO_LOSS] for ids in rows.target_ids]
    assert len(targets[0]) == 10 and targets[0][-1] != end and targets[1][-1] == end
    source = encoded(family, long, max_length=20).input_ids[0]
    whole = encoded(family, long, max_length=200).input_ids[0]
    assert len(source) == 20 and source[-1] == whole[-1] and source[:19] == whole[:19]


@given(st.lists(st.text("abc |", min_size=1).filter(str.strip), min_size=1, max_size=6), st.integers(6, 30))
def test_every_batch_is_a_cut_of_the_rows(sources, max_length):
    records = [Example(source, references=(source[::-1],)) for source in sources]
    for family in ("t5", "llama"):
        rows = encoded(family, records, max_length, target_length=8)
        assert rows.target_ids is not None
        for indices in plan_batches(rows.lengths, 4):
            batch = rows.batch(indices)
            assert batch.labels is not None
            for place, index in enumerate(indices):
                assert batch.inputs["input_ids"][place][: rows.lengths[index]].tolist() == rows.input_ids[index]
                assert batch.labels[place][batch.labels[place] != NO_LOSS].tolist() == [
                    i for i in rows.target_ids[index] if i != NO_LOSS
                ]


def test_what_cannot_be_encoded():
    tokenizer = tiny_tokenizer("llama")
    with pytest.raises(DataError, match="found TestRows"):
        encode_generation(TestRows(RECORDS), tokenizer, 32, encoder_decoder=False)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected a reference to train on"):
        encoded("llama", (Example("a"),), target_length=8)
    with pytest.raises(ConfigError, match="leaves no room"):
        encoded("llama", max_length=2)
    with pytest.raises(ConfigError, match="target_length: expected at least 1"):
        encoded("llama", target_length=0)
    for missing, message in (("pad_token", "no padding token"), ("eos_token", "no end token")):
        without = tiny_tokenizer("llama")
        setattr(without, missing, None)
        with pytest.raises(ModelError, match=message):
            encode_generation(RECORDS, without, 32, encoder_decoder=False)


def test_real_records(shared_data):
    split = Split(read_folder(shared_data / "nlg" / "e2e"), 10, 0, references="one")
    rows = encoded("t5", split.train, max_length=256, target_length=256)
    assert len(rows) == len(split.train)
    assert rows.truncated_targets == 0
