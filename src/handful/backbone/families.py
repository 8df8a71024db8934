"""What handful knows about each model family: one row per family, and nothing about a family anywhere else.

To add a family, add a row (and a patch in `attention_patches`, where its attention does not go through transformers'
`AttentionInterface`). A field that is left out means "not supported": gates are refused, positions are not shifted,
batches are padded. A family without a row works with all methods that need none of it. Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

HeadRule = Literal["stock", "compact", "none"]
Positions = Literal["absolute", "padding", "rotary", "offset", "bias"]


@final
@dataclass(frozen=True)
class BlockNames:
    """Where a family keeps its matrices, relative to the module that holds them all; only families whose smaller
    models were checked have one: a wrong guess would be a wrong export.

    `attention` are query, key, value and output; of three, the first is all of them side by side. `feed_forward` are
    one or two matrices into the units, then the one out of them. `heads` says who can do with fewer heads: the stock
    class ("stock"), only our own loader ("compact"), or nobody ("none"), see `blocks.head_rule`. `width` is the number
    of units in the family's configuration.
    """

    attention: tuple[str, ...]
    feed_forward: tuple[tuple[str, ...], ...]
    heads: HeadRule
    width: str = "intermediate_size"


@final
@dataclass(frozen=True)
class MeanHead:
    """Where a post-norm encoder's layer has its parts, and the parts of the stock class behind it: see `stock_head`.

    `activation` is that of `dense`: a name, or "@field" for the configuration's.
    """

    layers: str
    value: str
    mixed: str
    norms: tuple[str, str]
    dense: str
    output: str
    activation: str


@final
@dataclass(frozen=True)
class Family:
    """One row: `model_type` is that of the configuration.

    `positions`: how stock prefix tuning shifts positions ("absolute": numbered from 0; "padding": numbered from the
    padding index, over real tokens; "rotary"; "offset": the position table adds an offset; "bias": only distances
    count). `stock_prefix`: stock PEFT puts a working prefix on it. `packs`: its layers learn places from position ids
    and padding from the mask alone, so that rows can stand side by side without padding. `reads_positions`: its queries
    and keys also project embeddings of positions. `mean_head`, `pools_mean`, `final_norm`, `adds_layer`: what makes
    room for a linear head in its stock classification class (for mean pooling: one more encoder layer, or its own mean;
    for the last token: its final layer norm with a bias, or one more layer); `no_mean_head`: why there is none.
    `tiny`: its configuration at the size of `backbone.tiny`, under `tiny_name`, with `tiny_tokens` as ids in it;
    `token_types` and `decoder` are about the tokenizer there.
    """

    model_type: str
    blocks: BlockNames | None = None
    positions: Positions | None = None
    stock_prefix: bool = False
    packs: bool = False
    reads_positions: bool = False
    mean_head: MeanHead | None = None
    no_mean_head: str = ""
    pools_mean: bool = False
    final_norm: str = ""
    adds_layer: bool = False
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_tokens: Mapping[str, str] = field(default_factory=dict)
    tiny_name: str = ""
    token_types: bool = False
    decoder: bool = False

    def __post_init__(self) -> None:
        if not self.tiny_name:
            object.__setattr__(self, "tiny_name", self.model_type)


TINY_LENGTH = 256
"""Positions of the tiny models."""

_FEED_FORWARD = (("intermediate.dense", "output.dense"),)
_BERT = BlockNames(("self.query", "self.key", "self.value", "output.dense"), _FEED_FORWARD, "compact")
_LLAMA = BlockNames(("q_proj", "k_proj", "v_proj", "o_proj"), (("gate_proj", "up_proj", "down_proj"),), "stock")
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_BERT_LAYER = ("encoder.layer", "attention.self.value", "attention.output.dense", _NORMS)
_ROBERTA_HEAD = MeanHead(*_BERT_LAYER, "classifier.dense", "classifier.out_proj", "tanh")

_ENCODER = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 16}
_BEHIND_PADDING = {"max_position_embeddings": TINY_LENGTH + 2, "type_vocab_size": 1}

ROWS: tuple[Family, ...] = (
    Family(
        "bert",
        _BERT,
        "absolute",
        stock_prefix=True,
        packs=True,
        mean_head=MeanHead(*_BERT_LAYER, "bert.pooler.dense", "classifier", "tanh"),
        tiny=_ENCODER,
        token_types=True,
    ),
    Family(
        "roberta",
        _BERT,
        "padding",
        stock_prefix=True,
        packs=True,
        mean_head=_ROBERTA_HEAD,
        tiny=_ENCODER | _BEHIND_PADDING,
    ),
    Family(
        "xlm-roberta",
        _BERT,
        "padding",
        stock_prefix=True,
        packs=True,
        mean_head=_ROBERTA_HEAD,
        tiny=_ENCODER | _BEHIND_PADDING,
    ),
    Family("camembert", mean_head=_ROBERTA_HEAD),
    Family(
        "electra",
        _BERT,
        "absolute",
        stock_prefix=True,
        packs=True,
        mean_head=MeanHead(*_BERT_LAYER, "classifier.dense", "classifier.out_proj", "gelu"),
        tiny=_ENCODER | {"embedding_size": 32},
        token_types=True,
    ),
    Family(
        "distilbert",
        BlockNames(("q_lin", "k_lin", "v_lin", "out_lin"), (("lin1", "lin2"),), "compact", "hidden_dim"),
        mean_head=MeanHead(
            "transformer.layer",
            "attention.v_lin",
            "attention.out_lin",
            ("sa_layer_norm", "output_layer_norm"),
            "pre_classifier",
            "classifier",
            "relu",
        ),
        tiny={"n_layers": 3, "dim": 64, "n_heads": 4, "hidden_dim": 128},
    ),
    Family(
        "albert",
        no_mean_head="ALBERT's layers share their weights, so there is no last one that could do the mean",
        tiny=_ENCODER | {"embedding_size": 32},
        token_types=True,
    ),
    Family(
        "modernbert",
        pools_mean=True,
        tiny=_ENCODER | {"local_attention": 32},
        tiny_tokens={"cls_token_id": "[CLS]", "sep_token_id": "[SEP]"},
    ),
    Family(
        "mpnet",
        BlockNames(("attn.q", "attn.k", "attn.v", "attn.o"), _FEED_FORWARD, "none"),
        no_mean_head="MPNet's layers share their position biases, so no layer can attend to all tokens alike",
        tiny=_ENCODER | {"max_position_embeddings": TINY_LENGTH + 2},
    ),
    Family(
        "deberta-v2",
        BlockNames(
            ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
            _FEED_FORWARD,
            "compact",
        ),
        reads_positions=True,
        mean_head=MeanHead(
            "encoder.layer",
            "attention.self.value_proj",
            "attention.output.dense",
            _NORMS,
            "pooler.dense",
            "classifier",
            "@pooler_hidden_act",
        ),
        tiny=_ENCODER
        | {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "share_att_key": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        token_types=True,
    ),
    Family("llama", _LLAMA, "rotary", stock_prefix=True, adds_layer=True, tiny=_DECODER, decoder=True),
    Family("qwen2", _LLAMA, "rotary", stock_prefix=True, tiny=_DECODER, decoder=True),
    Family("qwen3", _LLAMA, "rotary", stock_prefix=True, tiny=_DECODER, decoder=True),
    Family("mistral", _LLAMA, "rotary", stock_prefix=True, tiny=_DECODER, decoder=True),
    Family(
        "gemma3_text",
        positions="rotary",
        stock_prefix=True,
        tiny=_DECODER
        | {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        tiny_name="gemma3",
        decoder=True,
    ),
    Family(
        "gpt2",
        BlockNames(("c_attn", "c_proj"), (("c_fc", "c_proj"),), "compact", "n_inner"),
        "absolute",
        stock_prefix=True,
        final_norm="ln_f",
        tiny={"n_layer": 3, "n_embd": 64, "n_head": 4, "n_inner": 128, "n_positions": TINY_LENGTH},
        decoder=True,
    ),
    Family(
        "gpt_neox",
        positions="rotary",
        stock_prefix=True,
        final_norm="final_layer_norm",
        tiny=_ENCODER,
        tiny_name="gpt-neox",
        decoder=True,
    ),
    Family(
        "opt",
        positions="offset",
        stock_prefix=True,
        final_norm="decoder.final_layer_norm",
        tiny={
            "num_hidden_layers": 3,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "word_embed_proj_dim": 64,
        },
        decoder=True,
    ),
    Family(
        "t5",
        BlockNames(("q", "k", "v", "o"), (("wi", "wo"), ("wi_0", "wi_1", "wo")), "none", "d_ff"),
        "bias",
        tiny={
            "num_layers": 3,
            "d_model": 64,
            "num_heads": 4,
            "d_kv": 16,
            "d_ff": 128,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 32,
        },
        tiny_tokens={"decoder_start_token_id": "[PAD]"},
    ),
    Family(
        "bart",
        positions="offset",
        tiny={
            "d_model": 64,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
        },
        tiny_tokens={"decoder_start_token_id": "[SEP]", "forced_eos_token_id": "[SEP]"},
    ),
)
_BY_TYPE = {row.model_type: row for row in ROWS}


def family_of(model_type: str) -> Family:
    """The row of a family (`config.model_type`); an empty one, which supports nothing, for a family without a row."""
    return _BY_TYPE.get(model_type) or Family(model_type)
