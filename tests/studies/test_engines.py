"""Engines: the same numbers from each, failures that stop nothing else, lost workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from handful.errors import ConfigError
from handful.studies.engines import (
    ATTEMPTS,
    JobAdvanced,
    JobFailed,
    JobStarted,
    ProcessesEngine,
    SequentialEngine,
    make_engine,
)
from handful.studies.recipe import Recipe
from handful.studies.study import RESULTS, Study
from handful.testing import check_engine, toy_study


def test_sequential_engine_keeps_the_contract(tmp_path: Path) -> None:
    check_engine(SequentialEngine(), tmp_path)


def test_processes_give_the_sequential_numbers(tmp_path: Path) -> None:
    check_engine(ProcessesEngine(2), tmp_path)


def test_job_of_a_killed_worker_is_done_again(tmp_path: Path) -> None:
    recipe = toy_study(tmp_path / "data", seeds=1, epochs=60)
    expected = Study(recipe, tmp_path / "expected", tmp_path / "data")
    expected.run(SequentialEngine(), lambda event: None)
    attempts: list[int] = []

    def kill_once(event: object) -> None:
        if isinstance(event, JobStarted):
            attempts.append(event.attempt)
        if isinstance(event, JobAdvanced) and max(attempts) == 1:
            attempts.append(0)
            os.kill(children(os.getpid())[-1], signal.SIGKILL)
            attempts.append(2)

    study = Study(recipe, tmp_path / "found", tmp_path / "data")
    study.run(ProcessesEngine(1), kill_once)
    assert attempts.count(2) == 2  # the one that is appended after the kill, and the second beginning of that job
    assert (study.folder / RESULTS).read_bytes() == (expected.folder / RESULTS).read_bytes()


def test_job_that_kills_its_worker_fails_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_study(tmp_path / "data", seeds=1).to_dict()
    recipe = Recipe.from_dict(toy | {"tasks": ["letters"], "methods": ["head", "bias"]})
    deadly = tmp_path / "sitecustomize.py"
    deadly.write_text(
        "import sys\n"
        "if sys.orig_argv[-1] == 'handful.studies.worker':\n"
        "    import os, handful.methods.head as head\n"
        "    head.Head.attach = lambda *a, **k: os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    events: list[object] = []
    state = Study(recipe, tmp_path / "found", tmp_path / "data").run(ProcessesEngine(1), events.append)
    (dead,) = [event for event in events if isinstance(event, JobFailed)]
    assert dead.job.label == "head" and f"ended {ATTEMPTS} times (exit code 3" in dead.error
    assert [name.rsplit("-", 1)[1] for name in state.done] == ["bias"]


def test_workers_import_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("queue", "torch", "handful"):
        (here / f"{name}.py").write_text("open(__file__ + '.run', 'w').close()\nraise SystemExit\n")
    toy = toy_study(tmp_path / "data", seeds=1).to_dict()
    study = Study(
        Recipe.from_dict(toy | {"tasks": ["letters"], "methods": ["head"]}), tmp_path / "s", tmp_path / "data"
    )
    monkeypatch.chdir(here)
    state = study.run(ProcessesEngine(1), lambda event: None)
    assert len(state.done) == 1 and list(here.glob("*.run")) == []


def test_engine_by_name() -> None:
    assert make_engine("processes", workers=3).workers == 3
    assert make_engine("sequential").name == "sequential"
    with pytest.raises(ConfigError, match="did you mean 'processes'"):
        make_engine("process")
    with pytest.raises(ConfigError, match="1 worker, found 2"):
        make_engine("sequential", workers=2)
    with pytest.raises(ConfigError, match="for the engine ray"):
        make_engine("processes", address="host:6379")


def children(parent: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(folder.name))
    return sorted(found)
