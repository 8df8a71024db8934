"""Prefixes: their two forms, the layers they stand in, and starts from real tokens."""

import pytest
import torch

from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone
from handful.data.batching import encode
from handful.errors import ConfigError
from handful.methods.prefix import KeyValuePrefix, Prefix, chosen_sites, sample_activations, shifts_positions
from handful.methods.prefix_subspace import PrefixSubspace
from handful.testing import toy_task

TASK = toy_task()
SHIFTED = {"bert", "roberta", "xlm-roberta", "electra"} | {
    "llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "gpt-neox", "opt"
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", ["bert", "llama", "deberta-v2"])
def test_activations_are_keys_and_values_of_real_tokens_together_over_all_layers(family):
    backbone = tiny_backbone(family)
    rows = encode(TASK.pool, backbone.tokenizer, 64, kind=TASK.kind)
    sites = chosen_sites(backbone, None)
    heads = sites[0].heads
    drawn = sample_activations(backbone, rows, sites, 2, 40, generator())
    assert drawn.shape == (2, 3, 2, heads, 40, 16)
    assert not torch.equal(drawn[0], drawn[1])  # afresh for each vertex

    batch = rows.batch(range(len(rows)))
    recorded = backbone.injection.record(backbone.accepted(batch.inputs))
    states = torch.stack([torch.stack(pair) for pair in recorded])  # (L, 2, B, H, S, d)
    real = states.permute(2, 4, 0, 1, 3, 5)[batch.inputs["attention_mask"].bool()].flatten(1)  # one row a token
    found = drawn.permute(0, 4, 1, 2, 3, 5).flatten(0, 1).flatten(1)
    distance = torch.cdist(found, real).min(1).values
    assert distance.max() < 1e-3 * real.norm(dim=1).mean()
    assert torch.equal(drawn, sample_activations(backbone, rows, sites, 2, 40, generator()))


def test_an_adapter_that_starts_from_activations_holds_them():
    backbone = tiny_backbone("bert")
    rows = encode(TASK.pool, backbone.tokenizer, 64, kind=TASK.kind)
    adapter = Prefix(prefix_length=5, init="activations", head_init="normal").attach(
        backbone, TASK, generator=generator()
    )
    adapter.warm_start(rows, generator(3))
    expected = sample_activations(backbone, rows, adapter.sites, 1, 5, generator(3))
    assert torch.equal(adapter.prefix.keys_values, expected)
    with pytest.raises(ConfigError, match="init = 'activations' needs form = 'flat', found 'mlp'"):
        Prefix(form="mlp", init="activations")


def test_an_mlp_makes_each_vertex_from_its_own_numbers_alone():
    sites = chosen_sites(tiny_backbone("bert"), None)
    prefix = KeyValuePrefix(sites, 5, 3, form="mlp", init_std=1.0, generator=generator())
    assert prefix().shape == (3, 3, 2, 4, 5, 16)
    prefix()[1].square().sum().backward()
    for parameter in prefix.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any() and not parameter.grad[0].any() and not parameter.grad[2].any()


def test_the_mlp_is_the_formula():
    sites = chosen_sites(tiny_backbone("bert"), None)
    prefix = KeyValuePrefix(sites, 5, 2, form="mlp", init_std=1.0, generator=generator())
    hidden = torch.tanh(prefix.embedding[1] @ prefix.inner[1] + prefix.inner_bias[1])
    flat = hidden @ prefix.outer[1] + prefix.outer_bias[1]  # (P, 2·L·H·d), layers first, then key and value
    expected = flat.view(5, 3, 2, 4, 16).permute(1, 2, 3, 0, 4)
    torch.testing.assert_close(prefix()[1], expected, atol=1e-5, rtol=1e-5)


def test_the_start_has_the_standard_deviation_asked_for():
    adapter = Prefix(prefix_length=100, init_std=0.3).attach(tiny_backbone("bert"), TASK, generator=generator())
    assert adapter.prefix().std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_positions_are_shifted_by_default_where_stock_peft_can_load_the_export(family):
    backbone = tiny_backbone(family)
    assert shifts_positions(backbone, "auto") == (family in SHIFTED)
    assert not shifts_positions(backbone, "kept")
    adapter = Prefix(prefix_length=7).attach(backbone, TASK, generator=generator())
    assert adapter.reserved_positions == (7 if family in SHIFTED else 0)
    assert not Prefix().check(backbone, TASK)
    assert bool(Prefix(positions="shifted").check(backbone, TASK)) != backbone.injection.supports_shift


@pytest.mark.parametrize("method", [Prefix, PrefixSubspace])
def test_a_prefix_that_moves_texts_out_of_the_models_positions_is_refused(method):
    task, backbone = toy_task(), tiny_backbone("bert")
    (reason,) = method(prefix_length=250).check(backbone, task)
    assert "texts that move by 250 positions have 6 left of the model's 256, expected at least 8" in reason
    assert method(prefix_length=300).check(backbone, task)
    assert not method(prefix_length=248).check(backbone, task)
    assert not method(prefix_length=300, positions="kept").check(backbone, task)
    assert not method(prefix_length=300).check(tiny_backbone("distilbert"), task)
