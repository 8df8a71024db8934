"""A simplex of any set of tensors: M vertices, points between them, and the law points are drawn from.

Idea: instead of one set of parameters θ, learn M of them and use any point Σᵢ wᵢ θᵢ with w ≥ 0, Σᵢ wᵢ = 1 (Wortsman
et al. 2021; Falissard et al. 2023). Trained: M times the numbers of one θ. Inference at the midpoint costs nothing
extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import nn

Geometry = Literal["simplex", "line", "curve"]


def draw_weights(
    shape: tuple[int, ...],
    num_vertices: int,
    generator: torch.Generator,
    *,
    geometry: Geometry = "simplex",
    concentration: float = 1.0,
) -> torch.Tensor:
    """Points of the simplex, (*shape, M) in float32, on the CPU.

    simplex: Dirichlet(α, …, α) with α = `concentration`; α = 1 is uniform, drawn as unit exponentials over their sum
    (sheet 1.3). line: (1−t, t), t uniform, M = 2. curve: the quadratic Bézier weights ((1−t)², 2t(1−t), t²) on
    (start, control, end), M = 3 (sheet 1.8).
    """
    check_geometry(geometry, num_vertices)
    if num_vertices == 1:
        return torch.ones(*shape, 1)
    if geometry == "simplex" and concentration == 1.0:
        exponentials = torch.empty(*shape, num_vertices, dtype=torch.float64).exponential_(generator=generator)
        return (exponentials / exponentials.sum(-1, keepdim=True)).float()
    if geometry == "simplex":
        # Γ(α) = Γ(α + 1)·U^(1/α) in law; its logarithm does not underflow however small α is. torch.distributions takes
        # no generator; _standard_gamma is what its Gamma calls.
        shapes = torch.full((*shape, num_vertices), concentration + 1, dtype=torch.float64)
        logs = torch._standard_gamma(shapes, generator).log()  # pyright: ignore[reportPrivateImportUsage]
        logs += torch.rand(shapes.shape, dtype=torch.float64, generator=generator).neg_().log1p_() / concentration
        return logs.softmax(-1).float()
    return curve_weights(torch.rand(shape, generator=generator), geometry)


def curve_weights(t: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The weights (*, M) of the points t in [0, 1] of a line or a curve."""
    if geometry == "line":
        return torch.stack((1 - t, t), -1)
    return torch.stack(((1 - t) ** 2, 2 * t * (1 - t), t**2), -1)


def midpoint_weights(num_vertices: int, geometry: Geometry = "simplex") -> torch.Tensor:
    """The weights (M,) of the deterministic predictor: the mean of the vertices; for a curve its point t = ½."""
    check_geometry(geometry, num_vertices)
    if geometry == "curve":
        return torch.tensor([0.25, 0.5, 0.25])
    return torch.full((num_vertices,), 1.0 / num_vertices)


def check_geometry(geometry: Geometry, num_vertices: int) -> None:
    """Raises: ValueError when the geometry does not have that many vertices."""
    needed = {"line": 2, "curve": 3}.get(geometry)
    if needed is not None and num_vertices != needed:
        raise ValueError(f"a {geometry} has {needed} vertices, found num_vertices = {num_vertices}")


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


@final
class Simplex(nn.Module):
    """M vertices of a set of named tensors; every parameter is (M, *tensor).

    Names may have dots, as in a state dict; in the parameters' own names they become "__".
    """

    def __init__(self, vertices: Mapping[str, torch.Tensor], geometry: Geometry = "simplex"):
        super().__init__()
        counts = {name: tensor.shape[0] for name, tensor in vertices.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"every tensor of a simplex needs the same number of vertices, found {counts}")
        self.num_vertices = next(iter(counts.values()))
        self.geometry: Geometry = geometry
        check_geometry(geometry, self.num_vertices)
        self.names = {name: name.replace(".", "__") for name in vertices}
        parameters = {self.names[name]: nn.Parameter(tensor.clone()) for name, tensor in vertices.items()}
        self.vertices = nn.ParameterDict(parameters)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, concentration: float = 1.0) -> torch.Tensor:
        """Weights (*shape, M) of random points."""
        return draw_weights(shape, self.num_vertices, generator, geometry=self.geometry, concentration=concentration)

    def mix(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The points with these weights (*, M), each tensor (*, *tensor)."""
        return {name: mix(weights, self.vertices[key]) for name, key in self.names.items()}

    def midpoint(self) -> dict[str, torch.Tensor]:
        """The tensors of the deterministic predictor."""
        return self.mix(midpoint_weights(self.num_vertices, self.geometry))

    def vertex(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one vertex."""
        return {name: self.vertices[key][index] for name, key in self.names.items()}

    def spread(self) -> float:
        """Mean distance between two vertices over all tensors, as a share of the vertices' mean norm; 0 is a point."""
        return spread(list(self.vertices.values()))


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
    """cos²(θⱼ, θₖ) over all tensors of two vertices: the diversity term of Wortsman et al. 2021 (sheet 1.6)."""
    flat = flatten(tensors)
    return torch.cosine_similarity(flat[pair[0]], flat[pair[1]], dim=0) ** 2


def draw_pair(num_vertices: int, generator: torch.Generator) -> tuple[int, int]:
    """Two different vertices, uniformly."""
    first, second = torch.randperm(num_vertices, generator=generator)[:2].tolist()
    return first, second
