"""A simplex of what other methods train: conformance, equality at one vertex, the midpoint, and its stock form."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

import handful
from handful.backbone.tiny import tiny_backbone
from handful.backbone.trunk import recomputing
from handful.errors import ConfigError
from handful.evaluation.evaluate import encode_rows
from handful.evaluation.predict import predict_rows
from handful.methods import METHODS, method_class
from handful.methods.bias import Bias
from handful.methods.full import Full
from handful.methods.head import Head
from handful.methods.peft_bridge import IA3, LoRA, Peft, PromptTuning
from handful.methods.prefix import Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.methods.prompt import Prompt
from handful.methods.subspace import SPREAD, SubspaceAdapter, subspace
from handful.runs.spec import resolve
from handful.testing import METHOD_CHECKS, Case, copy_of, differences, toy_task
from handful.training.config import TrainingConfig
from handful.training.fit import batch_loss, fit

TASK = toy_task()
METHODS_WITH_FAMILY = {
    "lora": (LoRA(rank=2, dropout=0.1), "bert"),
    "ia3": (IA3(), "llama"),
    "bias": (Bias(), "bert"),
    "head": (Head(), "bert"),
    "prompt-tuning": (PromptTuning(prompt_length=3), "bert"),
    "vera": (Peft({"peft_type": "VERA", "r": 4, "target_modules": ["query", "value"]}), "bert"),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attach(method, family="bert", **options):
    backbone = tiny_backbone(family, **options)
    adapter = method.attach(backbone, TASK, generator=generator())
    return adapter, encode_rows(backbone, TASK.pool, TASK, 64)


def train(adapter, rows, **settings):
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, **settings}
    config = TrainingConfig.from_settings(settings)
    return fit(adapter, rows, None, config, kind=TASK.kind, metric=TASK.metric, generator=generator(1))


def scores(adapter, rows, **options):
    return torch.from_numpy(predict_rows(adapter, rows, TASK.kind, **options).scores[0])


def hold_to_contract(method, backbone):
    """All but the life of a saved run: exports are in tests/export."""
    case = Case(method, backbone, TASK, 0.02)
    for check in METHOD_CHECKS:
        check(case)


def same_parameters(many, one):
    """Each parameter (M, …) of a simplex with the method's own."""
    for name, parameter in one.named_parameters():
        own = name if name.startswith("head.") else f"vertices.{name.replace('.', '__')}"
        yield many.get_parameter(own), parameter


@pytest.mark.parametrize("name", METHODS_WITH_FAMILY)
def test_a_simplex_of_any_method_keeps_the_contract(name):
    method, family = METHODS_WITH_FAMILY[name]
    hold_to_contract(subspace(method, 3), tiny_backbone(family))


@pytest.mark.parametrize("pooling", ["family", "mean"])
def test_layers_that_are_new_in_the_pooler_are_part_of_the_simplex(pooling):
    hold_to_contract(subspace(LoRA(rank=2), 2), tiny_backbone("roberta", pooling=pooling))


@pytest.mark.parametrize("name", METHODS_WITH_FAMILY)
def test_one_vertex_is_the_method_itself(name):
    method, family = METHODS_WITH_FAMILY[name]
    adapter, _ = attach(subspace(method, 1), family)
    assert subspace(method, 1) == method and not isinstance(adapter, SubspaceAdapter)


@pytest.mark.parametrize("name", [name for name in METHODS_WITH_FAMILY if name != "head"])
def test_vertices_that_are_equal_train_and_predict_as_the_method(name):
    """The sum of the vertices' gradients is the method's own: with plain steps their mean moves 1/M as far."""
    method, family = METHODS_WITH_FAMILY[name]
    one, rows = attach(method, family)
    many, _ = attach(subspace(method, 3), family)
    batch = rows.batch(range(6))
    pairs = list(same_parameters(many, one))
    with torch.no_grad():
        for vertices, parameter in pairs:
            vertices.copy_(parameter.expand_as(vertices))
    found, expected = many.eval()(batch, many.draw(batch, generator(2))), one.eval()(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    batch_loss(found, batch, many, TASK.kind).backward()
    batch_loss(expected, batch, one, TASK.kind).backward()
    for vertices, parameter in pairs:
        total = vertices.grad.sum(0).view_as(parameter)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_vertex_without_weight_gets_no_gradient():
    adapter, rows = attach(LoRA(rank=2, num_vertices=3))
    batch = rows.batch(range(6))
    with torch.no_grad():
        for vertices in adapter.vertices.values():
            vertices.add_(torch.randn(vertices.shape, generator=generator(3)) * 0.1)
    batch_loss(adapter(batch, adapter.at(vertex=1)), batch, adapter, TASK.kind).backward()
    for vertices in adapter.parameters():
        assert vertices.grad[1].any() and not vertices.grad[0].any() and not vertices.grad[2].any()


def test_every_batch_draws_one_point_and_every_row_a_head():
    adapter, rows = attach(LoRA(rank=2, num_vertices=3))
    first, second = (adapter.draw(rows.batch(range(6)), generator(seed)) for seed in (1, 2))
    assert first.shared["point"].shape == (3,) and first.rows["head"].shape == (6, 3)
    assert not torch.equal(first.shared["point"], second.shared["point"])
    assert len(first.rows["head"].unique(dim=0)) == 6


def test_the_midpoint_of_lora_is_the_mean_of_its_factors_and_not_of_their_products():
    adapter, rows = attach(LoRA(rank=2, num_vertices=3))
    train(adapter, rows, learning_rate=0.05)
    expected = scores(adapter, rows)
    alone, _ = attach(LoRA(rank=2))
    with torch.no_grad():
        for many, one in same_parameters(adapter, alone):
            one.copy_(many.mean(0).view_as(one))
        alone.head.scale.copy_(adapter.head.scale)
    torch.testing.assert_close(scores(alone, rows), expected, rtol=0, atol=1e-5)
    pairs = list(zip(list(adapter.vertices.values())[::2], list(adapter.vertices.values())[1::2], strict=True))
    gap = max(float((up @ down).mean(0).sub(up.mean(0) @ down.mean(0)).abs().max()) for down, up in pairs)
    assert gap > 1e-4, "the two averages should differ after training, or the choice makes no difference"


@pytest.mark.parametrize("name", ["ia3", "bias"])
def test_vertices_that_would_start_at_one_place_are_set_apart(name):
    method, family = METHODS_WITH_FAMILY[name]
    adapter, rows = attach(subspace(method, 3), family)
    assert all((vertices == vertices[:1]).all() for vertices in adapter.vertices.values())
    adapter.warm_start(rows, generator(1))
    size, moved = 0.0, 0.0
    for vertices in adapter.vertices.values():
        size += float(vertices.square().mean(0).sum())
        moved += float(vertices.var(0).sum())
    assert (moved / size) ** 0.5 == pytest.approx(SPREAD, rel=0.2)


@pytest.mark.parametrize("name", METHODS_WITH_FAMILY)
def test_the_backbone_is_the_pretrained_one_between_forwards_and_after(name):
    method, family = METHODS_WITH_FAMILY[name]
    adapter, rows = attach(subspace(method, 2), family)
    before = copy_of(adapter.backbone.model.state_dict())
    train(adapter, rows, epochs=1)
    scores(adapter, rows, predictor="vertex:1")
    assert not differences(before, adapter.backbone.model.state_dict())
    adapter.detach()
    assert not differences(copy_of(tiny_backbone(family).model.state_dict()), adapter.backbone.model.state_dict())


RECOMPUTED = (LoRA(rank=2, num_vertices=3), Bias(num_vertices=3), PrefixSubspace(prefix_length=3))


@pytest.mark.parametrize("method", RECOMPUTED, ids=lambda method: method.name)
def test_recomputed_layers_use_their_own_forwards_draw(method):
    """Two forwards before one backward: with checkpointing the first is computed again after the second."""
    adapter, rows = attach(method)
    adapter.warm_start(rows, generator(1))
    adapter.train()
    batches = [rows.batch(range(5)), rows.batch(range(5, 8))]
    draws = [adapter.draw(batch, generator(seed)) for seed, batch in enumerate(batches)]

    def gradients():
        adapter.zero_grad()
        sum(adapter(*pair).square().sum() for pair in zip(batches, draws, strict=True)).backward()
        return [p.grad.clone() for p in adapter.parameters()]

    expected = gradients()
    with recomputing(adapter.backbone):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_methods_say_whether_they_have_a_simplex():
    assert handful.subspace(Prefix(prefix_length=4), 3) == PrefixSubspace(prefix_length=4, num_vertices=3)
    assert handful.subspace(Prompt(prompt_length=4), 2) == Prompt(prompt_length=4, num_vertices=2)
    with pytest.raises(ConfigError, match="method 'full' has no simplex"):
        handful.subspace(Full(), 2)
    with pytest.raises(ConfigError, match=r"num_vertices: .*found 0"):
        handful.subspace(LoRA(), 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_single_vertex_is_no_part_of_the_key_where_it_came_later(name):
    cls = method_class(name)
    spec = resolve(name, model="model")
    assert set(cls.added) <= {f.name for f in fields(cls)}
    if cls.added:
        old = spec.key("rows", "weights")
        assert spec.resolved()["method"]["num_vertices"] == 1
        assert resolve(name, model="model", overrides={"num_vertices": 2}).key("rows", "weights") != old


def test_an_error_in_a_forward_leaves_the_model_as_it_is(monkeypatch):
    backbone = tiny_backbone("bert")
    adapter = subspace(Bias(), 2).attach(backbone, TASK, generator=torch.Generator().manual_seed(0))

    def fails(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(adapter.inner, "features", fails)
    with pytest.raises(RuntimeError, match="out of memory"), torch.no_grad():
        adapter.features(None)
    assert all(table[name] is place.tensor for place in adapter._places for table, name in place.slots)
    adapter.detach()
