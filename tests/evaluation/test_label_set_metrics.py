"""Metrics of label sets against scikit-learn, and where sets are empty, labels do not occur or scores are equal."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from handful.errors import ConfigError, DataError
from handful.evaluation.label_set_metrics import (
    LABEL_SET_METRICS,
    get_label_set_metric,
    label_ece,
    label_f1,
    label_nll,
    ranking_precision,
    score_label_sets,
)
from handful.evaluation.metrics import METRICS, expected_calibration_error


@st.composite
def sets(draw):
    """Predicted and target sets (N, C), many of them empty, and probabilities (N, C) with ties."""
    rows, labels = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = (random.random((rows, labels)) < draw(st.sampled_from([0.05, 0.4, 0.9]))).astype(int)
    probabilities = random.integers(0, 5, (rows, labels)) / 4
    return (probabilities > draw(st.sampled_from([0.3, 0.6, 1.0]))).astype(int), targets, probabilities


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


@given(sets())
def test_scores_equal_scikit_learn(rows):
    predictions, targets, probabilities = rows
    micro = quietly(oracle.f1_score, targets, predictions, average="micro")
    assert score_label_sets("micro_f1", predictions, targets) == pytest.approx(micro, abs=1e-12)
    macro = quietly(oracle.f1_score, targets, predictions, average="macro", zero_division=np.nan)
    assert score_label_sets("macro_f1", predictions, targets) == pytest.approx(np.nan_to_num(macro), abs=1e-12)
    each = quietly(oracle.f1_score, targets, predictions, average=None, zero_division=np.nan)
    np.testing.assert_allclose(label_f1(predictions, targets), each, atol=1e-12)
    samples = quietly(oracle.f1_score, targets, predictions, average="samples", zero_division=1)
    assert score_label_sets("samples_f1", predictions, targets) == pytest.approx(samples, abs=1e-12)
    exact = oracle.accuracy_score(targets, predictions)
    assert score_label_sets("subset_accuracy", predictions, targets) == pytest.approx(exact, abs=1e-12)
    lrap = oracle.label_ranking_average_precision_score(targets, probabilities)
    assert score_label_sets("lrap", probabilities, targets) == pytest.approx(lrap, abs=1e-12)


@given(sets())
def test_losses_equal_those_of_each_label_alone(rows):
    _, targets, probabilities = rows
    losses = [oracle.log_loss(t, p, labels=[0, 1]) for t, p in zip(targets.T, probabilities.T, strict=True)]
    np.testing.assert_allclose(label_nll(probabilities, targets), losses, rtol=1e-9, atol=1e-15)
    assert score_label_sets("nll", probabilities, targets) == pytest.approx(np.mean(losses), rel=1e-9, abs=1e-15)
    assert score_label_sets("ece", probabilities, targets) == pytest.approx(label_ece(probabilities, targets).mean())


def test_calibration_error_of_one_label_by_hand():
    probabilities = np.array([[0.9], [0.92], [0.1], [0.3]])
    targets = np.array([[1], [0], [0], [1]])
    # 15 bins: 0.9 is in the 14th with its like up to 14/15; the others stand alone
    assert label_ece(probabilities, targets)[0] == pytest.approx((abs(1 - 0.9 + 0 - 0.92) + 0.1 + 0.7) / 4)
    sure = np.linspace(0.51, 1, 40)
    truth = (np.arange(40) % 3 > 0).astype(int)
    both = np.stack([1 - sure, sure], axis=1)
    assert label_ece(sure[:, None], truth[:, None])[0] == pytest.approx(expected_calibration_error(both, truth))


def test_empty_sets():
    none, some = np.zeros((3, 2), int), np.array([[0, 0], [1, 0], [0, 0]])
    assert score_label_sets("micro_f1", none, none) == 0.0
    assert score_label_sets("macro_f1", none, none) == 0.0
    assert np.isnan(label_f1(none, none)).all()
    assert score_label_sets("samples_f1", none, none) == 1.0
    assert score_label_sets("subset_accuracy", none, none) == 1.0
    assert score_label_sets("samples_f1", some, none) == pytest.approx(2 / 3)
    assert score_label_sets("samples_f1", none, some) == pytest.approx(2 / 3)
    assert score_label_sets("macro_f1", some, some) == 1.0  # of the one label that occurs
    assert score_label_sets("lrap", some / 2, none) == 1.0


def test_ties_count_against_the_ranking():
    targets = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]])
    scores = np.array([[0.5, 0.5, 0.5], [0.9, 0.5, 0.1], [0.5, 0.5, 0.1], [0.1, 0.1, 0.9]])
    assert ranking_precision(scores, targets).tolist() == pytest.approx([1 / 3, 1, 1 / 2, 1])


def test_probabilities_of_zero_cost_no_infinity():
    assert score_label_sets("nll", [[0.0, 1.0]], [[1, 1]]) == pytest.approx(36.04 / 2, abs=0.01)
    assert score_label_sets("nll", [[0.0, 1.0]], [[1, 0]]) == pytest.approx(LABEL_SET_METRICS["nll"].range[1])


def test_metrics_that_classes_have_too_agree_in_what_reports_read():
    for name in LABEL_SET_METRICS.keys() & METRICS.keys():
        own, other = LABEL_SET_METRICS[name], METRICS[name]
        assert (*own.range, own.higher_is_better) == pytest.approx((*other.range, other.higher_is_better)), name


@pytest.mark.parametrize(
    ("metric", "predictions", "targets", "message"),
    [
        ("micro_f1", [[0.2, 0.7]], [[0, 1]], r"predictions of 0 and 1, found \[0.2, 0.7\] in row 0.*apply_thresholds"),
        ("micro_f1", [0, 1], [[0, 1]], r"predictions as numbers \(N, C\), found int64 \(2,\)"),
        ("micro_f1", [[0, 1]], [[0, 2]], r"targets of 0 and 1, found \[0.0, 2.0\] in row 0"),
        ("micro_f1", [[0, 1]], [[0, 1], [1, 1]], "found 1 and 2 rows"),
        ("lrap", [[0.2, 0.7, 0.1]], [[0, 1]], "as many labels in both, found 3 and 2"),
        ("nll", [[0.2, 1.7]], [[0, 1]], r"probabilities from 0 to 1, found \[0.2, 1.7\] in row 0.*apply_sigmoid"),
        ("ece", [[0.2, float("nan")]], [[0, 1]], "finite predictions, found nan in row 0"),
        ("nll", np.zeros((0, 2)), np.zeros((0, 2)), "at least one row"),
    ],
)
def test_wrong_arrays(metric, predictions, targets, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        score_label_sets(metric, predictions, targets)


def test_unknown_metric():
    with pytest.raises(ConfigError, match=r"(?s)a metric of label sets, found 'micro-f1'.*'micro_f1'"):
        get_label_set_metric("micro-f1")
    assert get_label_set_metric(LABEL_SET_METRICS["lrap"]).name == "lrap"
