"""One request: `handful check`, `handful fit` and `handful.fit` accept and refuse alike, before a model is loaded."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import handful
import handful.runs.experiment as experiment
from handful.cli.app import app
from handful.cli.main import run
from handful.data import advice
from handful.errors import ConfigError, DataError, RunError
from handful.methods.poly.method import Poly
from handful.methods.prefix import Prefix
from handful.request import Plan, Request

WORDS = ("aaaa bbbb", "zz 99 zz")


class Accepted(Exception):
    """Everything was found right; what follows would load a model."""


def rows(numbers: range) -> list[dict[str, str]]:
    return [{"text": f"{WORDS[i % 2]} {i}", "label": "ab" if i % 2 else "z9"} for i in numbers]


def table(path: Path, numbers: range) -> str:
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows(numbers)))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, str]:
    """Labelled rows, test rows and a finished run."""
    root = tmp_path_factory.mktemp("request")
    data, test = table(root / "data.csv", range(16)), table(root / "test.csv", range(50, 54))
    fitted = handful.fit(data, method="head", model=str(tiny_folder), output=root / "runs", max_length=24)
    assert fitted.run
    return {"data": data, "test": test, "run": str(fitted.run.folder), "nowhere": str(root / "nowhere")}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is accepted ends there, and none loads a model."""

    def accept(*_: object) -> None:
        raise Accepted

    monkeypatch.setattr(Plan, "decide", accept)
    monkeypatch.setattr("handful.cli.check.describe_plan", accept)
    for name in ("load_backbone", "load_skeleton"):
        monkeypatch.setattr(experiment, name, lambda *_, **__: pytest.fail("a model was loaded"))


def sentences(message: str) -> list[str]:
    """What is wrong, without hints and without saying how much it is."""
    lines = [line.strip() for line in message.splitlines()]
    return [line for line in lines if not line.startswith("hint: ") and not line.endswith(" problems:")]


def in_python(options: dict[str, Any]) -> list[str]:
    try:
        handful.fit(**options)
    except Accepted:
        return []
    except handful.HandfulError as error:
        return sentences(error.message)
    pytest.fail("it was trained")


COMMAND = get_command(app)


def on_the_command_line(verb: str, options: dict[str, Any], output: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [f"--{name}={value}" for name, value in options.items() if name != "data"]
    capsys.readouterr()
    try:
        code = COMMAND.main([verb, str(options["data"]), *arguments, f"--output={output}"], standalone_mode=False)
    except Accepted:
        return []
    except handful.HandfulError as error:
        return sentences(error.message)
    assert code in (1, 2)
    return sentences(capsys.readouterr().err.replace("error: ", ""))


CHOICES = {
    "method": (None, "auto"),
    "start": (None, "run", "nowhere"),
    "adapt": (None, "mu"),
    "budget": (None, 300, -1),
    "speedup": (None, 1.5, 0),
    "shots": (None, 1000),
    "test": (None, "test", "data"),
}


@pytest.mark.usefixtures("no_model")
def test_all_doors_accept_and_refuse_the_same_with_the_same_sentence(files, tmp_path, capsys):
    accepted = 0
    for values in itertools.product(*CHOICES.values()):
        named = {name: value for name, value in zip(CHOICES, values, strict=True) if value is not None}
        options = {"data": files["data"]} | {
            name: files.get(value, value) if isinstance(value, str) else value for name, value in named.items()
        }
        expected = in_python(options)
        for verb in ("check", "fit"):
            assert on_the_command_line(verb, options, tmp_path / "runs", capsys) == expected, (verb, named)
        right = named.get("shots") != 1000 and named.get("test") != "data" and "adapt" not in named
        right = right and "speedup" not in named and named.get("start") != "nowhere"
        right = right and (named.get("budget", 300) == 300 if "method" in named else "budget" not in named)
        assert (not expected) == (right and not ("method" in named and "start" in named)), (named, expected)
        accepted += not expected
    assert accepted == 2 * 2 + 2 * 2
    assert not (tmp_path / "runs").exists()


WRONG = {
    "columns": ("text", "columns: expected a dict, found 'text'"),
    "settings": ("shots", "settings: expected a dict, found 'shots'"),
    "test_fraction": (0.95, "test_fraction: expected a number from 0 to 0.9, found 0.95"),
    "method": ("prefx", "method: unknown method 'prefx'; did you mean 'prefix'?"),
    "preset": ("papr", "preset: method 'prefix-subspace' has no preset 'papr'; did you mean 'paper'?"),
    "budget": (True, "budget: expected seconds above 0, found True"),
    "speedup": ("fast", "speedup: expected a number above 1, found 'fast'"),
    "start": (" ", "start: expected the folder of a run, found ' '"),
    "shots": (True, "run.shots: expected a valid integer, found True"),
    "device": (0, "device: expected auto, cpu, cuda, cuda:N or mps, found 0"),
}


def str_of(number: object) -> str:
    return str(number)[:8]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1, 0, True, "many", [1], 10**400], ids=str_of)
@pytest.mark.usefixtures("no_model")
def test_what_is_no_number_in_bounds_is_refused_by_its_name(files, number):
    for name, expected in (
        ("budget", "budget: expected seconds above 0"),
        ("speedup", "speedup: expected a number above 1"),
        ("shots", "run.shots: expected"),
        ("test_fraction", "test_fraction: expected a number from 0 to 0.9"),
    ):
        if name == "test_fraction" and number == 0:
            continue
        method = {"speedup": "prune", "budget": "auto"}.get(name)
        with pytest.raises(ConfigError) as caught:
            handful.fit(files["data"], method=method, **{name: number})
        assert expected in caught.value.message and caught.value.message.count("expected") == 1
        assert "--" not in caught.value.hint


@pytest.mark.usefixtures("no_model")
def test_everything_that_is_wrong_comes_at_once(files):
    wrong = {name: value for name, (value, _) in WRONG.items() if name not in ("columns", "settings")}
    with pytest.raises(RunError) as caught:
        handful.fit(files["data"], output=Path(files["data"]) / "x", **wrong | {"start": files["nowhere"]})
    for name in ("test_fraction", "budget", "speedup", "device"):
        assert WRONG[name][1] in caught.value.message, name
    for said in (
        "budget: only the method 'auto'",
        "nowhere: no such run folder",
        "cannot be written (Not a directory)",
    ):
        assert said in caught.value.message, said


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("no_model")
def test_each_mistake_has_its_sentence(files, name):
    value, said = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        handful.fit(files["data"], **{name: value})
    assert said in caught.value.message


@pytest.mark.usefixtures("no_model")
def test_methods_as_objects_and_what_is_none(files):
    data = files["data"]
    for method in (Prefix(prefix_length=5), Prefix, "prefix"):
        with pytest.raises(Accepted):
            handful.fit(data, method=method)
    for options, said in (
        ({"method": Prefix(), "prefix_length": 3}, "method.prefix_length: expected no setting of the method beside"),
        ({"method": 5}, "method: expected a name, found 5"),
        ({"method": dict}, "method: expected a name, found <class 'dict'>"),
        ({"method": Prefix(), "speedup": 2}, "speedup: expected a method with a budget"),
        ({"method": Prefix(), "budget": 2}, "budget: only the method 'auto' chooses within a time"),
        ({"method": Prefix(), "adapt": "mu"}, "adapt: says how to start from an inventory"),
        ({"start": files["run"], "adapt": "mu"}, "adapt: says how to start from an inventory"),
    ):
        with pytest.raises(ConfigError) as caught:
            handful.fit(data, **options)
        assert said in caught.value.message, options


@pytest.mark.usefixtures("no_model")
def test_a_task_has_its_test_rows_and_a_setting_one_value(files):
    task = handful.open_task(files["data"])
    for options, said in (
        ({"test": files["test"]}, "test: a Task has its test rows and columns already"),
        ({"columns": {"text": "text"}}, "columns: a Task has its test rows and columns already"),
        ({"settings": {"run.shots": 4}, "shots": 8}, "shots=8 contradicts 'run.shots': 4 in settings"),
    ):
        with pytest.raises(ConfigError) as caught:
            handful.fit(task, **options)
        assert said in caught.value.message
    with pytest.raises(ConfigError, match="columns: no such option as test"):
        handful.fit(files["data"], columns={"test": files["test"]})


@pytest.mark.usefixtures("no_model")
def test_hints_are_in_the_words_of_the_one_who_asks(files, tmp_path, capsys):
    few = "expected at least 1000 distinct labelled rows"
    with pytest.raises(DataError, match=few) as caught:
        handful.fit(files["data"], shots=1000)
    assert "shots=" in caught.value.hint and "--" not in caught.value.hint
    assert run(["fit", files["data"], "--shots", "1000", "--output", str(tmp_path)]) == 1
    assert "use at most --shots" in capsys.readouterr().err
    assert advice.in_python("use at most --shots 32, or --dev carved") == "use at most shots=32, or dev='carved'"
    assert advice.in_python("`handful fit x.csv --test y.csv`") == "`handful fit x.csv --test y.csv`"


def test_an_inventory_decides_the_method_and_what_is_adapted(files, monkeypatch):
    common = {"method.num_skills": 3, "run.max_length": 32}
    monkeypatch.setattr("handful.runs.inventory.inherited", lambda start: common if start else {})
    monkeypatch.setattr("handful.runs.start.names_of", lambda start: ("poly", "minilm") if start else (None, None))
    monkeypatch.setattr("handful.runs.seen.start_notes", lambda *_: ())
    request = Request(files["data"], start=files["run"], adapt="z")
    spec = request.plan().specs[0]
    assert spec.method.settings()["adapt"] == "z" and spec.method.settings()["num_skills"] == 3
    for changed, said in (
        ({"settings": {"adapt": "mu"}}, "adapt: 'z' contradicts method.adapt = 'mu'"),
        ({"method": "lora"}, "an inventory is of the method 'poly', found 'lora'"),
        ({"method": Poly()}, "an inventory is of the method 'poly', found an object, whose sizes"),
        ({"adapt": "q"}, "method.adapt: expected 'mu', 'z' or 'full', found 'q'"),
        ({"adapt": True}, "method.adapt: expected 'mu', 'z' or 'full', found True"),
    ):
        with pytest.raises(ConfigError) as caught:
            replace(request, **changed).plan()
        assert said in caught.value.message


REFUSED = {
    ("fit", "DATA", "--method", "prefx", "--shots", "8", "--set", "training.epochs=many"): (
        "2 wrong settings:", "unknown method 'prefx'; did you mean 'prefix'?", "training.epochs: expected a valid"
    ),
    ("check", "DATA", "--set", "training.epohs=2", "--shots", "x", "--dev", "crved", "--label", "lable"): (
        "3 wrong settings:", "training has no such field; did you mean 'epochs'?", "did you mean 'label'?",
    ),
    ("fit", "DATA", "--label", "lable", "--shots", "8", "--seed", "1"): ("expected a label column 'lable'",),
    ("fit", "DATA", "--adapt", "mu"): ("adapt: says how to start from an inventory",),
    ("check", "DATA", "--method", "auto", "--set", "epochs=-1", "--budget", "nan"): (
        "training.epochs: expected greater than or equal to 0, found -1", "budget: expected seconds above 0, found nan",
    ),
}  # fmt: skip


def test_complaints_that_need_no_torch_import_none(files):
    """In a process of its own; the names and values of a method's settings alone are in a module that imports it."""
    lines = [[files["data"] if part == "DATA" else part for part in line] for line in REFUSED]
    code = (
        "import json, sys; from handful.cli.main import run\n"
        "codes = [run(line) for line in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, sorted({'torch', 'transformers', 'sklearn'} & sys.modules.keys())]))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, check=True)
    codes, imported = json.loads(done.stdout)
    assert imported == [] and set(codes) <= {1, 2}
    for sentence in itertools.chain(*REFUSED.values()):
        assert sentence in done.stderr, sentence
