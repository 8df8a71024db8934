"""FineGates: adapt a frozen model by gates on its matrices, and so find what it can do without.

Idea: gates between 0 and 1 on rows and columns, drawn with noise in training and pressed towards a target, scale what
matters and close what does not. Formula: y = r ⊙ (W (c ⊙ x) + b) with gates clip(½ + tanh(m) + ε, 0, 1).
Mode "faithful": a row and a column gate for every matrix, each side pressed to keep 1 − s of itself (`matrix_gates`).
Mode "coupled", ours: one gate for each feed-forward unit, or head with its key and value, closed by a budget of
parameters (`group_gates`): all that is closed can be taken out.
Trained: one number a gate; the biases of all attention and feed-forward matrices if wanted, in both modes; LoRA's
matrices inside the gates if wanted; and the head. Inference: gates are folded into the weights; what is closed is taken
out of the exported model.
Source: Svirsky, Refael & Lindenbaum 2024 (arXiv 2412.12951) and 2026 (2602.09169), of which abstracts and code were
read, and not the papers' text; constants of the authors' code, of their pull request to PEFT, and of STG (Yamada et
al. 2020) are presets. Deviations: the pressure on a gate does not depend on the model's size; biases that a matrix does
not have are not added; matched features, the budget, and all of "coupled" are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal, final

import torch

from handful.backbone.blocks import find_blocks, obstacles
from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ConfigError, ModelError
from handful.methods.base import AbstractMethod, Preset, setting
from handful.methods.exports import Exports
from handful.methods.gates.adapter import gated_exports, matching_obstacles
from handful.methods.gates.distribution import Squash
from handful.methods.gates.importance import Importance
from handful.methods.gates.published import MatrixGatesAdapter
from handful.methods.gates.structured import MULTIPLE, Closing, GroupGatesAdapter, Groups, plan_budget
from handful.methods.head import HEAD_INIT, HeadInit
from handful.methods.search_space import EPOCHS, SearchSpace, around

_SHEET = "Svirsky et al., their code (sheet {})"
_FAITHFUL = {"mode": "faithful", "penalty_weight": 50.0, "target_sparsity": 0.4, "head_init": "normal"}
_REPO_TRAINING = {
    "epochs": 100, "learning_rate": 1e-3, "head_learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0,
    "gradient_clip": 0.0, "trunk_dropout": True,
}  # fmt: skip
_REPO_RUN = {"pooling": "family", "max_length": 512}
_BELONGS = {
    "faithful": (
        "squash", "init_mean", "init_std", "penalty_std", "pressure", "penalty_weight", "penalty_start", "kurtosis",
    ),
    "coupled": ("groups", "multiple", "importance", "slope", "dense_share", "close_share"),
}  # fmt: skip
"""Settings that only one mode has."""


@final
@dataclass(frozen=True)
class FineGates(AbstractMethod):
    """Gates on the matrices of a frozen model."""

    name: ClassVar[str] = "fine-gates"
    summary: ClassVar[str] = "FineGates: stochastic gates adapt the model, and what they close is taken out of it"
    source: ClassVar[str] = "Svirsky, Refael & Lindenbaum 2024 and 2026"
    export_format: ClassVar[str] = "dense"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours: coupled gates (docs/experiments.md)",
            training={"epochs": 20, "learning_rate": 1e-2, "head_learning_rate": 3e-3},
        ),
        "published": Preset(
            "gates as published, with our head and a rate at which few rows close them (docs/experiments.md)",
            {"mode": "faithful", "target_sparsity": 0.4},
            training={"epochs": 20, "learning_rate": 3e-2, "head_learning_rate": 3e-3},
        ),
        "repo": Preset("the authors' GLUE script (sheet 4.1)", _FAITHFUL, _REPO_TRAINING, _REPO_RUN),
        "peft": Preset(
            "defaults of the authors' pull request to PEFT (sheet 1.2 and 2)",
            _FAITHFUL
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
            "the gate of the parent method STG and its λ (sheet 1.5), the rest as in 'repo'",
            _FAITHFUL
            | {"squash": "shift", "init_mean": 0.0, "init_std": 0.01, "noise_std": 0.5, "penalty_weight": 0.1},
            _REPO_TRAINING,
            _REPO_RUN,
        ),
        "paper": Preset(
            "incomplete: the gate of the paper's figure, second hand (sheet 1.2); its constants are not known to us, "
            "so those of 'repo' stand in",
            _FAITHFUL | {"squash": "none"},
            _REPO_TRAINING,
            _REPO_RUN,
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-3, 1e-2, 3e-2),
        "training.epochs": EPOCHS,
    }

    mode: Annotated[
        Literal["coupled", "faithful"],
        setting("gates on what can be taken out, or a row and a column gate for every matrix", source="ours; sheet 1"),
    ] = "coupled"
    target_sparsity: Annotated[
        float,
        setting(
            "coupled: share of the gateable parameters that are removed; faithful: s of every side",
            source=_SHEET.format(2),
            gt=0,
            lt=1,
        ),
    ] = 0.2
    train_biases: Annotated[
        bool, setting("train the biases of all attention and feed-forward matrices too", source=_SHEET.format("1.4"))
    ] = True
    train_head: Annotated[bool, setting("train the head, and do not leave it at its start")] = True
    lora_rank: Annotated[
        int,
        setting(
            "rank of LoRA on the gated matrices, inside the gates; 0: none",
            source="the paper's figure, second hand (sheet 1.3)",
            ge=0,
            le=256,
        ),
    ] = 0
    match_features: Annotated[float, setting("α of α‖f − f₀‖²/‖f₀‖², f₀ the features of the whole model", ge=0)] = 0.0
    num_vertices: Annotated[int, setting("vertices M of a simplex of gates; 1: none", ge=1, le=16)] = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"
    noise_std: Annotated[float, setting("σ_n of the noise on gates in training", source=_SHEET.format("1.2"), ge=0)] = (
        0.1
    )

    squash: Annotated[Squash, setting("faithful: location ½ + tanh(m), ½ + m, or m", source=_SHEET.format("1.2"))] = (
        "tanh"
    )
    init_mean: Annotated[float, setting("faithful: mean of m at the start", source=_SHEET.format("1.2"))] = 1.0
    init_std: Annotated[
        float, setting("faithful: standard deviation of m at the start", source=_SHEET.format("1.2"), ge=0)
    ] = 0.1
    penalty_std: Annotated[
        float, setting("faithful: σ_r in the penalty's p = Φ(u/σ_r)", source=_SHEET.format(2), gt=0)
    ] = 0.5
    pressure: Annotated[float, setting("faithful: weight of the penalty per gate, whatever the model's size", ge=0)] = (
        1e-3
    )
    penalty_weight: Annotated[
        float | None,
        setting("faithful: the sources' λ, instead of the pressure; it means less in larger models", ge=0),
    ] = None
    penalty_start: Annotated[
        float, setting("faithful: share of training before the penalty", source=_SHEET.format(2), ge=0, lt=1)
    ] = 0.0
    kurtosis: Annotated[
        bool,
        setting(
            "faithful: press rows and columns without outliers more, and count open gates alone",
            source=_SHEET.format(2) + ", off there too",
        ),
    ] = False

    groups: Annotated[
        Groups, setting("coupled: gates on units, on heads too, or auto: on what a stock checkpoint can do without")
    ] = "auto"
    multiple: Annotated[
        int, setting("coupled: the units kept are a multiple of this; where it is 16, of less in narrow models", ge=1)
    ] = MULTIPLE
    importance: Annotated[Importance, setting("coupled: what decides the scores at the start")] = "taylor"
    slope: Annotated[float, setting("coupled: width of a gate's soft zone is 1/slope of all ranks", gt=0)] = 5.0
    dense_share: Annotated[float, setting("coupled: share of training before gates close", ge=0, lt=1)] = 0.05
    close_share: Annotated[float, setting("coupled: share of training by which all are closed", gt=0, le=1)] = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_other_modes()
        if self.dense_share >= self.close_share:
            raise ConfigError(
                f"method.dense_share: expected less than close_share, found {self.dense_share} and {self.close_share}",
                "gates close between the two",
            )

    def _refuse_other_modes(self) -> None:
        """Raises: ConfigError for settings that this mode would ignore."""
        mode = "coupled" if self.mode == "faithful" else "faithful"
        defaults = {field.name: field.default for field in fields(self)}
        found = [name for name in _BELONGS[mode] if getattr(self, name) != defaults[name]]
        if found:
            values = ", ".join(f"{name} = {getattr(self, name)!r}" for name in found)
            raise ConfigError(
                f"method.{found[0]}: mode {self.mode!r} has no such setting; found of mode {mode!r}: {values}",
                f"leave {'it' if len(found) == 1 else 'them'} out, or set method.mode to {mode!r}",
            )
        if self.penalty_weight is not None and self.pressure != defaults["pressure"]:
            raise ConfigError(
                f"method.pressure: expected it or penalty_weight, found {self.pressure:g} and {self.penalty_weight:g}",
                "both are the weight of the penalty: leave one of them out",
            )

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        del task
        if reasons := obstacles(backbone.config):
            return reasons
        try:
            if self.mode == "coupled":
                _ = plan_budget(backbone, self.target_sparsity, self.groups, self.multiple).closing
            else:
                find_blocks(backbone.model)
        except (ConfigError, ModelError) as error:
            return [error.message + (f" ({error.hint})" if error.hint else "")]
        return matching_obstacles(backbone, self.match_features)

    def exports(self, backbone: Backbone | str) -> Exports:
        return gated_exports(backbone)

    def attach(
        self, backbone: Backbone, task: Task, *, generator: torch.Generator
    ) -> GroupGatesAdapter | MatrixGatesAdapter:
        if reasons := self.check(backbone, task):
            raise ModelError(f"method {self.name!r}: {reasons[0]}")
        if self.mode == "faithful":
            return MatrixGatesAdapter(backbone, task, self, generator=generator)
        learning = Closing(self.slope, self.noise_std, self.dense_share, self.close_share, self.num_vertices)
        return GroupGatesAdapter(backbone, task, self, generator=generator, learning=learning)
