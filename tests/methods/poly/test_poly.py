"""Adapters of poly: the checks of docs/methods/poly.md on tiny models, baselines, skills, adaptation, bad input."""

import re
from dataclasses import replace
from math import cos, pi

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, T5Config

from handful.backbone.blocks import inputs, matrix, outputs
from handful.backbone.load import Backbone
from handful.backbone.low_rank import mix_factors
from handful.backbone.tiny import tiny_backbone
from handful.backbone.trunk import recomputing
from handful.data.batching import Batch, encode_generation
from handful.data.mixture import mix_tasks
from handful.data.task import Example, Task
from handful.errors import ConfigError, DataError
from handful.evaluation.evaluate import encode_for
from handful.methods.head import frozen_features
from handful.methods.label_text import SHARPNESS, label_embeddings
from handful.methods.poly.alignment import first_batches, task_alignment
from handful.methods.poly.method import Poly
from handful.methods.poly.routing import FixedRouting
from handful.objectives import objective_of
from handful.testing import toy_task
from handful.training.config import TrainingConfig
from handful.training.fit import batch_loss, fit
from handful.training.optim import make_optimizer

NAMES = ("first", "second", "third")
EXACT = {"rtol": 0, "atol": 1e-10}
ROWS = (0, 30, 1, 55, 49)  # rows of tasks 0, 1, 0, 2, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def many(names=NAMES, rows=24):
    return mix_tasks("many", [replace(toy_task(rows=rows), name=name) for name in names])


def writing(names=NAMES):
    """Tasks whose records are to be written."""
    rows = [("ab", "xx"), ("abc", "yz"), ("cab", "zzz"), ("b", "xyx")]
    return mix_tasks(
        "writing",
        [
            Task(name, "generation", (), "rouge-l",
                 tuple(Example(a, references=(b + name[0],), source=f"{name}:{i}") for i, (a, b) in enumerate(rows)))
            for name in names
        ],
    )  # fmt: skip


def attach(backbone, task, *, random=True, **settings):
    """An adapter in float64 and eval mode, with random skills and routing logits N(0, 2²)."""
    backbone.model.double()
    rank = {"rank": 2} if settings.get("skills", "lora") == "lora" else {}
    adapter = Poly(**{"num_skills": 4, **rank, **settings}).attach(backbone, task, generator=generator())
    adapter.double().eval()
    if random:
        randomise(adapter)
    return adapter


@torch.no_grad()
def randomise(adapter):
    for name, parameter in adapter.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator(len(name)), dtype=torch.float64)
        if name.startswith("skills"):
            parameter.add_(0.2 * noise)
        elif name.startswith("routing"):
            parameter.copy_(2 * noise)
        elif name == "head.projection":
            parameter.add_(0.1 * noise)


def rows_of(adapter, task, indices=ROWS):
    return encode_for(adapter, task.pool, task, 64).batch(list(indices))


@torch.no_grad()
def scores(adapter, batch):
    adapter.eval()
    return adapter(batch)


def only(batch, rows):
    """Some rows of a batch."""
    inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(inputs, labels, batch.rows[rows], tuple(batch.tasks[row] for row in rows))


def rewrite(adapter, weight_of):
    """A copy of the model's state with `weight_of(name)` (O, D) added to each adapted matrix, by hand."""
    state = {name: tensor.clone() for name, tensor in adapter.backbone.model.state_dict().items()}
    for name, module in adapter.skills.updating.modules.items():
        delta = weight_of(name)
        state[f"{name}.weight"] += delta if matrix(module) is module.weight else delta.T
    return state


@torch.no_grad()
def plain_scores(adapter, state, batch):
    """Scores of the adapter's head on the plain model with these weights."""
    own = {name: tensor.clone() for name, tensor in adapter.backbone.model.state_dict().items()}
    adapter._clear()
    adapter.backbone.model.load_state_dict(state)
    features = adapter.backbone.features(batch.inputs)
    adapter.backbone.model.load_state_dict(own)
    return adapter.head(features, batch.tasks) if batch.tasks else adapter.head(features)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_check_1_one_skill_is_plain_lora(family, splits):
    task = many()
    adapter = attach(tiny_backbone(family), task, num_skills=1, num_splits=splits, alpha=1.0)
    batch = rows_of(adapter, task)

    def delta(name):
        down, up = (adapter.skills.part(name, kind) for kind in ("down", "up"))
        a = down[:, 0].flatten(0, 1)  # (D, r)
        b = up[:, 0].transpose(0, 1).flatten(1)  # (r, O)
        return (a @ b / 2).T

    torch.testing.assert_close(scores(adapter, batch), plain_scores(adapter, rewrite(adapter, delta), batch), **EXACT)


@pytest.mark.parametrize("splits", [2, 4, 8])
def test_check_2_tied_splits_are_poly_on_the_whole_factors(splits):
    task = many()
    split = attach(tiny_backbone("bert"), task, num_splits=splits)
    with torch.no_grad():
        split.routing.logits.copy_(split.routing.logits[:, :, :1].expand_as(split.routing.logits))
    batch = rows_of(split, task)
    expected = scores(split, batch)
    state = split.state_dict()
    for key, part in list(state.items()):
        if key.endswith("__down"):  # (q, S, D/q, r) → (1, S, D, r)
            state[key] = part.transpose(0, 1).flatten(1, 2)[None]
        elif key.endswith("__up"):  # (q, S, r, O/q) → (1, S, r, O)
            state[key] = part.permute(1, 2, 0, 3).flatten(2)[None]
    state["routing.logits"] = state["routing.logits"][:, :, :1]
    split.detach()
    whole = attach(tiny_backbone("bert"), task)
    whole.load_state_dict(state)
    torch.testing.assert_close(scores(whole, batch), expected, **EXACT)


@pytest.mark.parametrize("skills", ["lora", "ia3"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
def test_check_3_a_task_taken_out_and_merged_computes_what_the_routed_model_does(family, skills):
    task, backbone = many(), tiny_backbone(family)
    adapter = attach(backbone, task, skills=skills, num_splits=4, target_modules="all-linear")
    batch = rows_of(adapter, task, range(0, 72, 7))
    expected, taken = scores(adapter, batch), {name: adapter.taken(name) for name in NAMES}
    adapter.detach()
    for name, span in task.label_ranges.items():
        own = only(batch, [row for row, member in enumerate(batch.tasks) if member == name])
        single = attach(backbone, toy_task(), skills=skills, target_modules="all-linear", random=False)
        single.load_state_dict(taken[name])
        routed = expected[[row for row, member in enumerate(batch.tasks) if member == name]][:, list(span)]
        torch.testing.assert_close(scores(single, own), routed, **EXACT)
        merged = single.merged_model()
        single.detach()
        original, backbone.model = backbone.model, merged
        with torch.no_grad():
            found = single.head(backbone.features(own.inputs))
        backbone.model = original
        torch.testing.assert_close(found, routed, **EXACT)


@pytest.mark.parametrize("skills", ["lora", "ia3", "prefix"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
def test_check_4_rows_of_many_tasks_are_what_each_is_alone_and_in_any_order(family, skills):
    task = many()
    adapter = attach(tiny_backbone(family), task, skills=skills)
    batch = rows_of(adapter, task)
    together = scores(adapter, batch)
    alone = torch.cat([scores(adapter, rows_of(adapter, task, [row])) for row in ROWS])
    torch.testing.assert_close(together, alone, **EXACT)
    order = [3, 0, 4, 2, 1]
    shuffled = rows_of(adapter, task, [ROWS[place] for place in order])
    torch.testing.assert_close(scores(adapter, shuffled), together[order], **EXACT)
    other = only(batch, list(range(5)))
    other = replace(other, tasks=("second",) * 5)
    assert not torch.allclose(scores(adapter, other), together, atol=1e-3)  # the tasks do differ


def trimmed(rows, end):
    """Rows of tokens up to their end token."""
    found = []
    for row in rows.tolist():
        found.append(row[: row.index(end)] if end in row else row)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2},
                {"do_sample": False, "num_beams": 2, "use_cache": False}]
)  # fmt: skip
@pytest.mark.parametrize(("family", "skills"), [("t5", "lora"), ("llama", "lora"), ("llama", "ia3"), ("gpt2", "lora")])
def test_check_4_what_is_written_for_many_tasks_is_what_their_exported_models_write(family, skills, options):
    task, backbone = writing(), tiny_backbone(family, purpose="lm")
    adapter = attach(backbone, task, skills=skills, target_modules="all-linear")
    encoded = encode_generation(task.pool, backbone.tokenizer, 20, encoder_decoder=backbone.kind == "encoder-decoder")
    batch = encoded.batch([0, 4, 1, 8, 9])
    options = {"max_new_tokens": 6, **options}
    end, copies = backbone.tokenizer.eos_token_id, options.get("num_return_sequences", 1)
    found = trimmed(adapter.generate(batch, **options), end)
    taken = {name: adapter.taken(name) for name in NAMES}
    adapter.detach()
    for name in NAMES:
        rows = [row for row, member in enumerate(batch.tasks) if member == name]
        single = attach(backbone, task.members[0], skills=skills, target_modules="all-linear", random=False)
        single.load_state_dict(taken[name])
        merged = single.merged_model()
        single.detach()
        original, backbone.model = backbone.model, merged
        expected = trimmed(backbone.generate(only(batch, rows).inputs, **options), end)
        backbone.model = original
        assert [found[row * copies + copy] for row in rows for copy in range(copies)] == expected
    assert len({str(row) for row in found}) > 1


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_check_5_nothing_is_changed_at_the_start(family, splits):
    task = many()
    adapter = attach(tiny_backbone(family), task, num_splits=splits, num_skills=8, random=False)
    batch = rows_of(adapter, task)
    expected = plain_scores(adapter, adapter.backbone.model.state_dict(), batch)
    assert torch.equal(scores(adapter, batch), expected)
    assert adapter.routing.logits.abs().max() <= 1e-3
    for name, module in adapter.skills.updating.modules.items():
        bound = (3 * inputs(module)) ** -0.5  # of the whole width, whatever the splits
        assert 0.95 * bound < adapter.skills.part(name, "down").abs().max() <= bound
        assert not adapter.skills.part(name, "up").any()
    adapter.detach()
    rescaled = attach(tiny_backbone(family), task, skills="ia3", random=False)
    torch.testing.assert_close(scores(rescaled, batch), expected, **EXACT)


def test_check_6_noise_is_in_training_alone_and_each_rows_own_or_each_tasks():
    task = many()
    for noise, same in (("per-example", False), ("per-task", True)):
        adapter = attach(tiny_backbone("bert"), task, gate="gumbel", noise=noise)
        batch = rows_of(adapter, task, [0, 0, 30])
        draw = adapter.train().draw(batch, generator(1))
        first, again = adapter(batch, draw), adapter(batch, draw)
        assert torch.equal(first, again)  # drawn once a batch, not once a forward
        assert torch.allclose(first[0], first[1]) == same
        with torch.no_grad():
            assert not torch.allclose(adapter(batch, adapter.draw(batch, generator(2))), first)
        silent = adapter(batch, adapter.eval().draw(batch, generator(1)))
        torch.testing.assert_close(silent, scores(adapter, batch), **EXACT)
        torch.testing.assert_close(silent[0], silent[1], **EXACT)
        adapter.detach()


def test_check_6_a_single_task_has_noise_for_each_row_too():
    task = toy_task()
    adapter = attach(tiny_backbone("bert"), task, gate="gumbel", adapt="full")
    batch = rows_of(adapter, task, [0, 0, 1])
    draw = adapter.train().draw(batch, generator(1))
    whole = adapter(batch, draw)
    assert not torch.allclose(whole[0], whole[1])
    whole.sum().backward()
    assert adapter.routing.logits.grad.any()
    torch.testing.assert_close(adapter(rows_of(adapter, task, [0, 1]), draw[1:]), whole[1:], **EXACT)
    merged = adapter.merged_model()  # after a step of training: of no noise
    expected = adapter.merged_model()
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), expected.parameters(), strict=True))


def test_check_8_z_trains_its_routing_alone():
    backbone, task = tiny_backbone("bert"), many()
    inventory = attach(backbone, task, num_splits=4)
    saved, record = inventory.state_dict(), {"adapter": inventory.report()}
    skills = {name: part.clone() for name, part in saved.items() if name.startswith("skills")}
    inventory.detach()
    single = replace(toy_task(), name="new")
    adapter = attach(backbone, single, num_splits=4, adapt="z", random=False)
    initial = adapter.carry(saved, record)
    trained = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    assert set(trained) == {"routing.logits", "head.weight", "head.bias"}
    routers = 12  # four matrices in three layers
    assert trained["routing.logits"].numel() == routers * 4 * 4
    assert [group.name for group in adapter.parameter_groups()] == ["head", "routing"]
    rows = encode_for(adapter, single.pool, single, 64)
    config = TrainingConfig(epochs=1, learning_rate=1e-2)
    fit(adapter, rows, None, config, kind=single.kind, metric="accuracy", generator=generator(), initial=initial)
    for name, part in skills.items():
        assert torch.equal(adapter.state_dict()[name], part)
    moved = (adapter.routing.logits.detach() - initial["routing.logits"]).abs()
    assert moved.min() > 0
    weights = adapter.weights([0])
    assert weights.min() > 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(routers, 1, 4, dtype=weights.dtype))  # in the convex hull
    merged = adapter.merged_model()
    for router, name in enumerate(adapter.skills.updating.modules):
        down, up = mix_factors(adapter.skills.part(name, "down"), adapter.skills.part(name, "up"), weights[router])
        delta = matrix(merged.get_submodule(name)) - matrix(backbone.model.get_submodule(name))
        torch.testing.assert_close(delta, (8 * down[0] @ up[0]).T.detach(), rtol=1e-9, atol=1e-12)


def test_z_keeps_a_fresh_pooler_as_the_inventory_has_it():
    backbone = tiny_backbone("roberta", pooling="family")
    assert backbone.fresh
    inventory = attach(backbone, many())
    saved, record = inventory.state_dict(), {"adapter": inventory.report()}
    inventory.detach()
    adapter = attach(backbone, replace(toy_task(), name="new"), adapt="z", random=False)
    trained = {name for name, parameter in adapter.named_parameters() if parameter.requires_grad}
    assert trained == {"routing.logits", "head.weight", "head.bias"}
    assert {name for name in adapter.carry(saved, record) if name.startswith("pooler.")}
    without = {name: part for name, part in saved.items() if not name.startswith("pooler.")}
    with pytest.raises(ConfigError, match="but what it starts from has none"):
        adapter.carry(without, record)


def test_check_8_mu_starts_as_the_average_of_skills():
    backbone, task = tiny_backbone("bert"), many()
    inventory = attach(backbone, task, num_splits=4, unknown_task="average")
    saved, record = inventory.state_dict(), {"adapter": inventory.report()}
    batch = rows_of(inventory, task)
    with torch.no_grad():
        expected = inventory.features(replace(batch, tasks=("unknown",) * 5))
    inventory.detach()
    adapter = attach(backbone, replace(toy_task(), name="new"), num_splits=4, random=False)
    with torch.no_grad():
        for name, value in adapter.carry(saved, record).items():
            adapter.get_parameter(name).copy_(value)
        torch.testing.assert_close(adapter.features(batch), expected, **EXACT)
    assert sum(p.numel() for p in adapter.skills.parameters()) == 12 * 2 * (64 + 64)


def test_check_8_training_the_average_is_training_all_copies_at_uniform_weights_with_adam():
    backbone, task = tiny_backbone("bert"), toy_task()
    copies = attach(backbone, task, adapt="full", target_modules=("query",))
    copies.routing = FixedRouting(torch.full((1, 4), 0.25, dtype=torch.float64), 3, 1)
    batch = rows_of(copies, task, range(4))
    start = copies.skills.collapsed(dict(copies.skills.named_parameters()))
    found = [trajectory(copies, batch)]
    copies.detach()
    single = attach(backbone, task, adapt="mu", target_modules=("query",), random=False)  # the same head
    with torch.no_grad():
        for name, part in start.items():
            single.skills.get_parameter(name).copy_(part)
    found.append(trajectory(single, batch))
    difference = (found[0] - found[1]).abs().max() / found[0].abs().max()
    assert 0 < difference < 1e-4


def trajectory(adapter, batch):
    """Scores after 50 steps of Adam."""
    trained = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(adapter(batch), batch.labels).backward()
        optimizer.step()
    return scores(adapter, batch)


@pytest.mark.parametrize("gate", ["sigmoid", "gumbel"])
@pytest.mark.parametrize(("family", "purpose"), [("bert", "features"), ("llama", "features"), ("t5", "lm")])
def test_check_10_recomputing_changes_no_bit(family, purpose, gate):
    task, backbone = writing() if purpose == "lm" else many(), tiny_backbone(family, purpose=purpose)
    adapter = attach(backbone, task, gate=gate, num_splits=2, target_modules="all-linear").train()
    if purpose == "lm":
        encoded = encode_generation(task.pool, backbone.tokenizer, 20, encoder_decoder=True, target_length=8)
    else:
        encoded = encode_for(adapter, task.pool, task, 64)
    batch = encoded.batch(range(0, len(encoded), 3))

    def step():
        adapter.zero_grad()
        loss = batch_loss(adapter(batch, adapter.draw(batch, generator(1))), batch, adapter, task.kind)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in adapter.parameters())]

    expected = step()
    with recomputing(backbone):
        found = step()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(gradient.any() for gradient in expected)


@pytest.mark.parametrize("skills", ["lora", "ia3", "prefix"])
def test_check_11_another_task_leaves_the_logits_of_old_ones_bit_for_bit(skills):
    backbone, task = tiny_backbone("bert"), many()
    old = attach(backbone, task, skills=skills)
    batch = rows_of(old, task)
    expected, saved, record = scores(old, batch), old.state_dict(), {"adapter": old.report()}
    old.detach()
    wider = many(("third", "another", "first", "second"))  # in another order
    new = attach(backbone, wider, skills=skills, random=False)
    with torch.no_grad():
        for name, value in new.carry(saved, record).items():
            new.get_parameter(name).copy_(value)
    found = scores(new, batch)
    for name, span in task.label_ranges.items():
        rows = [row for row, member in enumerate(batch.tasks) if member == name]
        assert torch.equal(found[rows][:, list(wider.label_ranges[name])], expected[rows][:, list(span)])
    row = new.routing.logits[:, new.tasks["another"]]
    assert row.abs().max() <= 1e-3  # a fresh one


@pytest.mark.parametrize("adapt", ["z", "full"])
def test_check_11_a_single_task_takes_the_row_of_its_name_or_a_fresh_one(adapt):
    backbone, task = tiny_backbone("bert"), many()
    old = attach(backbone, task)
    saved, record = old.state_dict(), {"adapter": old.report()}
    old.detach()
    for name, known in (("second", True), ("new", False)):
        adapter = attach(backbone, replace(toy_task(), name=name), adapt=adapt, random=False)
        found = adapter.carry(saved, record)["routing.logits"][:, 0]
        assert torch.equal(found, saved["routing.logits"][:, 1]) == known
        assert known or found.abs().max() <= 1e-3
        adapter.detach()


@pytest.mark.parametrize(
    ("labels", "start", "from_texts"),
    [
        (("not_good", "good"), "label-text", True),
        (("not_good", "good"), "probe", False),
        (("1", "2"), "label-text", False),
    ],
)
def test_a_new_task_starts_from_the_texts_of_its_labels(labels, start, from_texts):
    backbone, task = tiny_backbone("bert"), many()
    old = attach(backbone, task)
    saved, record = old.state_dict(), {"adapter": old.report()}
    old.detach()
    adapter = attach(backbone, replace(toy_task(), name="new", labels=labels), head_start=start)
    found = adapter.carry(saved, record)
    assert ("head.weight" in found) == from_texts
    if from_texts:
        texts = label_embeddings(backbone, labels).to(saved["head.projection"])
        torch.testing.assert_close(found["head.weight"][0], texts @ saved["head.projection"], **EXACT)


def test_check_12_a_shared_router_has_the_sum_of_the_gradients_of_its_own():
    task, backbone = many(), tiny_backbone("bert")
    fine = attach(backbone, task)
    with torch.no_grad():
        fine.routing.logits.copy_(fine.routing.logits[:1].expand_as(fine.routing.logits))
    batch, saved = rows_of(fine, task), fine.state_dict()
    expected = gradient(fine, batch)
    fine.detach()
    for sharing, routers in (("coarse", 1), ("block", 3)):
        coarse = attach(backbone, task, sharing=sharing)
        assert coarse.routing.logits.shape == (routers, 3, 1, 4)
        coarse.load_state_dict(saved | {"routing.logits": saved["routing.logits"][:routers]})
        summed = expected.unflatten(0, (routers, -1)).sum(1)
        torch.testing.assert_close(gradient(coarse, batch), summed, **EXACT)
        assert len(list(coarse.routing.parameters())) == 1
        coarse.detach()


def gradient(adapter, batch):
    nn.functional.cross_entropy(adapter(batch), batch.labels).backward()
    return adapter.routing.logits.grad


def test_check_13_routing_is_a_hundred_times_as_fast_and_does_not_decay():
    adapter = attach(tiny_backbone("bert"), many())
    optimizer = make_optimizer(adapter, TrainingConfig(learning_rate=1e-3, head_learning_rate=2e-3, weight_decay=0.01))
    rates = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert rates == [(pytest.approx(1e-3), 0.01), (pytest.approx(2e-3), 0.01), (pytest.approx(0.1), 0.0)]
    assert optimizer.param_groups[2]["params"] == [adapter.routing.logits]
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in adapter.parameters())


def test_of_a_hypernetwork_only_what_a_task_has_of_its_own_is_a_hundred_times_as_fast():
    adapter = attach(tiny_backbone("bert"), many(), routing="hypernetwork")
    optimizer = make_optimizer(adapter, TrainingConfig(learning_rate=1e-3, weight_decay=0.01))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == {id(p) for p in adapter.parameters()}
    routing = adapter.routing
    rates = {name: groups[id(p)]["lr"] for name, p in routing.named_parameters()}
    assert rates == {"embeddings": pytest.approx(0.1), "inner": 1e-3, "outer": 1e-3}
    decays = {name: groups[id(p)]["weight_decay"] for name, p in routing.named_parameters()}
    assert decays == {"embeddings": 0, "inner": 0.01, "outer": 0.01}


def test_check_15_parameters_of_the_peft_notebook_are_counted():
    config = T5Config(
        vocab_size=32, d_model=2048, d_kv=64, num_heads=32, d_ff=16, num_layers=24, decoder_start_token_id=0
    )
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    tokenizer = tiny_backbone("t5", purpose="lm").tokenizer
    backbone = Backbone(model, tokenizer, name="flan-t5-xl", kind="encoder-decoder", pooling=None)
    method = Poly(rank=8, num_skills=2, num_splits=4, target_modules=("q", "v"))
    task = writing(("a", "b", "c", "d"))
    adapter = method.attach(backbone, task, generator=generator())
    assert len(adapter.skills.updating.modules) == 144
    assert sum(p.numel() for p in adapter.parameters()) == 9_441_792


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"routing": "shared"}, [[1.0], [1], [1]]),
        ({"routing": "private"}, [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ({"routing": "expert", "experts": (("second",), ("third", "first"))}, [[0.0, 1], [1, 0], [0, 1]]),
    ],
)
def test_baselines_are_weights_that_are_not_learned(settings, weights):
    task = many()
    adapter = attach(tiny_backbone("bert"), task, num_splits=2, **settings)
    assert [group.name for group in adapter.parameter_groups()] == ["adapter", "head"]
    found = adapter.weights([0, 1, 2])
    assert torch.equal(found, torch.tensor(weights).double()[None, :, None].expand(12, 3, 2, -1))
    batch = rows_of(adapter, task)
    torch.testing.assert_close(
        scores(adapter, batch), torch.cat([scores(adapter, rows_of(adapter, task, [row])) for row in ROWS]), **EXACT
    )


def test_a_private_task_trains_its_skill_alone():
    task = many()
    adapter = attach(tiny_backbone("bert"), task, routing="private")
    batch = rows_of(adapter, task, [0, 1, 50])  # nothing of the second task
    nn.functional.cross_entropy(adapter(batch), batch.labels).backward()
    for parameter in adapter.skills.parameters():
        assert [bool(skill.any()) for skill in parameter.grad[0]] == [True, False, True]


def test_a_hypernetwork_makes_the_factors_from_the_task():
    task = many()
    adapter = attach(tiny_backbone("bert"), task, routing="hypernetwork")
    batch = rows_of(adapter, task, [30])
    weights = adapter.weights([1])

    def delta(name):
        router = adapter.skills._router[name]
        down, up = (adapter.skills.part(name, kind)[0] for kind in ("down", "up"))
        e, net = adapter.routing.embeddings[router, 1], adapter.routing
        w = torch.relu(e @ net.inner[router]) @ net.outer[router]
        torch.testing.assert_close(weights[router, 0, 0], w)
        a = torch.einsum("s,sdr->dr", w, down)
        return (8 * a @ torch.einsum("s,sro->ro", w, up)).T.detach()

    torch.testing.assert_close(scores(adapter, batch), plain_scores(adapter, rewrite(adapter, delta), batch), **EXACT)


def test_orthogonality_is_the_formula_by_hand():
    adapter = attach(tiny_backbone("bert"), many(), num_splits=2, orthogonality_weight=0.5)
    terms = []
    for key, part in adapter.skills.parts.items():
        splits, skills = part.shape[:2]
        for h in range(splits):
            for i in range(2):  # rank
                vectors = [part[h, s, :, i] if key.endswith("down") else part[h, s, i] for s in range(skills)]
                squares = [
                    float(nn.functional.cosine_similarity(a, b, dim=0).detach()) ** 2 for a in vectors for b in vectors
                ]
                terms.append(sum(squares) / skills**2 - 1 / skills)
    assert adapter.penalty().item() == pytest.approx(0.5 * sum(terms) / len(terms), rel=1e-6)


def test_weights_are_led_to_the_average_in_the_last_share_of_training():
    task = many()
    adapter = attach(tiny_backbone("bert"), task, uniform_share=0.4)
    adapter.begin_training(10, encode_for(adapter, task.pool, task, 64))
    routed = adapter.weights([0, 1, 2])
    batch = rows_of(adapter, task)
    name, seen = next(iter(adapter.skills.updating.modules)), []
    for step in (0, 6, 8, 10):
        adapter.after_step(step)
        seen.append(scores(adapter, batch))
        lead = cos(pi / 2 * max(0.0, (step / 10 - 0.6) / 0.4))
        found = adapter.skills.updating.updates[name].weights
        torch.testing.assert_close(found, (lead * routed + (1 - lead) / 4)[0], **EXACT)
    torch.testing.assert_close(seen[0], seen[1], **EXACT)
    assert not torch.allclose(seen[1], seen[2]) and not torch.allclose(seen[2], seen[3])
    state = adapter.taken("first")
    adapter.detach()
    single = attach(adapter.backbone, toy_task(), random=False)
    single.load_state_dict(state)
    own = only(batch, [0, 2])
    torch.testing.assert_close(scores(single, own), seen[3][[0, 2]][:, :2], **EXACT)


def test_an_unknown_task_is_refused_or_has_the_average_skill():
    backbone, task = tiny_backbone("llama", purpose="lm"), writing()
    batch = encode_generation(task.pool, backbone.tokenizer, 20, encoder_decoder=False).batch([0, 4])
    refusing = attach(backbone, task)
    for names, found in ((("first", "secnd"), "no task called 'secnd'"), ((), "a row without the name of its task")):
        with pytest.raises(DataError, match=f"expected rows of 3 tasks, found {found}") as error:
            refusing.generate(replace(batch, tasks=names), max_new_tokens=2)
        assert "known: first, second, third" in str(error.value)
    refusing.detach()
    averaging = attach(backbone, task, unknown_task="average")
    weights = averaging.weights(averaging._numbers(("second", "elsewhere")))
    torch.testing.assert_close(weights[:, 1], torch.full_like(weights[:, 1], 0.25))
    torch.testing.assert_close(weights[:, :1], averaging.weights([1]))
    averaging.generate(replace(batch, tasks=()), max_new_tokens=2)
    average = averaging.skills.collapsed(dict(averaging.skills.named_parameters()))
    state = averaging.taken("elsewhere")
    assert all(torch.allclose(state[f"skills.{key}"], part.detach()) for key, part in average.items())


def test_scores_of_an_unknown_task_are_refused():
    adapter = attach(tiny_backbone("bert"), many(), unknown_task="average")
    batch = replace(rows_of(adapter, many()), tasks=("first",) * 4 + ("elsewhere",))
    with pytest.raises(DataError, match="one of 3 tasks, found 'elsewhere'"):
        adapter(batch)


def test_what_cannot_be_is_said_before_training():
    task = many()
    bert = tiny_backbone("bert")
    reasons = Poly(num_splits=48).check(bert, task)
    assert reasons == ["num_splits: 48 does not divide the layers' widths [64]; these do: 1, 2, 4, 8, 16, 32, 64"]
    assert not Poly(num_splits=64).check(bert, task)
    reasons = Poly(routing="expert", experts=(("first", "frist"), ("second", "first"))).check(bert, task)
    assert len(reasons) == 3 and "no task is called 'frist'" in reasons[0]
    deberta = tiny_backbone("deberta-v2")
    assert "also read positions" in Poly().check(deberta, task)[0]
    assert not Poly().check(deberta, toy_task())
    assert not Poly(target_modules=("value_proj", "output.dense")).check(deberta, task)
    for settings in ({"skills": "prefix", "num_splits": 2}, {"routing": "expert"}, {"experts": (("a",),)}):
        with pytest.raises(ConfigError):
            Poly(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skills": "prefix", "rank": 4}, "rank = 4: skills = 'prefix' has none"),
        ({"skills": "ia3", "alpha": 2.0}, "alpha = 2.0: skills = 'ia3' has none"),
        ({"skills": "prefix", "target_modules": ("q",)}, "prefixes are on every layer"),
        ({"prefix_length": 3}, "prefix_length = 3: goes with skills = 'prefix'"),
        ({"routing": "shared", "gate": "straight-through"}, "routing = 'shared' has no gates"),
        ({"routing": "private", "sparsity_weight": 0.1}, "sparsity_weight = 0.1: routing = 'private' has no gates"),
        ({"noise": "per-task"}, "goes with gate = 'gumbel'"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Poly(**settings)
    of_preset = Poly.presets["polytropon"].settings  # which nobody has given
    Poly.from_settings({**of_preset, "skills": "prefix", "routing": "shared"})


@pytest.mark.parametrize(
    ("settings", "single", "many_tasks"),
    [
        ({"adapt": "z"}, "", "adapt = 'z': is for a single task"),
        ({"adapt": "full", "gate": "gumbel", "sparsity_weight": 0.1}, "", ""),
        ({"head_start": "probe"}, "", "head_start = 'probe': is for a single task"),
        ({"uniform_share": 0.1}, "uniform_share = 0.1: goes with many tasks", ""),
        ({"mixing": "uniform"}, "mixing = 'uniform': goes with many tasks", ""),
        ({"routing": "private"}, "routing = 'private': goes with many tasks", ""),
        ({"routing": "hypernetwork"}, "routing = 'hypernetwork': adapt = 'mu' trains one skill", ""),
        ({"sparsity_weight": 0.1}, "sparsity_weight = 0.1: adapt = 'mu' trains one skill", ""),
        ({"routing": "shared", "num_skills": 3, "rank": 4, "sharing": "coarse"}, "", ""),  # as inventories hand down
        ({"gate": "gumbel", "num_splits": 2}, "", ""),
    ],
)
def test_settings_of_many_tasks_are_refused_for_one_and_the_other_way_round(settings, single, many_tasks):
    for task, message in ((toy_task(), single), (many(), many_tasks)):
        reasons = Poly(**settings).check(tiny_backbone("bert"), task)
        assert len(reasons) == bool(message) and all(message in reason for reason in reasons)


def test_a_poolers_fresh_layers_have_no_skills():
    """They are trained as they are, and an export has them whole."""
    backbone = tiny_backbone("roberta", pooling="family")
    matrices = Poly(target_modules="all-linear").matrices(backbone)
    assert len(matrices) == 18 and not {name.rpartition(".")[0] for name in backbone.fresh} & set(matrices)


@pytest.mark.parametrize(
    ("sharing", "routers"),
    [
        ("fine", ("encoder.layer.{}", "decoder.layer.{}")),
        ("layer", ("encoder.layer.{}", "decoder.layer.{}")),
        ("block", ("encoder.layer.{}", "decoder.layer.{}")),
        ("coder", ("encoder", "decoder")),
        ("coarse", ("model",)),
    ],
)
def test_prefixes_share_routers_as_asked(sharing, routers):
    adapter = attach(tiny_backbone("t5", purpose="lm"), writing(), skills="prefix", sharing=sharing)
    expected = {name.format(layer) for name in routers for layer in range(adapter.backbone.num_layers)}
    assert set(adapter.skills.routers) == expected
    assert len(adapter.routing.logits) == len(expected)


def test_mixing_is_kept_without_gradients_and_never_stale():
    task = many()
    adapter = attach(tiny_backbone("bert"), task)
    batch = rows_of(adapter, task)
    first = scores(adapter, batch)
    update = next(iter(adapter.skills.updating.updates.values()))
    assert torch.equal(scores(adapter, batch), first)
    assert next(iter(adapter.skills.updating.updates.values())) is update
    randomise(adapter)
    with torch.no_grad():
        adapter.routing.logits.add_(torch.arange(4.0))
    changed = scores(adapter, batch)
    adapter._known = None
    assert torch.equal(scores(adapter, batch), changed) and not torch.allclose(changed, first)
    adapter.float()
    adapter.backbone.model.float()
    assert scores(adapter, batch).dtype == torch.float32


@pytest.mark.parametrize("noise", ["per-example", "per-task"])
def test_noise_is_not_kept_from_one_batch_to_the_next(noise):
    task = many()
    adapter = attach(tiny_backbone("bert"), task, gate="gumbel", noise=noise)
    batch = rows_of(adapter, task)
    expected = scores(adapter, batch)
    with torch.no_grad():
        first = adapter(batch, adapter.train().draw(batch, generator(1)))
        assert not torch.allclose(adapter(batch, adapter.draw(batch, generator(2))), first)
    assert torch.equal(scores(adapter, batch), expected)


@pytest.mark.parametrize("task", [many(rows=12), writing()], ids=["labels", "writing"])
@pytest.mark.parametrize("skills", ["lora", "ia3", "prefix"])
def test_many_tasks_are_learned(task, skills):
    lm = task.kind == "generation"
    backbone = tiny_backbone("t5" if lm else "bert", purpose="lm" if lm else "features")
    method = Poly(skills=skills, num_skills=2, gate="gumbel")
    adapter = method.attach(backbone, task, generator=generator())
    if lm:
        encoded = encode_generation(task.pool, backbone.tokenizer, 20, encoder_decoder=True, target_length=8)
    else:
        encoded = encode_for(adapter, task.pool, task, 64)
    losses = []
    for epochs in (0, 6):
        config = TrainingConfig(epochs=epochs, learning_rate=1e-2, batch_size=8)
        fit(adapter, encoded, None, config, kind=task.kind, metric=task.metric, generator=generator())
        batch = encoded.batch(range(len(encoded)))
        with torch.no_grad():
            losses.append(float(batch_loss(adapter(batch), batch, adapter, task.kind)))
    assert losses[1] < 0.9 * losses[0]


class Linear(nn.Module):
    """Scores x @ skills of one batch, to take gradients by hand."""

    objective = objective_of("classification")

    def __init__(self):
        super().__init__()
        self.skills = nn.ParameterDict({"part": nn.Parameter(torch.zeros(2, 2)), "unused": nn.Parameter(torch.ones(3))})
        self.head = nn.Parameter(torch.ones(2))

    def forward(self, batch):
        return batch.inputs["x"] @ self.skills["part"] + 0 * self.head


def one_row(x, label, task):
    return Batch({"x": torch.tensor([x])}, torch.tensor([label]), torch.arange(1), (task,))


def test_alignment_is_the_cosine_of_gradients():
    adapter, first = Linear(), one_row([1.0, 0.0], 0, "first")
    # at zero the gradient of a row is x (softmax − target)ᵀ = x (∓½, ±½)
    assert task_alignment(adapter, [first, one_row([2.0, 0.0], 0, "second")]) == pytest.approx(1)
    assert task_alignment(adapter, [first, one_row([1.0, 0.0], 1, "second")]) == pytest.approx(-1)
    assert task_alignment(adapter, [first, one_row([0.0, 3.0], 0, "second")]) == pytest.approx(0)
    diagonal = one_row([1.0, 1.0], 0, "second")
    assert task_alignment(adapter, [first, diagonal]) == pytest.approx(0.5**0.5)
    opposite = one_row([1.0, 0.0], 1, "third")  # cosines √½, −1 and −√½
    assert task_alignment(adapter, [first, diagonal, opposite]) == pytest.approx(-1 / 3)
    assert task_alignment(adapter, [first, one_row([0.0, 0.0], 0, "second")]) == 0


def test_alignment_is_measured_on_the_first_rows_of_each_task():
    task = many(rows=12)
    adapter = attach(tiny_backbone("bert"), task, gate="gumbel")
    rows = encode_for(adapter, task.pool, task, 64)
    assert [len(batch) for batch in first_batches(rows, NAMES)] == [8, 8, 8]
    assert [batch.tasks[0] for batch in first_batches(rows, (*NAMES, "empty"))] == list(NAMES)
    assert "alignment" not in adapter.report() | adapter.diagnostics()
    adapter.begin_training(3, rows)
    with torch.no_grad():
        found = adapter.report()["alignment"]
    assert -1 <= found <= 1 and adapter.diagnostics()["alignment"] == found
    gradients = []
    for batch in first_batches(rows, NAMES):
        nn.functional.cross_entropy(adapter(batch), batch.labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.skills.parameters()]))
        adapter.zero_grad()
    cosines = [torch.cosine_similarity(gradients[a], gradients[b], dim=0) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found == pytest.approx(float(sum(cosines)) / 3, abs=1e-6)  # the loss is in float32


def test_a_class_weighs_features_by_the_projection_of_its_labels_text():
    task, backbone = many(), tiny_backbone("bert")
    adapter = attach(backbone, task, random=False)
    head, rows = adapter.head, encode_for(adapter, task.pool, task, 64)
    adapter._clear()
    features = frozen_features(backbone, rows).double()
    adapter.warm_start(rows, generator())
    texts = label_embeddings(backbone, [label for member in task.members for label in member.labels]).double()
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(6, dtype=torch.float64))
    names = [row.task for row in task.pool]
    found = head(features, names)
    expected = SHARPNESS * features @ texts.T / features.norm(dim=1).mean()  # the cosine, for features of mean length
    spans = {name: list(span) for name, span in task.label_ranges.items()}
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row, spans[name]], expected[row, spans[name]], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        head.projection.add_(torch.randn(head.projection.shape, generator=generator(), dtype=torch.float64))
    for name, span in spans.items():
        mine = [row for row, other in enumerate(names) if other == name]
        weights = torch.stack([head.projection.T @ head.labels[c] for c in span])  # W_c = Pᵀ e_c
        torch.testing.assert_close(head(features, names)[mine][:, span], features[mine] @ weights.T, **EXACT)


def test_labels_are_scored_in_bfloat16_too():
    task, backbone = many(), tiny_backbone("bert")
    adapter = Poly(rank=2).attach(backbone, task, generator=generator())
    rows = encode_for(adapter, task.pool, task, 64)
    config = TrainingConfig(epochs=1, precision="bf16")
    result = fit(adapter, rows, None, config, kind=task.kind, metric="accuracy", generator=generator())
    assert result.stopped is None and adapter.routing.logits.dtype == torch.float32


def test_a_bfloat16_base_has_routing_and_skills_in_float32():
    backbone, task = tiny_backbone("llama", purpose="lm"), writing()
    backbone.model.bfloat16()
    adapter = Poly(rank=2, num_skills=4).attach(backbone, task, generator=generator()).train()
    encoded = encode_generation(task.pool, backbone.tokenizer, 20, encoder_decoder=False, target_length=8)
    batch = encoded.batch(range(0, 12, 2))
    found = adapter(batch)
    assert found.dtype == torch.bfloat16
    batch_loss(found, batch, adapter, task.kind).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=10.0)
    optimizer.step()
    adapter.eval()
    to_write = encode_generation(task.pool, backbone.tokenizer, 20, encoder_decoder=False).batch([0, 4, 8])
    assert adapter.generate(to_write, max_new_tokens=3, num_beams=2).shape[0] == 3


def test_prefixes_of_a_layer_are_mixed_by_its_router():
    task, backbone = many(), tiny_backbone("bert")
    adapter = attach(backbone, task, skills="prefix", prefix_length=3)
    assert adapter.skills.routers == ("layer.0", "layer.1", "layer.2")
    weights = adapter.weights([2, 0])
    found, parts = adapter.skills.mixed(weights), adapter.skills.parts()
    for layer in range(3):
        for place in range(2):
            expected = sum(weights[layer, place, 0, s] * parts[s, layer] for s in range(4))
            torch.testing.assert_close(found[layer, place], expected)
    batch = rows_of(adapter, task, range(0, 72, 9))
    expected, state = scores(adapter, batch), adapter.taken("second")
    adapter.detach()
    single = attach(backbone, toy_task(), skills="prefix", prefix_length=3, random=False)
    single.load_state_dict(state)
    rows = [row for row, name in enumerate(batch.tasks) if name == "second"]
    span = task.label_ranges["second"]
    torch.testing.assert_close(scores(single, only(batch, rows)), expected[rows][:, list(span)], **EXACT)


def test_widths_that_differ_are_split_each_by_itself():
    task, backbone = many(), tiny_backbone("llama")
    adapter = attach(backbone, task, num_splits=8, target_modules="all-linear")
    for name, module in adapter.skills.updating.modules.items():
        assert adapter.skills.part(name, "down").shape == (8, 4, inputs(module) // 8, 2)
        assert adapter.skills.part(name, "up").shape == (8, 4, 2, outputs(module) // 8)
