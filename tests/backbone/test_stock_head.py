"""Heads on pooled features inside stock classification classes that pool otherwise: the same scores."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, AutoModel

from handful.backbone.load import pool
from handful.backbone.resize import stock_copy
from handful.backbone.stock_head import head_obstacle, layers_added, with_head
from handful.backbone.tiny import tiny_backbone, tiny_config
from handful.export.precision import KeepFloat64

TEXTS = ["A short text.", "Another one, which is a good deal longer than the first, and goes on.", "No!"]
FAMILIES = [
    *((family, "mean") for family in ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2")),
    ("modernbert", "mean"),
    *((family, "last") for family in ("gpt2", "gpt-neox", "opt", "llama")),
]


def head(width, outputs=3, size=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, width, generator=generator) * size, torch.randn(outputs, generator=generator) * size


def inputs_of(backbone, texts=TEXTS):
    rows = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    return {name: tensor for name, tensor in backbone.accepted(rows).items() if name != "use_cache"}


def fields(backbone, outputs=3):
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.pad_token_id = outputs, backbone.tokenizer.pad_token_id
    return config


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("family", "pooling"), FAMILIES)
def test_scores_are_those_of_the_head_on_pooled_features(family, pooling, size):
    backbone = tiny_backbone(family, pooling=pooling)
    assert head_obstacle(backbone.config, pooling, 3) is None
    weight, bias = head(backbone.hidden_size, size=size)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    stock = with_head(stock_copy(backbone.model), pooling, weight, bias, fields(backbone))
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2] * 4):
        inputs = inputs_of(backbone, texts)
        with torch.no_grad():
            expected, found = F.linear(backbone.features(inputs), weight, bias), stock(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    assert stock.config.num_hidden_layers == backbone.num_layers + layers_added(backbone.config, pooling)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize(("family", "pooling"), FAMILIES)
def test_what_it_leaves_out_is_below_the_rounding_of_float32(family, pooling):
    backbone = tiny_backbone(family, pooling=pooling)
    weight, bias = head(backbone.hidden_size)
    inputs, mask = inputs_of(backbone), inputs_of(backbone)["attention_mask"]
    stock = with_head(stock_copy(backbone.model), pooling, weight, bias, fields(backbone)).double()
    with torch.no_grad(), KeepFloat64():
        hidden = stock_copy(backbone.model).double()(**inputs).last_hidden_state
        expected = F.linear(pool(hidden, mask, pooling), weight.double(), bias.double())
        found = stock(**inputs).logits
    assert float((found - expected).abs().max()) <= 4e-7 * float(expected.abs().max())


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_bfloat16_is_as_coarse_as_ever_and_float16_gives_no_numbers(family):
    backbone = tiny_backbone(family)
    weight, bias = head(backbone.hidden_size)
    inputs = inputs_of(backbone)
    with torch.no_grad():
        expected = F.linear(backbone.features(inputs), weight, bias)
        found = [
            with_head(stock_copy(backbone.model), "mean", weight, bias, fields(backbone)).to(dtype)(**inputs).logits
            for dtype in (torch.bfloat16, torch.float16)
        ]
    assert float((found[0].float() - expected).abs().max()) <= 0.05 * float(expected.abs().max())
    assert bool(found[1].isnan().all())


@pytest.mark.parametrize(
    ("family", "pooling", "outputs", "words"),
    [
        ("albert", "mean", 3, "share their weights"),
        ("mpnet", "mean", 3, "share their position biases"),
        ("t5", "mean", 3, "does not pool by the mean"),
        ("gpt2", "mean", 3, "does not pool by the mean"),
        ("qwen2", "last", 3, "has no bias"),
        ("bert", "last", 3, "has no bias, and nothing"),
        ("bert", "mean", 766, "room for the scores of 765 classes"),
        ("distilbert", "mean", 384, "room for the scores of 383 classes"),
        ("no_such_family", "mean", 3, "no stock classification class"),
    ],
)
def test_where_it_cannot_be_the_reason_is_known_from_the_family(family, pooling, outputs, words):
    assert words in head_obstacle(family, pooling, outputs)


def test_as_many_classes_as_there_is_room_for():
    for family, outputs in (("bert", 61), ("distilbert", 31), ("modernbert", 61)):
        backbone = tiny_backbone(family)
        assert head_obstacle(backbone.config, "mean", outputs) is None
        assert head_obstacle(backbone.config, "mean", outputs + 1)
        weight, bias = head(backbone.hidden_size, outputs)
        stock = with_head(stock_copy(backbone.model), "mean", weight, bias, fields(backbone, outputs))
        inputs = inputs_of(backbone)
        with torch.no_grad():
            expected, found = F.linear(backbone.features(inputs), weight, bias), stock(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


OTHERS = {
    "camembert": {},
    "deberta-v2": {
        "share_att_key": False,
        "conv_kernel_size": 3,
        "pooler_hidden_act": "tanh",
        "pooler_hidden_size": 64,
    },
    "modernbert": {"norm_bias": True, "local_attention": 8},
    "bert": {"hidden_act": "relu", "layer_norm_eps": 1e-5},
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_shapes_of_a_family_and_states_with_outliers(family):
    """Some real encoders have dimensions that are a hundred times as large as the others."""
    like = "roberta" if family == "camembert" else family
    values = tiny_config(like).to_dict() | OTHERS[family]
    values = {name: value for name, value in values.items() if name not in ("model_type", "architectures", "dtype")}
    config = CONFIG_MAPPING[family](**values)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModel.from_config(config).eval()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    with torch.no_grad():  # the last norm of the model
        norm = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
        norm.weight[:3] *= 100
    weight, bias = head(64)
    ids = torch.arange(30, 60).view(3, 10)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    config.num_labels = 3
    stock = with_head(model, "mean", weight, bias, config)
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = F.linear(pool(hidden, mask, "mean"), weight, bias)
        found = stock(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
