import pytest
import torch

from handful.backbone.tiny import TINY_FAMILIES, VOCABULARY, tiny_backbone, tiny_model, tiny_tokenizer
from handful.errors import ModelError

TEXTS, PAIRS = ["Hello, world!", "a café that is a bit longer"], ["b", "cc"]


@pytest.mark.parametrize("head", ["none", "classifier", "lm"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_and_head_runs_on_what_its_tokenizer_gives(family, head):
    model = tiny_model(family, head=head, num_labels=3)
    inputs = tiny_tokenizer(family)(TEXTS, PAIRS, padding=True, return_tensors="pt")
    if model.config.is_encoder_decoder and head != "classifier":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    with torch.no_grad():
        output = model(**inputs)[0]
    width = {"none": 64, "classifier": 3, "lm": len(VOCABULARY)}[head]
    assert output.shape[0] == 2 and output.shape[-1] == width
    assert output.isfinite().all() and output.std() > 0.03


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_pad_start_and_end_ids_are_the_tokenizers(family):
    tokenizer, config = tiny_tokenizer(family), tiny_model(family).config
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.vocab_size == len(tokenizer)


def test_same_seed_same_weights_and_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    first, again, other = (tiny_model("bert", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], other[name])


def test_token_types_tell_the_texts_of_a_pair_apart_where_the_family_has_them():
    pair = tiny_tokenizer("bert")("ab", "c")
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert "token_type_ids" not in tiny_tokenizer("roberta")("ab", "c")


def test_any_text_gets_ids_and_printable_text_comes_back():
    tokenizer = tiny_tokenizer("llama")
    text = "Any text: {1} & \\ ~"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer("語\n")["input_ids"][1:] == [VOCABULARY["[UNK]"]] * 2


def test_unknown_family_or_head_is_refused_with_the_nearest_name():
    with pytest.raises(ModelError, match="did you mean 'roberta'"):
        tiny_model("robrta")
    with pytest.raises(ModelError, match="did you mean 'roberta'"):
        tiny_tokenizer("robrta")
    with pytest.raises(ModelError, match="did you mean 'classifier'"):
        tiny_model("bert", head="classifer")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("pooling", ["mean", "family"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_tiny_backbone_is_loaded_like_any_other_and_is_the_tiny_model(family, pooling):
    before = torch.get_rng_state()
    backbone, again = (tiny_backbone(family, pooling=pooling) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert backbone.name == f"tiny-{family}" and backbone.max_length == 256
    inputs = dict(backbone.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        features = backbone.features(inputs)
        assert torch.equal(features, again.features(inputs))
    assert features.shape == (2, 64)
    weights = tiny_model(family).get_input_embeddings().weight
    assert torch.equal(backbone.model.get_input_embeddings().weight, weights)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_tiny_language_model_pads_where_generation_needs_it(family):
    backbone = tiny_backbone(family, purpose="lm")
    assert backbone.tokenizer.padding_side == ("left" if family == "llama" else "right")
    inputs = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert backbone.model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 2
