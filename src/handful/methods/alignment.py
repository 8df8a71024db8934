"""How far the tasks of a batch pull shared parameters in the same direction."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F

from handful.backbone.load import token_targets
from handful.data.batching import Batch
from handful.methods.head import AbstractHeadedAdapter


@torch.enable_grad()
def task_alignment(adapter: AbstractHeadedAdapter, batch: Batch) -> float:
    """Mean cosine between the gradients of the tasks' losses with respect to the skills, of two tasks or more.

    Caccia et al. 2023 explain the gain of their routing by it (sheet 3b); how they measure it we do not know.
    """
    names = list(dict.fromkeys(batch.tasks))
    shared = [parameter for name, parameter in adapter.named_parameters() if name.startswith("skills.")]
    gradients = []
    for name in names:
        part = only(batch, [row for row, task in enumerate(batch.tasks) if task == name])
        assert part.labels is not None
        scores = adapter(part).float()
        targets = token_targets(part.labels) if adapter.task_kind == "generation" else part.labels
        found = torch.autograd.grad(F.cross_entropy(scores, targets), shared, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    cosines = [float(F.cosine_similarity(a, b, dim=0)) for a, b in combinations(gradients, 2)]
    return sum(cosines) / len(cosines)


def only(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch."""
    inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(inputs, labels, batch.rows[rows], tuple(batch.tasks[row] for row in rows))
