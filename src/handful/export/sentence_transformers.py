"""A folder that sentence-transformers loads: bare model, pooling and head, so that `encode` gives the scores (B, C)."""

from __future__ import annotations

from typing import ClassVar, final

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.export.dense import can_load_alone, write_whole
from handful.export.folded import Folded
from handful.export.folder import ExportJob, ExportReport
from handful.export.format import BODY, HEAD, AbstractFormat, ExportPlan, family_of, folds_not
from handful.export.loaders import Loader
from handful.methods.base import AbstractMethod
from handful.methods.exports import Exports, Product

_CODE = """import json
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

folder = Path(".")  # where this file is
labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
model = SentenceTransformer(str(folder), device="cpu").eval()


@torch.no_grad()
def scores(inputs):
    return model(dict(inputs))["sentence_embedding"]


print(labels, model.encode({texts}, convert_to_tensor=True){activation})
"""


@final
class SentenceTransformers(AbstractFormat):
    """The bare model with pooling and head as modules."""

    name: ClassVar[str] = "sentence-transformers"
    summary: ClassVar[str] = "the bare model, its pooling and its head as modules for sentence-transformers"
    article: ClassVar[str] = "a sentence-transformers model"
    products: ClassVar[tuple[Product, ...]] = ("smaller model", "merged weights")
    instead: ClassVar[tuple[str, ...]] = ("onnx", "peft")
    library: ClassVar[str] = "sentence-transformers"
    libraries: ClassVar[str] = "sentence-transformers"
    package: ClassVar[str | None] = "sentence_transformers"
    needs: ClassVar[str] = "needs sentence-transformers and no handful"

    def lacking(self, method: AbstractMethod, exports: Exports) -> str:
        return folds_not(method)

    def pooling_obstacle(self, backbone: Backbone | str, pooling: str) -> str | None:
        family = family_of(backbone)
        if pooling == "family":
            return f"pooling 'family' ends in layers of {family}'s own classification class; use the format 'dense'"
        if not can_load_alone(backbone):
            return f"no stock class loads {family}'s encoder alone from a folder; use the format 'dense'"
        return None

    def describe(self, backbone: Backbone | str, pooling: str, task: Task | None) -> ExportPlan:
        what = f"the bare {family_of(backbone)} ({BODY}), its pooling and its head ({HEAD})"
        return ExportPlan("features", f"{self.article}: {what}")

    def write(self, job: ExportJob, plan: ExportPlan) -> ExportReport:
        return write_whole(Folded(job, plan, "padded"), Loader.of(job, plan, self, body=BODY))

    def code(self, loader: Loader) -> str:
        texts = '[("a text", "its second text")]' if loader.objective.pairs else '["a text"]'
        return _CODE.format(texts=texts, activation=loader.activation)
