"""Batches without their padding give the numbers, and the gradients, of padded ones."""

import pytest
import torch

from handful.backbone.load import Backbone
from handful.backbone.packing import PACKED_FAMILIES, Packing
from handful.backbone.tiny import tiny_backbone

TEXTS = ["short", "a text that is longer", "medium text"]
LENGTH = 3  # P


def batch(backbone, texts=TEXTS):
    return dict(backbone.tokenizer(texts, padding=True, return_tensors="pt"))


def features_and_gradients(backbone, inputs, *, shift, rows=3):
    """Features (B, D) under random prefixes, one a row, and the gradient of every prefix; in float64."""
    backbone.model.double()
    generator = torch.Generator().manual_seed(1)

    def draw(site):
        shape = (rows, site.heads, LENGTH, site.width)
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    prefix = [(draw(site), draw(site)) for site in backbone.injection.sites]
    backbone.injection.set(prefix, shift_positions=shift)
    features = backbone.features(inputs)
    features.pow(2).sum().backward()
    return features, [tensor.grad for pair in prefix for tensor in pair]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", sorted(PACKED_FAMILIES))
def test_same_features_and_gradients_as_padded(family, pooling, shift, monkeypatch):
    backbone = tiny_backbone(family, pooling=pooling)
    inputs = batch(backbone)
    backbone.packs = True
    packed = features_and_gradients(backbone, inputs, shift=shift)
    monkeypatch.setattr(Backbone, "packing", lambda *_: None)
    padded = features_and_gradients(backbone, inputs, shift=shift)
    torch.testing.assert_close(packed, padded, atol=1e-13, rtol=0)


def test_layers_see_real_tokens_only():
    backbone = tiny_backbone("bert")
    inputs = batch(backbone)
    real, seen = int(inputs["attention_mask"].sum()), []
    assert real < inputs["attention_mask"].numel()
    backbone.packs = True
    backbone.injection.clear()
    backbone.model.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, given, output: seen.append(output.shape[:2])
    )
    backbone.features(inputs)
    assert seen == [(1, real)]


def test_left_alone_without_padding_without_an_injection_and_where_it_cannot_be():
    backbone = tiny_backbone("bert")
    inputs = batch(backbone)
    backbone.injection.clear()
    assert backbone.packing(inputs) is None  # no adapter has asked for it
    backbone.packs = True
    assert backbone.packing(inputs) is not None
    assert backbone.packing(batch(backbone, ["one text"])) is None
    for other in (tiny_backbone("bert", pooling="family"), tiny_backbone("llama"), tiny_backbone("modernbert")):
        other.packs = True
        assert other.packing(batch(other)) is None


def test_packed_and_unpacked_again():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]])  # padding on either side
    rows = torch.arange(18.0).view(3, 3, 2)
    packing = Packing.of(mask)
    tokens = packing.pack(rows)
    assert tokens.tolist() == rows[mask.bool()][None].tolist()
    assert torch.equal(packing.unpack(tokens)[mask.bool()], rows[mask.bool()])
    heads = tokens.unflatten(2, (1, 2)).transpose(1, 2)
    assert torch.equal(packing.unpack_heads(heads)[:, 0], packing.unpack(tokens))
