"""Tiny random models of every supported family, and a tokenizer for them: offline, built in a moment.

All have 3 layers, width 64 and 4 heads of width 16 (2 key/value heads where the family shares them). They are
for tests, for `handful doctor` and for trying out a method; their predictions mean nothing.
"""

from __future__ import annotations

import string
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch

from handful.backbone.families import ROWS, TINY_LENGTH
from handful.backbone.sharing import lent_seed
from handful.errors import ModelError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from handful.backbone.load import Backbone

SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>")
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *string.printable[:95]))}
MAX_LENGTH = TINY_LENGTH
NOISE = 0.1
"""Spread of the random weights; also added to biases and norms, which families start at 0 and 1."""

_ROWS = {row.tiny_name: row for row in ROWS if row.tiny}
TINY_FAMILIES = tuple(_ROWS)


def tiny_config(family: str, **settings: Any) -> PreTrainedConfig:
    """The family's configuration at tiny size; `settings` change it. Raises: ModelError for an unknown family."""
    if family not in _ROWS:
        raise ModelError(f"expected a tiny model family, found {family!r}", nearest(family, TINY_FAMILIES))
    from transformers import CONFIG_MAPPING

    row = _ROWS[family]
    start, end = ("<s>", "</s>") if row.decoder else ("[CLS]", "[SEP]")
    values = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": VOCABULARY["[PAD]"],
        "bos_token_id": VOCABULARY[start],
        "eos_token_id": VOCABULARY[end],
        "initializer_range": NOISE,
    }
    values |= {setting: VOCABULARY[token] for setting, token in row.tiny_tokens.items()}
    return CONFIG_MAPPING[row.model_type](**(values | dict(row.tiny) | settings))


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    head: Literal["none", "classifier", "lm"] = "none",
    num_labels: int = 2,
    **settings: Any,
) -> PreTrainedModel:
    """A random model of the family in eval mode; the same seed gives the same weights.

    `head`: the bare model, with its own classification head, or with its language-modelling head (masked for
    encoders). `settings` change the configuration. The global random state is left as it was. Raises: ModelError
    for an unknown family or head.
    """
    config = tiny_config(family, num_labels=num_labels, **settings)
    import transformers

    heads = {
        "none": transformers.AutoModel,
        "classifier": transformers.AutoModelForSequenceClassification,
        "lm": transformers.AutoModelForMaskedLM,
    }
    if _ROWS[family].decoder:
        heads["lm"] = transformers.AutoModelForCausalLM
    elif config.is_encoder_decoder:
        heads["lm"] = transformers.AutoModelForSeq2SeqLM
    if head not in heads:
        raise ModelError(f"expected a head of a tiny model, found {head!r}", nearest(head, heads))
    with lent_seed(seed):
        model = heads[head].from_config(config, trust_remote_code=False)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # a bias of 0 or a norm of 1 would hide that it was lost
                    parameter.add_(NOISE * torch.randn(parameter.shape))
    return model.eval()


def tiny_tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    """A tokenizer of single characters (printable ASCII; accents are dropped, the rest is [UNK]) for the tiny models.

    Frames texts as `[CLS] a [SEP]` and pairs as `[CLS] a [SEP] b [SEP]`; token types only for families that have
    them; decoders start with `<s>` and have no end mark, as Llama's do. Raises: ModelError for an unknown family.
    """
    if family not in _ROWS:
        raise ModelError(f"expected a tiny model family, found {family!r}", nearest(family, TINY_FAMILIES))
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])  # pyright: ignore
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore
    core.decoder = decoders.Fuse()  # pyright: ignore
    single, pair, marks = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]")
    decoder = _ROWS[family].decoder
    if decoder:
        single, pair, marks = "<s> $A", "<s> $A $B:1", ("<s>",)
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=single, pair=pair, special_tokens=[(mark, VOCABULARY[mark]) for mark in marks]
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_LENGTH,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="<s>" if decoder else "[CLS]",
        eos_token="</s>" if decoder else "[SEP]",
        model_input_names=[*names, "token_type_ids"] if _ROWS[family].token_types else names,
    )


def tiny_backbone(
    family: str,
    *,
    seed: int = 0,
    pooling: Literal["auto", "family", "mean", "last"] = "auto",
    purpose: Literal["features", "lm"] = "features",
) -> Backbone:
    """The tiny model and its tokenizer as a backbone called `tiny-<family>`, loaded from a folder as any other.

    The global random state is left as it was. Raises: ModelError for an unknown family, and as `load_backbone` does.
    """
    from handful.backbone.load import load_backbone

    tokenizer = tiny_tokenizer(family)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, lent_seed(seed):  # of layers that the bare one lacks
        tiny_model(family, seed=seed, head="lm" if purpose == "lm" else "none").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        backbone = load_backbone(folder, pooling=pooling, purpose=purpose)
    tokenizer.padding_side = backbone.tokenizer.padding_side
    backbone.tokenizer = tokenizer  # AutoTokenizer replaces Qwen2's by a byte-level one
    backbone.name = f"tiny-{family}"
    return backbone
