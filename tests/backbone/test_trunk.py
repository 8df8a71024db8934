"""The cached trunk: which models allow it, what it keeps, and that it leaves nothing behind."""

import pytest
import torch

from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone
from handful.backbone.trunk import layer_lists, recomputing, trunk_cache
from handful.data.batching import encode
from handful.errors import ModelError
from handful.testing import toy_task

TASK = toy_task()


def rows_of(backbone):
    return encode(TASK.pool, backbone.tokenizer, 64, kind=TASK.kind)


def cache_of(backbone, stop=2, run=None):
    def features(batch):
        return backbone.features(batch.inputs)

    return trunk_cache(backbone, rows_of(backbone), stop, run or features)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_is_cached_but_those_that_share_layers_or_hand_on_more_than_states(family):
    backbone = tiny_backbone(family)
    rows = rows_of(backbone)
    for stop in (1, 3):
        cache = cache_of(backbone, stop)
        if family in ("albert", "t5"):
            assert cache is None
            continue
        assert cache is not None
        for indices in ([0, 1, 2], [5], [7, 3, 11, 0]):
            batch = rows.batch(indices)
            with torch.no_grad():
                expected = backbone.features(batch.inputs)
                with cache:
                    cache.choose(batch)
                    torch.testing.assert_close(backbone.features(batch.inputs), expected, atol=1e-5, rtol=1e-5)
                assert torch.equal(backbone.features(batch.inputs), expected)  # nothing was left behind


def test_cached_layers_cost_nothing_and_get_their_gradient_never():
    backbone = tiny_backbone("bert")
    cache = cache_of(backbone)
    assert cache is not None
    calls = []
    layers = layer_lists(backbone)[0]
    for index, layer in enumerate(layers):
        layer.get_submodule("attention").register_forward_hook(lambda *_, index=index: calls.append(index))
    batch = rows_of(backbone).batch([0, 1])
    with cache:
        cache.choose(batch)
        backbone.features(batch.inputs)
    assert calls == [2]
    assert not any("forward" in vars(layer) for layer in layers)
    assert all(len(layer._forward_hooks) == 0 for layer in layers)


@pytest.mark.parametrize("stop", [None, 0])
def test_where_nothing_lies_below_nothing_is_kept(stop):
    assert cache_of(tiny_backbone("bert"), stop) is None


def test_an_encoder_with_a_decoder_is_not_cached():
    backbone = tiny_backbone("bart", pooling="family")
    assert len(layer_lists(backbone)) == 2 and cache_of(backbone) is None


def test_a_cache_that_does_not_give_the_plain_numbers_is_not_trusted():
    backbone = tiny_backbone("bert")
    backbone.model.train()  # dropout: no two forwards agree
    assert cache_of(backbone) is None


def test_recomputing_ends_with_the_block_even_after_an_error():
    backbone = tiny_backbone("bert")
    batch = rows_of(backbone).batch([0, 1])
    expected = backbone.features(batch.inputs)
    with recomputing(backbone):
        assert torch.equal(backbone.features(batch.inputs), expected)
        assert all("forward" in vars(layer) for layer in layer_lists(backbone)[0])
    with pytest.raises(KeyError), recomputing(backbone):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layer_lists(backbone)[0])
    with pytest.raises(ModelError, match="found none in albert"), recomputing(tiny_backbone("albert")):
        pass
