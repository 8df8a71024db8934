"""Write a model with its head as one ONNX file, closed units and heads taken out of every layer.

Written by torch's TorchScript exporter: unlike the newer one it takes every family here, in a second, and needs no
package but onnx. It follows one example batch, so what comes out is compared on other sizes, padded and not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial as bind
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import RunError
from handful.evaluation.writing import GenerationOptions
from handful.export.folded import Folded, Scorer
from handful.export.folder import ExportJob, ExportReport
from handful.export.loaders import Loader
from handful.export.plan import planned
from handful.export.size import Size
from handful.export.verify import compare
from handful.methods.base import AbstractAdapter

OPSET = 18
FILE = "model.onnx"


def export_onnx(
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
    """Write `folder` for any ONNX runtime; where onnxruntime is installed, it must get our scores first.

    Arguments and errors are those of `export_dense`.
    """
    plan, adapter = planned(adapter, backbone, task, "onnx")
    limit = min(max_length or backbone.max_length, backbone.max_length)
    job = ExportJob(adapter, backbone, task, folder, limit, card, overwrite, generation)
    folded = Folded(job, plan, "ragged")

    def fill(partial: Path) -> Size | None:
        scorer = folded.scorer(folded.shrunk.model)
        save_onnx(scorer, folded.inputs(2, 8, padded=True), partial / FILE)
        outline = {"opset": OPSET, "inputs": list(scorer.names), "outputs": ["scores"]}
        (partial / "onnx.json").write_text(json.dumps(outline, indent=1), encoding="utf-8")
        if find_spec("onnxruntime") is None:
            return None
        run, batch = bind(run_onnx, open_onnx(partial / FILE)), folded.inputs(3, 20, padded=True)
        with torch.no_grad():
            expected = folded.scorer(folded.full).scores(batch)
        compare(run(batch), expected, job.unit, bind(folded.rounding, batch))
        return folded.measured(partial, run, "onnxruntime")

    return job.write(plan, Loader.of(job, plan, file="onnx"), fill, folded.rounding)


def save_onnx(scorer: Scorer, inputs: Mapping[str, torch.Tensor], file: Path) -> None:
    """The scorer as one ONNX file whose batch and length may vary. Raises: RunError where torch cannot write it."""
    axes = {name: {0: "batch", 1: "length"} for name in scorer.names} | {"scores": {0: "batch"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing; that the file is right is checked by its scores
            torch.onnx.export(
                scorer,
                tuple(inputs[name] for name in scorer.names),
                str(file),
                input_names=list(scorer.names),
                output_names=["scores"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise RunError(
            f"torch cannot write this model as ONNX: {str(error).splitlines()[0]}", "use the format 'dense'"
        ) from None


def open_onnx(file: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is no time that a forward takes
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Scores (B, C) of token ids and masks (B, S). Raises: RunError where onnxruntime cannot compute them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime  # pyright: ignore[reportAttributeAccessIssue]

    try:
        names = [each.name for each in session.get_inputs()]  # without those that make no difference to the model
        (scores,) = session.run(["scores"], {name: inputs[name].numpy() for name in names})
    except (runtime.Fail, runtime.RuntimeException, runtime.InvalidArgument, runtime.NotImplemented) as error:
        raise RunError(f"onnxruntime cannot run the file: {error}", "use the format 'dense'") from None
    return torch.from_numpy(scores)
