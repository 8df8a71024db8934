"""The score of always giving the same answer: what a model has to beat to have learned from the texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Self, final

import numpy as np

from handful.data.task import Example, Task
from handful.errors import DataError
from handful.evaluation.estimate import Estimate
from handful.evaluation.metrics import get_metric, score


@final
@dataclass(frozen=True, slots=True)
class Baseline:
    """Scores of one answer for every test row, chosen by the training rows alone.

    `answer` is the largest class among the training rows (the first of `ties` classes of that size, in the order of the
    labels), for regression the mean of their targets, for several labels per text those that most rows have, though
    every metric is scored by its own best set. It is None for several tasks, each with its own answer; `scores` are
    then means over the tasks. `scores` is by metric; metrics of probabilities score the shares of the classes among the
    training rows, with one row added to each class.
    """

    answer: str | float | list[str] | None
    scores: dict[str, float]
    ties: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; what else the record holds is left alone. Raises: DataError for wrong values."""
        found = dict(record) if isinstance(record, Mapping) else {}
        known = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        scores, answer, ties = known.get("scores"), known.get("answer"), known.get("ties", 1)
        right = (
            "answer" in found
            and isinstance(scores, Mapping)
            and all(isinstance(n, str) and _is_number(x) for n, x in scores.items())
        )
        right = right and (answer is None or isinstance(answer, str) or _is_number(answer) or _is_set(answer))
        if not right or type(ties) is not int or ties < 1:
            raise DataError(f"expected a baseline with an answer and scores, found {record!r}")
        return cls(**known)

    def describe(self, name: Callable[[str], str] = repr) -> str:
        """The answer in words, such as "always predicting 'ham', the largest class"; `name` shows a label."""
        if self.answer is None:
            return "always giving each task its most usual answer"
        if isinstance(self.answer, list):
            return "always predicting the labels that are best for the metric on the training rows"
        if not isinstance(self.answer, str):
            return f"always predicting {self.answer:.3g}, the mean of the training rows"
        which = "the largest class" if self.ties == 1 else f"one of the {self.ties} largest classes"
        return f"always predicting {name(self.answer)}, {which}"


def _is_set(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def constant_baseline(task: Task, train: Sequence[Example], targets: np.ndarray, metrics: Sequence[str]) -> Baseline:
    """The baseline of a task by its training rows, scored on test `targets` (N,): class indices, or numbers."""
    labels = [row.label for row in train if row.label is not None]
    constant, scores = task.objective.constant(labels, task.labels), {}
    for name in metrics:
        metric = get_metric(name, task.kind)
        one = constant.needs[metric.needs] if metric.constant is None else metric.constant(np.asarray(labels), metric)
        scores[name] = score(metric, _repeated(one, len(targets)), targets)
    return Baseline(constant.answer, scores, constant.ties)


def _repeated(one: np.ndarray | float, rows: int) -> np.ndarray:
    return np.repeat(np.asarray(one)[None], rows, 0)


def rescored(baseline: Baseline | None, task: Task, targets: np.ndarray) -> Baseline | None:
    """The same answer on other rows, of which `targets` (N,) are the class indices or numbers.

    Without metrics of probabilities: a baseline does not keep the shares that these score. None for label sets, whose
    best constant answer is another one for each metric.
    """
    if baseline is None or baseline.answer is None or isinstance(baseline.answer, list):
        return None
    constant = _repeated(task.objective.as_label(baseline.answer, task.labels), len(targets))
    found = [get_metric(name, task.kind) for name in baseline.scores]
    scores = {m.name: score(m, constant, targets) for m in found if m.needs in ("labels", "values")}
    return Baseline(baseline.answer, scores, baseline.ties)


def mean_baseline(baselines: Sequence[Baseline]) -> Baseline:
    """The baselines of several tasks as one: the mean of every metric that all have."""
    shared = [name for name in baselines[0].scores if all(name in one.scores for one in baselines)]
    return Baseline(None, {name: float(np.mean([one.scores[name] for one in baselines])) for name in shared})


def compared(metric: str, estimate: Estimate, baseline: float) -> str:
    """How a score compares with the baseline's on the same rows, by its interval: "better", "worse" or "not shown"."""
    if estimate.low is None or estimate.high is None or estimate.low <= baseline <= estimate.high:
        return "not shown"
    return "better" if (estimate.mean > baseline) == get_metric(metric).higher_is_better else "worse"


def beside(metric: str, estimate: Estimate, baseline: Baseline | None, name: Callable[[str], str] = repr) -> str:
    """What is to be said behind a score: "; always predicting 'ham', the largest class, scores 0.510"; or nothing."""
    if baseline is None or metric not in baseline.scores:
        return ""
    found = baseline.scores[metric]
    end = {
        "better": "",
        "worse": ", which is better than the model",
        "not shown": ": the interval holds it, so the model is not shown to be better"
        if estimate.low is not None
        else ", and without an interval the model is not shown to be better",
    }[compared(metric, estimate, found)]
    return f"; {baseline.describe(name)}, scores {found:z.3f}{end}"
