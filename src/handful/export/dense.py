"""Write a whole model as a folder that stock transformers loads, with whatever was trained folded into its weights.

That is the stock classification class with its labels: of the family's own pooling as it is, and of mean or last
pooling with the head put inside (`stock_head`). Where the class cannot hold it, and in the format
"sentence-transformers", bare model and head stand apart, in a layout that stock calls for a classification class
refuse. Units and heads that are zero are taken out as far as a stock configuration, which is one for all layers, can
say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handful.backbone.classifier import as_encoder
from handful.backbone.load import Backbone
from handful.backbone.resize import class_path, save_model
from handful.data.task import Task
from handful.evaluation.evaluate import longest_row
from handful.evaluation.text.generate import GenerationOptions
from handful.export.folded import Folded
from handful.export.folder import Card, ExportJob, ExportReport
from handful.export.loaders import Loader
from handful.export.plan import BODY, SHRINKING, can_load_alone, method_of, planned
from handful.export.sentence_folder import write_head, write_modules
from handful.export.size import Size
from handful.methods.base import AbstractAdapter


def export_dense(
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
    """Write `folder` for stock transformers, compared with our scores in a fresh process before it gets its name.

    `card` is added to the README; `max_length` is where the README's code cuts texts, by default at what the model
    takes; `generation` is how a language model is asked and writes.
    Raises: ConfigError where this adapter has no such form (`check_export` says so before training); RunError when
    the folder exists, cannot be written, or does not give our scores.
    """
    options: dict[str, Any] = {"card": card, "overwrite": overwrite, "max_length": max_length, "generation": generation}
    return _export("dense", adapter, backbone, task, folder, **options)


def export_sentence_transformers(
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
    """Write `folder` for sentence-transformers, whose `encode` then gives the scores (B, C).

    Arguments and errors are those of `export_dense`.
    """
    options: dict[str, Any] = {"card": card, "overwrite": overwrite, "max_length": max_length, "generation": generation}
    return _export("sentence-transformers", adapter, backbone, task, folder, **options)


def _export(
    format: str, adapter: AbstractAdapter, backbone: Backbone, task: Task, folder: Path, **options: Any
) -> ExportReport:
    plan, adapter = planned(adapter, backbone, task, format)
    limit = longest_row(adapter, options["max_length"] or backbone.max_length, options["generation"])
    options["max_length"] = limit
    job = ExportJob(adapter, backbone, task, folder, **options)
    folded, shrinks = Folded(job, plan, "padded"), method_of(adapter).name in SHRINKING

    def fill(partial: Path) -> Size | None:
        if plan.form == "features":
            _write_apart(folded, partial)
        else:
            save_model(folded.written, partial)
        record = folded.shrunk.record
        return folded.measured(partial) if record.changed or record.zeros or shrinks else None

    details: dict[str, Any] = {}
    if plan.form == "features":
        details = {"body": BODY}
        if backbone.kind == "encoder-decoder":  # an encoder alone is a model that no Auto class finds
            details["model_class"] = class_path(as_encoder(folded.full))
    if format == "sentence-transformers":
        details = {"body": BODY, "file": "sentence-transformers"}
    return job.write(plan, Loader.of(job, plan, **details), fill, folded.rounding)


def _write_apart(folded: Folded, partial: Path) -> None:
    """Bare model and head; the model's configuration says that it has no outputs, so that no class makes it random."""
    job, model = folded.job, folded.shrunk.model
    assert job.backbone.pooling is not None
    if job.backbone.kind == "encoder-decoder":
        model = as_encoder(model)
    model.config.id2label, model.config.label2id = {}, {}
    save_model(model, partial / BODY)
    write_head(partial, *job.adapter.head.folded())
    if can_load_alone(job.backbone):
        write_modules(partial, job.backbone.pooling, job.backbone.hidden_size, job.max_length)
