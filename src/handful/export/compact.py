"""Write a model whose layers have as many units and heads as each needs, and load it: stock classes, cut to size.

No stock configuration can say that, so `load_compact` builds the stock class at full size, cuts its matrices as
`compact.json` says, and loads the weights, all of them and nothing else. No code comes with the folder, and no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from safetensors import SafetensorError
from safetensors.torch import load_file

from handful import __version__
from handful.backbone.resize import build_ragged, class_path, save_model, stock_class
from handful.errors import ModelError
from handful.export.folded import Folded
from handful.export.folder import ExportJob, ExportReport
from handful.export.format import AbstractFormat, ExportPlan
from handful.export.loaders import Loader
from handful.export.shrink import Shrunk
from handful.export.size import Size
from handful.methods.base import AbstractMethod
from handful.methods.exports import Exports, Product

SIZES, CONFIG = "compact.json", "compact-config.json"
"""Sizes of the layers, and the configuration at full size: not by the name that stock loaders look for, to whom the
folder would be a model whose weights do not fit, or without a head."""


@final
class Compact(AbstractFormat):
    """A pruned model, each layer as small as it can be."""

    name: ClassVar[str] = "compact"
    summary: ClassVar[str] = "a model of gates or pruning whose layers differ in size, for handful's own loader"
    article: ClassVar[str] = "a compact model"
    products: ClassVar[tuple[Product, ...]] = ("smaller model",)
    instead: ClassVar[tuple[str, ...]] = ("dense", "onnx", "peft")
    library: ClassVar[str] = "handful"
    libraries: ClassVar[str] = "stock transformers, loaded by handful,"
    package: ClassVar[str | None] = "handful"
    needs: ClassVar[str] = "is loaded by handful (`pip install handful`): stock loaders refuse layers of unequal size"
    head_beside: ClassVar[bool] = True
    stock_model: ClassVar[bool] = False

    def lacking(self, method: AbstractMethod, exports: Exports) -> str:
        return f"method {method.name!r} takes nothing out of the model, as gates and pruning do"

    def write(self, job: ExportJob, plan: ExportPlan) -> ExportReport:
        folded = Folded(job, plan, "ragged")

        def fill(partial: Path) -> Size:
            save_compact(folded.shrunk, partial)
            return folded.measured(partial)

        own = ("from handful.export.compact import load_compact", "load_compact(folder)")
        return job.write(plan, Loader.of(job, plan, self, own=own), fill, folded.rounding)


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
