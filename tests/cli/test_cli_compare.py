"""`handful compare` on run folders that were written without training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handful.evaluation.estimate import Estimate
from handful.runs.store import write_run


def write(
    root: Path, method: str, task: str, seed: int, accuracy: float, *, rows: str = "", **settings: object
) -> Path:
    """A run folder as far as comparisons read it; its NLL is 1 - accuracy."""
    name = f"{task}-{method}-{seed}-{accuracy}{rows}-{'-'.join(map(str, settings.values()))}"
    scores = {"accuracy": accuracy, "nll": 1 - accuracy}
    record = {
        "key": name, "created": "2031-05-06T07:08:09+00:00", "versions": {}, "preset": "default", "choices": [],
        "notes": [], "temperature": 1.0, "adapter": {},
        "task": {
            "name": task, "kind": "classification", "labels": ["a", "b"], "metric": "accuracy", "origin": "",
            "notes": [],
        },
        "backbone": {
            "name": "minilm", "family": "bert", "kind": "encoder", "pooling": "mean", "fingerprint": "",
            "parameters": 1,
        },
        "fit": {
            "parameters": 1, "steps": 1, "chosen_step": 1, "seconds": 1.0, "stopped": None, "history": [],
            "scoring_seconds": 1.0, "peak_memory_mb": 1.0,
        },
        "spec": {
            "model": "minilm",
            "method": {"name": method, **settings},
            "training": {"epochs": 20},
            "run": {"shots": 16, "seed": seed, "pooling": "auto", "max_length": 128},
        },
        "rows": {
            "train": 16, "dev": 0, "test": 0, "dropped_duplicates": 0, "dropped_overlap": 0, "truncated": {},
            "max_length": 128, "fingerprint": f"{task}/{seed}/{rows}",
        },
        "scores": {
            metric: Estimate(value, value - 0.01, value + 0.01, 900).to_dict() for metric, value in scores.items()
        },
    }  # fmt: skip
    return write_run(root / name, record, {"head.weight": torch.zeros(1)}).folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three methods on two tasks with three seeds; lora is the best everywhere, ia3 the worst."""
    for method, gain in (("head", 0.0), ("lora", 0.125), ("ia3", -0.25)):
        for task, level in (("rte", 0.5), ("sst2", 0.75)):
            for seed in range(3):
                write(tmp_path / "runs", method, task, seed, level + gain * (1 + seed % 2) / 2)
    return tmp_path / "runs"


def test_two_methods_are_compared_in_pairs(command, runs):
    outcome = command("compare", "lora", "head", "--runs", runs)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "lora against head: 6 pairs on 2 tasks"
    assert lines[1].startswith("advantage of lora on these tasks: 0.083 [")
    assert lines[1].endswith("(95% interval: Student's t over seeds, and a bound for test rows, n=6)")
    assert lines[2] == "advantage of lora on tasks like these: 0.083 [-0.080, 0.247]  " \
                       "(95% interval: Student's t over tasks, n=2)"  # fmt: skip
    assert lines[3] == "lora wins 6, ties 0, loses 0; sign test p = 0.0312"
    assert lines[4] == "lora is better on these tasks"
    assert [line.split()[0] for line in lines[6:]] == ["task", "rte", "sst2"]
    assert lines[7].count("[") == 3  # both scores and the advantage have their intervals
    assert "no predictions of both for the test rows of rte, sst2" in outcome.err
    assert "left out" not in outcome.err


def test_json_holds_the_same_and_the_other_way_round_is_the_opposite(command, runs):
    there = command("compare", "lora", "head", "--runs", runs, "--json").json
    back = command("compare", "head", "lora", "--runs", runs, "--json").json
    assert there["advantage"]["mean"] == pytest.approx(-back["advantage"]["mean"])
    assert (there["wins"], there["pairs"], there["better"]) == (6, 6, "lora")
    assert back["losses"] == 6
    assert there["advantage"]["low"] > 0
    by_nll = command("compare", "lora", "head", "--runs", runs, "--json", "--metric", "nll").json
    assert by_nll["tasks"][0]["metric"] == "nll"
    assert by_nll["wins"] == 6  # of NLL less is better


@pytest.mark.parametrize("labels", [(), ("ia3", "head", "lora")])
def test_all_or_more_than_two_are_ranked(command, runs, labels):
    outcome = command("compare", *labels, "--runs", runs)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "3 labels on 6 shared cells of 2 task(s)"
    assert [line.split()[0] for line in lines[1:5]] == ["label", "lora", "head", "ia3"]
    assert "accuracy, K=16" in lines[1]
    assert lines[2].split()[1:4] == ["1.000", "[1.000,", "1.000]"]
    assert lines[5] == "Friedman chi-squared 4.00, p = 0.167 (Iman and Davenport)"
    assert lines[-1] == "ranks closer than the critical difference: lora, head, ia3"
    assert "too few tasks: on 2" in outcome.err
    record = command("compare", *labels, "--runs", runs, "--json").json
    assert [one["label"] for one in record["standings"]] == ["lora", "head", "ia3"]
    assert len(record["summary"]) == 3 * 3  # two tasks and their mean


def test_damaged_folders_are_named_and_counted(command, runs):
    whole = command("compare", "lora", "head", "--runs", runs, "--json").json
    damaged = write(runs, "lora", "cola", 0, 0.5)
    (damaged / "run.json").write_text("{")
    outcome = command("compare", "lora", "head", "--runs", runs, "--json")
    assert outcome.code == 0
    assert f"left out: {damaged / 'run.json'}: damaged" in outcome.err
    assert "1 damaged run folder left out, 18 read" in outcome.err
    assert [one["folder"] for one in outcome.json.pop("damaged")] == [str(damaged)]
    whole.pop("damaged")
    assert outcome.json["pairs"] == 6
    assert outcome.json["advantage"] == whole["advantage"]


def test_a_label_whose_only_run_is_damaged(command, tmp_path):
    write(tmp_path, "lora", "cola", 0, 0.5)
    (write(tmp_path, "head", "cola", 0, 0.5) / "run.json").write_text("{")
    outcome = command("compare", "head", "lora", "--runs", tmp_path)
    assert outcome.code == 2
    assert "here are: 'lora'; 1 damaged run folder left out above may be what is missing" in outcome.err


def test_rows_that_differ_are_not_compared(command, runs, tmp_path):
    write(tmp_path / "more", "lora", "cola", 0, 0.5, rows="old")
    write(tmp_path / "more", "head", "cola", 0, 0.5, rows="new")
    write(tmp_path / "more", "lora", "mrpc", 0, 0.5)
    outcome = command("compare", "lora", "head", "--runs", runs, "--runs", tmp_path / "more")
    assert "6 pairs on 2 tasks" in outcome.out
    assert "left out, cells run on different rows: 1" in outcome.err
    assert "left out, cells of which only one of the two was run: 1" in outcome.err


def test_settings_that_differ_are_labels_of_their_own(command, tmp_path):
    for seed in range(3):
        for rank, score in ((4, 0.5), (8, 0.75)):
            write(tmp_path, "lora", "rte", seed, score, rank=rank)
    outcome = command("compare", "--runs", tmp_path)  # two labels: a pair
    assert outcome.out.startswith("lora (rank=4) against lora (rank=8): 3 pairs on 1 task\n")
    assert "lora (rank=8) is better on this task" in outcome.out
    assert "one task: this says nothing about others" in outcome.err


def test_noise_is_called_noise(command, tmp_path):
    for seed, difference in enumerate((0.25, -0.25, 0.125, -0.125)):
        write(tmp_path, "lora", "rte", seed, 0.5 + difference)
        write(tmp_path, "head", "rte", seed, 0.5)
    outcome = command("compare", "lora", "head", "--runs", tmp_path)
    assert "lora and head are not told apart" in outcome.out
    assert "p = 1\n" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("lora", "haed"), 2, "found 'haed'; here are: 'head', 'ia3', 'lora'\nhint: did you mean 'head'?"),
        (("lora",), 2, "expected two labels or more, found 'lora'\nhint: here are: 'head', 'ia3', 'lora'"),
        (("lora", "lora"), 2, "expected two labels or more, found 'lora'"),
        (("lora", "head", "--metric", "nnl"), 2, "found 'nnl'\nhint: did you mean 'nll'?"),
        (
            ("lora", "head", "--metric", "f1"),
            1,
            "'lora' and 'head' have no runs on the same rows (6 without a score f1)",
        ),
    ],
)
def test_mistakes_are_told(command, runs, arguments, code, said):
    outcome = command("compare", *arguments, "--runs", runs)
    assert outcome.code == code
    assert said in outcome.err
    assert outcome.out == ""


def test_where_there_are_no_runs(command, tmp_path):
    missing = command("compare", "--runs", tmp_path / "no")
    assert (missing.code, "no: no such folder" in missing.err) == (1, True)
    empty = command("compare", "--runs", tmp_path)
    assert (empty.code, "no finished runs below" in empty.err) == (1, True)
