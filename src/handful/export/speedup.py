"""A budget in measured time: how much of a model has to go so that it is so many times as fast. Ours.

How long a forward takes depends on shapes alone, so models of the shapes that budgets give are timed beside the whole
one before anything is trained. What was measured is kept: the same question gets the same answer, and the run that
follows from it the same key.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from handful.backbone.load import Backbone
from handful.backbone.packaged import cache_folder
from handful.backbone.resize import Kept, cut
from handful.data.task import Task
from handful.errors import ConfigError
from handful.export.plan import SHRINKING
from handful.export.shrink import sample_inputs
from handful.export.size import LENGTH, cpu_name, in_turns, pick_rows, threads
from handful.methods.fine_gates import FineGates
from handful.methods.group_gates import Budget, plan_budget
from handful.methods.prune import Prune
from handful.runs.experiment import make_split, open_checked
from handful.runs.spec import Choice, RunSpec
from handful.training.process_group import ProcessGroup

POINTS = 8
"""Budgets that are timed, evenly up to the largest."""


@final
@dataclass(frozen=True)
class SpeedCurve:
    """The share of the whole model's time (`times`) that it takes without these shares of its parameters (`removed`).

    `where` says what was timed on what.
    """

    removed: tuple[float, ...]
    times: tuple[float, ...]
    where: str

    @property
    def slope(self) -> float:
        """The b of time = 1 − b · removed: a median, since other work may have slowed down any of what was measured."""
        slopes = [(1 - time) / share for share, time in zip(self.removed, self.times, strict=True)]
        return min(statistics.median(slopes), 1.0)

    @property
    def fastest(self) -> float:
        """How many times as fast the smallest model is, by the slope."""
        return 1 / (1 - self.slope * self.removed[-1])

    def removed_for(self, speedup: float) -> float:
        """The share to remove for so much speed, by the slope."""
        return (1 - 1 / speedup) / self.slope

    def __str__(self) -> str:
        points = zip(self.removed, self.times, strict=True)
        return ", ".join(f"{1 / time:.2f} × without {share:.0%}" for share, time in points)


def check_speedup(spec: RunSpec, speedup: float) -> None:
    """Raises: ConfigError where a run's budget cannot be a speed, or is given in parameters already."""
    method = spec.method
    if not isinstance(method, FineGates | Prune) or getattr(method, "mode", "coupled") != "coupled":
        raise ConfigError(
            f"--speedup: expected a method with a budget, {' (coupled) or '.join(SHRINKING)}, found {method.name!r}"
            + (f" in mode {method.mode!r}" if isinstance(method, FineGates) else ""),
            "name one of them with --method, or leave --speedup out",
        )
    if not speedup > 1:
        raise ConfigError(f"--speedup: expected more than 1, found {speedup:g}", "1.5 is half as fast again")
    if method.target_sparsity != type(method)().target_sparsity:
        raise ConfigError(
            f"--speedup: the budget is given as method.target_sparsity = {method.target_sparsity:g} already",
            "leave one of them out",
        )


def ask_for_speed(
    task: Task,
    spec: RunSpec,
    speedup: float,
    *,
    backbone: Backbone | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> tuple[RunSpec, Backbone]:
    """`with_speedup` on the spec's model, which is loaded for it; everything that is wrong before is said before.

    Raises: as `with_speedup`, and as the run itself would before training.
    """
    check_speedup(spec, speedup)
    make_split(task, spec)
    backbone = backbone or open_checked(task, spec)
    return with_speedup(spec, backbone, speedup, on_message), backbone


def with_speedup(
    spec: RunSpec, backbone: Backbone, speedup: float, on_message: Callable[[str], None] = lambda message: None
) -> RunSpec:
    """The spec with the least budget of parameters, in whole percents, that makes its model so many times as fast.

    Raises: ConfigError where no budget makes it that fast.
    """
    method = spec.method
    assert isinstance(method, FineGates | Prune)
    plan = partial(plan_budget, backbone, groups=method.groups, multiple=method.multiple)
    group = ProcessGroup(backbone.device)
    curve = group.agree(_kept_curve(backbone, plan, spec.options.max_length, on_message) if group.is_main else None)
    on_message(f"speed ({curve.where}): {curve}")
    if speedup > curve.fastest:
        raise ConfigError(
            f"--speedup: {speedup:g} cannot be reached: without {curve.removed[-1]:.0%} of its attention and "
            f"feed-forward parameters, the most that can go, the model is about {curve.fastest:.2f} times as fast",
            "ask for less",
        )
    needed = curve.removed_for(speedup)
    percents = [percent / 100 for percent in range(1, 100) if percent / 100 <= plan(0.5).largest_target]
    target = next((percent for percent in percents if _removed(plan(percent)) >= needed), percents[-1])
    reason = f"measured: {speedup:g} times as fast ({curve.where})"
    choice = Choice("method.target_sparsity", target, reason)
    return replace(spec, method=replace(method, target_sparsity=target), choices=(choice, *spec.choices))


Plan = Callable[[float], Budget]


def _removed(budget: Budget) -> float:
    """The share that the budget really removes; 0 where it is rounded to nothing, or more than there is."""
    try:
        return budget.removed(budget.closing)
    except ConfigError:
        return 0.0


def _kept_curve(backbone: Backbone, plan: Plan, max_length: int, on_message: Callable[[str], None]) -> SpeedCurve:
    """What was measured before for this model, these budgets and this machine, or is now."""
    length, budget = min(LENGTH, max_length, backbone.max_length), plan(0.5)
    machine = f"{threads(torch.get_num_threads())} of {cpu_name()}"
    model = [backbone.fingerprint, type(backbone.model).__name__, budget.heads, budget.multiple]
    identity = json.dumps([*model, length, machine, torch.__version__])
    file = cache_folder() / "speeds" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    if found := _read(file):
        return found
    on_message(f"measuring how fast {backbone.name} is without parts of it, once …")
    whole = copy.deepcopy(backbone.model).to(torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    inputs = partial(_inputs, whole, length=length)
    rows = pick_rows(_forward(whole), inputs)
    curve = measure_curve(whole, plan, inputs(rows), f"{rows} × {length} tokens, {machine}")
    with suppress(OSError):  # it is measured again where it cannot be kept
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(".partial")
        partial_file.write_text(json.dumps(asdict(curve)), encoding="utf-8")
        partial_file.replace(file)
    return curve


def _read(file: Path) -> SpeedCurve | None:
    """The curve in a file, or None where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return SpeedCurve(tuple(found["removed"]), tuple(found["times"]), str(found["where"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure_curve(whole: Any, plan: Plan, batch: Mapping[str, torch.Tensor], where: str) -> SpeedCurve:
    """Models of rising budgets, each in turn with the whole one; the median of what it takes of the other's time.

    It is this process's own time on the CPU, which other work disturbs less than the clock's.
    """
    largest = plan(0.5).largest_target
    times: dict[float, float] = {}
    for point in range(1, POINTS + 1):
        budget = plan(largest * point / POINTS)
        share = _removed(budget)
        if share > 0 and share not in times:
            pairs = in_turns(_forward(whole), _forward(_without(whole, budget)), batch, time.process_time)
            times[share] = statistics.median(after / before for before, after in pairs)
    return SpeedCurve(tuple(times), tuple(times.values()), where)


def _without(whole: Any, budget: Budget) -> Any:
    """A copy of a model without as much as the budget says; which units and heads stay makes no difference to time."""
    small, blocks = copy.deepcopy(whole), budget.blocks
    left = [size - gone for size, gone in zip(budget.sizes, budget.closing, strict=True)]
    groups = left[: len(blocks.attention)] if budget.heads else [block.groups for block in blocks.attention]
    cut(replace(blocks, model=small), Kept.first(left[-len(blocks.feed_forward) :], groups))
    return small


def _inputs(model: Any, rows: int, *, length: int) -> dict[str, torch.Tensor]:
    return sample_inputs(model, rows=rows, length=length)


def _forward(model: Any) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return lambda batch: model(**batch, **options)[0]
