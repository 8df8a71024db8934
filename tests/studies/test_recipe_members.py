"""Recipes with a task of tasks: how it is opened, what is wrong with it, and a study that adapts what it gives."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.data.overlap import TOLERATED_SHARE
from handful.data.task import overlap_keys
from handful.errors import ConfigError, DataError
from handful.evaluation.predict import predict_rows
from handful.runs.experiment import train
from handful.studies import forecast as forecasts
from handful.studies.engines import SequentialEngine
from handful.studies.recipe import Recipe, read_recipe
from handful.studies.study import Study
from handful.studies.worker import Worker
from handful.testing import toy_study

METHODS: list[Any] = [
    {"name": "many", "method": "poly", "stage": True},
    {"name": "adapted", "method": "poly", "start": {"method": "many", "task": "mixture", "shots": 20}},
]


@pytest.fixture
def toy(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """The values of a recipe with its data: a task file and two task folders."""
    record = toy_study(tmp_path / "data", seeds=1).to_dict()
    rows = "".join(f"{'a' if i % 2 else 'zz 9'} {i},{'late' if i % 2 else 'broken'}\n" for i in range(40))
    (tmp_path / "tickets.csv").write_text("text,label\n" + rows)
    members = ["others", {"name": "tickets", "path": str(tmp_path / "tickets.csv"), "test_fraction": 0.5}]
    mixture = {"name": "mixture", "members": members, "stage": True}
    return record | {"tasks": ["letters", mixture], "methods": METHODS}, tmp_path


def test_members_are_opened_as_tasks_with_test_rows_of_their_own(toy):
    record, folder = toy
    recipe = Recipe.from_dict(record | {"test_rows": 7})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    task = recipe.open_task("mixture", folder / "data")
    assert [(m.name, len(m.pool), len(m.test or ())) for m in task.members] == [("others", 30, 7), ("tickets", 20, 7)]
    assert task.labels[2:] == ("tickets: broken", "tickets: late")


def test_paths_of_members_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "many.toml").write_text(
        'shots = 8\nseeds = 1\nmethods = ["head"]\n'
        'tasks = ["t", { name = "m", members = ["b", { name = "a", path = "a.csv" }] }]\n'
    )
    members = read_recipe(tmp_path / "many.toml").tasks[1].members or ()
    assert [(m.name, m.path) for m in members] == [("b", None), ("a", str(tmp_path / "a.csv"))]


def test_what_is_said_in_the_wrong_place_is_told_with_all_else(toy):
    record, _ = toy
    record["tasks"][1] |= {"path": "mixture.csv", "label": "topic"}
    record["methods"] = [*METHODS, {"name": "lost", "method": "head", "start": {"method": "none"}}]
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(record)
    lines = caught.value.message.split("\n  ")
    assert "tasks.1 (mixture).path: a task of tasks has none of its own; say it of a member" in lines
    assert "tasks.1 (mixture).label: a task of tasks has none of its own; say it of a member" in lines
    assert len(lines) == 4
    record["tasks"][1]["members"][1]["stage"] = True
    with pytest.raises(ConfigError, match=r"tasks\.1\.members\.1\.stage: no such key"):
        Recipe.from_dict(record)


def test_all_members_that_cannot_be_opened_or_mixed_are_told(toy):
    record, folder = toy
    record["tasks"][1]["members"] = ["otters", {"name": "numbers", "path": str(folder / "numbers.csv")}]
    with pytest.raises(DataError) as caught:
        Recipe.from_dict(record).check_rows(folder / "data")
    assert "'otters': no such folder" in caught.value.message and "did you mean 'others'?" in caught.value.message
    assert "numbers.csv" in caught.value.message
    (folder / "numbers.csv").write_text("text,label\n" + "".join(f"t {i},{i / 7}\n" for i in range(30)))
    record["tasks"][1]["members"][0] = "others"
    with pytest.raises(DataError, match=r"task 'numbers' .* asks for numbers, which have no labels"):
        Recipe.from_dict(record).check_rows(folder / "data")


def test_a_study_adapts_an_inventory_to_another_task(toy):
    record, folder = toy
    record["methods"][0]["set"] = {"num_skills": 2, "mixing": "uniform"}
    record["methods"][1]["set"] = {"num_skills": 2}
    study = Study(Recipe.from_dict(record), folder / "study", folder / "data")
    state = study.run(SequentialEngine(), lambda event: None)
    assert not state.failed, state.failed
    runs = {run.record["study"]["label"]: run for run in state.done.values()}
    many, adapted = runs["many"], runs["adapted"]
    assert [member["name"] for member in many.record["task"]["members"]] == ["others", "tickets"]
    assert set(many.record["members"]) == {"others", "tickets"}
    assert many.record["rows"]["train"] + many.record["rows"]["dev"] == 40
    assert adapted.record["spec"]["start"] == many.key and adapted.record["task"]["name"] == "letters"
    assert set(many.seen() or "?") <= set(adapted.seen() or ())


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def shortened(name: str, model: str, tasks: slice, **settings: Any) -> Recipe:
    """A cross-task recipe that a tiny model does in seconds: one new task, and the first three before it."""
    values = read_recipe(RECIPES / f"{name}.toml").to_dict()
    *new, many = values["tasks"]
    for method in values["methods"]:
        if method["start"]:
            method["start"]["shots"] = 12
    short = {"model": model, "shots": [8], "seeds": [0], "test_rows": 4}
    values["tasks"] = [*new[tasks], many | {"members": many["members"][:3]}]
    return Recipe.from_dict(values | short | {"set": {"training.epochs": 1, "run.max_length": 32} | settings})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_task", "cross_task_small"])
def test_the_cross_task_recipes_run(name, shared_data, tiny_folder, tmp_path):
    recipe = shortened(name, str(tiny_folder), slice(1))
    state = Study(recipe, tmp_path / "study", shared_data).run(SequentialEngine(), lambda event: None)
    assert not state.failed and len(state.done) == len(recipe.jobs()) == len(recipe.methods)


@pytest.mark.slow
def test_the_cross_task_recipe_for_writing_runs(shared_data, tmp_path):
    folder = tmp_path / "tiny-t5"
    tiny_model("t5", purpose="lm").save_pretrained(folder)
    tiny_tokenizer("t5").save_pretrained(folder)
    recipe = shortened("cross_task_text", str(folder), slice(1), **{"generation.max_new_tokens": 3})
    state = Study(recipe, tmp_path / "study", shared_data).run(SequentialEngine(), lambda event: None)
    assert not state.failed and len(state.done) == len(recipe.methods)


@pytest.mark.parametrize("name", ["cross_task", "cross_task_small", "cross_task_text"])
def test_no_test_row_of_a_new_task_stands_among_the_rows_before_it(name, shared_data):
    recipe = read_recipe(RECIPES / f"{name}.toml")
    tasks = recipe.check_rows(shared_data)
    seen = {key for row in tasks["many"].pool for key in overlap_keys(row)}
    for new in tasks:
        if new != "many":
            test = tasks[new].test
            assert test is not None and test.count_overlap(seen) <= TOLERATED_SHARE * len(test), new


def test_rows_that_a_stage_would_have_seen_are_told_before_the_first_job(toy):
    record, folder = toy
    rows = [line for part in ("pool", "test") for line in (folder / f"data/letters/{part}.jsonl").open()]
    shown = "".join(f"{json.loads(line)['text']},{json.loads(line)['label']}\n" for line in rows)
    (folder / "tickets.csv").write_text("text,label\n" + shown)
    with pytest.raises(
        DataError, match=r"mixture holds \d+ of the 30 training rows of letters and \d+ of its \d+ test"
    ):
        Recipe.from_dict(record).check_rows(folder / "data")
    record["tasks"][1]["members"][1]["name"] = "letters"  # the task itself, with its own test rows
    del record["tasks"][1]["members"][1]["path"]
    assert set(Recipe.from_dict(record).check_rows(folder / "data")) == {"letters", "mixture"}


def test_a_skill_for_each_task_or_expert_is_taken_over_as_many_as_there_are(toy):
    record, _ = toy
    for routing, skills in (
        ({"routing": "private"}, 2),
        ({"routing": "expert", "experts": [["others", "tickets"]]}, 1),
    ):
        methods = [METHODS[0] | {"set": routing}, METHODS[1] | {"set": {"adapt": "z"}}]
        recipe = Recipe.from_dict(record | {"methods": methods})
        found = {job.label: recipe.spec(job).method.settings() for job in recipe.jobs()}
        assert (found["many"]["num_skills"], found["adapted"]["num_skills"]) == (8, skills)
    again = METHODS[1] | {"name": "again", "start": {"method": "own"}, "set": {"adapt": "z"}}
    methods = [METHODS[0], {"name": "own", "method": "poly", "set": {"adapt": "z", "routing": "private"}}, again]
    recipe = Recipe.from_dict(record | {"methods": methods})  # on a single task it has what it says
    assert {recipe.spec(job).method.settings()["num_skills"] for job in recipe.jobs()} == {8}


def test_only_a_few_rows_of_a_stage_are_timed(toy, monkeypatch):
    record, folder = toy
    rows = "".join(f"{'a' if i % 2 else 'zz 9'} {i},{'late' if i % 2 else 'broken'}\n" for i in range(400))
    (folder / "tickets.csv").write_text("text,label\n" + rows)
    stage = METHODS[0] | {"set": {"num_skills": 2, "epochs": 3, "dev": "carved"}}
    record["methods"] = [stage, METHODS[1] | {"start": METHODS[1]["start"] | {"shots": 300}}]
    recipe, done = Recipe.from_dict(record), {"train": [], "score": []}

    def trained(task, spec, **options):
        done["train"].append(len(options["split"].train))
        return train(task, spec, **options)

    def scored(adapter, rows, kind):
        done["score"].append(len(rows))
        return predict_rows(adapter, rows, kind)

    monkeypatch.setattr(forecasts, "train", trained)
    monkeypatch.setattr(forecasts, "predict_rows", scored)
    study = Study(recipe, folder / "study", folder / "data")
    found = forecasts.forecast(recipe, Worker(study.order(), recipe.check_rows(folder / "data")), study.jobs)
    many = next(cost for name, cost in found.items() if name.endswith("many"))
    assert done["train"][0] <= 4 * 4 and max(done["score"]) <= 48
    assert many.steps == 3 * ceil(0.8 * (30 + 200) / 16)  # a fifth of the rows is for development
    assert many.seconds > 0 and many.parameters > 0


def test_what_starts_from_an_inventory_takes_its_sizes_over_from_settings_and_presets(toy):
    record, _ = toy
    first = {"name": "many", "method": "poly", "stage": True, "preset": "polytropon", "set": {"num_splits": 4}}
    own = METHODS[1] | {"name": "own", "set": {"gate": "sigmoid"}}
    recipe = Recipe.from_dict(record | {"methods": [first, METHODS[1], own]})
    found = {job.label: recipe.spec(job).method.settings() for job in recipe.jobs()}
    assert {k: found["adapted"][k] for k in ("num_splits", "rank", "alpha", "gate")} == {
        "num_splits": 4, "rank": 16, "alpha": 1.0, "gate": "gumbel",
    }  # fmt: skip
    assert found["own"]["gate"] == "sigmoid" and found["own"]["rank"] == 16
