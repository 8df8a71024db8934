"""`handful report`: finished runs as one page, or as Markdown, JSON or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from handful.cli.console import say, show, show_data, show_json
from handful.errors import RunError

if TYPE_CHECKING:
    from handful.reports.report import Report

Format = Literal["markdown", "json", "csv"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders with runs: those of a study, or of 'handful fit'.")],
    html: Annotated[Path | None, typer.Option(help="The page to write, one file.", metavar="FILE")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Folder for the numbers of every figure and table.", metavar="FOLDER")
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Print the report; csv: one line a run.", show_default="markdown, if no file"),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.", show_default="the study's name")] = "",
) -> None:
    """Show finished runs: scores with intervals, methods compared in pairs, curves, calibration, cost.

    The page needs no network, and reads well on a phone and in the dark.
    """
    from handful.reports.report import read_report
    from handful.reports.text import to_json, to_markdown, write_csv_files

    found = read_report(runs, title=title)
    if html is not None:
        _write_page(html, found)
    if csv is not None:
        say(f"{len(write_csv_files(found, csv))} CSV files written to {csv}")
    form = form or ("markdown" if html is None and csv is None else None)
    if form == "markdown":
        show(to_markdown(found), end="")
    elif form == "json":
        show_json(to_json(found))
    elif form == "csv":
        show_data(found.table("runs").csv())
    for line in found.reservations:
        say(line)
    for folder, problem in found.skipped:
        say(f"left out: {problem if folder in problem else f'{folder}: {problem}'}")


def _write_page(path: Path, found: Report) -> None:
    from handful.reports.html import render_page
    from handful.storage import write_file

    page = render_page(found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, page)
    except OSError as error:
        raise RunError(f"--html {path}: cannot be written ({error.strerror})", "give another file") from None
    say(f"page written to {path} ({path.stat().st_size / 1e6:.1f} MB)")
