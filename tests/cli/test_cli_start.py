"""`handful fit --init-from RUN`: a scaled prompt goes on from another's, and never from one that saw the test rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.cli.main import run
from handful.runs.store import read_run

QUICK = (
    "--method", "scaled-prompt", "--shots", "6", "--set", "training.epochs=1", "--set", "method.prompt_length=3",
    "--set", "run.max_length=24", "--set", "generation.beams=1", "--set", "generation.max_new_tokens=3",
)  # fmt: skip


def records(path: Path, numbers: range, thing: str) -> Path:
    rows = [{"source": f"{thing} = {i}", "references": [f"This is {thing} number {i} of them all."]} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny T5 and the run of a scaled prompt on it that others start from."""
    root = tmp_path_factory.mktemp("first")
    tiny_model("t5", purpose="lm").save_pretrained(root / "tiny-t5")
    tiny_tokenizer("t5").save_pretrained(root / "tiny-t5")
    data, test = records(root / "pubs.jsonl", range(8), "pub"), records(root / "test.jsonl", range(20, 24), "pub")
    options = ("--model", root / "tiny-t5", "--test", test, "--output", root / "runs", *QUICK)
    assert run(["fit", str(data), *map(str, options)]) == 0
    return root / "tiny-t5", next((root / "runs").glob("*/run.json")).parent


@pytest.mark.parametrize("carry", ["both", "prompt", "scale", "folded"])
def test_what_is_carried_over_is_said_on_the_command_line(command: Any, first: tuple[Path, Path], tmp_path, carry):
    model, start = first
    data, test = records(tmp_path / "bars.jsonl", range(8), "bar"), records(tmp_path / "t.jsonl", range(30, 33), "bar")
    quick = ("--model", model, "--test", test, "--output", tmp_path / "runs", *QUICK, "--set", "training.epochs=0")
    done = command("fit", data, *quick, "--init-from", start, "--set", f"method.carry={carry}", "--json")
    assert done.code == 0, done.err
    assert done.json["spec"]["start"] == read_run(start).key
    assert done.json["notes"] == []
    found, before = read_run(done.json["folder"]).weights(), read_run(start).weights()
    vectors, scale = before["prompt.vectors"], before["prompt.scale"]
    assert torch.equal(found["prompt.scale"], scale if carry in ("both", "scale") else torch.ones_like(scale))
    wanted = {"both": vectors, "prompt": vectors, "folded": vectors * scale}.get(carry)
    assert (wanted is None) == (carry == "scale")
    assert torch.equal(found["prompt.vectors"], vectors if wanted is None else wanted) == (wanted is not None)


def test_a_start_names_the_method_and_the_model_that_nobody_named(command: Any, first: tuple[Path, Path], tmp_path):
    import handful

    model, start = first
    data, test = records(tmp_path / "bars.jsonl", range(8), "bar"), records(tmp_path / "t.jsonl", range(30, 33), "bar")
    quick = ("--test", test, "--output", tmp_path / "runs", *QUICK[2:], "--set", "training.epochs=0")
    done = command("fit", data, *quick, "--init-from", start, "--json")
    assert done.code == 0, done.err
    assert (done.json["spec"]["method"]["name"], done.json["spec"]["model"]) == ("scaled-prompt", str(model))
    fitted = handful.fit(data, test=test, start=start, epochs=0, prompt_length=3, max_length=24, shots=6, beams=1)
    assert fitted.spec.method.name == "scaled-prompt"


def test_a_run_on_the_test_rows_is_no_start(command: Any, first: tuple[Path, Path], tmp_path: Path) -> None:
    model, start = first
    data, test = records(tmp_path / "bars.jsonl", range(8), "bar"), records(tmp_path / "t.jsonl", range(8), "pub")
    refused = command("fit", data, "--model", model, "--test", test, "--output", tmp_path, *QUICK, "--start", start)
    assert refused.code == 1
    assert "has seen test rows" in refused.err and "6 of its 8 test rows" in refused.err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("prompt_length=4", "prompt.vectors: expected the shape (1, 4, 64), found (1, 3, 64)"),
        ("num_vertices=2", "prompt.vectors: expected the shape (2, 3, 64), found (1, 3, 64)"),
        ("scale_shape=token", "prompt.scale: expected the shape (1, 3, 1), found (1, 1, 64)"),
    ],
)
def test_a_prompt_of_another_shape_is_no_start(command: Any, first: tuple[Path, Path], tmp_path, setting, words):
    model, start = first
    data = records(tmp_path / "bars.jsonl", range(12), "bar")
    other = (*QUICK, "--set", f"method.{setting}")
    refused = command("fit", data, "--model", model, "--output", tmp_path, *other, "--start", start)
    assert refused.code == 2 and words in " ".join(refused.err.split())
