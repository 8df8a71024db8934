"""Write a model with its head as one ONNX file: a prefix as constants in it, closed units and heads taken out.

Where onnxscript is installed, torch's exporter by `torch.export` writes it: sizes of the batch are symbols there, and
a model that would fix one is an error. Without onnxscript, and with torch before 2.9, the older TorchScript exporter
does, which follows one example batch; it is faster, but torch calls it legacy. What either writes is compared on other
sizes, padded and not.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial as bind
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import RunError
from handful.evaluation.evaluate import longest_row
from handful.evaluation.text.generate import GenerationOptions
from handful.export.folded import Folded, Scorer, labelled
from handful.export.folder import Card, ExportJob, ExportReport
from handful.export.loaders import Loader
from handful.export.plan import planned
from handful.export.size import Size
from handful.export.verify import compare
from handful.methods.base import AbstractAdapter

OPSET = 18
FILE, OUTPUT = "model.onnx", "logits"
BY_EXPORT = (2, 9)
"""The first torch whose exporter by `torch.export` is its own default."""

Exporter = Literal["torch.export", "TorchScript"]


def export_onnx(
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
    """Write `folder` for any ONNX runtime; where onnxruntime is installed, it must get our scores first.

    Arguments and errors are those of `export_dense`.
    """
    plan, adapter = planned(adapter, backbone, task, "onnx")
    limit = longest_row(adapter, max_length or backbone.max_length)
    job = ExportJob(adapter, backbone, task, folder, limit, card, overwrite, generation)
    folded = Folded(job, plan, "ragged")

    def fill(partial: Path) -> Size | None:
        scorer = folded.scorer(folded.shrunk.model)
        used = save_onnx(scorer, folded.inputs(2, 8, padded=True), partial / FILE)
        outline = {"opset": OPSET, "inputs": list(scorer.names), "outputs": [OUTPUT], "exporter": used}
        (partial / "onnx.json").write_text(json.dumps(outline, indent=1), encoding="utf-8")
        labelled(folded.full.config, task).to_json_file(partial / "config.json")
        if find_spec("onnxruntime") is None:
            return None
        run, batch = bind(run_onnx, open_onnx(partial / FILE)), folded.inputs(3, 20, padded=True)
        with torch.no_grad():
            expected = folded.scorer(folded.full).scores(batch)
        compare(run(batch), expected, job.unit, bind(folded.rounding, batch))
        return folded.measured(partial, run, "onnxruntime")

    return job.write(plan, Loader.of(job, plan, file="onnx"), fill, folded.rounding)


def exporter() -> Exporter:
    """Which of torch's exporters writes the file."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    return "torch.export" if version >= BY_EXPORT and find_spec("onnxscript") is not None else "TorchScript"


def save_onnx(scorer: Scorer, inputs: Mapping[str, torch.Tensor], file: Path) -> Exporter:
    """The scorer as one ONNX file whose batch and length may vary; returns what wrote it.

    Raises: RunError where torch cannot write it.
    """
    import onnx

    used, names = exporter(), list(scorer.names)
    if used == "torch.export":
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        options: dict[str, Any] = {"dynamic_shapes": (tuple(sizes for _ in names),), "verbose": False}
    else:
        options = {"dynamic_axes": {name: {0: "batch", 1: "length"} for name in names} | {OUTPUT: {0: "batch"}}}
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # of tracing; that the file is right is checked by its scores
            program = torch.onnx.export(
                scorer,
                tuple(inputs[name] for name in names),
                None if used == "torch.export" else str(file),
                input_names=names,
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=used == "torch.export",
                **options,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise RunError(
            f"torch cannot write this model as ONNX ({used}): {str(error).strip().splitlines()[0]}",
            "use the format 'peft' or 'dense' where `handful check` says that it is possible",
        ) from None
    if program is not None:
        onnx.save(tidied(program.model_proto), file)
    return used


def tidied(model: Any) -> Any:
    """The ONNX message with the names of its sizes, and without what torch notes beside each node.

    That is lines of code with the folders they lie in on this machine.
    """
    given = model.graph.input[0].type.tensor_type.shape.dim
    names = {given[0].dim_param: "batch", given[1].dim_param: "length"}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size.dim_param)
    waiting = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            del node.metadata_props[:]
            waiting += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters log about their own steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
        (scores,) = session.run([OUTPUT], {name: inputs[name].numpy() for name in names})
    except (runtime.Fail, runtime.RuntimeException, runtime.InvalidArgument, runtime.NotImplemented) as error:
        raise RunError(
            f"onnxruntime cannot run the file: {error}",
            "nothing was saved; please report this with the versions that `handful doctor` prints",
        ) from None
    return torch.from_numpy(scores)
