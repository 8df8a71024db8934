"""A report as Markdown, as JSON values and as CSV files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handful.errors import RunError
from handful.reports.report import Report
from handful.reports.table import Table
from handful.runs.card import escape
from handful.storage import write_file

LONGEST_LINE = 2000


def to_markdown(report: Report) -> str:
    """Words and tables; figures are left to the page."""
    parts = [f"# {_line(report.title)}", *map(_line, report.headline)]
    if report.reservations:
        parts.append("\n".join(["Before you trust this:", "", *(f"- {_line(line)}" for line in report.reservations)]))
    parts.append("\n".join(f"- {name}: {_line(fact)}" for name, fact in report.facts))
    for section in report.sections:
        if section.tables:
            parts += [f"## {section.title}", *map(_line, section.text)]
        for table in section.tables:
            parts += [f"### {_line(table.title)}", *([_line(table.note)] if table.note else []), table.markdown()]
    return "\n\n".join(parts) + "\n"


def _line(text: str) -> str:
    return escape(text, LONGEST_LINE)


def to_json(report: Report) -> dict[str, Any]:
    """The report for programs: words and tables."""
    return {
        "title": report.title,
        "headline": list(report.headline),
        "reservations": list(report.reservations),
        "facts": dict(report.facts),
        "tables": {table.name: table.records() for table in report.tables},
    }


def write_csv_files(report: Report, folder: Path) -> list[Path]:
    """The numbers of every figure and table, a file each. Raises: RunError where they cannot be written."""
    tables: Iterable[Table] = [*(figure.numbers for figure in report.figures), *report.tables]
    contents = {folder / f"{table.name}.csv": table.csv() for table in tables}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in contents.items():
            write_file(path, text)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})", "give another --csv") from None
    return list(contents)
