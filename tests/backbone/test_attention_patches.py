"""DeBERTa-v2 and MPNet: one attention module at a time against attention written out pair by pair."""

import pytest
import torch

from handful.backbone.attention import KeyValueInjection
from handful.backbone.tiny import tiny_model, tiny_tokenizer

LENGTH = 3  # P
VARIANTS = {
    "deberta-v3": {},
    "deberta-v2": {"share_att_key": False},
    "c2p only": {"pos_att_type": ["c2p"]},
    "no distances": {"relative_attention": False},
}


def calls_with_a_prefix(family, **settings):
    """Inputs and outputs of every attention module in a padded batch, with the prefix (K, V) of each, in float64."""
    model = tiny_model(family, **settings).double()
    inputs = dict(tiny_tokenizer(family)(["short", "a bit longer"], padding=True, return_tensors="pt"))
    injection = KeyValueInjection(model, inputs)
    generator = torch.Generator().manual_seed(0)
    prefix = [tuple(torch.randn(2, 2, 4, LENGTH, 16, generator=generator).double()) for _ in range(3)]
    injection.set(prefix)
    seen = []
    for module in model.modules():
        if type(module).__name__ in ("DisentangledSelfAttention", "MPNetSelfAttention"):
            module.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    assert len(seen) == 3
    return inputs["attention_mask"].bool(), [(*call, *pair) for call, pair in zip(seen, prefix, strict=True)]


def heads_of(states):
    return states.view(*states.shape[:-1], 4, 16).transpose(-2, -3)


def attention(scores, real, key_prefix_scores, value, prefix_value):
    """Softmax over prefix and real tokens (B, H, S, P + S), heads joined: (B, S, H·D)."""
    scores = torch.cat((key_prefix_scores, scores.masked_fill(~real[:, None, None], -torch.inf)), -1)
    return (scores.softmax(-1) @ torch.cat((prefix_value, value), 2)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_deberta_is_disentangled_attention_written_out(variant):
    real, calls = calls_with_a_prefix("deberta-v2", **VARIANTS[variant])
    for module, args, kwargs, output, prefix_key, prefix_value in calls:
        states, length = args[0], args[0].shape[1]
        query, key, value = (heads_of(f(states)) for f in (module.query_proj, module.key_proj, module.value_proj))
        scores, terms = query @ key.mT, 1 + len(module.pos_att_type)
        if module.relative_attention:
            table, span = kwargs["rel_embeddings"], module.pos_ebd_size
            shared = module.share_att_key
            key_of = heads_of((module.key_proj if shared else module.pos_key_proj)(table))  # (H, 2·span, D)
            distance = kwargs["relative_pos"].view(length, length)
            for i in range(length):
                for j in range(length):
                    at = int((distance[i, j] + span).clamp(0, 2 * span - 1))
                    scores[:, :, i, j] += torch.einsum("bhd,hd->bh", query[:, :, i], key_of[:, at])
                    if "p2c" in module.pos_att_type:
                        query_of = heads_of((module.query_proj if shared else module.pos_query_proj)(table))
                        scores[:, :, i, j] += torch.einsum("bhd,hd->bh", key[:, :, j], query_of[:, at])
        scale = (16 * terms) ** -0.5
        expected = attention(scores * scale, real, query @ prefix_key.mT * scale, value, prefix_value)
        torch.testing.assert_close(
            output[0][real], expected[real], atol=1e-7, rtol=0
        )  # its scale is rounded to float32


def test_mpnet_is_biased_attention_written_out():
    real, calls = calls_with_a_prefix("mpnet")
    for module, args, kwargs, output, prefix_key, prefix_value in calls:
        states, bias = args[0], kwargs["position_bias"] if "position_bias" in kwargs else args[2]
        query, key, value = (heads_of(f(states)) for f in (module.q, module.k, module.v))
        context = attention(query @ key.mT / 4 + bias, real, query @ prefix_key.mT / 4, value, prefix_value)
        torch.testing.assert_close(output[0][real], module.o(context)[real], atol=1e-13, rtol=0)
