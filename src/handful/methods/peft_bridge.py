"""Methods that PEFT already has, under our loop, heads and pooling: LoRA, IA3, prompt tuning, any other PEFT config.

Idea: PEFT puts its layers into the frozen model in place (or trained vectors in front of its word embeddings), so the
backbone's own features run through them; the head is ours. Nothing of PEFT's numbers is computed here.
LoRA: h = W x + (α/r)·B A x with B = 0 at the start; trained: Σ r·(in + out) over the target layers.
IA3: keys, values and feed-forward activations times a vector that starts at 1; trained: one number a channel.
Prompt tuning: P trained vectors in front of the embeddings; trained: P·E. Each plus C·(D + 1) for the head.
Inference: LoRA and IA3 can be folded into the weights (export "dense"); prompt tuning lengthens every sequence by P.
Source: Hu et al. 2022; Liu et al. 2022 (IA3); Lester et al. 2021; Mangrulkar et al., the PEFT library. Deviations: the
layers' random start comes from our generator and not from the global one; mean and last pooling skip the prompt, while
the family's own pooler sees it (as under stock PEFT), so that first-token poolers read the first prompt vector.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import nn

from handful.backbone.load import Backbone, SoftPrompt
from handful.backbone.sharing import lent_seed, making_models
from handful.data.batching import Batch, EncodedRows
from handful.data.task import Task
from handful.errors import ConfigError, nearest
from handful.methods.base import AbstractMethod, BorrowedParameters, Draw, Preset, setting
from handful.methods.exports import Exports, PeftState, Product
from handful.methods.head import HEAD_INIT, AbstractHeadedAdapter, HeadInit
from handful.methods.prompt import check_prompt
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around
from handful.methods.subspace import SubspaceAdapter, Vertices, spread_out
from handful.methods.targets import (
    Targets,
    check_targets,
    choose_ia3_targets,
    choose_lora_targets,
    has_transposed_layers,
    listed,
    lowest_layer,
    name_targets,
)

UNSUPPORTED_TYPES = {
    "PREFIX_TUNING": "handful has it as the method 'prefix', which exports to PEFT",
    "CARTRIDGE": "it fills the model's cache, which many families lack; method 'prefix' does the same in every family",
    "CPT": "it is for language modelling only",
    "MULTITASK_PROMPT_TUNING": "it needs a task id with every row",
    "POLY": "it needs a task id with every row",
    "ADALORA": "it moves its ranks about from inside the training loop of PEFT's examples",
    "ADAPTION_PROMPT": "it replaces the attention of some decoders and cannot be taken off bit for bit",
    "XLORA": "it mixes adapters that were trained before",
    "SHADOW": "it is no set of layers inside the model but a second model beside it",
}
_START_FROM_WEIGHTS = ("layer_replication", "loftq_config", "corda_config", "eva_config", "lora_ga_config")
_OWN_KEYS = frozenset(
    ("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version", "revision")
)


def import_peft() -> Any:
    """The peft package. Raises: ConfigError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"this method needs PEFT, which cannot be imported: {error}", "pip install 'handful[peft]'"
        ) from None
    return peft


def build_config(config: Mapping[str, Any]) -> Any:
    """PEFT's configuration object. Raises: ConfigError for an unknown type or key (nearest name) or a refused value."""
    classes = {str(kind.value): cls for kind, cls in import_peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(config.get("peft_type", "")).upper()
    if kind not in classes:
        raise ConfigError(
            f"config.peft_type: expected a PEFT method, found {config.get('peft_type')!r}", nearest(kind, classes)
        )
    if kind in UNSUPPORTED_TYPES:
        raise ConfigError(f"config.peft_type: {kind} cannot be used here: {UNSUPPORTED_TYPES[kind]}")
    known = set(inspect.signature(classes[kind]).parameters) - _OWN_KEYS
    settings = {name: value for name, value in config.items() if name not in _OWN_KEYS}
    wrong = [f"config.{name}: {kind} has no such key; {nearest(name, known)}" for name in settings if name not in known]
    if settings.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        wrong.append(f"config.init_lora_weights: {settings['init_lora_weights']!r} would change the frozen weights")
    wrong += [f"config.{name}: it would change the frozen model" for name in _START_FROM_WEIGHTS if settings.get(name)]
    if wrong:
        raise ConfigError(f"{len(wrong)} wrong key(s) of the PEFT config:\n  " + "\n  ".join(wrong))
    try:
        return classes[kind](task_type="FEATURE_EXTRACTION", **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: PEFT refuses it: {error}", f"see PEFT's documentation of {kind}") from None


@final
class PeftAdapter(AbstractHeadedAdapter):
    """scores = head(features(x)) with PEFT's layers inside the backbone, or its prompt in front of the embeddings.

    The parameters are PEFT's trainable ones (the very objects) and the head's. Frozen tensors that PEFT adds (random
    projections, masks) are buffers. `notes` says what was chosen for the user.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        method: LoRA | IA3 | PromptTuning | Peft,
        config: Mapping[str, Any],
        *,
        generator: torch.Generator,
        notes: tuple[str, ...] = (),
    ):
        _ = backbone.fingerprint  # taken before PEFT renames the weights
        settings = build_config(config)
        super().__init__(backbone, task, generator=generator, head_init=method.head_init)
        backbone.sharing.claim(self)
        self.method, self.notes = method, notes
        self.prompt_length = self.reserved_positions = getattr(settings, "num_virtual_tokens", 0) or 0
        known = {id(t) for t in (*backbone.model.parameters(), *backbone.model.buffers())}
        own = set(backbone.model.modules())
        restore = _remember(backbone.model)
        self._restore: Callable[[], None] | None = restore
        try:
            peft_model = _inject(backbone, settings, generator)
            _refuse_fresh_targets(peft_model, backbone)
        except ConfigError:
            super().detach()
            restore()
            raise
        object.__setattr__(self, "peft_model", peft_model)  # held, not registered: it contains the whole backbone
        object.__setattr__(self, "_added", [module for module in peft_model.modules() if module not in own])
        pooler = [] if self.pooler is None else list(self.pooler.parameters())
        for parameter in pooler:
            parameter.requires_grad_(True)  # PEFT freezes whatever is not its own
        pooled = {id(parameter) for parameter in pooler}
        self.trained = BorrowedParameters(peft_model, lambda _, p: p.requires_grad and id(p) not in pooled)
        self.constants = nn.Module()
        frozen = ((n, p) for n, p in peft_model.named_parameters() if not p.requires_grad)
        for name, tensor in (*frozen, *peft_model.named_buffers()):
            if id(tensor) not in known:
                self.constants.register_buffer(name.replace(".", "__"), tensor.detach())
        self.lowest_layer = lowest_layer(backbone, self.trained.parameters())

    peft_model: Any
    _added: list[nn.Module]

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        for module in self._added:  # the probe would draw dropout from torch's own stream
            module.training = False
        super().warm_start(rows, generator)

    def install(self, batch: Batch, draw: Draw) -> None:
        for module in self._added:  # fit() sets dropout of the frozen model apart from the adapter's own
            module.training = self.training

    def features(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        self.install(batch, draw or self.at())
        return self.backbone.features(batch.inputs, self._prompt(batch))

    def generate(self, batch: Batch, draw: Draw | None = None, **options: Any) -> torch.Tensor:
        self.install(batch, draw or self.at())
        return self.backbone.generate(batch.inputs, self._prompt(batch), **options)

    def _prompt(self, batch: Batch) -> SoftPrompt | None:
        """The prompt in front of the word embeddings, where the method is one."""
        return SoftPrompt(self.peft_model.get_prompt(batch_size=len(batch))) if self.prompt_length else None

    def peft_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """PEFT's configuration as JSON values and its tensors under the names of `save_pretrained`."""
        config = self.peft_model.peft_config["default"].to_dict()
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        tensors = import_peft().get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        return config, {name: tensor.detach() for name, tensor in tensors.items()}

    def fold(self, product: Product) -> Any:
        if product == "peft state":
            return PeftState("prompt" if self.prompt_length else "layers", *self.peft_state())
        return super().fold(product)

    def merged_model(self) -> nn.Module:
        """A copy of the model with PEFT's layers folded into its weights. Raises: ConfigError where PEFT cannot."""
        if self.prompt_length:
            raise ConfigError("a prompt cannot be folded into weights", "export it as a PEFT adapter")
        try:
            return copy.deepcopy(self.peft_model).merge_and_unload()
        except (NotImplementedError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"PEFT cannot fold this adapter into weights: {error}", "export it as a PEFT adapter"
            ) from None

    def detach(self) -> None:
        if self._restore is not None:
            self.trained.restore()
            self._restore()
            self._restore = None
        super().detach()


def _remember(model: nn.Module) -> Callable[[], None]:
    """A function that puts the modules, parameters and buffers of now back into every module of the model."""
    saved = [(m, dict(m._modules), dict(m._parameters), dict(m._buffers)) for m in model.modules()]

    def restore() -> None:
        for module, *contents in saved:
            for held, content in zip((module._modules, module._parameters, module._buffers), contents, strict=True):
                held.clear()
                held.update(content)  # pyright: ignore[reportArgumentType, reportCallIssue]
        vars(model).pop("peft_config", None)
        model.requires_grad_(False)

    return restore


def _inject(backbone: Backbone, config: Any, generator: torch.Generator) -> Any:
    """The PEFT model around the backbone's; PEFT draws from the global stream, so that is lent a seed of ours."""
    if hasattr(backbone.model, "peft_config"):
        raise ConfigError(f"{backbone.name} carries a PEFT adapter already", "detach() that one first")
    if config.is_prompt_learning:  # PEFT looks for these under names that not every family has
        config.token_dim = backbone.model.get_input_embeddings().embedding_dim
        config.num_layers, config.num_attention_heads = backbone.num_layers, backbone.config.num_attention_heads
    if hasattr(config, "fan_in_fan_out") and has_transposed_layers(backbone):
        config.fan_in_fan_out = True  # PEFT would find out by itself, with a warning a layer
    seed = int(torch.randint(2**62, (), generator=generator))
    with making_models(), lent_seed(seed, backbone.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            return import_peft().get_peft_model(backbone.model, config)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise ConfigError(
                f"PEFT cannot put {config.peft_type.value} on {backbone.family}: {error}",
                name_targets(backbone),
            ) from None


def _refuse_fresh_targets(peft_model: Any, backbone: Backbone) -> None:
    """Layers that are trained with the head must not be targets too: stock PEFT would not load them."""
    fresh = {name.rpartition(".")[0] for name in backbone.fresh}
    both = fresh.intersection(getattr(peft_model.base_model, "targeted_module_names", ()))
    if both:
        raise ConfigError(
            f"target_modules reaches {', '.join(sorted(both))}, which is trained with the head anyway",
            "name the targets more exactly, for instance 'output.dense' instead of 'dense'",
        )


@final
@dataclass(frozen=True)
class LoRA(AbstractMethod):
    """Low-rank updates of linear layers."""

    name: ClassVar[str] = "lora"
    added: ClassVar[tuple[str, ...]] = ("num_vertices",)
    summary: ClassVar[str] = "LoRA: low-rank updates of the query and value layers (through PEFT)"
    source: ClassVar[str] = "Hu et al. 2022"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours, not searched: the rate of the first trials (docs/experiments.md)",
            training={"learning_rate": 2e-3, "head_learning_rate": 1e-3},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(2e-4, 2e-3, 1e-2),
        "training.epochs": EPOCHS,
        "method.rank": OneOf(
            (4, 8, 16), "ours: half, all and twice the preset's; alpha stays, as the rate does its work"
        ),
    }

    rank: Annotated[int, setting("rank r of every update", ge=1, le=1024)] = 8
    alpha: Annotated[float, setting("the update is scaled by alpha / rank", gt=0)] = 16.0
    dropout: Annotated[float, setting("dropout on the input of the updates, in training", ge=0, lt=1)] = 0.0
    target_modules: Annotated[
        Targets, setting("ends of layer names, PEFT's 'all-linear' or a pattern; auto: query and value layers")
    ] = "auto"
    num_vertices: Vertices = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        targets, _ = self._targets(backbone)
        return check_targets(backbone, targets)

    def _targets(self, backbone: Backbone) -> tuple[Targets, str]:
        if self.target_modules != "auto":
            return self.target_modules, "as given"
        return choose_lora_targets(
            backbone, import_peft().utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(backbone.family)
        )

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"peft state": None, "merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PeftAdapter | SubspaceAdapter:
        targets, reason = self._targets(backbone)
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
        }
        notes = (f"target_modules = {listed(targets)}: {reason}",)
        make = partial(PeftAdapter, backbone, task, self, config, generator=generator, notes=notes)
        return spread_out(make, self.num_vertices, generator)


@final
@dataclass(frozen=True)
class IA3(AbstractMethod):
    """Rescaled keys, values and feed-forward activations."""

    name: ClassVar[str] = "ia3"
    added: ClassVar[tuple[str, ...]] = ("num_vertices",)
    summary: ClassVar[str] = "IA3: rescaled keys, values and feed-forward activations (through PEFT)"
    source: ClassVar[str] = "Liu et al. 2022 (T-Few)"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours: a little above the paper's 3e-3, for few steps; searched for writing alone (docs/experiments.md)",
            training={"learning_rate": 1e-2, "head_learning_rate": 1e-3},
            writing={"learning_rate": 5e-2},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-3, 1e-2, 5e-2),
        "training.epochs": EPOCHS,
    }

    target_modules: Annotated[
        Targets, setting("ends of the names of all rescaled layers; auto: keys, values and feed-forward")
    ] = "auto"
    feedforward_modules: Annotated[
        tuple[str, ...], setting("those of target_modules whose input is rescaled instead; only read if that is given")
    ] = ()
    num_vertices: Vertices = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        targets, feedforward, _ = self._targets(backbone)
        second = check_targets(backbone, feedforward, "feedforward_modules") if feedforward else []
        return check_targets(backbone, targets) + second

    def _targets(self, backbone: Backbone) -> tuple[Targets, tuple[str, ...], str]:
        if self.target_modules != "auto":
            return self.target_modules, self.feedforward_modules, "as given"
        utils = import_peft().utils
        return choose_ia3_targets(
            backbone,
            utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(backbone.family),
            utils.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(backbone.family, ()),
        )

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"peft state": None, "merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PeftAdapter | SubspaceAdapter:
        targets, feedforward, reason = self._targets(backbone)
        config = {
            "peft_type": "IA3",
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "feedforward_modules": list(feedforward),
        }
        notes = (f"target_modules = {listed(targets)}, feed-forward {listed(feedforward)}: {reason}",)
        make = partial(PeftAdapter, backbone, task, self, config, generator=generator, notes=notes)
        return spread_out(make, self.num_vertices, generator)


@final
@dataclass(frozen=True)
class PromptTuning(AbstractMethod):
    """Trained vectors in front of the word embeddings."""

    name: ClassVar[str] = "prompt-tuning"
    added: ClassVar[tuple[str, ...]] = ("num_vertices",)
    summary: ClassVar[str] = "prompt tuning: trained vectors in front of the word embeddings (through PEFT)"
    source: ClassVar[str] = "Lester et al. 2021"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours, not searched: as for prefixes", training={"learning_rate": 3e-2, "head_learning_rate": 1e-3}
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(3e-3, 3e-2, 3e-1),
        "training.epochs": EPOCHS,
        "method.prompt_length": OneOf((5, 10, 20), "ours: half, all and twice the preset's"),
    }

    prompt_length: Annotated[int, setting("trained vectors P", unit="positions", ge=1, le=512)] = 10
    init: Annotated[
        Literal["vocabulary", "normal"], setting("embeddings of random words, or N(0, 1)", source="Lester et al. 2021")
    ] = "vocabulary"
    num_vertices: Vertices = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        import_peft()
        return check_prompt(backbone)

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"peft state": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PeftAdapter | SubspaceAdapter:
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.prompt_length,
            "prompt_tuning_init": "SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM",
        }
        return spread_out(
            partial(PeftAdapter, backbone, task, self, config, generator=generator), self.num_vertices, generator
        )


@final
@dataclass(frozen=True)
class Peft(AbstractMethod):
    """Any other method of the PEFT library."""

    name: ClassVar[str] = "peft"
    added: ClassVar[tuple[str, ...]] = ("num_vertices",)
    summary: ClassVar[str] = "any PEFT config: peft_type and its keys, as in adapter_config.json"
    source: ClassVar[str] = "the PEFT library"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours, not searched: LoRA's rate", training={"learning_rate": 2e-3, "head_learning_rate": 1e-3}
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(2e-4, 2e-3, 2e-2),
        "training.epochs": EPOCHS,
    }

    config: Annotated[
        dict[str, Any] | None, setting("peft_type and its keys, as in adapter_config.json; none: PEFT's plain LoRA")
    ] = None
    num_vertices: Vertices = 1
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        build_config(self._config())

    def _config(self) -> dict[str, Any]:
        return self.config or {"peft_type": "LORA"}

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        config, mapping = build_config(self._config()), import_peft().mapping
        if config.is_prompt_learning:
            return check_prompt(backbone)
        table = getattr(mapping.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "target_module_mapping", None)
        targets = self._config().get("target_modules")
        if targets is None and table is not None and backbone.family not in table:
            return [f"config.target_modules: PEFT has no choice for {backbone.family}; {name_targets(backbone)}"]
        return check_targets(backbone, tuple(targets), "config.target_modules") if isinstance(targets, list) else []

    def exports(self, backbone: Backbone | str) -> Exports:
        is_prompt = build_config(self._config()).is_prompt_learning
        return {"peft state": None} if is_prompt else {"peft state": None, "merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PeftAdapter | SubspaceAdapter:
        make = partial(PeftAdapter, backbone, task, self, self._config(), generator=generator)
        return spread_out(make, self.num_vertices, generator)
