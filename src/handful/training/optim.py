"""The optimiser, the learning-rate schedule and the running mean of late weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from handful.backbone.device import exact
from handful.errors import ConfigError
from handful.methods.base import AbstractAdapter
from handful.training.config import TrainingConfig


def make_optimizer(adapter: AbstractAdapter, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the adapter's groups of parameters. Raises: ConfigError when nothing is trained."""
    groups: list[dict[str, Any]] = []
    for group in adapter.parameter_groups():
        rate = config.head_learning_rate if group.name == "head" else None
        rate = (rate or config.learning_rate) * group.rate
        decay = config.weight_decay / group.rate if group.decays else 0.0  # AdamW multiplies it by the rate again
        groups.append({"params": list(group.parameters), "lr": rate, "initial_lr": rate, "weight_decay": decay})
    if not any(p.requires_grad for group in groups for p in group["params"]):
        raise ConfigError(
            "this adapter has no trainable parameters: training would change nothing",
            "choose other layers or another method",
        )
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def rate_factor(step: int, steps: int, config: TrainingConfig) -> float:
    """Multiple of the peak learning rate at a step counted from 0: linear warm-up, then the chosen decay to 0."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    left = (steps - step) / max(1, steps - warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


@final
class LateAverage:
    """The mean of a module's parameters over the steps after `start`; nothing before that."""

    def __init__(self, module: nn.Module, start: int):
        self.start, self.count = start, 0
        self.sums = {name: exact(torch.zeros_like(p)) for name, p in module.named_parameters()}

    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after a step counted from 1."""
        if step > self.start:
            self.count += 1
            for name, parameter in module.named_parameters():
                self.sums[name] += parameter.detach().to(self.sums[name].device)

    def restore(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Put the sums of a checkpoint back."""
        for name, tensor in sums.items():
            self.sums[name].copy_(tensor)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Set the parameters to the mean; leaves them where nothing was averaged."""
        if self.count:
            for name, parameter in module.named_parameters():
                parameter.copy_((self.sums[name] / self.count).to(parameter.dtype))
