"""Write a whole model as a folder that stock transformers loads, with whatever was trained folded into its weights.

With the family's own pooling that is a stock classification class; with mean or last pooling the bare model with the
head beside it in `head.safetensors`. Units and heads that are zero are taken out as far as a stock configuration, which
is one for all layers, can say.
"""

from __future__ import annotations

from pathlib import Path

from handful.backbone.load import Backbone
from handful.backbone.resize import save_model
from handful.data.task import Task
from handful.evaluation.evaluate import longest_row
from handful.evaluation.writing import GenerationOptions
from handful.export.folded import Folded
from handful.export.folder import ExportJob, ExportReport
from handful.export.loaders import Loader
from handful.export.plan import SHRINKING, method_of, planned
from handful.export.size import Size
from handful.methods.base import AbstractAdapter


def export_dense(
    adapter: AbstractAdapter,
    backbone: Backbone,
    task: Task,
    folder: Path,
    *,
    card: str | None = None,
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
    plan, adapter = planned(adapter, backbone, task, "dense")
    limit = longest_row(adapter, max_length or backbone.max_length, generation)
    job = ExportJob(adapter, backbone, task, folder, limit, card, overwrite, generation)
    folded, shrinks = Folded(job, plan, "padded"), method_of(adapter).name in SHRINKING

    def fill(partial: Path) -> Size | None:
        save_model(folded.shrunk.model, partial)
        record = folded.shrunk.record
        return folded.measured(partial) if record.changed or record.zeros or shrinks else None

    kind = type(folded.full)
    whole = backbone.kind != "encoder-decoder" or plan.form != "features"
    # an encoder-decoder's encoder alone is a model that no Auto class finds
    loader = Loader.of(job, plan, model_class=None if whole else f"{kind.__module__}:{kind.__name__}")
    return job.write(plan, loader, fill, folded.rounding)
