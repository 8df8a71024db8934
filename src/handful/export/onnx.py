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
from typing import Any, ClassVar, Literal, final

import torch

from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.errors import RunError
from handful.export.folded import Folded, Scorer, labelled
from handful.export.folder import ExportJob, ExportReport
from handful.export.format import AbstractFormat, ExportPlan, family_of, folds_not
from handful.export.loaders import Loader
from handful.export.size import Size
from handful.export.verify import compare
from handful.methods.base import AbstractMethod
from handful.methods.exports import Exports, Product

OPSET = 18
FILE, OUTPUT = "model.onnx", "logits"
BY_EXPORT = (2, 9)
"""The first torch whose exporter by `torch.export` is its own default."""

INSTALL_ONNX = "pip install 'handful[onnx]'"
MAX_ONNX_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, which cannot be longer."""

Exporter = Literal["torch.export", "TorchScript"]

_CODE = """import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

folder = Path(".")  # where this file is
labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def scores(inputs):
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict((name, np.asarray(inputs[name], np.int64)) for name in names))[0]


def {answer}


{example}
"""
_SETS = """classify(*texts):  # each text's labels, and the probability of every label by its name
    inputs = tokenizer(*texts, truncation=True, max_length={max_length}, padding=True, return_tensors="np")
    found = 1 / (1 + np.exp(-scores(inputs)))
    rows = [dict(zip(labels, row.tolist())) for row in found]
    return [([label for label in row if row[label] > {threshold}], row) for row in rows]"""
_LABELS = """classify(*texts):  # each text's label, and the probability of every label by its name
    inputs = tokenizer(*texts, truncation=True, max_length={max_length}, padding=True, return_tensors="np")
    found = scores(inputs)
    found = np.exp(found - found.max(-1, keepdims=True))
    found /= found.sum(-1, keepdims=True)
    return [(labels[row.argmax()], dict(zip(labels, row.tolist()))) for row in found]"""
_NUMBERS = """numbers(*texts):  # each text's number
    inputs = tokenizer(*texts, truncation=True, max_length={max_length}, padding=True, return_tensors="np")
    return scores(inputs)[:, 0].tolist()"""


@final
class Onnx(AbstractFormat):
    """A whole model with its head in one file, for any ONNX runtime."""

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "a whole model with its head as one ONNX file"
    article: ClassVar[str] = "an ONNX model"
    products: ClassVar[tuple[Product, ...]] = ("smaller model", "merged weights", "prefix")
    instead: ClassVar[tuple[str, ...]] = ("peft", "dense")
    requires: ClassVar[tuple[str, str] | None] = ("onnx", INSTALL_ONNX)
    library: ClassVar[str] = "onnx"
    libraries: ClassVar[str] = "onnxruntime"
    package: ClassVar[str | None] = "onnxruntime"
    needs: ClassVar[str] = (
        "needs onnxruntime and transformers' tokenizers, and neither torch nor handful (models and pipelines of "
        "transformers refuse the folder, as it has no weights that they can read)"
    )
    stock_model: ClassVar[bool] = False

    def lacking(self, method: AbstractMethod, exports: Exports) -> str:
        return folds_not(method)

    def obstacle(self, method: AbstractMethod, backbone: Backbone | str) -> str | None:
        size = 0 if isinstance(backbone, str) else sum(p.nbytes for p in backbone.model.parameters())
        too_large = f"{size / 1e9:.1f} GB of weights are more than one ONNX file can hold"
        return super().obstacle(method, backbone) or (too_large if size > MAX_ONNX_BYTES else None)

    def missing_bias(self, family: str) -> str | None:
        return None

    def describe(self, backbone: Backbone | str, pooling: str, task: Task | None) -> ExportPlan:
        form = "classifier" if pooling == "family" else "features"
        return ExportPlan(form, f"{self.article} of {family_of(backbone)} with its head")

    def write(self, job: ExportJob, plan: ExportPlan) -> ExportReport:
        """Where onnxruntime is installed, it must get our scores first."""
        folded = Folded(job, plan, "ragged")

        def fill(partial: Path) -> Size | None:
            scorer = folded.scorer(folded.shrunk.model)
            used = save_onnx(scorer, folded.inputs(2, 8, padded=True), partial / FILE)
            outline = {"opset": OPSET, "inputs": list(scorer.names), "outputs": [OUTPUT], "exporter": used}
            (partial / "onnx.json").write_text(json.dumps(outline, indent=1), encoding="utf-8")
            labelled(folded.full.config, job.task).to_json_file(partial / "config.json")
            if find_spec("onnxruntime") is None:
                return None
            run, batch = bind(run_onnx, open_onnx(partial / FILE)), folded.inputs(3, 20, padded=True)
            with torch.no_grad():
                expected = folded.scorer(folded.full).scores(batch)
            compare(run(batch), expected, job.unit, bind(folded.rounding, batch))
            return folded.measured(partial, run, "onnxruntime")

        return job.write(plan, Loader.of(job, plan, self), fill, folded.rounding)

    def code(self, loader: Loader) -> str:
        objective = loader.objective
        answer = _LABELS if objective.has_classes else _SETS if objective.has_labels else _NUMBERS
        answer = answer.format(max_length=loader.max_length, threshold=loader.threshold)
        return _CODE.format(answer=answer, example=f"print({answer.partition('(')[0]}({loader.texts}))")

    def stock_calls(self, loader: Loader, task: Task) -> list[str]:
        return []


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
