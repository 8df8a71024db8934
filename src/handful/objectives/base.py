"""What an objective answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class Constant:
    """One answer for every row: in words or as a number, and as what metrics need of one row.

    `ties` counts the answers that would do as well.
    """

    answer: str | float | list[str]
    needs: Mapping[str, np.ndarray | float]
    ties: int = 1


@dataclass(frozen=True)
class Objective(ABC):
    """One kind of task. Subclasses are final, frozen and without state.

    Axes: B or N rows, S points of the simplex, C outputs of the head, D features.
    """

    kind: str
    """The name on disk (`Task.kind`)."""
    pairs: bool | None = None
    """Whether rows are pairs of texts; None where they may be either."""

    has_classes: ClassVar[bool] = False
    """Whether every row has one of several classes, which can be counted, weighed and missing."""
    has_labels: ClassVar[bool] = False
    """Whether labels have names."""
    generates: ClassVar[bool] = False
    """Whether a language model writes texts; there is then no head, and rows have references in place of labels."""

    calibrates: ClassVar[bool] = False
    """Whether scores are logits, which a temperature calibrates."""

    thresholds: ClassVar[bool] = False
    """Whether a label is predicted where its probability is above a threshold."""

    metrics: ClassVar[tuple[str, ...]]
    """The usual metrics, reported beside the task's own."""
    default_metric: ClassVar[str]
    loss_metric: ClassVar[str]
    """The metric that is the training loss."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of metrics."""
    unmixable: ClassVar[str | None] = None
    """Why a task cannot be one of several that are learned at once; None where it can."""

    problem_type: ClassVar[str | None] = None
    """`config.problem_type` of a stock classification model."""
    activation: ClassVar[str] = ""
    """What makes probabilities of a tensor of scores, as code."""
    pipeline_tag: ClassVar[str] = "text-classification"
    tag: ClassVar[str] = "text-classification"
    """The tag of a model card, more exact than `pipeline_tag`."""
    rows_name: ClassVar[str] = "labelled rows"
    """What a card calls the rows."""
    outputs: ClassVar[str] = "one score for each name in labels.json"
    """What an exported model returns."""

    @property
    def purpose(self) -> Literal["features", "lm"]:
        """What a backbone is loaded for: its features, or the scores of its tokens."""
        return "lm" if self.generates else "features"

    # ------------------------------------------------------------------------------------------------------ labels

    def num_outputs(self, num_labels: int) -> int:
        """The width C of the head; 0 where there is none."""
        return num_labels

    @abstractmethod
    def tensor(self, labels: Sequence[Any]) -> torch.Tensor:
        """The labels of B rows as the targets of `loss`."""

    def gives(self, shown: str, count: int) -> str:
        """What is predicted, in words; `shown` are names of the `count` labels."""
        del shown, count
        return "a number"

    def describe(self, label: Any, names: Sequence[str]) -> str:
        """A label in words, such as "the class 'ham'"."""
        del names
        return f"the target {label}"

    def classes_in(self, labels: Sequence[Any]) -> set[int]:
        """The classes that these rows belong to."""
        del labels
        return set()

    def group(self, label: Any) -> Hashable:
        """Rows of equal groups are set apart for testing in equal shares."""
        del label
        return None

    def strata(self, labels: Sequence[Any], num_labels: int) -> list[list[int]]:
        """Positions of the rows by stratum; few-shot rows keep the proportions of the strata."""
        del num_labels
        return [list(range(len(labels)))]

    def draw(
        self, labels: Sequence[Any], names: Sequence[str], rows: int, *, generator: torch.Generator, **more: Any
    ) -> tuple[Sequence[int], Sequence[bool]] | None:
        """So many rows in the order in which shots are taken, and which of them select; None: by `strata`.

        `more` are `dev_fraction`, None where no row selects, and `task` and `dropped` for errors.
        """
        del labels, names, rows, generator, more
        return None

    def stratum(self, index: int, names: Sequence[str]) -> str:
        """The name of one stratum in an error."""
        del names
        return f"stratum {index + 1}"

    strata_name: ClassVar[str] = "strata"

    def ranks(self, labels: Sequence[Any], folds: int) -> list[int]:
        """A number per row (N,): rows in its order are dealt to the folds in turn, so that the folds are alike."""
        del folds
        return [0] * len(labels)

    # ---------------------------------------------------------------------------------------------------- training

    @abstractmethod
    def loss(
        self, scores: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> torch.Tensor:
        """The loss of scores (B, C) in the head's units: its mean, or with "none" one value per row (B,)."""

    def num_terms(self, targets: torch.Tensor) -> int:
        """The number of terms that the mean loss of these targets is over."""
        return len(targets)

    def units(self, targets: torch.Tensor) -> tuple[float, float]:
        """Offset and scale of the head's units, from the training targets."""
        del targets
        return 0.0, 1.0

    def standardise(self, targets: Any, offset: Any, scale: Any) -> Any:
        """Targets, an array or a tensor, in the head's units."""
        del offset, scale
        return targets

    # ------------------------------------------------------------------------------------------------- the probe

    def choose_penalty(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
        """The inverse penalty strength of a probe on features (N, D), by cross-validation inside these rows."""
        raise NotImplementedError(self.kind)

    def fit_probe(
        self, features: np.ndarray, targets: np.ndarray, penalty: float, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weight (C, D) and bias (C,) of a penalised linear model on features (N, D) with row weights (N,)."""
        raise NotImplementedError(self.kind)

    def balance(self, weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Row weights (N,) under which all classes count the same."""
        del targets
        return weights

    # ------------------------------------------------------------------------------------------------- predictions

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (S, N, C) from scores (S, N, C)."""
        raise NotImplementedError(self.kind)

    def answers(
        self, scores: np.ndarray, probabilities: Callable[[], np.ndarray], threshold: float = 0.5
    ) -> np.ndarray:
        """The predicted label of each row, as in the targets, from scores (S, N, C); asks for the mean probabilities
        (N, C) only where it needs them. `threshold` is of the objectives that have one (`thresholds`).
        """
        del probabilities, threshold
        return scores[..., 0].mean(0)

    def disagreement(self, scores: np.ndarray) -> np.ndarray:
        """How far S points of the simplex disagree about each row (N,), from scores (S, N, C)."""
        return scores[..., 0].std(0)

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> Constant:
        """The one answer for every row that these training labels suggest."""
        raise NotImplementedError(self.kind)

    def as_label(self, answer: Any, names: Sequence[str]) -> Any:
        """The label that the answer of a `Constant` means."""
        del names
        return answer

    def needed(self, predictions: Any, needs: str) -> np.ndarray:
        """What a metric needs of `evaluation.predict.Predictions`: their field of that name."""
        return getattr(predictions, needs)

    def shown(self, label: Any, names: Sequence[str]) -> Any:
        """A predicted label as users get it."""
        return names[int(label)]

    def counts(self, labels: Sequence[Any], num_labels: int) -> list[int]:
        """The number of rows of each class."""
        return [sum(label == index for label in labels) for index in range(num_labels)]

    def columns(
        self, rows: Sequence[Mapping[str, Any]], needs: str, names: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Targets and what a metric needs of the predictions, from records of N rows."""
        import numpy as np

        del needs, names
        return np.array([row["target"] for row in rows], float), np.array([row["prediction"] for row in rows], float)

    def record(self, row: int, target: Any, predictions: Any, names: Sequence[str]) -> dict[str, Any]:
        """Target and prediction of one row as plain JSON values; `predictions` are `evaluation.predict.Predictions`."""
        del names
        return {"target": target, "prediction": float(predictions.values[row])}
