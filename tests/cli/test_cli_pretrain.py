"""`handful pretrain` on a tiny model: the tasks and what is wrong with them, and the run that comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handful.cli.pretrain import open_tasks
from handful.errors import ConfigError, DataError


@pytest.fixture
def tasks(table) -> list[Path]:
    pairs = [(f"a {i}", f"{'a' if i % 2 else 'zz'} {i}", "same" if i % 2 else "other") for i in range(30)]
    return [table(name="letters.csv"), table(pairs, "premise", "hypothesis", "label", name="pairs.csv")]


QUICK = ("--set", "training.epochs=2", "--set", "run.max_length=32", "--set", "method.num_skills=2")


def test_an_inventory_of_two_tasks_with_the_scores_of_each(command, tasks, tiny_folder, tmp_path):
    options = ("--model", tiny_folder, "--output", tmp_path / "runs", "--rows", "16", *QUICK)
    outcome = command("pretrain", *tasks, *options, "--set", "method.mixing=uniform")
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "runs").glob("*/run.json")
    record = json.loads(path.read_text())
    assert [member["name"] for member in record["task"]["members"]] == ["letters", "pairs"]
    assert record["rows"]["train"] + record["rows"]["dev"] == 32
    assert record["rows"]["test"] == 14
    assert record["spec"]["method"]["mixing"] == "uniform"
    both = [record["members"][name]["accuracy"]["mean"] for name in ("letters", "pairs")]
    assert record["scores"]["accuracy"]["mean"] == pytest.approx(sum(both) / 2)
    assert record["scores"]["accuracy"]["method"] == "MOVER over 2 tasks"
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"accuracy {record['scores']['accuracy']['mean']:.3f} [")
    assert [line.split()[:2] for line in lines[-2:]] == [["letters", "accuracy"], ["pairs", "accuracy"]]
    for said in ("task pairs: pair-classification, 24 labelled rows, 6 test rows", "preset 'pretrain'", "--init-from"):
        assert said in outcome.err, said
    written = [json.loads(line) for line in (path.parent / "predictions.jsonl").read_text().splitlines()]
    assert {row["task"] for row in written} == {"letters", "pairs"}
    assert all(row["target"].startswith(f"{row['task']}: ") and len(row["probabilities"]) == 4 for row in written)
    assert "already trained" in command("pretrain", *tasks, *options, "--set", "method.mixing=uniform").err


def test_everything_wrong_with_the_tasks_is_told_before_a_model_is_loaded(command, table, tmp_path):
    numbers = table([("a" * (i + 1), i / 7) for i in range(30)], "text", "score", name="numbers.csv")
    outcome = command("pretrain", table(), numbers, f"data={numbers}", "--output", tmp_path / "runs")
    assert outcome.code == 1 and "loading model" not in outcome.err
    assert "2 tasks are called 'data'" in outcome.err
    assert f"task 'numbers' ({numbers}) asks for numbers, which have no labels to choose from" in outcome.err
    missing = command("pretrain", tmp_path / "a.csv", "sst-3", table(), "--output", tmp_path / "runs")
    assert missing.code == 1
    assert "2 of 3 tasks cannot be opened" in missing.err and "a.csv" in missing.err and "sst-3" in missing.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_the_encoding_and_the_delimiter_of_the_files(tmp_path):
    path, rows = tmp_path / "a.csv", tmp_path / "a.jsonl"
    path.write_bytes(("text^label\n" + "".join(f"é {i}^{'aü'[i % 2]}\n" for i in range(10))).encode("cp1252"))
    reading = {"encoding": "cp1252", "delimiter": "^"}
    first, second = open_tasks([str(path), f"b={path}"], 0.2, reading)
    assert first.labels == second.labels == ("a", "ü") and first.pool[0].text.startswith("é ")
    rows.write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n')
    with pytest.raises(ConfigError, match="--delimiter: none of the tasks is a file of delimited text, found '\\^'"):
        open_tasks([str(rows)], 0.2, {"delimiter": "^"})
    with pytest.raises(ConfigError, match="--encoding: none of the tasks is a file of text, found 'cp1252'"):
        open_tasks([str(tmp_path / "folder")], 0.2, {"encoding": "cp1252"})
    with pytest.raises(DataError, match="1 of 2 tasks cannot be opened"):
        open_tasks([str(path), str(rows)], 0.2, {"delimiter": "^"})  # the encoding is not UTF-8
    assert open_tasks([str(rows)], 0, {"encoding": None, "delimiter": None})[0].labels == ("b", "d")


def test_wrong_settings_are_told_at_once(command, tasks, tmp_path):
    named = ("--output", tmp_path / "runs")
    outcome = command("pretrain", *tasks, *named, "--preset", "big", "--set", "method.mixing=dice", "--set", "epoch=1")
    assert outcome.code == 2
    for said in ("3 wrong settings", "no preset 'big'", "method.mixing", "epoch"):
        assert said in outcome.err, said
    lonely = command("pretrain", tasks[0], *named, "--preset", "big")
    assert lonely.code == 1 and "2 problems:" in lonely.err and "no preset 'big'" in lonely.err
    assert "expected at least two tasks, found 1" in lonely.err and not (tmp_path / "runs").exists()


def test_one_task_is_no_mixture(command, table):
    outcome = command("pretrain", table())
    assert outcome.code == 1
    assert "expected at least two tasks, found 1; add one, or fit the one alone" in outcome.err


def test_splits_that_do_not_divide_a_width_are_told_with_those_that_do(command, tasks, tiny_folder, tmp_path):
    options = ("--model", tiny_folder, "--output", tmp_path / "runs", *QUICK, "--set", "method.num_splits=5")
    outcome = command("pretrain", *tasks, *options)
    assert outcome.code == 2 and "loading model" not in outcome.err
    assert "num_splits: 5 does not divide the layers' widths [64]; these do: 1, 2, 4, 8, 16, 32, 64" in outcome.err
