"""Intervals of the metrics of label sets hold the score, are the same for the same generator, and cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from handful.errors import ConfigError
from handful.evaluation.estimate import wilson
from handful.evaluation.label_set_intervals import estimate_label_sets
from handful.evaluation.label_set_metrics import LABEL_SET_METRICS, score_label_sets


def draw(rows, generator, *, labels=5, sure=1.0):
    """Predictions by needs, and targets; the probabilities are right where `sure` is 1."""
    logits = generator.normal(-1, 2, size=(rows, labels))
    targets = (generator.random(logits.shape) < expit(logits)).astype(int)
    probabilities = expit(sure * logits)
    return {"sets": (probabilities > 0.4).astype(int), "set_probabilities": probabilities}, targets


def estimate(metric, predictions, targets, seed=0, **options):
    own = predictions[LABEL_SET_METRICS[metric].needs] if isinstance(predictions, dict) else predictions
    options = {"resamples": 200, **options}
    return estimate_label_sets(metric, own, targets, generator=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("metric", LABEL_SET_METRICS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), rows=st.integers(2, 40), level=st.sampled_from([0.5, 0.95]))
def test_an_interval_holds_its_score_and_stays_in_range(metric, seed, rows, level):
    predictions, targets = draw(rows, np.random.default_rng(seed))
    found = estimate(metric, predictions, targets, level=level)
    assert found.mean == pytest.approx(
        score_label_sets(metric, predictions[LABEL_SET_METRICS[metric].needs], targets), abs=1e-12
    )
    assert found.n == rows
    if found.low is not None:
        least, most = LABEL_SET_METRICS[metric].range
        assert least <= found.low <= found.mean <= found.high <= most
    assert estimate(metric, predictions, targets, level=level) == found


@pytest.mark.parametrize("metric", LABEL_SET_METRICS)
def test_intervals_narrow_with_rows_and_widen_with_the_level(metric):
    few, many = draw(40, np.random.default_rng(1)), draw(1000, np.random.default_rng(1))
    wide, narrow = estimate(metric, *few), estimate(metric, *many)
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)
    half = estimate(metric, *few, level=0.5)
    assert half.high - half.low < wide.high - wide.low


@pytest.mark.parametrize("metric", [name for name in LABEL_SET_METRICS if name != "subset_accuracy"])
def test_intervals_cover_the_metric_of_endless_rows(metric):
    # of 60 intervals of 95 % fewer than 50 cover once in 5,000 times
    for rows in (30, 100):
        truth = estimate(metric, *draw(50_000, np.random.default_rng(9)), resamples=2).mean
        ends = [estimate(metric, *draw(rows, np.random.default_rng(seed))) for seed in range(60)]
        assert sum(one.low <= truth <= one.high for one in ends) >= 50, rows


def test_an_overconfident_model_is_found_out():
    assert estimate("ece", *draw(300, np.random.default_rng(0), sure=1.0)).low == 0
    assert estimate("ece", *draw(300, np.random.default_rng(0), sure=4.0)).low > 0.02


def test_subset_accuracy_is_a_share():
    predictions, targets = draw(50, np.random.default_rng(2))
    right = int((predictions["sets"] == targets).all(1).sum())
    assert estimate("subset_accuracy", predictions, targets) == wilson(right, 50)
    assert estimate("subset_accuracy", [[1, 0]], [[1, 0]]).low is not None


def test_a_perfect_score_of_few_rows_proves_little():
    targets = np.eye(3, dtype=int)[np.arange(30) % 3]
    for metric in ("micro_f1", "macro_f1", "samples_f1"):
        found = estimate(metric, targets, targets)
        assert 0.8 < found.low < 0.98 and found.high == 1


def test_labels_in_no_row_count_at_the_lower_end_of_macro_f1():
    predictions, targets = draw(40, np.random.default_rng(3))
    absent = np.zeros((40, 5), int)
    own, wider = predictions["sets"], np.hstack([predictions["sets"], absent])
    alone, beside = estimate("macro_f1", own, targets), estimate("macro_f1", wider, np.hstack([targets, absent]))
    assert beside.mean == alone.mean
    assert beside.low < 0.6 * alone.low


def test_where_nothing_can_be_told_there_is_no_interval():
    one = estimate("micro_f1", [[1, 0]], [[1, 0]])
    assert (one.low, one.high, one.method) == (None, None, "one row")
    same = estimate("samples_f1", np.ones((5, 2), int), np.ones((5, 2), int))
    assert (same.mean, same.low, same.method) == (1.0, None, "every row scores alike: resampling cannot tell")
    with pytest.raises(ConfigError, match="level between 0 and 1, found 95"):
        estimate("micro_f1", np.eye(2, dtype=int), np.eye(2, dtype=int), level=95)
