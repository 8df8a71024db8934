"""Ctrl-C, and a process killed outright: the same command continues and ends with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EPOCHS = 60
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored
from handful.cli.main import main
main()
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_stopped_fit_continues_and_ends_with_the_same_numbers(command, table, tiny_folder, tmp_path, kill):
    data = table()
    options = ("--model", str(tiny_folder), "--shots", "16", "--dev", "carved", "--set", f"training.epochs={EPOCHS}")
    arguments = ["fit", str(data), *options, "--set", "training.selection=best", "--set", "training.validation=pooled"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments, "--output", str(stopped)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for_checkpoint(stopped, process)
    process.send_signal(kill)
    out, err = process.communicate(timeout=120)
    assert out == ""
    assert not list(stopped.glob("*/run.json"))
    if kill == signal.SIGINT:
        assert process.returncode == 130
        assert "nothing that was saved is lost" in err
        assert "Traceback" not in err

    continued = command(*arguments, "--output", stopped, "--json")
    assert "continuing from the checkpoint at step" in continued.err
    straight = command(*arguments, "--output", whole, "--json")
    assert "continuing" not in straight.err
    for key in ("key", "weights_sha256", "scores", "temperature"):
        assert continued.json[key] == straight.json[key], key
    for key in ("steps", "chosen_step", "history"):
        assert continued.json["fit"][key] == straight.json["fit"][key], key
    assert losses(Path(continued.json["folder"])) == losses(Path(straight.json["folder"]))
    assert [path for path in stopped.iterdir() if path.name.startswith(".")] == []


def wait_for_checkpoint(root: Path, process: subprocess.Popen[str]) -> None:
    """Until the first checkpoint is there."""
    for _ in range(12_000):
        if list(root.glob(".*.progress/checkpoint.safetensors")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("no checkpoint after two minutes")


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of every step in the log."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["event"] == "StepDone"]
