"""The same skills and routing through stock PEFT's Poly and through ours give the same numbers, where PEFT is right.

PEFT divides gates by their sum plus 1e-12; we take the softmax of log σ, which is the same up to that.
"""

from dataclasses import replace

import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.backbone.trunk import recomputing
from handful.data.mixture import mix_tasks
from handful.data.task import Example, Task
from handful.evaluation.evaluate import encode_for
from handful.evaluation.text.generate import GenerationOptions
from handful.methods.poly.method import Poly
from handful.testing import toy_task

peft = pytest.importorskip("peft")

NAMES, SKILLS, RANK = ("first", "second", "third"), 4, 2
ROWS = (0, 30, 1, 55, 49)  # of tasks 0, 1, 0, 2, 2
NEAR = {"rtol": 0, "atol": 2e-8}
TARGETS = {"bert": ("query", "value"), "llama": ("q_proj", "v_proj", "o_proj"), "t5": ("q", "v")}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def task_of(purpose):
    if purpose == "features":
        return mix_tasks("many", [replace(toy_task(), name=name) for name in NAMES])
    rows = [Example("abcab"[: 1 + i % 5], references=("xyz"[i % 3] * 3,), source=f"r:{i}") for i in range(24)]
    return mix_tasks("many", [Task(name, "generation", (), "rouge-l", tuple(rows)) for name in NAMES])


def stock(model, family, splits):
    """PEFT's Poly on a model; skips where this pair of PEFT and transformers cannot make it."""
    config = peft.PolyConfig(
        r=RANK, n_tasks=len(NAMES), n_skills=SKILLS, n_splits=splits, target_modules=list(TARGETS[family])
    )
    try:
        return peft.get_peft_model(model, config).double().eval()
    except AttributeError as error:
        pytest.skip(f"PEFT {peft.__version__} cannot make Poly on {family} with this transformers: {error}")


def pair(family, splits, purpose="features"):
    """Our adapter and PEFT's on a model of its own, with the same random parameters, and a batch of three tasks."""
    task, backbone = task_of(purpose), tiny_backbone(family, purpose=purpose)
    backbone.model.double()
    method = Poly(num_skills=SKILLS, num_splits=splits, rank=RANK, alpha=1.0, target_modules=TARGETS[family])
    adapter = method.attach(backbone, task, generator=generator()).double().eval()
    other = tiny_backbone(family, purpose=purpose)
    theirs = stock(other.model, family, splits)
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        adapter.routing.logits.copy_(2 * torch.randn(adapter.routing.logits.shape, generator=generator(1)))
        for router, name in enumerate(adapter.skills.updating.modules):
            down, up = (adapter.skills.part(name, kind) for kind in ("down", "up"))
            up.copy_(0.3 * torch.randn(up.shape, generator=generator(router)))
            layer = modules[name]
            layer.poly_lora_A["default"].copy_(down)
            layer.poly_lora_B["default"].copy_(up)
            layer.poly_router["default"].module_logits.copy_(adapter.routing.logits[router].flatten(1))
    options = GenerationOptions(target_length=8) if purpose == "lm" else None
    encoded = encode_for(adapter, task.pool, task, 64, options)
    batch = encoded.batch(ROWS)
    ids = torch.tensor([NAMES.index(name) for name in batch.tasks])
    return adapter, other, theirs, batch, ids


def hidden(backbone, theirs, batch, ids):
    """What PEFT's model makes of a batch, up to where our head begins."""
    with theirs.base_model._manage_pre_hooks(ids):
        return backbone.features(batch.inputs)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(
    ("family", "purpose"), [("bert", "features"), ("llama", "features"), ("llama", "lm"), ("t5", "lm")]
)
def test_same_parameters_same_numbers_and_gradients_for_mixed_tasks(family, purpose, splits):
    adapter, other, theirs, batch, ids = pair(family, splits, purpose)
    found, expected = adapter.features(batch), hidden(other, theirs, batch, ids)
    with theirs.disable_adapter(), torch.no_grad():
        assert not torch.allclose(other.features(batch.inputs), found, atol=1e-3)
    torch.testing.assert_close(found, expected, **NEAR)
    upstream = torch.randn(found.shape, generator=generator(5), dtype=found.dtype)
    found.backward(upstream)
    expected.backward(upstream)
    modules = dict(theirs.base_model.model.named_modules())
    for router, name in enumerate(adapter.skills.updating.modules):
        layer = modules[name]
        for kind, parameter in (("down", layer.poly_lora_A), ("up", layer.poly_lora_B)):
            close(adapter.skills.part(name, kind).grad, parameter["default"].grad)
        routing = layer.poly_router["default"].module_logits.grad
        close(adapter.routing.logits.grad[router].flatten(1), routing)


def close(found, expected):
    assert expected.any()
    assert (found - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_same_tokens_are_written_greedily():
    adapter, other, theirs, _, _ = pair("llama", 2, "lm")
    task = task_of("lm")
    batch = encode_for(adapter, task.pool, task, 64, GenerationOptions(), to_write=True).batch(ROWS)
    ids = torch.tensor([NAMES.index(name) for name in batch.tasks])
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    found = adapter.generate(batch, **options)
    with theirs.base_model._manage_pre_hooks(ids):
        expected = other.generate(batch.inputs, **options)
    assert found.shape == (5, 8) and torch.equal(found, expected)


def test_what_peft_cannot_do_we_can():
    """Beams and gradient checkpointing: when PEFT learns it, compare there too."""
    adapter, other, theirs, batch, ids = pair("llama", 2, "lm")
    task = task_of("lm")
    to_write = encode_for(adapter, task.pool, task, 64, GenerationOptions(), to_write=True).batch(ROWS)
    with theirs.base_model._manage_pre_hooks(ids), pytest.raises(RuntimeError):
        other.generate(to_write.inputs, max_new_tokens=2, num_beams=2)
    assert len(adapter.generate(to_write, max_new_tokens=2, num_beams=2)) == 5
    with recomputing(other), pytest.raises(ValueError, match="task_ids"):
        hidden(other, theirs, batch, ids).sum().backward()
    with recomputing(adapter.backbone):
        adapter.features(batch).sum().backward()


def test_peft_switches_off_where_all_gates_are_shut_and_we_do_not():
    adapter, other, theirs, batch, ids = pair("bert", 1)
    with torch.no_grad():
        adapter.routing.logits.fill_(-40.0)
        for module in theirs.modules():
            if hasattr(module, "module_logits"):
                module.module_logits.fill_(-40.0)
        found, expected = adapter.features(batch), hidden(other, theirs, batch, ids)
        with theirs.disable_adapter():
            plain = other.features(batch.inputs)
    torch.testing.assert_close(expected, plain, rtol=0, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)
