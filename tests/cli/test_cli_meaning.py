"""What a table means, as `check` and `fit` say it: contradictions, repeats, unknown tokens, and wrong files at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_contradictions_and_repeats_are_said_at_check_and_fit_and_in_the_card(command, table, quick, tmp_path):
    rows = [(f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}", "ab" if i % 2 else "z9") for i in range(30)]
    data = table([*rows, *rows, (rows[0][0], "ab"), (rows[1][0], "z9")])
    checked = command("check", data, *quick)
    assert checked.code == 0, checked.err
    fitted = command("fit", data, *quick)
    assert fitted.code == 0, fitted.err
    (folder,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in (checked.err, fitted.err, card.replace("\\", "")):
        assert "2 texts have several labels among the labelled rows: 'z9' (data.csv:2) and 'ab' (data.csv:62)" in text
        assert "n = 6 distinct test texts: " in text
    record = json.loads((folder / "run.json").read_text())
    assert record["rows"]["test"] == 6
    assert record["rows"]["dropped_duplicates"] + record["rows"]["dropped_contradictions"] > 0
    again = command("check", data, *quick, "--json").json
    assert again["rows"]["dropped_contradictions"] == record["rows"]["dropped_contradictions"]


def test_unknown_tokens_and_cut_texts_are_said(command, table, quick, tmp_path):
    rows = [(f"{'☃' * (i + 1)}" if i % 4 else "ab " * 40, "ab" if i % 2 else "z9") for i in range(40)]
    rows = [(f"{text} {'☃' * i}", label) for i, (text, label) in enumerate(rows)]
    data = table(rows)
    checked = command("check", data, *quick)
    fitted = command("fit", data, *quick)
    (folder,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in (checked.out, fitted.err, card.replace("\\", "")):
        assert "of the tokens of" in text and "are unknown to the model" in text
        assert "were cut to 32 tokens: the longest has" in text and "run.max_length" in text
    assert "nothing is wrong" not in checked.err
    assert "but see above: texts are cut, the model does not know all texts" in checked.err
    coverage = json.loads((folder / "run.json").read_text())["rows"]["coverage"]
    assert set(coverage) == {"train", "test"} and coverage["train"]["unknown"] > 0


def test_the_hint_of_cut_texts_holds(command, table, quick):
    data = table([(f"{'ab ' * (i + 20)}", "ab" if i % 2 else "z9") for i in range(40)])
    first = command("check", data, *quick, "--json").json["rows"]
    assert sum(first["truncated"].values()) > 0
    second = command("check", data, *quick, "--set", f"run.max_length={first['longest']}", "--json").json["rows"]
    assert sum(second["truncated"].values()) == 0 and second["longest"] == first["longest"]


HEAVY = ("torch", "transformers", "numpy", "sklearn")


@pytest.mark.parametrize(
    ("verb", "content", "options", "code", "said"),
    [
        ("check", "a,b\n1,2\n", (), 1, "expected a text column"),
        ("fit", "a,b\n1,2\n", (), 1, "expected a text column"),
        ("check", "text,label\nsome text,a\nother,\n", (), 1, "without a label"),
        ("fit", "text,label\ntext,a\nother,\n", ("--shots", "16", "--set", "training.epochs=x"), 1, "without a label"),
        ("check", "text,label\na,x\nb,y\n", ("--method", "loar"), 2, "did you mean 'lora'?"),
        ("fit", "text,label\na,x\nb,y\n", ("--method", "loar"), 2, "did you mean 'lora'?"),
        ("fit", "text,label\na,x\nb,y\n", ("--budget", "9"), 2, "budget: only"),
    ],
)
def test_wrong_files_and_names_are_answered_before_torch_is_imported(tmp_path, verb, content, options, code, said):
    (tmp_path / "data.csv").write_text(content)
    arguments = [verb, "data.csv", "--output", "runs", *options]
    script = (
        "import sys; from handful.cli.main import run; code = run(sys.argv[1:]); "
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert said in done.stderr
    assert done.stdout.splitlines()[-1] == f"{code} []"


def test_every_mistake_is_still_named_at_once(command, tmp_path):
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    outcome = command("check", tmp_path / "data.csv", "--set", "training.epohcs=3", "--output", tmp_path / "runs")
    assert outcome.code == 1
    assert "expected a text column" in outcome.err and "epohcs" in outcome.err


def test_predict_and_evaluate_say_what_is_unknown_and_contradicts(command, table, finished):
    new = table([("ab ☃☃", "ab"), ("☃☃", "z9"), ("zz 99", "z9"), ("zz  99", "ab"), ("aa bb", "ab"), ("AA bb", "ab")])
    predicted = command("predict", finished, "--input", new)
    assert predicted.code == 0, predicted.err
    scored = command("evaluate", finished, new)
    assert scored.code == 0, scored.err
    for outcome in (predicted, scored):
        assert "are unknown to the model" in outcome.err and "have no token that the model knows" in outcome.err
    assert "1 of 6 rows repeat the text of another row" in scored.err
    assert "1 text has several labels among the new rows: 'z9' (data.csv:4) and 'ab' (data.csv:5)" in scored.err
    assert " on 3 rows (95 % interval over rows); always predicting 'ab'" in scored.out.splitlines()[0]
