"""The front of the command line: help, exit codes, wrong usage, crashes, Ctrl-C."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings

import pytest

from handful.cli import models as models_verb
from handful.cli.app import app
from handful.errors import DataError

VERBS = ("demo", "check", "fit", "pretrain", "predict", "export", "methods", "models", "tasks", "doctor")
CODE = """
import sys
from handful.cli.main import run
code = run({arguments!r})
print("HEAVY", [name for name in ("torch", "transformers", "sklearn", "scipy", "numpy") if name in sys.modules])
sys.exit(code)
"""


def in_new_process(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command line in a process of its own, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(arguments=list(arguments))], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [("--help",), *((verb, "--help") for verb in VERBS), ("--version",)])
def test_help_imports_no_torch_and_is_quick(arguments: tuple[str, ...]):
    done, seconds = in_new_process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    assert done.stderr == ""
    assert seconds < 1.0  # half a second on an idle core; a shared one counts cycles lost to its neighbour too


def test_the_first_help_page_names_every_verb():
    done, _ = in_new_process("--help")
    for verb in VERBS:
        assert f" {verb} " in done.stdout


def test_wrong_usage_costs_no_torch():
    done, _ = in_new_process("fitt", "data.csv")
    assert done.returncode == 2
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["fitt", "x.csv"], "no such command 'fitt'", "did you mean 'fit'?"),
        (["exprt"], "no such command 'exprt'", "did you mean 'export' or 'report'?"),
        (["qqq"], "no such command 'qqq'", "`handful --help` says how it is used"),
        (["fit", "x.csv", "--presett", "paper"], "no such option: --presett", "did you mean --preset"),
        (["fit"], "missing argument", "`handful fit --help` says how it is used"),
        (["methods", "a", "b"], "got unexpected extra argument", "`handful methods --help`"),
        (
            ["fit", "x.csv", "--test-fraction", "2"],
            "test_fraction: expected a number from 0",
            "0.2 is a fifth",
        ),
    ],
)
def test_wrong_usage_is_code_2_with_the_nearest_name(command, arguments, message, hint):
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith(f"error: {message}")
    assert f"\nhint: {hint}" in outcome.err


def test_no_verb_prints_the_help(command):
    outcome = command()
    assert outcome.code == 2
    assert "Usage: handful" in outcome.out + outcome.err


def raising(error: BaseException):
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """Make `handful models` raise."""

    def set_error(error: BaseException) -> None:
        monkeypatch.setattr(models_verb, "show_table", lambda *_: raising(error)())

    return set_error


def test_an_error_of_ours_is_told_without_a_traceback(command, broken):
    broken(DataError("found a tail", "cut it off"))
    outcome = command("models")
    assert (outcome.code, outcome.err) == (1, "error: found a tail\nhint: cut it off\n")


def test_a_crash_is_told_in_two_lines(command, broken):
    broken(ZeroDivisionError("division by zero"))
    outcome = command("models")
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        "error: handful itself failed: ZeroDivisionError: division by zero",
        "hint: run it again with HANDFUL_DEBUG=1 in the environment, and report what that prints",
    ]


def test_the_traceback_is_there_for_who_wants_it(command, broken, monkeypatch):
    monkeypatch.setenv("HANDFUL_DEBUG", "1")
    broken(ZeroDivisionError("division by zero"))
    assert "Traceback (most recent call last)" in command("models").err


def test_ctrl_c_says_that_nothing_is_lost(command, broken):
    broken(KeyboardInterrupt())
    outcome = command("models")
    assert outcome.code == 130
    assert "nothing that was saved is lost" in outcome.err
    assert "continues from its last checkpoint" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_reader_that_has_gone_is_no_crash():
    line = f"{sys.executable} -c 'from handful.cli.main import main; main()' methods lora --json | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "handful itself failed" not in done.stderr


def test_warnings_take_one_line_and_are_put_back(command, monkeypatch):
    def warn(*_):
        warnings.warn("two vertices are identical", stacklevel=1)
        warnings.warn("will be removed", FutureWarning, stacklevel=1)

    shown = warnings.showwarning
    monkeypatch.setattr(models_verb, "show_table", warn)
    assert "warning: two vertices are identical\n" in command("models").err
    assert "will be removed" not in command("models").err
    assert warnings.showwarning is shown


def test_every_reading_verb_has_json():
    from typer.main import get_command

    group = get_command(app)
    for verb in set(VERBS) - {"demo"}:
        flags = [flag for parameter in group.commands[verb].params for flag in parameter.opts]  # type: ignore[attr-defined]
        assert "--json" in flags, verb


@pytest.mark.parametrize("verb", ["methods", "models", "tasks"])
def test_listings_are_json_and_tables(command, verb):
    listed = command(verb, "--json")
    assert listed.code == 0
    names = [record["name"] for record in json.loads(listed.out)]
    table = command(verb)
    assert len(names) >= 1
    assert all(any(line.startswith(name) for line in table.out.splitlines()) for name in names)


def test_one_method_in_full(command):
    record = command("methods", "prefix-subspace", "--json").json
    fields = {field["name"]: field for field in record["method"]}
    assert fields["num_vertices"]["bounds"] == "≥ 1, ≤ 16"
    assert fields["prefix_length"]["unit"] == "positions"
    assert set(record["presets"]) == {"default", "paper"}
    shown = command("methods", "prefix-subspace").out
    for name in (*fields, "epochs", "max_length", "preset default:", "preset paper:"):
        assert name in shown


def test_a_misspelt_method_names_the_nearest(command):
    outcome = command("methods", "prefix-subspce")
    assert outcome.code == 2
    assert "unknown method 'prefix-subspce'" in outcome.err
    assert "did you mean 'prefix-subspace'?" in outcome.err
