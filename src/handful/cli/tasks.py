"""`handful tasks`: the labelled texts that can be used offline, and how to name others."""

from __future__ import annotations

from typing import Annotated

import typer

from handful.cli.console import say, show_json, show_table


def tasks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the labelled texts that come in packages, which of them are installed, and how to name your own."""
    from handful.data.packaged import PACKAGED_TASKS

    records = [
        {
            "name": task.name,
            "installed": task.source() is not None,
            "install": task.install,
            "licence": task.licence,
            "note": task.note,
        }
        for task in PACKAGED_TASKS.values()
    ]
    if as_json:
        show_json(records)
        return
    rows = [(t["name"], "yes" if t["installed"] else t["install"], t["note"], t["licence"]) for t in records]
    show_table(("task", "installed", "what it is", "licence"), rows)
    say("\nyour own: a CSV, TSV or JSONL file; a folder with task.json; or hub:OWNER/NAME (needs 'handful[hub]')")
