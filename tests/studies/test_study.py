"""Studies on disk: continued, changed, damaged, killed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from handful.errors import ConfigError, RunError
from handful.runs.store import RECORD, WEIGHTS, read_run
from handful.studies.engines import JobAdvanced, JobDone, JobFailed, JobStarted, ProcessesEngine, SequentialEngine
from handful.studies.recipe import Recipe
from handful.studies.results import read_results
from handful.studies.study import FAILED, RECIPE, RESULTS, RUNS, Study
from handful.testing import toy_study


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_study(folder)
    return folder


@pytest.fixture(scope="module")
def toy(data: Path) -> dict:
    """The values of a small recipe: a probe, and a method that starts from a stage."""
    model = str(data / "tiny-bert")
    stage = {"method": "prefix-subspace", "set": {"prefix_length": 2}}
    methods = ["head", {**stage, "name": "first", "stage": True},
               {**stage, "name": "second", "start": {"method": "first", "task": "others", "shots": 24}}]  # fmt: skip
    toy = {"name": "toy", "model": model, "tasks": ["letters", "others"], "shots": [16], "seeds": 2, "test_rows": 20}
    return toy | {"set": {"training.epochs": 2}, "methods": methods}


def started(study: Study) -> list[str]:
    """The jobs that running the study begins."""
    names: list[str] = []
    study.run(SequentialEngine(), lambda event: names.append(event.job.name) if isinstance(event, JobStarted) else None)
    return names


def test_what_is_done_is_not_done_again(tmp_path: Path, data: Path, toy: dict) -> None:
    study = Study(Recipe.from_dict(toy), tmp_path / "s", data)
    assert len(started(study)) == len(study.jobs) == 10
    first = (study.folder / RESULTS).read_bytes()
    assert started(study) == [] and (study.folder / RESULTS).read_bytes() == first
    more = Study(Recipe.from_dict(toy | {"seeds": 3}), tmp_path / "s", data)
    assert {name.split("-")[2] for name in started(more)} == {"s2"}


def test_methods_of_a_cell_have_the_same_rows(tmp_path: Path, data: Path, toy: dict) -> None:
    study = Study(Recipe.from_dict(toy), tmp_path / "s", data)
    study.run(SequentialEngine(), lambda event: None)
    results, damaged = read_results([study.folder])
    assert not damaged and {result.label for result in results} == {"head", "first", "second"}
    fingerprints: dict = {}
    for result in results:
        fingerprints.setdefault(result.cell, set()).add(result.record["rows"]["fingerprint"])
    assert all(len(found) == 1 for found in fingerprints.values()) and len(set(map(str, fingerprints.values()))) == 6


def test_run_starts_from_the_parameters_of_its_stage(tmp_path: Path, data: Path, toy: dict) -> None:
    frozen = toy | {"set": {"training.epochs": 2}}
    frozen["methods"] = [*toy["methods"][:2], {**toy["methods"][2], "set": {"prefix_length": 2, "training.epochs": 0}}]
    study = Study(Recipe.from_dict(frozen), tmp_path / "s", data)
    state = study.run(SequentialEngine(), lambda event: None)
    second = state.done["letters-k16-s0-second"]
    stage = state.done[second.record["study"]["start"]]
    assert second.record["spec"]["start"] == stage.key
    before, after = stage.weights(), second.weights()
    moved = [name for name in before if not before[name].equal(after[name])]
    assert not [name for name in moved if not name.startswith("head.")]  # untrained since, so still the stage's


def test_changed_recipe_is_refused_and_says_what_changed(tmp_path: Path, data: Path, toy: dict) -> None:
    Study(Recipe.from_dict(toy), tmp_path / "s", data).run(SequentialEngine(), lambda event: None)
    changed = toy | {"set": {"training.epochs": 3}, "test_rows": 10}
    changed["methods"] = ["head", {**toy["methods"][1], "set": {"prefix_length": 4}}, toy["methods"][2]]
    with pytest.raises(ConfigError) as caught:
        Study(Recipe.from_dict(changed), tmp_path / "s", data)
    lines = caught.value.message.split("\n  ")[1:]
    assert lines == [
        'set: was {"training.epochs": 2}, now {"training.epochs": 3}',
        "test_rows: was 20, now 10",
        'methods: first: set: was {"prefix_length": 2}, now {"prefix_length": 4}',
    ]


def test_damaged_run_is_named_and_done_again(tmp_path: Path, data: Path, toy: dict) -> None:
    study = Study(Recipe.from_dict(toy), tmp_path / "s", data)
    study.run(SequentialEngine(), lambda event: None)
    expected = (study.folder / RESULTS).read_bytes()
    (study.folder / RUNS / "letters-k16-s0-head" / RECORD).write_text("{")
    assert list(study.state().damaged) == ["letters-k16-s0-head"]
    assert started(study) == ["letters-k16-s0-head"] and (study.folder / RESULTS).read_bytes() == expected


def test_rows_that_changed_since_are_refused(tmp_path: Path, data: Path, toy: dict, reseal) -> None:
    study = Study(Recipe.from_dict(toy), tmp_path / "s", data)
    study.run(SequentialEngine(), lambda event: None)
    path = study.folder / RUNS / "letters-k16-s1-head" / RECORD
    record = json.loads(path.read_text())
    record["rows"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(record))
    reseal(path.parent)
    with pytest.raises(RunError, match="trained or tested on other rows than task 'letters' has now"):
        study.run(SequentialEngine(), lambda event: None)
    assert path.is_file()


def test_failure_is_kept_and_retried_on_demand(tmp_path: Path, data: Path, toy: dict) -> None:
    missing = tmp_path / "model"
    broken = Recipe.from_dict(
        toy | {"seeds": 1, "methods": ["head", {"name": "late", "method": "bias", "model": str(missing)}]}
    )
    study = Study(broken, tmp_path / "s", data)
    state = study.run(SequentialEngine(), lambda event: None)
    assert sorted(state.failed) == ["letters-k16-s0-late", "others-k16-s0-late"] and len(state.done) == 2
    kept = json.loads((study.folder / FAILED / "letters-k16-s0-late.json").read_text())
    assert str(missing) in kept["error"]
    assert started(study) == []
    missing.symlink_to(data / "tiny-bert")
    state = study.run(SequentialEngine(), lambda event: None, retry_failed=True)
    assert not state.failed and len(state.done) == 4


def test_full_disk_stops_the_study_and_writes_nothing_off(
    tmp_path: Path, data: Path, toy: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(Recipe.from_dict(toy | {"methods": ["head"]}), tmp_path / "s", data)
    events: list = []

    def fill_after_two(event: object) -> None:
        events.append(event)
        if sum(isinstance(e, JobDone) for e in events) == 2:
            monkeypatch.setattr("handful.studies.study.check_writable", full)
            monkeypatch.setattr("handful.runs.experiment.check_writable", full)

    def full(folder: Path) -> None:
        raise RunError(f"{folder}: cannot be written (No space left on device)", "give another --output")

    with pytest.raises(RunError, match="No space left"):
        study.run(SequentialEngine(), fill_after_two)
    assert not any(isinstance(event, JobFailed) for event in events)
    monkeypatch.undo()
    assert len(study.state().done) == 2 and not study.state().failed
    assert len(started(study)) == 2


def test_two_processes_do_not_run_one_study(tmp_path: Path, data: Path, toy: dict) -> None:
    study = Study(Recipe.from_dict(toy | {"methods": ["head"]}), tmp_path / "s", data)
    seen: list[str] = []

    def other(event: object) -> None:
        if not seen:
            with pytest.raises(RunError, match="another process is running this study") as caught:
                Study(study.recipe, study.folder, data).run(SequentialEngine(), lambda event: None)
            seen.append(caught.value.message)

    study.run(SequentialEngine(), other)
    assert seen


def test_damaged_recipe_is_named(tmp_path: Path, data: Path, toy: dict) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / RECIPE).write_text("{")
    with pytest.raises(RunError, match="damaged"):
        Study(Recipe.from_dict(toy), tmp_path / "s", data)


def test_search_has_the_same_trials_for_all_and_looks_at_no_test_row(tmp_path: Path, data: Path, toy: dict) -> None:
    interval = {"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
    values = {"training.learning_rate": [1e-4, 1e-3, 1e-2]}
    methods = ["head", {"method": "prefix", "space": interval}, {"method": "bias", "space": values}]
    searched = toy | {"seeds": 1, "tasks": ["letters"], "methods": methods, "search": {"trials": 3}}
    study = Study(Recipe.from_dict(searched), tmp_path / "s", data)
    state = study.run(SequentialEngine(), lambda event: None)
    trials = {name.rsplit("-", 1)[1]: run.record["study"]["trials"] for name, run in state.done.items()}
    assert trials == {"head": 1, "prefix": 3, "bias": 3}
    journal = [json.loads(line) for line in (study.folder / "trials" / "letters-k16-s0-prefix.jsonl").open()]
    assert len(journal) == 1 + 3 and all(0 <= trial["score"] <= 1 for trial in journal[1:])
    rates = {trial["overrides"].get("training.learning_rate", 3e-2) for trial in journal[1:]}
    assert state.done["letters-k16-s0-prefix"].record["spec"]["training"]["learning_rate"] in rates


KILLS = int(os.environ.get("HANDFUL_KILLS", "0"))
"""How often studies are killed; 20 in the first and 2 in the second unless given: starting processes takes its time."""


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kills"), [(SequentialEngine(), KILLS or 20), (ProcessesEngine(2), KILLS or 2)])
def test_killed_at_random_moments_a_study_ends_with_the_same_bytes(
    tmp_path: Path, data: Path, toy: dict, engine: SequentialEngine | ProcessesEngine, kills: int
) -> None:
    recipe = Recipe.from_dict(toy | {"seeds": 3, "set": {"training.epochs": 6}})
    whole = Study(recipe, tmp_path / "whole", data)
    begun = time.monotonic()
    whole.run(SequentialEngine(), lambda event: None)
    patience = (time.monotonic() - begun) / 20  # on a machine that gets twice as fast, still more than 20 kills
    study = Study(recipe, tmp_path / "killed", data)
    moments = random.Random(7)
    killed = 0
    while killed < kills and study.state().open:
        child = os.fork()
        if child == 0:
            _run_until_killed(study, engine, moments.random() * patience)
        moments.random()
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        killed += os.WIFSIGNALED(status)
    assert killed == kills
    study.run(SequentialEngine(), lambda event: None)
    assert (study.folder / RESULTS).read_bytes() == (whole.folder / RESULTS).read_bytes()
    for job in study.jobs:
        again, once = (read_run(s.folder / RUNS / job.name) for s in (study, whole))
        assert (again.folder / WEIGHTS).read_bytes() == (once.folder / WEIGHTS).read_bytes()
        assert (again.folder / "predictions.jsonl").read_bytes() == (once.folder / "predictions.jsonl").read_bytes()


def _run_until_killed(study: Study, engine: SequentialEngine | ProcessesEngine, seconds: float) -> None:
    """In a process of its own: run the study, and be killed so many seconds after the first step or job."""

    def arm(event: object) -> None:
        if isinstance(event, JobAdvanced | JobDone | JobStarted) and not armed:
            armed.append(True)
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    armed: list[bool] = []
    try:
        study.run(engine, arm)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a forked test process must not go on as pytest
        os._exit(1)
