"""Turn model files that transformers does not train from (GGUF, quantised ONNX) into plain float32 model folders.

Each converter reads `source`, the folder inside the carrying package, and fills `target`, an existing empty folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from handful.errors import ModelError

if TYPE_CHECKING:
    import numpy as np


def convert_gguf(source: Path, target: Path) -> None:
    """The one `.gguf` file in `source`, dequantised by transformers.

    Slow (about 50 CPU seconds for 135 M parameters): the tokenizer's and the model's metadata are each read in pure
    Python.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from handful.backbone.sharing import making_models

    (file,) = source.glob("*.gguf")
    location = {
        "pretrained_model_name_or_path": str(source),
        "gguf_file": file.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    AutoTokenizer.from_pretrained(**location).save_pretrained(target)
    with making_models():
        # Without dequantize=True the model counts as quantised, and then can be neither saved nor trained.
        model = AutoModelForCausalLM.from_pretrained(
            **location, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    model.save_pretrained(target)


FLAN_T5_SMALL = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",
}
"""The ONNX files hold weights without the configuration; this is flan-t5-small's."""


def convert_onnx_t5(source: Path, target: Path) -> None:
    """flan-t5-small from `encoder.onnx`, `decoder.onnx` (both int8) and `tokenizer.json`.

    Raises: ModelError when the graphs do not hold exactly the tensors of that model.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    weights = onnx_weights(source / "encoder.onnx", prefix="enc.", rename="encoder.")
    del weights["encoder.embed_tokens.weight"]  # equal to shared.weight
    weights |= onnx_weights(source / "decoder.onnx", prefix="m.", rename="")
    tensors = {name: torch.tensor(array).contiguous() for name, array in weights.items()}
    _check_t5(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    # Written by hand: transformers 5 would turn tie_word_embeddings to true and tie the language-model head on loading.
    (target / "config.json").write_text(json.dumps(FLAN_T5_SMALL, indent=2))
    PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{index}>" for index in range(100)],
        model_max_length=512,
    ).save_pretrained(target)


def onnx_weights(path: Path, *, prefix: str, rename: str) -> dict[str, np.ndarray]:
    """The float32 weights of a dynamically quantised ONNX graph under their PyTorch names, `prefix` renamed.

    A weight is there in one of three forms: as a float; as `NAME_quantized`, `_scale` and `_zero_point`; or, for the
    matrix of a linear layer, transposed and without a name, so that the name comes from the node that multiplies by it
    ("/enc/block.0/layer.0/SelfAttention/q/MatMul_quant").
    """
    import numpy as np
    import onnx

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def dequantised(name: str) -> np.ndarray:
        centred = arrays[f"{name}_quantized"].astype(np.float32) - np.float32(arrays[f"{name}_zero_point"])
        return centred * arrays[f"{name}_scale"]

    weights = {}
    for name, array in arrays.items():
        if name.startswith(prefix) and name.endswith("_quantized"):
            name = name.removesuffix("_quantized")
            weights[name] = dequantised(name)
        elif name.startswith(prefix) and not name.endswith(("_scale", "_zero_point")):
            weights[name] = array
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in arrays:
            layer = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            weights[f"{layer}.weight"] = dequantised(node.input[1].removesuffix("_quantized")).T
    return {rename + name.removeprefix(prefix): array for name, array in weights.items()}


def _check_t5(tensors: dict[str, Any]) -> None:
    """Raises: ModelError unless names and shapes are exactly those of flan-t5-small."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from handful.backbone.sharing import making_models

    with making_models(), torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**FLAN_T5_SMALL))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if "embed_tokens" not in name}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ModelError(
            f"expected the tensors of flan-t5-small, found {len(wrong)} missing, extra or misshapen: {wrong[:3]}"
        )


@final
@dataclass(frozen=True)
class Conversion:
    """How files of one format become a model folder. `revision` goes up whenever the result would differ."""

    run: Callable[[Path, Path], None]
    requires: tuple[str, ...]
    revision: int = 1


CONVERSIONS = {
    "gguf": Conversion(convert_gguf, requires=("gguf",)),
    "onnx-t5": Conversion(convert_onnx_t5, requires=("onnx",)),
}
