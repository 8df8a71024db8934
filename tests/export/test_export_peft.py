"""Export folders: what stands in them, when there is none, and that what is written is what was trained."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from handful.data.batching import Batch, encode
from handful.data.task import Example
from handful.errors import ConfigError, RunError
from handful.evaluation.estimate import Estimate
from handful.export import verify
from handful.export.folder import Card
from handful.export.formats import check_export, export
from handful.methods.bias import Bias
from handful.methods.exports import prefix_state
from handful.methods.full import Full
from handful.methods.head import Head
from handful.methods.peft_bridge import IA3, LoRA, Peft, PromptTuning
from handful.methods.prefix import Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.methods.prompt import Prompt
from handful.methods.scaled_prompt import ScaledPrompt
from handful.testing import toy_task


def trained(method, backbone, task, seed=0):
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(seed)).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        if task.kind == "regression":
            adapter.head.scale.fill_(50.0)
            adapter.head.offset.fill_(1000.0)
    return adapter


PLANS = [
    (PrefixSubspace(), "bert", "family", "classifier", "bert's stock classification class with num_labels=2"),
    (PrefixSubspace(), "bert", "mean", "features", "head.safetensors and a loader"),
    (Prefix(), "llama", "last", "features", "head.safetensors"),
    (Prefix(), "llama", "family", None, "has no bias; train with pooling 'last'"),
    (LoRA(), "llama", "family", None, "which computes the same, or use the format 'onnx'"),
    (Prefix(), "distilbert", "mean", None, "stock PEFT has no working prefix for distilbert; it has for bert"),
    (Prefix(), "distilbert", "mean", None, "xlm-roberta; use the format 'onnx'"),
    (Prefix(), "t5", "mean", None, "stock PEFT has no working prefix for t5"),
    (Prefix(positions="kept"), "bert", "mean", None, "train with positions 'auto' or 'shifted'; use the format 'onnx'"),
    (Prefix(positions="shifted"), "bert", "mean", "features", "PEFT adapter"),
    (PrefixSubspace(layers=(1, 3)), "bert", "mean", None, "train without a range of layers"),
    (LoRA(), "modernbert", "family", "classifier", "modernbert's stock classification class"),
    (PromptTuning(), "electra", "mean", "features", "PEFT adapter"),
    (ScaledPrompt(), "electra", "mean", "features", "PEFT adapter"),
    (ScaledPrompt(scale_target="sequence"), "t5", "mean", None, "train with scale_target 'prompt'"),
    (Full(), "bert", "mean", None, "use the format 'dense'"),
    (Head(), "bert", "mean", None, "use the format 'dense'"),
    (LoRA(), "bert", "auto", "features", "PEFT adapter"),
    (LoRA(), "no_such_family", "family", None, "no stock classification class"),
]


@pytest.mark.parametrize(("method", "family", "pooling", "form", "words"), PLANS)
def test_what_an_export_will_be_is_known_from_the_family_alone(method, family, pooling, form, words):
    plan = check_export(method, family, pooling, toy_task())
    assert plan.form == form
    assert plan.possible == (form is not None)
    assert words in plan.summary


@pytest.mark.parametrize(
    ("method", "possible"),
    [
        (Full(), True),
        (Bias(), True),
        (Head(), True),
        (LoRA(), True),
        (Prefix(), False),
        (PromptTuning(), False),
        (ScaledPrompt(), False),
        (Peft(config={"peft_type": "P_TUNING", "num_virtual_tokens": 3}), False),
        (Peft(), True),
    ],
)
def test_what_can_become_a_dense_model(method, possible):
    plan = check_export(method, "bert", "mean", format="dense")
    assert plan.possible == possible
    assert possible or f"use the format '{'onnx' if method == Prefix() else 'peft'}'" in plan.summary


def test_a_backbone_tells_that_a_range_of_layers_is_all_of_them(stored):
    backbone = stored("bert")
    assert check_export(Prefix(layers=(0, 3)), backbone, "mean").possible
    assert not check_export(Prefix(layers=(0, 2)), backbone, "mean").possible


def test_an_unknown_format_gets_the_nearest_name(stored, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'dense'"):
        check_export(LoRA(), "bert", "mean", format="desne")
    backbone = stored("bert")
    with pytest.raises(ConfigError, match="did you mean 'peft'"):
        export(trained(LoRA(), backbone, toy_task()), backbone, toy_task(), tmp_path / "out", "pefft")


def test_a_prefix_is_written_layer_by_layer_key_before_value():
    layers, heads, length, width = 3, 2, 4, 5
    prefix = torch.arange(layers * 2 * heads * length * width).float().view(layers, 2, heads, length, width)
    state = prefix_state(prefix)
    config, tensors = state.config, state.tensors
    rows = tensors["prompt_embeddings"]
    assert rows.shape == (length, 2 * layers * heads * width)
    assert (config["num_attention_heads"], config["token_dim"]) == (heads, heads * width)
    third = rows[1].view(layers, 2, heads, width)
    assert torch.equal(third, prefix[:, :, :, 1])


SINGLE, PAIR, NUMBER = "classification", "pair-classification", "regression"
CASES = [
    (Prefix(prefix_length=4), "bert", "mean", "peft", PAIR),
    (Prefix(prefix_length=4), "gpt2", "last", "peft", NUMBER),
    (PrefixSubspace(num_vertices=3, prefix_length=4), "roberta", "family", "peft", PAIR),
    (PrefixSubspace(num_vertices=3, prefix_length=4), "bert", "family", "peft", NUMBER),
    (LoRA(), "bert", "family", "peft", PAIR),
    (LoRA(rank=2, num_vertices=3), "bert", "family", "peft", NUMBER),
    (IA3(num_vertices=3), "llama", "last", "peft", SINGLE),
    (PromptTuning(prompt_length=4, num_vertices=3), "bert", "mean", "peft", SINGLE),
    (LoRA(rank=2, num_vertices=3), "gpt2", "mean", "dense", PAIR),
    (Bias(num_vertices=3), "bert", "family", "dense", NUMBER),
    (Head(num_vertices=3), "bert", "mean", "dense", SINGLE),
    (LoRA(), "t5", "mean", "peft", SINGLE),
    (LoRA(), "bart", "family", "peft", SINGLE),
    (LoRA(), "distilbert", "family", "peft", NUMBER),
    (IA3(), "modernbert", "family", "peft", SINGLE),
    (PromptTuning(prompt_length=4), "bert", "mean", "peft", PAIR),
    (PromptTuning(prompt_length=4), "electra", "family", "peft", PAIR),
    (PromptTuning(prompt_length=4), "llama", "last", "peft", SINGLE),
    (Prompt(prompt_length=4), "bert", "mean", "peft", PAIR),
    (ScaledPrompt(prompt_length=4, num_vertices=3), "llama", "last", "peft", SINGLE),
    (ScaledPrompt(prompt_length=4), "t5", "mean", "peft", NUMBER),
    (ScaledPrompt(prompt_length=4), "roberta", "family", "peft", SINGLE),
    (Peft(config={"peft_type": "P_TUNING", "num_virtual_tokens": 3}), "roberta", "mean", "peft", SINGLE),
    (Peft(config={"peft_type": "LOHA", "r": 2}), "bert", "mean", "peft", SINGLE),
    (Peft(config={"peft_type": "VERA", "r": 2, "target_modules": ["query"]}), "electra", "mean", "peft", SINGLE),
    (LoRA(), "llama", "last", "dense", SINGLE),
    (IA3(), "gpt2", "mean", "dense", SINGLE),
    (Full(), "bert", "family", "dense", PAIR),
    (Full(), "t5", "mean", "dense", NUMBER),
    (Bias(), "roberta", "family", "dense", NUMBER),
    (Head(), "mpnet", "family", "dense", SINGLE),
]


@pytest.mark.parametrize(
    ("method", "family", "pooling", "form", "kind"), CASES, ids=lambda part: getattr(part, "name", None) or part
)
def test_stock_libraries_get_our_scores_from_the_readmes_code(
    method, family, pooling, form, kind, stored, in_process, tmp_path
):
    task, backbone = toy_task(kind), stored(family, pooling)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    adapter = trained(method, backbone, task)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    report = export(adapter, backbone, task, tmp_path / "out", form)
    assert report.difference is not None
    assert report.difference <= 1e-6 * (1000 if kind == "regression" else 1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.state_dict().items())
    adapter.detach()
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in backbone.fresh)


def test_the_readme_holds_the_code_that_was_verified_and_it_is_short(stored, in_process, tmp_path):
    backbone, task = stored("bert", "mean"), toy_task()
    report = export(trained(Prefix(), backbone, task), backbone, task, tmp_path / "out", card=Card("The card."))
    readme = (tmp_path / "out" / "README.md").read_text()
    here, name = json.dumps(backbone.model.name_or_path), json.dumps("bert")
    assert in_process[0].count(here) == 1
    assert f"```python\n{in_process[0].replace(here, name)}```" in readme
    assert readme.endswith("\n\nThe card.\n")
    assert report.plan.summary in readme
    body = [line for line in in_process[0].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(body) <= 17
    assert "handful" not in in_process[0]


@pytest.mark.slow
def test_the_readme_runs_as_it_stands_in_the_folder(stored, in_process, tmp_path):
    backbone, task = stored("bert", "mean"), toy_task()
    export(trained(PrefixSubspace(), backbone, task), backbone, task, tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('base = "bert"', f"base = {json.dumps(backbone.model.name_or_path)}")  # as it tells to do
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("['first', 'last'] tensor([[")


def test_regression_heads_are_folded_into_the_targets_own_units(stored, in_process, tmp_path):
    task, backbone = toy_task("regression"), stored("bert", "mean")
    adapter = trained(Prefix(), backbone, task)
    export(adapter, backbone, task, tmp_path / "out")
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head["weight"], adapter.head.weight[0] * 50.0)
    assert torch.equal(head["bias"], adapter.head.bias[0] * 50.0 + 1000.0)
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["value"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"


def test_the_dense_classifier_knows_its_labels(stored, in_process, tmp_path):
    task, backbone = toy_task(), stored("bert", "family")
    adapter = trained(Full(), backbone, task)
    export(adapter, backbone, task, tmp_path / "out", "dense")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert stock.config.id2label == {0: "first", 1: "last"}
    inputs = encode(task.pool, backbone.tokenizer, 32, kind=task.kind).batch(range(4)).inputs
    with torch.no_grad():
        expected = F.linear(backbone.features(inputs), *adapter.head.folded())
        assert torch.equal(stock(**inputs).logits, expected)


def test_texts_stop_where_a_stock_prefix_would_slide_out_of_sight(stored, in_process, tmp_path):
    backbone, task = stored("gemma3", "last"), toy_task()
    assert backbone.config.sliding_window == 32
    export(trained(Prefix(prefix_length=10), backbone, task), backbone, task, tmp_path / "out")
    assert "max_length=22," in in_process[0]
    export(trained(Prefix(prefix_length=10), backbone, task), backbone, task, tmp_path / "shorter", max_length=20)
    assert "max_length=20," in in_process[1]
    assert "- Texts are cut" not in (tmp_path / "shorter" / "README.md").read_text()


def test_that_texts_are_cut_is_said_with_the_format_that_cuts_none(stored, in_process, tmp_path):
    backbone, task = stored("gemma3", "last"), toy_task()
    adapter = trained(Prefix(prefix_length=10), backbone, task)
    report = export(adapter, backbone, task, tmp_path / "out", max_length=128)
    assert report.notes == (
        "Texts are cut to 22 tokens, in handful to 128: in longer ones a stock prefix slides out of the sight of this "
        "model's layers with sliding attention; the format 'onnx' takes all 128",
    )
    assert f"- {report.notes[0]}" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["notes"] == list(report.notes)


def test_a_prefix_that_leaves_no_text_in_sight_is_refused(stored):
    backbone = stored("gemma3", "last")
    for length, room in ((25, 7), (40, 0)):
        plan = check_export(Prefix(prefix_length=length), backbone, "last")
        assert f"a stock prefix of {length} vectors leaves {room} tokens of a text in its sight" in plan.summary
        assert plan.summary.endswith("use the format 'onnx'")
    assert check_export(Prefix(prefix_length=24), backbone, "last").possible
    backbone.config.layer_types = ["full_attention"] * 3  # then nothing slides
    assert check_export(Prefix(prefix_length=40), backbone, "last").possible


@pytest.mark.parametrize("family", ["modernbert", "gemma3"])
@pytest.mark.parametrize(
    "method", [Prompt(prompt_length=20), ScaledPrompt(prompt_length=20), PromptTuning(prompt_length=20)]
)
def test_a_prompt_takes_positions_and_no_part_of_a_sliding_window(method, family, stored, in_process, tmp_path):
    backbone, task = stored(family), toy_task()
    assert backbone.config.sliding_window <= 32
    adapter = trained(method, backbone, task)
    report = export(adapter, backbone, task, tmp_path / "out", max_length=128)
    assert "max_length=128," in in_process[0]
    assert report.notes == ()
    export(adapter, backbone, task, tmp_path / "whole")
    assert "max_length=236," in in_process[1]
    texts = ["".join("abcdwxyz"[(3 * place + row) % 8] for place in range(60 + 40 * row)) for row in range(3)]
    inputs = encode([Example(text) for text in texts], backbone.tokenizer, 128, kind=task.kind).batch(range(3)).inputs
    loader = {}
    exec(in_process[0], loader)
    found = loader["scores"]({name: inputs[name] for name in loader["tokenizer"].model_input_names if name in inputs})
    with torch.no_grad():
        expected = adapter.target_scores(Batch(inputs, torch.zeros(3), (0, 1, 2)))
    assert float((found - expected).abs().max()) < 1e-5


def test_rows_to_compare_need_not_come_from_the_task(stored, in_process, tmp_path):
    backbone, task = stored("bert"), toy_task()
    empty = type(task)(task.name, task.kind, task.labels, task.metric, pool=())
    adapter = trained(LoRA(), backbone, task)
    report = export(adapter, backbone, empty, tmp_path / "own")
    assert "scores of 4 rows" in report.verification


def test_a_name_from_outside_cannot_put_code_into_what_is_run(stored, in_process, tmp_path):
    task = toy_task()
    evil = type(task)(
        "t`\n```python\nraise SystemExit\n```", task.kind, ("a\n```python\nx", "b"), task.metric, task.pool
    )
    backbone = stored("bert")
    export(trained(LoRA(), backbone, evil), backbone, evil, tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert readme.count("```python") == 1
    (title,) = [line for line in readme.splitlines() if line.startswith("# ")]
    assert "SystemExit" in title


def test_the_readme_says_to_the_hub_what_the_folder_is_and_how_good(stored, in_process, tmp_path):
    from huggingface_hub import ModelCard

    backbone, task = stored("bert", "mean"), toy_task()
    card = Card("The card.", {"accuracy": Estimate(0.8, 0.7, 0.9, 40, 0.95, "Wilson")})
    export(trained(LoRA(), backbone, task), backbone, task, tmp_path / "out", "dense", card=card)
    data = ModelCard((tmp_path / "out" / "README.md").read_text()).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "text-classification", None)
    assert data.license is None
    assert data.model_name == "toy: lora on bert"
    (result,) = data.eval_results
    assert result.metric_name == "accuracy, 95 % interval 0.700 to 0.900, 40 test rows"


def test_an_existing_folder_is_refused_and_only_an_export_is_overwritten(stored, in_process, tmp_path):
    backbone, task = stored("bert"), toy_task()
    adapter = trained(LoRA(), backbone, task)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="mine: expected"):
            export(adapter, backbone, task, mine, overwrite=overwrite)
    assert (mine / "thesis.txt").read_text() == "years of work"
    export(adapter, backbone, task, tmp_path / "out")
    first = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RunError, match="found one"):
        export(adapter, backbone, task, tmp_path / "out")
    adapter.detach()
    export(trained(LoRA(), backbone, task, seed=5), backbone, task, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != first


def test_nothing_is_saved_when_the_stock_libraries_get_other_scores(stored, monkeypatch, tmp_path):
    backbone, task = stored("bert"), toy_task()
    monkeypatch.setattr("handful.export.folder.stock_scores", lambda folder, code, inputs: torch.zeros(8, 2))
    with pytest.raises(RunError, match=r"get other scores from it \(by up to"):
        export(trained(LoRA(), backbone, task), backbone, task, tmp_path / "to" / "out")
    assert list((tmp_path / "to").iterdir()) == []


def test_scores_that_are_not_numbers_are_not_taken_for_equal():
    with pytest.raises(RunError, match="other scores"):
        verify.compare(torch.tensor([[float("nan")]]), torch.tensor([[1.0]]))
    assert verify.compare(torch.tensor([[1000.001]]), torch.tensor([[1000.0]])) == pytest.approx(0.001, rel=0.1)
    with pytest.raises(RunError, match="other scores"):
        verify.compare(torch.tensor([[1.0001]]), torch.tensor([[1.0]]))


@pytest.mark.slow
def test_code_that_fails_in_the_fresh_process_is_told_by_its_last_line(tmp_path):
    with pytest.raises(RunError, match="cannot be loaded by the stock libraries: ValueError: not today"):
        verify.stock_scores(tmp_path, "raise ValueError('not today')", {"input_ids": torch.ones(1, 2)})


def test_without_peft_a_prefix_is_written_and_said_to_be_unverified(stored, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    backbone, task = stored("bert"), toy_task()
    report = export(trained(Prefix(), backbone, task), backbone, task, tmp_path / "out")
    assert report.difference is None
    assert report.verification == "not verified: peft is not installed"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["difference"] is None


def test_an_impossible_export_and_a_lost_model_are_said_before_anything_is_written(stored, tmp_path):
    backbone, task = stored("bert"), toy_task()
    with pytest.raises(ConfigError, match=r"cannot export as a PEFT adapter: .*positions 'auto' or 'shifted'"):
        export(trained(Prefix(positions="kept"), backbone, task), backbone, task, tmp_path / "out")
    backbone.injection.clear()
    with pytest.raises(ConfigError, match="cannot export as a dense model"):
        export(trained(Prefix(), backbone, task), backbone, task, tmp_path / "out", "dense")
    backbone.model.config._name_or_path = backbone.model.name_or_path = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match="the folder it was loaded from is gone"):
        export(trained(Prefix(), backbone, task), backbone, task, tmp_path / "out")
    assert not (tmp_path / "out").exists()
