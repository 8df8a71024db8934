"""Bad input: a clear error before any model is loaded, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

import handful.runs.experiment as experiment
from handful.runs.record import checksum

AB = b"text,label\naaaa,ab\nzz,z9\naab,ab\nzz9,z9\n"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch):
    """Loading a model fails the test: the error has to come before."""
    monkeypatch.setattr(experiment, "load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))


def check_refused(outcome, *said: str, code: int = 1) -> None:
    """One error, its hint, no traceback, nothing on stdout."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert sum(line.startswith("error: ") for line in outcome.err.splitlines()) == 1
    assert "Traceback" not in outcome.err
    assert "handful itself failed" not in outcome.err
    for text in said:
        assert text in outcome.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"txt,lbl\na,b\n", ("data.csv: expected a text column 'text', found the columns 'txt', 'lbl'", "--text")),
        (b"text,lable\na,b\n", ("expected a label column 'label'", "did you mean 'lable'? (--label COLUMN)")),
        (b"text,label\na,ab\nb,ab\n", ("all 2 rows have the label 'ab'", "at least two different ones are needed")),
        (b"text,label\na,ab\n ,z9\n", ("expected no row with an empty text in 'text', found 1 (line 3)",)),
        (AB + b"a,\n", ("expected no row without a label, found 1 (line 6)",)),
        (b"text,label\nca\xe9,ab\nb,z9\n", ("data.csv:2: expected UTF-8 text, found the byte 0xE9", "--encoding")),
        (b"text,label\na\x00b,ab\nb,z9\n", ("data.csv:2: found a NUL character",)),
        (b"text,label,text\na,ab,c\n", ("data.csv:1: the header names 'text' more than once",)),
        (b'text,label\n"' + b"a" * 10_000_000 + b'",ab\n', ("data.csv:2: a cell has more than 1,000,000 characters",)),
        (b"text,label\na,ab,c\n", ("data.csv:2: expected 2 cells (text, label), found 3",)),
        (b'text,label\n"a,ab\n', ("data.csv:2: the double quotes do not match",)),
        (b"", ("data.csv: expected rows, found an empty file",)),
        (b"text,label\n", ("data.csv: expected rows, found only a header",)),
        (AB + b"once,c\n", ("class 'c' has", "label more rows")),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_files_that_cannot_be_used(command, tmp_path, content, said):
    data = tmp_path / "data.csv"
    data.write_bytes(content)
    check_refused(command("fit", data, "--dev", "carved", "--output", tmp_path / "runs"), *said)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.usefixtures("no_model")
def test_a_missing_file_names_the_nearest(command, table, tmp_path):
    table(name="tickets.csv")
    outcome = command("fit", tmp_path / "tickts.csv", "--output", tmp_path / "runs")
    check_refused(outcome, "tickts.csv: no such file", "hint: did you mean 'tickets.csv'?")


@pytest.mark.usefixtures("no_model")
def test_the_delimiter_is_found_named_or_wrong(command, tmp_path, quick):
    data = tmp_path / "data.csv"
    data.write_text("text,a;label\n" + "".join(f"aaaa {i},1;ab\nzz {i},2;z9\n" for i in range(20)))
    outcome = command("check", data, "--delimiter", "semicolon", "--text", "text,a", *quick)
    assert (outcome.code, "classes   ab: " in outcome.out) == (0, True)
    said = "cannot tell the delimiter: ',' (comma) and ';' (semicolon)"
    check_refused(command("fit", data, "--output", tmp_path / "runs"), said, "--delimiter comma|semicolon")
    wrong = command("fit", data, "--delimiter", "ab", "--output", tmp_path / "runs")
    check_refused(wrong, "delimiter: expected one character, found 'ab'", code=2)


@pytest.mark.usefixtures("no_model")
def test_an_unknown_label_in_the_test_file(command, table, tmp_path):
    test = table([("aaaa", "ab"), ("zz", "z99")], "text", "label", name="test.csv")
    outcome = command("fit", table(), "--test", test, "--output", tmp_path / "runs")
    check_refused(outcome, "test.csv:3: the label 'z99' is none of the 2 classes", "did you mean 'z9'?")


@pytest.mark.usefixtures("no_model")
def test_more_shots_than_rows(command, table, tmp_path):
    outcome = command("fit", table(), "--shots", "100", "--output", tmp_path / "runs")
    check_refused(outcome, "expected at least 100 distinct labelled rows, found 32", "use at most --shots 32")


@pytest.mark.usefixtures("no_model")
def test_fewer_shots_than_classes(command, table, tmp_path):
    outcome = command("fit", table(), "--shots", "2", "--dev", "carved", "--output", tmp_path / "runs")
    check_refused(outcome, "2 shots are too few for 2 classes", "the smallest number that works is --shots 4")


def test_labels_that_are_numbers_are_classes_or_a_target_and_it_is_said(command, table, quick):
    rows = [(f"text {i}", i % 2) for i in range(40)]
    classes = command("check", table(rows, "text", "label"), *quick)
    assert (classes.code, "holds only 2 different whole numbers" in classes.err) == (0, True)
    assert "classes   0: 8, 1: 8" in classes.out
    target = command("check", table(rows, "text", "label"), *quick, "--kind", "regression")
    assert (target.code, "regression" in target.err) == (0, True)
    mixed = command("check", table([*rows, ("x", "many")], "text", "label"), *quick, "--kind", "regression")
    assert mixed.code == 1
    assert "data.csv:42: expected a finite number as label, found 'many'" in mixed.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--method", "prefix-subspce"), 2, ("unknown method 'prefix-subspce'", "did you mean 'prefix-subspace'?")),
        (("--set", "method.num_vertixes=2"), 2, ("has no such field", "did you mean 'num_vertices'?")),
        (("--model", "minilmm"), 1, ("no model is called 'minilmm'", "did you mean 'minilm'?")),
        (("--kind", "clasification"), 2, ("kind: 'clasification' is not known", "did you mean 'classification'?")),
        (("--encoding", "uft8"), 2, ("encoding: 'uft8' is not known",)),
        (("--encoding", "idna"), 2, ("encoding: 'idna' is not an encoding of text files",)),
    ],
)
def test_misspelt_names(command, table, tmp_path, arguments, code, said):
    check_refused(command("fit", table(), *arguments, "--output", tmp_path / "runs"), *said, code=code)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "auto"), "method 'auto' chooses among methods for labels, and this task is of texts to write"),
        (("--method", "head"), "method 'head' writes nothing; it is for labels"),
        (("--set", "pooling=mean"), "run.pooling: a model that writes has no features to pool, found 'mean'"),
        (
            ("--method", "prefix-subspace", "--dev", "carved", "--set", "landscape=6"),
            "run.landscape: it is measured on scores of labels, not on texts, found 6",
        ),
        (("--set", "validation=pooled"), "training.validation: texts are judged at the midpoint, found 'pooled'"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_what_a_file_of_references_cannot_have(command, table, tmp_path, options, said):
    data = table([(f"name = {i}", f"It is {i}.") for i in range(10)], "source", "reference")
    check_refused(command("fit", data, *options, "--output", tmp_path / "runs"), said, code=2)
    checked = command("check", data, *options)
    assert (checked.code, said in checked.err) == (2, True)


@pytest.mark.usefixtures("no_model")
def test_a_misspelt_packaged_task(command, tmp_path):
    outcome = command("fit", "bbc-nws", "--output", tmp_path / "runs")
    check_refused(outcome, "'bbc-nws' is neither a file, nor a task folder", "did you mean 'bbc-news'?")


@pytest.mark.usefixtures("no_model")
def test_an_output_that_cannot_be_written(command, table, tmp_path):
    (tmp_path / "file").write_text("in the way")
    outcome = command("fit", table(), "--output", tmp_path / "file" / "runs")
    check_refused(outcome, "cannot be written (Not a directory)", "give another --output")


@pytest.mark.parametrize("writer", ["handful.runs.store.save_file", "handful.training.checkpoint.save_file"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")], ids=type
)
def test_a_full_disk_loses_nothing_that_was_saved(command, table, quick, tmp_path, monkeypatch, writer, error):
    def full_disk(*_: object, **__: object) -> None:
        raise error

    data = table()
    before = command("fit", data, *quick, "--json").json
    with monkeypatch.context() as patch:
        patch.setattr(writer, full_disk)
        check_refused(command("fit", data, *quick, "--again"), "No space left on device", "free some space")
    kept = command("fit", data, *quick, "--json")
    assert "already trained" in kept.err
    assert kept.json == before
    assert not list((tmp_path / "runs").glob(".*.partial"))


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "truncated weights": (
        lambda f: (f / "adapter.safetensors").write_bytes((f / "adapter.safetensors").read_bytes()[:-100]),
        "adapter.safetensors: the content is not what was saved (SHA-256 differs)",
    ),
    "a flipped bit": (lambda f: flip_a_bit(f / "adapter.safetensors"), "the content is not what was saved"),
    "no weights": (lambda f: (f / "adapter.safetensors").unlink(), "expected adapter.safetensors, found none"),
    "no record": (lambda f: (f / "run.json").unlink(), "expected run.json, found none"),
    "half a record": (lambda f: (f / "run.json").write_bytes((f / "run.json").read_bytes()[:200]), "run.json: damaged"),
    "an empty record": (lambda f: (f / "run.json").write_text("{}"), "run.json: damaged"),
    "another kind of record": (lambda f: (f / "run.json").write_text("[]"), "run.json: damaged"),
    "a newer version": (
        lambda f: edit(f, format_version=3),
        "written by a newer handful (run format 3; this one reads up to 2)",
    ),
    "an unknown method": (lambda f: edit_spec(f, "method", name="prefix-hyperspace"), "unknown method"),
    "an unknown setting": (lambda f: edit_spec(f, "training", epoks=2), "has no such field"),
    "another method's tensors": (lambda f: edit_spec(f, "method", num_vertices=2), "are not those of its method"),
}


def edit(folder: Path, **values: object) -> None:
    """Change a record and seal it again, as whoever means it would."""
    record = json.loads((folder / "run.json").read_text()) | values
    (folder / "run.json").write_text(json.dumps(record | {"checksum": checksum(record)}))


def edit_spec(folder: Path, section: str, **values: object) -> None:
    record = json.loads((folder / "run.json").read_text())
    edit(folder, spec=record["spec"] | {section: record["spec"][section] | values})


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_run_folders(command, table, run_folder, name):
    damage, said = DAMAGE[name]
    damage(run_folder)
    outcome = command("predict", run_folder, "--input", table())
    assert outcome.code in (1, 2)
    check_refused(outcome, said, code=outcome.code)


def test_a_damaged_run_in_the_way_of_a_fit_is_told_and_replaced_when_asked(command, table, quick):
    data = table()
    folder = Path(command("fit", data, *quick, "--json").json["folder"])
    flip_a_bit(folder / "adapter.safetensors")
    check_refused(command("fit", data, *quick), "SHA-256 differs", "train again with --again")
    assert command("fit", data, *quick, "--again").code == 0
    assert command("predict", folder, "--input", data).code == 0


def test_a_missing_run_folder_names_those_there_are(command, table, run_folder):
    outcome = command("predict", run_folder.parent / "rn", "--input", table())
    check_refused(outcome, "rn: no such run folder", "run")


def test_damaged_models(command, table, quick, tiny_folder, tmp_path):
    broken = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    outcome = command("fit", table(), *quick, "--model", broken)
    check_refused(outcome, "its weights cannot be read", "give a model saved whole, as safetensors")
    (broken / "config.json").write_text("{")
    check_refused(command("fit", table(), *quick, "--model", broken), "is not a valid JSON file")
    (broken / "config.json").unlink()
    check_refused(command("fit", table(), *quick, "--model", broken), "expected a model folder, found no config.json")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--shots", "4", "--set", "run.shots=3"), 2, "--shots 4 contradicts --set run.shots=3; leave one of them out"),
        (("--shots", "4", "--set", "shots=3"), 2, "--shots 4 contradicts --set shots=3"),
        (("--method", "head", "--set", "method=lora"), 2, "--method head contradicts --set method=lora"),
        (("--model", ""), 2, "--model: model: expected a name, found an empty text"),
        (("--method", " "), 2, "--method: method: expected a name, found an empty text"),
        (("--preset", ""), 2, "--preset: preset: expected a name, found an empty text"),
        (("--text", ""), 2, "text: expected a name, found an empty text"),
        (("--test-fraction", "nan"), 2, "test_fraction: expected a number from 0 to 0.9, found nan"),
        (("--device", "0"), 2, "GPU number 0 is cuda:0"),
        (("--device", "tpu"), 2, "leave it out, and the fastest device that is there is taken"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_options_that_are_empty_or_contradict_each_other(command, table, tmp_path, arguments, code, said):
    check_refused(command("fit", table(), *arguments, "--output", tmp_path / "runs"), said, code=code)


@pytest.mark.usefixtures("no_model")
def test_test_rows_that_are_the_data(command, tmp_path):
    for name in ("data.csv", "copy.csv"):
        (tmp_path / name).write_bytes(AB)
    data = tmp_path / "data.csv"
    (tmp_path / "linked.csv").symlink_to(data)
    same = "test: expected other rows than the labelled ones, found the same"
    check_refused(command("check", data, "--test", tmp_path / "linked.csv"), same)
    check_refused(command("check", data, "--test", tmp_path / "copy.csv"), "stands in the test rows too, so none is")
