"""From many tasks to the next one and out again: fit from an inventory, its tasks managed, predicted and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import handful
from handful.methods.poly.routing_measures import usage
from handful.runs.card import headline
from handful.runs.store import read_run
from handful.testing import toy_task

QUICK = ("--set", "training.epochs=2", "--set", "run.max_length=32")


@pytest.fixture
def inventory(command, table, tiny_folder, tmp_path) -> Path:
    pairs = [(f"a {i}", f"{'a' if i % 2 else 'zz'} {i}", "same" if i % 2 else "other") for i in range(30)]
    tasks = [table(name="letters.csv"), table(pairs, "premise", "hypothesis", "label", name="pairs.csv")]
    options = ("--model", tiny_folder, "--output", tmp_path / "many", "--set", "method.num_skills=3", *QUICK)
    outcome = command("pretrain", *tasks, *options, "--rows", "16")
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "many").glob("*/run.json")
    return path.parent


@pytest.fixture
def adapted(command, table, inventory, tmp_path):
    def make(adapt: str, *more: str) -> tuple[Path, str]:
        new = table([(f"{'mmmm' if i % 2 else '5555'} {i}", "m" if i % 2 else "5") for i in range(40)], name="new.csv")
        options = ("--adapt", adapt, "--shots", "16", "--output", tmp_path / adapt, "--set", "training.epochs=2")
        outcome = command("fit", new, "--init-from", inventory, *options, *more)
        assert outcome.code == 0, outcome.err
        (path,) = (tmp_path / adapt).glob("*/run.json")
        return path.parent, outcome.err

    return make


def check_card(folder: Path, inventory: Path) -> None:
    """The card's numbers are of its own tasks."""
    record, whole = read_run(folder).record, read_run(inventory).record
    own = [scores["accuracy"] for scores in record["members"].values()]
    assert len(own) == len(record["task"]["members"])
    mean, rows = sum(score["mean"] for score in own) / len(own), sum(score["n"] for score in own)
    assert record["scores"]["accuracy"]["mean"] == pytest.approx(mean)
    assert record["rows"]["test"] == rows != whole["rows"]["test"]
    assert f"on {rows} test rows; always giving each task its most usual answer, scores" in headline(record)
    assert headline(record) in (folder / "README.md").read_text()
    constant = [one["scores"]["accuracy"] for one in record["baseline"]["members"].values()]
    assert record["baseline"]["scores"]["accuracy"] == pytest.approx(sum(constant) / len(constant))
    assert list(record["baseline"]["members"]) == list(record["members"])
    logits = read_run(folder).weights()["routing.logits"]
    assert record["adapter"]["usage"] == usage(logits) != whole["adapter"]["usage"]
    assert "alignment" in whole["adapter"] and "alignment" not in record["adapter"]


def probabilities(folder: Path, task: str | None = None):
    return handful.load(folder, task=task).predict_proba([row.text for row in toy_task().pool])


def test_each_way_of_adapting_trains_what_it_says_and_takes_the_sizes_over(adapted):
    counts = {}
    for adapt in ("mu", "z", "full"):
        folder, said = adapted(adapt)
        assert "method.num_skills = 3" in said and "as in the inventory" in said
        counts[adapt] = read_run(folder).record["fit"]["parameters"]
    head, routers = 2 * 64 + 2, 12
    one_skill = routers * 8 * (64 + 64)
    assert counts == {"mu": one_skill + head, "z": routers * 3 + head, "full": 3 * one_skill + routers * 3 + head}


def test_a_task_is_added_renamed_and_removed_and_the_others_stay_as_they_are_to_the_bit(
    command, inventory, adapted, tmp_path
):
    before = probabilities(inventory, "letters")
    routed, _ = adapted("z")
    larger, renamed, smaller = (tmp_path / name for name in ("larger", "renamed", "smaller"))
    assert command("inventory", "add", inventory, routed, "--output", larger).code == 0
    check_card(larger, inventory)
    assert (probabilities(larger, "letters") == before).all()
    assert probabilities(larger, "new") == pytest.approx(probabilities(routed), abs=1e-6)
    assert command("inventory", "rename", larger, "new", "mails", "--output", renamed).code == 0
    assert (probabilities(renamed, "mails") == probabilities(larger, "new")).all()
    assert command("inventory", "remove", renamed, "pairs", "--output", smaller).code == 0
    check_card(smaller, inventory)
    assert (probabilities(smaller, "letters") == before).all()
    assert (probabilities(smaller, "mails") == probabilities(larger, "new")).all()
    twice = tmp_path / "twice"  # from what the inventory was made of
    assert command("inventory", "add", smaller, routed, "--output", twice).code == 0
    assert (probabilities(twice, "new") == probabilities(twice, "mails")).all()
    listed = json.loads(command("inventory", "list", smaller, "--json").out)
    assert [(task["name"], task["labels"]) for task in listed] == [("letters", ["ab", "z9"]), ("mails", ["5", "m"])]
    assert command("inventory", "list", inventory).out.splitlines()[0].startswith("letters\t")


def test_a_task_taken_out_is_an_ordinary_run(command, inventory, tmp_path):
    taken = tmp_path / "taken"
    assert command("inventory", "take", inventory, "letters", "--output", taken).code == 0
    assert (probabilities(taken) == probabilities(inventory, "letters")).all()
    own = read_run(taken)
    assert own.record["task"]["labels"] == ["ab", "z9"]
    assert own.record["scores"] == read_run(inventory).record["members"]["letters"]
    rows = own.record["scores"]["accuracy"]["n"]
    assert own.record["rows"]["test"] == rows < read_run(inventory).record["rows"]["test"]
    assert f"on {rows} test rows" in (taken / "README.md").read_text()
    assert own.seen() == read_run(inventory).seen()


def test_taken_and_routed_scores_are_the_same(inventory):
    whole, rows = handful.load(inventory), [row.text for row in toy_task().pool]
    from handful.data.task import Example

    named = [Example(text, task="letters") for text in rows]
    own = whole.predictions(named).probabilities[:, :2]
    assert own == pytest.approx(probabilities(inventory, "letters"), abs=1e-6)
    assert whole.predictions(named).probabilities[:, 2:].max() == 0


@pytest.mark.slow
def test_a_task_of_an_inventory_is_exported_by_its_name(command, inventory, tmp_path):
    for format in ("peft", "dense"):
        outcome = command("export", inventory, "--task", "letters", "--format", format, "--output", tmp_path / format)
        assert outcome.code == 0, outcome.err
        assert "in a fresh process" in outcome.out
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 8


def test_names_and_runs_that_do_not_fit_are_refused(command, table, inventory, adapted, tiny_folder, tmp_path):
    rows, out = table(name="letters.csv"), tmp_path / "out"
    other = tmp_path / "other.toml"
    other.write_text('method = "head"\n')
    cases = {
        (
            "fit",
            rows,
            "--init-from",
            inventory,
            "--config",
            other,
        ): "other.toml: method: an inventory is of the method 'poly'",
        ("predict", inventory, "--input", rows): "an inventory of 2 tasks",
        ("predict", inventory, "--input", rows, "--task", "leters"): "no task is called 'leters'",
        ("export", inventory, "--output", out): "an inventory of 2 tasks",
        ("inventory", "take", inventory, "leters", "--output", out): "did you mean 'letters'?",
        ("inventory", "rename", inventory, "letters", "pairs", "--output", out): "a task is called 'pairs' already",
        ("inventory", "remove", inventory, "pairs", "--output", out): "an inventory has at least two tasks",
        ("inventory", "rename", inventory, "letters", "x", "--output", tmp_path): "exists already",
        ("fit", rows, "--adapt", "z"): "adapt: says how to start from an inventory",
        ("fit", rows, "--init-from", inventory, "--method", "lora"): "an inventory is of the method 'poly'",
        ("fit", rows, "--init-from", inventory, "--adapt", "q"): "method.adapt: expected 'mu', 'z' or 'full'",
        (
            "fit",
            rows,
            "--init-from",
            inventory,
            "--set",
            "num_skills=5",
            "--adapt",
            "full",
        ): "the skills to start from are not those",
    }
    for arguments, said in cases.items():
        outcome = command(*arguments, *(("--shots", "16") if arguments[0] == "fit" else ()))
        assert outcome.code in (1, 2) and said in outcome.err, (arguments, outcome.err)
    trained, _ = adapted("mu")
    outcome = command("inventory", "add", inventory, trained, "--output", out)
    assert outcome.code == 1 and "a run that learned nothing but its routing" in outcome.err
    hard, _ = adapted("z", "--set", "method.gate=straight-through")
    outcome = command("inventory", "add", inventory, hard, "--output", out)
    assert outcome.code == 1 and "method.gate is 'straight-through' and not 'sigmoid'" in outcome.err
    outcome = command("inventory", "list", trained)
    assert outcome.code == 1 and "`handful pretrain` makes an inventory" in outcome.err
    assert not out.exists()


def test_a_task_of_numbers_is_not_added_to_tasks_with_labels(command, table, inventory, tmp_path):
    new = table([(f"{'mm' if i % 2 else '5'} {i}", i / 7) for i in range(40)], name="numbers.csv")
    options = ("--adapt", "z", "--shots", "16", "--output", tmp_path / "z", "--set", "training.epochs=1")
    assert command("fit", new, "--init-from", inventory, *options).code == 0
    (path,) = (tmp_path / "z").glob("*/run.json")
    outcome = command("inventory", "add", inventory, path.parent, "--output", tmp_path / "out")
    assert (
        outcome.code == 1 and "expected a task with labels" in outcome.err and "of the kind regression" in outcome.err
    )
    assert not (tmp_path / "out").exists()


def test_another_backbone_is_refused(command, inventory, table, tmp_path):
    from handful.backbone.tiny import tiny_model, tiny_tokenizer

    model = tiny_model("bert")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "other")
    outcome = command(
        "fit", table(name="letters.csv"), "--init-from", inventory, "--model", tmp_path / "other", "--shots", "16"
    )
    assert outcome.code == 1 and "trained on other weights" in outcome.err


def test_the_card_of_an_inventory_has_its_tasks_and_what_to_do_with_them(inventory):
    card, record = (inventory / "README.md").read_text(), read_run(inventory).record
    assert "an answer for any of 2 tasks" in card and "handful fit new.csv --init-from" in card
    for name in ("letters", "pairs"):
        assert f"| {name} | accuracy | {record['members'][name]['accuracy']['mean']:.3f} |" in card
    assert "letters: ab" not in card.split("All settings")[0]


def test_what_was_made_of_an_inventory_is_no_run_of_its_own_beside_it(command, inventory, tmp_path):
    runs = inventory.parent
    assert command("inventory", "rename", inventory, "pairs", "duos", "--output", runs / "renamed").code == 0
    assert command("inventory", "take", runs / "renamed", "duos", "--output", runs / "taken").code == 0
    lines = command("report", runs, "--format", "csv").out.splitlines()
    assert len(lines) == 2 and str(inventory.name) in lines[1]
    assert len(command("report", runs / "taken", "--format", "csv").out.splitlines()) == 2


def test_an_inventory_of_experts_or_of_one_shared_adapter_can_be_used_too(command, table, tiny_folder, tmp_path):
    tasks = [table(name="letters.csv"), table(name="mails.csv")]
    options = ("--model", tiny_folder, "--rows", "16", *QUICK)
    experts = ("--set", "method.routing=expert", "--set", 'method.experts=[["letters", "mails"]]')
    for routing, given in (("expert", experts), ("shared", ("--set", "method.routing=shared"))):
        assert command("pretrain", *tasks, *options, *given, "--output", tmp_path / routing).code == 0
        (path,) = (tmp_path / routing).glob("*/run.json")
        renamed = tmp_path / f"{routing}-renamed"
        assert command("inventory", "rename", path.parent, "mails", "post", "--output", renamed).code == 0
        assert (probabilities(renamed, "post") == probabilities(path.parent, "mails")).all()
        started = ("--init-from", renamed, "--adapt", "full", "--shots", "8", "--output", tmp_path / f"{routing}-full")
        outcome = command("fit", tasks[0], *started)
        assert outcome.code == 0, outcome.err
