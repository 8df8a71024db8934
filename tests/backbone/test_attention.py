"""Injection into every family, held against the untouched model, hand-written attention and itself."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModel, DebertaConfig, DynamicCache

from handful.backbone.attention import AttentionSite, KeyValueInjection
from handful.backbone.tiny import TINY_FAMILIES, tiny_model, tiny_tokenizer
from handful.errors import ModelError

TEXTS = ["short", "a text that is longer", "medium text"]
SHARED_HEADS = ("llama", "qwen2", "qwen3", "mistral", "gemma3")
DECODERS = (*SHARED_HEADS, "gpt2", "gpt-neox", "opt")
PAIRED = ("t5", "bart")
CHECKPOINTING = tuple(f for f in TINY_FAMILIES if f not in ("albert", "mpnet"))  # these two have none
UNSHIFTED = ("distilbert", "albert", "modernbert", "mpnet", "deberta-v2")
LENGTH = 3  # P
EXACT = {"atol": 1e-13, "rtol": 0}  # for float64; PLATFORM's bounds for float32 are 3.6e-7 (T5 2.9e-6)


def batch(family, texts=TEXTS, generate=False):
    tokenizer = tiny_tokenizer(family)
    tokenizer.padding_side = "left" if generate and family in DECODERS else "right"
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    if family in PAIRED and not generate:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    return inputs


def double(family, **settings):
    """A tiny model in float64, where rounding hides nothing."""
    return tiny_model(family, **settings).double()


def prefixes(injection, rows=1, length=LENGTH, seed=0):
    """One random (K, V) a site, of the model's type, that asks for a gradient."""
    generator, dtype = torch.Generator().manual_seed(seed), injection.model.dtype

    def draw(site):
        return torch.randn(rows, site.heads, length, site.width, generator=generator).to(dtype).requires_grad_()

    return [(draw(site), draw(site)) for site in injection.sites]


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("head", ["none", "classifier", "lm"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_without_a_prefix_and_after_remove_the_model_is_the_untouched_one(family, head):
    model, inputs = tiny_model(family, head=head), batch(family)
    if family in PAIRED and head == "classifier":
        del inputs["decoder_input_ids"]
    attributes = [(set(module.__dict__), len(module._forward_pre_hooks)) for module in model.modules()]
    implementations = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    before = run(model, inputs)

    injection = KeyValueInjection(model, inputs, cross=True)
    assert torch.equal(run(model, inputs), before)
    injection.set(prefixes(injection), shift_positions=injection.supports_shift)
    assert (run(model, inputs) - before).abs().max() > 1e-3
    injection.set([(None, None)] * len(injection.sites))  # no slot is visible
    assert torch.equal(run(model, inputs), before)
    injection.set(prefixes(injection), shift_positions=injection.supports_shift)
    injection.clear()
    assert torch.equal(run(model, inputs), before)

    injection.set(prefixes(injection), shift_positions=injection.supports_shift)
    injection.remove()
    injection.remove()
    assert torch.equal(run(model, inputs), before)
    assert [(set(module.__dict__), len(module._forward_pre_hooks)) for module in model.modules()] == attributes
    assert implementations == [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_sites_are_found_by_running_the_model(family):
    heads = 2 if family in SHARED_HEADS else 4
    encoder = [AttentionSite(i, i, heads, 16, "self", "encoder") for i in range(3)]
    decoder = [AttentionSite(i, i, heads, 16, "self", "decoder") for i in range(3)]
    model, inputs = tiny_model(family), batch(family)
    found = KeyValueInjection(model, inputs).sites
    if family not in PAIRED:
        assert found == (decoder if family in DECODERS else encoder)
        return
    assert [(s.index, s.layer, s.stack) for s in found] == [
        (i, i % 3, "encoder" if i < 3 else "decoder") for i in range(6)
    ]
    assert {s.kind for s in found} == {"self"}
    inputs["decoder_input_ids"] = inputs["input_ids"]  # of the same length
    found = KeyValueInjection(tiny_model(family), inputs, cross=True).sites
    assert [(s.layer, s.kind) for s in found[3:]] == [(i, kind) for i in range(3) for kind in ("self", "cross")]
    assert KeyValueInjection(tiny_model(family).get_encoder(), {"input_ids": inputs["input_ids"]}).sites == encoder


@pytest.mark.parametrize(
    ("family", "shift"), [(f, False) for f in TINY_FAMILIES] + [(f, True) for f in TINY_FAMILIES if f not in UNSHIFTED]
)
def test_prefixes_of_a_padded_batch_are_those_of_single_unpadded_rows(family, shift):
    model, inputs = double(family), batch(family)
    injection = KeyValueInjection(model, inputs, cross=True)
    prefix = prefixes(injection, rows=len(TEXTS))
    injection.set(prefix, shift_positions=shift)
    together = run(model, inputs)
    for row, text in enumerate(TEXTS):
        alone = batch(family, [text])
        if family in PAIRED:
            alone["decoder_input_ids"] = inputs["decoder_input_ids"][row : row + 1]
        injection.set([(key[row : row + 1], value[row : row + 1]) for key, value in prefix], shift_positions=shift)
        expected = run(model, alone)[0]
        torch.testing.assert_close(together[row, : len(expected)], expected, **EXACT)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_site_gets_a_gradient(family):
    model, inputs = tiny_model(family), batch(family)
    injection = KeyValueInjection(model, inputs, cross=True)
    prefix = prefixes(injection, rows=len(TEXTS))
    injection.set(prefix)
    model(**inputs)[0].square().sum().backward()
    for key, value in prefix:
        assert (key.grad.abs().amax((1, 2, 3)) > 1e-5).all() and (value.grad.abs().amax((1, 2, 3)) > 1e-5).all()


@pytest.mark.parametrize("family", CHECKPOINTING)
def test_gradient_checkpointing_changes_nothing(family):
    inputs, state, results = batch(family), torch.get_rng_state(), []
    for checkpointing in (False, True):
        model = tiny_model(family).requires_grad_(False)
        injection = KeyValueInjection(model, inputs, cross=True)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        prefix = prefixes(injection, rows=len(TEXTS))
        injection.set(prefix)
        torch.set_rng_state(state)  # the same dropout
        output = model.train()(**inputs, use_cache=False)[0] if family in DECODERS else model.train()(**inputs)[0]
        output.square().sum().backward()
        results.append([output, *(tensor.grad for pair in prefix for tensor in pair)])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*results, strict=True))


def bert_by_hand(model, inputs, prefix, first_position):
    """BERT written out: (B, S, D) states with a prefix in every layer."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = torch.arange(ids.shape[1]) + first_position
    table = model.embeddings
    states = table.word_embeddings.weight[ids] + table.token_type_embeddings.weight[inputs["token_type_ids"]]
    states = table.LayerNorm(states + table.position_embeddings.weight[positions])
    for layer, (prefix_key, prefix_value) in zip(model.encoder.layer, prefix, strict=True):
        attention = layer.attention.self
        query, key, value = (
            linear(states).view(*ids.shape, 4, 16).permute(0, 2, 1, 3)
            for linear in (attention.query, attention.key, attention.value)
        )
        scores = torch.cat((query @ prefix_key.mT, query @ key.mT), -1) / 4
        slots = torch.ones(len(ids), prefix_key.shape[2])
        scores = scores.masked_fill(torch.cat((slots, mask), 1)[:, None, None] == 0, -torch.inf)
        weights = scores.softmax(-1)
        split = prefix_key.shape[2]
        context = weights[..., :split] @ prefix_value + weights[..., split:] @ value
        context = context.permute(0, 2, 1, 3).reshape(*ids.shape, 64)
        states = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + states)
        inner = nn.functional.gelu(layer.intermediate.dense(states))
        states = layer.output.LayerNorm(layer.output.dense(inner) + states)
    return states


@pytest.mark.parametrize("shift", [False, True])
def test_check_7_bert_is_attention_written_by_hand(shift):
    model, inputs = double("bert"), batch("bert")
    real = inputs["attention_mask"].bool()
    injection = KeyValueInjection(model, inputs)
    prefix = prefixes(injection, rows=len(TEXTS))
    injection.set(prefix, shift_positions=shift)
    with torch.no_grad():
        expected = bert_by_hand(model, inputs, prefix, LENGTH if shift else 0)
    torch.testing.assert_close(run(model, inputs)[real], expected[real], **EXACT)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("shift", [False, True])
def test_check_7_bert_is_the_stock_model_with_the_prefix_in_its_cache(implementation, shift):
    model, inputs = double("bert"), batch("bert")
    real = inputs["attention_mask"].bool()
    injection = KeyValueInjection(model, inputs)
    prefix = prefixes(injection, rows=len(TEXTS))
    injection.set(prefix, shift_positions=shift)
    slots = torch.ones(len(TEXTS), LENGTH, dtype=torch.long)
    cached = inputs | {
        "attention_mask": torch.cat((slots, inputs["attention_mask"]), 1),
        "position_ids": torch.arange(real.shape[1])[None] + (LENGTH if shift else 0),
        "past_key_values": DynamicCache(prefix),
    }
    expected = run(double("bert", attn_implementation=implementation), cached)
    torch.testing.assert_close(run(model, inputs)[real], expected[real], **EXACT)


def test_check_7_a_zero_prefix_is_no_absent_prefix():
    model, inputs = tiny_model("bert"), batch("bert")
    before = run(model, inputs)
    injection = KeyValueInjection(model, inputs)
    injection.set([(torch.zeros(1, 4, 1, 16), torch.zeros(1, 4, 1, 16))] * 3)
    assert (run(model, inputs) - before).abs().max() > 1e-4


@pytest.mark.parametrize("family", [*DECODERS, *PAIRED])
def test_the_recorded_first_half_of_a_text_as_prefix_continues_the_text(family):
    """Holds for what looks back only, and only if positions, masks, biases and rotations are all right."""
    model, inputs = double(family, head="lm"), batch(family, TEXTS[1:2])
    name = "decoder_input_ids" if family in PAIRED else "input_ids"
    whole = batch(family, TEXTS[1:2])["input_ids"]
    inputs |= {name: whole, "attention_mask": torch.ones_like(inputs["input_ids"])}
    injection = KeyValueInjection(model, inputs)
    expected = run(model, inputs)[:, LENGTH:]
    prefix = [
        (key[:, :, :LENGTH], value[:, :, :LENGTH]) if site.stack == "decoder" else (None, None)
        for site, (key, value) in zip(injection.sites, injection.record(inputs), strict=True)
    ]
    injection.set(prefix, shift_positions=True)
    rest = inputs | {name: whole[:, LENGTH:]}
    if family not in PAIRED:
        rest["attention_mask"] = inputs["attention_mask"][:, LENGTH:]
    torch.testing.assert_close(run(model, rest), expected, **EXACT)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("family", [*DECODERS, *PAIRED])
def test_generation_with_the_cache_is_generation_without(family, shift):
    model, inputs = double(family, head="lm"), batch(family, generate=True)
    injection = KeyValueInjection(model, batch(family), cross=True)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    injection.set(prefixes(injection, rows=len(TEXTS)), shift_positions=shift)
    cached, computed = (model.generate(**inputs, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, computed.sequences)
    torch.testing.assert_close(cached.logits, computed.logits, **EXACT)
    assert (cached.logits[0] - plain.logits[0]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_beams_and_return_sequences_keep_each_row_with_its_prefix(family):
    model, inputs = double(family, head="lm"), batch(family, generate=True)
    injection = KeyValueInjection(model, batch(family), cross=True)
    prefix = prefixes(injection, rows=len(TEXTS))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    injection.set(prefix)
    together = model.generate(**inputs, **options, pad_token_id=1)
    for row, text in enumerate(TEXTS):
        injection.set([(key[row : row + 1], value[row : row + 1]) for key, value in prefix])
        expected = model.generate(**batch(family, [text], generate=True), **options, pad_token_id=1)
        assert torch.equal(together[2 * row : 2 * row + 2, -6:], expected[:, -6:])


def test_a_sliding_window_does_not_slide_the_prefix_away():
    model, inputs = tiny_model("gemma3", sliding_window=4), batch("gemma3", TEXTS[1:2])
    injection = KeyValueInjection(model, inputs)
    prefix = prefixes(injection)
    injection.set(prefix)
    model(**inputs)[0][:, -1].sum().backward()
    assert all(value.grad.abs().max() > 1e-4 for _, value in prefix)


def test_record_gives_the_plain_keys_and_values_and_leaves_prefix_and_modes_alone():
    model, inputs = tiny_model("bert"), batch("bert")
    injection = KeyValueInjection(model, inputs)
    expected = injection.record(inputs)
    injection.set(prefixes(injection), shift_positions=True)
    before = run(model, inputs)
    model.encoder.train()
    recorded = injection.record(inputs)
    assert model.encoder.layer[0].attention.self.dropout.training and not model.training
    assert not model.embeddings.training
    model.eval()
    assert torch.equal(run(model, inputs), before)
    assert torch.equal(torch.stack([*sum(recorded, ())]), torch.stack([*sum(expected, ())]))
    with torch.no_grad():
        states = model.embeddings(inputs["input_ids"], inputs["token_type_ids"])
        layer = model.encoder.layer[0].attention.self
        key, value = (f(states).view(*states.shape[:2], 4, 16).transpose(1, 2) for f in (layer.key, layer.value))
    assert torch.equal(recorded[0][0], key) and torch.equal(recorded[0][1], value)
    assert not recorded[0][0].requires_grad


def test_sites_without_a_prefix_are_left_alone():
    model, inputs = tiny_model("bert"), batch("bert")
    injection = KeyValueInjection(model, inputs)
    below = model(**inputs, output_hidden_states=True).hidden_states
    injection.set([(None, None), *prefixes(injection)[1:]])
    above = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(below[1], above[1]) and not torch.allclose(below[2], above[2], atol=1e-3)


def test_a_forward_broken_off_does_not_shift_shared_layers():
    model, inputs = tiny_model("albert"), batch("albert")
    injection = KeyValueInjection(model, inputs)
    injection.set(prefixes(injection))
    expected = run(model, inputs)
    shared = model.encoder.albert_layer_groups[0].albert_layers[0].ffn
    hook = shared.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, inputs)
    hook.remove()
    assert torch.equal(run(model, inputs), expected)


def test_a_prefix_takes_the_type_of_the_keys_and_its_gradient_keeps_its_own():
    model, inputs = tiny_model("llama").to(torch.bfloat16), batch("llama")
    injection = KeyValueInjection(model, inputs)
    prefix = [tuple(tensor.detach().float().requires_grad_() for tensor in pair) for pair in prefixes(injection)]
    injection.set(prefix)
    output = model(**inputs)[0]
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert prefix[0][0].grad.dtype == torch.float32 and prefix[0][0].grad.abs().max() > 0


def test_two_controllers_one_after_the_other_but_not_at_once():
    model, inputs = tiny_model("deberta-v2"), batch("deberta-v2")
    first = KeyValueInjection(model, inputs)
    with pytest.raises(ModelError, match="already has a key/value injection"):
        KeyValueInjection(model, inputs)
    first.set(prefixes(first))
    expected = run(model, inputs)
    first.remove()
    second = KeyValueInjection(model, inputs)
    second.set(prefixes(second))
    assert torch.equal(run(model, inputs), expected)
    with pytest.raises(ModelError, match="was removed from its model"):
        first.set(prefixes(second))


def test_a_family_with_its_own_attention_code_is_refused_and_left_as_it_was():
    config = DebertaConfig(
        vocab_size=102, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = AutoModel.from_config(config)
    attributes = [set(module.__dict__) for module in model.modules()]
    with pytest.raises(ModelError, match=r"deberta has its own attention code, .* handful has no patch for it"):
        KeyValueInjection(model, batch("bert"))
    assert [set(module.__dict__) for module in model.modules()] == attributes


def test_dummy_inputs_that_fail_leave_the_model_as_it_was():
    model, inputs = tiny_model("llama"), batch("llama")
    with pytest.raises(IndexError):
        KeyValueInjection(model, inputs | {"input_ids": inputs["input_ids"] + 100})
    assert model.config._attn_implementation == "sdpa"
    assert KeyValueInjection(model, inputs).sites


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(ModelError, match="expected a transformers model, found Linear"):
        KeyValueInjection(nn.Linear(2, 2), {})


def test_wrong_prefixes_are_refused_with_what_was_expected():
    model, inputs = tiny_model("llama"), batch("llama")
    injection = KeyValueInjection(model, inputs)
    good = prefixes(injection)
    key, value = good[0]
    with pytest.raises(ModelError, match="each of 3 attention sites, found 2"):
        injection.set(good[:2])
    for wrong in ((key, None), (key, value[:, :, :2]), (key.repeat(1, 2, 1, 1),) * 2, (key[0], value[0])):
        with pytest.raises(
            ModelError, match=r"expected key and value of shape \(rows, 2, length, 16\) at attention site 1"
        ):
            injection.set([good[0], wrong, good[2]])
    with pytest.raises(ModelError, match=r"prefixes of one length .* found lengths \[2, 3\]"):
        injection.set([(key[:, :, :2], value[:, :, :2]), *good[1:]], shift_positions=True)
    injection.set(prefixes(injection, rows=2))
    with pytest.raises(ModelError, match="one prefix or one for each of 3 rows, found 2"):
        run(model, inputs)


@pytest.mark.parametrize("family", UNSHIFTED)
def test_a_shift_where_there_is_none_is_refused(family):
    model, inputs = tiny_model(family), batch(family)
    injection = KeyValueInjection(model, inputs)
    assert not injection.supports_shift
    with pytest.raises(ModelError, match=f"found '{family}'"):
        injection.set(prefixes(injection), shift_positions=True)
    assert injection.prefixes is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama", "albert", "deberta-v2"])
def test_compiles_to_one_graph_with_the_same_numbers(family):
    model, inputs = tiny_model(family), batch(family)
    injection = KeyValueInjection(model, inputs)
    injection.set(prefixes(injection))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        injection.set(prefixes(injection, seed=seed))
        assert torch.equal(run(compiled, inputs), run(model, inputs))


@pytest.mark.slow
def test_importing_registers_nothing():
    code = (
        "import handful.backbone.attention as a; from transformers import AttentionInterface;"
        "assert a.IMPLEMENTATION not in AttentionInterface().valid_keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
