"""The constant answer to texts with several labels is the best one on the training rows, by brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.evaluation import label_set_baseline as label_set_baseline_module
from handful.evaluation.label_set_baseline import constant_answer, describe_answer, label_set_baseline
from handful.evaluation.label_set_metrics import score_label_sets


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.8]))
def test_no_constant_set_scores_more_on_the_training_rows(seed, share):
    random = np.random.default_rng(seed)
    train = (random.random((12, 4)) < share * random.random(4) * 2).astype(int)
    for metric in ("micro_f1", "macro_f1", "subset_accuracy"):
        own = score_label_sets(metric, np.tile(constant_answer(train, metric), (12, 1)), train)
        others = [score_label_sets(metric, np.tile(one, (12, 1)), train) for one in product((0, 1), repeat=4)]
        assert own == pytest.approx(max(others)), metric


def test_answers_by_metric():
    train = np.array([[1, 0, 0]] * 4 + [[1, 1, 0]] * 3 + [[0, 0, 0]] * 2 + [[0, 0, 1]])
    assert constant_answer(train, "subset_accuracy").tolist() == [1, 0, 0]
    assert constant_answer(train, "macro_f1").tolist() == [1, 1, 1]
    assert constant_answer(train, "samples_f1").tolist() == [1, 0, 0]
    assert constant_answer(train, "nll").tolist() == pytest.approx([8 / 12, 4 / 12, 2 / 12])
    assert constant_answer(np.zeros((3, 2), int), "micro_f1").tolist() == [0, 0]  # of equal ones the smallest


def test_scores_are_those_of_the_test_rows():
    train, test = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[0, 1], [1, 0], [0, 1], [0, 1]])
    found = label_set_baseline(train, test, ["subset_accuracy", "nll", "lrap"])
    assert found["subset_accuracy"] == pytest.approx(1 / 4)
    assert found["nll"] == pytest.approx(np.mean([np.log(5 / 2)] * 3 + [np.log(5 / 3)]))
    assert found["lrap"] == pytest.approx((3 / 2 + 1) / 4)


def test_answers_in_words():
    names = ["a", "b", "c", "d", "e"]
    assert describe_answer(np.array([0, 0, 0, 0, 0]), names) == "always predicting none of the labels"
    assert describe_answer(np.array([1, 0, 1, 0, 0]), names) == "always predicting 'a' and 'c'"
    assert describe_answer(np.array([1, 1, 1, 1, 0]), names) == "always predicting 'a', 'b', 'c' and 1 more labels"
    assert describe_answer(np.ones(5, int), names) == "always predicting every label"
    assert "share of the training rows" in describe_answer(np.full(5, 0.5), names)


def test_many_different_sets_take_no_time(monkeypatch):
    calls = []
    real = label_set_baseline_module.score_label_sets
    monkeypatch.setattr(label_set_baseline_module, "score_label_sets", lambda *a: calls.append(1) or real(*a))
    train = np.random.default_rng(0).integers(0, 2, (1500, 20))
    constant_answer(train, "subset_accuracy")
    assert len(calls) <= label_set_baseline_module.MOST_SETS + 21
