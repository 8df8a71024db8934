"""Ctrl-C, and a process killed outright: the same command continues and ends with the same numbers.

Ctrl-C at moments that are hard to hit comes from a program whose work presses it itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handful.cli.interrupt import Interrupts

EPOCHS = 60


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_stopped_fit_continues_and_ends_with_the_same_numbers(command, table, tiny_folder, tmp_path, kill):
    data = table()
    options = ("--model", str(tiny_folder), "--shots", "16", "--dev", "carved", "--set", f"training.epochs={EPOCHS}")
    arguments = ["fit", str(data), *options, "--set", "training.selection=best", "--set", "training.validation=pooled"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    process = subprocess.Popen(
        [sys.executable, "-m", "handful", *arguments, "--output", str(stopped)],
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


WORKING = """
import os, signal, sys, time, types
from pathlib import Path

def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # at latest here the handler is called

def app(arguments, **options):
{work}
    return 0

sys.path.insert(0, ".")
sys.modules["handful.cli.app"] = types.SimpleNamespace(app=app)
from handful.cli.main import main
main()
"""

CLEANED = """
    try:
        press()
    finally:
        Path("cleaned").touch()
"""
TWICE = """
    try:
        press()
    finally:
        press()
        Path("cleaned").touch()
"""
IN_AN_IMPORT = """
    sys.modules["pressed"] = types.SimpleNamespace(press=press)
    Path("slow.py").write_text("import pressed\\ntry:\\n pressed.press()\\nexcept BaseException:\\n import aborted")
    import slow
"""
IN_A_DESTRUCTOR = """
    class Held:
        def __del__(self):
            press()
    Held()
    time.sleep(60)
"""
SWALLOWED = """
    try:
        press()
    except KeyboardInterrupt:
        pass
"""
ANOTHER_ERROR = """
    try:
        press()
    except KeyboardInterrupt:
        raise RuntimeError("a library's own") from None
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signal that a process can send itself")
@pytest.mark.parametrize(
    ("work", "cleaned"),
    [(CLEANED, True), (TWICE, False), (IN_AN_IMPORT, False), (IN_A_DESTRUCTOR, False), (SWALLOWED, False),
     (ANOTHER_ERROR, False)],
    ids=["once", "twice", "in an import", "in a destructor", "swallowed", "another error"],
)  # fmt: skip
def test_the_exit_code_is_130_and_there_is_no_traceback(tmp_path: Path, work: str, cleaned: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKING.format(work=work)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert (tmp_path / "cleaned").exists() == cleaned
    said = done.stderr.splitlines()
    if work != SWALLOWED:  # the work went on to its end: there is nothing to say
        assert said[:2] == ["stopped", "hint: nothing that was saved is lost; started again, a fit continues from its "
                            "last checkpoint"]  # fmt: skip
    assert "Traceback" not in done.stderr and "itself failed" not in done.stderr


def test_a_job_that_is_not_to_be_interrupted_is_not():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Interrupts(test_a_job_that_is_not_to_be_interrupted_is_not.__code__).install()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
