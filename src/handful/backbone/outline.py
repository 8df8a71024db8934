"""Configuration and tokenizer of a model folder, which may be anybody's: none of its code is run, no value trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from handful.backbone.packaged import PACKAGED_MODELS
from handful.errors import HandfulError, ModelError, nearest

_SIZES = {
    "vocab_size": 10**8, "num_hidden_layers": 10**4, "num_layers": 10**4, "n_layer": 10**4, "n_layers": 10**4,
    "num_decoder_layers": 10**4, "encoder_layers": 10**4, "decoder_layers": 10**4, "num_attention_heads": 10**4,
    "num_heads": 10**4, "n_head": 10**4, "n_heads": 10**4, "num_key_value_heads": 10**4,
    "encoder_attention_heads": 10**4, "decoder_attention_heads": 10**4, "hidden_size": 10**6, "d_model": 10**6,
    "n_embd": 10**6, "dim": 10**6, "embedding_size": 10**6, "d_kv": 10**6, "head_dim": 10**6,
    "intermediate_size": 10**7, "d_ff": 10**7, "n_inner": 10**7, "hidden_dim": 10**7, "encoder_ffn_dim": 10**7,
    "decoder_ffn_dim": 10**7, "max_position_embeddings": 10**9, "n_positions": 10**9,
}  # fmt: skip
"""The largest value of each size of a model that is believed; none is zero or negative."""

MOST_PARAMETERS = 10**12
"""No model of today has more, and no machine of ours could hold it."""

_OF_WRONG_VALUES = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, NotImplementedError,
    RuntimeError, MemoryError, StrictDataclassError, SafetensorError,
)  # fmt: skip
"""What transformers and torch raise on configurations and tokenizer files whose values have no sense."""


@contextmanager
def wrong_values(name: str, what: str) -> Iterator[None]:
    """Turns what transformers raises on senseless values into a `ModelError` that says of which model and file."""
    try:
        yield
    except Exception as error:
        plain = type(error) is Exception  # as the package tokenizers raises
        if isinstance(error, HandfulError) or not (plain or isinstance(error, _OF_WRONG_VALUES)):
            raise
        said = (str(error).strip().splitlines() or ["no reason was given"])[0]
        raise ModelError(
            f"model {name!r}: {what} cannot be understood: {type(error).__name__}: {said[:300]}",
            "give a folder as transformers saves it, unchanged",
        ) from None


def read_outline(folder: str, name: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a model, which always can pad. Raises: ModelError."""
    try:
        with wrong_values(name, "its config.json"):
            _refuse_code(folder, name)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            _refuse_sizes(config, name)
    except OSError as error:
        raise _unloadable(name, error) from None
    try:
        with wrong_values(name, "its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if tokenizer.pad_token_id is None:
                if tokenizer.eos_token is None:
                    raise ModelError(
                        f"the tokenizer of {name!r} has neither a padding nor an end token", "set one in its folder"
                    )
                tokenizer.pad_token = tokenizer.eos_token
            known = set(tokenizer("a b c")["input_ids"])
            if known <= set(tokenizer.all_special_ids):
                raise ModelError(
                    f"the tokenizer of {name!r} knows no words: its vocabulary is missing",
                    "save the tokenizer beside the model",
                )
            int(tokenizer.model_max_length)
    except OSError as error:
        raise _unloadable(name, error) from None
    return config, tokenizer


def _unloadable(name: str, error: OSError) -> ModelError:
    return ModelError(
        f"model {name!r} cannot be loaded: {(str(error).splitlines() or [''])[0]}",
        nearest(name, PACKAGED_MODELS) + "; a folder or a hub name works too (`handful models`)",
    )


def _refuse_code(folder: str, name: str) -> None:
    """Raises: ModelError for a model that wants code of its own to be run; transformers would ask on the terminal."""
    config, _ = PreTrainedConfig.get_config_dict(folder)
    for file, content in (("config.json", config), ("tokenizer_config.json", get_tokenizer_config(folder))):
        if isinstance(content, dict) and content.get("auto_map"):
            here = "" if Path(folder).is_dir() else " of the hub"
            raise ModelError(
                f"model {name!r}: {file}{here} names code to run with the model (auto_map), and handful runs no code "
                "that comes with a model",
                "use a model whose family transformers itself has; if it has this one's too, take auto_map out of a "
                "copy of the folder",
            )


def _refuse_sizes(config: PreTrainedConfig, name: str) -> None:
    """Raises: ModelError for sizes that no model has, before memory is taken for them."""
    values: dict[str, Any] = {key: getattr(config, key, None) for key in _SIZES}
    for key, value in values.items():
        if value is None or isinstance(value, list):  # a list: one for every layer
            continue
        if type(value) is not int or not 1 <= value <= _SIZES[key]:
            raise ModelError(
                f"model {name!r}: config.json: {key}: expected a whole number from 1 to {_SIZES[key]:,}, "
                f"found {str(value)[:60]}",
                "give a folder as transformers saves it, unchanged",
            )

    def most(*keys: str) -> int:
        return max((values[key] for key in keys if type(values[key]) is int), default=1)

    width, layers = most("hidden_size", "d_model", "n_embd", "dim"), most("num_hidden_layers", "num_layers", "n_layer")
    inner = most("intermediate_size", "d_ff", "n_inner", "hidden_dim")
    if (total := width * (most("vocab_size") + layers * (4 * width + 2 * inner))) > MOST_PARAMETERS:
        raise ModelError(
            f"model {name!r}: its config.json describes a model of about {total:.0e} parameters",
            "give a folder as transformers saves it, unchanged",
        )
