"""`handful predict` and `export`: from a finished run to files."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.cli.fit import tell_next
from handful.runs.store import read_run

TEXTS = [("aaaa bbbb first", "x"), ("zz 99 zz second", "y"), ('a "quoted", text', "z")]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    """`stdin(b"...")`: what stdin holds."""
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def as_rows(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def test_labels_probabilities_and_disagreement(command, table, finished):
    data = table(TEXTS, "text", "other")
    plain = as_rows(command("predict", finished, "--input", data).out)
    outcome = command("predict", finished, "--input", data, "--disagreement")
    assert outcome.code == 0, outcome.err
    rows = as_rows(outcome.out)
    assert plain == [{name: cell for name, cell in row.items() if name != "disagreement"} for row in rows]
    assert [(row["text"], row["other"]) for row in rows] == TEXTS
    for row in rows:
        probabilities = {label: float(row[f"probability of {label}"]) for label in ("ab", "z9")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(probabilities, key=probabilities.__getitem__)
        assert float(row["probability"]) == max(probabilities.values())
        assert 0 < float(row["disagreement"]) < 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_format_of_output_says_the_same(command, table, finished, tmp_path, suffix):
    data, output = table(TEXTS, "text", "other"), tmp_path / f"out{suffix}"
    expected = [json.loads(line) for line in command("predict", finished, "--input", data, "--json").out.splitlines()]
    outcome = command("predict", finished, "--input", data, "--output", output)
    assert (outcome.out, outcome.code) == ("", 0)
    assert f"3 predictions written to {output}" in outcome.err
    content = output.read_text(encoding="utf-8")
    if suffix == ".jsonl":
        assert [json.loads(line) for line in content.splitlines()] == expected
    else:
        found = as_rows(content, "\t" if suffix == ".tsv" else ",")
        assert found == [{name: str(value) for name, value in row.items()} for row in expected]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def test_texts_from_stdin(command, finished, stdin):
    stdin("\ufeffaaaa bbbb first\n\n  zz 99 é \n".encode())
    rows = as_rows(command("predict", finished, "--input", "-").out)
    assert [row["text"] for row in rows] == ["aaaa bbbb first", "zz 99 é"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "expected texts, one per line, found none"), (b"\xff\xfe\x00", "stdin: 'utf-8")]
)
def test_wrong_stdin(command, finished, stdin, content, message):
    stdin(content)
    outcome = command("predict", finished, "--input", "-")
    assert outcome.code == 1
    assert message in outcome.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,id\nparcel late,1\n", "save it as a file: --input FILE.csv"),
        ('\n"id";"text"\n1;a\n', "found the header of a table in its first line"),
        ("id\tsentence\n1\ta\n", "save it as a file: --input FILE.tsv"),
        ("text\nparcel late\n", "leave the first line out"),
        ('{"text": "a"}\n', "save it as a file: --input FILE.jsonl"),
    ],
)
def test_a_table_is_no_list_of_texts(command, finished, stdin, monkeypatch, content, message):
    monkeypatch.setattr("handful.cli.predict.open_model", lambda *_: pytest.fail("the model was loaded"))
    stdin(content.encode())
    outcome = command("predict", finished, "--input", "-")
    assert outcome.code == 1 and message in outcome.err and outcome.out == ""


def test_a_text_that_has_a_delimiter_is_one(command, finished, stdin):
    stdin(b"a long text, with commas\n{text}\n")
    assert len(as_rows(command("predict", finished, "--input", "-").out)) == 2


def test_a_predictor_and_its_errors(command, table, finished):
    data = table(TEXTS, "text", "other")
    by = {
        name: command("predict", finished, "--input", data, "--predictor", name).out
        for name in ("midpoint", "vertex:2")
    }
    assert by["midpoint"] != by["vertex:2"]
    for name, hint in (("vertex:3", "expected a vertex from 0 to 2"), ("mean", "known: midpoint, ensemble, draw")):
        outcome = command("predict", finished, "--input", data, "--predictor", name)
        assert outcome.code == 2
        assert hint in outcome.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--output", "out.xlsx"), 2, "expected a file ending in .csv, .tsv, .jsonl, found .xlsx"),
        (("--output", "nowhere/out.csv"), 1, "there is no folder nowhere"),
        (("--input", "no.csv"), 1, "no.csv: no such file"),
        (("--text", "body"), 1, "expected a text column 'body', found the columns 'text', 'other'"),
    ],
)
def test_wrong_files_and_columns(command, table, finished, options, code, message):
    outcome = command("predict", finished, "--input", table(TEXTS, "text", "other"), *options)
    assert outcome.code == code
    assert message in outcome.err


def test_the_input_is_never_overwritten(command, table, finished):
    data = table(TEXTS, "text", "other")
    before = data.read_bytes()
    outcome = command("predict", finished, "--input", data, "--output", data)
    assert outcome.code == 2
    assert "expected another file than the input" in outcome.err
    assert data.read_bytes() == before


def test_pairs_need_pairs_and_numbers_come_as_numbers(command, table, quick, tmp_path, stdin):
    pairs = [(f"a {i}", f"{'a' if i % 2 else 'zz'} {i}", "same" if i % 2 else "other") for i in range(40)]
    command("fit", table(pairs, "text", "text_pair", "label"), *quick, "--method", "head")
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    rows = as_rows(command("predict", run, "--input", table(pairs[:3], "text", "text_pair", "x", name="new.csv")).out)
    assert [row["text_pair"] for row in rows] == ["zz 0", "a 1", "zz 2"]
    assert "disagreement" not in rows[0]  # a probe has no simplex
    single = command("predict", run, "--input", table(TEXTS, "text", "other", name="single.csv"))
    assert (single.code, "expected a pair of texts, found one" in single.err) == (1, True)
    stdin(b"a text\n")
    assert "the run predicts pairs" in command("predict", run, "--input", "-").err
    shutil.rmtree(tmp_path / "runs")
    numbers = [("a" * (i + 1), i / 7) for i in range(30)]
    command("fit", table(numbers, "text", "score"), *quick, "--method", "head")
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    (row,) = as_rows(command("predict", run, "--input", table([("aaa",)], "text", name="one.csv")).out)
    assert set(row) == {"text", "value"}
    assert float(row["value"]) == float(row["value"])
    refused = command("predict", run, "--input", table([("aaa",)], "text", name="one.csv"), "--disagreement")
    assert refused.code == 2 and "expected a method with a simplex, found 'head'" in refused.err


def test_an_empty_text_gets_an_empty_prediction_and_is_counted(command, table, finished):
    data = table([("aaaa bbbb", "1"), ("", "2"), ("zz 99", "3"), (" \t ", "4")], "text", "id")
    outcome = command("predict", finished, "--input", data, "--disagreement")
    rows = as_rows(outcome.out)
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["label"]) for row in rows] == [True, False, True, False]
    for name in ("label", "probability", "probability of ab", "disagreement"):
        assert rows[1][name] == rows[3][name] == ""
    assert "2 of 4 texts have no tokens and an empty prediction (data.csv:3, data.csv:5)" in outcome.err
    alone = command(
        "predict", finished, "--input", table([("aaaa bbbb", "1"), ("zz 99", "3")], "text", "id", name="b.csv")
    )
    assert [float(row["probability"]) for row in as_rows(alone.out)] == pytest.approx(
        [float(rows[place]["probability"]) for place in (0, 2)], abs=1e-5
    )


def test_columns_of_training_are_remembered_and_others_pass_through(command, quick, table, tmp_path):
    rows = [(f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}", "ab" if i % 2 else "z9", i, f"x {i}") for i in range(40)]
    data = table(rows, "body", "verdict", "id", "text", name="odd.csv")
    assert command("fit", data, *quick, "--method", "head", "--text", "body", "--label", "verdict").code == 0
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    outcome = command("predict", run, "--input", data)
    assert outcome.code == 0, outcome.err
    assert "odd.csv: read the column 'body' as the text, as in training" in outcome.err
    found = as_rows(outcome.out)
    assert [(row["body"], row["verdict"], row["id"], row["text"]) for row in found] == [
        (body, verdict, str(number), text) for body, verdict, number, text in rows
    ]
    by_other = command("predict", run, "--input", data, "--text", "text")
    assert [row["probability"] for row in as_rows(by_other.out)] != [row["probability"] for row in found]


def test_a_column_whose_name_is_taken_is_passed_through_under_another(command, table, finished):
    outcome = command("predict", finished, "--input", table([("aaaa", "gold")], "text", "label"))
    (row,) = as_rows(outcome.out)
    assert row["input label"] == "gold" and row["label"] in ("ab", "z9")
    assert "the input's column 'label' is passed through as 'input label'" in outcome.err


def test_a_carriage_return_in_a_text_stays_in_its_cell(command, finished, tmp_path):
    texts = ["one", "two\rhalf", "three\r\nlines", "four\n"]
    source = tmp_path / "cr.jsonl"
    source.write_text("".join(json.dumps({"text": text, "more": [1, None]}) + "\n" for text in texts))
    output = tmp_path / "cr.csv"
    assert command("predict", finished, "--input", source, "--output", output).code == 0
    with open(output, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert rows[0]["more"] == "[1, null]"
    assert (
        output.read_bytes().startswith(b"text,more,label,") and b"\r\n" not in output.read_bytes().splitlines(True)[0]
    )


def test_formulas_of_the_input_are_texts_in_a_table(command, table, finished, tmp_path):
    data = table([("=1+1", "-5"), ("@me", "x"), ("aaaa", "-5.5")], "text", "id")
    outcome = command("predict", finished, "--input", data, "--output", tmp_path / "out.csv")
    rows = as_rows((tmp_path / "out.csv").read_text())
    assert [(row["text"], row["id"]) for row in rows] == [("'=1+1", "-5"), ("'@me", "x"), ("aaaa", "-5.5")]
    assert "2 cells that a spreadsheet takes for formulas got an apostrophe in front" in outcome.err
    kept = [json.loads(line) for line in command("predict", finished, "--input", data, "--json").out.splitlines()]
    assert [row["text"] for row in kept] == ["=1+1", "@me", "aaaa"]


def test_no_link_is_followed_and_a_read_only_folder_is_said(command, table, finished, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.csv.partial").symlink_to(victim)
    assert command("predict", finished, "--input", table(), "--output", tmp_path / "out.csv").code == 0
    assert victim.read_text() == "precious"


def test_a_wrong_row_is_said_before_the_model_is_loaded_and_leaves_no_file(command, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("handful.cli.predict.open_model", lambda *_: pytest.fail("the model was loaded"))
    source = tmp_path / "wrong.jsonl"
    source.write_text('{"text": "a"}\n' * 2000 + '{"text": 5}\n')
    outcome = command("predict", finished, "--input", source, "--output", tmp_path / "out.csv")
    assert outcome.code == 1 and "wrong.jsonl:2001: expected a text in 'text', found 5" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.jsonl"]


def test_an_export_is_reloaded_and_compared(command, finished, tmp_path):
    record = command("export", finished, "--output", tmp_path / "out", "--json")
    assert record.code == 0, record.err
    assert record.json["form"] == "features"
    assert record.json["difference"] < 1e-4
    assert "computed by stock transformers and PEFT in a fresh process" in record.json["verification"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    score = re.fullmatch(
        r"accuracy [\d.]+ \[[\d.]+, [\d.]+\] on \d+ test rows; always predicting '\w+', (the|one of).*",
        record.json["score"],
    )
    assert score is not None
    assert f"Score of the run: {score[0]}." in (tmp_path / "out" / "README.md").read_text()
    refused = command("export", finished, "--output", tmp_path / "out")
    assert (refused.code, "expected no such folder, found one" in refused.err) == (1, True)


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory):
    """The folder of a model for which stock PEFT has no prefix."""
    folder = tmp_path_factory.mktemp("distilbert")
    tiny_model("distilbert").save_pretrained(folder)
    tiny_tokenizer("distilbert").save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_default_method_is_exported_where_stock_peft_has_no_prefix(command, table, quick, distilbert, tmp_path):
    pytest.importorskip("onnxruntime")
    options = (table(), *quick, "--model", distilbert)
    checked = command("check", *options)
    for line in (
        "export    peft: not possible: stock PEFT has no working prefix for distilbert",
        "export    onnx: an ONNX model of distilbert with its head  (what `handful export` writes unless",
    ):
        assert line in checked.out, checked.out
    assert command("check", *options, "--json").json["export_format"] == "onnx"
    fitted = command("fit", *options)
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    assert f"  handful export {run} --output out --format onnx\n" in fitted.err
    exported = command("export", run, "--output", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert "--format onnx  (none was named)" in exported.err
    assert "computed by onnxruntime in a fresh process, differ by at most" in exported.out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "ab", "1": "z9"}
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "print(classify([" in readme and "max_length=32" in readme
    assert "handful export FOLDER --output out" in (run / "README.md").read_text()


@pytest.mark.slow
def test_a_run_by_the_papers_preset_is_exported(command, table, quick, tmp_path):
    pytest.importorskip("onnxruntime")
    fitted = command("fit", table(), *quick, "--preset", "paper")
    assert fitted.code == 0, fitted.err
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    assert "--output out --format onnx\n" in fitted.err
    refused = command("export", run, "--output", tmp_path / "peft", "--format", "peft")
    assert refused.code == 2
    assert "train with positions 'auto' or 'shifted'; use the format 'onnx'" in refused.err
    exported = command("export", run, "--output", tmp_path / "out", "--json")
    assert exported.code == 0, exported.err
    assert (exported.json["form"], exported.json["notes"]) == ("classifier", [])


def test_what_has_to_be_installed_for_the_export_is_said(finished, distilbert, monkeypatch, capsys):
    saved = read_run(finished)
    saved.record["backbone"]["family"] = "distilbert"
    monkeypatch.setattr("handful.cli.fit.find_spec", lambda name: None)
    tell_next(saved)
    assert f"handful export {finished} --output out --format onnx  (after pip install 'handful[onnx]')" in (
        capsys.readouterr().err
    )
    saved.record["backbone"] |= {"family": "t5", "pooling": None}
    saved.record["task"]["kind"] = "generation"
    tell_next(saved)
    said = capsys.readouterr().err
    assert "this run cannot be exported: stock PEFT has no working prefix for t5" in said
    assert "handful export" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "pfet"), "did you mean 'peft'?"),
        (("--format", "dense"), "cannot be folded into the model's weights; use the format 'onnx'"),
        (("--format", "compact"), "takes nothing out of the model, as gates and pruning do"),
    ],
)
def test_exports_that_cannot_be(command, finished, tmp_path, options, message):
    outcome = command("export", finished, "--output", tmp_path / "out", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_gates_close_is_gone_from_the_export(command, table, quick, tmp_path):
    gated = (table(), *quick, "--method", "prune", "--set", "importance=learned")
    exports = command("check", *gated, "--json").json["export"]
    assert {name: plan["possible"] for name, plan in exports.items()} == {
        "peft": False, "dense": True, "sentence-transformers": True, "compact": True, "onnx": True,
    }  # fmt: skip
    assert command("fit", *gated).code == 0
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    size = command("export", run, "--format", "dense", "--output", tmp_path / "dense", "--json").json["size"]
    before, after = size["parts"]["parameters"]
    assert after - size["parts"]["added"] < before  # one more layer holds the head
    bare = command("export", run, "--format", "sentence-transformers", "--output", tmp_path / "bare", "--json")
    assert bare.json["size"]["parts"]["parameters"] == [before, after - size["parts"]["added"]]
    assert size["speed"]["ratio"] == size["speed"]["seconds"][0] / size["speed"]["seconds"][1]
    said = command("export", run, "--format", "compact", "--output", tmp_path / "compact").out
    assert "loaded by handful, in a fresh process" in said
    assert "Parameters: 123,584, now " in said
    assert "× as fast)" in said
    refused = command("export", run, "--format", "peft", "--output", tmp_path / "peft")
    assert (refused.code, "use the format 'dense'" in refused.err) == (2, True)


def test_the_model_may_have_moved(command, table, finished, tiny_folder, tmp_path, make_model, reseal):
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, run)
    shutil.copytree(tiny_folder, moved)
    record = json.loads((run / "run.json").read_text())
    record["spec"]["model"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record))
    reseal(run)
    data = table(TEXTS, "text", "other")
    gone = command("predict", run, "--input", data)
    assert (gone.code, "no model is called" in gone.err) == (1, True)
    assert (
        command("predict", run, "--input", data, "--model", moved).out
        == command("predict", finished, "--input", data).out
    )
    other = command("predict", run, "--input", data, "--model", make_model(1))
    assert other.code == 1
    assert "trained on other weights" in other.err


def test_the_card_says_how_to_use_the_folder(finished, tiny_folder):
    card = (Path(finished) / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(finished))
    namespace: dict = {}
    exec(code.partition("model.export")[0], namespace)
    assert namespace["model"].predict(["a text"])[0] in ("ab", "z9")
