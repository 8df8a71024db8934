"""Thresholds of labels: the best on the rows they are chosen on, by brute force, and said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.errors import ConfigError
from handful.evaluation.label_set_metrics import label_f1, score_label_sets
from handful.evaluation.thresholds import LEAST_POSITIVES, apply_thresholds, choose_thresholds


def rows_of(seed, rows=40, labels=3, share=0.3, steps=20):
    random = np.random.default_rng(seed)
    targets = (random.random((rows, labels)) < share).astype(int)
    noisy = 1 / (1 + np.exp(-(2 * targets - 2 + random.normal(size=targets.shape))))
    return np.round(noisy * steps) / steps, targets


@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.8]), st.sampled_from([3, 20]))
def test_no_threshold_scores_more(seed, share, steps):
    probabilities, targets = rows_of(seed, share=share, steps=steps)
    names = ["a", "b", "c"]
    shared = choose_thresholds(probabilities, targets, names, "shared").values
    own = choose_thresholds(probabilities, targets, names, "per-label").values
    found = score_label_sets("micro_f1", apply_thresholds(probabilities, shared), targets)
    each = label_f1(apply_thresholds(probabilities, own), targets)
    assert len({*shared}) == 1
    for grid in np.linspace(0.01, 0.99, 50):
        cut = apply_thresholds(probabilities, float(grid))
        if targets.any():
            assert score_label_sets("micro_f1", cut, targets) <= found + 1e-12
        for label, count in enumerate(targets.sum(0)):
            if LEAST_POSITIVES <= count < len(targets):
                assert label_f1(cut, targets)[label] <= each[label] + 1e-12
            else:
                assert own[label] == shared[label]


def test_reasons_say_what_was_chosen_and_what_it_is_worth():
    probabilities = np.array([[0.4, 0.1]] * 12 + [[0.2, 0.1]] * 20 + [[0.1, 0.3]])
    targets = np.array([[1, 0]] * 12 + [[0, 0]] * 20 + [[0, 1]])
    found = choose_thresholds(probabilities, targets, ["a", "b"], "per-label")
    assert found.values == pytest.approx((0.3, 0.25))
    assert found.reasons == (
        "shared threshold 0.250: micro-F1 1.000 on 33 out-of-fold rows, 0.000 with 0.5",
        "'a': threshold 0.300, F1 1.000 on 12 rows with it, 0.000 with 0.5",
        "the shared threshold for 1 labels in fewer than 10 rows or in all",
    )
    assert choose_thresholds(probabilities, targets, ["a", "b"], "half").values == (0.5, 0.5)
    empty = choose_thresholds(probabilities, np.zeros_like(targets), ["a", "b"])
    assert empty.values == (0.5, 0.5)
    assert empty.reasons == ("threshold 0.5: none of the 33 rows has a label",)


def test_the_threshold_nearest_to_a_half_is_taken_of_equal_ones():
    # the first two of these rows with labels or all four of them: F1 is the same
    probabilities, targets = np.array([[0.9], [0.6], [0.4], [0.3]]), np.array([[1], [0], [0], [1]])
    assert choose_thresholds(probabilities, targets, ["a"]).values == pytest.approx((0.75,))
    tied = np.array([[0.95], [0.05]])
    assert choose_thresholds(tied, np.array([[1], [0]]), ["a"]).values == pytest.approx((0.5,))


def test_sets_are_what_is_above_the_threshold():
    probabilities = [[0.5, 0.51], [0.2, 0.1]]
    assert apply_thresholds(probabilities, 0.5).tolist() == [[0, 1], [0, 0]]
    assert apply_thresholds(probabilities, [0.1, 0.2]).tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, 1.5, float("nan"), [0.5, 2.0]])
def test_thresholds_out_of_range(wrong):
    with pytest.raises(ConfigError, match="expected thresholds between 0 and 1, found"):
        apply_thresholds([[0.5, 0.5]], wrong)


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="one threshold, or one for each of 2 labels, found 3"):
        apply_thresholds([[0.5, 0.5]], [0.5, 0.5, 0.5])
    with pytest.raises(ConfigError, match=r"(?s)one of half, shared, per-label, found 'per_label'.*'per-label'"):
        choose_thresholds([[0.5, 0.5]], [[0, 1]], ["a", "b"], "per_label")  # type: ignore[arg-type]
