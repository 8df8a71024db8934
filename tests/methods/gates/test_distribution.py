"""Checks 2, 3 and 8 of docs/methods/fine-gates.md: the law of a gate, and what its penalty's target really delivers."""

import math

import pytest
import torch
from scipy.stats import kurtosis

from handful.methods.gates.distribution import (
    KURTOSIS_TEMPERATURE,
    deviation,
    kurtosis_weights,
    location,
    open_probability,
)

CLOSING_LOGIT = math.atanh(0.5)
"""Under "tanh" a gate is closed at m ≤ −0.5493 and wholly open at m ≥ 0.5493."""


@pytest.mark.parametrize("u", [-0.4, -0.2, 0.0, 0.2, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("std", [0.1, 0.5])
def test_the_open_probability_is_that_of_normal_noise(u, std):
    expected = 0.5 * math.erfc(-u / std / math.sqrt(2))
    assert float(open_probability(torch.tensor(u, dtype=torch.float64), std)) == pytest.approx(expected, abs=1e-6)


def test_the_penalty_sees_another_probability_than_the_noise_gives():
    u = torch.tensor([0.2, -0.2], dtype=torch.float64)
    assert open_probability(u, 0.5).tolist() == pytest.approx([0.655, 0.345], abs=1e-3)
    assert open_probability(u, 0.1).tolist() == pytest.approx([0.977, 0.023], abs=1e-3)


def test_points_of_the_formula():
    m = torch.tensor([1.0, 0.0, CLOSING_LOGIT, -CLOSING_LOGIT], dtype=torch.float64)
    u = location(m)
    assert float(open_probability(u, 0.5)[0]) == pytest.approx(0.99419, abs=1e-5)
    assert u.clamp(0, 1).tolist() == pytest.approx([1, 0.5, 1, 0], abs=1e-12)
    assert pytest.approx(0.549306, abs=1e-6) == CLOSING_LOGIT
    starts = 1 + 0.1 * torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(open_probability(location(starts), 0.5).mean()) == pytest.approx(0.9939, abs=1e-4)
    assert float((location(starts) < 1).double().mean()) < 2e-5


@pytest.mark.parametrize("beyond", [1e-9, 1e-6, 1e-3, 0.1, 0.5, 5.0])
def test_a_gate_is_closed_up_to_a_logit_and_wholly_open_from_its_opposite(beyond):
    m = torch.tensor([-CLOSING_LOGIT - beyond, CLOSING_LOGIT + beyond], dtype=torch.float64)
    assert location(m).clamp(0, 1).tolist() == [0, 1]
    inside = location(m.sign() * max(CLOSING_LOGIT - beyond, 0)).clamp(0, 1)
    assert ((inside > 0) & (inside < 1)).all()


def test_squashes():
    m = torch.tensor([0.3])
    assert location(m, "none") == 0.3 and location(m, "shift") == 0.8
    assert float(location(m, "tanh")) == pytest.approx(0.5 + math.tanh(0.3))


def test_a_clipped_gate_gets_no_gradient_from_the_task_but_from_the_penalty():
    m = torch.tensor([-2.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    (task,) = torch.autograd.grad(location(m).clamp(0, 1).sum(), m, retain_graph=True)
    assert task[:2].tolist() == [0, 0] and task[2] > 0
    (penalty,) = torch.autograd.grad(open_probability(location(m), 0.5).sum(), m)
    assert (penalty > 0).all()


def test_gates_that_are_open_or_closed_meet_the_target_of_04_at_0475_closed():
    """Sheet 2: the biased target is reproduced, (0.9987 − 0.6) / 0.84 of a side."""
    side = 100_000
    closed = round(0.475 * side)
    m = torch.full((side,), 20.0, dtype=torch.float64)
    m[:closed] = -20.0
    p = open_probability(location(m), 0.5)
    axes, sizes = torch.zeros(side, dtype=torch.long), torch.tensor([float(side)], dtype=torch.float64)
    assert float(deviation(p, axes, sizes, 0.6)) < 1e-3
    assert float(deviation(p, axes, sizes, 1 - 0.475)) > 0.05


def test_the_deviation_is_of_each_side_apart():
    p = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.5])
    found = deviation(p, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2.0, 3.0]), 0.6)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.1]))


def test_a_weighted_deviation_is_of_the_weighted_mean_of_each_side():
    p, weights = torch.tensor([1.0, 0.0, 0.5, 0.7]), torch.tensor([0.25, 0.75, 0.0, 1.0])
    found = deviation(p, torch.tensor([0, 0, 1, 1]), torch.tensor([2.0, 2.0]), 0.6, weights)
    torch.testing.assert_close(found, torch.tensor([0.35, 0.1]))


def test_kurtosis_weights_are_those_of_the_open_part_of_the_scaled_matrix():
    """Sheet 2, kurtosis variant, against scipy's Pearson kurtosis."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64) ** 3
    mean_input = torch.randn(12, generator=generator, dtype=torch.float64)
    open_rows, open_columns = torch.ones(7, dtype=torch.bool), torch.ones(12, dtype=torch.bool)
    open_rows[[1, 4]] = open_columns[[0, 5, 11]] = False
    rows, columns = kurtosis_weights(weight, mean_input, open_rows, open_columns)
    assert rows[[1, 4]].tolist() == [0, 0] and columns[[0, 5, 11]].tolist() == [0, 0, 0]
    assert float(rows.sum()) == pytest.approx(1) and float(columns.sum()) == pytest.approx(1)
    inner = (weight * mean_input)[open_rows][:, open_columns].numpy()
    for found, axis in ((rows[open_rows], 1), (columns[open_columns], 0)):
        expected = torch.from_numpy(-(kurtosis(inner, axis, fisher=False) ** 0.5) / KURTOSIS_TEMPERATURE).softmax(0)
        torch.testing.assert_close(found, expected)
        assert found.argmin() == kurtosis(inner, axis).argmax()  # the row with the greatest outlier is pressed least


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_rows_without_any_spread_have_the_least_kurtosis(value):
    everything = torch.ones(3, dtype=torch.bool)
    for found in kurtosis_weights(torch.full((3, 3), value), torch.ones(3), everything, everything):
        torch.testing.assert_close(found, torch.full((3,), 1 / 3))
