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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from handful.backbone.blocks import head_rule
from handful.backbone.closed import choose_kept
from handful.backbone.load import Backbone
from handful.backbone.packaged import cache_folder
from handful.backbone.resize import Kept, cut
from handful.data.task import Task
from handful.errors import ConfigError
from handful.export.dense import adds_layer
from handful.export.shrink import sample_inputs
from handful.export.size import LENGTH, cpu_name, in_turns, pick_rows, threads
from handful.methods.base import AbstractMethod
from handful.methods.gates.budget import Budget
from handful.runs.experiment import check_method, make_split, open_checked
from handful.runs.spec import Choice, RunSpec
from handful.storage import write_file
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


def with_budget(spec: RunSpec) -> AbstractMethod:
    """The spec's method. Raises: ConfigError where it has no budget."""
    if spec.method.has_budget:
        return spec.method
    raise ConfigError(
        f"speedup: expected a method with a budget, 'prune', found {spec.method.name!r}",
        "name it with --method, or leave --speedup out",
    )


def with_speedup(
    task: Task,
    spec: RunSpec,
    speedup: float,
    *,
    backbone: Backbone | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> tuple[RunSpec, Backbone]:
    """The spec with the least budget that makes its model so many times as fast, in whole percents; and the model.

    Raises: ConfigError for a method without a budget, and where no budget makes it that fast; what the run itself
    would before a model is loaded.
    """
    method = with_budget(spec)
    make_split(task, spec)
    if backbone:
        check_method(task, spec, backbone)
    backbone = backbone or open_checked(task, spec)
    plan = partial(method.budget, backbone)
    length = min(LENGTH, spec.options.max_length, backbone.max_length)
    group, file = ProcessGroup(backbone.device), _file(backbone, plan(0.5), length)
    curve = group.agree(_curve(backbone, plan, length, file, on_message) if group.is_main else None)
    on_message(f"speed ({curve.where}): {curve}")
    if adds_layer(backbone, task):
        on_message(
            "that is the speed of the formats 'sentence-transformers' and 'compact': a dense export has one more "
            "layer, which pools by the mean"
        )
    if speedup > curve.fastest:
        can_spare_heads = head_rule(backbone.config) != "none" and not (backbone.purpose_is_lm or plan(0.5).heads)
        others = ", or method.groups 'units-and-heads'" if can_spare_heads else ""
        raise ConfigError(
            f"speedup: {speedup:g} cannot be reached: without {curve.removed[-1]:.0%} of its attention and "
            f"feed-forward parameters, the most that can go, the model is about {curve.fastest:.2f} times as fast",
            f"ask for less{others}; to measure anew, on a machine that does nothing else, delete {file}",
        )
    target = _least_target(plan, curve.removed_for(speedup))
    choice = Choice("method.target_sparsity", target, f"measured: {speedup:g} times as fast ({curve.where})")
    chosen = replace(
        spec,
        method=method.from_settings({**method.settings(), "target_sparsity": target}),
        choices=(choice, *spec.choices),
    )
    return chosen, backbone


Plan = Callable[[float], Budget]


def _least_target(plan: Plan, needed: float) -> float:
    """The least budget, in whole percents or the largest, of which an export leaves out at least that share."""
    largest = plan(0.5).largest_target
    percents = [percent / 100 for percent in range(1, 100) if percent / 100 < largest]
    return next((target for target in percents if _removed(plan(target)) >= needed), largest)


def _removed(budget: Budget) -> float:
    """The share that an export leaves out; 0 where the budget is rounded to nothing."""
    try:
        return 1 - _exported(budget).parameters(budget.blocks) / budget.blocks.parameters()
    except ConfigError:
        return 0.0


def _exported(budget: Budget) -> Kept:
    """As many units and heads of each block as an export keeps: `dense`, or `compact` where only that removes heads.

    Raises: ConfigError as the budget does.
    """
    blocks = budget.blocks
    left = [size - gone for size, gone in zip(budget.sizes, budget.closing, strict=True)]
    groups = left[: len(blocks.attention)] if budget.heads else [block.groups for block in blocks.attention]
    layout = "ragged" if budget.heads and head_rule(blocks.model.config) == "compact" else "padded"
    return choose_kept(blocks, Kept.first(left[-len(blocks.feed_forward) :], groups), layout)


def _file(backbone: Backbone, budget: Budget, length: int) -> Path:
    """Where a measurement is kept: by the model, what goes of it, the texts' length and the machine."""
    model = [backbone.fingerprint, type(backbone.model).__name__, budget.heads, budget.multiple]
    identity = json.dumps([*model, length, _machine(), torch.__version__])
    return cache_folder() / "speeds" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def _machine() -> str:
    return f"{threads(torch.get_num_threads())} of {cpu_name()}"


def _curve(backbone: Backbone, plan: Plan, length: int, file: Path, on_message: Callable[[str], None]) -> SpeedCurve:
    """What was measured before and is in the file, or is measured now."""
    if found := _read(file):
        return found
    on_message(f"measuring how fast {backbone.name} is without parts of it, once …")
    whole = copy.deepcopy(backbone.model).to(torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    inputs = partial(_inputs, whole, length=length)
    rows = pick_rows(_forward(whole), inputs)
    curve = measure_curve(whole, plan, inputs(rows), f"{rows} × {length} tokens, {_machine()}")
    if curve.slope > 0:  # what shows no gain was disturbed
        with suppress(OSError):  # it is measured again where it cannot be kept
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, json.dumps(asdict(curve)))
    return curve


def _read(file: Path) -> SpeedCurve | None:
    """The curve in a file, or None where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return SpeedCurve(tuple(found["removed"]), tuple(found["times"]), str(found["where"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure_curve(whole: Any, plan: Plan, batch: Mapping[str, torch.Tensor], where: str) -> SpeedCurve:
    """Models of rising budgets, each in turn with the whole one; the median of what it takes of the other's CPU time.

    Raises: ConfigError as the largest budget does.
    """
    largest = plan(0.5).largest_target
    budgets = [plan(largest * point / POINTS) for point in range(1, POINTS + 1)]
    _exported(budgets[-1])
    times: dict[float, float] = {}
    for budget in budgets:
        share = _removed(budget)
        if share > 0 and share not in times:
            pairs = in_turns(_forward(whole), _forward(_without(whole, budget)), batch)
            times[share] = statistics.median(after / before for before, after in pairs)
    return SpeedCurve(tuple(times), tuple(times.values()), where)


def _without(whole: Any, budget: Budget) -> Any:
    """A copy of a model as an export would be; which units and heads stay makes no difference to its time."""
    small = copy.deepcopy(whole)
    cut(replace(budget.blocks, model=small), _exported(budget))
    return small


def _inputs(model: Any, rows: int, *, length: int) -> dict[str, torch.Tensor]:
    return sample_inputs(model, rows=rows, length=length)


def _forward(model: Any) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return lambda batch: model(**batch, **options)[0]
