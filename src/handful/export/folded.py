"""What dense, compact and ONNX exports share: the folded model in its stock class, made smaller, and scored."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import nn

from handful.backbone.classifier import OutputLayer, output_layer
from handful.backbone.closed import Layout
from handful.backbone.load import Backbone, Kind, Pooling, pool
from handful.backbone.resize import stock_copy
from handful.backbone.sharing import making_models
from handful.backbone.stock_head import with_head
from handful.data.task import Task
from handful.errors import ModelError
from handful.export.folder import ExportJob
from handful.export.format import ExportPlan
from handful.export.precision import KeepFloat64
from handful.export.shrink import Shrinkage, Shrunk, count, sample_inputs, shrink
from handful.export.size import LENGTH, Scores, Size, measure, tensor_bytes, weight_bytes
from handful.methods.exports import Exports, KeyValues, Product
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.prefix import inject


@final
class Scorer(nn.Module):
    """Scores of a stock model: of its own class, or (B, C) through pooling and our head.

    Its forward takes the tensors in the order of `names`. A stock class with the family's pooling whose output
    layer has no bias gets the head's.
    """

    def __init__(self, model: nn.Module, job: ExportJob, form: str | None):
        super().__init__()
        self.model, self.names = model, tuple(job.sample[0])
        self.pooling: Pooling | None = job.backbone.pooling
        self.pooled = form == "features"
        self.adds_bias = form == "classifier" and self.pooling == "family" and not _output(model).has_bias
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        if self.pooled or self.adds_bias:
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
            return output.logits + self.bias if self.adds_bias else output.logits
        features = pool(output.last_hidden_state, inputs["attention_mask"], self.pooling)
        return F.linear(features, self.weight, self.bias)

    def scores(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same with the tensors by name."""
        return self(*(inputs[name] for name in self.names))


@final
@dataclass(frozen=True)
class Folded:
    """An adapter folded into its model: `full` as stock transformers has it, on the CPU, and `shrunk` without zeros.

    A prefix, which folds into no weight, stands in front of the model's keys and values.
    `written` is what a folder of `plan.form` holds.
    """

    job: ExportJob
    plan: ExportPlan
    layout: Layout

    @cached_property
    def prefix(self) -> KeyValues | None:
        """What stands in front of the model's keys and values, where the method trains that."""
        return self.job.adapter.fold("prefix") if "prefix" in self._exports else None

    @property
    def _exports(self) -> Exports:
        return self.job.adapter.method.exports(self.job.backbone)

    @cached_property
    def full(self) -> Any:
        adapter, prefix = self.job.adapter, self.prefix
        product: Product = "smaller model" if "smaller model" in self._exports else "merged weights"
        model: Any = adapter.backbone.model if prefix else adapter.fold(product)
        if self.plan.form == "classifier" and self.job.backbone.pooling == "family":
            model = stock_classifier(model, adapter, self.job.task)
        else:
            model = stock_copy(model).to(torch.device("cpu"))  # type: ignore[arg-type]
        if prefix:
            put_prefix(model, prefix, self.job.backbone)
        return model

    @cached_property
    def shrunk(self) -> Shrunk:
        """The full model itself where nothing can be removed, or the family's blocks are not known."""
        size = count(self.full)
        whole = Shrunk(self.full, Shrinkage((size, size), (0, 0)))
        if self.prefix:
            return whole
        try:
            return shrink(self.full, layout=self.layout)
        except ModelError:
            return whole

    @cached_property
    def written(self) -> Any:
        """The shrunk model, or the stock class with its head inside where that pools otherwise than we do."""
        job, model = self.job, self.shrunk.model
        if not self._holds_head:
            return model
        config = labelled(model.config, job.task)
        config.pad_token_id = job.backbone.tokenizer.pad_token_id
        assert job.backbone.pooling is not None
        weight, bias = job.adapter.head.folded()
        return with_head(model, job.backbone.pooling, weight, bias, config)

    @property
    def _holds_head(self) -> bool:
        return self.plan.form == "classifier" and self.job.backbone.pooling != "family"

    def scorer(self, model: nn.Module) -> Scorer:
        bare = self._holds_head and model is not self.written
        return Scorer(model, self.job, "features" if bare else self.plan.form)

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
        for model in (self.full, self.written):
            scorer = self.scorer(model)
            with KeepFloat64():
                exact = copy.deepcopy(scorer).double().scores(inputs)
            total += float((scorer.scores(inputs) - exact).abs().max())
        return total

    def measured(self, folder: Path, scores: Scores | None = None, runtime: str = "torch") -> Size:
        """How much smaller and faster what was written into `folder` is; `scores` are computed by what is in it."""
        small = scores or self.scorer(self.written).scores
        speed = measure(self.scorer(self.full).scores, small, self.inputs, self.job.unit, self.rounding, runtime)
        record = self.shrunk.record
        if self._holds_head:
            before, now = record.parameters[0], count(self.written)
            record = replace(record, parameters=(before, now), added=now - count(self.shrunk.model))
        return Size(record, (tensor_bytes(self.full), weight_bytes(folder)), speed)


def put_prefix(model: Any, prefix: KeyValues, like: Backbone) -> None:
    """Put a prefix in front of the keys and values of a copy of `like`'s model, for good."""
    copied = Backbone(model, like.tokenizer, name=like.name, kind=cast("Kind", like.kind), pooling=like.pooling)
    inject(copied, list(prefix.sites), prefix.keys_values.to(copied.device).unsqueeze(1), prefix.shift)


def labelled(config: Any, task: Task) -> Any:
    """A copy of a model's configuration that has the task's labels by name and number."""
    labels = task.labels or ("value",)
    config = copy.deepcopy(config)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
    config.problem_type = task.objective.problem_type
    return config


def _output(model: Any) -> OutputLayer:
    output = output_layer(model.config)
    assert output is not None  # check_export has seen it
    return output


def stock_classifier(model: Any, adapter: AbstractHeadedAdapter, task: Task) -> Any:
    """The stock classification class with the model's weights and the folded head as its output layer.

    A bias that the class has no place for is left out.
    """
    output = _output(model)
    with making_models():  # the class draws weights, which are then replaced
        stock = type(model)(labelled(model.config, task)).eval()
    weight, bias = adapter.head.folded()
    head = {f"{output.name}.weight": weight} | ({f"{output.name}.bias": bias} if output.has_bias else {})
    stock.load_state_dict(model.state_dict() | head)
    return stock
