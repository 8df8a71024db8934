"""What routing logits say of how tasks share skills: how binary, sparse and even they are, and which tasks are alike.

Logits z have the shape (R, T, q, S): R routers, T tasks, q splits, S skills; σ is the logistic function. Discreteness,
sparsity and usage are the diagnostics of Ponti et al. 2022 and of Caccia et al. 2023, who have them of the cells σ(z).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from handful.backbone.device import exact

SAME = 1e-9
"""What is smaller, beside the weights themselves, is rounding and no difference between tasks."""


def skill_weights(logits: torch.Tensor) -> torch.Tensor:
    """w_s = σ(z_s) / Σ σ(z_s') over the last axis of (..., S), as softmax(log σ(z)): it holds for any z."""
    return F.logsigmoid(logits).softmax(-1)


def discreteness(logits: torch.Tensor) -> float:
    """Mean entropy of the cells σ(z), each on its own, in bits: 0 where all are on or off, 1 where all are ½."""
    z = exact(logits)
    entropy = -(z.sigmoid() * F.logsigmoid(z) + (-z).sigmoid() * F.logsigmoid(-z))
    return float(entropy.mean() / math.log(2))


def sparsity(logits: torch.Tensor) -> float:
    """Share of cells with σ(z) > ½, that is z > 0: small where each task has few skills."""
    return float(exact(logits > 0).mean())


def usage(logits: torch.Tensor) -> float:
    """H(p) / log S with p_s ∝ Σ_t σ(z_ts), the mean over routers and splits: 1 where all skills are used alike.

    The columns are the S skills of one split, as weights are normalised over these. One skill has usage 1.
    """
    *_, skills = logits.shape
    if skills == 1:
        return 1.0
    columns = F.logsigmoid(exact(logits)).logsumexp(-3)  # over tasks: (R, q, S)
    log_p = columns.log_softmax(-1)
    return float(-(log_p.exp() * log_p).sum(-1).mean() / math.log(skills))


def routing_measures(logits: torch.Tensor) -> dict[str, float]:
    """All three, under their names."""
    return {"discreteness": discreteness(logits), "sparsity": sparsity(logits), "usage": usage(logits)}


def task_similarity(weights: torch.Tensor) -> torch.Tensor:
    """Cosine (T, T) between tasks by weights (R, T, q, S), of all routers and splits in one vector, centred over tasks.

    Weights are positive and sum to 1, so tasks that share nothing have large cosines too; without the mean over tasks,
    which says nothing of any one of them, unrelated tasks lie around −1/(T − 1). Hence two tasks have −1 whatever they
    are, and a task that is the mean itself, which has no direction, has 0 with others. On the diagonal is 1.
    """
    weights = exact(weights).movedim(1, 0).flatten(1)  # (T, R q S)
    centred = weights - weights.mean(0)
    length, whole = centred.norm(dim=1, keepdim=True), weights.norm(dim=1, keepdim=True)
    directions = torch.where(length > SAME * whole, centred / length, torch.zeros_like(centred))
    cosines = (directions @ directions.T).clamp(-1, 1)
    return cosines.fill_diagonal_(1.0)
