"""A linear head on mean-pooled or last-token features inside a stock classification class, which pools otherwise.

Idea: the stock classes of BERT-like encoders read the first token, through a layer norm and an activation. One more
encoder layer makes the first token's state the scores: its queries and keys are zero, so each token attends to all
real tokens alike, and its values are the head's rows, so that attention gives the mean of the scores. Layer norm and
activation are nearly linear where what they read is small beside a fixed pattern, or beside 1; both are made so.

With pattern ±K in two dimensions and scores of size g·s in C others, a norm over D dimensions divides by
K·√(2/D)·√(1 + g²|s|²/2K²), so it is linear up to |s|²/4ρ², ρ = K/g. One dimension stays at zero: what the norm
subtracts from it, it subtracts from all, so that differences to it are exact. The first token's own state, which the
residual adds, is 1/g of a score. With g = 2³⁰ and ρ = 2²⁰ all that is below the rounding of float32 and bfloat16,
whose relative error is the same at every size; float16 overflows, and gives NaN.

Decoders read the last token through a layer without bias. Where a layer norm comes before, its output can be shifted
so that it sums to D for every token, which is a constant feature; of Llama one more layer writes such a feature.

Formula: scores = W f(x) + c, with f the mean (or last) of the last hidden states. Source: ours (PLATFORM).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from handful.backbone.families import family_of
from handful.backbone.load import Pooling, default_pooling, model_kind
from handful.backbone.sharing import making_models

GAIN = 2.0**30
"""g: how much larger scores are than the residual they are added to."""
RATIO = 2.0**20
"""ρ: how much larger the pattern is than the scores."""
TINY = 2.0**-30
"""What an activation reads is scaled by this: there it is linear up to its slope."""
SPARE = 3
"""Dimensions beside the scores': two of the pattern, one that stays zero."""
OPEN_GATE = 32.0
"""silu(32) and gelu(32) are 32 in float32."""


_SLOPES = {"tanh": 1.0, "linear": 1.0, "gelu": 0.5, "gelu_new": 0.5, "silu": 0.5, "swish": 0.5}
"""Slopes at zero of activations that have one there."""


def head_obstacle(config: PreTrainedConfig | str, pooling: str, num_outputs: int | None = None) -> str | None:
    """Why the family's stock classification class cannot hold a linear head on such features; None where it can."""
    if isinstance(config, str):
        if config not in CONFIG_MAPPING:
            return f"{config} has no stock classification class"
        config = CONFIG_MAPPING[config]()
    family = family_of(config.model_type)
    if pooling == "last":
        return _decoder_obstacle(config, num_outputs)
    if pooling not in ("mean", "auto"):
        return f"pooling {pooling!r} is not known"
    if family.mean_head:
        activation = _activation(config)
        if activation not in (*_SLOPES, "relu"):
            return f"the activation {activation!r} in {family.model_type}'s classification class was not tried"
        room = (config.hidden_size - 1) // 2 if activation == "relu" else config.hidden_size - SPARE
        return _too_many(num_outputs, min(room, config.hidden_size - SPARE))
    if family.pools_mean:
        return _too_many(num_outputs, config.hidden_size - SPARE)
    return family.no_mean_head or f"{family.model_type}'s stock classification class does not pool by the mean"


def family_pooling(family: str) -> str:
    """What pooling "auto" stands for in a family (`config.model_type`)."""
    return default_pooling(model_kind(CONFIG_MAPPING[family]())) if family in CONFIG_MAPPING else "mean"


def layers_added(config: PreTrainedConfig | str, pooling: str) -> int:
    """Layers that `with_head` adds to a model that it can be used on."""
    family = family_of(config if isinstance(config, str) else config.model_type)
    return int(family.adds_layer if pooling == "last" else family.mean_head is not None)


def with_head(model: Any, pooling: Pooling, weight: torch.Tensor, bias: torch.Tensor, config: Any) -> Any:
    """The stock classification class of a bare model, in eval mode, with scores W f(x) + c of its pooled features.

    `weight` (C, D) and `bias` (C,); `config` is the model's with the labels, and of a decoder with its padding token.
    Tensors that stay as they are are shared with the model. `head_obstacle` must have said None.
    """
    config, family = copy.deepcopy(config), family_of(config.model_type)
    config.num_hidden_layers += layers_added(config, pooling)
    if family.pools_mean:
        config.classifier_pooling, config.classifier_activation, config.classifier_bias = "mean", "linear", True
    if family.adds_layer:
        config.mlp_bias = True
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    with making_models(), no_init_weights():
        stock = kind(config)
    prefix = kind.base_model_prefix
    state = {f"{prefix}.{name}": tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    found = stock.load_state_dict(state, strict=False, assign=True)
    assert not found.unexpected_keys, found.unexpected_keys
    with torch.no_grad():
        for name in found.missing_keys:  # the added layer's, and the head's
            stock.get_parameter(name).zero_()
        head = _Scaled.of(weight.detach().cpu(), bias.detach().cpu())
        if pooling == "last":
            (_write_llama if family.adds_layer else _write_decoder)(stock, head)
        elif family.pools_mean:
            _write_modernbert(stock, head)
        else:
            _write_encoder(stock, head)
    return stock.eval().requires_grad_(False)


@final
@dataclass(frozen=True)
class _Scaled:
    """A head (C, D) as rows of norm 1, with the `norms` (C,) that make it what it was."""

    rows: torch.Tensor
    norms: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor) -> _Scaled:
        norms = weight.norm(dim=1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        return cls(weight / norms[:, None], norms, bias)

    @property
    def weight(self) -> torch.Tensor:
        return self.rows * self.norms[:, None]

    def __len__(self) -> int:
        return len(self.rows)


def _write_encoder(stock: Any, head: _Scaled) -> None:
    """Dimensions 0 … C−1 hold scores, C stays zero, the last two hold the pattern."""
    config, count = stock.config, len(head)
    place, width = family_of(config.model_type).mean_head, config.hidden_size
    assert place is not None
    layer = getattr(stock, stock.base_model_prefix).get_submodule(place.layers)[-1]
    layer.get_submodule(place.value).weight[:count] = head.rows
    mixed = layer.get_submodule(place.mixed)
    mixed.weight[range(count), range(count)] = GAIN
    mixed.bias[-2], mixed.bias[-1] = GAIN * RATIO, -GAIN * RATIO
    first, second = (layer.get_submodule(name) for name in place.norms)
    unit = RATIO * (2 / width) ** 0.5  # makes a dimension that is 1/ρ of the pattern 1 behind the norm
    first.weight[: count + 1] = second.weight[: count + 1] = unit
    first.weight[-2:] = unit  # the pattern of the second norm is ρ
    dense, output, activation = stock.get_submodule(place.dense), stock.get_submodule(place.output), _activation(config)
    if activation == "relu":  # relu(z) − relu(−z) = z
        for sign, start in ((1.0, 0), (-1.0, count)):
            rows = range(start, start + count)
            dense.weight[rows, range(count)], dense.weight[rows, count] = sign, -sign
            output.weight[range(count), rows] = sign * head.norms
    else:
        dense.weight[range(count), range(count)], dense.weight[:count, count] = TINY, -TINY
        output.weight[range(count), range(count)] = head.norms / (TINY * _SLOPES[activation])
    output.bias.copy_(head.bias)


def _write_modernbert(stock: Any, head: _Scaled) -> None:
    """Its class pools by the mean; only its own norm between two linear layers has to be made linear."""
    count, width = len(head), stock.config.hidden_size
    stock.head.dense.weight[:count] = head.rows
    stock.head.dense.bias[-2], stock.head.dense.bias[-1] = RATIO, -RATIO
    stock.head.norm.weight[: count + 1] = RATIO * (2 / width) ** 0.5
    stock.classifier.weight[range(count), range(count)], stock.classifier.weight[:, count] = head.norms, -head.norms
    stock.classifier.bias.copy_(head.bias)


def _write_decoder(stock: Any, head: _Scaled) -> None:
    """With n the normed state, Σn = 0: n + 1 sums to D, and W·diag(w) reads what W read of w·n + b."""
    norm = getattr(stock, stock.base_model_prefix).get_submodule(family_of(stock.config.model_type).final_norm)
    weight = head.weight * norm.weight
    constant = head.weight @ norm.bias + head.bias - weight.sum(1)
    stock.score.weight.copy_(weight + constant[:, None] / weight.shape[1])
    norm.weight, norm.bias = nn.Parameter(torch.ones_like(norm.weight)), nn.Parameter(torch.ones_like(norm.bias))


def _write_llama(stock: Any, head: _Scaled) -> None:
    """The added layer's norm is the last one of the model; its open gates let the scores through, beside a constant.

    Residual states of language models can be thousands, so the gain is larger than for encoders.
    """
    count, width, gain = len(head), stock.config.hidden_size, 2.0**36
    layer, norm = stock.model.layers[-1], stock.model.norm
    layer.post_attention_layernorm.weight.copy_(norm.weight)
    layer.input_layernorm.weight.fill_(1.0)
    layer.mlp.gate_proj.bias[:count] = OPEN_GATE
    layer.mlp.up_proj.weight[:count] = head.rows
    layer.mlp.down_proj.weight[range(count), range(count)] = gain / OPEN_GATE
    layer.mlp.down_proj.bias[-1] = gain * RATIO
    scale = torch.zeros(width)
    scale[:count], scale[-1] = RATIO / width**0.5, 1 / width**0.5
    norm.weight = nn.Parameter(scale)
    stock.score.weight[range(count), range(count)], stock.score.weight[:, -1] = head.norms, head.bias


def _activation(config: PreTrainedConfig) -> str:
    head = family_of(config.model_type).mean_head
    assert head is not None
    name = head.activation
    return str(getattr(config, name[1:], "gelu")) if name.startswith("@") else name


def _decoder_obstacle(config: PreTrainedConfig, num_outputs: int | None) -> str | None:
    family = family_of(config.model_type)
    if family.final_norm:
        # only OPT has these two settings: its variants norm behind each block, or project the last state
        plain = getattr(config, "do_layer_norm_before", True)
        plain = plain and getattr(config, "word_embed_proj_dim", config.hidden_size) == config.hidden_size
        return None if plain else f"this {family.model_type.upper()} does not end in a layer norm"
    if family.adds_layer:
        if config.hidden_act not in ("silu", "swish", "gelu"):
            return f"the activation {config.hidden_act!r} of this {family.model_type} was not tried"
        return _too_many(num_outputs, min(config.hidden_size, config.intermediate_size) - 1)
    name = family.model_type
    return f"the output layer of {name}'s stock classification class has no bias, and nothing before it can make one"


def _too_many(num_outputs: int | None, room: int) -> str | None:
    if num_outputs is None or num_outputs <= room:
        return None
    return f"its classification class has room for the scores of {room} classes in one layer, not of {num_outputs}"
