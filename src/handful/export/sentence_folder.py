"""The layout of sentence-transformers: bare model, pooling and head in a folder each, listed in `modules.json`.

At its top such a folder has no configuration of a model, so that stock calls for a classification class refuse it
instead of making a head of random weights. Source: the files that sentence-transformers 2 to 6 write and read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from handful.backbone.load import Pooling
from handful.export.format import BODY, HEAD

POOLING = "1_Pooling"
_MODES = {"mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}


def write_head(folder: Path, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """The head, weight (C, D) and bias (C,), as a dense layer without activation, so that it gives scores."""
    outputs, width = weight.shape
    config = {
        "in_features": width,
        "out_features": outputs,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / HEAD / "config.json", config)
    tensors = {"linear.weight": weight.cpu().contiguous(), "linear.bias": bias.cpu().contiguous()}
    save_file(tensors, folder / HEAD / "model.safetensors", metadata={"format": "pt"})


def write_modules(folder: Path, pooling: Pooling, width: int, max_length: int) -> None:
    """What makes model and head a model of sentence-transformers, which cuts texts at `max_length` tokens."""
    modes = (*_MODES.values(), "pooling_mode_cls_token", "pooling_mode_max_tokens")
    chosen = {mode: mode == _MODES[pooling] for mode in modes}
    _write(folder / POOLING / "config.json", {"word_embedding_dimension": width, **chosen})
    _write(folder / BODY / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    paths = {"Transformer": BODY, "Pooling": POOLING, "Dense": HEAD}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(paths.items())
    ]
    _write(folder / "modules.json", modules)


def _write(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")
