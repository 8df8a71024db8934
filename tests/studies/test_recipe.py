"""Recipes: what they say, and everything that is wrong with one told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.errors import ConfigError, DataError
from handful.studies.engines import SequentialEngine
from handful.studies.jobs import Job, Queue
from handful.studies.recipe import Recipe, read_recipe
from handful.studies.study import Study
from handful.testing import toy_study

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PLAIN: dict[str, Any] = {
    "name": "plain",
    "tasks": ["a", "b"],
    "shots": [8, 16],
    "seeds": 2,
    "methods": ["head", "lora"],
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_dict(PLAIN | changes)


def complaints(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        recipe(**changes)
    return caught.value.message.split("\n  ")[1:]


def test_jobs_are_the_cross_product_with_seeds_outermost() -> None:
    jobs = recipe().jobs()
    assert len(jobs) == len({job.name for job in jobs}) == 2 * 2 * 2 * 2
    assert [job.seed for job in jobs] == [0] * 8 + [1] * 8
    assert jobs[0] == Job("head", "a", 8, 0) and jobs[0].name == "a-k8-s0-head"
    assert Job.from_dict(jobs[0].to_dict()) == jobs[0]


def test_recipe_comes_back_from_its_values() -> None:
    for one in (recipe(), recipe(search={"trials": 3}, methods=[{"method": "prefix", "start": {"method": "prefix2"}},
                                                                {"method": "prefix", "name": "prefix2"}])):  # fmt: skip
        assert Recipe.from_dict(one.to_dict()) == one


def test_stages_come_before_what_starts_from_them() -> None:
    stage = {"method": "prefix", "name": "first", "stage": True}
    second = {"method": "prefix", "name": "second", "start": {"method": "first", "task": "b", "shots": 50}}
    jobs = recipe(methods=[second, stage]).jobs()
    first = [job for job in jobs if job.label == "first"]
    assert [job.name for job in first] == ["b-k50-s0-first", "b-k50-s1-first"]
    for job in jobs:
        if job.label == "second":
            assert job.start == f"b-k50-s{job.seed}-first"
            assert [j.name for j in jobs].index(job.start) < jobs.index(job)


def test_settings_of_a_method_win_over_those_of_all() -> None:
    common = {"training": {"epochs": 3}, "run.max_length": 32}
    one = recipe(set=common, methods=["head", "lora", {"name": "long", "method": "lora", "set": {"epochs": 9}}])
    epochs = {job.label: one.spec(job).training.epochs for job in one.jobs()}
    assert epochs == {"head": 0, "lora": 3, "long": 9}  # the probe does not train in steps
    assert {one.spec(job).options.max_length for job in one.jobs()} == {32}
    job = one.jobs()[-1]
    assert one.spec(job, {"training.epochs": 1}).training.epochs == 1
    assert (one.spec(job).options.shots, one.spec(job).options.seed) == (16, 1)


def test_everything_wrong_is_told_at_once() -> None:
    found = complaints(seeds=[1, 1], tasks=["a", "a"], methods=[
        "lora", {"method": "lora"}, "hed",
        {"method": "prefix", "name": "p", "set": {"prefix_lenth": 3, "training.epochs": "many"}},
        {"method": "bias", "start": {"method": "biass"}},
        {"method": "ia3", "start": {"method": "p", "task": "c"}},
    ], set={"num_vertices": 2})  # fmt: skip
    wanted = [
        "tasks: 'a' more than once", "methods: 'lora' more than once", "seeds: '1' more than once",
        "set.num_vertices: only settings of training, run and generation", "did you mean 'head'?",
        "prefix_lenth: no such setting; did you mean 'prefix_length'?", "training.epochs: expected a valid integer",
        "no method 'biass'; did you mean 'bias'?", "no task 'c' among the tasks",
    ]  # fmt: skip
    for text in wanted:
        assert any(text in line for line in found), f"{text!r} is not in {found}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sots": 3}, "sots: no such key; did you mean 'shots'?"),
        ({"tasks": [{"name": "a", "txt": "x"}]}, "tasks.0.txt: no such key; did you mean 'text'?"),
        ({"methods": [{"method": "head", "sett": {}}]}, "methods.0.sett: no such key; did you mean 'set'?"),
        ({"methods": []}, "methods: "),
        ({"shots": [1]}, "shots.0: expected greater than or equal to 2, found 1"),
        ({"shots": "many"}, "shots: "),
        ({"threads": 0}, "threads: expected greater than or equal to 1"),
        ({"search": {"trails": 3}}, "search has no such field; did you mean 'trials'?"),
        ({"search": {"trials": 0}}, "trials: "),
        ({"methods": [{"method": "prefix", "space": {"prefix_lenth": [1]}}]}, "prefix_lenth"),
        ({"methods": [{"method": "prefix", "start": {"method": "prefix"}}]}, "would start from itself"),
    ],
)
def test_wrong_value_is_named(changes: dict[str, Any], text: str) -> None:
    found = complaints(**changes)
    assert any(text in line for line in found), found


def test_circle_of_starts_is_refused() -> None:
    methods = [{"method": "prefix", "name": n, "start": {"method": m}} for n, m in (("x", "y"), ("y", "z"), ("z", "x"))]
    assert any("x would start from itself" in line for line in complaints(methods=methods))


def test_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match="shots: expected a value, found none"):
        Recipe.from_dict({name: value for name, value in PLAIN.items() if name != "shots"})


def test_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('tasks = ["a"]\nshots = 8\nseeds = [4]\nmethods = ["head"]\nset.run.max_length = 64\n')
    one = read_recipe(path, {"seeds": 3, "set.training.epochs": 2, "search.trials": 5})
    assert one.name == "mine" and one.seeds == (0, 1, 2) and one.shots == (8,)
    assert one.settings == {"run.max_length": 64, "training.epochs": 2}
    settings = one.search_settings()
    assert settings and settings.trials == 5


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("tasks = [\n")
    with pytest.raises(ConfigError, match=r"study\.toml: expected TOML"):
        read_recipe(tmp_path / "study.toml")
    with pytest.raises(ConfigError, match=r"(?s)stdy\.toml: cannot be read.*study\.toml"):
        read_recipe(tmp_path / "stdy.toml")


def test_path_of_a_task_is_beside_the_recipe(tmp_path: Path) -> None:
    rows = "".join(f"text {i} {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    (tmp_path / "mine.csv").write_text("message,topic\n" + rows)
    path = tmp_path / "study.toml"
    table = '[[tasks]]\nname = "mine"\npath = "mine.csv"\ntext = "message"\nlabel = "topic"\n'
    path.write_text(f'shots = 8\nseeds = 1\nmethods = ["head"]\ntest_rows = 4\n{table}')
    task = read_recipe(path).check_rows(None)["mine"]
    assert (task.name, task.labels, len(task.test or ())) == ("mine", ("no", "yes"), 4)


def test_missing_task_and_too_few_rows_are_told_together(tmp_path: Path) -> None:
    toy = toy_study(tmp_path)
    wrong = Recipe.from_dict(toy.to_dict() | {"tasks": ["letters", "lettres"], "shots": [16, 400], "methods": ["head"]})
    with pytest.raises(DataError) as caught:
        wrong.check_rows(tmp_path)
    assert "at least 400 distinct labelled rows, found 27" in caught.value.message
    assert "'lettres': no such folder" in caught.value.message and "did you mean 'letters'" in caught.value.message


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_repository_are_right(path: Path) -> None:
    assert read_recipe(path).jobs()


def test_tasks_of_the_glue_recipes_are_in_the_shared_folder(shared_data: Path) -> None:
    small = read_recipe(RECIPES / "few_shot_glue_small.toml", {"seeds": 1})
    assert len(small.check_rows(shared_data)) == 8
    large = read_recipe(RECIPES / "few_shot_glue.toml", {"seeds": 1})
    assert max(large.shots) == 500 and len(large.check_rows(shared_data)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["few_shot_glue", "few_shot_glue_small", "breadth", "fine_gates"])
def test_recipe_for_task_folders_runs(name: str, shared_data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    values = read_recipe(RECIPES / f"{name}.toml").to_dict()
    for method in values["methods"]:
        (method["space"] or {}).pop("epochs", None)  # they are fixed below
    short = {"model": str(tiny_folder), "shots": [20], "seeds": [0], "test_rows": 10, "tasks": values["tasks"][2:4]}
    recipe = Recipe.from_dict(values | short | {"set": {"training.epochs": 1, "run.max_length": 16}})
    state = Study(recipe, tmp_path / "study", shared_data).run(SequentialEngine(), lambda event: None)
    assert not state.failed and len(state.done) == len(recipe.tasks) * len(recipe.methods)
    scores = {name: run.record["scores"] for name, run in state.done.items() if "-1-vertex-" in name}
    assert len(scores) in (0, 4)
    for task in ("mrpc", "stsb"):  # one vertex: nothing is drawn, so validation by draws changes nothing
        both = [scores.get(f"glue-{task}-k20-s0-1-vertex-{how}") for how in ("deterministic", "stochastic")]
        assert both[0] == both[1]


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny T5 with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tiny_model("t5", purpose="lm").save_pretrained(folder)
    tiny_tokenizer("t5").save_pretrained(folder)
    return str(folder)


WRITING = {"training.epochs": 1, "run.max_length": 24, "generation.max_new_tokens": 3, "generation.beams": 1}


def shortened(name: str, model: str, **changes: Any) -> Recipe:
    """A recipe for writing that a tiny model does in seconds."""
    values = read_recipe(RECIPES / f"{name}.toml").to_dict()
    for method in values["methods"]:
        (method["space"] or {}).pop("epochs", None)  # they are fixed below
    short = {"model": model, "shots": [6], "seeds": [0], "test_rows": 3, "set": WRITING}
    return Recipe.from_dict(values | short | changes)


def test_tasks_of_the_recipes_for_writing_are_in_the_shared_folder(shared_data: Path) -> None:
    for name in ("few_shot_nlg", "few_shot_nlg_small", "intermediate_nlg"):
        tasks = read_recipe(RECIPES / f"{name}.toml", {"seeds": 1}).check_rows(shared_data)
        assert [task.metric for task in tasks.values()] == ["bleu-e2e", "bleu-webnlg20"]


def test_release_of_a_task_is_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "e2e-dataset").mkdir()
    (tmp_path / "few_shot_nlg.toml").write_text((RECIPES / "few_shot_nlg.toml").read_text())
    e2e, webnlg = read_recipe(tmp_path / "few_shot_nlg.toml").tasks
    assert e2e.path == f"e2e:{tmp_path.resolve() / 'e2e-dataset'}" and webnlg.path == "webnlg:webnlg"


def test_a_task_folder_is_scored_as_the_recipe_says_and_is_no_other_task(tmp_path: Path) -> None:
    values = toy_study(tmp_path).to_dict() | {"methods": ["head"]}

    def opened(**keys: str) -> Recipe:
        return Recipe.from_dict(values | {"tasks": [{"name": "letters", "path": "hub:owner/letters", **keys}]})

    assert opened(text="sentence", pool="train[:9]", metric="f1").open_task("letters", tmp_path).metric == "f1"
    assert opened(kind="classification").open_task("letters", tmp_path).kind == "classification"
    wrong = {"partition": "no_overlap", "linearisation": "raw", "kind": "regression"}
    for key, value in wrong.items():
        with pytest.raises(ConfigError, match=f"task 'letters': .*{key}"):
            opened(**{key: value}).open_task("letters", tmp_path)
    with pytest.raises(DataError, match="partition cannot be had of the task folder"):
        opened(partition="full").check_rows(tmp_path)


def test_generation_is_set_for_all_methods_or_one() -> None:
    one = shortened("few_shot_nlg_small", "tiny", methods=[
        "prompt", {"name": "greedy", "method": "lora", "set": {"generation": {"beams": 3}}}
    ])  # fmt: skip
    beams = [spec.generation.beams for spec in map(one.spec, one.jobs()) if spec.generation]
    assert beams == [1, 3, 1, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "search"), [("few_shot_nlg", {"trials": 2}), ("few_shot_nlg_small", None)])
def test_recipe_for_writing_runs(
    name: str, search: dict[str, Any] | None, shared_data: Path, tiny_t5: str, tmp_path: Path
) -> None:
    recipe = shortened(name, tiny_t5, search=search)
    state = Study(recipe, tmp_path / "study", shared_data).run(SequentialEngine(), lambda event: None)
    assert not state.failed and len(state.done) == 2 * len(recipe.methods)
    assert {run.record["study"]["trials"] for run in state.done.values()} == {2 if search else 1}
    assert all(run.record["scores"].keys() >= {"chrf++", "rouge-l"} for run in state.done.values())


def test_intermediate_tuning_runs_in_two_stages(shared_data: Path, tiny_t5: str, tmp_path: Path) -> None:
    methods = read_recipe(RECIPES / "intermediate_nlg.toml").to_dict()["methods"]
    for method in methods:
        if method["start"]:
            method["start"]["shots"] = 8
    recipe = shortened("intermediate_nlg", tiny_t5, methods=methods)
    state = Study(recipe, tmp_path / "study", shared_data).run(SequentialEngine(), lambda event: None)
    assert not state.failed
    runs = {run.record["study"]["label"]: run for run in state.done.values()}
    assert len(runs) == len(state.done) == len(methods)
    stages = {label: run for label, run in runs.items() if label.endswith("first")}
    assert {run.record["task"]["name"] for run in stages.values()} == {"nlg/webnlg"}
    for method in methods:
        run = runs[method["name"]]
        if start := method["start"]:
            first = stages[start["method"]]
            assert run.record["spec"]["start"] == first.key
            assert set(first.seen() or "?") <= set(run.seen() or ())
    zero_shot, first = runs["WebNLG alone"].weights(), stages["scaled, first"].weights()
    assert all(torch.equal(zero_shot[name], first[name]) for name in first)
    trained = runs["both from WebNLG"].weights()
    assert all(not torch.equal(trained[name], first[name]) for name in first)


@pytest.mark.slow
def test_recipe_for_own_data_runs(tiny_folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"ticket {i} {'late' if i % 2 else 'broken'},{'parcel' if i % 2 else 'item'}\n" for i in range(80))
    (tmp_path / "tickets.csv").write_text("text,label\n" + rows)
    (tmp_path / "own_data.toml").write_text((RECIPES / "own_data.toml").read_text())
    changes = {"model": str(tiny_folder), "seeds": 1, "shots": [20], "set.training.epochs": 1}
    recipe = read_recipe(tmp_path / "own_data.toml", changes)
    state = Study(recipe, tmp_path / "study").run(SequentialEngine(), lambda event: None)
    assert not state.failed and len(state.done) == 3


class TestQueue:
    chain = (Job("a", "t", 8, 0), Job("b", "t", 8, 0, "t-k8-s0-a"), Job("c", "t", 8, 0, "t-k8-s0-b"))

    def test_job_waits_for_its_start(self) -> None:
        queue = Queue(self.chain)
        first = queue.take()
        assert first == self.chain[0] and queue.take() is None
        queue.finish(first)
        assert queue.take() == self.chain[1] and len(queue) == 2

    def test_what_was_done_before_is_not_done_again(self) -> None:
        queue = Queue(self.chain, done=["t-k8-s0-a"])
        assert queue.take() == self.chain[1]

    def test_failure_takes_all_that_follow_from_it(self) -> None:
        queue = Queue((*self.chain, Job("d", "t", 8, 0)))
        first = queue.take()
        assert first and queue.give_up(first) == list(self.chain[1:])
        assert queue.take() == Job("d", "t", 8, 0) and queue.take() is None

    def test_job_put_back_is_next(self) -> None:
        queue = Queue((self.chain[0], Job("d", "t", 8, 0)))
        first = queue.take()
        assert first
        queue.put_back(first)
        assert queue.take() == first and len(queue) == 2
