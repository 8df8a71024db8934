"""`handful evaluate`: a finished run scored on labelled rows that came later."""

from __future__ import annotations

import pytest

NEW = [(f"{'aaaa cc' if i % 2 else 'zz 77 zz'} {i}", "ab" if i % 2 else "z9", "x") for i in range(100, 130)]
TRAINING = [(f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}", "ab" if i % 2 else "z9", "x") for i in range(40)]


def test_every_metric_has_an_interval_over_the_new_rows(command, table, finished):
    outcome = command("evaluate", finished, table(NEW, "text", "label", "other"), "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json
    unread = "data.csv: columns that are not read: 'other' (always 'x')"
    assert record["rows"] == 30 and record["notes"] == [unread]
    assert set(record["scores"]) == {"accuracy", "macro_f1", "nll", "brier", "ece"}
    accuracy = record["scores"]["accuracy"]
    assert accuracy["n"] == 30 and accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    shown = command("evaluate", finished, table(NEW, "text", "label", "other"))
    assert shown.out.startswith(f"accuracy {accuracy['mean']:.3f} [")
    assert " on 30 rows (95 % interval over rows); always predicting '" in shown.out and "macro_f1" in shown.out


def test_repeats_and_rows_of_training_do_not_count(command, table, finished):
    alone = command("evaluate", finished, table(NEW, "text", "label", "other"), "--json").json
    repeated = command("evaluate", finished, table(NEW * 3, "text", "label", "other"), "--json").json
    assert repeated["scores"] == alone["scores"]
    assert repeated["notes"][1:] == ["60 of 90 rows repeat the text of another row and do not count again"]
    mixed = command("evaluate", finished, table(NEW + TRAINING, "text", "label", "other"), "--json").json
    assert mixed["rows"] == 30 + 24  # of the 40 rows 16 were trained on
    assert mixed["notes"][1:] == ["16 rows were left out: the model was trained or selected on them"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "ab", ""), ("b", "abc", "")], "data.csv:3: the label 'abc' is none of the 2 classes"),
        ([("", "ab", ""), ("b", "", "")], "1 of 2 rows have an empty text"),
    ],
)
def test_wrong_labels_are_said_before_the_model_is_loaded(command, table, finished, monkeypatch, rows, message):
    monkeypatch.setattr("handful.cli.evaluate.open_model", lambda *_: pytest.fail("the model was loaded"))
    outcome = command("evaluate", finished, table(rows, "text", "label", "other"))
    assert outcome.code == 1 and message in outcome.err


def test_a_run_cannot_be_scored_on_its_own_training_rows(command, table, quick, tmp_path):
    data = table()
    assert command("fit", data, *quick, "--method", "head", "--test-fraction", 0, "--shots", 40).code == 0
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    outcome = command("evaluate", run, data)
    assert outcome.code == 1
    assert "expected rows that the model was not trained on, found none among 40" in outcome.err
