"""One class per row, of a text or of a pair of texts: cross-entropy on logits.

The probe is a multinomial logistic regression; predictions are the most probable class; a temperature calibrates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from handful.objectives.base import Constant, Objective

if TYPE_CHECKING:
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

LONE_PENALTY = 100.0
"""C where a class has a single row, which no fold can leave out.

With a stronger penalty the free intercept decides: the class with most rows is always predicted (docs/experiments.md).
"""

PENALTY_GRID = tuple(10.0**power for power in (-1, 0, 1, 2, 3, 4))
"""Inverse penalty strengths C that cross-validation chooses from, for features of unit mean square norm."""


@final
@dataclass(frozen=True)
class Classification(Objective):
    """One class per row. Labels are indices of classes."""

    has_classes: ClassVar[bool] = True
    has_labels: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "nll", "brier", "ece")
    default_metric: ClassVar[str] = "accuracy"
    loss_metric: ClassVar[str] = "nll"
    problem_type: ClassVar[str | None] = "single_label_classification"
    activation: ClassVar[str] = ".softmax(-1)"
    strata_name: ClassVar[str] = "classes"

    def tensor(self, labels: Sequence[Any]) -> torch.Tensor:
        import torch

        return torch.tensor(labels, dtype=torch.int64)

    def gives(self, shown: str, count: int) -> str:
        return f"one of {count} classes: {shown}"

    def describe(self, label: Any, names: Sequence[str]) -> str:
        return f"the class {names[int(label or 0)]!r}"

    def classes_in(self, labels: Sequence[Any]) -> set[int]:
        return set(labels)

    def group(self, label: Any) -> Hashable:
        return label

    def strata(self, labels: Sequence[Any], num_labels: int) -> list[list[int]]:
        """The rows of each class."""
        return [[place for place, label in enumerate(labels) if label == index] for index in range(num_labels)]

    def stratum(self, index: int, names: Sequence[str]) -> str:
        return f"class {names[index]!r}"

    def ranks(self, labels: Sequence[Any], folds: int) -> list[int]:
        """The class."""
        del folds
        return [int(label or 0) for label in labels]

    def loss(
        self, scores: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> torch.Tensor:
        """Cross-entropy of logits (B, C) with classes (B,)."""
        import torch.nn.functional as F

        return F.cross_entropy(scores, targets, label_smoothing=smoothing, reduction=reduction)

    def choose_penalty(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
        """The C of `PENALTY_GRID` with the best stratified cross-validated NLL, over as many folds as the rarest class
        has rows (at most five); `LONE_PENALTY` where it has a single row.
        """
        import numpy as np
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        folds = min(5, int(np.bincount(targets.astype(int)).min()))
        if folds < 2:
            return LONE_PENALTY
        search = GridSearchCV(
            LogisticRegression(max_iter=2000), {"C": PENALTY_GRID}, scoring="neg_log_loss", cv=StratifiedKFold(folds)
        )
        return float(search.fit(features, targets.astype(int), sample_weight=weights).best_params_["C"])

    def fit_probe(
        self, features: np.ndarray, targets: np.ndarray, penalty: float, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=penalty, max_iter=2000).fit(features, targets.astype(int), sample_weight=weights)
        return class_weights(model)

    def balance(self, weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Scaled so that all classes found weigh the same and the whole weighs what it did."""
        import numpy as np

        labels = targets.astype(int)
        totals = np.bincount(labels, weights)
        return weights * weights.sum() / (np.count_nonzero(totals) * totals[labels])

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Softmax over the classes."""
        import numpy as np

        powers = np.array(np.moveaxis(scores, -1, 0), order="C")  # sums over a short last axis are slow
        powers -= powers.max(0)
        np.exp(powers, out=powers)
        powers /= powers.sum(0)
        return np.moveaxis(powers, 0, -1)

    def answers(
        self, scores: np.ndarray, probabilities: Callable[[], np.ndarray], threshold: float = 0.5
    ) -> np.ndarray:
        """The most probable class, of equal ones the first."""
        del threshold
        most = scores[0] if len(scores) == 1 else probabilities()  # of one point: in the same order
        return most.argmax(1)

    def disagreement(self, scores: np.ndarray) -> np.ndarray:
        """Mean total-variation distance ½ Σ_c |p_s − p̄| between a point's probabilities and their mean, in [0, 1]."""
        import numpy as np

        points = self.probabilities(scores)
        return 0.5 * np.abs(points - points.mean(0)).sum(-1).mean(0)

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> Constant:
        """The largest class; as probabilities the shares of the classes, with one row added to each."""
        import numpy as np

        counts = np.bincount(labels, minlength=len(names))
        largest = int(counts.argmax())
        needs = {"labels": largest, "probabilities": (counts + 1) / (counts + 1).sum()}
        return Constant(names[largest], needs, int((counts == counts.max()).sum()))

    def as_label(self, answer: Any, names: Sequence[str]) -> Any:
        return names.index(answer)

    def columns(
        self, rows: Sequence[Mapping[str, Any]], needs: str, names: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        place = {name: number for number, name in enumerate(names)}
        classes = np.array([place[row["target"]] for row in rows])
        if needs == "labels":
            return classes, np.array([place[row["prediction"]] for row in rows])
        return classes, np.array([row["probabilities"] for row in rows], float)

    def record(self, row: int, target: Any, predictions: Any, names: Sequence[str]) -> dict[str, Any]:
        return {
            "target": names[target],
            "prediction": names[int(predictions.labels[row])],
            "probabilities": [round(float(p), 6) for p in predictions.probabilities[row]],
        }


def class_weights(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, D) and bias (C,) of a fitted logistic regression, one row per class."""
    import numpy as np

    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(weight) == 1:  # sklearn keeps one row for two classes; halves give the same probabilities
        signs = np.array([[-0.5], [0.5]])
        return signs * weight, signs[:, 0] * bias
    return weight, bias


OBJECTIVES = {
    "classification": Classification("classification", pairs=False),
    "pair-classification": Classification("pair-classification", pairs=True),
}
