"""Write a whole model as a folder that stock transformers loads: trained weights, or PEFT's layers folded into them.

With the family's own pooling that is a stock classification class; with mean or last pooling the bare model with the
head beside it in `head.safetensors`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from handful.backbone.classifier import output_layer
from handful.backbone.load import Backbone
from handful.data.batching import EncodedRows
from handful.data.task import Task
from handful.errors import ConfigError
from handful.export.folder import ExportJob, ExportReport, method_of
from handful.export.loaders import Loader
from handful.export.plan import check_export
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.peft_bridge import PeftAdapter


def export_dense(
    adapter: AbstractAdapter,
    backbone: Backbone,
    task: Task,
    folder: Path,
    *,
    card: str | None = None,
    overwrite: bool = False,
    rows: EncodedRows | None = None,
    max_length: int | None = None,
) -> ExportReport:
    """Write `folder` for stock transformers, compared with our scores in a fresh process before it gets its name.

    `card` is added to the README; `rows` are what is compared, by default the task's first ones;
    `max_length` is where the README's code cuts texts, by default at what the model takes.
    Raises: ConfigError where this adapter has no such form (`check_export` says so before training); RunError when
    the folder exists, cannot be written, or does not give our scores.
    """
    plan = check_export(method_of(adapter), backbone, backbone.pooling or "mean", task, format="dense")
    if plan.form is None:
        raise ConfigError(f"cannot export as a dense model: {plan.summary}")
    assert isinstance(adapter, AbstractHeadedAdapter)
    model: Any = adapter.merged_model() if isinstance(adapter, PeftAdapter) else backbone.model
    if plan.form == "classifier":
        model = stock_classifier(model, adapter, task)
    kind, limit = type(model), min(max_length or backbone.max_length, backbone.max_length)
    loader = Loader(
        form=plan.form,
        pooling=backbone.pooling,
        base=None,
        max_length=limit,
        pairs=task.kind == "pair-classification",
        regression=task.kind == "regression",
        # an encoder-decoder's encoder alone is a model that no Auto class finds
        model_class=f"{kind.__module__}:{kind.__name__}" if backbone.kind == "encoder-decoder" != plan.form else None,
    )
    return ExportJob(adapter, backbone, task, folder, limit, card, overwrite, rows).write(
        plan, loader, lambda partial: model.save_pretrained(partial)
    )


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
