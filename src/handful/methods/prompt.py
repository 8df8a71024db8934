"""Prompt tuning: P trained vectors in front of the word embeddings of a frozen model; and a scale on them.

Idea: the model reads P vectors that no word has, and everything it does is steered by them. Formula: Z = [Q; X] with
the word embeddings X (S, E) and Q = V, or with a scale Q = V ∘ B(s), B spreading s over (P, E) (`scaled_prompt`).
A simplex of M prompts mixes the Q, of which the midpoint is a plain prompt again.
Trained: M·P·E numbers, and with a classification head C·(D + 1). Inference: a sequence longer by P.
Source: Lester, Al-Rfou & Constant 2021. Deviations: any pooling, which skips the prompt where it is ours; AdamW and not
Adafactor; learning rates that count in the size of the model's word embeddings; prompts of a simplex are ours.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from handful.backbone.load import Backbone, SoftPrompt
from handful.data.batching import Batch
from handful.data.task import Task
from handful.errors import ConfigError, ModelError, RunError
from handful.methods.base import AbstractMethod, Draw, ParameterGroup, Preset, setting
from handful.methods.exports import Exports, Product, prompt_state
from handful.methods.head import HEAD_INIT, AbstractHeadedAdapter, HeadInit
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around
from handful.methods.simplex import Simplex, mix, spread

PromptInit = Literal["vocabulary", "text", "uniform"]
ScaleShape = Literal["scalar", "token", "dim", "full"]
ScaleTarget = Literal["prompt", "sequence"]
Carry = Literal["both", "prompt", "scale", "folded"]
RateUnit = Literal["embeddings", "one"]

FREQUENT_PIECES = 5000
"""The prompt starts at embeddings of pieces from the first so many of the vocabulary, which is ordered by frequency."""

RATE_REASON = "ours: 0.1 to 3 were tried on pools of E2E and WebNLG with flan-t5-small (docs/experiments.md)"
RATE_UNIT = "what the vectors' learning rate counts in: the root mean square of the model's word embeddings, or one"
PROMPT_INIT = "start: embeddings of frequent pieces, of the pieces of init_text, or uniform in ±0.5"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LEAST_ROOM = 8
"""Tokens that must be left for a text behind the prompt."""


@final
@dataclass(frozen=True)
class ScaleForm:
    """The scale of a prompt: its shape, what it multiplies, its start N(1, std²) and its learning rate."""

    shape: ScaleShape
    target: ScaleTarget = "prompt"
    std: float = 0.0
    rate: float = 1.0
    carry: Carry = "both"

    def size(self, length: int, width: int) -> tuple[int, int]:
        """The shape of s, such that s ∘ V spreads it over V (P, E)."""
        return {"scalar": (1, 1), "token": (length, 1), "dim": (1, width), "full": (length, width)}[self.shape]


def check_prompt(backbone: Backbone, length: int = 0) -> list[str]:
    """Reasons why so many vectors cannot be put in front of this backbone's word embeddings."""
    reasons = []
    if backbone.pooling == "family" and backbone.kind != "encoder":
        reasons.append(
            f"the pooler of {backbone.family} finds the last token by its id, and a prompt has none; use pooling 'last'"
            + (" or 'mean'" if backbone.kind == "encoder-decoder" else "")
        )
    if length + LEAST_ROOM > backbone.max_length:
        reasons.append(
            f"prompt_length: {length} vectors leave no room for text in the model's {backbone.max_length} positions"
        )
    return reasons


DEFAULT = Preset(RATE_REASON, training={"learning_rate": 0.3, "head_learning_rate": 1e-3})


@dataclass(frozen=True)
class AbstractPrompt(AbstractMethod):
    """The settings that a prompt and a scaled prompt have in common."""

    prompt_length: Annotated[int, setting("vectors P", unit="positions", ge=1, le=2048)] = 20
    init: Annotated[PromptInit, setting(PROMPT_INIT)] = "vocabulary"
    init_text: Annotated[str, setting("what the prompt starts from with init = 'text', repeated to its length")] = ""
    num_vertices: Annotated[int, setting("vertices M of a simplex of prompts; 1: none", ge=1, le=16)] = 1
    rate_unit: Annotated[RateUnit, setting(RATE_UNIT)] = "embeddings"
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    @property
    @abstractmethod
    def form(self) -> ScaleForm | None:
        """The scale on the prompt; None for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.init == "text") != bool(self.init_text.strip()):
            raise ConfigError(
                f"method.init_text: found {self.init_text!r} with init = {self.init!r}", "give both, or neither"
            )

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        del task
        return check_prompt(backbone, self.prompt_length)

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"peft state": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PromptAdapter:
        return PromptAdapter(backbone, task, self, generator=generator)


@final
@dataclass(frozen=True)
class Prompt(AbstractPrompt):
    """Trained vectors in front of the words: a scaled prompt without a scale."""

    name: ClassVar[str] = "prompt"
    summary: ClassVar[str] = "prompt tuning: trained vectors in front of the word embeddings"
    source: ClassVar[str] = "Lester et al. 2021"
    presets: ClassVar[Mapping[str, Preset]] = {"default": DEFAULT}
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(3e-2, 0.3, 3.0),
        "training.epochs": EPOCHS,
        "method.prompt_length": OneOf((20, 50, 100), "docs/methods/scaled-prompt.md"),
    }
    form: ClassVar[None] = None


@final
class SoftVectors(nn.Module):
    """M prompts V (M, P, E) with a scale s each; `forward()` → Q = V ∘ B(s), or V where the words are scaled too."""

    def __init__(self, start: torch.Tensor, form: ScaleForm | None, generator: torch.Generator):
        super().__init__()
        self.form = form
        self.vectors = nn.Parameter(start)
        if form is not None:
            shape = (len(start), *form.size(*start.shape[1:]))
            noise = torch.randn(shape, generator=generator) * form.std if form.std else 0.0
            self.scale = nn.Parameter(torch.ones(shape) + noise)

    def forward(self) -> torch.Tensor:
        if self.form is None or self.form.target == "sequence":
            return self.vectors
        return self.vectors * self.scale


@final
class PromptAdapter(AbstractHeadedAdapter):
    """scores = head(features([Q; x])), or on a language model the scores of the tokens to write."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        method: AbstractPrompt,
        *,
        generator: torch.Generator,
    ):
        reasons = check_prompt(backbone, method.prompt_length)
        if reasons:
            raise ModelError(reasons[0])
        super().__init__(backbone, task, generator=generator, head_init=method.head_init)
        self.method, self.simplex = method, Simplex(method.num_vertices)
        self.reserved_positions = method.prompt_length
        self.prompt = SoftVectors(start_vectors(backbone, method, generator), method.form, generator)

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        return Draw({"prompt": self.simplex.draw((len(batch),), generator)})

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        return Draw({"prompt": self.simplex.point(vertex, weights)[None]})

    def soft_prompt(self, draw: Draw | None = None) -> SoftPrompt:
        """The prompt at the points drawn, (B or 1, P, E)."""
        form = self.prompt.form
        scale = self.prompt.scale[0, 0] if form is not None and form.target == "sequence" else None
        return SoftPrompt(mix((draw or self.at()).rows["prompt"], self.prompt()), scale)

    def features(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        return self.backbone.features(batch.inputs, self.soft_prompt(draw))

    def generate(self, batch: Batch, draw: Draw | None = None, **options: Any) -> torch.Tensor:
        return self.backbone.generate(batch.inputs, self.soft_prompt(draw), **options)

    def parameter_groups(self) -> list[ParameterGroup]:
        form = self.prompt.form
        rate = embedding_size(self.backbone) if self.method.rate_unit == "embeddings" else 1.0
        groups = [ParameterGroup("adapter", [self.prompt.vectors], rate)]
        if form is not None:  # decay would pull a factor to 0
            groups.append(ParameterGroup("scale", [self.prompt.scale], form.rate, decays=False))
        rest = [p for n, p in self.named_parameters() if not n.startswith("prompt.")]
        return [*groups, *([ParameterGroup("head", rest)] if rest else [])]

    def carry(self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """See `AbstractAdapter`. Raises: ConfigError for a scale that is missing, of another shape, or of words."""
        self._check_target(weights, record)
        found = self._carried(weights, record)
        for name, parameter in self.prompt.named_parameters():
            value = found.get(f"prompt.{name}")
            if value is not None and value.shape != parameter.shape:
                raise ConfigError(
                    f"prompt.{name}: expected the shape {tuple(parameter.shape)}, found {tuple(value.shape)} in the "
                    "run to start from",
                    "set prompt_length, num_vertices and scale_shape as that run has them"
                    + ("; or carry 'folded', which leaves its scale behind" if name == "scale" else ""),
                )
        return found

    def _check_target(self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        """A scale on the whole sequence means nothing where the prompt alone is scaled, and folds into no prompt."""
        form = self.prompt.form
        own: ScaleTarget = form.target if form else "prompt"
        method = record.get("spec", {}).get("method", {})
        if "prompt.scale" in weights and method.get("scale_target", own) != own:
            raise ConfigError(
                f"method.scale_target: the run to start from scales the {method['scale_target']}, this one the {own}",
                "set scale_target as that run has it",
            )
        if form is not None and form.carry == "folded" and own == "sequence":
            raise ConfigError(
                "method.carry: 'folded', but a scale on the whole sequence folds into no prompt", "carry 'both'"
            )

    def _carried(self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        form, found = self.prompt.form, dict(super().carry(weights, record))
        vectors = found.pop("prompt.vectors", None)
        if vectors is None:
            return found
        scale = found.pop("prompt.scale", None)
        folded = vectors if scale is None else vectors * scale
        if form is None:  # a plain prompt can only take what is folded
            return found | {"prompt.vectors": folded}
        if scale is None and form.carry == "scale":
            raise ConfigError("method.carry: 'scale', but the run to start from has none", "use carry = 'prompt'")
        one = torch.ones_like(self.prompt.scale)
        scale = one if scale is None else scale
        carried = {"both": (vectors, scale), "folded": (folded, one), "prompt": (vectors, one), "scale": (None, scale)}
        names = ("prompt.vectors", "prompt.scale")
        return found | {
            name: value for name, value in zip(names, carried[form.carry], strict=True) if value is not None
        }

    def fold(self, product: Product) -> Any:
        return prompt_state(self.folded_prompt(), self.backbone) if product == "peft state" else super().fold(product)

    @torch.no_grad()
    def folded_prompt(self) -> torch.Tensor:
        """Q (P, E) of the midpoint, folded in float32."""
        return mix(self.simplex.midpoint, self.prompt().float()).detach()

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Mean norm of a vector of Q and, with a scale, its mean distance from one; the spread of a simplex."""
        found = {"prompt_norm": float(self.prompt().norm(dim=-1).mean())}
        if self.prompt.form is not None:
            found["scale_off_one"] = float((self.prompt.scale - 1).abs().mean())
        return found | ({"spread": spread([self.prompt()])} if self.num_vertices > 1 else {})


@torch.no_grad()
def start_vectors(backbone: Backbone, method: AbstractPrompt, generator: torch.Generator) -> torch.Tensor:
    """The start (M, P, E) of the vectors, different for each vertex but for a start from text."""
    shape = (method.num_vertices, method.prompt_length)
    if method.init == "uniform":
        width = embed(backbone, torch.zeros(1, dtype=torch.long)).shape[1]
        return torch.rand(*shape, width, generator=generator) - 0.5
    tokenizer = backbone.tokenizer
    if method.init == "text":
        ids = tokenizer(method.init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"method.init_text: {method.init_text!r} gives no token", "give a longer text")
        chosen = torch.tensor(ids).repeat(-(-shape[1] // len(ids)))[: shape[1]].expand(shape)
    else:
        pieces = frequent_pieces(backbone)
        chosen = pieces[torch.randint(len(pieces), shape, generator=generator)]
    return embed(backbone, chosen)


def frequent_pieces(backbone: Backbone) -> torch.Tensor:
    """Ids of the most frequent pieces of the vocabulary, without special tokens and BERT's places for new words."""
    table: torch.Tensor = backbone.model.get_input_embeddings().weight  # type: ignore[assignment]
    special, ids = set(backbone.tokenizer.all_special_ids), range(min(FREQUENT_PIECES, len(table)))
    pieces = backbone.tokenizer.convert_ids_to_tokens(list(ids))
    trained = [not (piece or "").startswith("[unused") for piece in pieces]
    return torch.tensor([i for i in ids if trained[i] and i not in special])


@torch.no_grad()
def embed(backbone: Backbone, ids: torch.Tensor) -> torch.Tensor:
    """Word embeddings (…, E) as the model's layers get them, in float32: some models multiply their table."""
    table = backbone.model.get_input_embeddings()
    return table(ids.to(table.weight.device)).float().clone()  # type: ignore[operator, union-attr]


def embedding_size(backbone: Backbone) -> float:
    """Root mean square of the numbers in the embeddings of frequent pieces.

    12.5 in flan-t5-small, 0.12 in SmolLM2-135M, 0.059 in MiniLM: one rate cannot be right for all of them.
    """
    return float(embed(backbone, frequent_pieces(backbone)).square().mean().sqrt())


def read_peft_prompt(folder: Path) -> torch.Tensor:
    """The prompt (P, E) of a folder that PEFT has saved, in float32.

    For an encoder-decoder PEFT by default saves 2·P rows, of which it reads the first P and no others.
    Raises: RunError where there is no such prompt.
    """
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        rows = load_file(folder / PEFT_WEIGHTS).get("prompt_embeddings")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"{folder}: expected {PEFT_CONFIG} and {PEFT_WEIGHTS} as PEFT saves them: {error}",
            "save it again with safe_serialization=True",
        ) from None
    names = ("peft_type", "num_virtual_tokens")
    kind, length = (config.get(name) if isinstance(config, dict) else None for name in names)
    if kind != "PROMPT_TUNING" or rows is None or rows.dim() != 2 or len(rows) not in (length, 2 * (length or 0)):
        shape = "none" if rows is None else str(tuple(rows.shape))
        raise RunError(
            f"{folder}: expected a PROMPT_TUNING adapter of P vectors and prompt_embeddings (P or 2·P, E), "
            f"found {kind} with P = {length} and {shape}",
            "only prompts can be taken over",
        )
    return rows[:length].float()
