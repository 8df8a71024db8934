"""One number per row: squared error in standard deviations of the training targets. The probe is ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, final

from handful.objectives.base import Constant, Objective

if TYPE_CHECKING:
    import numpy as np
    import torch

QUANTILES = 5
"""Strata of a target."""


@final
@dataclass(frozen=True)
class Regression(Objective):
    """One number per row. Labels are the numbers."""

    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "mse", "mae")
    default_metric: ClassVar[str] = "spearman"
    loss_metric: ClassVar[str] = "mse"
    problem_type: ClassVar[str | None] = "regression"
    tag: ClassVar[str] = "text-regression"
    unmixable: ClassVar[str | None] = "asks for numbers, which have no labels to choose from"
    outputs: ClassVar[str] = "one number"
    strata_name: ClassVar[str] = "fifths of the target"

    def num_outputs(self, num_labels: int) -> int:
        del num_labels
        return 1

    def tensor(self, labels: Sequence[Any]) -> torch.Tensor:
        import torch

        return torch.tensor(labels, dtype=torch.float32)

    def strata(self, labels: Sequence[Any], num_labels: int) -> list[list[int]]:
        """The rows of each fifth of the target."""
        del num_labels
        ranked = sorted(range(len(labels)), key=lambda place: float(labels[place] or 0))
        cuts = [len(ranked) * part // QUANTILES for part in range(QUANTILES + 1)]
        return [ranked[low:high] for low, high in pairwise(cuts)]

    def stratum(self, index: int, names: Sequence[str]) -> str:
        del names
        return f"fifth {index + 1} of the target"

    def ranks(self, labels: Sequence[Any], folds: int) -> list[int]:
        """Every `folds` rows that are neighbours in their target have one number."""
        ranks = [0] * len(labels)
        for place, row in enumerate(sorted(range(len(labels)), key=lambda row: float(labels[row] or 0))):
            ranks[row] = place // folds
        return ranks

    def loss(
        self, scores: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> torch.Tensor:
        """Squared error of predictions (B, 1) with targets (B,), both standardised."""
        import torch.nn.functional as F

        del smoothing
        return F.mse_loss(scores[:, 0], targets, reduction=reduction)

    def units(self, targets: torch.Tensor) -> tuple[float, float]:
        """Mean and standard deviation of the training targets."""
        return float(targets.mean()), float(targets.std(correction=0)) or 1.0

    def standardise(self, targets: Any, offset: Any, scale: Any) -> Any:
        return (targets - offset) / scale

    def choose_penalty(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
        """The inverse of ridge's α, by leave-one-out cross-validation."""
        import numpy as np
        from sklearn.linear_model import RidgeCV

        ridge = RidgeCV(alphas=np.logspace(-4, 2, 13)).fit(features, targets, weights)
        return 1 / float(ridge.alpha_)  # pyright: ignore[reportArgumentType]: one target has one penalty

    def fit_probe(
        self, features: np.ndarray, targets: np.ndarray, penalty: float, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np
        from sklearn.linear_model import Ridge

        ridge = Ridge(alpha=1 / penalty).fit(features, targets, sample_weight=weights)
        return ridge.coef_[None], np.asarray([ridge.intercept_])

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> Constant:
        """The mean."""
        import numpy as np

        del names
        mean = float(np.mean(labels))
        return Constant(mean, {"values": mean})


OBJECTIVES = {"regression": Regression("regression")}
