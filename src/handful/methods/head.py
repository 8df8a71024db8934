"""The frozen probe: a linear head on frozen pooled features, and the (subspace) head every other method uses.

Idea: fit a multinomial logistic regression (ridge for regression) on frozen features; the strength of its penalty is
chosen by cross-validation inside the training rows. Nothing else is nearly as cheap, so it is the baseline to beat.
Formula: scores = W f(x) + c, with M vertices: scores = Σᵢ uᵢ (Wᵢ f(x) + cᵢ), mixed in logit space.
Trained: M·(C·D + C) numbers. Inference: one D×C product. Source: ours; the subspace: Falissard et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from handful.backbone.load import Backbone
from handful.data.batching import Batch, EncodedRows, plan_batches
from handful.data.task import Task
from handful.methods.base import AbstractAdapter, AbstractMethod, BorrowedParameters, Draw, Preset, setting
from handful.methods.exports import Exports, Product
from handful.methods.simplex import Simplex
from handful.objectives.base import Objective

HeadInit = Literal["soft-probe", "probe", "normal"]
"""How a head starts: at a strongly penalised probe, at the cross-validated probe, or at N(0, 0.02²).

The cross-validated probe of a hundred rows fits them nearly perfectly; a head that starts there leaves no gradient for
what is below it. The soft probe has `SOFT_PENALTY` and leaves most of the loss to be learned (docs/experiments.md).
"""

HEAD_INIT = "start of the head: a strongly penalised probe, the cross-validated probe, or N(0, 0.02²)"
SOFT_PENALTY = 0.3
"""Inverse penalty strength C of the soft probe, for features of unit mean square norm.

Its classes weigh the same: beside weights so small the free intercept would decide, and predict the largest class for
every text where there are few rows of many classes (docs/experiments.md).
"""


@final
class LinearHead(nn.Module):
    """M linear heads on features (B, D), mixed in logit space; scores (B, C).

    At M = 1 it is `F.linear` to the bit. Regression scores are in units of the training targets' standard
    deviation around their mean; `offset` and `scale` (saved with the head) turn them back. For classes `scale` is one
    over the temperature that was fitted on development rows.
    """

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, hidden_size: int, num_outputs: int, simplex: Simplex | None = None):
        super().__init__()
        self.simplex = simplex or Simplex()
        self.weight = nn.Parameter(torch.zeros(self.simplex.num_vertices, num_outputs, hidden_size))
        self.bias = nn.Parameter(torch.zeros(self.simplex.num_vertices, num_outputs))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, D), weights (B or 1, M) → scores (B, C)."""
        count, outputs, _ = self.weight.shape
        if count == 1:
            return F.linear(features, self.weight[0], self.bias[0])
        if weights is None:
            weights = self.simplex.midpoint[None]
        stacked = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten()).view(-1, count, outputs)
        return (weights.to(stacked.device).unsqueeze(-1) * stacked).sum(1)  # in float32 also under autocast

    def initialise(self, generator: torch.Generator) -> None:
        """N(0, 0.02²) weights, different in each vertex, and zero biases: the stock classes' start."""
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape, generator=generator) * 0.02)
            self.bias.zero_()

    def start_from_probe(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        objective: Objective,
        penalty: float | None = None,
        balanced: bool = False,
        row_weights: torch.Tensor | None = None,
    ) -> None:
        """Start each vertex from a probe; with M > 1 each under its own Bayesian bootstrap of the rows.

        Dirichlet(1, …, 1) row weights (Rubin 1981) keep every class in every probe and make the vertices differ,
        so that the head's simplex does not start as a point. Ours. `penalty` is the inverse strength C for
        features scaled to unit mean square norm, so that it means the same for every backbone; None chooses it.
        `balanced` classes weigh the same, however many rows they have; vertices then differ only where a class has two
        rows or more. `row_weights` (N,) are what each row counts besides.
        """
        inputs, targets = features.double().numpy(), labels.double().numpy()
        norm = float(np.sqrt((inputs**2).sum(1).mean())) or 1.0
        inputs, targets = inputs / norm, objective.standardise(targets, float(self.offset), float(self.scale))
        counts = np.ones(len(inputs)) if row_weights is None else row_weights.double().numpy()
        penalty = penalty or objective.choose_penalty(inputs, targets, None if row_weights is None else counts)
        rows = len(inputs)
        for vertex in range(len(self.weight)):
            draws = torch.empty(rows, dtype=torch.float64).exponential_(generator=generator)
            sample = counts * (draws / draws.mean()).numpy() if len(self.weight) > 1 else counts
            sample = objective.balance(sample, targets) if balanced else sample
            weight, bias = objective.fit_probe(inputs, targets, penalty, sample)
            with torch.no_grad():
                self.weight[vertex].copy_(torch.from_numpy(weight / norm).float())
                self.bias[vertex].copy_(torch.from_numpy(bias).float())

    @torch.no_grad()
    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(C, D) weight and (C,) bias of the deterministic predictor, in the targets' own units."""
        weights = self.simplex.midpoint.to(self.weight)
        weight, bias = torch.tensordot(weights, self.weight, 1), torch.tensordot(weights, self.bias, 1)
        if len(self.weight) == 1:
            weight, bias = self.weight[0].clone(), self.bias[0].clone()
        return weight * self.scale, bias * self.scale + self.offset


@torch.no_grad()
def frozen_features(backbone: Backbone, rows: EncodedRows, batch_size: int = 64) -> torch.Tensor:
    """Pooled features (N, D) of the backbone as it is, in the order of the rows, on the CPU."""
    features = torch.empty(len(rows), backbone.hidden_size)
    for indices in plan_batches(rows.lengths, batch_size):
        inputs = {name: tensor.to(backbone.device) for name, tensor in rows.batch(indices).inputs.items()}
        features[indices] = backbone.features(inputs).float().cpu()
    return features


@final
class TokenHead(nn.Module):
    """The head of a language model: its scores of tokens (N, V) as they are. Nothing of it is trained."""

    simplex = Simplex()

    def forward(self, scores: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        del weights
        return scores


class AbstractHeadedAdapter(AbstractAdapter):
    """An adapter that ends in a `LinearHead` on pooled features, and trains the pooler's fresh layers if any.

    On a language model it ends in the scores of the tokens to write.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        generator: torch.Generator,
        head_init: HeadInit = "soft-probe",
        head_simplex: Simplex | None = None,
    ):
        super().__init__(backbone)
        self.objective, self.labels, self.head_init = task.objective, task.labels, head_init
        self.head: Any = TokenHead()
        if not self.objective.generates:
            self.head = LinearHead(backbone.hidden_size, task.num_outputs, head_simplex)
            self.head.initialise(generator)
        if backbone.fresh:
            backbone.sharing.claim(self)
        self.pooler = borrow_fresh(backbone, generator)

    def install(self, batch: Batch, draw: Draw) -> None:
        """Put what was drawn for a batch into the backbone, for the coming forwards."""

    def features(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        """What the head reads, (B, D), through the adapter."""
        self.install(batch, draw or self.at())
        return self.backbone.features(batch.inputs)

    def forward(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        draw = draw or self.at()
        return self.head(self.features(batch, draw), draw.rows.get("head"))

    def generate(self, batch: Batch, draw: Draw | None = None, **options: Any) -> torch.Tensor:
        """What the language model writes through the adapter, (B, T); see `Backbone.generate`."""
        self.install(batch, draw or self.at())
        return self.backbone.generate(batch.inputs, **options)

    def carry(self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """All but the head of other labels."""
        if record.get("task", {}).get("labels") == list(self.labels):
            return weights
        return {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        if self.objective.generates:
            return
        labels = rows.labels
        assert labels is not None
        offset, scale = self.objective.units(labels)
        self.head.offset.fill_(offset)
        self.head.scale.fill_(scale)
        if self.head_init != "normal":
            soft = self.head_init == "soft-probe"
            features = frozen_features(self.backbone, rows)
            self.head.start_from_probe(
                features, labels, generator, self.objective, SOFT_PENALTY if soft else None, balanced=soft,
                row_weights=rows.loss_weights,
            )  # fmt: skip

    def target_scores(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        scores = self(batch, draw)
        return scores if self.objective.generates else scores * self.head.scale + self.head.offset

    def merged_model(self) -> nn.Module:
        """The backbone's model with everything trained inside it folded into its weights; not to be changed in place.

        Raises: ConfigError where that cannot be.
        """
        return self.backbone.model

    def fold(self, product: Product) -> Any:
        return self.merged_model() if product in ("merged weights", "smaller model") else super().fold(product)

    def calibrate(self, temperature: float) -> None:
        if self.objective.calibrates:
            self.head.scale.fill_(1 / temperature)

    def standardise(self, targets: torch.Tensor) -> torch.Tensor:
        head = self.head
        return targets if self.objective.generates else self.objective.standardise(targets, head.offset, head.scale)

    def detach(self) -> None:
        if self.pooler is not None:
            self.pooler.restore()
        super().detach()


def borrow_fresh(backbone: Backbone, generator: torch.Generator) -> BorrowedParameters | None:
    """The pooler's layers that were not in the checkpoint, drawn anew from `generator`, to be trained; or None."""
    if not backbone.fresh:
        return None
    pooler = BorrowedParameters(backbone.model, lambda name, _: name in backbone.fresh)
    std = getattr(backbone.config, "initializer_range", None) or 0.02
    with torch.no_grad():
        for name, parameter in pooler.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            elif name.endswith("bias"):
                parameter.zero_()
    return pooler


@final
@dataclass(frozen=True)
class Head(AbstractMethod):
    """The frozen probe."""

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "logistic regression (or ridge) on frozen features: the baseline to beat"
    source: ClassVar[str] = "ours"
    added: ClassVar[tuple[str, ...]] = ("num_vertices",)
    export_format: ClassVar[str] = "dense"
    writes: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset("the closed-form probe needs no gradient steps", training={"epochs": 0}, run={"dev": "none"}),
    }

    num_vertices: Annotated[
        int, setting("vertices M of a simplex of probes, each of a bootstrap of the rows; 1: none", ge=1, le=16)
    ] = 1
    head_init: Annotated[
        HeadInit, setting("start from the logistic-regression probe, or from N(0, 0.02²) and train by gradient")
    ] = "probe"

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> HeadAdapter:
        return HeadAdapter(backbone, task, self, generator=generator)


@final
class HeadAdapter(AbstractHeadedAdapter):
    """Scores from a linear head on frozen features."""

    def __init__(self, backbone: Backbone, task: Task, method: Head, *, generator: torch.Generator):
        simplex = Simplex(method.num_vertices)
        super().__init__(backbone, task, generator=generator, head_init=method.head_init, head_simplex=simplex)
        self.method, self.simplex = method, simplex
        self.lowest_layer = backbone.num_layers  # the pooler, where it is trained, stands above all layers

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        return Draw({"head": self.simplex.draw((len(batch),), generator)})

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        return Draw({"head": self.simplex.point(vertex, weights)[None]})
