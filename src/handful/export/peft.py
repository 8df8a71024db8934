"""Write an adapter as a folder that stock PEFT loads: a prefix, a prompt, or whatever PEFT itself trained.

A prefix becomes PREFIX_TUNING, a prompt (with its scale multiplied in) PROMPT_TUNING, and neither needs peft to be
written; of a simplex it is the midpoint. With the family's own
pooling the head, and the pooler's layers that were trained with it, become part of the stock classification class;
with mean or last pooling it stands beside the adapter in `head.safetensors`.

A configuration of the whole model with its labels lies beside the adapter too. With it, stock calls for a whole model
("pipeline", `AutoModelForSequenceClassification`) look for weights in the folder and refuse it; without it they would
load the pretrained model, make a head of random weights and lay the adapter on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, final

import torch
from safetensors.torch import save_file
from torch import nn

from handful.backbone.classifier import output_layer
from handful.backbone.load import Backbone, hub_name
from handful.data.task import Task
from handful.errors import ConfigError
from handful.evaluation.text.generate import GenerationOptions
from handful.export.folded import labelled
from handful.export.folder import ExportJob, ExportReport
from handful.export.format import REFUSED, AbstractFormat, ExportPlan, plain
from handful.export.loaders import Loader
from handful.methods.base import AbstractMethod
from handful.methods.exports import Exports, PeftState, Product
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.prefix import longest_in_sight
from handful.methods.prompt import LEAST_ROOM

_STOCK_HEADS = ("classifier", "score")
"""Ends of module names that PEFT itself takes for a classification head and keeps with the adapter."""


@final
class Peft(AbstractFormat):
    """An adapter folder for stock PEFT."""

    name: ClassVar[str] = "peft"
    summary: ClassVar[str] = "an adapter folder that stock PEFT loads onto the pretrained model"
    article: ClassVar[str] = "a PEFT adapter"
    products: ClassVar[tuple[Product, ...]] = ("peft state",)
    instead: ClassVar[tuple[str, ...]] = ("dense", "onnx")
    writes_texts: ClassVar[bool] = True
    library: ClassVar[str] = "peft"
    libraries: ClassVar[str] = "stock transformers and PEFT"
    package: ClassVar[str | None] = "peft"
    head_beside: ClassVar[bool] = True

    def lacking(self, method: AbstractMethod, exports: Exports) -> str:
        if "smaller model" in exports:
            return f"{method.name!r} makes the model smaller, which no PEFT adapter can"
        return f"method {method.name!r} adds nothing that PEFT could load"

    def write(self, job: ExportJob, plan: ExportPlan) -> ExportReport:
        adapter, backbone = job.adapter, job.backbone
        state: PeftState = adapter.fold("peft state")
        config, tensors, length = dict(state.config), dict(state.tensors), state.config.get("num_virtual_tokens", 0)
        if state.kind == "prefix":
            job = _cut_to_sight(job, length)
        config |= {
            "base_model_name_or_path": job.base,
            "inference_mode": True,
            "task_type": task_type(plan, backbone),
        }
        if plan.form == "classifier":
            modules, head = classifier_state(adapter, backbone)
            root = "base_model.model." if state.kind == "layers" else "base_model."
            config["modules_to_save"] = sorted({*modules, *(config.get("modules_to_save") or ())})
            tensors |= {root + name: tensor for name, tensor in head.items()}
        elif plan.form == "features" and state.kind == "layers":
            config["target_modules"] = whole_names(tensors, backbone.model)

        def fill(partial: Path) -> None:
            content = json.dumps(config, indent=2, sort_keys=True)
            (partial / "adapter_config.json").write_text(content, encoding="utf-8")
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, partial / "adapter_model.safetensors", metadata={"format": "pt"})
            if plan.form != "language-model":
                labelled(backbone.config, job.task).save_pretrained(partial)

        loader = Loader.of(
            job,
            plan,
            self,
            base=job.base,
            base_on_hub=hub_name(backbone.name) is not None,
            injected=state.kind,
            length=length,
            token_types="token_type_ids" in job.sample[0],
            encoder=plan.form == "features" and backbone.kind == "encoder-decoder",
        )
        return job.write(plan, loader, fill)

    def stock_calls(self, loader: Loader, task: Task) -> list[str]:
        point = []
        if loader.base is not None and not loader.base_on_hub:
            point = [f"Put the path of the folder {plain(loader.base)} in place of `base`; no hub has it."]
        if loader.form == "language-model":
            return point
        sentences = [f"{REFUSED}: it holds an adapter, and no weights of the pretrained model."]
        if loader.form == "classifier":
            sentences.append(
                "`AutoPeftModelForSequenceClassification` needs the arguments `outputs` of the code above: an adapter "
                "does not store them, and without them labels are called LABEL_0 and so on."
            )
            if task.objective.has_labels and not task.objective.has_classes:
                sentences.append("Without `problem_type` a pipeline makes one softmax over all labels of its scores.")
        else:
            sentences.append(
                "`AutoPeftModelForSequenceClassification` refuses it: the head stands on pooled features, and not "
                "where a stock classification class has its own. A classification class of the pretrained model below "
                "this adapter would have a random head."
            )
        return sentences + point


def _cut_to_sight(job: ExportJob, length: int) -> ExportJob:
    """The job with texts cut to what a stock prefix stays in sight of, which is noted."""
    room = room_in_sight(job.backbone, length, job.generation)
    if room is None or room >= job.max_length:
        return job
    return replace(job, max_length=room, notes=(_cut_words(room, job.max_length, writes=job.generation is not None),))


def room_in_sight(backbone: Backbone, length: int, generation: GenerationOptions | None) -> int | None:
    """`longest_in_sight` of a text, or of a source before a text that a decoder writes.

    Raises: ConfigError where that is next to nothing.
    """
    room = longest_in_sight(backbone, length)
    if room is None or generation is None or backbone.kind == "encoder-decoder":
        return room
    text = max(generation.target_length, generation.max_new_tokens)
    if room - text < LEAST_ROOM:
        raise ConfigError(
            f"cannot export as a PEFT adapter: a stock prefix of {length} vectors slides out of the sight of layers "
            f"that attend to the last {room + length} tokens alone, and a text of up to {text} tokens leaves "
            f"{max(room - text, 0)} for its source, expected at least {LEAST_ROOM}",
            "train with a shorter prefix, or with lower generation.target_length and generation.max_new_tokens",
        )
    return room - text


def _cut_words(room: int, limit: int, *, writes: bool) -> str:
    """What it means that a stock prefix slides out of sight."""
    sentence = (
        f"Texts are cut to {room} tokens, in handful to {limit}: in longer ones a stock prefix slides out of the sight "
        "of this model's layers with sliding attention"
    )
    return sentence if writes else f"{sentence}; the format 'onnx' takes all {limit}"


def whole_names(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> str:
    """A pattern that PEFT matches with the whole names of the layers that these tensors belong to.

    In a classification class, whose layers have longer names, it matches none, and PEFT says so. A list of names would
    match their ends, load none of the tensors, and leave an adapter without effect below a random head.
    """
    modules = dict(model.named_modules())
    layers = set()
    for tensor in tensors:
        parts = tensor.removeprefix("base_model.model.").split(".")
        names = [name for depth in range(1, len(parts)) if (name := ".".join(parts[:depth])) in modules]
        wrapped = (name for name in names if hasattr(modules[name], "base_layer"))  # PEFT's own layers, put in training
        if names:  # a tensor that layers share, as VeRA's, is of none
            layers.add(next(wrapped, names[-1]))
    return "|".join(sorted(map(re.escape, layers)))


def task_type(plan: ExportPlan, backbone: Backbone) -> str:
    """PEFT's name for what the model is used for."""
    if plan.form == "language-model":
        return "SEQ_2_SEQ_LM" if backbone.kind == "encoder-decoder" else "CAUSAL_LM"
    return "SEQ_CLS" if plan.form == "classifier" else "FEATURE_EXTRACTION"


def classifier_state(
    adapter: AbstractHeadedAdapter, backbone: Backbone
) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
    """The modules of the stock classification class that were trained or made new, and their tensors by name.

    PEFT wraps every module whose name ends like one of these, so all tensors inside them are given.
    """
    output = output_layer(backbone.config)
    assert output is not None  # check_export has seen it
    trained = {name.rpartition(".")[0] for name in (*backbone.fresh, f"{output.name}.weight")}
    modules = (*_STOCK_HEADS, *sorted(name for name in trained if not _lies_in(f"{name}.weight", _STOCK_HEADS)))
    tensors = {name: tensor for name, tensor in backbone.model.state_dict().items() if _lies_in(name, modules)}
    weight, bias = adapter.head.folded()
    return modules, tensors | {f"{output.name}.weight": weight, f"{output.name}.bias": bias}


def _lies_in(tensor: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor's name leads through a module whose name ends like one of these."""
    parts = tensor.split(".")
    return any(".".join(parts[:depth]).endswith(modules) for depth in range(1, len(parts)))
