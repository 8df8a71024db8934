"""`handful fit` and `check` on a tiny model, with every kind of data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handful.backbone.tiny import tiny_config, tiny_tokenizer


def only_run(root: Path) -> Path:
    """The one run folder there is."""
    (found,) = [path.parent for path in root.glob("*/run.json")]
    return found


def test_a_fit_shows_score_cost_and_folder_and_says_what_was_chosen(command, table, quick, tmp_path):
    outcome = command("fit", table(), *quick)
    assert outcome.code == 0, outcome.err
    folder = only_run(tmp_path / "runs")
    record = json.loads((folder / "run.json").read_text())
    score = record["scores"]["accuracy"]
    first, second, third = outcome.out.splitlines()
    expected = (
        f"accuracy {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}] on 8 test rows; always predicting "
    )
    assert first.startswith(expected + "'ab', one of the 2 largest classes, scores 0.500")
    assert record["baseline"]["scores"]["accuracy"] == 0.5 and record["rows"]["untested_classes"] == []
    assert second.startswith(
        f"trained {record['fit']['parameters']:,} of {record['backbone']['parameters']:,} parameters"
    )
    assert third == f"run {folder}"
    for said in (
        "8 of 40 rows were set apart as test rows, since no test file was given",
        "metric accuracy: the default for classification",
        "training.learning_rate = ",
        "preset 'default'",
        "run.pooling = mean",
        "step 2 of 2",
        f"handful predict {folder} --input new.csv",
        f"handful export {folder} --output out",
    ):
        assert said in outcome.err, said
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "adapter.safetensors", "metrics.jsonl", "predictions.jsonl", "rows.sha256", "README.md"
    }  # fmt: skip
    assert [path for path in (tmp_path / "runs").iterdir() if path != folder] == []


def test_the_same_fit_is_not_trained_twice_unless_asked(command, table, quick):
    data = table()
    first = command("fit", data, *quick, "--json").json
    again = command("fit", data, *quick, "--json")
    assert "already trained" in again.err
    assert "step 2 of 2" not in again.err
    assert again.json == first
    once_more = command("fit", data, *quick, "--again", "--json")
    assert "step 2 of 2" in once_more.err
    assert once_more.json["created"] >= first["created"]
    assert once_more.json["scores"] == first["scores"]
    assert once_more.json["weights_sha256"] == first["weights_sha256"]


def test_another_seed_is_another_run(command, table, quick):
    data = table()
    first, second = (command("fit", data, *quick, "--seed", seed, "--json").json for seed in (0, 1))
    assert first["key"] != second["key"]
    assert first["folder"] != second["folder"]


def test_pairs_regression_and_a_test_file(command, table, quick):
    pairs = [(f"a {i}", f"{'a' if i % 2 else 'zz'} {i}", "same" if i % 2 else "other") for i in range(40)]
    record = command("fit", table(pairs, "premise", "hypothesis", "label", name="pairs.csv"), *quick, "--json").json
    assert record["task"]["kind"] == "pair-classification"
    numbers = [("a" * (i + 1), i / 7) for i in range(30)]
    outcome = command("fit", table(numbers, "text", "score", name="numbers.csv"), *quick)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("spearman ")
    test = table([("aaaa bbbb new", "ab"), ("zz 99 zz new", "z9")], "text", "label", name="test.csv")
    assert command("fit", table(), *quick, "--test", test, "--json").json["rows"]["test"] == 2


def test_without_test_rows_there_is_no_score_and_it_says_so(command, table, quick, tmp_path):
    outcome = command("fit", table(), *quick, "--test-fraction", "0")
    assert outcome.out.startswith("not scored: there were no test rows")
    assert "Nothing is known about how good it is." in (only_run(tmp_path / "runs") / "README.md").read_text()


def test_a_config_file_gives_what_options_give(command, table, quick, tmp_path):
    data = table()
    config = tmp_path / "run.toml"
    config.write_text(
        'method = "prefix"\nmodel = "left-to-the-option"\n'
        "[training]\nepochs = 9\nbatch_size = 8\n[run]\nmax_length = 32\nseed = 3\n"
    )
    from_file = command("fit", data, "--config", config, *quick, "--seed", "4", "--json").json
    options = ("--method", "prefix", "--set", "training.batch_size=8", "--seed", 4)
    assert from_file["key"] == command("fit", data, *quick, *options, "--json").json["key"]
    assert from_file["spec"]["training"]["epochs"] == 2  # --set wins over the file
    assert from_file["spec"]["run"]["seed"] == 4  # an option wins over both


def test_the_spec_of_a_run_is_a_config_file(command, table, quick, tmp_path):
    data = table()
    record = command("fit", data, *quick, "--json").json
    lines = [f"model = {json.dumps(record['spec']['model'])}"]
    for section in ("method", "training", "run"):
        lines.append(f"[{section}]")
        values = record["spec"][section].items()
        lines += [f"{name} = {json.dumps(value)}" for name, value in values if value is not None]
    config = tmp_path / "again.toml"
    config.write_text("\n".join(lines))
    repeated = command("fit", data, "--config", config, "--output", tmp_path / "runs", "--json")
    assert repeated.json["key"] == record["key"]
    assert "already trained" in repeated.err


def test_all_wrong_settings_come_at_once_with_where_they_stand(command, table, tmp_path):
    config = tmp_path / "wrong.toml"
    config.write_text('modell = "minilm"\n[training]\nepochs = "many"\nlearning_rate = -1.0\n[run]\ndev = "crved"\n')
    wrong = ("--set", "method.prefix_lenght=3", "--set", "shotz", "--set", "epohs=2", "--seed", "x", "--preset", "papr")
    outcome = command("fit", table(), "--config", config, *wrong)
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert lines[0] == "error: 9 wrong settings:"
    for line in (
        f"  {config}: modell: no such key; did you mean 'model'?",
        "  --set 'shotz': expected NAME=VALUE, such as training.epochs=10",
        "  --preset: preset: method 'prefix-subspace' has no preset 'papr'; did you mean 'paper'?",
        "  --set: method.prefix_lenght: prefix-subspace has no such field; did you mean 'prefix_length'?",
        "  --set: epohs: no such setting; did you mean 'epochs'?",
        f"  {config}: training.epochs: expected a valid integer, found 'many'",
        f"  {config}: training.learning_rate: expected greater than 0, found -1.0",
        f"  {config}: run.dev: expected 'carved', 'separate' or 'none', found 'crved'",
        "  --seed: run.seed: expected a valid integer, found 'x'",
    ):
        assert line in lines, line
    assert lines[-1] == "hint: `handful methods prefix-subspace` lists every field"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"epochs = = 3", "expected TOML in UTF-8"),
        (b"\xff\xfe", "expected TOML in UTF-8"),
        (b"method = 3", "method: expected a table, found 3"),
        (b"preset = 3", "preset: expected a text, found 3"),
        (b"[method]\nname = 'prefx'", "method: unknown method 'prefx'; did you mean 'prefix'?"),
        (b"[run]\ndev = 'none'\n[training]\nselection = 'best'", "needs development rows, found 'none'"),
    ],
)
def test_wrong_config_files(command, table, tmp_path, content, found):
    config = tmp_path / "wrong.toml"
    config.write_bytes(content)
    outcome = command("fit", table(), "--config", config)
    assert outcome.code == 2
    assert found in outcome.err
    assert str(config) in outcome.err or "run.dev" in outcome.err


def test_a_missing_config_file(command, table, tmp_path):
    outcome = command("fit", table(), "--config", tmp_path / "no.toml")
    assert outcome.code == 2
    assert "no.toml: cannot be read (No such file or directory)" in outcome.err


def test_a_check_says_what_a_fit_does(command, table, quick, tmp_path):
    data = table()
    checked = command("check", data, *quick, "--dev", "carved", "--json").json
    assert not (tmp_path / "runs").exists()  # a check leaves nothing behind
    fitted = command("fit", data, *quick, "--dev", "carved", "--json").json
    assert checked["ok"]
    assert checked["spec"] == fitted["spec"]
    assert checked["parameters"] == fitted["fit"]["parameters"]
    assert checked["steps"] == fitted["fit"]["steps"]
    for key in ("train", "dev", "test", "max_length", "dropped_duplicates"):
        assert checked["rows"][key] == fitted["rows"][key], key
    for part in ("train", "dev"):
        assert checked["rows"]["truncated"][part] == fitted["rows"]["truncated"][part]
    assert sum(checked["rows"]["classes"].values()) == checked["rows"]["train"]
    assert checked["export"]["peft"]["possible"]
    assert not checked["export"]["dense"]["possible"]


def test_a_class_without_a_test_row_is_named_and_the_baseline_too(command, table, quick, tmp_path):
    rows = [(f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}", "ab" if i % 2 else "z9") for i in range(40)]
    data = table([*rows, ("zz aaaa", "rare"), ("bbbb 99", "rare")], "text", "label")
    said = "1 of 3 classes has no test row and is not scored: 'rare'"
    checked = command("check", data, *quick)
    assert f"test      {said}" in checked.out and "baseline  always predicting 'ab'," in checked.out
    assert command("check", data, *quick, "--json").json["rows"]["untested_classes"] == ["rare"]
    fitted = command("fit", data, *quick)
    assert said in fitted.out.splitlines()
    folder = only_run(tmp_path / "runs")
    assert f"{said}; macro_f1 leaves it out" in (folder / "README.md").read_text()
    report = command("report", folder).out
    assert said in report and "always the largest class, or the mean" in report


def test_a_check_for_people(command, table, quick):
    outcome = command("check", table(), *quick, "--set", "max_length=8")
    assert outcome.code == 0
    for said in (
        "rows      16 to train, 0 to select, 8 to test",
        "classes   ab: 8, z9: 8",
        "16 of 16 train texts were cut to 8 tokens: the longest has ",
        "model     ",
        "export    peft: a PEFT adapter",
        "export    dense: not possible",
        "training  2 steps, trained parameters: 11,910",
    ):
        assert said in outcome.out, said
    assert "trains it, but see above: texts are cut" in outcome.err
    assert "nothing is wrong" in command("check", table(), *quick).err


def test_a_check_finds_everything_that_is_wrong_at_once(command, table, tmp_path):
    (tmp_path / "file").write_text("in the way")
    wrong = ("--method", "prefx", "--label", "lable", "--output", tmp_path / "file" / "runs")
    outcome = command("check", table(), *wrong)
    assert outcome.code == 1
    assert "did you mean 'prefix'?" in outcome.err
    assert "expected a label column 'lable'" in outcome.err
    assert "did you mean 'label'?" in outcome.err
    assert "cannot be written (Not a directory)" in outcome.err
    problems = command("check", table(), *wrong, "--json").json
    assert (problems["ok"], len(problems["problems"])) == (False, 3)


def test_a_check_of_wrong_settings_alone_is_wrong_usage(command, table):
    assert command("check", table(), "--method", "prefx").code == 2


def test_a_check_loads_no_weights(command, table, quick, tiny_folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    outcome = command("check", table(), *quick, "--model", bare)
    assert outcome.code == 0, outcome.err
    assert command("fit", table(), *quick, "--model", bare).code == 1


@pytest.mark.parametrize("method", ["fine-gates", "prune"])
@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("modernbert", {}, "no exact export of a gated modernbert is known; it is for bert, "),
        (
            "bert",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "the weights are quantised, and gates cannot be folded into them; load the model in full precision",
        ),
        ("bert", {"hidden_act": "sigmoid"}, "the activation 'sigmoid' is not 0 at 0"),
    ],
    ids=["family", "quantised", "activation"],
)
def test_gating_is_refused_by_a_models_configuration_alone(
    command, table, quick, tmp_path, family, settings, reason, method
):
    tiny_config(family, **settings).save_pretrained(tmp_path / "model")
    tiny_tokenizer(family).save_pretrained(tmp_path / "model")
    bare = (table(), *quick, "--model", tmp_path / "model")
    for verb in ("check", "fit"):  # there are no weights that could be loaded
        outcome = command(verb, *bare, "--method", method)
        assert outcome.code == 2, outcome.err
        assert f"error: method {method!r} cannot be used with model '{tmp_path / 'model'}':\n  {reason}" in outcome.err
    (problem,) = command("check", *bare, "--method", method, "--json").json["problems"]
    assert reason in problem["message"]
    assert command("check", *bare, "--method", "head").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "prefix", "--set", "layers=[1, 9]"), "layers: expected 0 <= first < stop <= 3, found [1, 9]"),
        (("--method", "lora", "--set", 'target_modules=["qery"]'), "bert has no module called 'qery'"),
        (("--metric", "spearman"), "expected a metric for classification tasks, found 'spearman'"),
        (("--metric", "acuracy"), "did you mean 'accuracy'?"),
    ],
)
def test_what_does_not_fit_model_or_task_is_found_by_check_and_fit(command, table, quick, options, message):
    for verb in ("check", "fit"):
        outcome = command(verb, table(), *quick, *options)
        assert outcome.code == 2
        assert message in outcome.err


def test_fit_starts_from_another_run(command, table, quick, finished, tmp_path):
    outcome = command("fit", table(), *quick, "--seed", 1, "--start", finished, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["spec"]["start"] == json.loads((finished / "run.json").read_text())["key"]
    refused = command("fit", table(), *quick, "--method", "lora", "--start", finished)
    assert refused.code == 1 and "none of its parameters (method 'prefix-subspace') fits" in refused.err
    missing = command("fit", table(), *quick, "--start", tmp_path / "nowhere")
    assert missing.code == 1 and "no such run folder" in missing.err


def test_a_speed_takes_the_place_of_a_budget(command, table, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("handful.export.speedup.in_turns", lambda *arguments: [(1.0, 0.5)])
    asked = (table(), *quick, "--method", "prune", "--speedup", 1.1)
    outcome = command("fit", *asked, "--json")
    assert outcome.code == 0, outcome.err
    (choice,) = [c for c in outcome.json["choices"] if c["name"] == "method.target_sparsity"]
    assert choice["reason"].startswith("measured: 1.1 times as fast (")
    assert outcome.json["spec"]["method"]["target_sparsity"] == choice["value"]
    assert f"method.target_sparsity = {choice['value']}  (measured: 1.1 times" in outcome.err
    assert "measuring how fast" in outcome.err and "2.00 × without" in outcome.err
    again = command("fit", *asked)
    assert again.code == 0 and "already trained" in again.err and "measuring" not in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "lora", "--speedup", 1.5), "expected a method with a budget, 'prune', found 'lora'"),
        (("--method", "prune", "--speedup", 0.5), "speedup: expected a number above 1, found 0.5"),
        (
            ("--method", "prune", "--speedup", 2, "--set", "target_sparsity=0.2"),
            "method.target_sparsity is the budget already",
        ),
        (("--method", "auto", "--speedup", 2), "chooses among methods that make nothing faster"),
        (("--method", "prune", "--speedup", "fast"), "speedup: expected a number above 1, found 'fast'"),
    ],
)
def test_a_speed_that_means_nothing_is_refused(command, table, quick, options, message, tmp_path):
    outcome = command("fit", table(), *quick, *options)
    assert outcome.code == 2 and message in " ".join(outcome.err.split())
    assert not list((tmp_path / "runs").glob("*/run.json"))


@pytest.mark.parametrize(("groups", "form"), [("auto", "dense"), ("units-and-heads", "compact")])
def test_what_gates_leave_out_is_said_and_the_export_is_the_one_that_leaves_out_most(
    command, table, quick, tmp_path, groups, form
):
    fitted = command("fit", table(), *quick, "--method", "prune", "--set", f"groups={groups}")
    assert fitted.code == 0, fitted.err
    (file,) = (tmp_path / "runs").glob("*/run.json")
    adapter = json.loads(file.read_text())["adapter"]
    assert f"closed {adapter['removed']:.1%} of the parameters in attention and feed-forward matrices" in fitted.out
    assert f"'dense' leaves out {adapter['removable']:.1%}" in fitted.out
    assert ("and 'compact'" in fitted.out) == (form == "compact")
    assert f"--format {form}" in fitted.err
    exported = command("export", file.parent, "--output", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert f"--format {form}  (none was named)" in exported.err and f"a {form} model" in exported.out


def test_a_check_takes_a_speed_and_measures_nothing(command, table, quick):
    fine = command("check", table(), *quick, "--method", "prune", "--speedup", 1.5)
    assert fine.code == 0 and "measuring" not in fine.err, fine.err
    wrong = command("check", table(), *quick, "--method", "lora", "--speedup", 0.5)
    assert wrong.code == 2
    assert "expected a number above 1, found 0.5" in wrong.err and "expected a method with a budget" in wrong.err
