"""Write a model whose layers have as many units and heads as each needs, and load it: stock classes, cut to size.

No stock configuration can say that, so `load_compact` builds the stock class at full size, cuts its matrices as
`compact.json` says, and loads the weights, all of them and nothing else. No code comes with the folder, and no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from handful import __version__
from handful.backbone.load import Backbone
from handful.backbone.resize import build_ragged, class_path, save_model, stock_class
from handful.data.task import Task
from handful.errors import ModelError
from handful.evaluation.text.generate import GenerationOptions
from handful.export.folded import Folded
from handful.export.folder import Card, ExportJob, ExportReport
from handful.export.loaders import Loader
from handful.export.plan import planned
from handful.export.shrink import Shrunk
from handful.export.size import Size
from handful.methods.base import AbstractAdapter

SIZES, CONFIG = "compact.json", "compact-config.json"
"""Sizes of the layers, and the configuration at full size: not by the name that stock loaders look for, to whom the
folder would be a model whose weights do not fit, or without a head."""


def export_compact(
    adapter: AbstractAdapter,
    backbone: Backbone,
    task: Task,
    folder: Path,
    *,
    card: Card | None = None,
    overwrite: bool = False,
    max_length: int | None = None,
    generation: GenerationOptions | None = None,
) -> ExportReport:
    """Write `folder` for `load_compact`, compared with our scores in a fresh process before it gets its name.

    Arguments and errors are those of `export_dense`.
    """
    plan, adapter = planned(adapter, backbone, task, "compact")
    limit = min(max_length or backbone.max_length, backbone.max_length)
    job = ExportJob(adapter, backbone, task, folder, limit, card, overwrite, generation)
    folded = Folded(job, plan, "ragged")

    def fill(partial: Path) -> Size:
        save_compact(folded.shrunk, partial)
        return folded.measured(partial)

    return job.write(plan, Loader.of(job, plan, file="compact"), fill, folded.rounding)


def save_compact(shrunk: Shrunk, folder: Path) -> None:
    """Configuration, weights and sizes of a ragged model into an existing folder."""
    save_model(shrunk.model, folder)
    (folder / "config.json").rename(folder / CONFIG)
    record = shrunk.record
    sizes = {
        "handful": __version__,
        "class": class_path(shrunk.model),
        "units": list(record.units),
        "heads": list(record.heads),
    }
    (folder / SIZES).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def load_compact(folder: str | Path) -> Any:
    """The transformers model of a compact export, in eval mode. Raises: ModelError where the folder is none."""
    folder = Path(folder)
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: expected a compact export, with {SIZES} and model.safetensors: {error}",
            "give the folder that `handful export --format compact` made",
        ) from None
    if not isinstance(sizes, dict) or not all(_is_sizes(sizes.get(name)) for name in ("units", "heads")):
        raise ModelError(f"{folder / SIZES}: expected units and heads as lists of whole numbers", "export it again")
    config = folder / CONFIG
    if not config.is_file():
        config = folder / "config.json"  # of exports by handful before 2026-12
    return build_ragged(stock_class(str(sizes.get("class"))), config, tensors, sizes["units"], sizes["heads"])


def _is_sizes(value: object) -> bool:
    return isinstance(value, Sequence) and all(type(number) is int for number in value)
