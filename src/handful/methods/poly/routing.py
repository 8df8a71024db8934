"""Which skills a task uses: one bank of routing logits for the whole model, and the gates made of them.

w_rthk = g(z_rthk) / Σ_k' g(z_rthk') for router r, task t, split h and skill k, with g a sigmoid, in training with
logistic noise if wanted (Ponti et al. 2022; Caccia et al. 2023; docs/methods/poly.md). Normalised sigmoids are computed
as softmax(log σ(z)), which never switches the adapter off however negative a whole row of logits is.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import cos, pi
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import nn

from handful.methods.poly.routing_measures import skill_weights

Gate = Literal["gumbel", "sigmoid", "straight-through"]
Sharing = Literal["fine", "layer", "block", "coder", "coarse"]

START = 1e-3
"""Routing logits start uniform in ± this: every task nearly at the average of all skills."""


def logistic_noise(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draws of log u − log(1 − u) with u uniform in (0, 1): σ(z + noise) is the relaxed Bernoulli at temperature 1."""
    uniform = torch.rand(*shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return (uniform.log() - (-uniform).log1p()).float()


class AbstractRouting(nn.Module, ABC):
    """The weights of skills for tasks: (R routers, U tasks, q splits, S skills), each row a point of a simplex."""

    noisy = False
    """Whether training draws noise."""

    @abstractmethod
    def weights(self, tasks: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """(R, U, q, S) of the tasks with these numbers (U,)."""

    def of_tasks(self) -> list[nn.Parameter]:
        """What is learned for each task by itself, and so at the rate of the routing; the rest is shared by all."""
        return list(self.parameters())

    def penalty(self) -> torch.Tensor | None:
        """What regularisers add to the loss."""
        return None


@final
class FixedRouting(AbstractRouting):
    """Weights (T, S) that are not learned: the same for all routers and splits."""

    def __init__(self, table: torch.Tensor, routers: int, splits: int):
        super().__init__()
        self.routers, self.splits = routers, splits
        self.register_buffer("table", table)

    table: torch.Tensor

    def weights(self, tasks: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        del noise
        return self.table[tasks][None, :, None].expand(self.routers, -1, self.splits, -1)


@final
class LearnedRouting(AbstractRouting):
    """One parameter `logits` (R, T, q, S) for all routers.

    `regularisers` are weights of `ibp_prior`, `surplus`, `shared_information`; 0 leaves one out.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        gate: Gate,
        generator: torch.Generator,
        *,
        regularisers: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ):
        super().__init__()
        self.gate: Gate = gate
        self.noisy = gate == "gumbel"
        self.regularisers = regularisers
        self.logits = nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * START)

    def weights(self, tasks: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return gated_weights(self.logits[:, tasks], self.gate, noise)

    def penalty(self) -> torch.Tensor | None:
        terms = (ibp_prior, surplus, shared_information)
        chosen = [w * term(self.logits) for w, term in zip(self.regularisers, terms, strict=True) if w]
        return torch.stack(chosen).sum() if chosen else None


@final
class HyperRouting(AbstractRouting):
    """Weights made from an embedding of the task: W₂ ReLU(W₁ e_t), without normalisation, one such net a router.

    A hypernetwork whose output heads make A_t and B_t of its last layer is an inventory mixed by that layer (the
    HyperFormer baseline of Ponti et al. 2022).
    """

    def __init__(self, routers: int, tasks: int, skills: int, generator: torch.Generator):
        super().__init__()
        spread = skills**-0.5
        self.embeddings = nn.Parameter(torch.randn(routers, tasks, skills, generator=generator))
        self.inner = nn.Parameter(torch.randn(routers, skills, skills, generator=generator) * spread)
        self.outer = nn.Parameter(torch.randn(routers, skills, skills, generator=generator) * spread)

    def of_tasks(self) -> list[nn.Parameter]:
        return [self.embeddings]

    def weights(self, tasks: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        del noise
        hidden = torch.relu(torch.bmm(self.embeddings[:, tasks], self.inner))
        return torch.bmm(hidden, self.outer).unsqueeze(2)


def gated_weights(logits: torch.Tensor, gate: Gate, noise: torch.Tensor | None = None) -> torch.Tensor:
    """The weights of skills, along the last axis of logits (…, S); hard gates draw no noise."""
    if gate == "straight-through":
        return straight_through(logits)
    return skill_weights(logits if noise is None else logits + noise)


def lead_at(progress: float, uniform_share: float) -> float:
    """The a of w ← a w + (1 − a)/S: cos(π/2 · progress) within the last `uniform_share` of training."""
    if not uniform_share:
        return 1.0
    return cos(pi / 2 * min(1.0, max(0.0, (progress - (1 - uniform_share)) / uniform_share)))


def led(weights: torch.Tensor, lead: float) -> torch.Tensor:
    """Weights (…, S) led towards 1/S."""
    return weights if lead == 1 else lead * weights + (1 - lead) / weights.shape[-1]


def straight_through(logits: torch.Tensor) -> torch.Tensor:
    """Gates 1[σ(z) > ½] whose gradient is that of σ(z), normalised; where all are closed, the largest is open."""
    soft = torch.sigmoid(logits)
    hard = ((logits > 0) | (logits == logits.amax(-1, keepdim=True)) & (logits <= 0).all(-1, keepdim=True)).to(soft)
    gates = hard + soft - soft.detach()
    return gates / gates.sum(-1, keepdim=True)


def ibp_prior(logits: torch.Tensor) -> torch.Tensor:
    """Minus the log-probability of the hard gates under an Indian buffet process, without terms that have no gradient.

    With m_s the number of tasks that use column s: −Σ_{s: m_s>0} [log (T − m_s)! + log (m_s − 1)!], summed over all
    routers. The gradient is straight through.
    """
    soft = torch.sigmoid(logits)
    hard = (soft > 0.5).to(soft) + soft - soft.detach()
    tasks, counts = logits.shape[1], hard.sum(1)
    used = counts.detach() > 0.5
    counts = counts.where(used, 1.0)
    return -((torch.lgamma(tasks - counts + 1) + torch.lgamma(counts)) * used).sum()


def surplus(logits: torch.Tensor) -> torch.Tensor:
    """Mean over tasks and routers of max(0, mean over skills and splits of σ(z) − 1/(q S)): one skill is free."""
    routers, tasks, splits, skills = logits.shape
    del routers, tasks
    return F.relu(torch.sigmoid(logits).mean((2, 3)) - 1 / (splits * skills)).mean()


def shared_information(logits: torch.Tensor) -> torch.Tensor:
    """Mean over tasks of H(σ(z_t)) minus H of the mean over tasks, H the entropy of each gate in nats, averaged."""
    gates = torch.sigmoid(logits)
    return (entropy(gates).mean(1) - entropy(gates.mean(1))).mean()


def entropy(probability: torch.Tensor) -> torch.Tensor:
    """Of a Bernoulli variable, in nats."""
    probability = probability.clamp(1e-6, 1 - 1e-6)  # the gradient of 0 log 0 is no number
    return -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability))


def router_of(matrix: str, sharing: Sharing) -> str:
    """The router of a matrix, by its name in the model.

    fine: one for each matrix; layer: one for each attention or feed-forward block; block: one for each layer of the
    model; coder: encoder and decoder; coarse: one for all (Caccia et al. 2023).
    """
    if sharing == "fine":
        return matrix
    if sharing == "coarse":
        return "model"
    if sharing == "coder":
        return "decoder" if "decoder" in matrix.split(".") else "encoder" if "encoder" in matrix.split(".") else "model"
    parts = matrix.split(".")
    numbers = [index for index, part in enumerate(parts) if re.fullmatch(r"\d+", part)]
    if not numbers:
        return "model"
    block = ".".join(parts[: numbers[0] + 1])
    if sharing == "block":
        return block
    attention = next((part for part in parts[numbers[0] + 1 : -1] if "att" in part.lower()), None)
    return f"{block}.{attention or 'feed-forward'}"
