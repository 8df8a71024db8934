"""Prefix subspaces: learn a whole simplex of prefixes and heads; draw a point for every example and layer.

Idea: M prefixes θ₁…θ_M and M heads φ₁…φ_M span a simplex. Training draws a random point of it for every example and
every layer, so that everything between the vertices works; the midpoint then is one ordinary prefix, and random points
give a validation metric and a disagreement. Formula: θˡ = Σᵢ wˡᵢ θˡᵢ with wˡ ~ Dir(1_M) for each example and layer,
φ = Σᵢ uᵢ φᵢ with u ~ Dir(1_M) independently; min E_{x,w,u} loss(f(x; θ), φ). Trained: M·(2·L·H·P·d + C·D + C) numbers
(flat form). Inference at the midpoint: that of prefix tuning.
Source: Falissard, Guigue & Soulier 2023 (arXiv 2310.15793), whose text and code were not available to us: everything
unknown there (docs/methods/prefix-subspace.md: M, P, learning rates, draws, predictor, …) is our default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.methods.base import Preset, setting
from handful.methods.prefix import DEFAULT, AbstractPrefix, PrefixAdapter
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around
from handful.methods.simplex import Geometry, Simplex


@final
@dataclass(frozen=True)
class PrefixSubspace(AbstractPrefix):
    """A simplex of prefixes and heads."""

    name: ClassVar[str] = "prefix-subspace"
    summary: ClassVar[str] = "a simplex of prefixes and heads, a random point for every example and layer"
    source: ClassVar[str] = "Falissard et al. 2023, arXiv 2310.15793"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": DEFAULT,
        "paper": Preset(
            "our reading of Falissard et al. 2023; values that were not available to us are ours",
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
    match_sampled: Annotated[bool, setting("scale the start by √((M+1)/2), so that drawn prefixes have init_std")] = (
        False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.simplex  # refuses a geometry of other vertices

    @property
    def simplex(self) -> Simplex:
        """What points are drawn from."""
        return Simplex(self.num_vertices, self.geometry, self.concentration)

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PrefixAdapter:
        return PrefixAdapter(backbone, task, self, generator=generator)
