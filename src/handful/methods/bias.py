"""BitFit: only the biases of a pretrained model are trained.

Idea: the additive terms of the linear layers and layer norms are under a thousandth of the weights, and moving them
alone goes a long way when labels are few. Formula: every h = W x + b keeps W and trains b; every layer norm trains its
offset. Trained: about 11·L·D numbers in a BERT of L layers and width D with a feed-forward width of 4·D (0.1 M in
BERT-base), plus C·(D + 1). Inference: that of the model, unchanged in size.
Source: Ben Zaken, Goldberg & Ravfogel 2022, section 3. Deviations: any pooling, the head's start. The biases of the
key projections are trained too, as in the paper, though attention does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, final

import torch

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ModelError
from handful.methods.base import AbstractMethod, BorrowedParameters, Preset, setting
from handful.methods.exports import Exports
from handful.methods.full import feeding_parameters
from handful.methods.head import HEAD_INIT, AbstractHeadedAdapter, HeadInit
from handful.methods.search_space import EPOCHS, SearchSpace, around
from handful.methods.subspace import SubspaceAdapter, Vertices, spread_out


@final
@dataclass(frozen=True)
class Bias(AbstractMethod):
    """Train the biases."""

    name: ClassVar[str] = "bias"
    summary: ClassVar[str] = "BitFit: the biases of the model and nothing else"
    source: ClassVar[str] = "Ben Zaken et al. 2022"
    added: ClassVar[tuple[str, ...]] = ("num_vertices",)
    export_format: ClassVar[str] = "dense"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours, not searched: the largest rate of the paper's grid, for few steps",
            training={"learning_rate": 1e-3, "head_learning_rate": 1e-3},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-4, 1e-3, 1e-2),
        "training.epochs": EPOCHS,
    }

    num_vertices: Vertices = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        if any(_is_bias(name) for name, _ in backbone.model.named_parameters()):
            return []
        return [f"{backbone.family} has no biases to train; use 'lora' or 'prefix'"]

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> BiasAdapter | SubspaceAdapter:
        reasons = self.check(backbone, task)
        if reasons:
            raise ModelError(f"method 'bias': {reasons[0]}")
        make = partial(BiasAdapter, backbone, task, self, generator=generator)
        return spread_out(make, self.num_vertices, generator)


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


@final
class BiasAdapter(AbstractHeadedAdapter):
    """scores = head(features(x; b)), all biases b trained."""

    def __init__(self, backbone: Backbone, task: Task, method: Bias, *, generator: torch.Generator):
        _ = backbone.fingerprint  # of the pretrained weights: taken before they change
        super().__init__(backbone, task, generator=generator, head_init=method.head_init)
        backbone.sharing.claim(self)
        self.method = method
        feeding = feeding_parameters(backbone) - set(backbone.fresh)
        self.biases = BorrowedParameters(backbone.model, lambda name, _: name in feeding and _is_bias(name))

    def detach(self) -> None:
        self.biases.restore()
        super().detach()
