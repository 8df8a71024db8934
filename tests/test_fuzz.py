"""Settings, recipes and run folders of any content: what is wrong with them is said, and nothing breaks.

`HANDFUL_FUZZ=N` tries N cases of each kind. On 2026-11-30 10,000 each of settings, assignments and recipes, two ways,
and on 2026-12-01 10,000 run folders were accepted or refused by an error of ours (docs/experiments.md).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from handful.cli.arguments import RunArguments, read_assignments
from handful.errors import ConfigError, HandfulError
from handful.reports.report import read_report
from handful.reports.text import to_json, to_markdown
from handful.runs.record import sealed
from handful.runs.spec import resolve
from handful.runs.store import read_run
from handful.studies.recipe import Recipe, read_recipe

CASES = int(os.environ.get("HANDFUL_FUZZ", "60"))
pytestmark = pytest.mark.timeout(300 if CASES <= 100 else 0)
FUZZ = settings(
    max_examples=CASES, deadline=None, database=None, derandomize=CASES < 1000,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

ODD = st.sampled_from(
    [None, True, False, 0, -1, 3, 1.5, 10**30, 10**4000, -0.0, float("inf"), float("nan"), "", "x",
     "vertex:" + "9" * 5000, "../../x", "a\0b", "\x1b[31m", "x" * 5000, "\ud83d", "auto", "head", "prefix", "none", [],
     {}, [[]], [3], ["x"],
     {"name": 3}, {"x": {}}, ()]
)  # fmt: skip
VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["epochs", "training.epochs", "shots", "run.seed", "method.num_vertices", "predictor", "learning_rate", "draws",
     "generation.beams", "model", "preset", "method", "x.y", "run.", ".", "", "training.precision", "layers", "dev"]
) | st.text(max_size=6)  # fmt: skip
METHODS = st.sampled_from(["prefix-subspace", "head", "poly", "prune", "lora", "setfit"]) | ODD


def only_ours(attempt) -> bool:
    """Whether it was accepted; an error that is not ours fails the test."""
    said = ""
    try:
        attempt()
    except HandfulError as error:
        said = str(error)
    assert len(said) < 20_000
    return not said


@FUZZ
@given(METHODS, ODD, ODD, st.dictionaries(NAMES, VALUES, max_size=3))
def test_settings(method, model, preset, overrides):
    only_ours(lambda: resolve(method, model=model, preset=preset, overrides=overrides))


@pytest.mark.parametrize("name", ["epochs", "x", "shots", "seed", "learning_rate", "predictor", "num_vertices"])
def test_numbers_too_long_to_be_written(name):
    with pytest.raises(ConfigError, match=r"wrong setting"):
        resolve("prefix-subspace", overrides={name: 10**4300})
    assert not only_ours(lambda: Recipe.from_dict(BASE | {name: 10**4300}))


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["[" * 3000, "9" * 5000, '{"a":' * 2000, "NaN", "1e999", "null", '"\\ud83d"', "{}", "[[[]]]", "-0", "\0"]
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows of two classes."""
    path = tmp_path_factory.mktemp("rows") / "data.csv"
    path.write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(12)))
    return path


@FUZZ
@given(st.lists(st.tuples(NAMES, TEXTS), max_size=3))
def test_assignments(data, pairs):
    given_settings = [f"{name}={text}" for name, text in pairs]
    problems: list[str] = []
    read_assignments(given_settings, problems)
    assert all(len(problem) < 500 for problem in problems)
    only_ours(lambda: RunArguments(str(data), assignments=given_settings).request().plan())


BASE = {
    "name": "s", "model": "minilm", "tasks": [{"name": "t", "path": "t.csv", "members": None, "set": {"epochs": 2}}],
    "shots": [12], "seeds": 2, "test_rows": 6, "threads": 1, "set": {"run.max_length": 16},
    "methods": ["head", {"name": "m", "method": "prefix", "set": {"epochs": 3}, "start": {"method": "head"}}],
    "search": {"trials": 3},
}  # fmt: skip


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Where something stands in a record."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, of in inner for place in places(of, (*path, key)))]


def put(record, path: tuple, value):
    """A copy of the record with another value there; `...` takes it out."""
    if not path:
        return value
    changed = copy.deepcopy(record)
    of = changed
    for key in path[:-1]:
        of = of[key]
    if value is ...:
        del of[path[-1]]
    else:
        of[path[-1]] = value
    return changed


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(places(BASE)[1:]), VALUES | st.just(...)), min_size=1, max_size=2))
def test_recipes(changes):
    record = BASE
    for path, value in changes:
        try:
            record = put(record, path, value)
        except (KeyError, IndexError, TypeError):  # what the first change has taken away
            assume(False)
    only_ours(lambda: Recipe.from_dict(record))


@FUZZ
@given(name=NAMES | st.sampled_from(["tasks.0.name", "name.x", "set.x", "tasks.x", "search.trials.x"]), value=VALUES)
def test_recipes_with_other_values_from_the_command_line(recipe_file, name, value):
    only_ours(lambda: read_recipe(recipe_file, {name: value}))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "r.toml"
    path.write_text('name = "s"\ntasks = "t"\nshots = 12\nseeds = 1\nmethods = ["head"]\nset = []\n')
    return path


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 3000, "x = " + "9" * 5000, 'name = "../x"', 'name = "/x"', "\0", "name = 3", "[set]\nx = 1"]
)
def test_recipe_files(tmp_path, data, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_recipe(path)
    with pytest.raises(ConfigError):
        RunArguments(str(data), config=path).request().plan()


TRAINED = ("prefix-subspace", "poly", "fine-gates", "prune")
"""Methods whose records hold different things."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder) -> Path:
    """Finished runs, in `runs/METHOD`."""
    from handful.cli.main import run

    root = tmp_path_factory.mktemp("trained")
    rows = "".join(f"{'aaaa' if i % 2 else 'zz 99'} {i},{'ab' if i % 2 else 'z9'}\n" for i in range(40))
    (root / "data.csv").write_text("text,label\n" + rows)
    for method in TRAINED:
        arguments = ["fit", str(root / "data.csv"), "--model", str(tiny_folder), "--method", method, "--dev", "carved"]
        for setting in ("epochs=2", "selection=best", "run.max_length=16"):
            arguments += ["--set", setting]
        assert run([*arguments, "--output", str(root / "runs")]) == 0
        (folder,) = (path.parent for path in (root / "runs").glob(f"*-{method}-*/run.json"))
        folder.rename(root / "runs" / method)
    return root


OPTIONAL = {
    "study": {"name": "s", "job": "j", "label": "l", "trials": 2, "start": None},
    "made_of": ["0" * 8], "signatures": {"bleu": "x"}, "members": {},
}  # fmt: skip
"""What only some records have."""


@pytest.mark.filterwarnings("ignore::handful.runs.record.WrittenBefore")
@pytest.mark.filterwarnings("ignore::UserWarning")
@FUZZ
@given(data=st.data())
def test_run_folders(trained, tiny_backbone, data):
    """Of an older format, or sealed again: then nothing but the values themselves says what is wrong."""
    from handful.api import load

    method, folder = data.draw(st.sampled_from(TRAINED)), trained / "changed" / "run"
    record = json.loads((trained / "runs" / method / "run.json").read_text()) | OPTIONAL
    path = data.draw(st.sampled_from(places(record)[1:]))
    try:
        changed = put(record, path, data.draw(VALUES | st.just(...)))
        if data.draw(st.booleans()):
            changed = sealed(changed, record["weights_sha256"], record["files"])
        else:
            changed = {name: value for name, value in changed.items() if name not in ("checksum", "files")}
            changed["format_version"] = 1
        text = json.dumps(changed)
    except (TypeError, ValueError):  # no JSON has that
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained / "runs" / method, folder)
    (folder / "run.json").write_text(text)
    if not only_ours(lambda: read_run(folder)):
        assert not only_ours(lambda: read_report([trained / "changed"]))
        return
    only_ours(lambda: to_markdown(read_report([trained / "changed"])))
    only_ours(lambda: to_json(read_report([trained / "changed"])))

    def predict() -> None:
        model = load(folder, backbone=tiny_backbone)
        try:
            model.predict(["aaaa", "zz"])
        finally:
            model.detach()

    only_ours(predict)


@pytest.fixture(scope="module")
def tiny_backbone(tiny_folder):
    from handful.backbone.load import load_backbone

    return load_backbone(str(tiny_folder))
