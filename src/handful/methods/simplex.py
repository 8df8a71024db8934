"""A simplex: M vertices, points between them, and the law points are drawn from.

Idea: instead of one set of parameters θ, learn M of them and use any point Σᵢ wᵢ θᵢ with w ≥ 0, Σᵢ wᵢ = 1 (Wortsman
et al. 2021; Falissard et al. 2023). Trained: M times the numbers of one θ. Inference at the midpoint costs nothing
extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from handful.errors import ConfigError

Geometry = Literal["simplex", "line", "curve"]


@final
@dataclass(frozen=True)
class Simplex:
    """How points between M vertices are drawn; the vertices themselves are parameters (M, *tensor) of an adapter.

    simplex: Dirichlet(α, …, α) with α = `concentration`; α = 1 is uniform. line: (1−t, t), t uniform, M = 2. curve: the
    quadratic Bézier weights ((1−t)², 2t(1−t), t²) on (start, control, end), M = 3.
    Raises: ConfigError when the geometry does not have that many vertices.
    """

    num_vertices: int = 1
    geometry: Geometry = "simplex"
    concentration: float = 1.0

    def __post_init__(self) -> None:
        needed = {"line": 2, "curve": 3}.get(self.geometry)
        if needed is not None and self.num_vertices != needed:
            raise ConfigError(
                f"a {self.geometry} has {needed} vertices, found num_vertices = {self.num_vertices}",
                "set num_vertices to match the geometry",
            )

    @property
    def midpoint(self) -> torch.Tensor:
        """The weights (M,) of the deterministic predictor: the mean of the vertices; for a curve its point t = ½."""
        if self.geometry == "curve":
            return torch.tensor([0.25, 0.5, 0.25])
        return torch.full((self.num_vertices,), 1.0 / self.num_vertices)

    def point(self, vertex: int | None = None, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The weights (M,) of a vertex, these weights, or those of the midpoint."""
        if vertex is not None:
            return torch.eye(self.num_vertices)[vertex]
        return self.midpoint if weights is None else weights

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """The weights (*shape, M) of random points, in float32 on the CPU. A single vertex draws nothing."""
        if self.num_vertices == 1:
            return torch.ones(*shape, 1)
        if self.geometry != "simplex":
            return curve_weights(torch.rand(shape, generator=generator), self.geometry)
        shape = (*shape, self.num_vertices)
        if self.concentration == 1.0:  # unit exponentials over their sum
            exponentials = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
            return (exponentials / exponentials.sum(-1, keepdim=True)).float()
        # Γ(α) = Γ(α + 1)·U^(1/α) in law; its logarithm does not underflow however small α is. torch.distributions takes
        # no generator; _standard_gamma is what its Gamma calls.
        shapes = torch.full(shape, self.concentration + 1, dtype=torch.float64)
        logs = torch._standard_gamma(shapes, generator).log()  # pyright: ignore[reportPrivateImportUsage]
        logs += torch.rand(shape, dtype=torch.float64, generator=generator).neg_().log1p_() / self.concentration
        return logs.softmax(-1).float()

    def draw_pair(self, generator: torch.Generator) -> tuple[int, int]:
        """Two different vertices, uniformly."""
        first, second = torch.randperm(self.num_vertices, generator=generator)[:2].tolist()
        return first, second


def curve_weights(t: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The weights (*, M) of the points t in [0, 1] of a line or a curve."""
    if geometry == "line":
        return torch.stack((1 - t, t), -1)
    return torch.stack(((1 - t) ** 2, 2 * t * (1 - t), t**2), -1)


def mix(weights: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    """Σᵢ wᵢ θᵢ: weights (*, M), vertices (M, *tensor) → (*, *tensor). Exact for M = 1 and w = 1."""
    if vertices.shape[0] == 1 and bool((weights == 1).all()):
        return vertices[0].expand((*weights.shape[:-1], *vertices.shape[1:]))
    weights, numbers = _full_precision(weights, vertices)
    with torch.autocast(vertices.device.type, enabled=False):
        return torch.tensordot(weights, numbers, dims=1).to(vertices.dtype)


def mix_layers(weights: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    """A point per example and layer: weights (B, L, M), vertices (M, L, *tensor) → (L, B, *tensor).

    One batched matrix product for all layers; layers come first so that each layer's slice is contiguous.
    """
    layers, shape = vertices.shape[1], vertices.shape[2:]
    weights, numbers = _full_precision(weights, vertices)
    per_layer = numbers.transpose(0, 1).reshape(layers, len(vertices), -1)
    with torch.autocast(vertices.device.type, enabled=False):
        return torch.bmm(weights.transpose(0, 1), per_layer).view(layers, -1, *shape).to(vertices.dtype)


def _full_precision(weights: torch.Tensor, vertices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and vertices on the vertices' device, in float32 or more."""
    dtype = torch.promote_types(vertices.dtype, torch.float32)
    return weights.to(vertices.device, dtype), vertices.to(dtype)


@torch.no_grad()
def spread(tensors: list[torch.Tensor]) -> float:
    """Mean pairwise distance of M vertices over their mean norm; tensors (M, *tensor). 0 for one vertex."""
    flat = flatten(tensors)
    count = flat.shape[0]
    if count == 1:
        return 0.0
    distances = torch.pdist(flat.cpu())  # not on every device (mps)
    return float(distances.mean() / flat.norm(dim=1).mean().clamp_min(1e-12).cpu())


def flatten(tensors: list[torch.Tensor]) -> torch.Tensor:
    """All tensors (M, *tensor) side by side: (M, numbers)."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], 1)


def squared_cosine(tensors: list[torch.Tensor], pair: tuple[int, int]) -> torch.Tensor:
    """cos²(θⱼ, θₖ) over all tensors of two vertices: the diversity term of Wortsman et al. 2021."""
    flat = flatten(tensors)
    return torch.cosine_similarity(flat[pair[0]], flat[pair[1]], dim=0) ** 2
