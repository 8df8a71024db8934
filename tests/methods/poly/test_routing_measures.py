"""Measures of routing against values worked out by hand, and where they have little to measure."""

from __future__ import annotations

import math

import pytest
import torch

from handful.methods.poly.routing_measures import discreteness, skill_weights, sparsity, task_similarity, usage

ON, OFF = 40.0, -40.0


def routing(*tasks: list[float]) -> torch.Tensor:
    """Logits (1, T, 1, S) of one router without splits, a list a task."""
    return torch.tensor(tasks, dtype=torch.float64)[None, :, None, :]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_weights_are_the_cells_shares():
    found = skill_weights(torch.tensor([logit(0.6), logit(0.3), logit(0.1)], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("level", [-1e4, -40.0, 0.0, 40.0, 1e4])
def test_weights_sum_to_one_however_far_the_logits_are(level):
    found = skill_weights(torch.tensor([[level, level], [level, level + 1]]))
    torch.testing.assert_close(found.sum(-1), torch.ones(2))
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5]))


def test_very_negative_logits_keep_their_ratio():
    found = skill_weights(torch.tensor([-60.0, -61.0], dtype=torch.float64))
    assert float(found[0] / found[1]) == pytest.approx(math.e)  # σ(z) → exp z


def test_discreteness_is_the_mean_entropy_of_cells_in_bits():
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))  # 0.811 bits
    assert discreteness(routing([0.0, logit(0.25)], [logit(0.75), ON])) == pytest.approx((1 + 2 * quarter + 0) / 4)
    assert discreteness(torch.zeros(3, 4, 2, 5)) == pytest.approx(1)
    assert discreteness(routing([ON, OFF], [1e4, -1e4])) == pytest.approx(0, abs=1e-12)


def test_sparsity_is_the_share_of_cells_that_are_on():
    assert sparsity(routing([1.0, -1.0, 0.0, 0.1], [-2.0, -2.0, -2.0, -2.0])) == 2 / 8
    assert sparsity(torch.zeros(1, 2, 1, 3)) == 0  # just ½ is not on


def test_usage_is_the_entropy_of_what_columns_sum_to():
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert usage(routing([ON, ON], [ON, OFF], [ON, OFF])) == pytest.approx(entropy / math.log(2))
    assert usage(routing([ON, OFF, OFF], [OFF, ON, OFF], [OFF, OFF, ON])) == pytest.approx(1)
    assert usage(routing([ON, OFF], [ON, OFF])) == pytest.approx(0, abs=1e-12)
    assert usage(routing([-1e4, -1e4], [-1e4, -1e4])) == pytest.approx(1)  # all cells are 0, in the same way


def test_usage_is_the_mean_over_routers_and_splits():
    one, none = routing([ON, OFF], [OFF, ON]), routing([ON, OFF], [ON, OFF])
    for axis in (0, 2):
        assert usage(torch.cat((one, none), axis)) == pytest.approx(0.5)


def similarity(logits):
    return task_similarity(skill_weights(logits.double()))


def test_similarity_of_three_tasks_of_which_two_are_alike():
    """Weights (1, 0), (1, 0), (0, 1); less their mean (⅔, ⅓): ±(⅓, −⅓) and (−⅔, ⅔)."""
    expected = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(similarity(routing([ON, OFF], [ON, OFF], [OFF, ON])), expected)


def test_tasks_that_share_nothing_are_all_equally_unlike():
    found = similarity(routing(*[[ON if s == t else OFF for s in range(5)] for t in range(5)]))
    off_diagonal = found[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, -1 / 4))


def test_similarity_is_of_all_routers_and_splits_together():
    """Tasks 0 and 1 agree in one of two routers; it is symmetric, follows the tasks' order and no split's."""
    alike = routing([ON, OFF], [ON, OFF], [OFF, ON])
    unlike = routing([ON, OFF], [OFF, ON], [OFF, ON])
    both = torch.cat((alike, unlike))  # (2, 3, 1, 2)
    found = similarity(both)
    # centred, in units of (1, −1)/3 in each router:
    vectors = torch.tensor([[1.0, 2], [1, -1], [-2, -1]], dtype=torch.float64)
    expected = vectors @ vectors.T / (vectors.norm(dim=1)[:, None] * vectors.norm(dim=1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(similarity(both.movedim(0, 2).movedim(1, 0).reshape(1, 3, 2, 2)), expected)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(similarity(both[:, order]), expected[order][:, order])


@pytest.mark.parametrize("logits", [torch.zeros(2, 1, 3, 4), torch.randn(2, 1, 3, 4), torch.randn(1, 1, 1, 1)])
def test_one_task_is_like_itself(logits):
    assert torch.equal(similarity(logits), torch.ones(1, 1, dtype=torch.float64))


def test_tasks_without_difference_have_none_to_compare():
    """Nor does rounding make one; with a single skill all tasks are the same."""
    same = torch.randn(3, 1, 2, 7).expand(3, 5, 2, 7)
    assert torch.equal(similarity(same), torch.eye(5, dtype=torch.float64))
    single = torch.randn(3, 5, 2, 1)
    assert torch.equal(similarity(single), torch.eye(5, dtype=torch.float64))
    assert usage(single) == 1
    assert torch.equal(skill_weights(single), torch.ones(3, 5, 2, 1))
