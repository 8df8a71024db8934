"""What an export will be, or why there can be none: known before training, from the model's family alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from handful.backbone.load import Backbone
from handful.backbone.stock_head import family_pooling
from handful.data.task import Task
from handful.errors import ConfigError, nearest
from handful.export.compact import Compact
from handful.export.dense import Dense
from handful.export.format import AbstractFormat, ExportPlan, family_of
from handful.export.onnx import INSTALL_ONNX, Onnx
from handful.export.peft import Peft
from handful.export.sentence_transformers import SentenceTransformers
from handful.methods.base import AbstractMethod
from handful.runs.members import recorded_task
from handful.runs.spec import recorded_method

__all__ = ["FORMATS", "INSTALL_ONNX", "ExportPlan", "best_format", "check_export", "format_of", "recorded_format"]

FORMATS: Mapping[str, AbstractFormat] = {
    format.name: format for format in (Peft(), Dense(), SentenceTransformers(), Compact(), Onnx())
}
PREFERRED = ("onnx", "dense", "peft")
"""What is proposed where a method's own format is impossible, the best first."""


def format_of(name: str) -> AbstractFormat:
    """The format of that name. Raises: ConfigError naming the nearest one."""
    if name not in FORMATS:
        raise ConfigError(f"unknown export format {name!r}", nearest(name, FORMATS))
    return FORMATS[name]


def check_export(
    method: AbstractMethod, backbone: Backbone | str, pooling: str, task: Task | None = None, *, format: str = "peft"
) -> ExportPlan:
    """What exporting this method on this backbone, or family (`config.model_type`), will give; no weights are read.

    Raises: ConfigError for an unknown format.
    """
    wanted = format_of(format)
    plan = _plan(wanted, method, backbone, pooling, task)
    if plan.possible and wanted.requires and find_spec(wanted.requires[0]) is None:
        package, install = wanted.requires
        return ExportPlan(None, f"it needs the package {package}, which is not installed: {install}")
    return plan


def _plan(
    format: AbstractFormat,
    method: AbstractMethod,
    backbone: Backbone | str,
    pooling: str,
    task: Task | None,
    *,
    advise: bool = True,
) -> ExportPlan:
    """What `check_export` says where every package is installed; to `advise` is to name the format to use instead."""
    if task is not None and task.members:
        return ExportPlan(None, f"an inventory of {len(task.members)} tasks; export one of them: --task NAME")
    writes = task is not None and task.objective.generates
    if pooling == "auto":
        pooling = family_pooling(family_of(backbone))
    obstacle = format.obstacle(method, backbone)
    if obstacle and advise:
        others = (_plan(FORMATS[name], method, backbone, pooling, task, advise=False) for name in format.instead)
        possible = (name for name, other in zip(format.instead, others, strict=True) if other.possible)
        obstacle += "".join(f"; use the format {name!r}" for name in list(possible)[:1])
    if obstacle := obstacle or format.pooling_obstacle(backbone, pooling):
        return ExportPlan(None, obstacle)
    if not writes:
        return format.describe(backbone, pooling, task)
    if not format.writes_texts:
        exports = method.exports(backbone)
        names = [other.name for other in FORMATS.values() if other.writes_texts and other.product_of(exports)]
        return ExportPlan(None, f"a model that writes texts is exported as {' or '.join(names)}")
    return ExportPlan("language-model", f"{format.article} for {family_of(backbone)}'s stock language model")


def best_format(
    method: AbstractMethod,
    backbone: Backbone | str,
    pooling: str,
    task: Task | None = None,
    report: Mapping[str, Any] | None = None,
) -> str | None:
    """The format to propose for a method on a backbone or family; None where there is none.

    "compact" where that leaves out more, by the adapter's `report`; else the method's own; else the first that is
    possible: "onnx" for a prefix that stock PEFT cannot have. A package that is not installed is no matter here.
    """
    report = report or {}
    compact = report.get("removable_compact", 0) > report.get("removable", 0)
    candidates = ["compact"] * compact + [method.export_format, *PREFERRED]
    plans = ((name, _plan(format_of(name), method, backbone, pooling, task, advise=False)) for name in candidates)
    return next((name for name, plan in plans if plan.possible), None)


def recorded_format(record: Mapping[str, Any], task: Task | None = None) -> tuple[str | None, str]:
    """`best_format` of a saved run by its record, and in words what that gives, or why there is none.

    `task` is the one to export of an inventory, by default its first.
    """
    method, backbone = recorded_method(record), record["backbone"]
    task = task or recorded_task((record["task"].get("members") or [record["task"]])[0])
    where = (method, backbone["family"], str(backbone["pooling"]), task)
    format = best_format(*where, record["adapter"])
    return format, _plan(format_of(format or method.export_format), *where).summary
