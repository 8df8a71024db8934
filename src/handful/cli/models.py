"""`handful models`: the models that can be used offline, and how to name others."""

from __future__ import annotations

from typing import Annotated

import typer

from handful.cli.console import say, show_json, show_table


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that come in packages, which of them are installed, and how to name any other."""
    from handful.backbone.packaged import PACKAGED_MODELS

    records = [
        {
            "name": model.name,
            "kind": model.kind,
            "installed": not model.missing(),
            "install": model.install,
            "licence": model.licence,
            "note": model.note,
        }
        for model in PACKAGED_MODELS.values()
    ]
    if as_json:
        show_json(records)
        return
    rows = [(m["name"], m["kind"], "yes" if m["installed"] else m["install"], m["note"], m["licence"]) for m in records]
    show_table(("model", "kind", "installed", "what it is", "licence"), rows)
    say("\n--model also takes a folder saved by transformers, or a name on the Hugging Face Hub (OWNER/NAME)")
