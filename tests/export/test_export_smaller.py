"""Dense, compact and ONNX exports of models with zeros in them, and of other methods as ONNX."""

import json
import re
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from handful.backbone.skeleton import load_skeleton
from handful.backbone.tiny import tiny_backbone
from handful.errors import ConfigError, RunError
from handful.export import onnx as onnx_format
from handful.export import verify
from handful.export.formats import FORMATS, check_export, export
from handful.export.size import Clock, measure
from handful.methods.full import Full
from handful.methods.gates.fine_gates import FineGates
from handful.methods.gates.prune import Prune
from handful.methods.head import Head
from handful.methods.peft_bridge import LoRA, PromptTuning
from handful.methods.poly.method import Poly
from handful.methods.prefix import Prefix
from handful.testing import toy_task


@torch.no_grad()
def closed(backbone, task, share=0.4):
    """Published gates, soft but for those of the first units of every layer, of more in later ones, and of a head.

    Units are closed by a row, by a column or by both.
    """
    method = FineGates(init_mean=0.3)
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter.named_parameters():
        if name != "logits":
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    starts = {(side.matrix, side.side): side.start for side in adapter.sides}

    def close(name, side, first, stop):
        adapter.logits[0, starts[name, side] + first : starts[name, side] + stop] = -3

    for index, block in enumerate(adapter.blocks.feed_forward):
        count = min(int(block.units * share) + 16 * index, block.units)
        close(block.inputs[-1], "rows", 0, count // 2)
        close(block.output, "columns", count // 4, count)
    for block in adapter.blocks.attention[1:] if share else ():
        close(block.output, "columns", 0, block.columns_per_group)
    if task.kind == "regression":
        adapter.head.scale.fill_(50.0)
        adapter.head.offset.fill_(1000.0)
    return adapter


SINGLE, PAIR, NUMBER = "classification", "pair-classification", "regression"
CASES = [
    ("bert", "family", "dense", PAIR),
    ("roberta", "mean", "dense", NUMBER),
    ("llama", "last", "dense", SINGLE),
    ("gpt2", "mean", "dense", SINGLE),
    ("t5", "mean", "dense", SINGLE),
    ("t5", "family", "dense", SINGLE),
    ("deberta-v2", "mean", "dense", SINGLE),
    ("bert", "family", "compact", PAIR),
    ("bert", "mean", "compact", NUMBER),
    ("distilbert", "family", "compact", SINGLE),
    ("gpt2", "last", "compact", SINGLE),
    ("llama", "last", "compact", SINGLE),
    ("deberta-v2", "mean", "compact", SINGLE),
    ("t5", "mean", "compact", SINGLE),
    ("bert", "family", "onnx", PAIR),
    ("electra", "mean", "onnx", NUMBER),
    ("gpt2", "last", "onnx", SINGLE),
    ("deberta-v2", "mean", "onnx", SINGLE),
    ("t5", "mean", "onnx", SINGLE),
    ("t5", "family", "onnx", SINGLE),
]


@pytest.mark.parametrize(("family", "pooling", "form", "kind"), CASES)
def test_a_smaller_export_gives_our_scores_and_says_how_small_it_is(
    family, pooling, form, kind, stored, in_process, tmp_path
):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    task, backbone = toy_task(kind), stored(family, pooling)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    adapter = closed(backbone, task)
    report = export(adapter, backbone, task, tmp_path / "out", form)
    assert report.difference is not None
    assert report.difference <= 1e-5 * (1000 if kind == "regression" else 1)
    size, parts = report.size, report.size.parts
    assert parts.changed
    assert parts.removed > 0.15
    assert size.bytes[1] == sum(
        path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.suffix in (".safetensors", ".onnx")
    )
    assert size.speed.threads == torch.get_num_threads()
    (said,) = [sentence for sentence in size.sentences() if sentence.startswith(f"CPU time ({size.speed.cpu}) for ")]
    assert size.speed.ratio == size.speed.seconds[0] / size.speed.seconds[1]  # as a reader would divide
    assert said.endswith("computed by onnxruntime and before by torch" if form == "onnx" else "× as fast)")
    assert size.speed.rows in (1, 8) and size.speed.length == 128  # one row where the machine is busy
    if form == "dense":
        assert len(set(parts.units)) == 1
        assert any("closed feed-forward units" in sentence for sentence in parts.zeros)
    else:
        assert parts.units[:3] == (80, 64, 48)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["size"]["parts"]["parameters"] == list(parts.parameters)
    assert record["size"]["speed"]["cpu"] == size.speed.cpu
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- {sentence}" in readme for sentence in size.sentences())
    assert "weights of a pooler as missing" not in readme
    assert f"Parameters: {parts.parameters[0]:,}, now {parts.parameters[1]:,}" in readme
    adapter.detach()
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in backbone.fresh)


def test_the_dense_classifier_is_small_in_stock_transformers(stored, in_process, tmp_path):
    backbone, task = stored("bert", "family"), toy_task()
    report = export(closed(backbone, task), backbone, task, tmp_path / "out", "dense")
    stock, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert stock.config.intermediate_size == 80
    assert sum(p.numel() for p in stock.parameters()) == report.size.parts.parameters[1]
    assert stock.config.id2label == {0: "first", 1: "last"}


def test_with_nothing_closed_nothing_is_said_about_size(stored, in_process, tmp_path):
    backbone, task = stored("bert", "mean"), toy_task()
    adapter = closed(backbone, task, share=0.0)
    report = export(adapter, backbone, task, tmp_path / "out", "dense")
    adapter.detach()
    assert not report.size.parts.changed  # the first layer needs all its units
    assert report.size.parts.zeros == (
        "closed feed-forward units: 48 (6,192 parameters); a stock bert has one width for all layers, here 128",
    )
    report = export(
        Head().attach(backbone, task, generator=torch.Generator()).eval(), backbone, task, tmp_path / "head", "dense"
    )
    assert report.size is None
    assert json.loads((tmp_path / "head" / "export.json").read_text())["size"] is None


@pytest.mark.parametrize(
    ("method", "family", "pooling"),
    [
        (LoRA(), "bert", "family"),
        (Full(), "modernbert", "mean"),
        (Head(), "gemma3", "last"),
        (LoRA(), "bart", "family"),
    ],
    ids=["lora-bert", "full-modernbert", "head-gemma3", "lora-bart"],
)
def test_any_folded_method_becomes_one_onnx_file(method, family, pooling, stored, in_process, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    backbone, task = stored(family, pooling), toy_task()
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(0)).eval()
    report = export(adapter, backbone, task, tmp_path / "out", "onnx")
    assert report.difference <= 1e-5
    assert "computed by onnxruntime in a fresh process" in report.verification
    assert not report.size.parts.changed
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.onnx", "README.md", "tokenizer.json"}
    assert not list((tmp_path / "out").glob("*.safetensors"))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model)
    assert model.opset_import[0].version == json.loads((tmp_path / "out" / "onnx.json").read_text())["opset"] == 18
    assert "torch" not in in_process[0]
    assert "handful" not in in_process[0]


def test_without_onnxruntime_a_file_is_written_and_said_to_be_unverified(stored, monkeypatch, tmp_path):
    pytest.importorskip("onnx")
    real = onnx_format.find_spec
    missing = lambda name: None if name == "onnxruntime" else real(name)  # noqa: E731
    monkeypatch.setattr(onnx_format, "find_spec", missing)
    monkeypatch.setattr("handful.export.verify.find_spec", missing)
    backbone, task = stored("bert", "mean"), toy_task()
    adapter = Head().attach(backbone, task, generator=torch.Generator()).eval()
    report = export(adapter, backbone, task, tmp_path / "out", "onnx")
    assert (report.difference, report.size) == (None, None)
    assert report.verification == "not verified: onnxruntime is not installed"
    monkeypatch.setattr("handful.export.plan.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="it needs the package onnx, which is not installed"):
        export(adapter, backbone, task, tmp_path / "other", "onnx")


def test_nothing_is_saved_when_the_file_gives_other_scores(stored, in_process, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_format, "run_onnx", lambda session, inputs: torch.zeros(len(inputs["input_ids"]), 2))
    backbone, task = stored("bert", "mean"), toy_task()
    with pytest.raises(RunError, match="other scores"):
        export(closed(backbone, task), backbone, task, tmp_path / "to" / "out", "onnx")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    "method", [Prune(importance="learned"), FineGates(), Prune()], ids=["learned", "published", "prune"]
)
def test_what_can_become_of_a_smaller_model_is_known_before_training(method):
    for format in FORMATS:
        plan = check_export(method, "bert", "mean", format=format)
        assert plan.possible == (format != "peft")
    assert "which no PEFT adapter can; use the format 'dense'" in check_export(method, "bert", "mean").summary
    refused = check_export(method, "modernbert", "mean", format="dense")
    assert "no exact export of a gated modernbert is known; there is for bert, " in refused.summary
    backbone = tiny_backbone("bert")
    backbone.config.hidden_act = "sigmoid"
    assert "not 0 at 0" in check_export(method, backbone, "mean", format="compact").summary


@pytest.mark.parametrize("method", [Prefix(), PromptTuning(), Head(), LoRA(), Poly()])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_advised_in_place_of_a_format_is_possible(method, format):
    refused = check_export(method, "bert", "mean", toy_task(), format=format)
    for advised in re.findall(r"use the format '([\w-]+)'", refused.summary):
        assert check_export(method, "bert", "mean", toy_task(), format=advised).possible, (refused, advised)
    assert refused.summary.count("use the format") <= 1
    assert refused.possible or "use the format" in refused.summary


@pytest.mark.parametrize(
    ("method", "format", "words"),
    [
        (LoRA(), "compact", "method 'lora' takes nothing out of the model, as gates and pruning do"),
        (Head(), "compact", "use the format 'dense'"),
        (Prefix(), "compact", "takes nothing out of the model"),
        (PromptTuning(), "onnx", "cannot be folded into the model's weights"),
    ],
)
def test_runs_of_other_methods_are_refused_with_the_format_that_fits(method, format, words, stored, tmp_path):
    plan = check_export(method, "bert", "mean", format=format)
    assert not plan.possible
    assert words in plan.summary
    backbone, task = stored("bert", "mean"), toy_task()
    adapter = method.attach(backbone, task, generator=torch.Generator())
    article = {"compact": "a compact model", "onnx": "an ONNX model"}[format]
    with pytest.raises(ConfigError, match=f"cannot export as {article}: "):
        export(adapter, backbone, task, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_model_too_large_for_one_onnx_file_is_refused_from_its_skeleton(make_model, monkeypatch):
    monkeypatch.setattr(onnx_format, "MAX_ONNX_BYTES", 1000)
    plan = check_export(Head(), load_skeleton(str(make_model(0))), "mean", format="onnx")
    assert "more than one ONNX file can hold" in plan.summary


@pytest.mark.parametrize("form", ["compact", "onnx"])
def test_an_existing_folder_is_refused(form, stored, tmp_path):
    backbone, task = stored("bert", "mean"), toy_task()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="expected no such folder, found one"):
        export(closed(backbone, task), backbone, task, tmp_path / "out", form)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "compact", "onnx"])
def test_a_fresh_process_gets_the_same_scores(form, stored, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    backbone, task = stored("bert", "mean"), toy_task()
    report = export(closed(backbone, task), backbone, task, tmp_path / "out", form)
    assert report.difference <= 1e-5
    assert "in a fresh process" in report.verification
    if form == "compact":
        head = load_file(tmp_path / "out" / "head.safetensors")
        assert head["weight"].shape == (2, 64)


def test_a_difference_may_be_a_few_roundings_of_the_models_own_and_no_more(stored, in_process, monkeypatch, tmp_path):
    found, expected = torch.tensor([[1.00003]]), torch.tensor([[1.0]])
    assert verify.compare(found, expected, rounding=lambda: 2e-5) == pytest.approx(3e-5, rel=0.1)
    with pytest.raises(RunError, match="other scores"):
        verify.compare(found, expected, rounding=lambda: 1e-5)
    with pytest.raises(RunError, match="other scores"):
        verify.compare(torch.tensor([[float("nan")]]), expected, rounding=lambda: 1.0)
    backbone, task = stored("bert", "mean"), toy_task()
    monkeypatch.setattr(verify, "RELATIVE_TOLERANCE", 0.0)
    monkeypatch.setattr(verify, "ROUNDINGS", 100)
    adapter = closed(backbone, task)
    report = export(adapter, backbone, task, tmp_path / "out", "dense")
    assert "; roundings of float32 make up to " in report.verification or report.difference == 0
    monkeypatch.setattr("handful.export.folder.stock_scores", lambda *_: torch.zeros(8, 2))
    with pytest.raises(RunError, match="other scores"):
        export(adapter, backbone, task, tmp_path / "other", "dense")


def test_a_slow_model_is_measured_on_one_row_and_other_scores_are_an_error():
    rows = []

    def slow(inputs):
        rows.append(len(inputs["input_ids"]))
        return torch.zeros(1, 2)

    def inputs(count):
        return {"input_ids": torch.zeros(count, 16, dtype=torch.long)}

    speed = measure(slow, slow, inputs, runtime="another")
    assert (speed.rows, speed.length, speed.runtime) == (8, 16, "another")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handful.export.size.BUDGET", 0.0)
        rows.clear()
        assert measure(slow, slow, inputs).rows == 1
        assert rows == [8] + [1] * (2 + 2 + 2 * 3)  # to choose, to compare, to count turns, three turns
    with pytest.raises(RunError, match="other scores"):
        measure(slow, lambda inputs: torch.ones(1, 2), inputs)
    assert np.isfinite(speed.ratio)


def coarse(monkeypatch, ticks=64):
    """A processor clock that moves so many times a second, as that of Windows; with 0 it stands still."""
    real = time.process_time
    monkeypatch.setattr(time, "process_time", (lambda: int(real() * ticks) / ticks) if ticks else (lambda: 7.0))


@pytest.mark.parametrize("ticks", [64, 0])
def test_a_coarse_clock_measures_what_is_shorter_than_its_tick(ticks, monkeypatch):
    def work(repeats):
        def scores(inputs):
            for _ in range(repeats):
                torch.mm(weights, weights)
            return torch.zeros(1, 2)

        return scores

    weights = torch.ones(160, 160)
    coarse(monkeypatch, ticks)
    monkeypatch.setattr("handful.export.size.BUDGET", 1.0)
    speed = measure(work(4), work(1), lambda count: {"input_ids": torch.zeros(count, 16, dtype=torch.long)})
    assert all(seconds > 0 for seconds in speed.seconds)
    if ticks:  # the wall clock also counts what other programs do
        assert max(speed.seconds) < 1 / ticks  # of one forward, though no tick is as short
        assert 1.3 < speed.ratio < 12


def test_an_export_is_measured_where_the_processor_clock_is_coarse(stored, in_process, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    backbone, task = stored("bert", "mean"), toy_task()
    coarse(monkeypatch)
    report = export(closed(backbone, task), backbone, task, tmp_path / "out", "onnx")
    assert np.isfinite(report.size.speed.ratio) and report.size.speed.ratio > 0


def test_a_clock_that_is_fine_is_read_around_each_forward():
    calls = []
    clock = Clock.of_processor()
    assert clock.tick < 1e-3
    assert clock.seconds(lambda inputs: calls.append(sum(range(10_000))), {}) > 0
    assert len(calls) == 1
    counted = Clock(iter(range(1000)).__next__, tick=5)
    assert counted.seconds(lambda inputs: torch.zeros(1), {}) == 1  # 50 seconds, which is ten ticks, in 50 times
