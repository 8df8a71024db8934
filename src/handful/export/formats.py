"""Export by the format's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import ConfigError, nearest
from handful.evaluation.text.generate import GenerationOptions
from handful.export.compact import export_compact
from handful.export.dense import export_dense, export_sentence_transformers
from handful.export.folder import Card, ExportReport
from handful.export.onnx import export_onnx
from handful.export.peft import export_peft
from handful.export.plan import FORMATS, ExportPlan, check_export
from handful.methods.base import AbstractAdapter

_WRITERS = {
    "peft": export_peft,
    "dense": export_dense,
    "sentence-transformers": export_sentence_transformers,
    "compact": export_compact,
    "onnx": export_onnx,
}

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
    """Write `folder` in one of `FORMATS`; see `export_peft`, `export_dense`, … Raises: ConfigError, RunError."""
    if format not in FORMATS:
        raise ConfigError(f"unknown export format {format!r}", nearest(format, FORMATS))
    if task.kind == "generation":
        generation = generation or GenerationOptions()
    options: dict[str, Any] = {"card": card, "overwrite": overwrite, "max_length": max_length, "generation": generation}
    with backbone.lent_to(adapter), _on_cpu(adapter, backbone):
        return _WRITERS[format](adapter, backbone, task, folder, **options)


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
