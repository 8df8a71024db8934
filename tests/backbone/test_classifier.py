import pytest
import torch
from torch import nn

from handful.backbone.classifier import OutputLayer, output_layer
from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone, tiny_model


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_output_layer_is_the_one_that_the_headless_backbone_lost(family):
    backbone = tiny_backbone(family, pooling="family")
    layer = output_layer(backbone.config)
    assert layer is not None
    assert isinstance(backbone.model.get_submodule(layer.name), nn.Identity)
    stock = tiny_model(family, head="classifier").get_submodule(layer.name)
    assert isinstance(stock, nn.Linear)
    assert layer.has_bias == (stock.bias is not None)


def test_a_familys_name_is_enough_and_nothing_is_drawn_or_changed():
    backbone = tiny_backbone("bert")
    labels, state = backbone.config.num_labels, torch.get_rng_state()
    assert output_layer("bert") == output_layer(backbone.config) == OutputLayer("classifier", has_bias=True)
    assert output_layer("llama") == OutputLayer("score", has_bias=False)
    assert backbone.config.num_labels == labels
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["no-such-family", "vit"])
def test_a_family_without_a_stock_classification_class_has_none(family):
    assert output_layer(family) is None
