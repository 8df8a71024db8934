"""`handful fit --method auto` and its check, on a tiny model."""

from __future__ import annotations

import json

import pytest

from handful.studies import auto


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of folds and two candidates: enough to see how they are told."""
    monkeypatch.setattr(auto, "REPEATS", 1)
    monkeypatch.setattr(auto, "CANDIDATES", ("head", "prefix"))


@pytest.mark.usefixtures("few")
def test_the_choice_is_told_and_recorded_and_the_run_is_an_ordinary_one(command, table, quick, tmp_path):
    data = table()
    outcome = command("fit", data, *quick, "--method", "auto", "--budget", "500", "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json
    method = record["spec"]["method"]["name"]
    first, *others = record["choices"]
    assert (first["name"], first["value"]) == ("method", method)
    assert "in 5 folds of the 16 training rows (corrected resampled t at " in first["reason"]
    (advantage,) = [choice["value"] for choice in others if choice["name"] == "auto.prefix"]
    assert (advantage["n"], advantage["method"]) == (5, "corrected resampled t")
    for said in (
        "auto: head or prefix, by accuracy in up to 5 folds of the 16 training rows and at most 500 s",
        "auto: fold 5 of 5: head ",
        f"auto: chose {method}: {first['reason']}",
        f"method = {method}  ({first['reason']})",
    ):
        assert said in outcome.err, said
    assert first["reason"].partition(" [")[0] in (tmp_path / record["folder"] / "README.md").read_text()
    same = command("fit", data, *quick, "--method", method, "--json")
    assert same.json["key"] == record["key"]
    assert "already trained" in same.err


@pytest.mark.usefixtures("few")
def test_a_config_file_can_ask_for_it_and_check_says_what_it_does(command, table, quick, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('method = "auto"\n')
    outcome = command("check", table(), *quick, "--config", config)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("auto      head or prefix, by at most 5 folds of the training rows; below is head")
    assert "method head: " in outcome.err
    record = command("check", table(), *quick, "--method", "auto", "--json").json
    assert record["ok"]
    assert record["auto"] == {"candidates": {"head": None, "prefix": None}, "folds": 5}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--method", "head", "--budget", "9"), 2, "budget: only the method 'auto' chooses within a time"),
        (("--method", "auto", "--set", "method.prefix_length=3"), 2, "method 'auto' tries head, prefix-subspace, lora"),
        (("--method", "auto", "--shots", "1000"), 1, "expected at least 1000 distinct labelled rows"),
        (("--method", "auto", "--config", "none.toml"), 2, "none.toml: cannot be read"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(command, table, quick, options, code, said):
    outcome = command("fit", table(), *quick, *options)
    assert outcome.code == code
    assert said in outcome.err
    assert "loading model" not in outcome.err
    checked = command("check", table(), *quick, *options)
    assert (checked.code, said in checked.err) == (code, True)
    assert checked.err.count(said) == 1
    assert not json.loads(command("check", table(), *quick, *options, "--json").out)["ok"]
