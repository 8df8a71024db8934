"""An export folder: weights, tokenizer, labels and a README whose code is run before the folder gets its name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from functools import partial as bind
from itertools import zip_longest
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file

from handful import __version__
from handful.backbone.load import Backbone, hub_name
from handful.data.batching import NO_LOSS, Batch, encode
from handful.data.task import Example, Task
from handful.errors import ConfigError, RunError
from handful.evaluation.estimate import Estimate
from handful.evaluation.evaluate import encode_for
from handful.evaluation.text.generate import GenerationOptions
from handful.export.format import ExportPlan, plain
from handful.export.loaders import Loader
from handful.export.size import Size
from handful.export.verify import allowance, can_verify, compare, is_close, stock_scores
from handful.methods.head import AbstractHeadedAdapter
from handful.runs.metadata import front_matter, hub_dataset, public_model, score_fields, task_fields
from handful.runs.store import new_folder
from handful.storage import foreign, read_json

RECORD = "export.json"
VERIFIED_ROWS, VERIFIED_LENGTH, WRITTEN_ROWS = 8, 64, 4
_THRESHOLD = "Handful predicts a label where its probability is above {:.6g}; stock calls give probabilities alone."
_SENTENCES = ("A short text.", "Another one, which is a good deal longer than the first.", "What is this?", "No!")


@final
@dataclass(frozen=True)
class ExportReport:
    """A written export. `difference` is the largest between its scores and ours, None where it was not verified.

    `size` says how much smaller and faster it is, where anything was taken out of the model; `notes` what else there
    is to know.
    """

    folder: Path
    plan: ExportPlan
    difference: float | None
    verification: str
    size: Size | None = None
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Card:
    """What an export's README says of the run: a text, and scores on its test rows."""

    text: str
    scores: Mapping[str, Estimate] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class ExportJob:
    """One export: what, where to, and of a language model how it is asked and writes.

    `max_length` is the most tokens of a text for which the stock libraries compute what we do. `notes` go into the
    README and the report.
    """

    adapter: AbstractHeadedAdapter
    backbone: Backbone
    task: Task
    folder: Path
    max_length: int
    card: Card | None = None
    overwrite: bool = False
    generation: GenerationOptions | None = None
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> float:
        """The scores' unit, for the tolerance of comparisons."""
        return 1.0 if self.generation else float(self.adapter.head.scale)

    @property
    def base(self) -> str:
        """The pretrained model's name for others: on the hub where that is known, or of its folder without the path."""
        return hub_name(self.backbone.name) or Path(self.location).name

    @property
    def location(self) -> str:
        """Where the pretrained model is here. Raises: ConfigError where it cannot be found any more."""
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
        with new_folder(self.folder, _refuse_foreign) as partial:
            self._write_common(partial, loader)
            size = fill(partial)
            if self.generation:  # behind `fill`: whoever saves a language model writes its own
                self._save_decoding(partial, self.generation)
            (partial / "README.md").write_text(self._readme(plan, loader, size), encoding="utf-8")
            difference, verification = self._verify(partial, loader, rounding)
            names = [path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()]
            record = {**self._record(plan, difference, verification, size), "files": sorted([*names, RECORD])}
            (partial / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        return ExportReport(self.folder, plan, difference, verification, size, self.notes)

    def _write_common(self, partial: Path, loader: Loader) -> None:
        tokenizer = copy.deepcopy(self.backbone.tokenizer)
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n in self.sample[0]]
        if loader.form != "language-model":
            tokenizer.model_max_length = self.max_length  # where `truncation=True` cuts
        tokenizer.save_pretrained(partial / loader.body)
        if loader.form == "language-model":
            return
        labels = list(self.task.labels) or ["value"]
        (partial / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
        if loader.form == "features" and loader.format.head_beside:
            weight, bias = self.adapter.head.folded()
            save_file({"weight": weight.cpu().contiguous(), "bias": bias.cpu()}, partial / "head.safetensors")

    def _decoding(self, options: GenerationOptions) -> Any:
        """The checkpoint's own `GenerationConfig` with the run's decoding."""
        config = copy.deepcopy(self.backbone.model.generation_config)
        config.update(**self.backbone.decoding(**options.decoding()).to_diff_dict())  # type: ignore[union-attr]
        return config

    def _save_decoding(self, partial: Path, options: GenerationOptions) -> None:
        self._decoding(options).to_json_file(partial / "generation_config.json")

    def _batch(self, *, to_write: bool = False) -> Batch:
        """Padded rows: the task's first ones or, where it has none, sentences of ours."""
        pair = _SENTENCES[0] if self.task.objective.pairs else None
        references = _SENTENCES[:2] if self.generation else ()
        spare = [Example(text, pair, references=references) for text in _SENTENCES]
        examples, most = self.task.pool[:VERIFIED_ROWS] or spare, min(VERIFIED_LENGTH, self.max_length)
        if self.generation:
            rows = encode_for(self.adapter, examples, self.task, most, self.generation, to_write=to_write)
        else:
            rows = encode(examples, self.backbone.tokenizer, most, kind=self.task.kind)
        number = min(WRITTEN_ROWS if to_write else VERIFIED_ROWS, len(rows))
        return rows.batch(range(number)).to(self.backbone.device)

    @cached_property
    def sample(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A padded batch (B, S) and its rows' scores (B, C) in target units, or those of their N tokens (N, V)."""
        batch = self._batch()
        with self._evaluating() as adapter:
            scores = adapter.target_scores(batch).float().cpu()
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "labels"}
        if self.generation and self.backbone.kind == "encoder-decoder":
            model: Any = self.backbone.model
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch.labels)
        accepted = self.backbone.accepted(inputs)
        return {name: tensor.cpu() for name, tensor in accepted.items() if isinstance(tensor, torch.Tensor)}, scores

    def _of_targets(self, found: torch.Tensor) -> torch.Tensor:
        """Of a language model's scores (B, T, V), those of the tokens to write (N, V); others (B, C) as they are."""
        if not self.generation:
            return found
        labels = self._batch().inputs["labels"].cpu()
        if self.backbone.kind == "encoder-decoder":
            return found[labels != NO_LOSS]
        return found[:, :-1][labels[:, 1:] != NO_LOSS]

    @contextmanager
    def _evaluating(self) -> Iterator[AbstractHeadedAdapter]:
        """The adapter at its midpoint, without gradients."""
        was_training = self.adapter.training
        self.adapter.eval()
        with torch.no_grad():
            yield self.adapter
        self.adapter.train(was_training)

    def _base_here(self, loader: Loader) -> str | None:
        """What stands in for `loader.base` where the code is run on this machine."""
        return self.location if loader.base is not None else None

    def _verify(
        self, partial: Path, loader: Loader, rounding: Callable[[Mapping[str, torch.Tensor]], float] | None
    ) -> tuple[float | None, str]:
        if not can_verify(loader.format.package):
            return None, f"not verified: {loader.format.package} is not installed"
        inputs, expected = self.sample
        found = self._of_targets(torch.as_tensor(stock_scores(partial, loader.code(self._base_here(loader)), inputs)))
        noise = rounding and cache(bind(rounding, inputs))
        difference = compare(found, expected, self.unit, noise)
        what = "tokens" if self.generation else "rows"
        who = f"scores of {len(expected)} {what}, computed by {loader.format.libraries} in a fresh process"
        close = is_close(difference, expected, self.unit)
        known = "" if close or not noise else f"; roundings of float32 make up to {noise():.2g}"
        allowed = bind(allowance, expected, self.unit, noise)
        written = self._verify_writing(partial, loader, difference, allowed) if self.generation else ""
        return difference, f"{who}, differ by at most {difference:.2g}{known}{written}"

    def _verify_writing(self, partial: Path, loader: Loader, difference: float, allowed: Callable[[], float]) -> str:
        """In words, how many texts are the same as ours.

        Where scores differ by roundings another text may do, if the first token in which it differs is as good by our
        scores, up to what two scores are `allowed` to move. A search with beams weighs whole texts: then those written
        without are judged so. Raises: RunError for any other text.
        """
        assert self.generation is not None
        options, batch = self.generation, self._batch(to_write=True)
        expected, found = self._written(partial, loader, batch, options)
        same, beams = sum(a == b for a, b in zip(expected, found, strict=True)), options.beams
        said = f"; {same} of {len(expected)} texts written with {beams} beam{'s'[: beams > 1]} have the same tokens"
        if same == len(expected):
            return said
        if difference and beams > 1:
            expected, found = self._written(partial, loader, batch, replace(options, beams=1))
            self._save_decoding(partial, options)
        pairs = enumerate(zip(expected, found, strict=True))
        gap = max((self._gap(batch, row, a, b) for row, (a, b) in pairs if a != b), default=0.0)
        if not difference or gap > 2 * allowed():
            raise RunError(
                f"the stock libraries write other texts with the export ({same} of {len(expected)} are the same)",
                "nothing was saved; please report this with the versions that `handful doctor` prints",
            )
        return f"{said}; where others{' without beams' * (beams > 1)} part, scores are apart by at most {gap:.2g}"

    def _written(
        self, partial: Path, loader: Loader, batch: Batch, options: GenerationOptions
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of each row's text without padding, ours and those of the README's code."""
        self._save_decoding(partial, options)
        with self._evaluating() as adapter:
            ours = adapter.generate(batch, **options.decoding()).cpu()
        inputs = {name: tensor.cpu() for name, tensor in batch.inputs.items()}
        theirs = stock_scores(partial, loader.code(self._base_here(loader)), inputs, "write")
        pad = self.backbone.tokenizer.pad_token_id
        return [_unpadded(row, pad) for row in ours.tolist()], [_unpadded(row, pad) for row in theirs.tolist()]

    def _gap(self, batch: Batch, row: int, ours: list[int], theirs: list[int]) -> float:
        """How far apart our scores are of the first tokens in which two texts of a row differ."""
        end: Any = self.backbone.tokenizer.pad_token_id  # which is the end token where that was taken off as padding
        tokens = zip_longest(ours, theirs, fillvalue=end)
        place, (mine, other) = next((place, pair) for place, pair in enumerate(tokens) if pair[0] != pair[1])
        text = torch.tensor([[*ours[:place], mine]], device=self.backbone.device)
        inputs, labels = {name: tensor[row : row + 1] for name, tensor in batch.inputs.items()}, text
        if self.backbone.kind != "encoder-decoder":
            source = inputs["input_ids"][inputs["attention_mask"].bool()][None]  # without the padding before it
            ids = torch.cat((source, text), 1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            labels = torch.cat((torch.full_like(source, NO_LOSS), text), 1)
        with self._evaluating() as adapter:
            scores = adapter.target_scores(Batch(inputs | {"labels": labels}, labels, batch.rows[row : row + 1]))[-1]
        return float((scores[mine] - scores[other]).abs())

    def _readme(self, plan: ExportPlan, loader: Loader, size: Size | None) -> str:
        name = plain(self.public_name)
        cut = "Longer texts are cut" if loader.truncates else "Sources should be kept"
        lines = [
            f"# {plain(self.task.name)}: {self.adapter.method.name} on {name}",
            "",
            f"This folder holds {plan.summary}. It gives {self.task.objective.outputs}, and {loader.format.needs}:",
            "",
            f"```python\n{loader.code()}```",
            *(line for sentence in loader.format.stock_calls(loader, self.task) for line in ("", sentence)),
            *(("", _THRESHOLD.format(self.adapter.label_threshold)) if self.task.objective.thresholds else ()),
            "",
            f"The pretrained model is {name}. {cut} to {loader.max_length} tokens. Written by handful {__version__}; "
            f"what was verified, and how, stands in {RECORD}.",
            *(("", _UNUSED_POOLER) if self._lacks_pooler(plan, loader) else ()),
            *(("", *(f"- {sentence}" for sentence in self.notes)) if self.notes else ()),
            *(("", *(f"- {sentence}" for sentence in size.sentences())) if size else ()),
        ]
        text = "\n".join(lines) + (f"\n\n{self.card.text}\n" if self.card else "\n")
        return f"{front_matter(self._fields(loader))}\n\n{text}"

    @property
    def public_name(self) -> str:
        """The pretrained model's name for others, also where it is gone from here."""
        hub = hub_name(self.backbone.name)
        return hub or public_model(self.backbone.name, hub)

    def _fields(self, loader: Loader) -> dict[str, Any]:
        """What the Hugging Face Hub reads at the top of a README."""
        method, hub = self.adapter.method.name, hub_name(self.backbone.name)
        found = self.card.scores if self.card else {}
        dataset = hub_dataset(self.task.origin)
        title = f"{self.task.name}: {method} on {self.public_name}"
        return {
            "library_name": loader.format.library,
            **task_fields(self.task.kind, method),
            "base_model": hub,
            "base_model_relation": hub and ("adapter" if loader.base else "finetune"),
            "datasets": [dataset] if dataset else None,
            **score_fields(title, self.task.name, self.task.kind, found, dataset),
        }

    def _lacks_pooler(self, plan: ExportPlan, loader: Loader) -> bool:
        """Whether transformers will say that a pooler is missing, which the code does not use."""
        stock = plan.form == "features" and loader.format.stock_model
        return stock and getattr(self.backbone.model, "pooler", ...) is None

    def _record(
        self, plan: ExportPlan, difference: float | None, verification: str, size: Size | None
    ) -> Mapping[str, Any]:
        task: dict[str, Any] = {"name": self.task.name, "kind": self.task.kind, "labels": list(self.task.labels)}
        task |= {"threshold": self.adapter.label_threshold} if self.task.objective.thresholds else {}
        return {
            "handful": __version__,
            "method": self.adapter.method.name,
            "task": task,
            "backbone": {"name": self.public_name, "fingerprint": self.backbone.fingerprint},
            "form": plan.form,
            "summary": plan.summary,
            "difference": difference,
            "verification": verification,
            "notes": list(self.notes),
            "size": asdict(size) if size else None,
        }


_UNUSED_POOLER = (
    "transformers may report weights of a pooler as missing and newly initialised: the code above does not use them."
)


def _unpadded(tokens: list[int], pad: object) -> list[int]:
    """The tokens up to the padding behind them."""
    while tokens and tokens[-1] == pad:
        tokens = tokens[:-1]
    return tokens


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises: RunError when the folder is there, unless it is an older export (or empty) and `overwrite` is on."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise RunError(
            f"{folder}: expected no such folder, found one",
            "give another one; an older export is replaced with --overwrite",
        )
    _refuse_foreign(folder)


EARLIER_FILES = frozenset(
    [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "export.json",
        "generation_config.json",
        "head.safetensors",
        "labels.json",
        "merges.txt",
        "model.onnx",
        "model.safetensors",
        "onnx.json",
        "sentencepiece.bpe.model",
        "sizes.json",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    ]
)
"""What exports hold that do not list their files."""


def _refuse_foreign(folder: Path) -> None:
    """Raises: RunError where a folder that is to be replaced is no export, or holds what none has written."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or "handful" not in record:
        raise RunError(
            f"{folder}: expected an older export to overwrite, found no {RECORD} in it", "remove the folder yourself"
        )
    listed = record.get("files")
    known = frozenset(map(str, listed)) if isinstance(listed, list) else EARLIER_FILES
    if found := foreign(folder, known.__contains__):
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise RunError(
            f"{folder}: holds what the older export has not written: {named}",
            "move it elsewhere, or give another folder; nothing was removed",
        )
