"""Texts of any number: the same predictions in chunks, one chunk in memory, nothing for texts without tokens."""

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Replace

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.data.task import Example
from handful.evaluation import texts
from handful.evaluation.predict import predict_rows
from handful.evaluation.texts import predict_texts
from handful.methods.prefix_subspace import PrefixSubspace
from handful.testing import toy_task

TASK = toy_task()


@pytest.fixture
def adapter():
    method = PrefixSubspace(prefix_length=3, head_init="normal")
    return method.attach(tiny_backbone("bert"), TASK, generator=torch.Generator().manual_seed(0)).eval()


def predict(adapter, rows, predictor="midpoint", **options):
    options = {"max_length": 64, "draws": 3, "generator": lambda: torch.Generator().manual_seed(1)} | options
    return list(predict_texts(adapter, rows, TASK, predictor=predictor, **options))


@pytest.mark.parametrize("size", [1, 5, 1024])
def test_chunks_give_what_all_rows_at_once_give(adapter, monkeypatch, size):
    monkeypatch.setattr(texts, "CHUNK", size)
    expected = predict_rows(adapter, encode(TASK.pool, adapter.backbone.tokenizer, 64, kind=TASK.kind), TASK.kind)
    parts = predict(adapter, TASK.pool)
    assert [len(part.rows) for part in parts] == [min(size, 24 - start) for start in range(0, 24, size)]
    found = np.concatenate([part.predictions.scores for part in parts], axis=1)
    np.testing.assert_allclose(found, expected.scores, atol=1e-5)


def test_rows_are_read_only_as_far_as_they_are_needed(adapter, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", 4)
    read = []

    def rows():
        for row in TASK.pool:
            read.append(row)
            yield row

    stream = predict_texts(
        adapter, rows(), TASK, max_length=64, predictor="midpoint", draws=1, generator=torch.Generator
    )
    next(stream)
    assert len(read) == 4


def without_invisible_letters(tokenizer):
    """The tokenizer, which drops zero-width spaces as that of BERT drops control characters."""
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")


def test_rows_without_tokens_have_no_prediction_and_change_no_other(adapter):
    without_invisible_letters(adapter.backbone.tokenizer)
    blank = [Example(""), Example("  \n"), Example("\u200b\u200b")]
    whole = predict(adapter, TASK.pool[:4])[0].predictions
    (part,) = predict(adapter, [*blank[:2], *TASK.pool[:4], blank[2]])
    assert part.predictions.blank.tolist() == [True, True, False, False, False, False, True]
    assert part.predictions.labels.tolist() == [-1, -1, *whole.labels.tolist(), -1]
    assert np.isnan(part.predictions.probabilities[part.predictions.blank]).all()
    np.testing.assert_allclose(part.predictions.probabilities[2:6], whole.probabilities, atol=1e-6)
    (only,) = predict(adapter, blank)
    assert only.predictions.blank.all() and only.predictions.scores.shape == (1, 3, TASK.num_outputs)
    (ensemble,) = predict(adapter, blank, "ensemble")
    assert ensemble.predictions.scores.shape == (3, 3, TASK.num_outputs)


def test_asking_for_the_disagreement_changes_no_prediction(adapter):
    for predictor in ("midpoint", "ensemble"):
        plain, more = (
            predict(adapter, TASK.pool, predictor)[0],
            predict(adapter, TASK.pool, predictor, disagreement=True)[0],
        )
        assert plain.disagreement is None and (more.disagreement > 0).all()
        np.testing.assert_array_equal(plain.predictions.scores, more.predictions.scores)
    ensemble = predict(adapter, TASK.pool, "ensemble")[0].predictions
    np.testing.assert_array_equal(more.disagreement, ensemble.disagreement)


def test_texts_that_are_cut_are_counted(adapter):
    long = sum(len(adapter.backbone.tokenizer(row.text)["input_ids"]) > 6 for row in TASK.pool)
    assert 0 < long < 24
    assert sum(part.truncated for part in predict(adapter, TASK.pool, max_length=6)) == long
