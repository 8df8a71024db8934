"""What counts as better: directions, ties, patience, draws that cannot be scored, and continuing from a checkpoint."""

from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch

from handful.data.batching import EncodedRows
from handful.evaluation.predict import Predictions
from handful.training.config import TrainingConfig
from handful.training.selection import DevScore, Selector, combine, rows_by_task


def selector(metric="accuracy", kind="classification", **settings):
    return Selector(TrainingConfig(**settings), kind, metric, 0)


def chosen(scores, **settings):
    judge = selector(**settings)
    return [judge.improves(score) for score in scores]


def test_higher_accuracy_and_lower_loss_are_better():
    assert chosen([0.5, 0.6, 0.55, 0.7]) == [True, True, False, True]
    assert chosen([0.5, 0.6, 0.4], metric="nll") == [True, False, True]
    assert chosen([0.5, 0.6, 0.4], selection_metric="nll") == [True, False, True]


def test_of_equally_good_evaluations_the_tie_rule_decides():
    assert chosen([0.5, 0.7, 0.7, 0.7]) == [True, True, False, False]
    assert chosen([0.5, 0.7, 0.7, 0.6], tie="latest") == [True, True, True, False]


def test_what_cannot_be_scored_is_never_chosen_and_does_not_block_what_can():
    assert chosen([nan, 0.2, nan, 0.3]) == [False, True, False, True]


@pytest.mark.parametrize("tie", ["earliest", "latest"])
def test_patience_counts_evaluations_without_a_gain_and_a_tie_is_none(tie):
    judge = selector(patience=2, tie=tie)
    exhausted = []
    for score in [0.5, 0.4, 0.6, 0.6, 0.5]:
        judge.improves(score)
        exhausted.append(judge.exhausted)
    assert exhausted == [False, False, False, False, True]
    forever = selector()
    for score in [0.5] * 50:
        forever.improves(score)
    assert not forever.exhausted


def test_selecting_by_loss_means_nll_or_for_numbers_the_squared_error():
    assert selector(selection_metric="nll").metric == "nll"
    assert selector("spearman", "regression", selection_metric="nll").metric == "mse"
    assert selector("spearman", "regression").metric == "spearman"


def test_a_restored_selector_goes_on_where_the_other_stood():
    first, second = selector(patience=2), selector(patience=2)
    for score in [0.5, 0.7, 0.6]:
        first.improves(score)
    second.restore(first.state())
    assert second.state() == first.state()
    assert not second.improves(0.7) and second.exhausted
    assert not selector(patience=2).exhausted


def test_regression_is_pooled_over_draws_or_averaged_and_for_mse_they_agree():
    targets = np.array([1.0, 2.0, 3.0])
    passes = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 1.0]])
    predictions = Predictions(passes[..., None], "regression")
    for validation in ("pooled", "averaged"):
        assert combine(predictions, targets, "mse", validation) == DevScore(pytest.approx(9 / 6), pytest.approx(7 / 6))
    averaged = combine(predictions, targets, "spearman", "averaged")
    assert averaged == DevScore(pytest.approx(0, abs=1e-12), pytest.approx(1))  # ranks agree once, and once not at all
    pooled = combine(predictions, targets, "pearson", "pooled").score
    both = np.corrcoef(passes.ravel(), np.tile(targets, 2))[0, 1]
    assert pooled == pytest.approx(both)
    assert pooled != pytest.approx(combine(predictions, targets, "pearson", "averaged").score, abs=1e-3)


def test_one_point_is_scored_as_it_is():
    predictions = Predictions(np.array([[[0.0, 1.0], [1.0, 0.0]]]), "classification")
    for validation in ("deterministic", "pooled", "averaged"):
        assert combine(predictions, np.array([1, 1]), "accuracy", validation) == DevScore(0.5, 0.0)


@pytest.mark.parametrize("validation", ["deterministic", "pooled", "averaged"])
def test_every_task_counts_alike(validation):
    scores = np.zeros((2, 5, 2))
    scores[:, :, 1] = [
        [1, 1, 1, 1, -1],
        [1, 1, 1, -1, -1],
    ]  # the targets are 1: of the last task one is wrong, then two
    predictions, targets = Predictions(scores, "classification"), np.ones(5, dtype=int)
    rows = EncodedRows([[1]] * 5, None, torch.from_numpy(targets), 0, 0, tasks=("a", "a", "a", "b", "b"))
    groups = rows_by_task(rows)
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3, 4]]
    found = combine(predictions, targets, "accuracy", validation, groups)
    assert found == DevScore(pytest.approx((0.75 + 0.5) / 2), pytest.approx(0.125))
    (alone,) = rows_by_task(replace(rows, tasks=None))
    assert combine(predictions, targets, "accuracy", validation, [alone]).score == pytest.approx(0.7)
