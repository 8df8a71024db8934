"""Load a pretrained model as a frozen backbone that ends at pooled features or at language-model logits."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

from handful.backbone.attention import KeyValueInjection
from handful.backbone.families import family_of
from handful.backbone.outline import read_outline, wrong_values
from handful.backbone.packaged import PACKAGED_MODELS, packaged_folder
from handful.backbone.packing import PACKED_FAMILIES, Packing
from handful.backbone.sharing import Sharing, making_models
from handful.errors import ModelError, nearest
from handful.objectives.generation import NO_LOSS
from handful.storage import is_folder

Kind = Literal["encoder", "decoder", "encoder-decoder"]
Pooling = Literal["family", "mean", "last"]

MARKER_WIDTH = 17
"""`num_labels` given to the stock classification class, so that its last linear layer can be told by its width."""


@final
class Backbone:
    """A frozen pretrained model with its tokenizer; `features` turns token ids into pooled features.

    `pooling` is "family" (the stock classification class up to its last linear layer), "mean" (mean of the last
    hidden states over real tokens) or "last" (state of the last real token). `fresh` names parameters that the
    checkpoint did not hold (the dense layer of a RoBERTa head, say); they are trained with the head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        kind: Kind,
        pooling: Pooling | None,
        fresh: tuple[str, ...] = (),
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.fresh = name, fresh
        self.kind: Kind = kind
        self.pooling: Pooling | None = pooling
        self.config = model.config
        self.family: str = model.config.model_type
        self.num_layers: int = model.config.num_hidden_layers
        self.hidden_size: int = model.config.hidden_size
        self.packs = False
        self.installed: Callable[[], object] | None = None
        self.sharing = Sharing(self)
        self._accepted = set(inspect.signature(model.forward).parameters)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: torch.device | str) -> Backbone:
        self.model.to(device)  # type: ignore[arg-type]
        return self

    def install(self, put: Callable[[], object]) -> None:
        """Put what one forward uses into the model; where layers are recomputed it is put there again."""
        self.installed = put
        put()

    @contextmanager
    def lent_to(self, adapter: object) -> Iterator[None]:
        """For forwards through an adapter: see `Sharing.lent_to`."""
        with self.sharing.lent_to(adapter):
            yield

    @property
    def max_length(self) -> int:
        """Most tokens a row may have, special tokens included."""
        positions = getattr(self.config, "max_position_embeddings", None) or 512
        if family_of(self.family).positions == "padding":
            positions -= (self.config.pad_token_id or 0) + 1
        return min(int(positions), int(self.tokenizer.model_max_length))

    @property
    def longest_text(self) -> int:
        """Most tokens that the decoder of an encoder-decoder has positions for; some count none (T5)."""
        return int(getattr(self.config, "max_position_embeddings", None) or sys.maxsize)

    def features(self, inputs: Mapping[str, torch.Tensor], prompt: SoftPrompt | None = None) -> torch.Tensor:
        """Pooled features (B, D) of token ids (B, S), through whatever is injected at the moment.

        Of a language model: `token_scores`. A prompt stands in front of the word embeddings; pooling "mean" and "last"
        skip it.
        """
        if self.purpose_is_lm:
            return self.token_scores(inputs, prompt)
        packing = self.packing(inputs) if prompt is None else None
        if packing is not None:
            return pool(packing.unpack(self._packed_states(inputs, packing)), inputs["attention_mask"], self.pooling)
        output = self.model(**self.accepted(prompt.before(self.model, inputs) if prompt else inputs))
        if self.pooling == "family":
            return output.logits
        states = output.last_hidden_state[:, prompt.length :] if prompt else output.last_hidden_state
        return pool(states, inputs["attention_mask"], self.pooling)

    def token_scores(self, inputs: Mapping[str, torch.Tensor], prompt: SoftPrompt | None = None) -> torch.Tensor:
        """Scores (N, V) of the N tokens to write that `inputs["labels"]` (B, T) has, row by row: see `token_targets`.

        A decoder's labels stand where its inputs do (T = S), an encoder-decoder's are a sequence of their own.
        """
        inputs = prompt.before(self.model, inputs) if prompt else dict(inputs)
        labels = inputs.pop("labels")
        arguments = self.accepted(inputs)
        if self.kind == "encoder-decoder":
            model: Any = self.model
            arguments["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
            return self.model(**arguments).logits[labels != NO_LOSS]
        if prompt:
            labels = nn.functional.pad(labels, (prompt.length, 0), value=NO_LOSS)
        return self.model(**arguments).logits[:, :-1][labels[:, 1:] != NO_LOSS]

    def decoding(self, **options: Any) -> GenerationConfig:
        """The options of transformers' `GenerationConfig` as one, with the checkpoint's tokens.

        A text ends at the tokenizer's end token, which training ends texts with, and at any of the checkpoint's own.
        """
        own = self.model.generation_config
        tokens = {name: getattr(own, name, None) for name in ("decoder_start_token_id", "bos_token_id")}
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        ends = list(dict.fromkeys(token for token in (self.tokenizer.eos_token_id, *ends) if token is not None))
        tokens["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        return GenerationConfig(pad_token_id=self.tokenizer.pad_token_id, **tokens, **options)

    @torch.no_grad()
    def generate(
        self, inputs: Mapping[str, torch.Tensor], prompt: SoftPrompt | None = None, **options: Any
    ) -> torch.Tensor:
        """The tokens (B, T) that the language model writes for these rows, padded behind the end token.

        `options` are those of transformers' `GenerationConfig`. Where they say nothing, transformers takes the
        checkpoint's own: `GenerationOptions.decoding` leaves it the tokens to force or to ban.
        """
        config = self.decoding(**options)
        rows = prompt.before(self.model, inputs) if prompt else inputs
        read = {name: rows[name] for name in ("input_ids", "inputs_embeds", "attention_mask") if name in rows}
        written = self.model.generate(**read, generation_config=config)  # type: ignore[operator]
        if self.kind == "encoder-decoder":
            return written[:, 1:]
        return written if prompt else written[:, inputs["input_ids"].shape[1] :]

    def packing(self, inputs: Mapping[str, torch.Tensor]) -> Packing | None:
        """How to run a batch without its padding; None where it has none, or that is not possible.

        It takes our attention function, so only adapters that inject ask for it, by `packs`, until they are detached.
        Only on CPUs, where time goes into arithmetic; what the additional kernels cost on GPUs was not measured.
        """
        possible = self.family in PACKED_FAMILIES and self.pooling in ("mean", "last") and self.packs
        if not possible or self.device.type != "cpu" or bool(inputs["attention_mask"].all()):
            return None
        return Packing.of(inputs["attention_mask"])

    def _packed_states(self, inputs: Mapping[str, torch.Tensor], packing: Packing) -> torch.Tensor:
        """The last hidden states (1, N, D) of the real tokens."""
        rows = {name: tensor for name, tensor in self.accepted(inputs).items() if isinstance(tensor, torch.Tensor)}
        rows["position_ids"] = self.injection.positions.unshifted(inputs["input_ids"])
        del rows["attention_mask"]
        packed = {name: packing.pack(tensor) for name, tensor in rows.items()}
        return self.model(**packed, packing=packing).last_hidden_state

    def accepted(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | bool]:
        """The inputs that this model's forward takes (a tokenizer may make more), without a cache."""
        kept: dict[str, torch.Tensor | bool] = {k: v for k, v in inputs.items() if k in self._accepted}
        if "use_cache" in self._accepted:
            kept["use_cache"] = False
        return kept

    @cached_property
    def injection(self) -> KeyValueInjection:
        """The key/value injection of this model, made on first use."""
        with self.sharing.alone():
            return vars(self).get("injection") or self._make_injection()

    def _make_injection(self) -> KeyValueInjection:
        pad = self.tokenizer.pad_token_id
        token = pad + 1 if isinstance(pad, int) else 1  # any real token
        ids = torch.full((1, 5), token)
        if self.config.eos_token_id is not None:  # T5's and BART's classification classes look for it
            ids[0, -1] = self.config.eos_token_id
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "decoder_input_ids" in self._accepted and self.purpose_is_lm:
            inputs["decoder_input_ids"] = torch.full((1, 3), token)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return KeyValueInjection(self.model, self.accepted(inputs))

    @property
    def purpose_is_lm(self) -> bool:
        """Whether the model ends at language-model logits (for generation) and not at features."""
        return self.pooling is None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all weights that were in the checkpoint: what an adapter belongs to."""
        digest = hashlib.sha256(self.family.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name not in self.fresh:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class SoftPrompt:
    """Vectors (P, E) or (B, P, E) in front of the word embeddings; `scale`, () or (E,), multiplies prompt and words."""

    vectors: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return self.vectors.shape[-2]

    def before(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs of a model with this prompt in front of their words: embeddings (B, P + S, E) and their mask."""
        words = model.get_input_embeddings()(inputs["input_ids"])
        vectors = self.vectors.to(words).expand(len(words), -1, -1)
        longer = torch.cat((vectors, words), 1)
        found = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
        found["inputs_embeds"] = longer if self.scale is None else longer * self.scale.to(longer)
        for name, first in (("attention_mask", 1), ("token_type_ids", 0)):
            if name in inputs:
                found[name] = nn.functional.pad(inputs[name], (self.length, 0), value=first)
        return found


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling | None) -> torch.Tensor:
    """(B, S, D) states and a (B, S) mask of real tokens → (B, D)."""
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    rows = torch.arange(hidden.shape[0], device=hidden.device)  # not len(): a traced batch may vary in size
    return hidden[rows, last]


def load_backbone(
    name: str,
    *,
    pooling: Literal["auto", "family", "mean", "last"] = "auto",
    purpose: Literal["features", "lm"] = "features",
    device: torch.device | str = "cpu",
) -> Backbone:
    """The frozen backbone called `name`, on this device: a packaged name, a folder, or a name on the hub.

    `pooling="auto"` takes the mean for encoders and encoder-decoders (whose encoder alone is run) and the last
    token for decoders. Raises: ModelError when the name is unknown, or the model has no such head.
    """
    folder = resolve_model(name)
    config, tokenizer = read_outline(folder, name)
    kind = model_kind(config)
    tokenizer.padding_side = "left" if purpose == "lm" and kind == "decoder" else "right"
    fresh: tuple[str, ...] = ()
    resolved: Pooling | None
    if purpose == "lm":
        refuse_encoder(kind, name)
        resolved = None
        model, missing = _read_model(
            AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM, folder, name
        )
    elif pooling == "family":
        resolved = "family"
        model, missing = _read_model(AutoModelForSequenceClassification, folder, name, num_labels=MARKER_WIDTH)
        model.config.pad_token_id = tokenizer.pad_token_id
        fresh, missing = remove_last_linear(model, missing, name), ()
    else:
        resolved = default_pooling(kind) if pooling == "auto" else pooling
        model, missing = _read_model(AutoModel, folder, name)
        model = without_surplus(model, kind)
    _refuse_missing(model, missing, name)
    return Backbone(model, tokenizer, name=name, kind=kind, pooling=resolved, fresh=fresh).to(device)


def _read_model(cls: Any, folder: str, name: str, **options: Any) -> tuple[PreTrainedModel, Iterable[str]]:
    """A model in float32 and the names of the parameters that its checkpoint lacks. Raises: ModelError."""
    with wrong_values(name, "its config.json"):
        return _read_weights(cls, folder, name, **options)


def _read_weights(cls: Any, folder: str, name: str, **options: Any) -> tuple[PreTrainedModel, Iterable[str]]:
    """The same, for values that make sense."""
    try:
        with making_models(), without_bar():
            model, info = cls.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
    except ValueError as error:  # transformers knows no such class for this family
        raise ModelError(f"model {name!r}: {str(error).splitlines()[0]}", "use another model or pooling") from None
    except ImportError as error:  # of what unpacks quantised weights
        raise ModelError(
            f"model {name!r}: its weights cannot be read without another package: {str(error).strip().splitlines()[0]}",
            "install that package, or give the model in full precision, which 'fine-gates' and 'prune' need",
        ) from None
    except (OSError, SafetensorError, RuntimeError) as error:
        found = "they do not fit its config.json" if isinstance(error, RuntimeError) else str(error).splitlines()[0]
        raise ModelError(
            f"model {name!r}: its weights cannot be read: {found}", "give a model saved whole, as safetensors"
        ) from None
    return model, info["missing_keys"]


@contextmanager
def without_bar() -> Iterator[None]:
    """Without transformers' progress bar, which would run through our own display."""
    hook = set_tqdm_hook(lambda factory, args, kwargs: EmptyTqdm(*args))
    try:
        yield
    finally:
        set_tqdm_hook(hook)


def _refuse_missing(model: PreTrainedModel, missing: Iterable[str], name: str) -> None:
    """Raises: ModelError where a parameter of the model was not in its checkpoint, and so is random."""
    names = dict(model.named_parameters())
    random = sorted(key for key in missing if any(key == n or key.endswith(f".{n}") for n in names))
    if random:
        raise ModelError(
            f"model {name!r}: its checkpoint lacks {len(random)} of {len(names)} parameters, {random[0]!r} for one",
            "give a folder whose weights are those of its config.json",
        )


def refuse_encoder(kind: Kind, name: str) -> None:
    """Raises: ModelError for a model that cannot write."""
    if kind == "encoder":
        raise ModelError(
            f"model {name!r} is an encoder, which reads and cannot write",
            "use an encoder-decoder or a decoder, such as 'flan-t5-small' or 'smollm2-135m'",
        )


def default_pooling(kind: Kind) -> Literal["mean", "last"]:
    """What pooling "auto" stands for."""
    return "last" if kind == "decoder" else "mean"


def without_surplus(model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """The part of a bare model that is on the path to its features: no decoder, no pooler."""
    if kind == "encoder-decoder":
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    return model


def resolve_model(name: str) -> str:
    """The folder (or hub name) that `name` stands for, without loading anything. Raises: ModelError."""
    if name in PACKAGED_MODELS:
        return str(packaged_folder(name))
    path = _expanded(name)
    if name and is_folder(path):
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name}: expected a model folder, found no config.json in it", "give a folder saved by transformers"
            )
        return str(path)
    if "/" not in name or name.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(name):
        shown = name if len(name) < 200 else f"{name[:100]}… ({len(name):,} letters)"
        raise ModelError(
            f"no model is called {shown!r}: it is no packaged name, no folder and no hub name (owner/name)",
            nearest(name[:100], PACKAGED_MODELS) + "; `handful models` lists what works offline",
        )
    return name


def hub_name(name: str) -> str | None:
    """The hub's name of a model, of a packaged one that of what it is a copy of; None where that is not known."""
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name].upstream
    return None if is_folder(_expanded(name)) else name


_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]{1,96}")


def _expanded(name: str) -> Path:
    """The path with the home folder of whoever it names, or as it is where that is unknown."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):
        return Path(name)


def model_kind(config: PreTrainedConfig) -> Kind:
    """Which of the three kinds of model a configuration belongs to."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    is_masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    return "decoder" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_masked else "encoder"


def remove_last_linear(model: PreTrainedModel, missing: Iterable[str], name: str) -> tuple[str, ...]:
    """Replace the marked linear layer by the identity; returns the other parameters that were not in the checkpoint."""
    marked = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == MARKER_WIDTH]
    if len(marked) != 1:
        raise ModelError(
            f"model {name!r}: expected one output layer in its classification class, found {len(marked)}",
            "use pooling 'mean'",
        )
    parent, _, leaf = marked[0].rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    return tuple(sorted(key for key in missing if not key.startswith(marked[0] + ".")))
