"""Prefix subspaces: learn a whole simplex of prefixes and heads; draw a point for every example and layer.

Idea: M prefixes θ₁…θ_M and M heads φ₁…φ_M span a simplex. Training draws a random point of it for every example and
every layer, so that everything between the vertices works; the midpoint then is one ordinary prefix, and random points
give a validation metric and a disagreement. Formula: θˡ = Σᵢ wˡᵢ θˡᵢ with wˡ ~ Dir(1_M) for each example and layer,
φ = Σᵢ uᵢ φᵢ with u ~ Dir(1_M) independently; min E_{x,w,u} loss(f(x; θ), φ). Trained: M·(2·L·H·P·d + C·D + C) numbers
(flat form). Inference at the midpoint: that of prefix tuning.
Source: Falissard, Guigue & Soulier 2023 (arXiv 2310.15793), whose text and code were not available to us: everything
that the sheet marks unknown (M, P, learning rates, draws, predictor, …) is our default and not the paper's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch

from handful.backbone.load import Backbone
from handful.data.batching import Batch, EncodedRows
from handful.data.task import Task
from handful.methods.base import AbstractMethod, Draw, Preset, setting
from handful.methods.exports import Exports
from handful.methods.head import HEAD_INIT, HeadInit
from handful.methods.prefix import (
    AbstractPrefixAdapter,
    Positions,
    PrefixForm,
    PrefixInit,
    check_prefix,
    check_start,
    inject,
    prefix_exports,
)
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around
from handful.methods.simplex import Geometry, Simplex, mix_layers, spread, squared_cosine


@final
@dataclass(frozen=True)
class PrefixSubspace(AbstractMethod):
    """A simplex of prefixes and heads."""

    name: ClassVar[str] = "prefix-subspace"
    summary: ClassVar[str] = "a simplex of prefixes and heads, a random point for every example and layer"
    source: ClassVar[str] = "Falissard et al. 2023, arXiv 2310.15793"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "search on training pools (docs/experiments.md)",
            training={"learning_rate": 3e-2, "head_learning_rate": 3e-3},
            writing={"learning_rate": 1e-1},
        ),
        "paper": Preset(
            "our reading of Falissard et al. 2023 (sheet 1 and 3); values that were not available to us are ours",
            settings={"head_init": "normal", "positions": "kept", "init": "normal"},
            training={
                "learning_rate": 5e-3, "epochs": 50, "patience": 10, "selection": "best", "validation": "pooled",
            },
            run={"dev": "carved", "dev_fraction": 0.5, "pooling": "family"},
        ),
    }  # fmt: skip
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(3e-3, 3e-2, 1e-1),
        "training.epochs": EPOCHS,
        "method.num_vertices": OneOf((2, 3, 5), "ours: one vertex is the method 'prefix'; 3 is the preset's"),
    }

    num_vertices: Annotated[int, setting("vertices M of the simplex", ge=1, le=16)] = 3
    prefix_length: Annotated[int, setting("virtual keys and values a layer", unit="positions", ge=1, le=512)] = 10
    geometry: Annotated[Geometry, setting("simplex, line (M = 2) or Bézier curve (M = 3)")] = "simplex"
    draw_per: Annotated[
        Literal["observation", "batch"],
        setting("one draw for every example, or one for a batch", source="paper (second hand)"),
    ] = "observation"
    draw_layers: Annotated[
        Literal["per-layer", "shared"],
        setting("each layer draws for itself, or all share one", source="paper (second hand)"),
    ] = "per-layer"
    concentration: Annotated[float, setting("α of the Dirichlet(α, …, α) draws; 1 is uniform", gt=0)] = 1.0
    head_subspace: Annotated[bool, setting("the head has M vertices too", source="paper (second hand)")] = True
    cosine_weight: Annotated[
        float, setting("β of the diversity term β·cos²(θⱼ, θₖ)", source="Wortsman et al. 2021", ge=0)
    ] = 0.0
    form: Annotated[PrefixForm, setting("free tensors, or an MLP a vertex that is dropped after training")] = "flat"
    init: Annotated[PrefixInit, setting("N(0, init_std²), or the keys and values of random training tokens")] = "normal"
    init_std: Annotated[float, setting("standard deviation of a vertex at the start", gt=0)] = 1.0
    match_sampled: Annotated[
        bool, setting("scale the start by √((M+1)/2), so that drawn prefixes have init_std (sheet 1.4)")
    ] = False
    layers: Annotated[
        tuple[int, int] | None, setting("half-open range of layers from 0, or none for all", unit="layers")
    ] = None
    positions: Annotated[
        Positions, setting("move real tokens' positions by P as PEFT does, keep them, or whichever exports")
    ] = "auto"
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self.form, self.init)
        _ = self.simplex  # refuses a geometry of other vertices

    @property
    def simplex(self) -> Simplex:
        """What points are drawn from."""
        return Simplex(self.num_vertices, self.geometry, self.concentration)

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        return check_prefix(backbone, self.layers, self.positions, self.prefix_length)

    def exports(self, backbone: Backbone | str) -> Exports:
        return prefix_exports(backbone, self.prefix_length, self.positions, self.layers)

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PrefixSubspaceAdapter:
        return PrefixSubspaceAdapter(backbone, task, self, generator=generator)


@final
class PrefixSubspaceAdapter(AbstractPrefixAdapter):
    """scores = head(features(x; Σ w θ); Σ u φ)."""

    def __init__(self, backbone: Backbone, task: Task, method: PrefixSubspace, *, generator: torch.Generator):
        simplex = method.simplex
        super().__init__(
            backbone,
            task,
            method,
            generator=generator,
            simplex=simplex,
            scale=((simplex.num_vertices + 1) / 2) ** 0.5 if method.match_sampled else 1.0,
            head_simplex=simplex if method.head_subspace else None,
        )
        self.method = method

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        super().warm_start(rows, generator)
        warn_if_degenerate(self.prefix())

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        rows = len(batch) if self.method.draw_per == "observation" else 1
        layers = len(self.sites)
        shape = (rows, layers) if self.method.draw_layers == "per-layer" else (rows, 1)
        weights = self.simplex.draw(shape, generator).expand(rows, layers, self.num_vertices)
        heads = self.head.simplex.draw((rows,), generator)
        paired = self.training and self.method.cosine_weight and self.num_vertices > 1
        return Draw({"prefix": weights, "head": heads}, {"pair": self.simplex.draw_pair(generator)} if paired else {})

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        point, shared = self.simplex.point(vertex, weights), self.head.simplex != self.simplex
        head = self.head.simplex.midpoint if shared else point
        return Draw({"prefix": point.expand(1, len(self.sites), -1), "head": head[None]})

    def install(self, batch: Batch, draw: Draw) -> None:
        inject(self.backbone, self.sites, self.mixed(draw.rows["prefix"]), self.shift)

    def mixed(self, weights: torch.Tensor) -> torch.Tensor:
        """The prefixes (L, B or 1, 2, H, P, d) at the weights (B or 1, L, M)."""
        vertices = self.prefix()
        return vertices[0].unsqueeze(1) if self.num_vertices == 1 else mix_layers(weights, vertices)

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        if draw is None or "pair" not in draw.shared:
            return None
        return self.method.cosine_weight * squared_cosine([self.prefix()], draw.shared["pair"])

    def folded_prefix(self) -> torch.Tensor:
        return self.mixed(self.at().rows["prefix"])[:, 0].detach()

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        if self.num_vertices == 1:
            return {}
        first, second = torch.triu_indices(self.num_vertices, self.num_vertices, 1).tolist()
        vertices = [self.prefix()]
        cosines = [float(squared_cosine(vertices, pair)) for pair in zip(first, second, strict=True)]
        return {"spread": spread(vertices), "squared_cosine": sum(cosines) / len(cosines)}


def warn_if_degenerate(vertices: torch.Tensor) -> None:
    """Warns when two vertices coincide: the simplex then stays nearly a point (sheet 1.4)."""
    flat = vertices.detach().flatten(1).cpu()  # pdist is not on every device (mps)
    if len(flat) > 1 and float(torch.pdist(flat).min()) < 1e-6 * float(flat.norm(dim=1).max()):
        warnings.warn("two vertices of the simplex are identical; they will hardly separate in training", stacklevel=2)
