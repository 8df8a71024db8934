"""A budget in measured time: models of the right shapes are timed, and the least budget that does is taken."""

import json

import pytest
import torch

from handful.backbone.blocks import find_blocks
from handful.backbone.tiny import tiny_backbone
from handful.errors import ConfigError
from handful.export import speedup
from handful.export.speedup import SpeedCurve, check_speedup, measure_curve, with_speedup
from handful.methods.group_gates import plan_budget
from handful.runs.spec import resolve


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def timed(monkeypatch):
    """Times in proportion to parameters; the list gets, of every model that was timed, how many its blocks have."""
    seen = []

    def take_turns(full, small, batch, clock):
        sizes = [find_blocks(forward.__closure__[0].cell_contents).parameters() for forward in (full, small)]
        with torch.no_grad():
            assert small(batch).isfinite().all()
        seen.append(sizes[1])
        return [(sizes[0] * 1e-6, sizes[1] * 1e-6)] * 3

    monkeypatch.setattr(speedup, "in_turns", take_turns)
    return seen


def spec(method="fine-gates", **overrides):
    return resolve(method, overrides=overrides)


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
    assert curve.removed == tuple(sorted(curve.removed)) and curve.removed[-1] == plan(0.5).largest_target
    assert curve.slope == pytest.approx(1) and curve.removed_for(2.0) == pytest.approx(0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize("method", ["fine-gates", "prune"])
def test_the_least_budget_that_does_is_chosen_and_said(method, timed):
    backbone, messages = tiny_backbone("bert"), []
    given = spec(method)
    found = with_speedup(given, backbone, 1.25, messages.append)
    budget = plan_budget(backbone, found.method.target_sparsity, "auto", 16)
    assert budget.removed(budget.closing) >= 0.2
    less = plan_budget(backbone, found.method.target_sparsity - 0.01, "auto", 16)
    assert less.removed(less.closing) < 0.2
    choice = found.choices[0]
    assert (choice.name, choice.value) == ("method.target_sparsity", found.method.target_sparsity)
    assert "1.25 times as fast" in choice.reason and "tokens" in choice.reason and "thread" in choice.reason
    assert found.resolved()["method"] == given.resolved()["method"] | {"target_sparsity": choice.value}
    assert [message.partition(" ")[0] for message in messages] == ["measuring", "speed"]


def test_what_was_measured_is_kept(timed, cache):
    backbone = tiny_backbone("bert")
    first = with_speedup(spec(), backbone, 1.3)
    count = len(timed)
    assert count > 3
    assert with_speedup(spec(), backbone, 1.3) == first and len(timed) == count
    with_speedup(spec(), backbone, 1.5)
    assert len(timed) == count  # one measurement answers every question
    with_speedup(spec(groups="units-and-heads"), backbone, 1.3)
    assert len(timed) > count
    for file in (cache / "speeds").iterdir():
        file.write_text('{"removed": ')
    count = len(timed)
    assert with_speedup(spec(), backbone, 1.3) == first and len(timed) > count
    for file in (cache / "speeds").iterdir():
        assert file.suffix == ".json"
    (cache / "speeds").rename(cache / "away")
    (cache / "speeds").write_text("no folder")
    assert with_speedup(spec(), backbone, 1.3) == first


def test_time_is_taken_as_falling_evenly_with_what_is_removed():
    curve = SpeedCurve((0.2, 0.4, 0.6), (0.84, 0.68, 0.3), "here")  # the last is disturbed
    assert curve.slope == pytest.approx(0.8)
    assert curve.removed_for(1.25) == pytest.approx(0.25) and curve.fastest == pytest.approx(1 / 0.52)
    assert str(curve) == "1.19 × without 20%, 1.47 × without 40%, 3.33 × without 60%"
    assert SpeedCurve((0.5,), (0.1,), "here").slope == 1  # time cannot fall faster than the parameters do


@pytest.mark.parametrize(
    ("given", "value", "message", "hint"),
    [
        (spec("bias"), 1.5, "--speedup: expected a method with a budget, fine-gates", "--method"),
        (spec(mode="faithful"), 1.5, "found 'fine-gates' in mode 'faithful'", "--method"),
        (spec(), 1.0, "--speedup: expected more than 1, found 1", "1.5"),
        (spec(), float("nan"), "--speedup: expected more than 1, found nan", "1.5"),
        (spec(target_sparsity=0.3), 1.5, "the budget is given as method.target_sparsity = 0.3 already", "one of them"),
    ],
)
def test_a_speed_that_cannot_be_a_budget_is_refused(given, value, message, hint):
    with pytest.raises(ConfigError) as refused:
        check_speedup(given, value)
    assert message in refused.value.message and hint in refused.value.hint


def test_a_speed_beyond_reach_is_refused_with_what_can_be_had(timed):
    backbone = tiny_backbone("bert")
    most = plan_budget(backbone, 0.5, "auto", 16).largest_target
    with pytest.raises(ConfigError, match=f"50 cannot be reached: .* about {1 / (1 - most):.2f} times as fast"):
        with_speedup(spec(), backbone, 50)


def test_a_measurement_that_saw_no_gain_says_so(monkeypatch):
    monkeypatch.setattr(speedup, "in_turns", lambda *arguments: [(1.0, 1.01)])
    with pytest.raises(ConfigError, match="cannot be reached"):
        with_speedup(spec(), tiny_backbone("bert"), 1.2)


def test_times_are_really_measured(cache):
    """On a tiny model they mean nothing, but there are some, of every budget."""
    with pytest.raises(ConfigError, match="cannot be reached"):
        with_speedup(spec(), tiny_backbone("bert"), 1000)
    (file,) = (cache / "speeds").iterdir()
    found = json.loads(file.read_text())
    assert len(found["removed"]) == len(found["times"]) == speedup.POINTS
    assert all(time > 0 for time in found["times"]) and found["where"].startswith("8 × ")
