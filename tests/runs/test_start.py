"""Prompts that PEFT has saved, as the start of a run."""

import json

import pytest
import torch
from safetensors.torch import save_file

from handful.backbone.tiny import tiny_backbone
from handful.data.task import Example, Task
from handful.errors import ConfigError, ModelError, RunError
from handful.methods.full import Full
from handful.methods.prompt import Prompt, read_peft_prompt
from handful.methods.scaled_prompt import ScaledPrompt
from handful.runs.experiment import run
from handful.runs.spec import resolve
from handful.runs.start import PeftPrompt, carried_over, read_start

peft = pytest.importorskip("peft")

RECORDS = tuple(Example(f"name = {x}", source=x, references=(f"it is {x}.",)) for x in "ABCD")
TASK = Task("records", "generation", (), "bleu", pool=RECORDS)


def saved_prompt(folder, rows, length=4, kind="PROMPT_TUNING"):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "num_virtual_tokens": length}))
    save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    return folder


def foreign(tmp_path, length=4, width=64, rows=None):
    content = torch.randn(rows or length, width, generator=torch.Generator().manual_seed(3))
    return saved_prompt(tmp_path / "foreign", content, length), content


def attach(method):
    return method.attach(tiny_backbone("t5", purpose="lm"), TASK, generator=torch.Generator().manual_seed(0))


def test_of_what_peft_saves_for_an_encoder_decoder_the_first_half_is_the_prompt(tmp_path):
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(tiny_backbone("t5", purpose="lm").model, config)
    model.save_pretrained(tmp_path)
    whole = model.prompt_encoder["default"].embedding.weight.detach()
    assert whole.shape == (8, 64)
    found = read_peft_prompt(tmp_path)
    assert torch.equal(found, whole[:4])
    assert torch.equal(found, model.get_prompt(1)[0, :4].detach())


@pytest.mark.parametrize("method", [Prompt(prompt_length=4), ScaledPrompt(prompt_length=4, scale_init_std=0.3)])
def test_an_adapter_starts_from_it(method, tmp_path):
    folder, rows = foreign(tmp_path, rows=8)
    start, adapter = read_start(folder), attach(method)
    assert isinstance(start, PeftPrompt)
    adapter.load_state_dict(carried_over(start, adapter), strict=False)
    assert torch.equal(adapter.folded_prompt(), rows[:4])


def test_a_run_that_starts_from_it_has_a_key_of_its_own_and_says_so(tmp_path):
    folder, rows = foreign(tmp_path)
    spec = resolve("prompt", model="tiny-t5", overrides={"prompt_length": 4, "epochs": 0, "shots": 2})
    backbone = tiny_backbone("t5", purpose="lm")
    saved, trained = run(TASK, spec, tmp_path / "runs", backbone=backbone, start=read_start(folder))
    assert torch.equal(trained.adapter.folded_prompt(), rows)
    assert saved.record["spec"]["start"] == read_start(folder).key
    save_file({"prompt_embeddings": rows + 1}, folder / "adapter_model.safetensors")
    trained.adapter.detach()
    other, trained = run(TASK, spec, tmp_path / "runs", backbone=backbone, start=read_start(folder))
    assert other.key != saved.key
    assert torch.equal(trained.adapter.folded_prompt(), rows + 1)


@pytest.mark.parametrize(
    ("method", "size", "error", "words"),
    [
        (Prompt(prompt_length=4), {"width": 32}, ModelError, r"embeddings of tiny-t5 \(64\), found 32"),
        (Prompt(prompt_length=5), {}, ConfigError, "expected 5 vectors, found 4"),
        (Prompt(prompt_length=4, num_vertices=2), {}, ConfigError, "a single prompt"),
        (Full(), {}, ConfigError, "a single prompt"),
        (ScaledPrompt(prompt_length=4, carry="scale"), {}, ConfigError, "the run to start from has none"),
    ],
    ids=["width", "length", "simplex", "method", "carry"],
)
def test_a_prompt_that_does_not_fit_is_refused(method, size, error, words, tmp_path):
    folder, _ = foreign(tmp_path, **size)
    with pytest.raises(error, match=words):
        carried_over(read_start(folder), attach(method))


def test_what_is_no_prompt_is_refused(tmp_path):
    with pytest.raises(RunError, match="as PEFT saves them"):
        read_peft_prompt(tmp_path)
    for name, rows, kind in (
        ("prefix", torch.ones(4, 64), "PREFIX_TUNING"),
        ("rows", torch.ones(5, 64), "PROMPT_TUNING"),
        ("flat", torch.ones(4), "PROMPT_TUNING"),
    ):
        with pytest.raises(RunError, match="expected a PROMPT_TUNING adapter"):
            read_peft_prompt(saved_prompt(tmp_path / name, rows, kind=kind))
