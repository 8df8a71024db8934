"""The same prefix through stock PEFT and through our injection (`shift_positions=True`) gives the same numbers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from handful.backbone.attention import KeyValueInjection
from handful.backbone.packaged import packaged_folder
from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.errors import ModelError

peft = pytest.importorskip("peft")

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra")
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "gpt-neox", "opt")
TEXTS = ["short", "a bit longer"]  # with prefix and new tokens within Gemma 3's window: PEFT's prefix slides out of it
LENGTH = 3  # P


def batch(family, side="right"):
    tokenizer = tiny_tokenizer(family)
    tokenizer.padding_side = side
    return dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))


def peft_model(family, head):
    """A tiny model under stock PEFT prefix tuning, with a random prefix, and its prompt rows (P, 2·L·H·D)."""
    model = tiny_model(family, head=head)
    task = {"classifier": "SEQ_CLS", "lm": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"}[head]
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    shape = {"num_layers": 3, "num_attention_heads": heads, "token_dim": heads * 16}
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=LENGTH, **shape, encoder_hidden_size=heads * 16)
    wrapped = peft.get_peft_model(model, config).eval()
    rows = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
    return wrapped, rows.detach().clone()


def pairs(rows):
    """The rows as (K, V) slots: one (1, H, P, D) pair a layer."""
    slots = rows.view(LENGTH, 6, -1, 16).permute(1, 2, 0, 3)  # (2·L, H, P, D)
    return [(slots[2 * layer][None], slots[2 * layer + 1][None]) for layer in range(3)]


def injected(family, head, inputs, prefix=None, rows=None):
    """Our own copy of the same model with the same prefix."""
    model = tiny_model(family, head=head)
    injection = KeyValueInjection(model, inputs)
    injection.set(pairs(rows) if prefix is None else prefix(injection, pairs(rows)), shift_positions=True)
    return model


@pytest.mark.parametrize(
    ("family", "head"),
    [(family, "classifier") for family in ENCODERS + DECODERS] + [(family, "lm") for family in DECODERS],
)
def test_same_prefix_same_logits(family, head):
    inputs = batch(family)
    theirs, rows = peft_model(family, head)
    ours = injected(family, head, inputs, rows=rows)
    plain = tiny_model(family, head=head)
    with torch.no_grad():
        expected, found, without = (model(**inputs).logits for model in (theirs, ours, plain))
    assert not torch.allclose(expected, without, atol=1e-3)  # the prefix does something
    if head == "lm":
        real = inputs["attention_mask"].bool()  # OPT's padding gets another position; nothing sees it
        expected, found = expected[real], found[real]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", DECODERS)
def test_same_tokens_greedily_and_with_beams(family, beams):
    inputs = batch(family, side="left")
    theirs, rows = peft_model(family, "lm")
    ours = injected(family, "lm", inputs, rows=rows)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "num_beams": beams}
    expected, found = (model.generate(**inputs, **options, pad_token_id=1) for model in (theirs, ours))
    assert found.shape[1] == inputs["input_ids"].shape[1] + 12
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_with_pefts_map_of_slots(family):
    """PEFT gives decoder layer l the slot 2l mod L of its prefix, and encoder and cross-attention nothing."""
    inputs = batch(family)
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :6]
    theirs, rows = peft_model(family, "lm")

    def by_slot(injection, slots):
        nothing = (None, None)
        return [slots[2 * s.layer % 3] if s.stack == "decoder" else nothing for s in injection.sites]

    ours = injected(family, "lm", inputs, prefix=by_slot, rows=rows)
    with torch.no_grad():
        expected, found = theirs(**inputs).logits, ours(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1.5e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_gives_the_same_logits_and_tokens():
    try:
        folder = packaged_folder("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    shape = {"num_layers": 30, "num_attention_heads": 3, "token_dim": 192, "encoder_hidden_size": 192}
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, **shape)
    theirs = peft.get_peft_model(theirs, config).eval()
    rows = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
    inputs = dict(tokenizer("The house stands on a", return_tensors="pt"))
    injection = KeyValueInjection(ours, inputs)
    assert {(s.heads, s.width) for s in injection.sites} == {(3, 64)}
    slots = rows.detach().view(LENGTH, 60, 3, 64).permute(1, 2, 0, 3)
    injection.set([(slots[2 * i][None], slots[2 * i + 1][None]) for i in range(30)], shift_positions=True)
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)
    found, expected = (model.generate(**inputs, max_new_tokens=8, do_sample=False) for model in (ours, theirs))
    assert torch.equal(found, expected)
