"""A table of a report, and the same table for a page, as CSV, as Markdown and as plain records."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from handful.evaluation.estimate import Estimate
from handful.neutral import cell
from handful.runs.card import escape

TINY = 1e-4
"""What is smaller is not shown in digits."""

Value = str | int | float | Estimate | None


@final
@dataclass(frozen=True)
class Table:
    """Rows of texts, numbers and estimates under a header.

    `name` is that of its CSV file. `details` has a second line for some columns (a metric, a unit). `best` holds the
    (row, column) of values that stand out.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    details: tuple[str, ...] = ()
    best: frozenset[tuple[int, int]] = frozenset()

    def detail(self, column: int) -> str:
        """The second line of a column's header."""
        return self.details[column] if self.details else ""

    def header(self, column: int) -> str:
        """The header of a column on one line."""
        return f"{self.columns[column]} {self.detail(column)}".strip()

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers alone, which stand on the right."""
        return all(not isinstance(row[column], str) for row in self.rows)

    def has_scores(self, column: int) -> bool:
        """Whether a column holds estimates, beside which a plain number has as many decimals."""
        return any(isinstance(row[column], Estimate) for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One mapping a row, of plain JSON values."""
        names = [self.header(column) for column in range(len(self.columns))]
        return [{name: plain(value) for name, value in zip(names, row, strict=True)} for row in self.rows]

    def csv(self) -> str:
        """The rows with every digit; an estimate takes four columns: its mean, low, high and n.

        A text that a spreadsheet would take for a formula gets an apostrophe in front.
        """
        spread = [self.has_scores(column) for column in range(len(self.columns))]
        names = [self.header(column) for column in range(len(self.columns))]
        parts = [("", " low", " high", " n") if wide else ("",) for wide in spread]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([cell(name + part) for name, some in zip(names, parts, strict=True) for part in some])
        for row in self.rows:
            writer.writerow([cell(v) for value, wide in zip(row, spread, strict=True) for v in _cells(value, wide)])
        return text.getvalue()

    def markdown(self) -> str:
        """The table in GitHub's Markdown; texts of the data are escaped."""
        numeric = [self.is_numeric(column) for column in range(len(self.columns))]
        lines = [[escape(self.header(column)) for column in range(len(self.columns))]]
        lines.append(["---:" if number else "---" for number in numeric])
        for at, row in enumerate(self.rows):
            texts = [
                escape(value) if isinstance(value, str) else shown(value, self.has_scores(column))
                for column, value in enumerate(row)
            ]
            lines.append([f"**{text}**" if (at, i) in self.best else text for i, text in enumerate(texts)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(value: Value) -> Any:
    """A value as JSON has it."""
    return value.to_dict() if isinstance(value, Estimate) else value


def shown(value: Value, is_score: bool = False) -> str:
    """A value as people read it on one line."""
    interval = f" {shown_interval(value)}" if isinstance(value, Estimate) else ""
    return shown_number(value, is_score) + interval


def shown_number(value: Value, is_score: bool = False) -> str:
    """A value without its interval; None is empty, and a score has three decimals."""
    if value is None:
        return ""
    if isinstance(value, Estimate):
        return f"{value.mean:z.3f}"
    if isinstance(value, float) and is_score:
        return f"{value:z.3f}"
    if isinstance(value, float) and 0 < value < TINY:
        return f"< {TINY:g}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def shown_interval(estimate: Estimate) -> str:
    """The interval in brackets, or why there is none."""
    return f"[{estimate.low:z.3f}, {estimate.high:z.3f}]" if estimate.low is not None else f"[{estimate.method}]"


def sort_key(value: Value) -> str:
    """What the page sorts a cell by: a number with every digit, or the text in lower case."""
    if isinstance(value, Estimate):
        return repr(value.mean)
    return "" if value is None else str(value).lower()


def numbers_table(name: str, title: str, rows: Sequence[Mapping[str, Value]]) -> Table:
    """A table of records that all have the same keys, such as the numbers behind a figure."""
    columns = tuple(rows[0]) if rows else ()
    return Table(name, title, columns, tuple(tuple(row.values()) for row in rows))


def _cells(value: Value, wide: bool) -> tuple[Any, ...]:
    if isinstance(value, Estimate):
        return (value.mean, value.low, value.high, value.n)
    return (value, None, None, None) if wide else (value,)
