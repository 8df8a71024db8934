"""How the command line speaks: data on stdout; talk, and the progress of a fit, on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from handful.neutral import one_line, printable
from handful.training.events import Evaluated, Event, FitStarted, StepDone, Stopped

WIDTH_OF_FILES = 160
"""Columns of a table that is not shown on a terminal."""

_SMOOTHING = 0.9


def say(message: str = "") -> None:
    """A line of talk, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def show(text: str = "", end: str = "\n") -> None:
    """The result of a verb for people, on stdout; whatever stands in names and labels, a terminal obeys none of it."""
    print(printable(text), end=end)


def show_data(text: str) -> None:
    """The result of a verb for programs, on stdout: as it is, but on a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, end="")


def show_json(value: Any) -> None:
    """The result of a verb for programs; controls are written as JSON writes them, which is the same value."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def show_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The result of a verb for people; numbers stand on the right."""
    rows = [[format_cell(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        numeric = bool(rows) and all(row[index][:1].isdigit() or not row[index] for row in rows)
        table.add_column(Text(one_line(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(printable(cell)) for cell in row)
        )  # Text: what looks like markup in the user's data stays as it is
    Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, soft_wrap=False).print(table)
    sys.stdout.flush()  # in step with the talk on stderr, where both go into one file


def format_cell(value: object) -> str:
    """A value as people read it: numbers short, None empty."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@final
class FitProgress:
    """Shows the events of one fit after another: a bar with loss, dev score and time left, or without a terminal
    a line at every quarter.
    """

    def __init__(self, title: str = "training"):
        self.title = title
        self.on_terminal = sys.stderr.isatty()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[numbers]}"), TimeRemainingColumn()]
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.on_terminal)
        self.task = self.bar.add_task(title, total=None, visible=False, numbers="")
        self.steps, self.loss, self.score = 0, 0.0, ""
        self.quarter = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, FitStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Evaluated):
            self.score = f", dev {event.metric} {event.score:.3f}"
        elif isinstance(event, Stopped):
            self.say(f"{self.title}: stopped at step {event.step}: {event.reason}")

    def written(self, done: int, total: int) -> None:
        """So many of the texts to score are written."""
        self.bar.update(self.task, total=total, completed=done, description="writing", numbers="", visible=True)
        quarter = 4 * done // total
        if not self.on_terminal and quarter > self.quarter and done < total:
            self.say(f"writing: {done} of {total} texts")
        self.quarter = quarter

    def predicted(self, done: int) -> None:
        """So many texts are predicted, of a number that is not known."""
        self.bar.update(
            self.task, completed=done, description=f"{self.title}: {done:,} texts", numbers="", visible=True
        )

    def say(self, message: str) -> None:
        """A line of talk above the bar."""
        self.bar.console.print(Text(printable(message)), soft_wrap=True)

    def _start(self, event: FitStarted) -> None:
        self.steps, self.loss, self.score = event.steps, 0.0, ""
        if event.resumed_at:
            self.say(f"{self.title}: continuing from the checkpoint at step {event.resumed_at} of {event.steps}")
        self.bar.reset(
            self.task, total=event.steps, completed=event.resumed_at, description=self.title, visible=event.steps > 0
        )

    def _step(self, event: StepDone) -> None:
        self.loss = _SMOOTHING * self.loss + (1 - _SMOOTHING) * event.loss if self.loss else event.loss
        numbers = f"loss {self.loss:.3f}{self.score}"
        self.bar.update(self.task, completed=event.step, numbers=numbers)
        quarter = max(1, self.steps // 4)
        if not self.on_terminal and event.step % quarter == 0:
            self.say(f"{self.title}: step {event.step} of {self.steps}, {numbers}")
