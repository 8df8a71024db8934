"""What an export will be, or why there can be none: known before training, from the model's family alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, final

from handful.backbone.blocks import FAMILIES, obstacles
from handful.backbone.classifier import encoder_class, is_encoder_decoder, output_layer
from handful.backbone.load import Backbone
from handful.backbone.stock_head import family_pooling, head_obstacle, layers_added
from handful.data.task import Task
from handful.errors import ConfigError, nearest
from handful.methods.base import AbstractAdapter, AbstractMethod
from handful.methods.head import AbstractHeadedAdapter, Head, HeadAdapter
from handful.methods.peft_bridge import IA3, LoRA, Peft, PromptTuning
from handful.methods.poly.method import Poly
from handful.methods.prefix import STOCK_PREFIX_FAMILIES, Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.methods.prompt import LEAST_ROOM, Prompt
from handful.methods.scaled_prompt import ScaledPrompt
from handful.runs.members import recorded_task
from handful.runs.spec import recorded_method

FORMATS = {
    "peft": "an adapter folder that stock PEFT loads onto the pretrained model",
    "dense": "a whole model that stock transformers loads",
    "sentence-transformers": "the bare model, its pooling and its head as modules for sentence-transformers",
    "compact": "a model of gates or pruning whose layers differ in size, for handful's own loader",
    "onnx": "a whole model with its head as one ONNX file",
}
WRITING_FORMATS = ("peft", "dense")
"""The formats of language models: what stock libraries can write texts with."""
SHRINKING = ("fine-gates", "prune")
"""Names of the methods that make zeros for an export to take out."""
INSTALL_ONNX = "pip install 'handful[onnx]'"
MAX_ONNX_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, which cannot be longer."""


Form = Literal["classifier", "features", "language-model"]


@final
@dataclass(frozen=True)
class ExportPlan:
    """What an export gives, in one sentence; or, where `form` is None, why it is impossible.

    `form` "classifier": a stock classification class computes the scores. "features": a bare stock model computes
    hidden states, and the head beside it, with a short loader in the README, makes scores of them; stock calls for a
    classification class refuse such a folder. "language-model": a stock language model writes, by the run's decoding.
    """

    form: Form | None
    summary: str

    @property
    def possible(self) -> bool:
        return self.form is not None


def check_export(
    method: AbstractMethod, backbone: Backbone | str, pooling: str, task: Task | None = None, *, format: str = "peft"
) -> ExportPlan:
    """What exporting this method on this backbone, or family (`config.model_type`), will give; no weights are read.

    Raises: ConfigError for an unknown format.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown export format {format!r}", nearest(format, FORMATS))
    plan = _plan(method, backbone, pooling, task, format)
    if plan.possible and format == "onnx" and find_spec("onnx") is None:
        return ExportPlan(None, f"it needs the package onnx, which is not installed: {INSTALL_ONNX}")
    return plan


def _plan(method: AbstractMethod, backbone: Backbone | str, pooling: str, task: Task | None, format: str) -> ExportPlan:
    """What `check_export` says where every package is installed."""
    family = backbone if isinstance(backbone, str) else backbone.family
    if task is not None and task.members:
        return ExportPlan(None, f"an inventory of {len(task.members)} tasks; export one of them: --task NAME")
    writes = task is not None and task.kind == "generation"
    if pooling == "auto":
        pooling = family_pooling(family)
    obstacle = _obstacle(method, backbone, format)
    if obstacle and format != "onnx" and puts_prefix(method):
        obstacle += _way_out(family, format, writes=writes)
    elif obstacle and format in ("compact", "peft") and obstacle.startswith(f"method {method.name!r} "):
        others = ("dense", "peft", "onnx") if format == "compact" else ("dense", "onnx")
        possible = (name for name in others if _plan(method, backbone, pooling, task, name).possible)
        obstacle += "".join(f"; use the format {name!r}" for name in islice(possible, 1))
    obstacle = obstacle or _pooling_obstacle(backbone, pooling, format)
    if obstacle:
        return ExportPlan(None, obstacle)
    if task is not None and task.kind == "generation":
        if format not in WRITING_FORMATS:
            formats = WRITING_FORMATS[1:] if method.name in SHRINKING else WRITING_FORMATS
            return ExportPlan(None, f"a model that writes texts is exported as {' or '.join(formats)}")
        return ExportPlan("language-model", f"{_ARTICLES[format]} for {family}'s stock language model")
    if format == "onnx":
        return ExportPlan(
            "classifier" if pooling == "family" else "features", f"an ONNX model of {family} with its head"
        )
    what, outputs = _ARTICLES[format], "" if task is None else f" with num_labels={task.num_outputs}"
    classifier = f"{what} for {family}'s stock classification class{outputs}"
    if pooling == "family":
        return ExportPlan("classifier", classifier)
    if format == "dense":
        return _dense_plan(backbone, pooling, task, classifier)
    if format == "sentence-transformers":
        return ExportPlan("features", f"{what}: the bare {family} ({BODY}), its pooling and its head ({HEAD})")
    return ExportPlan("features", f"{what} for the bare {family}, with head.safetensors and a loader in its README")


def _dense_plan(backbone: Backbone | str, pooling: str, task: Task | None, classifier: str) -> ExportPlan:
    """The stock classification class where it can hold the head, and else the bare model with the head beside it."""
    config = backbone if isinstance(backbone, str) else backbone.config
    obstacle = head_obstacle(config, pooling, task.num_outputs if task else None)
    if obstacle:
        family = backbone if isinstance(backbone, str) else backbone.family
        return ExportPlan(
            "features",
            f"a dense model of the bare {family} ({BODY}), with its head ({HEAD}) and a loader in its README; stock "
            f"calls for a classification class refuse the folder: {obstacle}",
        )
    if not layers_added(config, pooling):
        return ExportPlan("classifier", classifier)
    layers = "" if isinstance(backbone, str) else f" beside its {backbone.num_layers}"
    why = "pools by the mean" if pooling == "mean" else "adds the head's bias"
    return ExportPlan("classifier", f"{classifier}; one more layer{layers} {why}, at one layer's time and weights")


def adds_layer(backbone: Backbone, task: Task) -> bool:
    """Whether a dense export of a run on this backbone has one more layer, which holds the head."""
    pooling = backbone.pooling
    if pooling is None or pooling == "family" or head_obstacle(backbone.config, pooling, task.num_outputs):
        return False
    return bool(layers_added(backbone.config, pooling))


def planned(
    adapter: AbstractAdapter, backbone: Backbone, task: Task, format: str
) -> tuple[ExportPlan, AbstractHeadedAdapter]:
    """The plan and the adapter, which can be exported. Raises: ConfigError with the reason where it cannot."""
    plan = check_export(method_of(adapter), backbone, backbone.pooling or "mean", task, format=format)
    if plan.form is None:
        raise ConfigError(f"cannot export as {_ARTICLES[format]}: {plan.summary}")
    assert isinstance(adapter, AbstractHeadedAdapter)
    return plan, adapter


_ARTICLES = {
    "peft": "a PEFT adapter",
    "dense": "a dense model",
    "sentence-transformers": "a sentence-transformers model",
    "compact": "a compact model",
    "onnx": "an ONNX model",
}
BODY, HEAD = "0_Transformer", "2_Dense"
"""Folders of the bare model and of the head in an export that has them apart, as sentence-transformers calls them."""


def best_format(
    method: AbstractMethod,
    backbone: Backbone | str,
    pooling: str,
    task: Task | None = None,
    report: Mapping[str, Any] | None = None,
) -> str | None:
    """The format to propose for a method on a backbone or family; None where there is none.

    "compact" where that leaves out more, by the adapter's `report`; else the method's own; else the first that is
    possible: "onnx" for a prefix that stock PEFT cannot have. A package that is not installed is no matter here.
    """
    report, own = report or {}, method.export_format
    compact = report.get("removable_compact", 0) > report.get("removable", 0)
    candidates = ["compact"] * compact + [own, "onnx", "dense", "peft"]
    return next((name for name in candidates if _plan(method, backbone, pooling, task, name).possible), None)


def recorded_format(record: Mapping[str, Any], task: Task | None = None) -> tuple[str | None, str]:
    """`best_format` of a saved run by its record, and in words what that gives, or why there is none.

    `task` is the one to export of an inventory, by default its first.
    """
    method, backbone = recorded_method(record), record["backbone"]
    task = task or recorded_task((record["task"].get("members") or [record["task"]])[0])
    where = (method, backbone["family"], str(backbone["pooling"]), task)
    format = best_format(*where, record["adapter"])
    return format, _plan(*where, format or method.export_format).summary


def method_of(adapter: AbstractAdapter) -> AbstractMethod:
    """The method that made the adapter."""
    return Head() if isinstance(adapter, HeadAdapter) else adapter.method  # type: ignore[return-value]


def _obstacle(method: AbstractMethod, backbone: Backbone | str, format: str) -> str | None:
    if format == "peft":
        return _peft_obstacle(method, backbone)
    if method.name in SHRINKING:
        obstacle = _shrinking_obstacle(backbone)
    elif format == "compact":
        methods = " and ".join(f"'{name}'" for name in SHRINKING)
        obstacle = f"method {method.name!r} takes nothing out of the model, as {methods} do"
    else:
        obstacle = _dense_obstacle(method, format)
    return obstacle or (_onnx_obstacle(backbone) if format == "onnx" else None)


def _shrinking_obstacle(backbone: Backbone | str) -> str | None:
    if isinstance(backbone, str):
        known = ", ".join(sorted(FAMILIES))
        return None if backbone in FAMILIES else f"no exact export of a gated {backbone} is known; there is for {known}"
    return next(iter(obstacles(backbone.config)), None)


def _onnx_obstacle(backbone: Backbone | str) -> str | None:
    size = 0 if isinstance(backbone, str) else sum(p.nbytes for p in backbone.model.parameters())
    return None if size <= MAX_ONNX_BYTES else f"{size / 1e9:.1f} GB of weights are more than one ONNX file can hold"


def _peft_obstacle(method: AbstractMethod, backbone: Backbone | str) -> str | None:
    family, num_layers = (backbone, None) if isinstance(backbone, str) else (backbone.family, backbone.num_layers)
    if isinstance(method, LoRA | IA3 | PromptTuning | Peft):
        return None
    if method.name in SHRINKING:
        return f"{method.name!r} makes the model smaller, which no PEFT adapter can; use 'dense', 'compact' or 'onnx'"
    if isinstance(method, Prompt | ScaledPrompt):
        return _scaled_words(method)
    if isinstance(method, Poly):
        shared = puts_prefix(method)
        return (_prefix_family(family) or _window_obstacle(backbone, method.prefix_length)) if shared else None
    if not isinstance(method, Prefix | PrefixSubspace):
        return f"method {method.name!r} adds nothing that PEFT could load"
    if obstacle := _prefix_family(family):
        return obstacle
    if method.positions == "kept":
        return "stock PEFT moves the texts' positions by the prefix's length; train with positions 'auto' or 'shifted'"
    if method.layers is not None and method.layers != (0, num_layers):
        return "stock PEFT puts a prefix on every layer; train without a range of layers"
    return _window_obstacle(backbone, method.prefix_length)


def puts_prefix(method: AbstractMethod) -> bool:
    """Whether what it trains are keys and values in front of those of attention."""
    return isinstance(method, Prefix | PrefixSubspace) or (isinstance(method, Poly) and method.skills == "prefix")


def longest_in_sight(backbone: Backbone, length: int) -> int | None:
    """Most tokens of a text behind a stock prefix of P = `length` vectors: None where there is no limit.

    It stands in the cache like earlier tokens, and so slides out of sight of longer texts in layers with sliding
    attention; ours, also in an ONNX file, stays. A prompt is part of the text, and slides with us as in stock PEFT.
    """
    window = getattr(backbone.config, "sliding_window", None)
    layers = getattr(backbone.config, "layer_types", None) or ("sliding_attention",)
    return window - length if window and "sliding_attention" in layers else None


def _window_obstacle(backbone: Backbone | str, length: int) -> str | None:
    room = None if isinstance(backbone, str) else longest_in_sight(backbone, length)
    if room is None or room >= LEAST_ROOM:
        return None
    return (
        f"a stock prefix of {length} vectors leaves {max(room, 0)} tokens of a text in its sight, expected at least "
        f"{LEAST_ROOM}, in layers that attend to the last {room + length} alone; train with a shorter prefix"
    )


def _way_out(family: str, format: str, *, writes: bool) -> str:
    """What to export a prefix as."""
    if not writes:
        return "; use the format 'onnx'"
    return "; use the format 'peft'" if format != "peft" and family in STOCK_PREFIX_FAMILIES else ""


def _prefix_family(family: str) -> str | None:
    if family in STOCK_PREFIX_FAMILIES:
        return None
    return f"stock PEFT has no working prefix for {family}; it has for {', '.join(sorted(STOCK_PREFIX_FAMILIES))}"


def _scaled_words(method: Prompt | ScaledPrompt) -> str | None:
    if isinstance(method, ScaledPrompt) and method.scale_target == "sequence":
        return "it scales the words' embeddings too, which no prompt does; train with scale_target 'prompt'"
    return None


def _dense_obstacle(method: AbstractMethod, format: str) -> str | None:
    if isinstance(method, ScaledPrompt) and (obstacle := _scaled_words(method)):
        return obstacle
    kind = str((method.config or {}).get("peft_type", "")).upper() if isinstance(method, Peft) else ""
    is_prompt = isinstance(method, PromptTuning | Prompt | ScaledPrompt) or kind.endswith(("P_TUNING", "PROMPT_TUNING"))
    folds_not = f"what {method.name!r} trains cannot be folded into the model's weights"
    if is_prompt:
        return f"{folds_not}; use the format 'peft'"
    return folds_not if puts_prefix(method) and format != "onnx" else None


def _pooling_obstacle(backbone: Backbone | str, pooling: str, format: str) -> str | None:
    family = backbone if isinstance(backbone, str) else backbone.family
    if pooling == "family" and format == "sentence-transformers":
        return f"pooling 'family' ends in layers of {family}'s own classification class; use the format 'dense'"
    if pooling == "family":
        return _classifier_obstacle(backbone, format)
    if format == "sentence-transformers" and not can_load_alone(backbone):
        return f"no stock class loads {family}'s encoder alone from a folder; use the format 'dense'"
    return None


def can_load_alone(backbone: Backbone | str) -> bool:
    """Whether an Auto class, or that of an encoder-decoder's encoder, loads the part of the model that we use."""
    if not isinstance(backbone, str):
        return backbone.kind != "encoder-decoder" or encoder_class(backbone.config) is not None
    return not is_encoder_decoder(backbone) or encoder_class(backbone) is not None


def _classifier_obstacle(backbone: Backbone | str, format: str) -> str | None:
    family = backbone if isinstance(backbone, str) else backbone.family
    layer = output_layer(backbone if isinstance(backbone, str) else backbone.config)
    if layer is None:
        return f"{family} has no stock classification class; train with pooling 'mean'"
    if not layer.has_bias and format != "onnx":
        return (
            f"the stock output layer of {family} has no bias; train with pooling 'last', which computes the same, or "
            "use the format 'onnx'"
        )
    return None
