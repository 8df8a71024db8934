"""`handful study` as its user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handful.testing import toy_study

RECIPE = """
name = "toy"
model = "{data}/tiny-bert"
tasks = ["letters", "others"]
shots = [16]
seeds = 2
set.training.epochs = 1
methods = ["head", {{ name = "short", method = "prefix", set = {{ prefix_length = 2 }} }}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    toy_study(tmp_path / "data")
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE.format(data=tmp_path / "data"))
    return path


def test_study_runs_compares_and_continues(recipe: Path, tmp_path: Path, command) -> None:
    options = ("--data", tmp_path / "data", "--output", tmp_path / "out", "--engine", "sequential")
    first = command("study", recipe, *options)
    assert first.code == 0, first.err
    assert "8 runs, 2 tasks × 1 number of shots × 2 seeds × 2 methods" in first.err
    assert "[8/8] others-k16-s1-short: accuracy" in first.err and "left" in first.err
    assert "mean over tasks" in first.out and "short" in first.out
    again = command("study", recipe, *options)
    assert "8 of them are done already" in again.err and "[" not in again.err.partition("done already")[2]
    assert again.out == first.out
    more = command("study", recipe, *options, "--set", "seeds=3", "--json")
    lines = json.loads(more.out)
    assert len(lines) == 12 and all("scores" in line for line in lines)
    compared = command("compare", "short", "head", "--runs", tmp_path / "out")
    assert compared.code == 0
    shown = command("study", recipe, *options, "--set", "seeds=3").out.splitlines()[-1]
    said = command("compare", "head", "short", "--runs", tmp_path / "out").out.splitlines()[4]
    assert shown == said
    assert "better on these tasks" in said or "better on tasks like these" in said or "not told apart" in said


def test_dry_run_lists_runs_and_costs_and_leaves_nothing(recipe: Path, tmp_path: Path, command) -> None:
    found = command("study", recipe, "--data", tmp_path / "data", "--output", tmp_path / "out", "--dry-run")
    assert found.code == 0, found.err
    rows = [line.split() for line in found.out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        ["letters", "16", "head", "2"], ["letters", "16", "short", "2"],
        ["others", "16", "head", "2"], ["others", "16", "short", "2"],
    ]  # fmt: skip
    assert {row[2]: row[5] for row in rows} == {"head": "0", "short": "1"}  # 16 rows are one step an epoch
    assert "8 runs: about" in found.err and not (tmp_path / "out").exists()


def test_failed_run_is_told_and_stops_nothing(recipe: Path, tmp_path: Path, command) -> None:
    recipe.write_text(recipe.read_text().replace('"head",', '{ name = "lost", method = "bias", model = "nowhere" },'))
    options = ("--data", tmp_path / "data", "--output", tmp_path / "out", "--engine", "sequential", "--set", "seeds=1")
    found = command("study", recipe, *options)
    assert found.code == 1
    assert "failed: letters-k16-s0-lost: no model is called 'nowhere'" in found.err
    assert "2 of 4 runs failed; --retry failed does them once more" in found.err
    assert "short" in found.out and "lost" not in found.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stdy.toml"], "cannot be read"),
        (["{recipe}", "--set", "sots=3"], "no such key; did you mean 'shots'?"),
        (["{recipe}", "--set", "shots"], "expected NAME=VALUE"),
        (["{recipe}", "--data", "nowhere"], "no such folder"),
        (["{recipe}", "--engine", "rai"], "did you mean 'ray'?"),
        (["{recipe}", "--set", "shots=[9999]"], "expected at least 9999 distinct labelled rows"),
        (["{recipe}", "--set", "tasks=[\"leters\"]"], "did you mean 'letters'?"),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error(recipe: Path, tmp_path: Path, command, arguments: list[str], text: str) -> None:
    given = [argument.replace("{recipe}", str(recipe)) for argument in arguments]
    data = () if "--data" in given else ("--data", tmp_path / "data")
    found = command("study", *given, *data, "--output", tmp_path / "out")
    assert found.code in (1, 2) and text in found.err and "Traceback" not in found.err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(("load", "said"), [(0.5, False), (3.0, False), (2.9, False), (9.0, True)])
def test_a_busy_machine_is_said_beside_the_time_left(monkeypatch, load, said):
    from handful.cli.study import busy

    monkeypatch.setattr("handful.studies.engines.available_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert busy(2) == (" (the machine is busy: load 9 on 2 cores)" if said else "")
    monkeypatch.delattr("os.getloadavg")
    assert busy(2) == ""
