"""FineGates: adapt a frozen model by gates on its matrices, and so find what it can do without.

Idea: gates between 0 and 1 on the rows and columns of every matrix, drawn with noise in training and pushed towards a
target by a penalty, scale what matters and close what does not.
Formula: y = r ⊙ (W (c ⊙ x) + b) with gates clip(½ + tanh(m) + ε, 0, 1); the penalty on each side of each matrix is
|mean Φ(u/σ_r) − (1 − s)| (docs/methods/fine-gates.md).
Trained: one number per gate; the biases of all attention and feed-forward matrices if wanted; LoRA's matrices inside
the gates if wanted; and the head. Inference: gates are folded into the weights; closed rows and columns are taken out
of the exported model where a stock checkpoint can do without them.
Source: Svirsky, Refael & Lindenbaum 2024 (arXiv 2412.12951) and 2026 (2602.09169), of which abstracts and code were
read, and not the papers' text; constants of the authors' code, of their pull request to PEFT, and of STG (Yamada et
al. 2020) are presets. Deviations: the penalty weight per gate does not depend on the model's size; it starts late by
default; biases that a matrix does not have are not added; matched features are ours. Structured pruning by learned
gates, where everything that is closed can be removed, is `prune` with importance "learned".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, final

import torch

from handful.backbone.blocks import find_blocks, obstacles
from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ConfigError, ModelError
from handful.methods.base import AbstractMethod, Preset, setting
from handful.methods.exports import Exports
from handful.methods.gates.adapter import gated_exports, matching_obstacles
from handful.methods.gates.distribution import Squash
from handful.methods.gates.prune import Prune
from handful.methods.gates.published import MatrixGatesAdapter
from handful.methods.head import HEAD_INIT, HeadInit
from handful.methods.search_space import EPOCHS, SearchSpace, around

_CODE = "Svirsky et al., their code"
_SOURCES = {"penalty_weight": 50.0, "penalty_start": 0.0, "target_sparsity": 0.4, "head_init": "normal"}
_REPO_TRAINING = {
    "epochs": 100, "learning_rate": 1e-3, "head_learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0,
    "gradient_clip": 0.0, "trunk_dropout": True,
}  # fmt: skip
_REPO_RUN = {"pooling": "family", "max_length": 512}
_FIRST_WRITTEN = {
    "mode": "faithful", "groups": "auto", "multiple": 16, "importance": "taylor", "slope": 5.0, "dense_share": 0.05,
    "close_share": 0.6,
}  # fmt: skip
"""What the record of a run held besides, when gates on units and heads were a mode of this method."""
_NOW_PRUNE = "this method is the published one alone; gates on units and heads are method 'prune', importance 'learned'"


@final
@dataclass(frozen=True)
class FineGates(AbstractMethod):
    """A row and a column gate for every matrix of a frozen model."""

    name: ClassVar[str] = "fine-gates"
    summary: ClassVar[str] = "FineGates as published: stochastic gates on the rows and columns of every matrix"
    source: ClassVar[str] = "Svirsky, Refael & Lindenbaum 2024 and 2026"
    export_format: ClassVar[str] = "dense"
    former: ClassVar[Mapping[str, str]] = dict.fromkeys(_FIRST_WRITTEN, _NOW_PRUNE)
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "gates as published, with our head, and a rate and schedule that close them in few steps "
            "(docs/experiments.md)",
            {"target_sparsity": 0.4},
            training={"epochs": 20, "learning_rate": 3e-2, "head_learning_rate": 3e-3, "schedule": "constant"},
        ),
        "repo": Preset("the authors' GLUE script", _SOURCES, _REPO_TRAINING, _REPO_RUN),
        "peft": Preset(
            "defaults of the authors' pull request to PEFT",
            _SOURCES
            | {
                "init_mean": 0.9,
                "noise_std": 0.0,
                "penalty_weight": 0.01,
                "target_sparsity": 0.2,
                "train_biases": False,
            },
            _REPO_TRAINING | {"epochs": 10},
            _REPO_RUN,
        ),
        "stg": Preset(
            "the gate of the parent method STG and its λ, the rest as in 'repo'",
            _SOURCES | {"squash": "shift", "init_mean": 0.0, "init_std": 0.01, "noise_std": 0.5, "penalty_weight": 0.1},
            _REPO_TRAINING,
            _REPO_RUN,
        ),
        "paper": Preset(
            "incomplete: the gate of the paper's figure, second hand; the paper's constants are not known to us, so "
            "those of 'repo' stand in",
            _SOURCES | {"squash": "none"},
            _REPO_TRAINING,
            _REPO_RUN,
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-3, 1e-2, 3e-2),
        "training.epochs": EPOCHS,
    }

    target_sparsity: Annotated[
        float, setting("s: the share of each side's gates that the penalty wants closed", source=_CODE, gt=0, lt=1)
    ] = 0.2
    train_biases: Annotated[
        bool, setting("train the biases of all attention and feed-forward matrices too", source=_CODE)
    ] = True
    train_head: Annotated[bool, setting("train the head, and do not leave it at its start")] = True
    lora_rank: Annotated[
        int,
        setting(
            "rank of LoRA on the gated matrices, inside the gates; 0: none",
            source="the paper's figure, second hand",
            ge=0,
            le=256,
        ),
    ] = 0
    match_features: Annotated[float, setting("α of α‖f − f₀‖²/‖f₀‖², f₀ the features of the whole model", ge=0)] = 0.0
    num_vertices: Annotated[int, setting("vertices M of a simplex of gates; 1: none", ge=1, le=16)] = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"
    noise_std: Annotated[float, setting("σ_n of the noise on gates in training", source=_CODE, ge=0)] = 0.1

    squash: Annotated[Squash, setting("location u: ½ + tanh(m), ½ + m, or m", source=_CODE)] = "tanh"
    init_mean: Annotated[float, setting("mean of m at the start", source=_CODE)] = 1.0
    init_std: Annotated[float, setting("standard deviation of m at the start", source=_CODE, ge=0)] = 0.1
    penalty_std: Annotated[float, setting("σ_r in the penalty's p = Φ(u/σ_r)", source=_CODE, gt=0)] = 0.5
    pressure: Annotated[float, setting("weight of the penalty per gate, for models of every size", ge=0)] = 1e-3
    penalty_weight: Annotated[
        float | None, setting("the sources' λ, instead of pressure; it means less in larger models", ge=0)
    ] = None
    penalty_start: Annotated[
        float, setting("share of training before the penalty, in which the task is learned; 0 in the code", ge=0, lt=1)
    ] = 0.5
    kurtosis: Annotated[
        bool,
        setting(
            "weight the penalty by kurtosis: more on rows and columns without outliers, none on closed gates",
            source=_CODE + ", off there too",
        ),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        default = next(field.default for field in fields(self) if field.name == "pressure")
        if self.penalty_weight is not None and self.pressure != default:
            raise ConfigError(
                f"method.pressure: expected it or penalty_weight, found {self.pressure:g} and {self.penalty_weight:g}",
                "both are the weight of the penalty: leave one of them out",
            )

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> AbstractMethod:
        """Records from when this name had two modes: "coupled" is `Prune` with learned gates, "faithful" this one."""
        settings = dict(settings)
        mode = settings.pop("mode", None)
        if mode == "coupled":
            of_prune = {field.name for field in fields(Prune)}
            learned = {name: value for name, value in settings.items() if name in of_prune}
            return Prune.from_settings(
                learned | {"importance": "learned", "init_importance": learned.get("importance", "taylor")}
            )
        if mode == "faithful":
            settings = {name: value for name, value in settings.items() if name not in _FIRST_WRITTEN}
        return cls.from_settings(settings)

    def identity(self) -> dict[str, Any]:
        return super().identity() | _FIRST_WRITTEN

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        del task
        if reasons := obstacles(backbone.config):
            return reasons
        try:
            find_blocks(backbone.model)
        except ModelError as error:
            return [error.message + (f" ({error.hint})" if error.hint else "")]
        return matching_obstacles(backbone, self.match_features)

    def exports(self, backbone: Backbone | str) -> Exports:
        return gated_exports(backbone)

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> MatrixGatesAdapter:
        if reasons := self.check(backbone, task):
            raise ModelError(f"method {self.name!r}: {reasons[0]}")
        return MatrixGatesAdapter(backbone, task, self, generator=generator)
