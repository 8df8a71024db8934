"""The law of a stochastic gate, and the penalty that closes gates.

A gate has one number m, a location u(m), in training z = clip(u + ε, 0, 1) with ε ~ N(0, σ_n²), and without noise
ẑ = clip(u, 0, 1), which is not rounded. Source: Svirsky, Refael & Lindenbaum 2024/26; Yamada et al. 2020.
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
    probability: with σ_n for σ a gate that starts open would feel no pressure at all (check 2 of
    docs/methods/fine-gates.md).
    """
    return torch.special.ndtr(u / std)


def deviation(
    p: torch.Tensor, axes: torch.Tensor, sizes: torch.Tensor, keep: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """|mean p − keep| for each axis (a row or a column side of one matrix): (A,).

    `p` (n,) of all gates, `axes` (n,) the axis that each belongs to, `sizes` (A,) how many each has. With
    `weights` (n,), which sum to 1 on each axis, it is a weighted mean.
    """
    total = torch.zeros_like(sizes).index_add(0, axes, p if weights is None else weights * p)
    return ((total / sizes if weights is None else total) - keep).abs()


KURTOSIS_TEMPERATURE = 100.0
"""τ of `kurtosis_weights`, that of the authors' code."""


@torch.no_grad()
def kurtosis_weights(
    weight: torch.Tensor, mean_input: torch.Tensor, open_rows: torch.Tensor, open_columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(−√κ / τ) over the open rows (out,), and over the open columns (in,), of a matrix; 0 where closed.

    κ is Pearson's kurtosis E[(m − E m)⁴] / E[(m − E m)²]² of a row, or column, of M = W ∘ x̄ without what is closed, x̄
    (in,) the mean input: rows without outliers are pressed a little more. As closed gates count no more, those that are
    open have to come down to the target by themselves (the authors' code).
    """
    found = (weight * mean_input)[open_rows][:, open_columns]
    return tuple(  # type: ignore[return-value]
        torch.zeros_like(mask, dtype=found.dtype).masked_scatter(
            mask, (-_kurtosis(found, dim).sqrt() / KURTOSIS_TEMPERATURE).softmax(0)
        )
        for mask, dim in ((open_rows, 1), (open_columns, 0))
    )


def _kurtosis(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Pearson's kurtosis along an axis; of constants 1, the least that there is."""
    squares = (values - values.mean(dim, keepdim=True)).square()
    return (squares.square().mean(dim) / squares.mean(dim).square()).nan_to_num(1.0)
