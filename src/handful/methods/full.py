"""Full fine-tuning: every weight of the model that the features depend on is trained, in place.

Idea: no adapter at all; the pretrained weights are only the start. With a hundred rows this forgets easily, so the
learning rate is small and the head, which starts from the frozen probe, may have a rate of its own.
Formula: scores = W f(x; θ) + c, with all of θ, W and c trained from θ₀ and the probe. Trained: every number of the
model below the features, plus C·(D + 1). Inference: that of the model; the result is a whole model (export "dense").
Source: Howard & Ruder 2018 and Devlin et al. 2019 for the recipe. Deviations: any pooling, the head's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.methods.base import AbstractMethod, BorrowedParameters, Preset, setting
from handful.methods.exports import Exports
from handful.methods.head import HEAD_INIT, AbstractHeadedAdapter, HeadInit
from handful.methods.search_space import EPOCHS, SearchSpace, around


def feeding_parameters(backbone: Backbone) -> frozenset[str]:
    """Names of the parameters that the features depend on, found by one backward pass.

    A model may hold others, such as an output layer that the pooling does not use.
    """
    parameters = dict(backbone.model.named_parameters())
    inputs = dict(backbone.tokenizer("a a", return_tensors="pt").to(backbone.device))
    if backbone.purpose_is_lm:  # which has scores of tokens to write
        inputs["labels"] = inputs["input_ids"]
    frozen = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        total = backbone.features(inputs).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return frozenset(name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None)


@final
@dataclass(frozen=True)
class Full(AbstractMethod):
    """Train the whole model."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "full fine-tuning: every weight below the features"
    source: ClassVar[str] = "Howard & Ruder 2018; Devlin et al. 2019"
    export_format: ClassVar[str] = "dense"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours, not searched: the customary range for encoders is 2e-5 to 1e-4; the head may move faster",
            training={"learning_rate": 1e-4, "head_learning_rate": 1e-3},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-5, 1e-4, 5e-4),
        "training.epochs": EPOCHS,
    }

    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> FullAdapter:
        return FullAdapter(backbone, task, self, generator=generator)


@final
class FullAdapter(AbstractHeadedAdapter):
    """scores = head(features(x; θ)), all of θ trained."""

    def __init__(self, backbone: Backbone, task: Task, method: Full, *, generator: torch.Generator):
        _ = backbone.fingerprint  # of the pretrained weights: taken before they change
        super().__init__(backbone, task, generator=generator, head_init=method.head_init)
        backbone.sharing.claim(self)
        self.method = method
        feeding = feeding_parameters(backbone) - set(backbone.fresh)  # the fresh ones are trained as the pooler
        self.trunk = BorrowedParameters(backbone.model, lambda name, _: name in feeding)

    def detach(self) -> None:
        self.trunk.restore()
        super().detach()
