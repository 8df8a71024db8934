"""What the usual stock calls make of every kind of export folder, in a process that cannot import handful.

Each gives the right labels by name with our scores, or raises: never a head of random weights.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from handful.backbone.load import load_backbone
from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.data.batching import encode
from handful.data.task import Example
from handful.export.formats import export
from handful.methods.gates.fine_gates import FineGates
from handful.methods.head import Head
from handful.methods.peft_bridge import LoRA
from handful.methods.prefix import Prefix
from handful.methods.prompt import Prompt
from handful.testing import toy_task

TEXTS = ["A short text.", "Another one, which is a good deal longer than the first.", "No!", "7 of 10"]
SINGLE, NUMBER, MANY = "classification", "regression", "multilabel"
LABELS = ("so-so", "Good, really", "2")


@dataclass(frozen=True)
class Case:
    family: str
    pooling: str
    method: object
    format: str
    kind: str = SINGLE

    @property
    def name(self):
        return f"{self.family}-{self.pooling}-{self.method.name}-{self.format}-{self.kind}"


HOLDS = [  # the stock class holds the head
    *(Case(family, "mean", Head(), "dense") for family in ("roberta", "electra", "distilbert", "modernbert")),
    Case("deberta-v2", "mean", LoRA(), "dense"),
    *(Case(family, "last", Head(), "dense") for family in ("gpt2", "opt", "gpt-neox")),
    Case("llama", "last", LoRA(), "dense"),
    Case("bert", "mean", Head(), "dense"),
    Case("bert", "mean", LoRA(), "dense", NUMBER),
    Case("bert", "mean", FineGates(), "dense"),
    Case("bert", "family", LoRA(), "dense"),
    Case("mpnet", "family", Head(), "dense", NUMBER),
    Case("bert", "mean", LoRA(), "dense", MANY),
    Case("roberta", "family", Head(), "dense", MANY),
]
APART = [
    *(Case(family, "mean", Head(), "dense") for family in ("albert", "mpnet", "t5", "bart", "gpt2")),
    Case("qwen3", "last", Head(), "dense"),
    *(Case(family, "mean", Head(), "sentence-transformers") for family in ("bert", "distilbert", "t5")),
    Case("llama", "last", Head(), "sentence-transformers", NUMBER),
    Case("bert", "mean", LoRA(), "sentence-transformers", MANY),
]
OURS = [
    Case("bert", "mean", FineGates(), "compact"),
    Case("bert", "family", FineGates(), "compact"),
    Case("bert", "mean", Head(), "onnx"),
    Case("bert", "mean", FineGates(), "compact", MANY),
    Case("bert", "family", FineGates(), "compact", MANY),
    Case("bert", "mean", Head(), "onnx", MANY),
]
ADAPTERS = [
    Case("bert", "mean", Prefix(prefix_length=4), "peft"),
    Case("bert", "mean", LoRA(), "peft"),
    Case("bert", "family", LoRA(), "peft"),
    Case("roberta", "family", Prefix(prefix_length=4), "peft"),
    Case("electra", "family", Prompt(prompt_length=4), "peft"),
    Case("llama", "last", LoRA(), "peft", NUMBER),
    Case("bert", "mean", LoRA(), "peft", MANY),
    Case("bert", "family", LoRA(), "peft", MANY),
    Case("bert", "mean", Prefix(prefix_length=4), "peft", MANY),
    Case("roberta", "family", Prefix(prefix_length=4), "peft", MANY),
]
CASES = [*HOLDS, *APART, *OURS, *ADAPTERS]
THRESHOLD = 0.375
LABEL_SETS = [case for case in CASES if case.kind == MANY]

SCRIPT = """
import importlib.abc, json, sys, warnings
from pathlib import Path

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "handful":
            raise ImportError("handful is not here")

sys.meta_path.insert(0, Without())
warnings.simplefilter("ignore")
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(1)
plan = json.loads(sys.stdin.read())
TEXTS = plan["texts"]

def by_pipeline(folder):
    classify = pipeline("text-classification", model=folder, device="cpu")
    rows = classify(TEXTS, top_k=None, truncation=True, batch_size=2)
    return [{each["label"]: each["score"] for each in row} for row in rows]

def loaded(model, folder, **inputs):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt", **inputs)
    with torch.no_grad():
        logits = model.eval()(**rows).logits
    config = model.config
    return {"names": [config.id2label[i] for i in range(config.num_labels)], "scores": logits.tolist(),
            "problem": config.problem_type, "ids": config.label2id}

def by_auto(folder):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    found = loaded(model, folder)
    half = loaded(model.half(), folder)["scores"]
    return found | {"half": ["nan" if number != number else number for row in half for number in row]}

def by_auto_inside(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder + "/0_Transformer")
    return loaded(model, folder + "/0_Transformer")

def by_auto_peft(folder):
    return loaded(AutoPeftModelForSequenceClassification.from_pretrained(folder), folder)

def by_peft(folder, base, labels):
    outputs = dict(num_labels=len(labels), id2label=dict(enumerate(labels)))
    model = AutoModelForSequenceClassification.from_pretrained(base, **outputs)
    return loaded(PeftModel.from_pretrained(model, folder), folder)

def by_sentences(folder):
    return SentenceTransformer(folder, device="cpu").encode(TEXTS, batch_size=3).tolist()

def attempt(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}

found = {}
for name, job in plan["jobs"].items():
    folder, format = job["folder"], job["format"]
    found[name] = {"pipeline": attempt(by_pipeline, folder), "auto": attempt(by_auto, folder)}
    if format == "peft":
        found[name]["auto-peft"] = attempt(by_auto_peft, folder)
        found[name]["peft"] = attempt(by_peft, folder, job["base"], job["labels"])
    if (Path(folder) / "0_Transformer").is_dir():
        found[name]["inside"] = attempt(by_auto_inside, folder)
    if (Path(folder) / "modules.json").is_file():
        found[name]["sentences"] = attempt(by_sentences, folder)
print("FOUND" + json.dumps(found))
"""


def make(case, root):
    """The export's folder, and our scores of the texts (B, C)."""
    base = root / "models" / case.family
    if not base.is_dir():
        tiny_model(case.family).save_pretrained(base)
        tiny_tokenizer(case.family).save_pretrained(base)
    backbone, task = load_backbone(str(base), pooling=case.pooling), toy_task(NUMBER if case.kind == NUMBER else SINGLE)
    if case.kind != NUMBER:
        task = replace(task, labels=LABELS)
    if case.kind == MANY:
        pool = tuple(
            replace(row, label=(row.label, 1 - row.label, index % 3 // 2)) for index, row in enumerate(task.pool)
        )
        task = replace(task, kind=MANY, metric="micro_f1", pool=pool)
    adapter = case.method.attach(backbone, task, generator=torch.Generator().manual_seed(1)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if case.kind == NUMBER:
            adapter.head.scale.fill_(50.0)
            adapter.head.offset.fill_(1000.0)
    adapter.label_threshold = THRESHOLD
    export(adapter, backbone, task, root / case.name, case.format)
    rows = encode([Example(text) for text in TEXTS], backbone.tokenizer, 64, kind=SINGLE)
    with torch.no_grad():
        scores = adapter.target_scores(rows.batch(range(len(TEXTS))))
    adapter.detach()
    return scores


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders, our scores by case, and what the stock calls gave in the other process."""
    root = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:  # the calls below are the verification
        patch.setattr("handful.export.folder.can_verify", lambda package: False)
        scores = {case.name: make(case, root) for case in CASES}
    jobs = {
        case.name: {
            "folder": str(root / case.name), "format": case.format, "base": str(root / "models" / case.family),
            "labels": ["value"] if case.kind == NUMBER else list(LABELS),
        }
        for case in CASES
    }  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT],
        input=json.dumps({"texts": TEXTS, "jobs": jobs}), cwd=root, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return root, scores, json.loads(result.stdout.partition("FOUND")[2])


def refused(found):
    """What the call said. Fails where it gave anything but an error."""
    assert isinstance(found, dict)
    assert set(found) == {"error"}
    return found["error"]


def ids(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize("case", HOLDS, ids=ids(HOLDS))
def test_the_stock_class_gives_our_scores_by_name(case, made):
    _, scores, found = made
    ours, given = scores[case.name], found[case.name]["auto"]
    assert "error" not in given, given
    unit = 1000.0 if case.kind == NUMBER else max(1.0, float(ours.abs().max()))
    torch.testing.assert_close(torch.tensor(given["scores"]), ours, rtol=0, atol=1e-5 * unit)
    rows = found[case.name]["pipeline"]
    assert "error" not in rows, rows
    if case.kind == NUMBER:
        assert (given["names"], given["problem"]) == (["value"], "regression")
        torch.testing.assert_close(torch.tensor([[row["value"]] for row in rows]), ours, rtol=0, atol=1e-2)
        return
    assert given["names"] == list(LABELS)
    assert given["ids"] == {label: index for index, label in enumerate(LABELS)}
    assert given["problem"] == ("multi" if case.kind == MANY else "single") + "_label_classification"
    probabilities = torch.tensor([[row[label] for label in LABELS] for row in rows])
    expected = ours.sigmoid() if case.kind == MANY else ours.softmax(-1)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)
    assert probabilities.argmax(1).equal(ours.argmax(1))


def test_in_float16_added_layers_give_no_numbers_rather_than_wrong_ones(made):
    half = made[2][Case("bert", "mean", Head(), "dense").name]["auto"]["half"]
    assert set(half) == {"nan"}


@pytest.mark.parametrize("case", APART, ids=ids(APART))
def test_a_bare_model_beside_its_head_is_refused_by_stock_classification_calls(case, made):
    root, scores, found = made
    given = found[case.name]
    assert "config.json" in refused(given["auto"])
    refused(given["pipeline"])
    inside = given["inside"]  # who goes into the folder of the bare model gets no output at all
    assert "error" in inside or all(row == [] for row in inside["scores"])
    if case.family == "bart":
        assert "sentences" not in given
        return
    assert "error" not in given["sentences"], given["sentences"]
    unit = 1000.0 if case.kind == NUMBER else 1.0
    torch.testing.assert_close(torch.tensor(given["sentences"]), scores[case.name], rtol=0, atol=1e-5 * unit)
    assert "refuse this folder" in (root / case.name / "README.md").read_text()


@pytest.mark.parametrize("case", OURS, ids=ids(OURS))
def test_folders_for_other_loaders_are_refused(case, made):
    missing = "no file named model.safetensors" if case.format == "onnx" else "config.json"
    assert missing in refused(made[2][case.name]["auto"])
    refused(made[2][case.name]["pipeline"])


@pytest.mark.parametrize("case", ADAPTERS, ids=ids(ADAPTERS))
def test_an_adapter_is_refused_by_calls_for_a_whole_model(case, made):
    root, scores, found = made
    given = found[case.name]
    assert "no file named model.safetensors" in refused(given["auto"])
    refused(given["pipeline"])
    said, readme = refused(given["auto-peft"]), (root / case.name / "README.md").read_text()
    assert "`AutoPeftModelForSequenceClassification`" in readme
    if case.pooling == "family":  # the base model's name is no path of this machine
        assert said.startswith("OSError")
        assert given["peft"]["names"] == list(LABELS)
        torch.testing.assert_close(torch.tensor(given["peft"]["scores"]), scores[case.name], rtol=0, atol=1e-5)
    else:
        assert "Expected target PEFT class: PeftModelForFeatureExtraction" in said
        if case.method.name == "lora":
            assert "Target modules" in refused(given["peft"])


@pytest.mark.parametrize("case", LABEL_SETS, ids=ids(LABEL_SETS))
def test_the_readme_gives_the_probability_of_every_label(case, made, monkeypatch):
    """Its code, to the letter but for the pretrained model's path, with our texts in place of its example."""
    root, scores, _ = made
    folder = root / case.name
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "whose sigmoid is the probability of that label" in readme
    assert "a label where its probability is above 0.375; stock calls give probabilities alone." in readme
    assert json.loads((folder / "export.json").read_text(encoding="utf-8"))["task"]["threshold"] == THRESHOLD
    code = readme.partition("```python\n")[2].partition("```")[0]
    assert code.count('["a text"]') == 1
    base = json.dumps(str(root / "models" / case.family))
    code = re.sub(r"^base = .*$", lambda _: f"base = {base}", code, flags=re.MULTILINE)
    code = code.replace('["a text"]', json.dumps(TEXTS))
    printed, ours = [], scores[case.name].sigmoid()
    monkeypatch.chdir(folder)
    found = {"print": lambda *values: printed.extend(values)}
    exec(code, found)
    assert found["labels"] == list(LABELS)
    if case.format == "onnx":
        rows = printed[0]
        assert [own for own, _ in rows] == [[LABELS[i] for i in range(3) if row[i] > THRESHOLD] for row in ours]
        given = torch.tensor([[row[label] for label in LABELS] for _, row in rows])
    else:
        assert printed[0] == list(LABELS)
        given = printed[1].cpu()
        if case.pooling == "family":  # what a pipeline around this model looks at
            assert found["model"].config.problem_type == "multi_label_classification"
    torch.testing.assert_close(given, ours, rtol=0, atol=1e-4)
    assert (ours.sum(1) - 1).abs().max() > 0.1  # no softmax


def test_no_file_of_an_export_names_a_path_of_this_machine(made):
    root = made[0]
    for file in root.rglob("*"):
        if file.is_file() and "models" not in file.parts and file.suffix in (".json", ".md"):
            assert str(root) not in file.read_text(encoding="utf-8"), file
