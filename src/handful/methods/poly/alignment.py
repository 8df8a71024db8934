"""How far tasks pull the parameters that they share in the same direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from handful.backbone.device import exact
from handful.data.batching import Batch, EncodedRows
from handful.methods.head import AbstractHeadedAdapter

ROWS = 8
"""Number of rows, the first ones, whose loss stands for that of their task."""


def first_batches(rows: EncodedRows, names: Sequence[str]) -> list[Batch]:
    """One batch per task, of its first `ROWS` rows; tasks without rows have none."""
    assert rows.tasks is not None
    places = ([row for row, task in enumerate(rows.tasks) if task == name] for name in names)
    return [rows.batch(found[:ROWS]) for found in places if found]


@torch.enable_grad()
def task_alignment(adapter: AbstractHeadedAdapter, batches: Sequence[Batch]) -> float:
    """Mean cosine between the gradients of the losses of two batches or more with respect to the skills.

    Each batch is of one task. The sum of unit vectors has all cosines: |Σ u|² = Σ |u|² + Σ_{a≠b} cos(a, b), so that
    no gradient needs to be kept; one of length 0 has cosines of 0. Caccia et al. 2023 explain the gain of their
    routing by alignment; how they measure it we do not know.
    """
    shared = [p for name, p in adapter.named_parameters() if name.startswith("skills.") and p.requires_grad]
    total, squares = torch.zeros((), dtype=torch.float64), 0.0
    for batch in batches:
        assert batch.labels is not None
        scores = adapter(batch).float()
        found = torch.autograd.grad(adapter.objective.loss(scores, batch.labels), shared, materialize_grads=True)
        unit = F.normalize(exact(torch.cat([gradient.flatten() for gradient in found])), dim=0)
        total, squares = total.to(unit.device) + unit, squares + float(unit @ unit)
    count = len(batches)
    return (float(total @ total) - squares) / (count * (count - 1))
