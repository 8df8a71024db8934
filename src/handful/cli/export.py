"""`handful export`: a trained run as a folder that stock libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.arguments import Device, chosen_device
from handful.cli.console import say, show, show_json


def export(
    run: Annotated[Path, typer.Argument(help="The folder that 'handful fit' made.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            show_default="what the method is best exported as",
            help="peft: an adapter for stock PEFT; dense: a whole model for stock transformers; "
            "sentence-transformers: the bare model with its head as modules; compact: of gates or pruning, each layer "
            "as small as it can be, for handful's loader; onnx: one file with the head inside.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of an inventory of many tasks: this one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older export of that name.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the pretrained model is now.", show_default="where it was in training")
    ] = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a folder that other libraries load, load it there in a new process, and compare the scores.

    What is written is computed and checked on the CPU, whatever the device: the folder is the same.
    """
    from dataclasses import asdict

    from handful.cli.new_rows import open_model
    from handful.errors import ConfigError, nearest
    from handful.export.folder import refuse_existing
    from handful.export.plan import FORMATS, recorded_format
    from handful.runs.inventory import member_record
    from handful.runs.members import recorded_task
    from handful.runs.store import read_run

    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown export format {format!r}", nearest(format, FORMATS))
    refuse_existing(output, overwrite)
    found = read_run(run)
    wanted = recorded_task(dict(member_record(found, task)))
    if format is None:
        format, what = recorded_format(found.record, wanted)
        if format is None:
            raise ConfigError(f"{run}: it cannot be exported: {what}")
        say(f"--format {format}  (none was named)")
    fitted = open_model(run, model, task, chosen_device(device))
    say(f"writing and checking {output} …")
    report = fitted.export(output, format, overwrite=overwrite)
    if as_json:
        size = asdict(report.size) if report.size else None
        if size and report.size:
            size["speed"]["ratio"] = report.size.speed.ratio
        show_json(
            {
                "folder": str(report.folder), "form": report.plan.form, "summary": report.plan.summary,
                "score": fitted.headline, "difference": report.difference, "verification": report.verification,
                "notes": list(report.notes), "size": size,
            }
        )  # fmt: skip
        return
    show(f"{report.folder}: {report.plan.summary}")
    show(f"the run's score: {fitted.headline}")
    show(report.verification)
    for sentence in report.notes:
        show(sentence)
    for sentence in report.size.sentences() if report.size else ():
        show(sentence)
    say(f"how to load it: {report.folder / 'README.md'}")
