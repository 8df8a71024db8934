"""Exports against stock PEFT, written out by hand: what handful trained is, number for number, what PEFT loads.

`PLATFORM §5`: prefix simplex midpoint and averaged head as PREFIX_TUNING, largest difference 0.0.
"""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from handful.backbone.load import load_backbone, pool
from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.data.batching import encode
from handful.export.formats import export
from handful.methods.peft_bridge import LoRA
from handful.methods.poly.method import Poly
from handful.methods.prefix import Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.testing import toy_task

TASK = toy_task()
WITH_CLASSIFIER = ("bert", "roberta", "xlm-roberta", "electra")
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "gpt-neox", "opt")
GROUPED = ("llama", "qwen2", "qwen3", "mistral", "gemma3")


@pytest.fixture
def unverified(monkeypatch):
    """Leaves out the fresh process: these tests load the folder themselves."""
    monkeypatch.setattr("handful.export.folder.can_verify", lambda needs_peft: False)


@pytest.fixture
def stored(tmp_path):
    def make(family, pooling):
        folder = tmp_path / family
        tiny_model(family).save_pretrained(folder)
        tiny_tokenizer(family).save_pretrained(folder)
        return load_backbone(str(folder), pooling=pooling)

    return make


def trained(method, backbone):
    """An adapter with weights as training might leave them: vertices and heads that differ."""
    adapter = method.attach(backbone, TASK, generator=torch.Generator().manual_seed(1)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def sample(backbone, length=20):
    rows = encode(TASK.pool, backbone.tokenizer, length, kind=TASK.kind)
    return rows.batch([0, 3, 5, 7])


@torch.no_grad()
def midpoint_logits(adapter, batch):
    """Our logits with the averaged head as one linear layer, and the predictor's own."""
    own = adapter(batch)
    return F.linear(adapter.backbone.features(batch.inputs), *adapter.head.folded()), own


def stock_model(backbone, folder):
    """The bare pretrained model with the adapter, as PEFT loads it."""
    bare = AutoModel.from_pretrained(backbone.model.name_or_path, dtype=torch.float32)
    return PeftModel.from_pretrained(bare, folder).eval()


@pytest.mark.parametrize("method", [Prefix(), PrefixSubspace(), PrefixSubspace(num_vertices=3, geometry="curve")])
@pytest.mark.parametrize("family", WITH_CLASSIFIER)
def test_a_prefix_midpoint_is_a_stock_classifier_with_a_stock_prefix(family, method, stored, unverified, tmp_path):
    backbone = stored(family, "family")
    adapter, batch = trained(method, backbone), sample(backbone)
    expected, own = midpoint_logits(adapter, batch)
    export(adapter, backbone, TASK, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(backbone.model.name_or_path, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, tmp_path / "out").eval()
    with torch.no_grad():
        found = stock(**batch.inputs).logits
    assert torch.equal(found, expected)
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
    if adapter.num_vertices == 1:
        assert torch.equal(found, own)


@pytest.mark.parametrize("family", DECODERS)
def test_a_prefix_midpoint_on_a_decoder_keeps_its_key_value_heads(family, stored, unverified, tmp_path):
    backbone = stored(family, "last")
    adapter, batch = trained(PrefixSubspace(), backbone), sample(backbone)
    expected, _ = midpoint_logits(adapter, batch)
    export(adapter, backbone, TASK, tmp_path / "out")
    stock, head = stock_model(backbone, tmp_path / "out"), load_file(tmp_path / "out" / "head.safetensors")
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = stock(**inputs).last_hidden_state
    features = hidden[torch.arange(len(batch)), inputs["attention_mask"].sum(1) - 1]
    assert torch.equal(F.linear(features, head["weight"], head["bias"]), expected)
    assert stock.peft_config["default"].num_attention_heads == (2 if family in GROUPED else 4)


@pytest.mark.parametrize("family", WITH_CLASSIFIER)
def test_mean_pooling_goes_through_the_bare_encoder_and_the_head_beside_it(family, stored, unverified, tmp_path):
    backbone = stored(family, "mean")
    adapter, batch = trained(PrefixSubspace(), backbone), sample(backbone)
    expected, _ = midpoint_logits(adapter, batch)
    export(adapter, backbone, TASK, tmp_path / "out")
    stock, head = stock_model(backbone, tmp_path / "out"), load_file(tmp_path / "out" / "head.safetensors")
    mask = batch.inputs["attention_mask"]
    with torch.no_grad():
        hidden = stock(input_ids=batch.inputs["input_ids"], attention_mask=mask).last_hidden_state
    features = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.equal(F.linear(features, head["weight"], head["bias"]), expected)


def test_one_vertex_is_plain_prefix_tuning_bit_for_bit(stored, unverified, tmp_path):
    backbone = stored("bert", "family")
    adapter, batch = trained(PrefixSubspace(num_vertices=1), backbone), sample(backbone)
    export(adapter, backbone, TASK, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(backbone.model.name_or_path, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, tmp_path / "out").eval()
    prompt = load_file(tmp_path / "out" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(stock.get_prompt_embedding_to_save("default"), prompt)
    with torch.no_grad():
        assert torch.equal(stock(**batch.inputs).logits, adapter(batch))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "t5"])
def test_lora_is_a_stock_classifier_with_a_stock_lora(family, stored, unverified, tmp_path):
    backbone = stored(family, "family")
    adapter, batch = trained(LoRA(rank=3), backbone), sample(backbone)
    expected, own = midpoint_logits(adapter, batch)
    assert torch.equal(expected, own)
    export(adapter, backbone, TASK, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(backbone.model.name_or_path, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(stock(**backbone.accepted(batch.inputs)).logits, expected)


@pytest.mark.parametrize(
    "method",
    [Poly(num_skills=3, num_splits=4, adapt="full"), Poly(num_skills=3, adapt="z"), Poly(skills="ia3", adapt="full")],
    ids=["poly-s", "poly-z", "ia3"],
)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "t5"])
def test_a_routed_task_is_a_stock_classifier_with_a_stock_adapter(family, method, stored, unverified, tmp_path):
    backbone = stored(family, "family")
    adapter, batch = trained(method, backbone), sample(backbone)
    _, own = midpoint_logits(adapter, batch)
    export(adapter, backbone, TASK, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(backbone.model.name_or_path, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(**backbone.accepted(batch.inputs)).logits, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("skills", ["lora", "prefix"])
def test_a_routed_task_on_a_decoder_is_a_stock_adapter(family, skills, stored, unverified, tmp_path):
    backbone = stored(family, "last")
    method = Poly(num_skills=3, skills=skills, adapt="full")
    adapter, batch = trained(method, backbone), sample(backbone)
    export(adapter, backbone, TASK, tmp_path / "out")
    with torch.no_grad():
        hidden = stock_model(backbone, tmp_path / "out")(**backbone.accepted(batch.inputs)).last_hidden_state
        own = adapter.features(batch)
    torch.testing.assert_close(pool(hidden, batch.inputs["attention_mask"], "last"), own, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pooling", "method"),
    [("bert", "family", Prefix()), ("roberta", "mean", PrefixSubspace()), ("llama", "last", Prefix())],
    ids=["bert", "roberta", "llama"],
)
def test_a_fresh_process_without_handful_gets_the_same_scores(family, pooling, method, stored, tmp_path):
    backbone = stored(family, pooling)
    adapter = trained(method, backbone)
    report = export(adapter, backbone, TASK, tmp_path / "out")
    assert "computed by stock transformers and PEFT in a fresh process" in report.verification
    assert report.difference == 0.0 if adapter.num_vertices == 1 else report.difference <= 1e-6
    assert (tmp_path / "out" / "export.json").is_file()


@pytest.mark.slow
def test_a_merged_model_gives_the_same_scores_in_a_fresh_process(stored, tmp_path):
    backbone = stored("bert", "family")
    report = export(trained(LoRA(), backbone), backbone, TASK, tmp_path / "out", "dense")
    assert report.difference is not None
    assert report.difference <= 1e-6
