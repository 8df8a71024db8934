"""Texts to generate: cross-entropy of the tokens of the references under a language model. There is no head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from handful.objectives.base import Objective

if TYPE_CHECKING:
    import torch

NO_LOSS = -100
"""The label of tokens that are not to be predicted, as torch and transformers have it."""


@final
@dataclass(frozen=True)
class Generation(Objective):
    """Texts to generate. Rows have references in place of labels; the targets are their tokens (B, T)."""

    generates: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ()  # by the records: `evaluation.text.metrics.usual_metrics`
    default_metric: ClassVar[str] = "bleu"  # case-sensitive, on 13a tokens; `data/nlg.py` has variants for data sets
    loss_metric: ClassVar[str] = "nll"
    pipeline_tag: ClassVar[str] = "text-generation"
    tag: ClassVar[str] = "text-generation"
    rows_name: ClassVar[str] = "records"
    outputs: ClassVar[str] = "texts, by the decoding in generation_config.json"

    def gives(self, shown: str, count: int) -> str:
        del shown, count
        return "a text"

    def tensor(self, labels: Sequence[Any]) -> torch.Tensor:
        raise TypeError("generation has references in place of labels")

    def loss(
        self, scores: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> torch.Tensor:
        """Cross-entropy of scores of tokens (N, V) with those of `targets` (B, T) that are to be predicted."""
        import torch.nn.functional as F

        return F.cross_entropy(scores, token_targets(targets), label_smoothing=smoothing, reduction=reduction)

    def num_terms(self, targets: torch.Tensor) -> int:
        """The number of tokens to predict."""
        return len(token_targets(targets))


def token_targets(labels: torch.Tensor) -> torch.Tensor:
    """The N tokens to predict of labels (B, T), row by row."""
    return labels[labels != NO_LOSS]


OBJECTIVES = {"generation": Generation("generation", pairs=False)}
