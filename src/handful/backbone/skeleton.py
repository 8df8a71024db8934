"""A backbone without its weights: what can be known about a model before it is loaded."""

from __future__ import annotations

from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from handful.backbone.load import (
    MARKER_WIDTH,
    Backbone,
    Kind,
    Pooling,
    default_pooling,
    model_kind,
    refuse_encoder,
    remove_last_linear,
    resolve_model,
    without_surplus,
)
from handful.backbone.outline import read_outline, wrong_values
from handful.backbone.sharing import making_models
from handful.errors import ModelError


def load_skeleton(
    name: str,
    *,
    pooling: Literal["auto", "family", "mean", "last"] = "auto",
    purpose: Literal["features", "lm"] = "features",
) -> Backbone:
    """The backbone that `load_backbone` would give, with tensors that have shapes but no content and take no memory.

    Its layers, attention sites and widths are the real ones and a method can be attached, but nothing can be computed
    (torch raises a RuntimeError where a model looks at values), and which parameters the checkpoint lacks (`fresh`) is
    not known. Raises: ModelError as `load_backbone` does.
    """
    folder = resolve_model(name)
    config, tokenizer = read_outline(folder, name)
    tokenizer.padding_side = "right"
    kind = model_kind(config)
    resolved: Pooling | None = default_pooling(kind) if pooling == "auto" else pooling
    if purpose == "lm":
        refuse_encoder(kind, name)
        resolved = None
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with wrong_values(name, "its config.json"), making_models(), fake, no_init_weights():
        model = _bare_model(config, kind, resolved, name)
    skeleton = Backbone(model, tokenizer, name=name, kind=kind, pooling=resolved)
    skeleton.__dict__["fingerprint"] = ""  # of weights that are not there
    return skeleton


def _bare_model(config: PreTrainedConfig, kind: Kind, pooling: Pooling | None, name: str) -> PreTrainedModel:
    """The model up to what its `pooling` needs; None stands for a language model."""
    try:
        if pooling == "family":
            config.num_labels = MARKER_WIDTH
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
            model.tie_weights()  # which is otherwise a part of the initialisation
            remove_last_linear(model, (), name)
            return model
        if pooling is None:
            auto = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
            return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
        return without_surplus(AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False), kind)
    except ValueError as error:  # transformers knows no such class for this family
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"model {name!r}: {str(error).splitlines()[0]}", "use another pooling") from None
