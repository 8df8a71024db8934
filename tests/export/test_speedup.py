"""A budget in measured time: models of the right shapes are timed, and the least budget that does is taken."""

import pytest
import torch

from handful.backbone.blocks import find_blocks
from handful.backbone.tiny import tiny_backbone
from handful.errors import ConfigError, DataError
from handful.evaluation.evaluate import encode_for
from handful.export import speedup
from handful.export.shrink import shrink
from handful.export.speedup import SpeedCurve, measure_curve, with_speedup
from handful.methods.gates.budget import plan_budget
from handful.runs.spec import resolve
from handful.testing import toy_task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def timed(monkeypatch):
    """Times in proportion to parameters; the list gets, of every model that was timed, how many its blocks have."""
    seen = []

    def take_turns(full, small, batch):
        sizes = [find_blocks(forward.__closure__[0].cell_contents).parameters() for forward in (full, small)]
        with torch.no_grad():
            assert small(batch).isfinite().all()
        seen.append(sizes[1])
        return [(sizes[0] * 1e-6, sizes[1] * 1e-6)] * 3

    monkeypatch.setattr(speedup, "in_turns", take_turns)
    return seen


def spec(method="prune", **overrides):
    return resolve(method, overrides=overrides)


def asked(backbone, value, given=None, **options):
    """The spec that a speed leads to."""
    return with_speedup(toy_task(), given or spec(), value, backbone=backbone, **options)[0]


def left_out(backbone, method, layout):
    """The share of the gateable parameters that an export of the method leaves out."""
    task = toy_task()
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(0))
    adapter.warm_start(encode_for(adapter, task.pool, task, 64), torch.Generator().manual_seed(0))
    merged = adapter.merged_model()
    adapter.detach()
    return shrink(merged, layout=layout).record.removed


@pytest.mark.parametrize(
    ("family", "groups"),
    [(family, "auto") for family in ("bert", "llama", "t5", "gpt2")]
    + [(family, "units-and-heads") for family in ("bert", "llama", "gpt2")],
)
def test_models_of_the_budgets_shapes_are_timed(family, groups, timed):
    backbone = tiny_backbone(family)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}

    def plan(target):
        return plan_budget(backbone, target, groups, 1)

    curve = measure_curve(backbone.model, plan, speedup._inputs(backbone.model, 2, length=8), "here")
    whole = find_blocks(backbone.model).parameters()
    assert timed == [round(whole * (1 - share)) for share in curve.removed]
    assert curve.removed == tuple(sorted(curve.removed)) and len(curve.removed) > 3
    assert curve.slope == pytest.approx(1) and curve.removed_for(2.0) == pytest.approx(0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "settings", "layout"),
    [
        ("bert", {}, "padded"),
        ("bert", {"groups": "units-and-heads"}, "ragged"),
        ("gpt2", {"multiple": 3}, "padded"),
        ("llama", {}, "padded"),
        ("t5", {}, "padded"),
    ],
)
@pytest.mark.parametrize("value", [1.1, 1.25])
def test_the_least_budget_is_chosen_of_which_an_export_leaves_out_enough(family, settings, layout, value, timed):
    backbone = tiny_backbone(family)
    method = asked(backbone, value, spec("prune", **settings)).method
    assert left_out(backbone, method, layout) >= 1 - 1 / value - 1e-9
    if method.target_sparsity > 0.02:
        less = plan_budget(backbone, method.target_sparsity - 0.01, method.groups, method.multiple)
        assert speedup._removed(less) < 1 - 1 / value


@pytest.mark.parametrize("importance", ["learned", "wanda"])
def test_what_is_chosen_is_said(importance, timed):
    given, messages = spec(importance=importance), []
    found = asked(tiny_backbone("bert"), 1.25, given, on_message=messages.append)
    choice = found.choices[0]
    assert (choice.name, choice.value) == ("method.target_sparsity", found.method.target_sparsity)
    assert "1.25 times as fast" in choice.reason and "tokens" in choice.reason and "thread" in choice.reason
    assert found.resolved()["method"] == given.resolved()["method"] | {"target_sparsity": choice.value}
    assert [message.partition(" ")[0] for message in messages] == ["measuring", "speed", "that"]
    assert "a dense export has one more layer" in messages[2]


def test_the_fastest_there_is_can_be_asked_for(timed):
    backbone = tiny_backbone("bert")
    most = plan_budget(backbone, 0.5, "auto", 16).largest_target
    assert speedup._least_target(lambda target: plan_budget(backbone, target, "auto", 16), most - 1e-6) == most


def test_what_was_measured_is_kept(timed, cache):
    backbone = tiny_backbone("bert")
    first = asked(backbone, 1.3)
    count = len(timed)
    assert count > 3
    assert asked(backbone, 1.3) == first and len(timed) == count
    asked(backbone, 1.5)
    assert len(timed) == count  # one measurement answers every question
    asked(backbone, 1.3, spec(groups="units-and-heads"))
    assert len(timed) > count
    for file in (cache / "speeds").iterdir():
        file.write_text('{"removed": ')
    count = len(timed)
    assert asked(backbone, 1.3) == first and len(timed) > count
    for file in (cache / "speeds").iterdir():
        assert file.suffix == ".json"
    (cache / "speeds").rename(cache / "away")
    (cache / "speeds").write_text("no folder")
    assert asked(backbone, 1.3) == first


def test_time_is_taken_as_falling_evenly_with_what_is_removed():
    curve = SpeedCurve((0.2, 0.4, 0.6), (0.84, 0.68, 0.3), "here")  # the last is disturbed
    assert curve.slope == pytest.approx(0.8)
    assert curve.removed_for(1.25) == pytest.approx(0.25) and curve.fastest == pytest.approx(1 / 0.52)
    assert str(curve) == "1.19 × without 20%, 1.47 × without 40%, 3.33 × without 60%"
    assert SpeedCurve((0.5,), (0.1,), "here").slope == 1  # time cannot fall faster than the parameters do


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spec("bias"), "expected a method with a budget, 'prune', found 'bias'"),
        (spec("fine-gates"), "expected a method with a budget, 'prune', found 'fine-gates'"),
        (spec("prune", multiple=100), "expected at most half of the 128 units"),
    ],
)
def test_methods_without_a_budget_and_wrong_ones_are_refused(given, message, timed):
    with pytest.raises(ConfigError, match=message):
        asked(tiny_backbone("bert"), 1.5, given)
    assert not timed


def test_models_and_rows_that_cannot_be_are_refused_before_anything_is_timed(timed):
    with pytest.raises(ConfigError, match="no exact export of a gated modernbert is known"):
        asked(tiny_backbone("modernbert"), 1.5)
    with pytest.raises(DataError, match="expected"):
        asked(tiny_backbone("bert"), 1.5, spec(shots=10**6))
    assert not timed


def test_a_speed_beyond_reach_is_refused_with_what_can_be_had(timed):
    backbone = tiny_backbone("bert")
    budget = plan_budget(backbone, 0.5, "auto", 16)
    most = speedup._removed(plan_budget(backbone, budget.largest_target, "auto", 16))
    assert most < budget.largest_target  # one unit is left in every block, which an export pads to 16
    with pytest.raises(ConfigError, match=f"50 cannot be reached: .* about {1 / (1 - most):.2f} times as fast"):
        asked(backbone, 50)


def test_a_measurement_that_saw_no_gain_is_not_kept(monkeypatch, cache):
    monkeypatch.setattr(speedup, "in_turns", lambda *arguments: [(1.0, 1.3)])
    with pytest.raises(ConfigError, match="cannot be reached") as refused:
        asked(tiny_backbone("bert"), 1.2)
    assert f"delete {cache / 'speeds'}" in refused.value.hint
    monkeypatch.setattr(speedup, "in_turns", lambda *arguments: [(1.0, 0.7)])
    asked(tiny_backbone("bert"), 1.2)
    (file,) = (cache / "speeds").iterdir()
    assert file.suffix == ".json"


def test_times_are_really_measured(cache):
    """On a tiny model they mean nothing, but there are some, of every shape: 16 to 112 of 128 units."""
    backbone = tiny_backbone("bert")

    def plan(target):
        return plan_budget(backbone, target, "auto", 16)

    curve = measure_curve(backbone.model, plan, speedup._inputs(backbone.model, 2, length=8), "here")
    assert len(curve.removed) == len(curve.times) == 7 and all(time > 0 for time in curve.times)
