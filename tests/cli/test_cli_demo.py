"""`handful demo`, with a tiny model and few rows in place of the packaged ones; the real one is `make demo`."""

from __future__ import annotations

import json
import os

import pytest

from handful.cli import demo
from handful.data.packaged import PACKAGED_TASKS
from handful.data.task import Example, Task, TestRows
from handful.evaluation.estimate import Estimate

LABELS = ("business", "sports", "tech")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_folder) -> None:
    """The demo in seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    rows = [Example(f"{'bst'[i % 3] * 4} {i}", label=i % 3) for i in range(90)]
    task = Task("small", "classification", LABELS, "accuracy", tuple(rows[:60]), TestRows(rows[60:]))
    monkeypatch.setattr(demo, "demo_task", lambda: task)
    monkeypatch.setattr(demo, "MODEL", str(tiny_folder))
    monkeypatch.setattr(demo, "SHOTS", 24)
    monkeypatch.setattr(demo, "TRAINING", {"training.epochs": 2})


@pytest.mark.usefixtures("small")
def test_the_whole_story_and_again(command, tmp_path):
    first = command("demo", "--output", tmp_path / "demo", "--seeds", "2")
    assert first.code == 0, first.err
    table = first.out.splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["head", "lora", "prefix", "prefix-subspace"]
    assert all(line.count("[") == 4 for line in table[2:5])  # two scores, two differences, each with its interval
    for text in demo.TEXTS:
        assert text in first.out
    for method, row in zip(("lora", "prefix", "prefix-subspace"), table[2:5], strict=True):  # as `compare` says it
        for metric in ("accuracy", "nll"):
            compared = command(
                "compare", method, "head", "--runs", tmp_path / "demo", "--metric", metric, "--json"
            ).json
            advantage = Estimate.from_dict(compared["advantage"])
            assert str(advantage) in row
            words = f"{compared['better']} is {compared['verdict']}"
            if compared["better"] is None:
                words = f"{method} and head are not told apart"
            assert f"{metric}: {words}" in table
    runs = {path.parent for path in (tmp_path / "demo").glob("*/run.json")}
    assert len(runs) == 8
    fingerprints = {}
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        fingerprints.setdefault(record["spec"]["run"]["seed"], set()).add(record["rows"]["fingerprint"])
    assert [len(same) for same in fingerprints.values()] == [1, 1]  # every method had the same rows
    for said in (
        "[8/8] prefix-subspace, seed 1: accuracy",
        "Exported the midpoint of the simplex: a PEFT adapter",
        "computed by stock transformers and PEFT in a fresh process, differ by at most",
        "s of processor time",
        f"handful predict {tmp_path / 'demo'}",
    ):
        assert said in first.err, said
    assert "(trained before)" not in first.err

    again = command("demo", "--output", tmp_path / "demo", "--seeds", "2")
    assert again.err.count("(trained before)") == 8
    assert again.out == first.out


@pytest.mark.usefixtures("small")
def test_stopped_by_ctrl_c_it_keeps_what_it_has(command, tmp_path, monkeypatch):
    import handful.runs.experiment as experiment

    calls, real = [], experiment.run

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "run", interrupted)
        outcome = command("demo", "--output", tmp_path / "demo", "--seeds", "2")
    assert outcome.code == 130
    assert "nothing that was saved is lost" in outcome.err
    again = command("demo", "--output", tmp_path / "demo", "--seeds", "2")
    assert (again.code, again.err.count("(trained before)")) == (0, 2)


def test_the_real_task_has_few_test_rows_of_every_class_always_the_same():
    if PACKAGED_TASKS[demo.TASK].source() is None:
        pytest.skip(f"needs {PACKAGED_TASKS[demo.TASK].install}")
    task, again = demo.demo_task(), demo.demo_task()
    assert task.test is not None and again.test is not None
    assert len(task.test) == demo.TEST_ROWS
    assert task.test.fingerprint() == again.test.fingerprint()
    counts = [sum(row.label == label for row in task.test._examples) for label in range(len(task.labels))]
    assert min(counts) > demo.TEST_ROWS / 10
