"""What every objective answers, for all kinds of task."""

import numpy as np
import pytest
import torch

from handful.errors import ConfigError
from handful.evaluation.metrics import check_metric, get_metric
from handful.objectives import KINDS, objective_of
from handful.objectives.base import Objective

OF_ROWS = [kind for kind in KINDS if not objective_of(kind).generates]
LABELS = {
    "classification": [0, 1, 2, 1, 0, 2],
    "pair-classification": [0, 1, 2, 1, 0, 2],
    "regression": [4.0, 1, 3, 9, 2, 7],
}
LABELS["multilabel"] = [(1, 0, 1), (0, 0, 0), (0, 1, 1), (1, 1, 1), (0, 1, 0), (0, 1, 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_one_frozen_object(kind):
    objective = objective_of(kind)
    assert isinstance(objective, Objective)
    assert objective is objective_of(kind)
    assert objective.kind == kind
    with pytest.raises(AttributeError):
        objective.kind = "other"


@pytest.mark.parametrize("kind", KINDS)
def test_its_metrics_are_metrics_of_its_kind(kind):
    objective = objective_of(kind)
    for name in (*objective.metrics, objective.default_metric):
        check_metric(name, kind, 3)
    assert not get_metric(objective.loss_metric, kind).higher_is_better


def test_an_unknown_kind_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="'regresion' is not known") as caught:
        objective_of("regresion")
    assert caught.value.hint == "did you mean 'regression'?"


@pytest.mark.parametrize("kind", OF_ROWS)
def test_every_row_is_in_one_stratum(kind):
    objective = objective_of(kind)
    strata = objective.strata(LABELS[kind], 3)
    assert sorted(place for places in strata for place in places) == list(range(6))
    names = [objective.stratum(index, ["a", "b", "c"]) for index in range(len(strata))]
    assert len(set(names)) == len(strata)


@pytest.mark.parametrize("kind", OF_ROWS)
def test_the_loss_is_the_mean_over_rows_and_smallest_at_the_targets(kind):
    objective = objective_of(kind)
    targets = objective.tensor(LABELS[kind])
    scores = torch.randn(6, objective.num_outputs(3), generator=torch.Generator().manual_seed(0))
    rows = objective.loss(scores, targets, reduction="none")
    assert rows.shape == (6,)
    assert objective.num_terms(targets) == 6
    torch.testing.assert_close(rows.mean(), objective.loss(scores, targets))
    offset, scale = objective.units(targets)
    standard = objective.standardise(targets, offset, scale)
    right = standard[:, None] if scores.shape[1] == 1 else 100 * standard - 50
    if objective.has_classes:
        right = 50 * torch.nn.functional.one_hot(targets, 3).float()
    assert float(objective.loss(right, standard)) < 1e-6 < float(objective.loss(scores, standard))


def test_the_loss_of_generation_is_over_the_tokens_to_predict():
    objective = objective_of("generation")
    targets = torch.tensor([[-100, 1, 2], [-100, -100, 0]])
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert objective.num_terms(targets) == 3
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([1, 2, 0]))
    assert torch.equal(objective.loss(scores, targets), expected)


@pytest.mark.parametrize("kind", OF_ROWS)
def test_a_constant_answer_is_of_the_training_rows(kind):
    constant = objective_of(kind).constant([*LABELS[kind], LABELS[kind][-1]], ["a", "b", "c"])
    answers = {"regression": pytest.approx(33 / 7), "multilabel": ["b"]}
    assert constant.answer == answers.get(kind, "c")
    metrics = [get_metric(name, kind) for name in objective_of(kind).metrics]
    assert {metric.needs for metric in metrics if metric.constant is None} <= set(constant.needs)


@pytest.mark.parametrize("kind", OF_ROWS)
def test_points_of_the_simplex_that_agree_have_no_disagreement(kind):
    objective = objective_of(kind)
    scores = np.random.default_rng(0).normal(size=(1, 6, objective.num_outputs(3)))
    same = np.repeat(scores, 4, 0)
    assert np.allclose(objective.disagreement(same), 0)
    assert (objective.disagreement(np.concatenate([scores, 1 - scores])) > 0).all()
