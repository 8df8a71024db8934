"""Exports of language models: stock libraries give the same scores, and write the same tokens with beams."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from handful.backbone.load import load_backbone
from handful.backbone.packaged import packaged_folder
from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.data.task import Example, Task
from handful.errors import ConfigError, ModelError, RunError
from handful.evaluation.evaluate import encode_for
from handful.evaluation.text.generate import GenerationOptions
from handful.export import folder
from handful.export.formats import check_export, export
from handful.methods.bias import Bias
from handful.methods.full import Full
from handful.methods.gates.fine_gates import FineGates
from handful.methods.gates.prune import Prune
from handful.methods.gates.published import MatrixGatesAdapter
from handful.methods.peft_bridge import IA3, LoRA, PromptTuning
from handful.methods.prefix import Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.methods.prompt import Prompt
from handful.methods.scaled_prompt import ScaledPrompt

RECORDS = tuple(
    Example(source, source=f"memory:{index}", references=references)
    for index, (source, references) in enumerate(
        [("name = A", ("it is A.", "A it is.")), ("name = B, kind = pub", ("B is a pub.",)), ("x", ("an x, no more.",))]
    )
)
TASK = Task("records", "generation", (), "bleu", pool=RECORDS)
BEAMS = GenerationOptions(beams=3, max_new_tokens=8, target_length=20)


def seeded(number):
    return torch.Generator().manual_seed(number)


def trained(method, backbone, strength=0.1):
    adapter = method.attach(backbone, TASK, generator=seeded(0)).eval()
    generator = seeded(1)
    rows = encode_for(adapter, RECORDS, TASK, 64, BEAMS)
    adapter.begin_training(0, rows)
    adapter.warm_start(rows, generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
        for side in adapter.sides if isinstance(adapter, MatrixGatesAdapter) else ():
            adapter.logits[:, (side.start + side.stop) // 2 : side.stop] = -3
    return adapter


PROMPT, SIMPLEX = ScaledPrompt(prompt_length=4), ScaledPrompt(prompt_length=4, num_vertices=3)
CASES = [
    *((PROMPT, family, "peft") for family in ("t5", "bart", "gpt2", "llama", "qwen3", "gemma3", "opt")),
    (Prompt(prompt_length=4), "t5", "peft"),
    (SIMPLEX, "gpt-neox", "peft"),
    (PromptTuning(prompt_length=4), "bart", "peft"),
    (PromptTuning(prompt_length=4), "llama", "peft"),
    (Prefix(prefix_length=4), "llama", "peft"),
    (PrefixSubspace(prefix_length=4), "gpt2", "peft"),
    (LoRA(), "t5", "peft"),
    (LoRA(), "gpt2", "peft"),
    (IA3(), "bart", "peft"),
    (IA3(), "llama", "peft"),
    (LoRA(), "t5", "dense"),
    (Full(), "t5", "dense"),
    (Full(), "gpt2", "dense"),
    (Bias(), "bart", "dense"),
    (Prune(importance="learned", target_sparsity=0.45), "llama", "dense"),
    (Prune(importance="learned", lora_rank=2), "t5", "dense"),
    (Prune(importance="learned"), "gpt2", "dense"),
    *((FineGates(init_mean=0.3), family, "dense") for family in ("llama", "t5", "gpt2")),
    (Prune(target_sparsity=0.45, lora_rank=2), "llama", "dense"),
    (Prune(lora_rank=2), "t5", "dense"),
    (Prune(), "gpt2", "dense"),
]


def identity(part):
    return "learned" if getattr(part, "importance", None) == "learned" else getattr(part, "name", part)


@pytest.mark.parametrize(("method", "family", "form"), CASES, ids=identity)
def test_stock_libraries_get_our_scores_and_write_our_tokens(method, family, form, stored, in_process, tmp_path):
    backbone = stored(family, purpose="lm")
    adapter = trained(method, backbone)
    report = export(adapter, backbone, TASK, tmp_path / "out", form, generation=BEAMS)
    assert report.plan.form == "language-model"
    exact = form == "peft" and not isinstance(method, PrefixSubspace)
    assert report.difference == 0.0 if exact else report.difference <= 1e-5
    assert "; 3 of 3 texts written with 3 beams have the same tokens" in report.verification
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["num_beams"] == 3
    if "smaller model" in method.exports(family):
        parts = report.size.parts
        assert parts.parameters[1] < parts.parameters[0]
        assert max(parts.units) < 128
        assert set(parts.heads) == ({1} if family == "llama" else {4})  # t5 and gpt2 are stock with all of them
    adapter.detach()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_prompt_is_exported_folded_and_once(family, stored, in_process, tmp_path):
    backbone = stored(family, purpose="lm")
    adapter = trained(PROMPT, backbone)
    export(adapter, backbone, TASK, tmp_path / "out", generation=BEAMS)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    assert torch.equal(tensors["prompt_embeddings"], (adapter.prompt.vectors * adapter.prompt.scale)[0].detach())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["num_transformer_submodules"], config["num_virtual_tokens"], config["token_dim"]) == (1, 4, 64)
    assert config["task_type"] == {"t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM"}[family]


def test_the_readme_asks_as_the_run_did(stored, in_process, tmp_path, capsys):
    options = GenerationOptions(beams=2, max_new_tokens=4, source_prefix="write: 'it' \n", separator=" =>")
    backbone = stored("gpt2", purpose="lm")
    export(trained(PROMPT, backbone), backbone, TASK, tmp_path / "out", generation=options)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "Put the path of the folder gpt2 in place of `base`" in readme
    assert repr("write: 'it' \n") + " + text + ' =>'" in readme
    assert "It gives texts, by the decoding in generation_config.json" in readme
    assert f"Sources should be kept to {256 - 4 - 128} tokens" in readme
    assert not (tmp_path / "out" / "labels.json").exists()
    backbone = stored("t5", purpose="lm")
    alone = replace(options, separator=GenerationOptions.separator)
    export(trained(PROMPT, backbone), backbone, TASK, tmp_path / "other", max_length=30, generation=alone)
    assert "truncation=True, max_length=30, " in in_process[-1]
    assert "+ text for" in in_process[-1]


def test_other_tokens_with_equal_scores_are_refused(stored, in_process, monkeypatch, tmp_path):
    backbone = stored("t5", purpose="lm")
    wrong = backbone.decoding(num_beams=1, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    monkeypatch.setattr("handful.export.folder.ExportJob._decoding", lambda self, options: wrong)
    with pytest.raises(RunError, match="write other texts"):
        export(trained(PROMPT, backbone), backbone, TASK, tmp_path / "out", generation=BEAMS)
    assert not (tmp_path / "out").exists()


def twins(family, stored):
    """A trained adapter, and two tokens with the same scores, of which one is the first of its first text."""
    backbone = stored(family, purpose="lm")
    adapter = trained(Full(), backbone)
    rows = encode_for(adapter, RECORDS, TASK, 64, BEAMS, to_write=True).batch(range(3))
    first = int(adapter.generate(rows, num_beams=1, max_new_tokens=8)[0, 0])
    weight = backbone.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[first + 1] = weight[first]
    assert int(adapter.generate(rows, num_beams=1, max_new_tokens=8)[0, 0]) == first
    return adapter, backbone, first


def disturb(monkeypatch, change):
    """Scores of the stock libraries differ a little, and their texts as `change` says, which hears of the beams."""
    run = folder.stock_scores

    def changed(place, code, inputs, function="scores"):
        made = run(place, code, inputs, function)
        if function == "scores":
            return made + 1e-7
        return change(made.clone(), json.loads((place / "generation_config.json").read_text())["num_beams"])

    monkeypatch.setattr(folder, "stock_scores", changed)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_text_may_differ_where_another_token_is_as_good(family, stored, in_process, monkeypatch, tmp_path):
    adapter, backbone, first = twins(family, stored)

    def other(made, beams):
        del beams
        assert made[0, 0] == first
        made[0] = first + 1
        return made

    disturb(monkeypatch, other)
    greedy = replace(BEAMS, beams=1)
    report = export(adapter, backbone, TASK, tmp_path / "out", "dense", generation=greedy)
    assert (
        "2 of 3 texts written with 1 beam have the same tokens; where others part, scores are apart by at most 0"
        in (report.verification)
    )


def test_a_text_that_ends_early_is_judged_by_the_score_of_its_end(stored, in_process, monkeypatch, tmp_path):
    adapter, backbone, _ = twins("gpt2", stored)
    disturb(monkeypatch, lambda made, beams: made[:, :3])
    with pytest.raises(RunError, match="write other texts with the export"):
        export(adapter, backbone, TASK, tmp_path / "out", "dense", generation=replace(BEAMS, beams=1))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_single_text_with_a_worse_token_is_refused(family, beams, stored, in_process, monkeypatch, tmp_path):
    adapter, backbone, first = twins(family, stored)

    def worse(made, beams):
        del beams
        made[0] = first + 2
        return made

    disturb(monkeypatch, worse)
    with pytest.raises(RunError, match=r"write other texts with the export \(2 of 3 are the same"):
        export(adapter, backbone, TASK, tmp_path / "out", "dense", generation=replace(BEAMS, beams=beams))
    assert not (tmp_path / "out").exists()


def test_texts_of_another_search_are_judged_by_those_without_beams(stored, in_process, monkeypatch, tmp_path):
    adapter, backbone, _ = twins("t5", stored)
    disturb(monkeypatch, lambda made, beams: made + (beams > 1))
    report = export(adapter, backbone, TASK, tmp_path / "out", "dense", generation=BEAMS)
    assert "0 of 3 texts written with 3 beams" in report.verification and "without beams part" in report.verification
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["num_beams"] == 3


@pytest.mark.parametrize(
    ("method", "form", "words"),
    [
        (ScaledPrompt(scale_target="sequence"), "peft", "scales the words' embeddings too"),
        (ScaledPrompt(scale_target="sequence"), "dense", "scales the words' embeddings too"),
        (Prompt(), "dense", "use the format 'peft'"),
        (Prefix(), "peft", "stock PEFT has no working prefix for t5"),
        (LoRA(), "onnx", "a model that writes texts is exported as peft or dense"),
        (Full(), "onnx", "a model that writes texts is exported as dense"),
        (Prune(), "compact", "a model that writes texts is exported as dense"),
    ],
)
def test_what_cannot_be_exported_is_said_before_training(method, form, words):
    plan = check_export(method, "t5", "None", TASK, format=form)
    assert not plan.possible
    assert words in plan.summary


def test_a_scaled_sequence_is_refused(stored, tmp_path):
    backbone = stored("t5", purpose="lm")
    adapter = trained(ScaledPrompt(prompt_length=4, scale_target="sequence"), backbone)
    with pytest.raises(ConfigError, match="train with scale_target 'prompt'"):
        export(adapter, backbone, TASK, tmp_path / "out", generation=BEAMS)


@pytest.mark.parametrize("method", [Prune(lora_rank=2), LoRA(rank=2)])
def test_an_output_layer_that_is_not_the_embedding_stays_apart(method, tmp_path, in_process):
    """As in flan-t5, whose configuration says that they are one."""
    model = tiny_model("t5", head="lm")
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=seeded(0)))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer("t5").save_pretrained(tmp_path / "model")
    backbone = load_backbone(str(tmp_path / "model"), purpose="lm")
    assert backbone.model.config.tie_word_embeddings
    assert not torch.equal(backbone.model.lm_head.weight, backbone.model.shared.weight)
    report = export(trained(method, backbone), backbone, TASK, tmp_path / "out", "dense", generation=BEAMS)
    assert report.difference < 1e-5
    again = load_backbone(str(tmp_path / "out"), purpose="lm").model
    assert torch.equal(again.lm_head.weight, backbone.model.lm_head.weight)
    assert again.shared is again.encoder.embed_tokens or torch.equal(
        again.shared.weight, again.encoder.embed_tokens.weight
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_fresh_process_without_handful_writes_the_same(family, stored, tmp_path):
    backbone = stored(family, purpose="lm")
    empty = Task(TASK.name, TASK.kind, (), TASK.metric, pool=())
    report = export(trained(SIMPLEX, backbone), backbone, empty, tmp_path / "out", generation=BEAMS)
    assert report.difference == 0.0
    assert "4 of 4 texts" in report.verification


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "method", "form"),
    [
        ("flan-t5-small", ScaledPrompt(prompt_length=20), "peft"),
        ("flan-t5-small", Prune(lora_rank=2), "dense"),
        ("smollm2-135m", ScaledPrompt(prompt_length=20), "peft"),
    ],
)
def test_a_real_model_writes_the_same_in_a_fresh_process(name, method, form, tmp_path):
    try:
        packaged_folder(name)
    except ModelError as error:
        pytest.skip(str(error))
    backbone = load_backbone(name, purpose="lm")
    adapter = trained(method, backbone, strength=0.01)
    report = export(adapter, backbone, TASK, tmp_path / "out", form, generation=BEAMS)
    assert report.difference == 0.0 if form == "peft" else report.difference < 1e-3
    assert "3 of 3 texts" in report.verification
