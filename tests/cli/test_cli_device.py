"""`--device` on the command line: which verbs have it, what they say, and what is recorded."""

from __future__ import annotations

import json

import pytest
import torch
import typer

from handful.cli.app import app

LOADING = ("fit", "check", "pretrain", "predict", "evaluate", "export", "study", "demo", "doctor", "inventory take")
"""Verbs that load a model, or say how it would be loaded."""


def options():
    """The options of every verb, by its name."""
    found = {}
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{name} {inner}".strip(), each) for inner, each in command.commands.items()]
        else:
            found[name] = {option for parameter in command.params for option in parameter.opts}
    return found


def test_every_verb_that_loads_a_model_has_it_and_no_other():
    assert {name for name, names in options().items() if "--device" in names} == set(LOADING)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"{'good' if index % 2 else 'bad'} row {index}", "label": index % 2} for index in range(24)]
    path.write_text("".join(json.dumps({**row, "label": "ab"[row["label"]]}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("verb", ["fit", "check"])
def test_a_device_that_is_not_there_is_an_error(command, data, tmp_path, verb, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    outcome = command(verb, str(data), "--device", "cuda:3", "--output", str(tmp_path / "runs"))
    assert outcome.code == 2
    assert "error: device: cuda:3 was asked for, and there is no CUDA device" in outcome.err
    assert "nvidia-smi" in outcome.err
    outcome = command(verb, str(data), "--device", "gpu", "--output", str(tmp_path / "runs"))
    assert outcome.code == 2 and "expected auto, cpu, cuda, cuda:N or mps, found 'gpu'" in outcome.err


def test_the_device_is_said_once_and_recorded(command, data, tmp_path, tiny_folder):
    outcome = command(
        "fit", str(data), "--method", "head", "--model", str(tiny_folder), "--device", "cpu",
        "--output", str(tmp_path / "runs"), "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("device cpu") == 1
    assert outcome.json["backbone"]["device"] == "cpu" and outcome.json["backbone"]["dtype"] == "float32"
    checked = command("check", str(data), "--model", str(tiny_folder), "--device", "cpu", "--json")
    assert checked.json["device"] == "cpu"
