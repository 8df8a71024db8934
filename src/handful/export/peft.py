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
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from handful.backbone.blocks import is_transposed
from handful.backbone.classifier import output_layer
from handful.backbone.load import Backbone, hub_name
from handful.backbone.low_rank import LowRank
from handful.data.task import Task
from handful.errors import ConfigError
from handful.evaluation.evaluate import longest_row
from handful.evaluation.text.generate import GenerationOptions
from handful.export.folded import FoldedPrefix, labelled
from handful.export.folder import Card, ExportJob, ExportReport
from handful.export.loaders import Loader
from handful.export.plan import ExportPlan, check_export, longest_in_sight, planned
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.peft_bridge import PeftAdapter
from handful.methods.poly.adapter import PolyAdapter
from handful.methods.poly.method import Poly
from handful.methods.poly.skills import AbstractMatrixSkills
from handful.methods.prompt import LEAST_ROOM, PromptAdapter

__all__ = ["ExportPlan", "ExportReport", "check_export", "export_peft"]

_STOCK_HEADS = ("classifier", "score")
"""Ends of module names that PEFT itself takes for a classification head and keeps with the adapter."""


def export_peft(
    adapter: AbstractAdapter,
    backbone: Backbone,
    task: Task,
    folder: Path,
    *,
    card: Card | None = None,
    overwrite: bool = False,
    max_length: int | None = None,
    generation: GenerationOptions | None = None,
) -> ExportReport:
    """Write `folder` for stock PEFT, and compare its scores with ours in a fresh process before it gets its name.

    `card` is added to the README; `max_length` is where the README's code cuts texts, by default at what the model
    takes; `generation` is how a language model is asked and writes.
    Raises: ConfigError where this adapter has no such form (`check_export` says so before training); RunError when
    the folder exists, cannot be written, or does not give our scores.
    """
    plan, adapter = planned(adapter, backbone, task, "peft")
    injected: Literal["layers", "prefix", "prompt"]
    if prefix := FoldedPrefix.of(adapter):
        injected, (config, tensors) = "prefix", prefix_state(prefix.keys_values)
    elif isinstance(adapter, PromptAdapter):
        injected, (config, tensors) = "prompt", prompt_state(adapter.folded_prompt(), backbone)
    elif isinstance(adapter, PolyAdapter):
        injected, (config, tensors) = "layers", skills_state(adapter)
    else:
        assert isinstance(adapter, PeftAdapter)
        injected, (config, tensors) = "prompt" if adapter.prompt_length else "layers", adapter.peft_state()
    length = config.get("num_virtual_tokens", 0)
    limit, notes = longest_row(adapter, max_length or backbone.max_length, generation), ()
    if injected == "prefix" and (room := room_in_sight(backbone, length, generation)) is not None and room < limit:
        limit, notes = room, (_cut_words(room, limit, writes=generation is not None),)
    job = ExportJob(adapter, backbone, task, folder, limit, card, overwrite, generation, notes)
    config |= {
        "base_model_name_or_path": job.base,
        "inference_mode": True,
        "task_type": task_type(plan, backbone),
    }
    if plan.form == "classifier":
        modules, head = classifier_state(adapter, backbone)
        root = "base_model.model." if injected == "layers" else "base_model."
        config["modules_to_save"] = sorted({*modules, *(config.get("modules_to_save") or ())})
        tensors |= {root + name: tensor for name, tensor in head.items()}
    elif plan.form == "features" and injected == "layers":
        config["target_modules"] = whole_names(tensors, backbone.model)

    def fill(partial: Path) -> None:
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        if plan.form != "language-model":
            labelled(backbone.config, task).save_pretrained(partial)

    loader = Loader.of(
        job,
        plan,
        base=job.base,
        base_on_hub=hub_name(backbone.name) is not None,
        injected=injected,
        length=length,
        token_types="token_type_ids" in job.sample[0],
        encoder=plan.form == "features" and backbone.kind == "encoder-decoder",
    )
    return job.write(plan, loader, fill)


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


@torch.no_grad()
def skills_state(adapter: PolyAdapter) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """PEFT's LORA or IA3 configuration and tensors of the skills of a single task, mixed into one of each."""
    skills, method = adapter.skills, adapter.method
    assert isinstance(skills, AbstractMatrixSkills)
    updates = skills.updates(adapter.weights([0]), None)
    config: dict[str, Any] = {
        "peft_type": "IA3" if method.skills == "ia3" else "LORA",
        "target_modules": sorted(updates),
        "fan_in_fan_out": any(is_transposed(module) for module in skills.updating.modules.values()),
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, update in updates.items():
        if isinstance(update, LowRank):
            down, up = update.mix()
            tensors[f"base_model.model.{name}.lora_A.weight"] = down[0].T
            tensors[f"base_model.model.{name}.lora_B.weight"] = up[0].T
        else:
            tensors[f"base_model.model.{name}.ia3_l"] = update.mix().T
    return config | ({"feedforward_modules": []} if method.skills == "ia3" else _lora_size(method)), tensors


def _lora_size(method: Poly) -> dict[str, Any]:
    return {"r": method.rank, "lora_alpha": method.alpha, "bias": "none"}


def prefix_state(prefix: torch.Tensor) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """PEFT's PREFIX_TUNING configuration and tensors of a prefix (L, 2, H, P, d).

    Row p of `prompt_embeddings` (P, 2·L·H·d) holds, layer by layer, the key and the value of position p.
    """
    layers, _, heads, length, width = prefix.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "token_dim": heads * width,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": prefix.permute(3, 0, 1, 2, 4).reshape(length, -1)}


def prompt_state(prompt: torch.Tensor, backbone: Backbone) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """PEFT's PROMPT_TUNING configuration and tensors of a prompt (P, E).

    One submodule: by default PEFT stores a second prompt for the decoder of an encoder-decoder, and never reads it.
    """
    config = {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "num_virtual_tokens": len(prompt),
        "token_dim": prompt.shape[1],
        "num_layers": backbone.num_layers,
        "num_attention_heads": backbone.config.num_attention_heads,
        "num_transformer_submodules": 1,
    }
    return config, {"prompt_embeddings": prompt}


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
