"""Smaller models: they compute what the folded ones do, have as many parameters as predicted, and load as stock."""

import copy
import json
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from handful.backbone.blocks import FAMILIES, find_blocks, matrix
from handful.backbone.closed import find_open
from handful.backbone.gating import Gates, Gating, fold
from handful.backbone.load import load_backbone
from handful.backbone.resize import load_exactly, stock_class
from handful.backbone.tiny import tiny_model
from handful.errors import ModelError, RunError
from handful.export import shrink as shrinking
from handful.export.compact import load_compact, save_compact
from handful.export.shrink import sample_inputs, shrink

DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
COMPACT = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2", *DECODERS)
LAYOUTS = ("padded", "ragged")


def draw_gates(model, share=0.4):
    """Random gates on both sides of every matrix: a share of units and heads closed, a fifth of the others soft.

    What is closed is so by a row, by a column or by both; some rows and columns besides are closed too. Also returns
    how many parameters belong to closed units, counted by hand.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(number, closed=share / 8):
        values = (0.1 + 4.5 * torch.rand(number, generator=generator)).clamp(max=1)
        return (values * (torch.rand(number, generator=generator) >= closed)).to(model.dtype)

    def choose(number, chosen):
        return torch.rand(number, generator=generator) < chosen

    blocks, removable = find_blocks(model), 0
    gates = {name: Gates(*map(draw, matrix(model.get_submodule(name)).shape)) for name in blocks.matrices}
    for block in blocks.feed_forward:
        sides = [draw(block.units, share / 2) for _ in (*block.inputs, block.output)]
        for name, side in zip(block.inputs, sides, strict=False):
            gates[name].rows = side
        gates[block.output].columns = sides[-1]
        width = matrix(model.get_submodule(block.inputs[0])).shape[1]
        bias = model.get_submodule(block.inputs[0]).bias is not None
        closed = int((torch.stack(sides) == 0).any(0).sum())
        removable += closed * (len(block.inputs) * (width + bias) + width)
    for block in blocks.attention:
        stays, by_row = ~choose(block.groups, share), choose(block.groups, 0.5)
        stays[0], stays[-1] = True, False
        values = gates[block.projections[-1]].rows[-block.groups * block.head_width :]
        values *= (stays | ~by_row).repeat_interleave(block.head_width)
        gates[block.output].columns *= (stays | by_row).repeat_interleave(block.columns_per_group)
    return gates, removable


def close(model):
    """Folds random gates into a model, in place. Returns how many parameters belong to closed units."""
    gates, removable = draw_gates(model)
    fold(model, gates)
    return removable


@contextmanager
def gated(model, gates):
    """The model with gates on its matrices."""
    gating = Gating(model, gates)
    gating.gates = gates
    yield model
    gating.remove()


def outputs(model, **inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.fixture
def unchecked(monkeypatch):
    """Leaves out the comparison that `shrink` itself makes: the tests make their own."""
    monkeypatch.setattr(shrinking, "compare_outputs", lambda *_: None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["none", "lm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_model_computes_what_the_folded_one_does(family, head, layout, unchecked):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = tiny_model(family, head=head).to(dtype)
        close(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        small = shrink(model, layout=layout).model
        for padded in (True, False):
            inputs = sample_inputs(model, rows=3, length=20, padded=padded)
            difference = (outputs(small, **inputs) - outputs(model, **inputs)).abs().max()
            assert difference <= tolerance
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_model_has_exactly_the_predicted_parameters(family):
    model = tiny_model(family, head="lm")
    removable = close(model)
    blocks, record = find_blocks(model), shrink(model, layout="ragged", multiple=1).record
    gone = 0
    if FAMILIES[family].heads != "none":
        for block, now in zip(blocks.attention, record.heads, strict=True):
            gone += (block.groups - now) * blocks.group_cost(block)
        assert gone > 0
    assert record.parameters[0] - record.parameters[1] == removable + gone
    assert record.gateable[0] - record.gateable[1] == removable + gone
    assert record.removed == pytest.approx((removable + gone) / blocks.parameters())
    assert find_open(blocks).parameters(blocks) <= record.gateable[1]
    assert len(set(record.units)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_model_loads_as_stock_and_has_the_predicted_parameters(family, tmp_path):
    model = tiny_model(family, head="lm")
    close(model)
    shrunk = shrink(model)
    record = shrunk.record
    assert set(record.units) == {-(-max(record.open_units) // 16) * 16}
    shrunk.model.save_pretrained(tmp_path)
    kind = AutoModelForMaskedLM
    if family in DECODERS:
        kind = AutoModelForCausalLM
    elif family == "t5":
        kind = AutoModelForSeq2SeqLM
    stock, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert sum(parameter.numel() for parameter in stock.parameters()) == record.parameters[1]
    inputs = sample_inputs(model, rows=2, length=16, padded=True)
    torch.testing.assert_close(outputs(stock.eval(), **inputs), outputs(model, **inputs), rtol=0, atol=1e-5)
    if FAMILIES[family].heads == "stock":
        assert set(record.heads) == {1}
        assert (stock.config.num_key_value_heads, stock.config.num_attention_heads, stock.config.head_dim) == (1, 2, 16)
    else:
        assert any("closed heads" in sentence for sentence in record.zeros)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*DECODERS, "t5"])
def test_greedy_generation_with_a_cache_gives_the_same_tokens(family, layout):
    model = tiny_model(family, head="lm")
    close(model)
    small = shrink(model, layout=layout).model
    ids = torch.randint(7, 90, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # on the left, as generation needs it
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 16, "use_cache": True}
    assert torch.equal(small.generate(ids, **options), model.generate(ids, **options))


def test_the_encoder_of_t5_alone_gets_smaller_as_well():
    stack = tiny_model("t5").get_encoder()
    close(stack)
    shrunk = shrink(stack)
    assert len(shrunk.record.units) == 3
    assert shrunk.model.config.d_ff == shrunk.record.units[0] < 128
    inputs = sample_inputs(stack, rows=2, length=9, padded=True)
    torch.testing.assert_close(outputs(shrunk.model, **inputs), outputs(stack, **inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_gated_feed_forwards_lose_a_unit_by_either_matrix(family):
    model = tiny_model(family, **({"feed_forward_proj": "gated-gelu"} if family == "t5" else {}))
    block = find_blocks(model).feed_forward[0]
    gate, up, down = (matrix(model.get_submodule(name)) for name in (*block.inputs, block.output))
    with torch.no_grad():
        gate[3], up[5], down[:, 7] = 0, 0, 0
    record = shrink(model, layout="ragged", multiple=1).record
    assert record.open_units[0] == record.units[0] == 125
    assert record.units[1] == 128


def test_a_head_without_queries_or_keys_attends_to_all_alike_and_stays():
    model = tiny_model("bert")
    attention = model.encoder.layer[1].attention.self
    with torch.no_grad():
        for layer in (attention.query, attention.key):
            layer.weight[16:32] = 0
            layer.bias[16:32] = 0
    shrunk = shrink(model, layout="ragged")
    assert not shrunk.record.changed
    assert shrunk.model is model
    (sentence,) = shrunk.record.zeros
    assert "other rows and columns: 2,080 parameters" in sentence
    with torch.no_grad():
        attention.value.weight[16:32] = 0
    assert shrink(model, layout="ragged").record.heads == (4, 4, 4)  # its bias still comes through
    with torch.no_grad():
        attention.value.bias[16:32] = 0
    assert shrink(model, layout="ragged").record.heads == (4, 3, 4)


def test_heads_stay_where_something_else_counts_them():
    for family, settings, words in (
        ("t5", {}, "a t5 has position biases of its own for each head"),
        ("deberta-v2", {"share_att_key": False}, "positions have matrices of their own in this deberta-v2"),
    ):
        model = tiny_model(family, **settings)
        block = find_blocks(model).attention[0]
        with torch.no_grad():
            matrix(model.get_submodule(block.output))[:, : block.columns_per_group] = 0
        record = shrink(model, layout="ragged").record
        assert not record.changed
        assert words in record.zeros[0]


def test_a_shared_head_goes_only_with_all_query_heads_that_use_it():
    model = tiny_model("llama")
    output = model.layers[0].self_attn.o_proj
    with torch.no_grad():
        output.weight[:, :16] = 0
    assert not shrink(model, layout="ragged").record.changed
    with torch.no_grad():
        output.weight[:, 16:32] = 0
    assert shrink(model, layout="ragged").record.heads == (1, 2, 2)
    assert not shrink(model).record.changed  # the other layers need both
    assert "one number of heads for all layers, here 2 key/value heads" in shrink(model).record.zeros[0]


def test_value_dimensions_that_are_closed_on_either_side_close_a_head_together():
    model = tiny_model("bert")
    attention = model.encoder.layer[0].attention
    with torch.no_grad():
        attention.self.value.weight[:9], attention.self.value.bias[:9] = 0, 0
        attention.output.dense.weight[:, 9:16] = 0
    assert shrink(model, layout="ragged").record.heads == (3, 4, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_unit_and_one_head_of_each_layer_stay(layout):
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.v_proj.weight.zero_()
    record = shrink(model, layout=layout).record
    assert record.open_units == record.open_heads == (0, 0, 0)
    assert record.units == ((16,) * 3 if layout == "padded" else (8,) * 3)
    assert shrink(model, layout=layout, multiple=1).record.units == (1, 1, 1)
    assert record.heads == (1, 1, 1)
    assert len(record.zeros) >= 2


def test_the_multiple_can_be_chosen_and_never_makes_a_model_wider():
    model = tiny_model("bert")
    close(model)
    record = shrink(model, layout="ragged").record
    assert all(0 <= now - least < 8 and not now % 8 for now, least in zip(record.units, record.open_units, strict=True))
    assert "rounded up to what matrix kernels take fast" in record.zeros[0]
    most = max(shrink(model).record.open_units)
    assert set(shrink(model, multiple=1).record.units) == {most}
    assert not {128} ^ set(shrink(model, multiple=1000).record.units)


def test_llama_takes_only_heads_that_divide_its_width(tmp_path):
    settings = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    model = tiny_model("llama", **settings)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.v_proj.weight[:8] = 0
    shrunk = shrink(model)
    assert shrunk.record.heads == (4, 4, 4)  # six query heads do not divide 64
    assert shrunk.record.open_heads == (3, 3, 3)
    mistral = tiny_model("mistral", **settings)
    with torch.no_grad():
        for layer in mistral.layers:
            layer.self_attn.v_proj.weight[:8] = 0
    shrunk = shrink(mistral)
    assert shrunk.record.heads == (3, 3, 3)
    shrunk.model.save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()
    inputs = sample_inputs(mistral, rows=2, length=9)
    torch.testing.assert_close(outputs(stock, **inputs), outputs(mistral, **inputs), rtol=0, atol=1e-5)


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ModelError, match="no exact export of a gated modernbert is known"):
        shrink(tiny_model("modernbert"))
    with pytest.raises(ModelError, match="'sigmoid' is not 0 at 0"):
        shrink(tiny_model("bert", hidden_act="sigmoid"))
    with pytest.raises(ModelError, match="cross-attention"):
        shrink(tiny_model("gpt2", add_cross_attention=True))
    tied = tiny_model("bert")
    tied.encoder.layer[1].output.dense.weight = tied.encoder.layer[0].output.dense.weight
    with pytest.raises(ModelError, match="tied weights cannot be gated apart"):
        shrink(tied)


def test_another_output_is_no_smaller_model(monkeypatch):
    model = tiny_model("bert")
    close(model)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.encoder.layer[0].output.dense.bias[0] += 0.01
    with pytest.raises(RunError, match=r"gives other outputs \(by up to"):
        shrinking.compare_outputs(model, wrong)


@pytest.mark.parametrize("head", ["none", "lm"])
@pytest.mark.parametrize("family", [*COMPACT, "t5"])
def test_a_ragged_model_makes_the_round_trip(family, head, tmp_path):
    model = tiny_model(family, head=head)
    close(model)
    shrunk = shrink(model, layout="ragged", multiple=1)
    assert len(set(shrunk.record.units)) > 1
    save_compact(shrunk, tmp_path)
    loaded = load_compact(tmp_path)
    assert type(loaded) is type(model)
    inputs = sample_inputs(model, rows=2, length=9, padded=True)
    assert torch.equal(outputs(loaded, **inputs), outputs(shrunk.model, **inputs))
    assert sum(parameter.numel() for parameter in loaded.parameters()) == shrunk.record.parameters[1]


@pytest.fixture
def compact(tmp_path):
    model = tiny_model("bert")
    close(model)
    save_compact(shrink(model, layout="ragged"), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "os:system"}, "expected a model class of transformers, found 'os:system'"),
        ({"class": "transformers.models.bert.modeling_bert:BertConfig"}, "expected a model class of transformers"),
        ({"class": "transformers.models.nothing:Bert"}, "expected a model class of transformers"),
        ({"units": [1, 2]}, r"expected units of 3 blocks, 1 to \[128, 128, 128\], found \[1, 2\]"),
        ({"units": [1, 2, 129]}, "expected units of 3 blocks"),
        ({"heads": [0, 1, 1]}, "expected key/value heads of 3 blocks"),
        ({"heads": "333"}, "expected units and heads as lists of whole numbers"),
        ({"units": [5, 5, 5]}, "the weights do not fit the model's sizes"),
    ],
)
def test_a_damaged_compact_folder_is_refused(compact, change, message):
    sizes = json.loads((compact / "compact.json").read_text())
    (compact / "compact.json").write_text(json.dumps(sizes | change))
    with pytest.raises(ModelError, match=message):
        load_compact(compact)


def test_weights_must_be_all_and_nothing_else(compact):
    tensors = load_file(compact / "model.safetensors")
    name = "encoder.layer.0.output.dense.bias"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, compact / "model.safetensors")
    with pytest.raises(ModelError, match=f"missing \\['{name}'\\]"):
        load_compact(compact)
    save_file(tensors | {"more": torch.ones(1)}, compact / "model.safetensors")
    with pytest.raises(ModelError, match=r"too many \['more'\]"):
        load_compact(compact)
    with pytest.raises(ModelError, match="expected a compact export"):
        load_compact(compact / "nowhere")


def test_tied_weights_may_stand_under_one_name():
    model = tiny_model("gpt2", head="lm")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    kind = stock_class("transformers.models.gpt2.modeling_gpt2:GPT2LMHeadModel")
    loaded = load_exactly(kind(model.config), tensors)
    inputs = sample_inputs(model, rows=2, length=9)
    assert torch.equal(outputs(loaded, **inputs), outputs(model, **inputs))


@pytest.mark.real_model
@pytest.mark.parametrize("layout", LAYOUTS)
def test_minilm_computes_the_same_under_gates_folded_and_smaller(layout, tmp_path):
    model = load_backbone("minilm").model
    inputs = sample_inputs(model, rows=4, length=48, padded=True)
    gates, _ = draw_gates(model)
    plain = outputs(model, **inputs)
    with gated(model, gates):
        expected = outputs(model, **inputs)
    assert (expected - plain).abs().max() > 0.1
    fold(model, gates)
    shrunk = shrink(model, layout=layout)
    assert shrunk.record.removed > (0.3 if layout == "ragged" else 0.2)
    if layout == "padded":
        shrunk.model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    else:
        save_compact(shrunk, tmp_path)
        loaded = load_compact(tmp_path)
    for each in (model, shrunk.model, loaded):
        torch.testing.assert_close(outputs(each, **inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_writes_the_same_under_gates_folded_and_smaller(tmp_path):
    backbone = load_backbone("smollm2-135m", purpose="lm")
    model = backbone.model
    texts = ["The capital of France is", "Once upon a time there was a king who", "def fib(n):"]
    batch = backbone.tokenizer(texts, return_tensors="pt", padding=True)
    real, options = batch["attention_mask"].bool(), {"do_sample": False, "max_new_tokens": 20, "use_cache": True}
    gates, _ = draw_gates(model)
    plain = model.generate(**batch, **options)
    with gated(model, gates):
        logits, written = outputs(model, **batch)[real], model.generate(**batch, **options)
    assert not (written == plain).all(1).any()
    assert len(written[:, -20:].unique()) > 10
    fold(model, gates)
    assert (outputs(model, **batch)[real] - logits).abs().max() <= 1e-5
    assert torch.equal(model.generate(**batch, **options), written)
    for layout in LAYOUTS:
        shrunk = shrink(model, layout=layout)
        small = shrunk.model
        if layout == "padded":
            assert set(shrunk.record.heads) == {2}
            small.save_pretrained(tmp_path)
            small = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
            assert sum(parameter.numel() for parameter in small.parameters()) == shrunk.record.parameters[1]
        difference = (outputs(small, **batch)[real] - logits).abs().max()
        assert difference <= 1e-5 * logits.abs().max()  # 1.6e-4 of 38: 30 layers amplify roundings
        assert torch.equal(small.generate(**batch, **options), written)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_in_float64_computes_the_same_under_gates_folded_and_smaller(monkeypatch):
    def norm(self, x):  # the family's own rounds to float32
        return F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    model = load_backbone("smollm2-135m", purpose="lm").model.double()
    inputs = sample_inputs(model, rows=2, length=16, padded=True)
    gates, _ = draw_gates(model)
    with gated(model, gates):
        expected = outputs(model, **inputs)
    fold(model, gates)
    for each in (model, *(shrink(model, layout=layout).model for layout in LAYOUTS)):
        assert (outputs(each, **inputs) - expected).abs().max() <= 1e-10 * expected.abs().max()
