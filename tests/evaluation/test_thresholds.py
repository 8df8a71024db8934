"""Thresholds of labels: the best on the rows they are chosen on, by brute force, and said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.errors import ConfigError
from handful.evaluation.label_set_metrics import label_f1, score_label_sets
from handful.evaluation.thresholds import apply_thresholds, best_threshold, choose_thresholds


def rows_of(seed, rows=40, labels=3, share=0.3, steps=20):
    random = np.random.default_rng(seed)
    targets = (random.random((rows, labels)) < share).astype(int)
    noisy = 1 / (1 + np.exp(-(2 * targets - 2 + random.normal(size=targets.shape))))
    return np.round(noisy * steps) / steps, targets


@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.8]), st.sampled_from([3, 20]))
def test_no_threshold_scores_more(seed, share, steps):
    probabilities, targets = rows_of(seed, share=share, steps=steps)
    if not targets.any():
        return
    (shared, *others) = choose_thresholds(probabilities, targets, ["a", "b", "c"]).values
    assert others == [shared, shared]
    found = score_label_sets("micro_f1", apply_thresholds(probabilities, shared), targets)
    for value in np.linspace(0.01, 0.99, 50):
        assert score_label_sets("micro_f1", apply_thresholds(probabilities, value), targets) <= found + 1e-12
    for scores, truth in zip(probabilities.T, targets.T, strict=True):
        if truth.any():
            threshold, best, plain = best_threshold(scores, truth)
            assert label_f1((scores > threshold)[:, None], truth[:, None]) == pytest.approx(best)
            assert label_f1((scores > 0.5)[:, None], truth[:, None]) == pytest.approx(plain)
            assert best >= max(label_f1((scores > t)[:, None], truth[:, None])[0] for t in np.linspace(0.01, 0.99, 50))


def test_reasons_say_what_was_chosen_and_what_it_is_worth():
    probabilities = np.array([[0.4, 0.1, 0.1]] * 20 + [[0.2, 0.1, 0.1]] * 20 + [[0.1, 0.3, 0.1]])
    targets = np.array([[1, 0, 0]] * 20 + [[0, 0, 0]] * 20 + [[0, 1, 0]])
    found = choose_thresholds(probabilities, targets, ["a", "b", "c"], "per-label")
    assert found.values == pytest.approx((0.275, (0.2 + 20 * 0.25) / 21, 0.25))
    end = "is best, F1 1.000 (0.000 with 0.5), drawn towards the shared one"
    assert found.reasons == (
        "shared threshold 0.250: micro-F1 1.000 on 41 rows, 0.000 with 0.5",
        f"'a': threshold 0.275; on 20 rows with it 0.300 {end}",
        f"'b': threshold 0.248; on 1 rows with it 0.200 {end}",
        "'c': the shared threshold, as no row has the label",
    )
    assert choose_thresholds(probabilities, targets, ["a", "b", "c"], "half").values == (0.5, 0.5, 0.5)
    empty = choose_thresholds(probabilities, np.zeros_like(targets), ["a", "b", "c"])
    assert empty.values == (0.5, 0.5, 0.5)
    assert empty.reasons == ("threshold 0.5: none of the 41 rows has a label",)


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
