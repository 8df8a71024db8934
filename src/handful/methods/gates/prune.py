"""Structured pruning before training, by an importance that nobody learns: what coupled gates have to beat.

Idea: score units (and heads) once, from weights or from the training texts, take the least important out, and train
biases and head so that the rest makes up for it. Formula: scores as in `importance`; as many groups of each block are
closed as in coupled FineGates at the same target, so that both have the same shapes.
Trained: the biases of all attention and feed-forward matrices if wanted, LoRA's matrices if wanted, and the head.
Inference: the smaller model. Source: Sun et al. 2024 (Wanda's score, summed over groups), Michel et al. 2019 (taylor);
recovery and matched features are ours, the same as those of coupled gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from handful.backbone.blocks import find_blocks, obstacles
from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ConfigError, ModelError
from handful.methods.base import AbstractMethod, Preset, setting
from handful.methods.exports import Exports
from handful.methods.gates.adapter import gated_exports, matching_obstacles
from handful.methods.gates.importance import Importance
from handful.methods.gates.structured import MULTIPLE, GroupGatesAdapter, Groups, plan_budget
from handful.methods.head import HEAD_INIT, HeadInit
from handful.methods.search_space import EPOCHS, SearchSpace, around


@final
@dataclass(frozen=True)
class Prune(AbstractMethod):
    """Take the least important units out, then train what is left."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "structured pruning by magnitude, activations or gradients, then recovery"
    source: ClassVar[str] = "Sun et al. 2024; Michel et al. 2019"
    export_format: ClassVar[str] = "dense"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours: as for coupled gates, so that only the choice of units differs",
            training={"epochs": 20, "learning_rate": 1e-2, "head_learning_rate": 3e-3},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-3, 1e-2, 3e-2),
        "training.epochs": EPOCHS,
    }

    importance: Annotated[Importance, setting("what decides: gradients, activations, weights, or chance")] = "wanda"
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

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        if reasons := obstacles(backbone.config):
            return reasons
        try:
            _ = plan_budget(backbone, self.target_sparsity, self.groups, self.multiple).closing
        except (ConfigError, ModelError) as error:
            return [error.message + (f" ({error.hint})" if error.hint else "")]
        if reasons := matching_obstacles(backbone, self.match_features):
            return reasons
        blocks = find_blocks(backbone.model)
        has_biases = any(
            getattr(backbone.model.get_submodule(name), "bias", None) is not None for name in blocks.matrices
        )
        has_head = self.train_head and not task.objective.generates
        if not (has_head or (self.train_biases and has_biases) or self.lora_rank):
            return ["nothing would be left to train: no head, no biases and no LoRA; give a method.lora_rank"]
        return []

    def exports(self, backbone: Backbone | str) -> Exports:
        return gated_exports(backbone)

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> GroupGatesAdapter:
        if reasons := self.check(backbone, task):
            raise ModelError(f"method {self.name!r}: {reasons[0]}")
        return GroupGatesAdapter(backbone, task, self, generator=generator, learning=None)
