"""Export by the format's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ConfigError
from handful.evaluation.evaluate import longest_row
from handful.evaluation.text.generate import GenerationOptions
from handful.export.folder import Card, ExportJob, ExportReport
from handful.export.plan import FORMATS, ExportPlan, check_export, format_of
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter

__all__ = ["FORMATS", "ExportPlan", "ExportReport", "check_export", "export"]


def export(
    adapter: AbstractAdapter,
    backbone: Backbone,
    task: Task,
    folder: Path,
    format: str = "peft",
    *,
    card: Card | None = None,
    overwrite: bool = False,
    max_length: int | None = None,
    generation: GenerationOptions | None = None,
) -> ExportReport:
    """Write `folder` in one of `FORMATS`, and compare its scores with ours before it gets its name.

    `card` is added to the README; `max_length` is where the README's code cuts texts, by default at what the model
    takes; `generation` is how a language model is asked and writes.
    Raises: ConfigError where this adapter has no such form (`check_export` says so before training); RunError when
    the folder exists, cannot be written, or does not give our scores.
    """
    chosen = format_of(format)
    if task.objective.generates:
        generation = generation or GenerationOptions()
    with backbone.lent_to(adapter), _on_cpu(adapter, backbone):
        plan = check_export(adapter.method, backbone, backbone.pooling or "mean", task, format=format)
        if not plan.possible:
            raise ConfigError(f"cannot export as {chosen.article}: {plan.summary}")
        if not isinstance(adapter, AbstractHeadedAdapter):
            raise ConfigError(
                f"cannot export as {chosen.article}: the adapter of {adapter.method.name!r} has no linear head",
                "derive it from handful.methods.head.AbstractHeadedAdapter",
            )
        limit = longest_row(adapter, max_length or backbone.max_length, generation)
        return chosen.write(ExportJob(adapter, backbone, task, folder, limit, card, overwrite, generation), plan)


@contextmanager
def _on_cpu(adapter: AbstractAdapter, backbone: Backbone) -> Iterator[None]:
    """Within it, adapter and backbone are on the CPU, so that an export is the same from whatever device."""
    device = backbone.device
    if device.type == "cpu":
        yield
        return
    backbone.to("cpu")
    adapter.to("cpu")
    try:
        yield
    finally:
        backbone.to(device)
        adapter.to(device)
