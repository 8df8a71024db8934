"""Shifted positions, however the positions come about; parity with stock PEFT is in tests/parity."""

import pytest
import torch

from handful.backbone.attention import KeyValueInjection
from handful.backbone.tiny import MAX_LENGTH, tiny_model
from handful.errors import ModelError

LENGTH = 3  # P
IDS = torch.arange(10, 18)[None]
SHIFTED = ("bert", "electra", "roberta", "xlm-roberta", "llama", "gpt2", "gpt-neox")


def shifted(family, **settings):
    model = tiny_model(family, **settings).double()
    injection = KeyValueInjection(model, {"input_ids": IDS})
    pair = torch.randn(2, 1, injection.sites[0].heads, LENGTH, 16, generator=torch.Generator().manual_seed(0)).double()
    injection.set([tuple(pair)] * 3, shift_positions=True)
    return model


@pytest.mark.parametrize("family", SHIFTED)
def test_positions_are_shifted_the_same_from_ids_embeddings_and_given_positions(family):
    model = shifted(family)
    first = model.config.pad_token_id + 1 if "roberta" in family else 0
    positions = torch.arange(first, first + IDS.shape[1])[None]
    embeddings = model.get_input_embeddings()(IDS)
    with torch.no_grad():
        expected = model(IDS).last_hidden_state
        assert torch.equal(model(input_ids=IDS, position_ids=positions).last_hidden_state, expected)
        assert torch.equal(model(inputs_embeds=embeddings).last_hidden_state, expected)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_text_that_no_longer_fits_is_refused_with_the_length_that_does(family):
    model = shifted(family)
    fits = MAX_LENGTH - LENGTH
    model(torch.full((1, fits), 10))
    with pytest.raises(ModelError, match=f"shorten the texts to {fits} tokens"):
        model(torch.full((1, fits + 1), 10))
