"""Several labels per row, or none: binary cross-entropy of every label by itself.

A label is 0 or 1 for each class, (C,). The probe is one logistic regression per class; a label is predicted where its
probability is above a threshold, one half unless rows chose another; one temperature calibrates all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import xor
from typing import TYPE_CHECKING, Any, ClassVar, final

from handful.objectives.base import Constant, Objective
from handful.objectives.classification import LONE_PENALTY, PENALTY_GRID

if TYPE_CHECKING:
    import numpy as np
    import torch

LEAST = 5e-7
"""Probabilities are recorded with six decimals."""


@final
@dataclass(frozen=True)
class Multilabel(Objective):
    """Any of several labels per row. Labels are tuples of 0 and 1."""

    has_labels: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    thresholds: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        "micro_f1", "macro_f1", "samples_f1", "subset_accuracy", "lrap", "nll", "ece",
    )  # fmt: skip
    default_metric: ClassVar[str] = "micro_f1"
    loss_metric: ClassVar[str] = "nll"
    aliases: ClassVar[Mapping[str, str]] = {
        f"f1{mark}{average}": f"{average}_f1" for average in ("micro", "macro", "samples") for mark in "_-"
    }
    unmixable: ClassVar[str | None] = "asks for several labels per text, and others for one"
    problem_type: ClassVar[str | None] = "multi_label_classification"
    activation: ClassVar[str] = ".sigmoid()"
    outputs: ClassVar[str] = "one score for each name in labels.json, whose sigmoid is the probability of that label"

    def tensor(self, labels: Sequence[Any]) -> torch.Tensor:
        import torch

        return torch.tensor(labels, dtype=torch.float32)

    def gives(self, shown: str, count: int) -> str:
        return f"any of {count} labels, or none: {shown}"

    def describe(self, label: Any, names: Sequence[str]) -> str:
        return f"the labels {_named(label, names)}"

    def classes_in(self, labels: Sequence[Any]) -> set[int]:
        return {index for label in labels for index, flag in enumerate(label) if flag}

    def draw(
        self, labels: Sequence[Any], names: Sequence[str], rows: int, *, generator: torch.Generator, **more: Any
    ) -> tuple[Sequence[int], Sequence[bool]] | None:
        """Stratified by every label (`label_set_split`)."""
        from handful.objectives.label_set_split import draw_label_sets

        sets = [[index for index, flag in enumerate(label) if flag] for label in labels]
        order = draw_label_sets(sets, names, rows, generator=generator, **more)
        return order.rows, order.selects

    def ranks(self, labels: Sequence[Any], folds: int) -> list[int]:
        """One number per label set: sets with the rarest label are neighbours, and among them those with the next.

        In the order of a Gray code, in which neighbours differ in few labels.
        """
        del folds
        counts = self.counts(labels, len(labels[0])) if labels else []
        rarest_first = sorted(range(len(counts)), key=lambda index: (counts[index], index))
        keys = [tuple(accumulate((label[index] for index in rarest_first), xor)) for label in labels]
        places = {key: place for place, key in enumerate(sorted(set(keys), reverse=True))}
        return [places[key] for key in keys]

    def loss(
        self, scores: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> torch.Tensor:
        """Binary cross-entropy of logits (B, C) with targets (B, C), a mean over labels."""
        import torch.nn.functional as F

        smooth = targets * (1 - smoothing) + smoothing / 2
        rows = F.binary_cross_entropy_with_logits(scores, smooth, reduction="none").mean(1)
        return rows.mean() if reduction == "mean" else rows

    def choose_penalty(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
        """The C of `PENALTY_GRID` with the best cross-validated NLL, a mean over the labels that have two rows with and
        two without them; `LONE_PENALTY` where none has.
        """
        import numpy as np
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        scores = []
        for column in targets.astype(int).T:
            folds = min(5, int(np.bincount(column, minlength=2).min()))
            if folds > 1:
                search = GridSearchCV(
                    LogisticRegression(max_iter=2000), {"C": PENALTY_GRID}, scoring="neg_log_loss",
                    cv=StratifiedKFold(folds), refit=False,
                )  # fmt: skip
                scores.append(search.fit(features, column, sample_weight=weights).cv_results_["mean_test_score"])
        return PENALTY_GRID[int(np.mean(scores, axis=0).argmax())] if scores else LONE_PENALTY

    def fit_probe(
        self, features: np.ndarray, targets: np.ndarray, penalty: float, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One logistic regression per label; for a label that all rows or none have, its smoothed share alone."""
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        weight, bias = np.zeros((targets.shape[1], features.shape[1])), np.zeros(targets.shape[1])
        for index, column in enumerate(targets.astype(int).T):
            present = int(column.sum())
            if present in (0, len(column)):
                bias[index] = np.log((present + 1) / (len(column) - present + 1))
                continue
            model = LogisticRegression(C=penalty, max_iter=2000).fit(features, column, sample_weight=weights)
            weight[index], bias[index] = np.asarray(model.coef_)[0], np.asarray(model.intercept_)[0]
        return weight, bias

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """The sigmoid of every score."""
        from scipy.special import expit

        return expit(scores)

    def answers(
        self, scores: np.ndarray, probabilities: Callable[[], np.ndarray], threshold: float = 0.5
    ) -> np.ndarray:
        """1 for the labels (N, C) whose probability is above the threshold."""
        import numpy as np

        return (probabilities() > threshold).astype(np.int64)

    def disagreement(self, scores: np.ndarray) -> np.ndarray:
        """Mean distance between a point's probability of a label and the points' mean, over labels, in [0, 1]."""
        import numpy as np

        points = self.probabilities(scores)
        return np.abs(points - points.mean(0)).mean((0, 2))

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> Constant:
        """The labels that most rows have; metrics bring the answer that is best for each of them."""
        import numpy as np

        shares = np.mean(labels, axis=0)
        return Constant([name for name, share in zip(names, shares, strict=True) if share > 0.5], {})

    def as_label(self, answer: Any, names: Sequence[str]) -> Any:
        return [int(name in answer) for name in names]

    def needed(self, predictions: Any, needs: str) -> np.ndarray:
        return predictions.labels if needs == "sets" else predictions.probabilities

    def shown(self, label: Any, names: Sequence[str]) -> Any:
        return _named(label, names)

    def counts(self, labels: Sequence[Any], num_labels: int) -> list[int]:
        return [sum(label[index] for label in labels) for index in range(num_labels)]

    def columns(
        self, rows: Sequence[Mapping[str, Any]], needs: str, names: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        targets = np.array([self.as_label(row["target"], names) for row in rows])
        if needs == "sets":
            return targets, np.array([self.as_label(row["prediction"], names) for row in rows])
        probabilities = np.array([row["probabilities"] for row in rows], float)
        return targets, np.clip(probabilities, LEAST, 1 - LEAST)

    def record(self, row: int, target: Any, predictions: Any, names: Sequence[str]) -> dict[str, Any]:
        return {
            "target": _named(target, names),
            "prediction": _named(predictions.labels[row], names),
            "probabilities": [round(float(p), 6) for p in predictions.probabilities[row]],
        }


def _named(label: Any, names: Sequence[str]) -> list[str]:
    """The names of the labels that are 1."""
    return [name for name, flag in zip(names, label, strict=True) if flag == 1]


OBJECTIVES = {"multilabel": Multilabel("multilabel")}
