"""Structured pruning: take whole feed-forward units (and attention heads) out of a frozen model, and recover.

Idea: score units and heads from weights, activations or gradients and remove the least important at once; or learn
which to remove with one gate per unit (importance "learned", ours). Formula: scores as in `importance`; learned,
z = clip((m − τ)·slope + ε, 0, 1) with a threshold τ per layer that closes exactly what the budget says
(`GroupGatesAdapter`). A target removes the same number of groups of each block whatever the importance, so that all
variants have the same shapes.
Trained: the gates' scores if learned; the biases of all attention and feed-forward matrices if wanted, LoRA's matrices
if wanted, and the head. Inference: the smaller model. Source: Sun et al. 2024 (Wanda's score, summed over groups),
Michel et al. 2019 (taylor), gates after Svirsky et al. 2024; the budget, recovery and matched features are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, final

import torch

from handful.backbone.blocks import find_blocks, obstacles
from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ConfigError, ModelError
from handful.methods.base import AbstractMethod, Preset, setting
from handful.methods.exports import Exports
from handful.methods.gates.adapter import gated_exports, matching_obstacles
from handful.methods.gates.budget import MULTIPLE, Budget, Groups, plan_budget
from handful.methods.gates.importance import Importance
from handful.methods.gates.structured import Closing, GroupGatesAdapter
from handful.methods.head import HEAD_INIT, HeadInit
from handful.methods.search_space import EPOCHS, SearchSpace, around

LEARNED = ("init_importance", "num_vertices", "noise_std", "slope", "dense_share", "close_share")
"""Settings of gates that are learned, which the other importances do not have."""

_FIRST_WRITTEN = {
    "mode": "coupled", "squash": "tanh", "init_mean": 1.0, "init_std": 0.1, "penalty_std": 0.5, "pressure": 1e-3,
    "penalty_weight": None, "penalty_start": 0.0, "kurtosis": False,
}  # fmt: skip
"""What the record of a run with learned gates held when they were the mode 'coupled' of 'fine-gates'."""


@final
@dataclass(frozen=True)
class Prune(AbstractMethod):
    """Remove the least important units, chosen at once or by learned gates, and train what is left."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "structured pruning by activations, gradients, magnitude or learned gates, with recovery"
    source: ClassVar[str] = "Sun et al. 2024; Michel et al. 2019; learned gates are ours"
    export_format: ClassVar[str] = "dense"
    has_budget: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours, the same for every importance, so that only the choice of units differs (docs/experiments.md)",
            training={"epochs": 20, "learning_rate": 1e-2, "head_learning_rate": 3e-3},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-3, 1e-2, 3e-2),
        "training.epochs": EPOCHS,
    }

    importance: Annotated[
        Importance | Literal["learned"],
        setting("what decides: activations, gradients, weights, chance, or gates that are learned"),
    ] = "wanda"
    target_sparsity: Annotated[float, setting("share of the gateable parameters that are removed", gt=0, lt=1)] = 0.2
    groups: Annotated[Groups, setting("remove units, heads too, or auto: what a stock checkpoint can do without")] = (
        "auto"
    )
    multiple: Annotated[
        int, setting("the units kept are a multiple of this; where it is 16, of less in narrow models", ge=1)
    ] = MULTIPLE
    train_biases: Annotated[bool, setting("train the biases of all attention and feed-forward matrices too")] = True
    train_head: Annotated[bool, setting("train the head, and do not leave it at its start")] = True
    lora_rank: Annotated[
        int, setting("rank of LoRA on the matrices out of the pruned blocks; 0: none", ge=0, le=256)
    ] = 0
    match_features: Annotated[float, setting("α of α‖f − f₀‖²/‖f₀‖², f₀ the features of the whole model", ge=0)] = 0.0
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    init_importance: Annotated[Importance, setting("learned: importance that the scores start from")] = "taylor"
    num_vertices: Annotated[int, setting("learned: vertices M of a simplex of gates; 1: none", ge=1, le=16)] = 1
    noise_std: Annotated[float, setting("learned: σ_n of the noise on gates in training", ge=0)] = 0.1
    slope: Annotated[float, setting("learned: width of a gate's soft zone is 1/slope of all ranks", gt=0)] = 5.0
    dense_share: Annotated[float, setting("learned: share of training before gates close", ge=0, lt=1)] = 0.05
    close_share: Annotated[float, setting("learned: share of training by which all are closed", gt=0, le=1)] = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in fields(self)}
        found = [name for name in LEARNED if getattr(self, name) != defaults[name]]
        if found and self.importance != "learned":
            values = ", ".join(f"{name} = {getattr(self, name)!r}" for name in found)
            raise ConfigError(
                f"method.{found[0]}: a setting of learned gates, found importance {self.importance!r} and {values}",
                f"leave {'it' if len(found) == 1 else 'them'} out, or set method.importance to 'learned'",
            )
        if self.dense_share >= self.close_share:
            raise ConfigError(
                f"method.dense_share: expected less than close_share, found {self.dense_share} and {self.close_share}",
                "gates close between the two",
            )

    def identity(self) -> dict[str, Any]:
        """As first written: learned gates were a mode of 'fine-gates', and the other importances had no gates."""
        settings = super().identity()
        if self.importance != "learned":
            return {name: value for name, value in settings.items() if name not in LEARNED}
        settings |= {"name": "fine-gates", "importance": settings.pop("init_importance")}
        return settings | _FIRST_WRITTEN

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        if reasons := obstacles(backbone.config):
            return reasons
        try:
            _ = self.budget(backbone, self.target_sparsity).closing
        except (ConfigError, ModelError) as error:
            return [error.message + (f" ({error.hint})" if error.hint else "")]
        if reasons := matching_obstacles(backbone, self.match_features):
            return reasons
        blocks = find_blocks(backbone.model)
        has_biases = any(
            getattr(backbone.model.get_submodule(name), "bias", None) is not None for name in blocks.matrices
        )
        has_head = self.train_head and not task.objective.generates
        learns = self.importance == "learned" or (self.train_biases and has_biases) or self.lora_rank
        if not (has_head or learns):
            return ["nothing would be left to train: no head, no biases and no LoRA; give a method.lora_rank"]
        return []

    def budget(self, backbone: Backbone, share: float) -> Budget:
        return plan_budget(backbone, share, self.groups, self.multiple)

    def exports(self, backbone: Backbone | str) -> Exports:
        return gated_exports(backbone)

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> GroupGatesAdapter:
        if reasons := self.check(backbone, task):
            raise ModelError(f"method {self.name!r}: {reasons[0]}")
        importance, learning = self.importance, None
        if importance == "learned":
            importance = self.init_importance
            learning = Closing(self.slope, self.noise_std, self.dense_share, self.close_share, self.num_vertices)
        return GroupGatesAdapter(backbone, task, self, generator=generator, importance=importance, learning=learning)
