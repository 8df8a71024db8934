"""Full fine-tuning and BitFit: what is trained, that it trains, and that nothing of it stays behind."""

import pytest
import torch
from torch import nn

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.errors import ModelError
from handful.methods.bias import Bias
from handful.methods.full import Full, feeding_parameters
from handful.testing import toy_task
from handful.training.fit import batch_loss

TASK = toy_task()
BOTH = [Full(), Bias()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_batch(backbone):
    return encode(TASK.pool, backbone.tokenizer, 32, kind=TASK.kind).batch(range(6))


def take_step(adapter, batch):
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    batch_loss(adapter(batch), batch, adapter, TASK.kind).backward()
    optimizer.step()


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "llama", "gpt2", "t5", "bart"])
def test_full_trains_every_number_below_the_features(family):
    backbone = tiny_backbone(family)
    adapter = Full().attach(backbone, TASK, generator=generator())
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    head = 2 * (backbone.hidden_size + 1)
    assert trained == sum(parameter.numel() for parameter in backbone.model.parameters()) + head


def test_full_leaves_out_what_the_features_do_not_depend_on():
    backbone = tiny_backbone("bert")
    backbone.model.unused = nn.Linear(3, 3).requires_grad_(False)
    adapter = Full().attach(backbone, TASK, generator=generator())
    assert not any("unused" in name for name, _ in adapter.named_parameters())
    assert not backbone.model.unused.weight.requires_grad


def test_bias_trains_all_biases_and_no_more():
    backbone = tiny_backbone("bert")
    adapter = Bias().attach(backbone, TASK, generator=generator())
    layers, width, inner = 3, 64, 128
    each = 4 * width + inner + width + 2 * width  # attention, feed-forward up and down, two norms
    expected = layers * each + width  # and the norm of the embeddings
    assert sum(parameter.numel() for parameter in adapter.biases.parameters()) == expected
    assert all(name.endswith("bias") for name, _ in adapter.biases.named_parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "modernbert", "t5"])
def test_bias_says_that_a_family_has_none(family):
    backbone = tiny_backbone(family)
    (reason,) = Bias().check(backbone, TASK)
    assert "has no biases to train" in reason
    assert "'lora'" in reason
    with pytest.raises(ModelError, match="has no biases"):
        Bias().attach(backbone, TASK, generator=generator())


@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2", "opt"])
def test_bias_has_no_objection_where_there_are_some(family):
    assert Bias().check(tiny_backbone(family), TASK) == []


@pytest.mark.parametrize("pooling", ["auto", "family"])
@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_a_step_changes_the_model_and_detach_restores_it_bit_for_bit(method, pooling):
    backbone = tiny_backbone("roberta", pooling=pooling)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    batch = make_batch(backbone)
    adapter = method.attach(backbone, TASK, generator=generator())
    assert adapter.lowest_layer is None
    first = adapter(batch)
    take_step(adapter, batch)
    assert not torch.equal(first, adapter(batch))
    adapter.detach()
    adapter.detach()
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_the_poolers_fresh_layers_are_trained_once(method):
    backbone = tiny_backbone("roberta", pooling="family")
    adapter = method.attach(backbone, TASK, generator=generator())
    identities = [id(parameter) for _, parameter in adapter.named_parameters(remove_duplicate=False)]
    fresh = {id(backbone.model.get_parameter(name)) for name in backbone.fresh}
    assert len(identities) == len(set(identities))
    assert fresh
    assert fresh <= set(identities)


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_the_fingerprint_stays_that_of_the_pretrained_weights(method):
    expected = tiny_backbone("bert").fingerprint
    backbone = tiny_backbone("bert")
    adapter = method.attach(backbone, TASK, generator=generator())
    take_step(adapter, make_batch(backbone))
    assert backbone.fingerprint == expected


def test_looking_for_what_feeds_the_features_leaves_the_model_frozen_and_without_gradients():
    backbone = tiny_backbone("bert")
    feeding_parameters(backbone)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
