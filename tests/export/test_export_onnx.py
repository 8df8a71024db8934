"""ONNX files of prefixes, in every family: what is in the folder, and that onnxruntime gets our scores from it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone
from handful.data.batching import Batch, encode
from handful.data.task import Example
from handful.errors import RunError
from handful.export import onnx as onnx_format
from handful.export.formats import check_export, export
from handful.export.plan import best_format, recorded_format
from handful.methods.head import Head
from handful.methods.peft_bridge import LoRA
from handful.methods.poly.method import Poly
from handful.methods.prefix import STOCK_PREFIX_FAMILIES, Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.testing import toy_task

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

RAGGED = [4, 190, 57, 1, 120]


def trained(method, backbone, task):
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if task.kind == "regression":
            adapter.head.scale.fill_(50.0)
            adapter.head.offset.fill_(1000.0)
        else:
            adapter.head.scale.fill_(0.5)  # a temperature of 2
    return adapter


def ragged_texts():
    return ["".join("abcdwxyz"[(3 * place + row) % 8] for place in range(length)) for row, length in enumerate(RAGGED)]


def long_batch(backbone, task, most):
    """A padded batch of other sizes than the one that was traced."""
    pair = "xyz" if task.kind == "pair-classification" else None
    rows = encode([Example(text, pair) for text in ragged_texts()], backbone.tokenizer, most, kind=task.kind)
    inputs = rows.batch(range(len(rows))).inputs
    return Batch(inputs, torch.zeros(len(rows)), tuple(range(len(rows))))


def check_long_rows(folder, adapter, task, most):
    """Scores of a ragged batch of long rows, by onnxruntime and by the adapter."""
    backbone = adapter.backbone
    batch = long_batch(backbone, task, most)
    assert batch.inputs["input_ids"].shape[1] > 150
    with torch.no_grad():
        expected = adapter.target_scores(batch).numpy()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {each.name: batch.inputs[each.name].numpy() for each in session.get_inputs()})
    assert [each.name for each in session.get_outputs()] == ["logits"]
    assert session.get_inputs()[0].shape == ["batch", "length"]
    assert found.shape == expected.shape == (len(RAGGED), max(len(task.labels), 1))
    assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), float(adapter.head.scale))


def check_family(family, stored, tmp_path, ways):
    for number, (method, pooling, kind) in enumerate(ways):
        backbone, task = stored(family, pooling), toy_task(kind)
        before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
        adapter, folder = trained(method, backbone, task), tmp_path / f"out{number}"
        report = export(adapter, backbone, task, folder, "onnx")
        assert report.difference is not None
        assert "computed by onnxruntime in a fresh process" in report.verification
        most = 256 - (4 if family in ONE_TABLE else 0)
        assert f"max_length={most}," in (folder / "README.md").read_text()
        check_long_rows(folder, adapter, task, most)
        adapter.detach()
        after = backbone.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before if name not in backbone.fresh)


ONE_TABLE = {*STOCK_PREFIX_FAMILIES, "gemma3", "gpt-neox"}
"""Families in which positions are shifted, so that a prefix takes some of them."""
SINGLE, PAIR, NUMBER = "classification", "pair-classification", "regression"
WAYS = [(Prefix(prefix_length=4), "auto", SINGLE), (PrefixSubspace(prefix_length=4), "family", PAIR)]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_onnxruntime_gets_our_scores_of_a_prefix(family, stored, in_process, tmp_path):
    check_family(family, stored, tmp_path, WAYS)


OTHERS = [
    ("bert", Prefix(prefix_length=4, positions="kept", layers=(1, 3)), "mean", NUMBER),
    ("roberta", PrefixSubspace(prefix_length=4, positions="shifted", geometry="curve"), "family", NUMBER),
    ("distilbert", Poly(skills="prefix", prefix_length=4), "mean", SINGLE),
    ("bert", PrefixSubspace.from_settings(PrefixSubspace.presets["paper"].settings), "family", SINGLE),
]


@pytest.mark.parametrize(("family", "method", "pooling", "kind"), OTHERS, ids=["layers", "curve", "poly", "paper"])
def test_also_where_no_stock_prefix_could_be(family, method, pooling, kind, stored, in_process, tmp_path):
    backbone, task = stored(family, pooling), toy_task(kind)
    adapter = trained(method, backbone, task)
    report = export(adapter, backbone, task, tmp_path / "out", "onnx", max_length=200)
    assert report.difference is not None
    check_long_rows(tmp_path / "out", adapter, task, 200)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["bert", "roberta", "albert", "modernbert", "mpnet", "deberta-v2", "gemma3", "opt", "t5", "bart"]
)
def test_torchs_newer_exporter_writes_the_same(family, stored, in_process, by_export, tmp_path):
    first = TINY_FAMILIES.index(family) % 2
    check_family(family, stored, tmp_path, WAYS[first : first + 1])
    outline = json.loads((tmp_path / "out0" / "onnx.json").read_text())
    assert (outline["exporter"], outline["outputs"]) == ("torch.export", ["logits"])
    onnx.checker.check_model(onnx.load(tmp_path / "out0" / "model.onnx"))
    assert b".py" not in (tmp_path / "out0" / "model.onnx").read_bytes()  # no lines of code, no folders of this machine


def test_a_bias_that_the_stock_class_lacks_is_in_the_file(stored, in_process, tmp_path):
    backbone, task = stored("llama", "family"), toy_task()
    adapter = trained(LoRA(), backbone, task)
    assert float(adapter.head.bias.detach().abs().min()) > 1e-3
    export(adapter, backbone, task, tmp_path / "out", "onnx")
    check_long_rows(tmp_path / "out", adapter, task, 256)


FRESH = """
import json, os, sys
answers = {}
for folder in sys.argv[1:]:
    os.chdir(folder)
    code = open("README.md", encoding="utf-8").read().split("```python\\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    texts = json.load(open("texts.json"))
    answer = names["numbers"](texts) if "numbers" in names else names["classify"](texts)
    answers[folder] = answer
assert "handful" not in sys.modules
print("ANSWERS" + json.dumps(answers))
"""
FRESH_CASES = [
    ("distilbert", PrefixSubspace(prefix_length=4), "mean", SINGLE),
    ("modernbert", Prefix(prefix_length=4), "family", SINGLE),
    ("deberta-v2", PrefixSubspace(prefix_length=4), "mean", SINGLE),
    ("mpnet", Prefix(prefix_length=4), "mean", SINGLE),
    ("albert", PrefixSubspace(prefix_length=4), "mean", NUMBER),
    ("t5", Prefix(prefix_length=4), "mean", SINGLE),
    ("bert", Prefix(prefix_length=4), "mean", SINGLE),
    ("qwen3", PrefixSubspace(prefix_length=4), "last", SINGLE),
]


@pytest.mark.slow
def test_a_fresh_process_without_handful_gets_labels_by_name(stored, in_process, tmp_path):
    expected = {}
    for number, (family, method, pooling, kind) in enumerate(FRESH_CASES):
        backbone, task, folder = stored(family, pooling), toy_task(kind), tmp_path / f"out{number}"
        adapter = trained(method, backbone, task)
        export(adapter, backbone, task, folder, "onnx", max_length=200)
        (folder / "texts.json").write_text(json.dumps(ragged_texts()))
        with torch.no_grad():
            scores = adapter.target_scores(long_batch(backbone, task, 200))
        expected[str(folder)] = scores[:, 0] if kind == NUMBER else scores.softmax(1)
    result = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *expected], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    answers = json.loads(result.stdout.partition("ANSWERS")[2])
    for folder, wanted in expected.items():
        if wanted.ndim == 1:
            assert answers[folder] == pytest.approx(wanted.tolist(), abs=1e-3)
            continue
        for (label, shares), row in zip(answers[folder], wanted, strict=True):
            assert list(shares) == ["first", "last"]
            assert list(shares.values()) == pytest.approx(row.tolist(), abs=1e-5)
            assert label == ("first", "last")[int(row.argmax())]


def test_the_folder_has_the_labels_and_no_stock_class_makes_a_random_head_of_it(stored, in_process, tmp_path):
    backbone, task, folder = stored("distilbert"), toy_task(), tmp_path / "out"
    export(trained(Prefix(), backbone, task), backbone, task, folder, "onnx")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["id2label"]) == ("distilbert", {"0": "first", "1": "last"})
    assert config["label2id"] == {"first": 0, "last": 1}
    assert config["problem_type"] == "single_label_classification"
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises((OSError, ValueError), match=r"no file named model\.safetensors|Could not load model"):
        pipeline("text-classification", str(folder))
    assert "refuse the folder" in (folder / "README.md").read_text()
    number = tmp_path / "number"
    backbone, task = stored("distilbert"), toy_task("regression")
    export(trained(Head(), backbone, task), backbone, task, number, "onnx")
    config = json.loads((number / "config.json").read_text())
    assert (config["id2label"], config["problem_type"]) == ({"0": "value"}, "regression")
    assert "print(numbers([" in (number / "README.md").read_text()


def test_a_batch_size_that_an_exporter_fixes_is_noticed_and_nothing_is_saved(stored, in_process, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "handful.backbone.attention_patches._split",
        lambda states, heads: states.unflatten(-1, (heads, -1)).transpose(1, 2),
    )
    backbone, task = stored("mpnet"), toy_task()
    with pytest.raises(RunError, match="onnxruntime cannot run the file"):
        export(trained(Prefix(), backbone, task), backbone, task, tmp_path / "to" / "out", "onnx")
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.parametrize(
    ("version", "installed", "used"),
    [
        ("2.13.0+cpu", True, "torch.export"),
        ("2.9.1", True, "torch.export"),
        ("2.8.0", True, "TorchScript"),
        ("2.13.0", False, "TorchScript"),
    ],
)
def test_which_exporter_writes(version, installed, used, monkeypatch):
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_format.torch, "__version__", version)
        patch.setattr(onnx_format, "find_spec", lambda name: installed or None)
        assert onnx_format.exporter() == used


BEST = [
    (Prefix(), "bert", "mean", "peft"),
    (PrefixSubspace(), "xlm-roberta", "family", "peft"),
    *((PrefixSubspace(), f, "mean", "onnx") for f in ("distilbert", "albert", "modernbert", "mpnet", "deberta-v2")),
    *((PrefixSubspace(), family, "mean", "onnx") for family in ("t5", "bart")),
    (PrefixSubspace(positions="kept", init="normal", head_init="normal"), "bert", "family", "onnx"),
    (PrefixSubspace(layers=(1, 3)), "bert", "mean", "onnx"),
    (Poly(skills="prefix"), "distilbert", "mean", "onnx"),
    (Poly(), "distilbert", "mean", "peft"),
    (Prefix(), "llama", "last", "peft"),
    (Prefix(), "llama", "family", "onnx"),
    (LoRA(), "llama", "family", "onnx"),
    (Head(), "llama", "family", "onnx"),
    (Head(), "modernbert", "mean", "dense"),
]


@pytest.mark.parametrize(("method", "family", "pooling", "best"), BEST)
def test_the_format_that_is_proposed_is_possible_in_the_family(method, family, pooling, best, monkeypatch):
    assert best_format(method, family, pooling, toy_task()) == best
    assert check_export(method, family, pooling, toy_task(), format=best).possible
    monkeypatch.setattr("handful.export.plan.find_spec", lambda name: None)
    assert best_format(method, family, pooling, toy_task()) == best  # what is missing can be installed


def test_a_model_that_writes_through_a_prefix_that_no_stock_library_has_gets_no_format():
    task = toy_task("generation")
    assert best_format(Prefix(), "llama", "None", task) == "peft"
    assert best_format(Prefix(), "t5", "None", task) is None
    assert "use the format" not in check_export(Prefix(), "t5", "None", task).summary
    assert check_export(Prefix(), "llama", "None", task, format="dense").summary.endswith("use the format 'peft'")


def test_the_format_of_a_saved_run_follows_from_its_record():
    record = {
        "spec": {"method": {"name": "prefix-subspace", **PrefixSubspace().settings()}},
        "backbone": {"family": "modernbert", "pooling": "mean"},
        "task": {"name": "t", "kind": "classification", "labels": ["a", "b"], "metric": "accuracy"},
        "adapter": {},
    }
    format, what = recorded_format(record)
    assert (format, what) == ("onnx", "an ONNX model of modernbert with its head")
    backbone = {"family": "t5", "pooling": None}
    writes = {"name": "t", "kind": "generation", "labels": [], "metric": "rouge-l"}
    format, what = recorded_format(record | {"backbone": backbone, "task": writes})
    assert format is None
    assert re.match("stock PEFT has no working prefix for t5", what)
    record["spec"]["method"] = {"name": "prune"}
    record["backbone"]["family"] = "bert"
    for more, best in ((0.1, "compact"), (0.0, "dense")):
        record["adapter"] = {"removable": 0.0, "removable_compact": more}
        assert recorded_format(record)[0] == best


def test_every_family_has_a_format_for_the_default_method():
    for family in TINY_FAMILIES:
        backbone = tiny_backbone(family)
        pooling, task = str(backbone.pooling), toy_task()
        best = best_format(PrefixSubspace(), backbone, pooling, task)
        assert best == ("peft" if backbone.family in STOCK_PREFIX_FAMILIES else "onnx")
        assert check_export(PrefixSubspace(), backbone, pooling, task, format="onnx").possible
