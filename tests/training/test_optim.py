"""Learning rates by hand, groups with rates of their own, and the mean of late weights."""

import math

import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.errors import ConfigError
from handful.methods.prefix import Prefix
from handful.testing import toy_task
from handful.training.config import TrainingConfig
from handful.training.optim import LateAverage, make_optimizer, rate_factor


def adapter():
    generator = torch.Generator().manual_seed(0)
    return Prefix(prefix_length=2).attach(tiny_backbone("bert"), toy_task(), generator=generator)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("constant", 0.0, [1, 1, 1, 1]),
        ("cosine", 0.0, [1, (2 + 2**0.5) / 4, 1 / 2, (2 - 2**0.5) / 4]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 1 / 2]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("cosine", 0.5, [1 / 3, 2 / 3, 1, 1 / 2]),
    ],
)
def test_four_steps_by_hand(schedule, warmup, expected):
    config = TrainingConfig(schedule=schedule, warmup=warmup)
    assert [rate_factor(step, 4, config) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7, 140])
def test_every_step_moves_and_none_by_more_than_the_peak(schedule, steps):
    factors = [rate_factor(step, steps, TrainingConfig(schedule=schedule)) for step in range(steps)]
    assert max(factors) == 1 and min(factors) > 0
    peak = factors.index(1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1]) and factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_head_may_have_a_rate_of_its_own():
    trained = adapter()
    groups = make_optimizer(trained, TrainingConfig(learning_rate=0.1, head_learning_rate=0.02)).param_groups
    assert [(group["lr"], group["initial_lr"]) for group in groups] == [(0.1, 0.1), (0.02, 0.02)]
    assert [len(group["params"]) for group in groups] == [1, 2]
    assert groups[1]["params"][0] is trained.head.weight
    assert {group["lr"] for group in make_optimizer(trained, TrainingConfig(learning_rate=0.1)).param_groups} == {0.1}


def test_weight_decay_is_decoupled():
    trained = adapter()
    optimizer = make_optimizer(trained, TrainingConfig(learning_rate=0.1, weight_decay=0.5))
    before = trained.prefix.keys_values.detach().clone()
    trained.prefix.keys_values.grad = torch.zeros_like(before)
    optimizer.step()
    torch.testing.assert_close(trained.prefix.keys_values.detach(), before * (1 - 0.1 * 0.5))


def test_an_adapter_that_trains_nothing_is_refused():
    frozen = adapter().requires_grad_(False)
    with pytest.raises(ConfigError, match=r"no trainable parameters: .* change nothing\n\nhint: choose other"):
        make_optimizer(frozen, TrainingConfig())


def test_the_late_average_is_the_mean_over_the_steps_after_its_start():
    module = torch.nn.Linear(1, 1)
    average = LateAverage(module, start=2)
    for step, value in enumerate([5.0, 7.0, 1.0, 2.0, 6.0], start=1):
        torch.nn.init.constant_(module.weight, value)
        average.update(module, step)
    assert average.count == 3
    average.copy_to(module)
    assert module.weight.item() == 3.0


def test_without_late_steps_the_weights_are_left_alone():
    module = torch.nn.Linear(1, 1)
    average = LateAverage(module, start=10)
    average.update(module, 10)
    before = module.weight.item()
    average.copy_to(module)
    assert average.count == 0 and module.weight.item() == before and not math.isnan(before)
