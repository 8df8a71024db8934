"""One request: `handful check`, `handful fit` and `handful.fit` accept and refuse alike, before a model is loaded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import handful
import handful.runs.experiment as experiment
from handful.cli.app import app
from handful.request import Plan

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
    data, test = table(root / "data.csv", range(24)), table(root / "test.csv", range(50, 54))
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
