"""Run folders: whole or not there, read back as written, damage told."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch

from handful.errors import RunError
from handful.evaluation.estimate import wilson
from handful.runs.record import WrittenBefore, sealed
from handful.runs.store import find_runs, new_folder, read_run, write_run
from handful.storage import check_writable

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "prefix.keys_values": torch.randn(2, 2)[:, :1]}


RECORD = {
    "key": "abc", "created": "2031-05-06T07:08:09+00:00", "versions": {"handful": "0.1.0"}, "preset": "default",
    "choices": [], "notes": [], "temperature": 1.0, "adapter": {}, "scores": {},
    "spec": {
        "model": "minilm", "method": {"name": "head"}, "training": {},
        "run": {"shots": None, "seed": 0, "pooling": "auto", "max_length": 128},
    },
    "task": {
        "name": "t", "kind": "classification", "labels": ["a", "b"], "metric": "accuracy", "origin": "t.csv",
        "notes": [],
    },
    "rows": {
        "train": 16, "dev": 0, "test": 4, "dropped_duplicates": 0, "dropped_overlap": 0, "truncated": {"train": 0},
        "max_length": 128, "fingerprint": "0123",
    },
    "backbone": {
        "name": "minilm", "hub_name": None, "family": "bert", "kind": "encoder", "pooling": "mean",
        "fingerprint": "4567", "parameters": 22_565_376,
    },
    "fit": {
        "parameters": 770, "steps": 0, "chosen_step": 0, "seconds": 0.5, "stopped": None, "history": [],
        "scoring_seconds": 0.1, "peak_memory_mb": 500.0,
    },
}  # fmt: skip


def write(folder: Path, **record: object):
    """A small run."""
    return write_run(
        folder, RECORD | record, WEIGHTS,
        metrics=[{"event": "StepDone", "step": 1}], predictions=[{"target": "ä"}], card="# ä\n",
    )  # fmt: skip


def test_what_was_written_is_read(tmp_path):
    written = write(tmp_path / "runs" / "a", note="é")
    run = read_run(tmp_path / "runs" / "a")
    assert run.record == written.record
    assert (run.key, run.record["note"], run.record["format_version"]) == ("abc", "é", 2)
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
    import handful.storage as store

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


def test_an_old_run_has_no_checksum_and_is_read_with_a_warning(tmp_path, unseal):
    folder = write(tmp_path / "a", note="old").folder
    unseal(folder)
    with pytest.warns(WrittenBefore, match="older than checksums"):
        run = read_run(folder)
    assert (run.record["note"], run.record["format_version"]) == ("old", 1)
    assert run.lines("metrics.jsonl") == [{"event": "StepDone", "step": 1}]
    run.check()
    record = {**json.loads((folder / "run.json").read_text()), "task": 3}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"run\.json: damaged: not the record of a run \(task: .*, found 3\)"):
        read_run(folder)


@pytest.mark.parametrize(
    "change", [{"backbone": {"parameters": 0}}, {"study": None}, {"rows": {"test": -1}}, {"fit": {"seconds": None}}]
)
def test_values_that_no_run_has_are_refused_though_the_checksum_is_right(tmp_path, change):
    folder = write(tmp_path / "a").folder
    record = json.loads((folder / "run.json").read_text())
    ((name, value),) = change.items()
    record[name] = {**record[name], **value} if value else value
    (folder / "run.json").write_text(json.dumps(sealed(record, record["weights_sha256"], record["files"])))
    with pytest.raises(RunError, match=rf"damaged: not the record of a run \({name}"):
        read_run(folder)


def test_what_is_written_from_another_record_has_a_seal_of_its_own(tmp_path, unseal):
    folder = write(tmp_path / "a").folder
    unseal(folder)
    old = json.loads((folder / "run.json").read_text())
    made = write_run(tmp_path / "b", old | {"notes": ["changed"]}, {"other": torch.ones(2)})
    again = read_run(made.folder)
    again.check()
    assert again.record == made.record and again.record["format_version"] == 2
    assert again.record["weights_sha256"] != old["weights_sha256"]


def problem_of(folder: Path) -> RunError | None:
    """What is said when the run is read and checked."""
    try:
        read_run(folder).check()
    except RunError as error:
        return error
    return None


FILES = ("run.json", "adapter.safetensors", "metrics.jsonl", "predictions.jsonl", "rows.sha256", "landscape.json")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path, name):
    """Of white space or the case of an exponent nothing depends: then the content is the same."""
    seen, landscape = [bytes(32), bytes(range(32))], {"points": [[1.0, 0.5]], "metric": "nll"}
    predictions = [{"target": "a\u2028b", "probabilities": [0.25, 0.75]}]
    folder = write_run(
        tmp_path / "a", RECORD, WEIGHTS, metrics=[{"step": 1}], predictions=predictions, seen=seen, landscape=landscape
    ).folder
    expected, path = read_run(folder), folder / name
    assert expected.lines("predictions.jsonl") == predictions and expected.landscape() == landscape
    content, draw = path.read_bytes(), random.Random(0)
    noticed = 0
    for bit in draw.sample(range(8 * len(content)), min(400, 8 * len(content))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        if (problem := problem_of(folder)) is None:
            assert name == "run.json" and read_run(folder).record == expected.record
        else:
            assert str(folder) in problem.message and problem.hint
            noticed += 1
    assert noticed > (350 if name == "run.json" else 0.99 * min(400, 8 * len(content)))
    path.write_bytes(content[:-1])
    if name != "run.json":
        with pytest.raises(RunError, match="not what was saved"):
            read_run(folder).check()
    path.unlink()
    if name != "rows.sha256":  # which people may remove before they pass a run on
        with pytest.raises(RunError, match=f"expected {re.escape(name)}, found none"):
            read_run(folder).check()


def test_labels_in_another_order_are_another_record(tmp_path):
    folder = write(tmp_path / "a").folder
    record = json.loads((folder / "run.json").read_text())
    record["task"]["labels"].reverse()
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"a/run\.json: damaged \(its content is not what was saved"):
        read_run(folder)


WRONG = (None, -1, 1.5, True, "x", [], {}, [[]], {"a": None}, 10**30, float("nan"))


def places(value: object, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, of in inner for place in places(of, (*path, key)))]


def test_every_value_of_another_type_is_read_or_refused_by_name(tmp_path, unseal):
    baseline = {"answer": "no", "ties": 1, "scores": {"accuracy": 0.5}, "members": {"a": {"answer": 2, "scores": {}}}}
    folder = write(tmp_path / "a", scores={"accuracy": wilson(3, 4).to_dict()}, baseline=baseline).folder
    unseal(folder)
    record = json.loads((folder / "run.json").read_text())
    refused = 0
    for *path, key in places(record)[1:]:
        for value in (*WRONG, KeyError):
            changed = json.loads(json.dumps(record))
            of = changed
            for part in path:
                of = of[part]
            if value is KeyError:
                del of[key]
            else:
                of[key] = value
            (folder / "run.json").write_text(json.dumps(changed))
            if problem := problem_of(folder):
                assert str(folder) in problem.message, (path, key, value)
                refused += 1
    assert refused > 500


def test_nothing_of_a_user_is_removed_with_an_older_run(tmp_path):
    folder = write(tmp_path / "a", note="old").folder
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"holds what is not of a run: thesis\.txt") as caught:
        write(folder, note="new")
    assert caught.value.hint and "nothing was removed" in caught.value.hint
    assert (folder / "thesis.txt").read_text() == "precious" and read_run(folder).record["note"] == "old"
    (folder / "thesis.txt").unlink()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(RunError, match="link"):
        write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert write(folder, note="new").record["note"] == "new"
