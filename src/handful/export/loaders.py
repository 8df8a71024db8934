"""The code in an export's README: scores of texts with stock libraries only. This very code is what is verified."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, final

from handful.backbone.load import Pooling
from handful.export.format import HEAD, AbstractFormat, ExportPlan, Form
from handful.objectives.base import Objective

if TYPE_CHECKING:
    from handful.export.folder import ExportJob

_CODE = """{imports}

{setup}


@torch.no_grad()
def scores(inputs):
    {body}


inputs = tokenizer({texts}, truncation=True, max_length={max_length}, padding=True, return_tensors="pt")
print(labels, scores(inputs){activation})
"""
_LANGUAGE_MODEL_CODE = """{imports}

{setup}


@torch.no_grad()
def scores(inputs):  # of the token after each
    return model(**inputs).logits{behind}


def write(inputs):
    {write}


sources = [{prefix} + text{separator} for text in ["a source"]]
inputs = tokenizer(sources, {truncation}padding=True, return_tensors="pt"){unmarked}
print(tokenizer.batch_decode(write(inputs), skip_special_tokens=True))
"""
_PROMPTED = """words = model.word_embeddings(inputs["input_ids"])
words = torch.cat((model.get_prompt(len(words)), words), 1)
seen = torch.nn.functional.pad(inputs["attention_mask"], ({length}, 0), value=1)
plain = model.get_base_model()  # PEFT's own generate would move texts by the padding before them
return plain.generate(inputs_embeds=words, attention_mask=seen, generation_config=decoding)"""
_POOLED = {
    "mean": "features = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    "last": "features = hidden[torch.arange(len(mask)), (mask * torch.arange(mask.shape[1])).argmax(1)]",
}
_PREFIX = """seen = torch.nn.functional.pad(mask, ({length}, 0), value=1)  # {why}
past = model.get_prompt(len(mask))
{use} model.get_base_model()(**inputs | dict(attention_mask=seen), past_key_values=past).{output}"""
_PROMPT = """pad = lambda name, value: torch.nn.functional.pad(inputs[name], ({length}, 0), value=value)
longer = dict(attention_mask=pad("attention_mask", 1), token_type_ids=pad("token_type_ids", 0))
words = torch.cat((model.get_prompt(len(mask)), model.word_embeddings(inputs["input_ids"])), 1)
hidden = model.get_base_model()(inputs_embeds=words, **longer)  # PEFT's own forward would drop token types
hidden = hidden.last_hidden_state[:, {length}:]"""


@final
@dataclass(frozen=True)
class Loader:
    """What the README's code depends on.

    `base` is the pretrained model's name, on the hub where `base_on_hub`, or None where the export is the model itself.
    `length` is P for a prefix or prompt, `token_types` whether the tokenizer makes token types. `encoder` takes the
    encoder of an encoder-decoder, `model_class` ("module:name") stands in where no Auto class finds a whole model.
    `body` is the folder in which model and tokenizer are, where that is not the export's own. `own` is a loader of
    handful's, as a line that imports it and a call, in place of transformers'.

    Of several labels per text, those whose probability is above `threshold` are predicted.

    A language model `has_encoder`, or reads a source between `prefix` and `separator`, of which the mark at its end is
    taken off where it `ends_marked`.
    """

    format: AbstractFormat
    form: Form
    pooling: Pooling | None
    base: str | None
    max_length: int
    objective: Objective
    injected: Literal["layers", "prefix", "prompt"] = "layers"
    length: int = 0
    token_types: bool = False
    encoder: bool = False
    has_encoder: bool = False
    prefix: str = ""
    separator: str = ""
    ends_marked: bool = False
    model_class: str | None = None
    base_on_hub: bool = True
    body: str = ""
    own: tuple[str, str] | None = None
    threshold: float = 0.5

    @classmethod
    def of(
        cls, job: ExportJob, plan: ExportPlan, format: AbstractFormat, *, base: str | None = None, **details: Any
    ) -> Loader:
        """The loader of a job: what follows from task and backbone is filled in."""
        assert plan.form is not None
        whole = job.backbone.kind == "encoder-decoder"
        if job.generation:
            tokenizer = job.backbone.tokenizer
            details |= {
                "has_encoder": whole,
                "prefix": job.generation.source_prefix,
                "separator": "" if whole else job.generation.separator,
                "ends_marked": not whole and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id,
            }
        return cls(
            format=format,
            form=plan.form,
            pooling=job.backbone.pooling,
            base=base,
            max_length=job.max_length,
            objective=job.task.objective,
            threshold=job.adapter.label_threshold,
            **details,
        )

    @property
    def truncates(self) -> bool:
        """Whether the code cuts texts: a separator behind a source must not be cut off."""
        return not self.separator

    def code(self, base: str | None = None) -> str:
        """The Python code, which defines `scores(inputs)`: token ids and masks (B, S) → (B, C).

        Of a language model → (B, S, V), and `write(inputs)` → the tokens written (B, T). `base` is where the pretrained
        model is for whom runs it here.
        """
        return self.format.code(self if base is None else replace(self, base=base))

    @property
    def texts(self) -> str:
        """The example's arguments for a tokenizer."""
        return '["a text"], ["its second text"]' if self.objective.pairs else '["a text"]'

    @property
    def activation(self) -> str:
        """What makes probabilities of scores."""
        return self.objective.activation

    def stock_code(self) -> str:
        """The code with transformers, and with PEFT where there is a `base`."""
        if self.form == "language-model":
            return self._language_model_code()
        body = self._logits() if self.form == "classifier" else self._features()
        return _CODE.format(
            imports=self._imports(),
            setup="\n".join(self._setup()),
            body="\n".join(body).replace("\n", "\n    "),
            texts=self.texts,
            max_length=self.max_length,
            activation=self.activation,
        )

    def _language_model_code(self) -> str:
        prompted = self.injected == "prompt" and not self.has_encoder
        behind = "[:, 1:]" if self.has_encoder else '[:, inputs["input_ids"].shape[1]:]'
        plain = f"return model.generate(**inputs, generation_config=decoding){behind}"
        write = _PROMPTED.format(length=self.length) if prompted else plain
        return _LANGUAGE_MODEL_CODE.format(
            imports=self._imports(),
            setup="\n".join(self._setup()),
            behind=f"[:, {self.length}:]" if prompted else "",
            write=write.replace("\n", "\n    "),
            prefix=repr(self.prefix),
            separator=f" + {self.separator!r}" if self.separator else "",
            truncation=f"truncation=True, max_length={self.max_length}, " if self.truncates else "",
            unmarked="\ninputs = {name: rows[:, :-1] for name, rows in inputs.items()}" if self.ends_marked else "",
        )

    @property
    def _auto(self) -> str:
        if self.model_class:
            return self.model_class.partition(":")[2]
        if self.form == "language-model":
            return "AutoModelForSeq2SeqLM" if self.has_encoder else "AutoModelForCausalLM"
        return "AutoModelForSequenceClassification" if self.form == "classifier" else "AutoModel"

    def _imports(self) -> str:
        writes = self.form == "language-model"
        lines = [*([] if writes else ["import json"]), "from pathlib import Path", "", "import torch"]
        lines += ["from peft import PeftModel"] * (self.base is not None)
        lines += [self.own[0]] if self.own else []
        lines += ["from safetensors.torch import load_file"] * (self.form == "features")
        if self.own:
            return "\n".join([*lines, "from transformers import AutoTokenizer"])
        if self.model_class:
            lines += ["from transformers import AutoTokenizer"]
            return "\n".join([*lines, f"from {self.model_class.partition(':')[0]} import {self._auto}"])
        decoding = ", GenerationConfig" * writes
        return "\n".join([*lines, f"from transformers import {self._auto}, AutoTokenizer{decoding}"])

    def _setup(self) -> list[str]:
        lines = ['folder = Path(".")  # where this file is']
        if self.base is not None:
            where = "on the Hugging Face Hub, or a folder with it" if self.base_on_hub else "the folder that it is in"
            lines.append(f"base = {json.dumps(self.base)}  # the pretrained model: {where}")
        if self.form == "language-model":
            lines.append("decoding = GenerationConfig.from_pretrained(folder)")
        else:
            lines.append('labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))')
        if self.form == "features":
            file = f'"{HEAD}" / "model.safetensors"' if self.body else '"head.safetensors"'
            lines.append(f"head = load_file(folder / {file})")
        place = f'folder / "{self.body}"' if self.body else "folder"
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({place}, trust_remote_code=False)")
        if self.own:
            return [*lines, f"model = {self.own[1]}"]
        if self.base is None:
            return [
                *lines,
                f"model = {self._auto}.from_pretrained({place}, dtype=torch.float32, trust_remote_code=False).eval()",
            ]
        options = ["dtype=torch.float32", "trust_remote_code=False"]
        if self.form == "classifier":
            # several labels per text: with names alone, transformers' own pipeline would take a softmax over them
            several = self.objective.has_labels and not self.objective.has_classes
            problem = f', problem_type="{self.objective.problem_type}"' if several else ""
            lines.append(f"outputs = dict(num_labels=len(labels), id2label=dict(enumerate(labels)){problem})")
            options.append("**outputs")
        encoder = ".get_encoder()" if self.encoder else ""
        lines.append(f"model = {self._auto}.from_pretrained(base, {', '.join(options)}){encoder}")
        return [*lines, "model = PeftModel.from_pretrained(model, folder).eval()"]

    def _logits(self) -> list[str]:
        if self.injected != "prefix":
            return ["return model(**inputs).logits"]
        why = "PEFT's own forward asks for past_key_values by name, which transformers 5.24 calls cache"
        prefix = _PREFIX.format(length=self.length, why=why, use="return", output="logits")
        return ['mask = inputs["attention_mask"]', prefix]

    def _features(self) -> list[str]:
        hidden = "hidden = model(**inputs).last_hidden_state"
        if self.injected == "prefix" and self.token_types:
            why = "PEFT's own forward would drop token types"
            hidden = _PREFIX.format(length=self.length, why=why, use="hidden =", output="last_hidden_state")
        elif self.injected == "prompt" and self.token_types:
            hidden = _PROMPT.format(length=self.length)
        elif self.injected == "prompt":
            hidden += f"[:, {self.length}:]"
        name = "linear." if self.body else ""
        result = f'return torch.nn.functional.linear(features, head["{name}weight"], head["{name}bias"])'
        return ['mask = inputs["attention_mask"]', hidden, _POOLED[self.pooling or "mean"], result]
