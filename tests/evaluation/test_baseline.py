"""The baseline: chosen by the training rows, scored on the test rows, and compared with a score by its interval."""

from __future__ import annotations

import numpy as np
import pytest

from handful.data.task import Example, Task
from handful.errors import DataError
from handful.evaluation.baseline import Baseline, beside, compared, constant_baseline, mean_baseline, rescored
from handful.evaluation.estimate import Estimate

SPAM = Task("mail", "classification", ("ham", "spam", "rare"), "accuracy", pool=())
METRICS = ("accuracy", "macro_f1", "matthews", "nll", "brier")


def rows(*labels: float) -> list[Example]:
    return [Example(f"text {number}", label=label) for number, label in enumerate(labels)]


def test_it_predicts_the_largest_class_of_the_training_rows_and_not_of_the_test_rows():
    found = constant_baseline(SPAM, rows(1, 1, 1, 0, 0), np.array([0, 0, 0, 1]), METRICS)
    assert (found.answer, found.ties) == ("spam", 1)
    shares = np.array([3, 4, 1]) / 8
    expected = {"accuracy": 1 / 4, "macro_f1": (2 / 5) / 2, "matthews": 0.0}
    expected["nll"] = -(3 * np.log(shares[0]) + np.log(shares[1])) / 4
    expected["brier"] = (3 * ((shares - [1, 0, 0]) ** 2).sum() + ((shares - [0, 1, 0]) ** 2).sum()) / 4
    assert found.scores == pytest.approx(expected)


def test_of_equally_large_classes_it_takes_the_first_and_says_so():
    found = constant_baseline(SPAM, rows(2, 1, 1, 2), np.array([1, 2]), ["accuracy"])
    assert (found.answer, found.ties, found.scores) == ("spam", 2, {"accuracy": 0.5})
    assert found.describe() == "always predicting 'spam', one of the 2 largest classes"


def test_of_numbers_it_predicts_the_mean():
    stars = Task("stars", "regression", (), "spearman", pool=())
    found = constant_baseline(stars, rows(1.0, 2.0, 6.0), np.array([1.0, 5.0]), ["spearman", "mse", "mae"])
    assert found.answer == 3.0 and found.scores == {"spearman": 0.0, "mse": 4.0, "mae": 2.0}
    assert found.describe() == "always predicting 3, the mean of the training rows"


def test_the_same_answer_is_scored_on_other_rows():
    first = constant_baseline(SPAM, rows(1, 1, 0), np.array([0, 0, 1]), METRICS)
    again = rescored(first, SPAM, np.array([1, 1, 1, 0]))
    assert again is not None and again.answer == "spam" and again.scores["accuracy"] == 0.75
    assert set(again.scores) == {"accuracy", "macro_f1", "matthews"}
    assert rescored(None, SPAM, np.array([1])) is None is rescored(Baseline(None, {}), SPAM, np.array([1]))


def test_several_tasks_have_the_mean_of_what_all_have():
    first, second = Baseline("ham", {"accuracy": 0.5, "f1": 0.1}), Baseline("no", {"accuracy": 0.7})
    assert mean_baseline([first, second]) == Baseline(None, {"accuracy": pytest.approx(0.6)})
    said = beside("accuracy", Estimate(0.9, 0.8, 0.95, 50), mean_baseline([first, second]))
    assert said == "; always giving each task its most usual answer, scores 0.600"


@pytest.mark.parametrize(
    ("metric", "interval", "baseline", "expected"),
    [
        ("accuracy", (0.6, 0.5, 0.7), 0.49, "better"),
        ("accuracy", (0.6, 0.5, 0.7), 0.5, "not shown"),
        ("accuracy", (0.6, 0.5, 0.7), 0.71, "worse"),
        ("nll", (0.6, 0.5, 0.7), 0.71, "better"),
        ("nll", (0.6, 0.5, 0.7), 0.4, "worse"),
        ("mse", (0.6, None, None), 0.9, "not shown"),
    ],
)
def test_the_interval_decides_whether_the_model_is_better(metric, interval, baseline, expected):
    mean, low, high = interval
    assert compared(metric, Estimate(mean, low, high, 50), baseline) == expected


def test_nothing_is_said_where_nothing_is_known():
    score = Estimate(0.6, 0.5, 0.7, 50)
    assert beside("accuracy", score, None) == "" == beside("accuracy", score, Baseline("ham", {"f1": 0.2}))
    alone = beside("accuracy", Estimate(0.6, None, None, 1), Baseline("ham", {"accuracy": 0.2}))
    assert alone.endswith("scores 0.200, and without an interval the model is not shown to be better")


def test_it_survives_json_and_a_damaged_record_is_refused():
    found = Baseline("ham", {"accuracy": 0.5}, 2)
    assert Baseline.from_dict(found.to_dict() | {"members": {}}) == found
    wrong = [None, [], {}, {"answer": "ham"}, {"answer": "ham", "scores": {"accuracy": "?"}}]
    wrong += [{"answer": [1], "scores": {}}, {"answer": True, "scores": {}}, found.to_dict() | {"ties": 0}]
    for record in wrong:
        with pytest.raises(DataError, match="expected a baseline with an answer and scores"):
            Baseline.from_dict(record)
