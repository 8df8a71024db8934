"""The law of a stochastic gate, and the penalty that closes gates.

A gate has one number m, a location u(m), in training z = clip(u + ε, 0, 1) with ε ~ N(0, σ_n²), and without noise
ẑ = clip(u, 0, 1), which is not rounded (sheet 1.2). Source: Svirsky, Refael & Lindenbaum 2024/26; Yamada et al. 2020.
"""

from __future__ import annotations

from typing import Literal

import torch

Squash = Literal["tanh", "shift", "none"]
"""u = ½ + tanh(m) (the authors' code), ½ + m (the parent method STG), or m (the paper's figure, second hand)."""


def location(m: torch.Tensor, squash: Squash = "tanh") -> torch.Tensor:
    """u(m), the mean of the gate before it is clipped."""
    if squash == "none":
        return m
    return 0.5 + (m.tanh() if squash == "tanh" else m)


def open_probability(u: torch.Tensor, std: float) -> torch.Tensor:
    """Φ(u / σ): the probability that clip(u + ε, 0, 1) > 0 for ε ~ N(0, σ²).

    The penalty takes σ_r = ½ for σ, wider than the noise σ_n that gates are drawn with, so its p is not the true
    probability (sheet 2): with σ_n for σ a gate that starts open would feel no pressure at all.
    """
    return torch.special.ndtr(u / std)


def deviation(p: torch.Tensor, axes: torch.Tensor, sizes: torch.Tensor, keep: float) -> torch.Tensor:
    """|mean p − keep| for each axis (a row or a column side of one matrix): (A,).

    `p` (n,) of all gates, `axes` (n,) the axis that each belongs to, `sizes` (A,) how many each has (sheet 2).
    """
    means = torch.zeros_like(sizes).index_add(0, axes, p) / sizes
    return (means - keep).abs()
