"""A head for many label sets at once: the weights of a class are made from the text of its label.

W_c = Pᵀ e_c with e_c the frozen model's features of the label's text, of length 1, and one matrix P (D, D) for all
tasks: scores = e_cᵀ P f(x). No number belongs to a single task, so tasks with the same labels share them, and a new
task starts from its labels' texts. Scores of labels that are not the row's task's are `OUTSIDE`.
Trained: D². Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import nn

from handful.backbone.load import Backbone
from handful.data.batching import encode
from handful.data.task import Example, Task, reading
from handful.errors import DataError
from handful.methods.head import frozen_features
from handful.methods.simplex import Simplex

OUTSIDE = -1e4
"""Score of a label that another task has: its probability is 0 in float32 and its logarithm is still a number."""

SHARPNESS = 10.0
"""Scores at the start are this many times the cosine of text and label."""


@torch.no_grad()
def label_embeddings(backbone: Backbone, labels: Sequence[str]) -> torch.Tensor:
    """Features (C, D) of the labels' texts in the backbone as it is, each of length 1."""
    texts = [Example(reading(label), source="label") for label in labels]
    rows = encode(texts, backbone.tokenizer, min(64, backbone.max_length), kind="classification")
    return F.normalize(frozen_features(backbone, rows), dim=1)


def has_texts(task: Task) -> bool:
    """Whether every label has a letter: "2" says nothing that a model could read."""
    classes = task.objective.has_classes
    return classes and all(any(sign.isalpha() for sign in label) for label in task.labels)


@final
class LabelTextHead(nn.Module):
    """Scores (B, C) of features (B, D), each row among the labels of its own task.

    A task that was added afterwards has weights `own` (C, D), and zeros for the texts of its labels.
    """

    simplex = Simplex()
    offset: torch.Tensor
    scale: torch.Tensor
    labels: torch.Tensor
    own: torch.Tensor
    own_bias: torch.Tensor

    def __init__(self, backbone: Backbone, task: Task):
        super().__init__()
        self.spans = task.label_ranges
        self.projection = nn.Parameter(torch.eye(backbone.hidden_size))
        self.register_buffer("labels", label_embeddings(backbone, [m for t in task.members for m in t.labels]))
        self.register_buffer("own", torch.zeros_like(self.labels))
        self.register_buffer("own_bias", torch.zeros(len(self.labels)))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def start(self, features: torch.Tensor) -> None:
        """Scores of `SHARPNESS` times the cosine, on average over these features (N, D)."""
        with torch.no_grad():
            self.projection.copy_(torch.eye(len(self.projection)) * (SHARPNESS / features.norm(dim=1).mean()))

    def folded(self, task: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (C, D) and biases (C,) of one task's classes."""
        span = slice(self.spans[task].start, self.spans[task].stop)
        return self.labels[span] @ self.projection + self.own[span], self.own_bias[span]

    def forward(self, features: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """Each task's rows are scored by themselves: no other task changes a bit of them."""
        unknown = sorted(set(tasks) - set(self.spans))
        if unknown or len(tasks) != len(features):
            found = repr(unknown[0]) if unknown else "no name"
            raise DataError(
                f"expected every row to be of one of {len(self.spans)} tasks, found {found}",
                "scores are of a task's labels: name the task, one of " + ", ".join(self.spans),
            )
        scores = features.new_full((len(features), len(self.labels)), OUTSIDE)
        for name in dict.fromkeys(tasks):
            rows = torch.tensor([row for row, task in enumerate(tasks) if task == name], device=features.device)
            span = torch.arange(self.spans[name].start, self.spans[name].stop, device=features.device)
            found = F.linear(features[rows], *self.folded(name)).to(scores.dtype)  # autocast has its own
            scores = scores.index_put((rows[:, None], span), found)
        return scores
