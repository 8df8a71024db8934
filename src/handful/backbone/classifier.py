"""What a family's stock classification class ends in, known from its configuration alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from handful.backbone.load import MARKER_WIDTH
from handful.backbone.sharing import making_models


@final
@dataclass(frozen=True)
class OutputLayer:
    """The last linear layer of a stock classification class: where it is, and whether it has a bias."""

    name: str
    has_bias: bool


def output_layer(config: PreTrainedConfig | str) -> OutputLayer | None:
    """The output layer for this configuration or family (`config.model_type`); None where there is no stock class.

    The class is built without memory (on torch's "meta" device), so that no weights are needed.
    """
    if isinstance(config, str):
        if config not in CONFIG_MAPPING:
            return None
        config = CONFIG_MAPPING[config]()
    config = copy.deepcopy(config)
    config.num_labels = MARKER_WIDTH
    try:
        with making_models(), torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError:  # transformers knows no such class for this family
        return None
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == MARKER_WIDTH]
    return OutputLayer(found[0][0], found[0][1].bias is not None) if len(found) == 1 else None


def encoder_class(config: PreTrainedConfig | str) -> Any:
    """The stock class of the encoder alone of an encoder-decoder, which loads such a checkpoint; None where none is."""
    kind = CONFIG_MAPPING[config] if isinstance(config, str) else type(config)
    return MODEL_FOR_TEXT_ENCODING_MAPPING.get(kind, None)


def as_encoder(stack: Any) -> Any:
    """An encoder-decoder's encoder as that class has it, its weights shared; as it is where there is no such class."""
    kind = encoder_class(stack.config)
    if kind is None:
        return stack
    with making_models(), no_init_weights():
        whole = kind(copy.deepcopy(stack.config))
    whole.set_input_embeddings(stack.get_input_embeddings())
    whole.encoder = stack
    return whole.eval()


def is_encoder_decoder(family: str) -> bool:
    """Whether the family (`config.model_type`) has an encoder and a decoder."""
    return family in CONFIG_MAPPING and bool(getattr(CONFIG_MAPPING[family](), "is_encoder_decoder", False))
