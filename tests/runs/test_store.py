"""Run folders: whole or not there, read back as written, damage told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from handful.errors import RunError
from handful.runs.store import check_writable, find_runs, new_folder, read_run, write_run

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "prefix.keys_values": torch.randn(2, 2)[:, :1]}


def write(folder: Path, **record: object):
    """A small run."""
    return write_run(
        folder, {"key": "abc", "scores": {}, **record}, WEIGHTS,
        metrics=[{"event": "StepDone", "step": 1}], predictions=[{"target": "ä"}], card="# ä\n",
    )  # fmt: skip


def test_what_was_written_is_read(tmp_path):
    written = write(tmp_path / "runs" / "a", note="é")
    run = read_run(tmp_path / "runs" / "a")
    assert run.record == written.record
    assert (run.key, run.record["note"], run.record["format_version"]) == ("abc", "é", 1)
    weights = run.weights()
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert run.lines("metrics.jsonl") == [{"event": "StepDone", "step": 1}]
    assert run.lines("predictions.jsonl") == [{"target": "ä"}]
    assert run.lines("nothing.jsonl") == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_everybody_may_read_what_the_user_lets_everybody_read(tmp_path):
    folder = write(tmp_path / "a").folder
    (tmp_path / "plain").write_text("")
    expected = (tmp_path / "plain").stat().st_mode & 0o777
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {expected}


def test_numbers_that_json_has_not_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "a", score=float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_folder_appears_whole_or_not_at_all(tmp_path, error):
    def fail_halfway() -> None:
        with new_folder(tmp_path / "a") as partial:
            (partial / "run.json").write_text("half")
            raise error

    write(tmp_path / "a", note="old")
    with pytest.raises(error):
        fail_halfway()
    assert read_run(tmp_path / "a").record["note"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    write(tmp_path / "a", note="new")
    assert read_run(tmp_path / "a").record["note"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_interruption_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    import handful.runs.store as store

    write(tmp_path / "a", note="old")
    real, calls = store.os.replace, []

    def replace(source, target):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(store.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", note="new")
    assert read_run(tmp_path / "a").record["note"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_runs_below_a_folder_the_damaged_ones_apart(tmp_path):
    write(tmp_path / "x" / "a")
    write(tmp_path / "b")
    write(tmp_path / "c")
    (tmp_path / "c" / "run.json").write_text("{")
    write(tmp_path / ".d.partial")
    good, bad = find_runs(tmp_path)
    assert [run.folder for run in good] == [tmp_path / "b", tmp_path / "x" / "a"]
    ((folder, message),) = bad
    assert folder == tmp_path / "c"
    assert "damaged" in message


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for call in (lambda: check_writable(tmp_path / "file" / "a"), lambda: write(tmp_path / "file" / "a")):
        with pytest.raises(RunError, match="cannot be written") as caught:
            call()
        assert caught.value.hint == "give another --output"
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_record_is_plain_json(tmp_path):
    folder = write(tmp_path / "a").folder
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert len(record["weights_sha256"]) == 64
