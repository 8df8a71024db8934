"""Predictions: probabilities, disagreement, and rows that come back in the order they were given."""

import numpy as np
import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.backbone.trunk import trunk_cache
from handful.data.batching import encode
from handful.data.task import TestRows
from handful.errors import ConfigError, DataError
from handful.evaluation.evaluate import evaluate, metric_names
from handful.evaluation.predict import Predictions, predict_rows
from handful.methods.prefix_subspace import PrefixSubspace
from handful.testing import toy_task

TASK = toy_task()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attached(kind="classification", **settings):
    task = toy_task(kind)
    backbone = tiny_backbone("bert")
    adapter = PrefixSubspace(prefix_length=3, head_init="normal", **settings).attach(
        backbone, task, generator=generator()
    )
    return adapter.eval(), encode(task.pool, backbone.tokenizer, 64, kind=kind)


def test_probabilities_are_averaged_over_points_and_labels_follow_them():
    points = Predictions(np.log([[[0.9, 0.1]], [[0.3, 0.7]]]), "classification")
    np.testing.assert_allclose(points.probabilities, [[0.6, 0.4]])
    np.testing.assert_allclose(points.point_probabilities[:, 0, 0], [0.9, 0.3])
    assert points.labels.tolist() == [0]
    assert points.needed_by("accuracy").tolist() == [0]
    np.testing.assert_allclose(points.needed_by("nll"), [[0.6, 0.4]])


def test_disagreement_is_between_agreement_and_contradiction():
    certain = np.array([[[50.0, -50.0], [50.0, -50.0]], [[50.0, -50.0], [-50.0, 50.0]]])  # rows: agree, contradict
    np.testing.assert_allclose(Predictions(certain, "classification").disagreement, [0, 0.5], atol=1e-12)
    assert not Predictions(certain[:1], "classification").disagreement.any()
    numbers = Predictions(np.array([[[1.0], [5.0]], [[3.0], [5.0]]]), "regression")
    assert numbers.values.tolist() == [2, 5] and numbers.disagreement.tolist() == [1, 0]


def test_rows_come_back_in_their_order_whatever_the_batches():
    adapter, rows = attached()
    expected = predict_rows(adapter, rows, TASK.kind).scores
    with torch.no_grad():
        for row in (0, 7, 23):
            np.testing.assert_allclose(adapter(rows.batch([row]))[0], expected[0, row], atol=1e-5)
    np.testing.assert_allclose(predict_rows(adapter, rows, TASK.kind, batch_size=5).scores, expected, atol=1e-5)


def test_predicting_leaves_the_adapter_as_it_was():
    adapter, rows = attached()
    expected = predict_rows(adapter, rows, TASK.kind).scores
    adapter.train()
    predict_rows(adapter, rows, TASK.kind, predictor="ensemble", draws=2, generator=generator())
    assert adapter.training
    adapter.eval()
    batch = rows.batch([3])
    np.testing.assert_allclose(adapter(batch)[0].detach(), expected[0, 3], atol=1e-5)  # at the midpoint again


def test_draws_depend_on_the_generator_alone():
    adapter, rows = attached()

    def draw(seed, **options):
        return predict_rows(adapter, rows, TASK.kind, predictor="ensemble", generator=generator(seed), **options).scores

    assert np.array_equal(draw(1, draws=3), draw(1, draws=3))
    assert not np.array_equal(draw(1, draws=3), draw(2, draws=3))
    assert len(np.unique(draw(1, draws=3)[:, 0, 0])) == 3


def test_an_adapter_without_a_simplex_has_one_point():
    adapter, rows = attached(num_vertices=1)
    midpoint = predict_rows(adapter, rows, TASK.kind).scores
    assert np.array_equal(predict_rows(adapter, rows, TASK.kind, predictor="ensemble").scores, midpoint)
    assert np.array_equal(predict_rows(adapter, rows, TASK.kind, predictor="vertex:0").scores, midpoint)
    with pytest.raises(ConfigError, match="expected a vertex from 0 to 0"):
        predict_rows(adapter, rows, TASK.kind, predictor="vertex:1")


def test_a_cached_trunk_predicts_the_same():
    adapter, rows = attached(layers=(2, 3))
    trunk = trunk_cache(adapter.backbone, rows, adapter.lowest_layer, adapter)
    assert trunk is not None
    for options in ({}, {"predictor": "ensemble", "draws": 2}):
        plain, cached = (
            predict_rows(adapter, rows, TASK.kind, generator=generator(), trunk=used, **options).scores
            for used in (None, trunk)
        )
        np.testing.assert_allclose(cached, plain, atol=1e-5)


def test_no_rows_are_refused():
    adapter, rows = attached()
    with pytest.raises(DataError, match="expected at least one row to predict, found none"):
        predict_rows(adapter, rows.__class__([], None, None, 0, 1), TASK.kind)


# ------------------------------------------------------------------------------------------------ evaluate


def test_test_rows_are_opened_here_and_scored_with_intervals():
    adapter, rows = attached()
    scores = evaluate(adapter, TestRows(TASK.pool), TASK, max_length=64, generator=generator())
    assert list(scores.estimates) == metric_names(TASK) == ["accuracy", "macro_f1", "nll", "brier", "ece"]
    predictions = predict_rows(adapter, rows, TASK.kind)
    targets = np.array([row.label for row in TASK.pool])
    accuracy = scores.estimates["accuracy"]
    assert accuracy.mean == pytest.approx((predictions.labels == targets).mean()) and accuracy.n == 24
    assert accuracy.low < accuracy.mean < accuracy.high
    probabilities = predictions.probabilities[np.arange(24), targets]
    assert scores.estimates["nll"].mean == pytest.approx(-np.log(probabilities).mean())
    assert scores.sources[3] == "toy:4" and scores.targets.tolist() == targets.tolist() and scores.truncated == 0
    again = evaluate(adapter, TestRows(TASK.pool), TASK, max_length=64, generator=generator())
    assert again.estimates == scores.estimates
    few = evaluate(adapter, TASK.pool[:5], TASK, max_length=6, generator=generator())
    assert few.estimates["accuracy"].n == 5 and few.truncated == 4


def test_numbers_are_scored_in_their_own_units():
    adapter, rows = attached("regression")
    adapter.warm_start(rows, generator())
    task = toy_task("regression")
    scores = evaluate(adapter, task.pool, task, max_length=64, generator=generator())
    assert list(scores.estimates) == ["mse", "spearman", "pearson", "mae"]
    values = predict_rows(adapter, rows, task.kind).values
    assert scores.estimates["mae"].mean == pytest.approx(np.abs(values - scores.targets).mean())
    assert 900 < values.mean() < 1100


def test_unlabelled_rows_cannot_be_scored():
    adapter, _ = attached()
    unlabelled = [row.__class__(row.text) for row in TASK.pool]
    with pytest.raises(DataError, match="expected labelled rows to evaluate, found none with a label"):
        evaluate(adapter, unlabelled, TASK, max_length=64, generator=generator())
