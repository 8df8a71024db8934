"""An export folder: weights, tokenizer, labels and a README whose code is run before the folder gets its name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from functools import partial as bind
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file

from handful import __version__
from handful.backbone.load import Backbone, hub_name
from handful.data.batching import EncodedRows, encode
from handful.data.task import Example, Task
from handful.errors import ConfigError, RunError
from handful.export.loaders import Loader
from handful.export.plan import ExportPlan, method_of
from handful.export.size import Size
from handful.export.verify import can_verify, compare, is_close, stock_scores
from handful.methods.head import AbstractHeadedAdapter
from handful.runs.store import new_folder

RECORD = "export.json"
VERIFIED_ROWS, VERIFIED_LENGTH = 8, 64
_SENTENCES = ("A short text.", "Another one, which is a good deal longer than the first.", "What is this?", "No!")


@final
@dataclass(frozen=True)
class ExportReport:
    """A written export. `difference` is the largest between its scores and ours, None where it was not verified.

    `size` says how much smaller and faster it is, where anything was taken out of the model.
    """

    folder: Path
    plan: ExportPlan
    difference: float | None
    verification: str
    size: Size | None = None


@final
@dataclass(frozen=True)
class ExportJob:
    """One export: what, where to, and the rows to verify it with (default: the task's first ones).

    `max_length` is the most tokens of a text for which the stock libraries compute what we do.
    """

    adapter: AbstractHeadedAdapter
    backbone: Backbone
    task: Task
    folder: Path
    max_length: int
    card: str | None = None
    overwrite: bool = False
    rows: EncodedRows | None = None

    @property
    def base(self) -> str:
        """The pretrained model as stock libraries name it. Raises: ConfigError where it cannot be found any more."""
        name = self.backbone.model.name_or_path or ""
        path = Path(name)
        if not name or (path.is_absolute() and not path.is_dir()):
            raise ConfigError(
                f"{self.backbone.name}: the folder it was loaded from is gone ({name or 'none'})",
                "an adapter is loaded onto the pretrained model: load that from a folder that stays",
            )
        return str(path.resolve()) if path.is_dir() else name

    def write(
        self,
        plan: ExportPlan,
        loader: Loader,
        fill: Callable[[Path], Size | None],
        rounding: Callable[[Mapping[str, torch.Tensor]], float] | None = None,
    ) -> ExportReport:
        """The folder, complete and verified or not at all; `fill` writes what is particular to the format.

        What `fill` returns says how much smaller that is than the full model, where it is; `rounding` is how far
        float32 scores of inputs are from float64 ones, see `compare`.

        Raises: RunError when the folder exists (and `overwrite` is off), cannot be written, or gives other scores.
        """
        refuse_existing(self.folder, self.overwrite)
        with new_folder(self.folder) as partial:
            self._write_common(partial, loader)
            size = fill(partial)
            (partial / "README.md").write_text(self._readme(plan, loader, size), encoding="utf-8")
            difference, verification = self._verify(partial, loader, rounding)
            record = self._record(plan, difference, verification, size)
            (partial / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        return ExportReport(self.folder, plan, difference, verification, size)

    def _write_common(self, partial: Path, loader: Loader) -> None:
        tokenizer = copy.deepcopy(self.backbone.tokenizer)
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n in self.sample[0]]
        tokenizer.save_pretrained(partial)
        labels = list(self.task.labels) or ["value"]
        (partial / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
        if loader.form == "features" and loader.file != "onnx":
            weight, bias = self.adapter.head.folded()
            save_file({"weight": weight.cpu().contiguous(), "bias": bias.cpu()}, partial / "head.safetensors")

    @cached_property
    def sample(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A padded batch (B, S) and its rows' scores (B, C) in target units."""
        backbone, adapter = self.backbone, self.adapter
        rows = self.rows
        if rows is None:
            pair = self.task.kind == "pair-classification"
            spare = [Example(text, _SENTENCES[0] if pair else None) for text in _SENTENCES]
            examples = self.task.pool[:VERIFIED_ROWS] or spare
            rows = encode(examples, backbone.tokenizer, min(VERIFIED_LENGTH, self.max_length), kind=self.task.kind)
        batch = rows.batch(range(min(VERIFIED_ROWS, len(rows)))).to(backbone.device)
        was_training = adapter.training
        adapter.eval().begin_batch(None)
        with torch.no_grad():
            scores = adapter.target_scores(batch).float().cpu()
        adapter.train(was_training)
        accepted = backbone.accepted(batch.inputs)
        return {name: tensor.cpu() for name, tensor in accepted.items() if isinstance(tensor, torch.Tensor)}, scores

    def _verify(
        self, partial: Path, loader: Loader, rounding: Callable[[Mapping[str, torch.Tensor]], float] | None
    ) -> tuple[float | None, str]:
        if not can_verify(loader.package):
            return None, f"not verified: {loader.package} is not installed"
        inputs, expected = self.sample
        found = torch.as_tensor(stock_scores(partial, loader.code(), inputs))
        noise = rounding and cache(bind(rounding, inputs))
        unit = float(self.adapter.head.scale)
        difference = compare(found, expected, unit, noise)
        who = f"scores of {len(expected)} rows, computed by {loader.libraries} in a fresh process"
        known = "" if is_close(difference, expected, unit) or not noise else f"; float32 rounds them by {noise():.2g}"
        return difference, f"{who}, differ by at most {difference:.2g}{known}"

    def _readme(self, plan: ExportPlan, loader: Loader, size: Size | None) -> str:
        outputs = "one number" if self.task.kind == "regression" else "one score for each name in labels.json"
        hub = hub_name(self.backbone.name)
        lines = [
            f"# {_plain(self.task.name)}: {method_of(self.adapter).name} on {_plain(self.backbone.name)}",
            "",
            f"This folder holds {plan.summary}. It gives {outputs}, and {loader.needs}:",
            "",
            f"```python\n{loader.code()}```",
            "",
            f"The pretrained model is {_plain(self.backbone.name)}{f' (hub: {hub})' if hub else ''}. Longer texts "
            f"are cut to {loader.max_length} tokens. Written by handful {__version__}; what was verified, and how, "
            f"stands in {RECORD}.",
            *(("", *(f"- {sentence}" for sentence in size.sentences())) if size else ()),
        ]
        return "\n".join(lines) + (f"\n\n{self.card}\n" if self.card else "\n")

    def _record(
        self, plan: ExportPlan, difference: float | None, verification: str, size: Size | None
    ) -> Mapping[str, Any]:
        return {
            "handful": __version__,
            "method": method_of(self.adapter).name,
            "task": {"name": self.task.name, "kind": self.task.kind, "labels": list(self.task.labels)},
            "backbone": {"name": self.backbone.name, "fingerprint": self.backbone.fingerprint},
            "form": plan.form,
            "summary": plan.summary,
            "difference": difference,
            "verification": verification,
            "size": asdict(size) if size else None,
        }


def _plain(name: str) -> str:
    """A name from outside as part of one line of Markdown."""
    return " ".join(name.replace("`", "'").split())


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises: RunError when the folder is there, unless it is an older export (or empty) and `overwrite` is on."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise RunError(f"{folder}: expected no such folder, found one", "give another one, or overwrite it")
    if not (folder / RECORD).is_file():
        raise RunError(
            f"{folder}: expected an older export to overwrite, found no {RECORD} in it", "remove the folder yourself"
        )
