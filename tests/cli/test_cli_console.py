"""What the command line shows: tables, numbers, the progress of a fit."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import handful.cli.console
from handful.cli.console import FitProgress, format_cell, show_table
from handful.training.events import Evaluated, FitStarted, StepDone, Stopped


def started(steps: int, resumed_at: int = 0) -> FitStarted:
    return FitStarted(steps, 2, 16, 4, 100, resumed_at)


def test_what_looks_like_markup_stays_as_it_is(capsys):
    show_table(("label", "rows"), [("[red]x[/red]", 1200), ("[bold", 3)])
    out = capsys.readouterr().out
    assert "[red]x[/red]  1,200" in out
    assert "[bold" in out


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (1234, "1,234"), (0.00012345, "0.000123"), (True, "True"), ("a", "a")]
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_without_a_terminal_every_quarter_is_a_line(capsys):
    with FitProgress("prefix") as progress:
        progress(started(8))
        for step in range(1, 9):
            progress(StepDone(step, 2.0 / step, 0.1, 100))
            if step == 4:
                progress(Evaluated(4, 1, "accuracy", 0.75, 0.0, True, {}))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"prefix: step {step} of 8" for step in (2, 4, 6, 8)]
    assert "loss 1.900" in lines[0]  # 0.9 · 2 + 0.1 · 1
    assert "dev accuracy 0.750" in lines[2]


def test_a_fit_that_continues_or_stops_says_so(capsys):
    with FitProgress("prefix") as progress:
        progress(started(100, resumed_at=40))
        progress(Stopped(50, "no gain on dev in 3 evaluations"))
    assert capsys.readouterr().err.splitlines() == [
        "prefix: continuing from the checkpoint at step 40 of 100",
        "prefix: stopped at step 50: no gain on dev in 3 evaluations",
    ]


def test_on_a_terminal_there_is_a_bar_with_loss_score_and_time(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with FitProgress("prefix") as progress:
        progress(started(4))
        progress(StepDone(1, 0.5, 0.1, 100))
        progress(Evaluated(1, 1, "accuracy", 0.75, 0.0, True, {}))
        progress(StepDone(2, 0.5, 0.1, 100))
        progress.bar.refresh()
    shown = capsys.readouterr().err
    for part in ("prefix", "2/4", "loss 0.500, dev accuracy 0.750", ":"):
        assert part in shown


def test_a_probe_without_steps_shows_nothing(capsys):
    with FitProgress("head") as progress:
        progress(started(0))
    assert capsys.readouterr().err == ""


def test_no_verb_prints_past_what_makes_texts_harmless():
    """Names and labels may hold what a terminal obeys: `show`, `say` and the tables spell it out."""
    own = {"console.py", "main.py", "app.py", "predict.py"}  # predict writes data, and app a version
    folder = Path(handful.cli.console.__file__).parent
    found = [path.name for path in folder.glob("*.py") if re.search(r"(?<![.\w])print\(", path.read_text())]
    assert set(found) <= own


def test_escapes_reach_no_terminal(command, table, tiny_folder, tmp_path):
    red = "\x1b[31mred\x1b[0m"
    data = table([(f"text {i} {'aaaa' if i % 2 else 'zz'}", red if i % 2 else "\u202eplain") for i in range(40)])
    data = data.rename(tmp_path / "d\x1b]0;title\x07.csv")
    outcome = command("check", data, "--model", tiny_folder, "--output", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    assert "\\x1b[31mred\\x1b[0m" in outcome.out and "\\u202eplain" in outcome.out
    wrong = command("check", data, "--model", "no\x1b[31mmodel", "--set", "\x9bx=1")
    for text in (outcome.out, outcome.err, wrong.out, wrong.err):
        assert not set(text) & set("\x1b\x07\x9b\u202e")
    content = command("check", data, "--model", tiny_folder, "--output", tmp_path / "o", "--json")
    assert red in content.json["rows"]["classes"] and not set(content.out) & set("\x1b\x07\x9b\u202e")
