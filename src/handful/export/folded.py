"""What dense, compact and ONNX exports share: the folded model in its stock class, made smaller, and scored."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from handful.backbone.classifier import output_layer
from handful.backbone.closed import Layout
from handful.backbone.load import Pooling, pool
from handful.backbone.resize import stock_copy
from handful.data.task import Task
from handful.errors import ModelError
from handful.export.folder import ExportJob
from handful.export.plan import ExportPlan
from handful.export.precision import KeepFloat64
from handful.export.shrink import Shrinkage, Shrunk, count, sample_inputs, shrink
from handful.export.size import LENGTH, Scores, Size, measure, tensor_bytes, weight_bytes
from handful.methods.head import AbstractHeadedAdapter


@final
class Scorer(nn.Module):
    """Scores of a stock model: of its own class, or (B, C) through pooling and our head.

    Its forward takes the tensors in the order of `names`.
    """

    def __init__(self, model: nn.Module, job: ExportJob, form: str | None):
        super().__init__()
        self.model, self.names = model, tuple(job.sample[0])
        self.pooling: Pooling | None = job.backbone.pooling
        self.pooled = form == "features"
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        if self.pooled:
            weight, bias = job.adapter.head.folded()
            self.register_buffer("weight", weight.detach().cpu())
            self.register_buffer("bias", bias.detach().cpu())
        self.eval()

    weight: torch.Tensor
    bias: torch.Tensor

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, tensors, strict=True))
        output = self.model(**inputs, **self.options)
        if not self.pooled:
            return output.logits
        features = pool(output.last_hidden_state, inputs["attention_mask"], self.pooling)
        return F.linear(features, self.weight, self.bias)

    def scores(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same with the tensors by name."""
        return self(*(inputs[name] for name in self.names))


@final
@dataclass(frozen=True)
class Folded:
    """An adapter folded into its model: `full` as stock transformers has it, on the CPU, and `shrunk` without zeros."""

    job: ExportJob
    plan: ExportPlan
    layout: Layout

    @cached_property
    def full(self) -> Any:
        adapter = self.job.adapter
        model: Any = adapter.merged_model()
        if self.plan.form == "classifier":
            return stock_classifier(model, adapter, self.job.task)
        return stock_copy(model).to(torch.device("cpu"))  # type: ignore[arg-type]

    @cached_property
    def shrunk(self) -> Shrunk:
        """The full model itself where nothing can be removed, or the family's blocks are not known."""
        try:
            return shrink(self.full, layout=self.layout)
        except ModelError:
            size = count(self.full)
            return Shrunk(self.full, Shrinkage((size, size), (0, 0)))

    def scorer(self, model: nn.Module) -> Scorer:
        return Scorer(model, self.job, self.plan.form)

    def inputs(self, rows: int, length: int | None = None, *, padded: bool = False) -> dict[str, torch.Tensor]:
        """Token ids, masks and token types (B, S), B = `rows`, as the exported model takes them."""
        limit = min(length or LENGTH, self.job.max_length)
        found = sample_inputs(self.full, rows=rows, length=limit, padded=padded)
        found |= {"token_type_ids": torch.zeros_like(found["input_ids"])}
        return {name: found[name] for name in self.job.sample[0]}

    @torch.no_grad()
    def rounding(self, inputs: Mapping[str, torch.Tensor]) -> float:
        """How far scores (B, C) in float32 are from those in float64: the full model's and the smaller one's, summed.

        Two models that are equal in exact arithmetic can be as far apart in float32, and no farther.
        """
        total = 0.0
        for model in (self.full, self.shrunk.model):
            scorer = self.scorer(model)
            with KeepFloat64():
                exact = copy.deepcopy(scorer).double().scores(inputs)
            total += float((scorer.scores(inputs) - exact).abs().max())
        return total

    def measured(self, folder: Path, scores: Scores | None = None, runtime: str = "torch") -> Size:
        """How much smaller and faster what was written into `folder` is; `scores` are computed by what is in it."""
        small = scores or self.scorer(self.shrunk.model).scores
        speed = measure(self.scorer(self.full).scores, small, self.inputs, self.job.unit, self.rounding, runtime)
        return Size(self.shrunk.record, (tensor_bytes(self.full), weight_bytes(folder)), speed)


def stock_classifier(model: Any, adapter: AbstractHeadedAdapter, task: Task) -> Any:
    """The stock classification class with the model's weights and the folded head as its output layer."""
    output = output_layer(model.config)
    assert output is not None  # check_export has seen it
    config = copy.deepcopy(model.config)
    labels = task.labels or ("value",)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
    config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    with torch.random.fork_rng(devices=[]):  # the class draws weights, which are then replaced
        stock = type(model)(config).eval()
    weight, bias = adapter.head.folded()
    stock.load_state_dict(model.state_dict() | {f"{output.name}.weight": weight, f"{output.name}.bias": bias})
    return stock
