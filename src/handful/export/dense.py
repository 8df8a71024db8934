"""Write a whole model as a folder that stock transformers loads, with whatever was trained folded into its weights.

That is the stock classification class with its labels: of the family's own pooling as it is, and of mean or last
pooling with the head put inside (`stock_head`). Where the class cannot hold it, and in the format
"sentence-transformers", bare model and head stand apart, in a layout that stock calls for a classification class
refuse. Units and heads that are zero are taken out as far as a stock configuration, which is one for all layers, can
say.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

from handful.backbone.classifier import as_encoder, encoder_class, is_encoder_decoder
from handful.backbone.load import Backbone
from handful.backbone.resize import class_path, save_model
from handful.backbone.stock_head import head_obstacle, layers_added
from handful.data.task import Task
from handful.export.folded import Folded
from handful.export.folder import ExportJob, ExportReport
from handful.export.format import (
    BODY,
    HEAD,
    AbstractFormat,
    ExportPlan,
    classifier_words,
    family_of,
    folds_not,
)
from handful.export.loaders import Loader
from handful.export.sentence_folder import write_head, write_modules
from handful.export.size import Size
from handful.methods.base import AbstractMethod
from handful.methods.exports import Exports, Product


@final
class Dense(AbstractFormat):
    """A whole model for stock transformers."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "a whole model that stock transformers loads"
    article: ClassVar[str] = "a dense model"
    products: ClassVar[tuple[Product, ...]] = ("smaller model", "merged weights")
    instead: ClassVar[tuple[str, ...]] = ("onnx", "peft")
    writes_texts: ClassVar[bool] = True

    def lacking(self, method: AbstractMethod, exports: Exports) -> str:
        return folds_not(method)

    def describe(self, backbone: Backbone | str, pooling: str, task: Task | None) -> ExportPlan:
        """The stock classification class where it can hold the head, and else the bare model with the head beside."""
        classifier = classifier_words(self.article, backbone, task)
        if pooling == "family":
            return ExportPlan("classifier", classifier)
        config = backbone if isinstance(backbone, str) else backbone.config
        obstacle = head_obstacle(config, pooling, task.num_outputs if task else None)
        if obstacle:
            return ExportPlan(
                "features",
                f"a dense model of the bare {family_of(backbone)} ({BODY}), with its head ({HEAD}) and a loader in its "
                f"README; stock calls for a classification class refuse the folder: {obstacle}",
            )
        if not layers_added(config, pooling):
            return ExportPlan("classifier", classifier)
        layers = "" if isinstance(backbone, str) else f" beside its {backbone.num_layers}"
        why = "pools by the mean" if pooling == "mean" else "adds the head's bias"
        return ExportPlan("classifier", f"{classifier}; one more layer{layers} {why}, at one layer's time and weights")

    def write(self, job: ExportJob, plan: ExportPlan) -> ExportReport:
        folded, details = Folded(job, plan, "padded"), {}
        if plan.form == "features":
            details = {"body": BODY}
            if job.backbone.kind == "encoder-decoder":  # an encoder alone is a model that no Auto class finds
                details["model_class"] = class_path(as_encoder(folded.full))
        return write_whole(folded, Loader.of(job, plan, self, **details))

    def stock_calls(self, loader: Loader, task: Task) -> list[str]:
        if loader.form != "classifier":
            return super().stock_calls(loader, task)
        names = "the labels" if task.objective.has_labels else "its only output"
        every = ", top_k=None" if task.objective.has_labels and not task.objective.has_classes else ""
        return [
            f'`pipeline("text-classification", folder{every})` gives {names} by name too, and cuts texts with '
            "`truncation=True`. Load it in float32 or bfloat16: in float16 its scores may be no numbers."
        ]


def adds_layer(backbone: Backbone, task: Task) -> bool:
    """Whether a dense export of a run on this backbone has one more layer, which holds the head."""
    pooling = backbone.pooling
    if pooling is None or pooling == "family" or head_obstacle(backbone.config, pooling, task.num_outputs):
        return False
    return bool(layers_added(backbone.config, pooling))


def write_whole(folded: Folded, loader: Loader) -> ExportReport:
    """Write a folded model in its stock class, or bare with the head apart."""
    job, plan = folded.job, folded.plan
    shrinks = "smaller model" in job.adapter.method.exports(job.backbone)

    def fill(partial: Path) -> Size | None:
        if plan.form == "features":
            _write_apart(folded, partial)
        else:
            save_model(folded.written, partial)
        record = folded.shrunk.record
        return folded.measured(partial) if record.changed or record.zeros or shrinks else None

    return job.write(plan, loader, fill, folded.rounding)


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


def can_load_alone(backbone: Backbone | str) -> bool:
    """Whether an Auto class, or that of an encoder-decoder's encoder, loads the part of the model that we use."""
    if not isinstance(backbone, str):
        return backbone.kind != "encoder-decoder" or encoder_class(backbone.config) is not None
    return not is_encoder_decoder(backbone) or encoder_class(backbone) is not None
