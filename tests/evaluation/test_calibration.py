"""Temperature scaling finds the temperature there is, stays finite where there is none, and keeps the classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax

from handful.errors import ConfigError, DataError
from handful.evaluation.calibration import (
    apply_sigmoid_temperature,
    apply_temperature,
    fit_sigmoid_temperature,
    fit_temperature,
    reliability,
)
from handful.evaluation.estimate import wilson
from handful.evaluation.metrics import expected_calibration_error, score


def draw_rows(rows, num_labels, temperature, seed):
    """Logits (N, C) that are too large by the temperature, and labels (N,) drawn from the true probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(rows, num_labels))
    labels = (generator.random(rows)[:, None] > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return logits * temperature, labels.clip(0, num_labels - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("num_labels", [2, 5])
def test_it_finds_the_temperature_of_many_rows(temperature, num_labels):
    fitted = fit_temperature(*draw_rows(5000, num_labels, temperature, seed=0))
    assert fitted == pytest.approx(temperature, rel=0.1)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(2, 4), st.floats(0.01, 100))
def test_no_temperature_on_a_fine_grid_does_better(seed, rows, num_labels, scale):
    logits, labels = draw_rows(rows, num_labels, scale, seed)

    def loss(temperature):
        likelihood = log_softmax(logits / temperature, axis=1)[np.arange(rows), labels].mean()
        return np.log(temperature) ** 2 / (2 * rows) - likelihood

    fitted = fit_temperature(logits, labels)
    assert 0.05 <= fitted <= 20
    assert loss(fitted) <= min(loss(t) for t in np.geomspace(0.05, 20, 500)) + 1e-6


@pytest.mark.parametrize("rows", [1, 20])
def test_rows_that_are_all_right_or_all_wrong_give_a_moderate_temperature(rows):
    labels = np.arange(rows) % 2
    logits = 3.0 * np.eye(2)[labels]
    assert 0.3 < fit_temperature(logits, labels) < 1  # the likelihood alone would go to 0.05
    assert 1 < fit_temperature(logits, 1 - labels) < 20


def test_logits_that_say_nothing_leave_the_temperature_at_1():
    assert fit_temperature(np.zeros((20, 3)), np.zeros(20, int)) == pytest.approx(1.0, abs=1e-4)
    assert fit_temperature(np.ones((20, 1)), np.zeros(20, int)) == pytest.approx(1.0, abs=1e-4)


def test_huge_logits_stay_finite():
    assert fit_temperature([[1e6, 0.0], [0.0, 1e6]], [0, 0]) == pytest.approx(20, rel=1e-4)


def test_on_twenty_rows_it_hurts_little_where_nothing_is_to_be_gained():
    """The maximum-likelihood temperature loses 0.06 here, as simulated for the docstring."""
    excess = []
    held_out, answers = draw_rows(5000, 2, 1.0, seed=99)
    for seed in range(200):
        fitted = fit_temperature(*draw_rows(20, 2, 1.0, seed))
        both = [score("nll", apply_temperature(held_out, t), answers) for t in (fitted, 1.0)]
        excess.append(both[0] - both[1])
    assert np.mean(excess) < 0.03


@given(st.integers(0, 2**32), st.floats(0.05, 20))
def test_applying_it_keeps_the_predicted_classes(seed, temperature):
    logits, _ = draw_rows(20, 4, 1.0, seed)
    probabilities = apply_temperature(logits, temperature)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(probabilities, softmax(logits / temperature, axis=1))


@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans(), st.sampled_from([1, 4, 15]))
def test_the_table_adds_up_to_the_ece(seed, rows, adaptive, bins):
    logits, labels = draw_rows(rows, 3, 1.0, seed)
    probabilities = softmax(logits, axis=1)
    table = reliability(probabilities, labels, bins, adaptive=adaptive)
    filled = [row for row in table if row.count]
    assert len(table) == bins
    assert sum(row.count for row in table) == rows
    error = sum(row.count * abs(row.accuracy.mean - row.confidence) for row in filled) / rows
    assert error == pytest.approx(expected_calibration_error(probabilities, labels, bins=bins, adaptive=adaptive))
    for row in filled:
        assert row.low - 1e-12 <= row.confidence <= row.high + 1e-12


def test_a_table_by_hand():
    table = reliability([[0.9, 0.1], [0.8, 0.2], [0.25, 0.75]], [0, 1, 1], bins=4)  # an edge belongs below
    assert [(row.low, row.high, row.count) for row in table] == [
        (0, 0.25, 0),
        (0.25, 0.5, 0),
        (0.5, 0.75, 1),
        (0.75, 1, 2),
    ]
    assert table[0].confidence is None
    assert table[0].accuracy is None
    assert table[3].confidence == pytest.approx(0.85)
    assert table[3].accuracy == wilson(1, 2)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: fit_temperature(np.zeros((0, 2)), []), DataError, r"at least one row of logits, found shape \(0, 2\)"),
        (lambda: fit_temperature([[1.0, np.nan]], [0]), DataError, "expected finite logits, found nan in row 0"),
        (lambda: fit_temperature([[1.0, 2.0]], [2]), DataError, "labels to be class indices from 0 below 2, found 2"),
        (lambda: fit_temperature([[1.0, 2.0]], [0, 1]), DataError, "found 1 and 2 rows"),
        (lambda: apply_temperature([[1.0, 2.0]], 0.0), ConfigError, "temperature above 0, found 0.0"),
        (lambda: apply_temperature([[1.0, 2.0]], np.inf), ConfigError, "temperature above 0, found inf"),
        (lambda: reliability([[1.0, 2.0]], [0]), DataError, "expected probabilities that sum to 1"),
        (lambda: reliability([[0.5, 0.5]], [0], bins=0), ConfigError, "at least 1 bin, found 0"),
    ],
)
def test_wrong_input_is_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


# ------------------------------------------------------------------------------------------------- of several labels


def draw_sets(rows, num_labels, temperature, seed):
    """Logits (N, C) that are too large by the temperature, and targets (N, C) drawn from the true probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.0, 2.0, size=(rows, num_labels))
    return logits * temperature, (generator.random(logits.shape) < expit(logits)).astype(int)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_it_finds_the_temperature_of_label_sets(temperature):
    logits, targets = draw_sets(2000, 4, temperature, seed=0)
    fitted = fit_sigmoid_temperature(logits, targets)
    assert fitted == pytest.approx(temperature, rel=0.1)
    np.testing.assert_allclose(apply_sigmoid_temperature(logits, fitted), expit(logits / fitted))


def test_one_label_is_two_classes():
    logits, targets = draw_sets(50, 1, 2.5, seed=1)
    classes = np.hstack([np.zeros_like(logits), logits])
    assert fit_sigmoid_temperature(logits, targets) == pytest.approx(fit_temperature(classes, targets[:, 0]), rel=1e-4)
    np.testing.assert_allclose(apply_sigmoid_temperature(logits, 2.0)[:, 0], apply_temperature(classes, 2.0)[:, 1])


def test_few_label_sets_give_a_moderate_temperature():
    targets = np.eye(3, dtype=int)
    assert 0.2 < fit_sigmoid_temperature(6.0 * targets - 3, targets) < 1
    assert fit_sigmoid_temperature(np.zeros((5, 3)), np.zeros((5, 3), int)) == pytest.approx(1.0, abs=1e-4)
    assert fit_sigmoid_temperature([[1e6, -1e6]], [[0, 1]]) == pytest.approx(20, rel=1e-4)


def test_wrong_label_sets():
    with pytest.raises(DataError, match="targets of 0 and 1"):
        fit_sigmoid_temperature([[0.0, 1.0]], [[0, 2]])
    with pytest.raises(ConfigError, match="temperature above 0, found -1"):
        apply_sigmoid_temperature([[0.0]], -1)
