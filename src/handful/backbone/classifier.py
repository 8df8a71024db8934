"""What a family's stock classification class ends in, known from its configuration alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedConfig

from handful.backbone.load import MARKER_WIDTH


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
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError:  # transformers knows no such class for this family
        return None
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == MARKER_WIDTH]
    return OutputLayer(found[0][0], found[0][1].bias is not None) if len(found) == 1 else None
