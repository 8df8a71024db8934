"""`handful evaluate`: a finished run scored on labelled rows that came later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli.arguments import Device, chosen_device
from handful.cli.console import FitProgress, say, show, show_json, show_table
from handful.data.coverage import coverage_sentences


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that 'handful fit' made.")],
    data: Annotated[Path, typer.Argument(help="Labelled rows that are new to the run: a file, as for 'fit'.")],
    text: Annotated[
        str | None, typer.Option(help="Column of the text.", show_default="as in training, or found")
    ] = None,
    text_pair: Annotated[
        str | None, typer.Option(help="Column of a pair's second text.", show_default="as in training, or found")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of the label.", show_default="as in training, or found")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the file.", show_default="utf-8")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Delimiter of the file's cells, e.g. ';'.", show_default="found")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of a multi-task run: the task.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the pretrained model is now.", show_default="where it was in training")
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a finished run on new labelled rows: every metric with its 95 % interval.

    A text counts once, and rows that the run was trained or selected on are left out.
    """
    from handful.cli.predict import open_model
    from handful.data.columns import Columns
    from handful.data.new_rows import labelled_rows
    from handful.evaluation.baseline import beside, rescored
    from handful.evaluation.evaluate import Scores
    from handful.runs.card import untested_sentences
    from handful.runs.inventory import member_record
    from handful.runs.members import recorded_task
    from handful.runs.store import read_run

    described = recorded_task(member_record(read_run(run), task))
    columns = {"text": text or "", "text_pair": text_pair, "label": label or "label"}
    options = {"encoding": encoding, "delimiter": delimiter}
    labelled_rows(
        data, described, wanted=Columns(**columns), **options
    )  # what is wrong is said before a model is loaded
    fitted = open_model(run, model, task, chosen_device(device))
    with FitProgress("evaluating") as progress:
        found = fitted.evaluate(data, columns=columns | options, on_written=progress.written)
    for note in found.notes:
        say(note)
    scores = {name: estimate.to_dict() for name, estimate in found.scores.estimates.items()}
    if found.scores.truncated:
        say(f"{found.scores.truncated:,} of {found.rows:,} texts were cut to {fitted.max_length} tokens")
    for sentence in coverage_sentences(found.scores.coverage):
        say(sentence)
    classes = found.scores if isinstance(found.scores, Scores) else None
    baseline = rescored(fitted.baseline, described, classes.targets) if classes else None
    untested = {"untested_classes": list(classes.untested) if classes else []}
    if as_json:
        record: dict[str, Any] = {"run": str(run), "rows": found.rows, "scores": scores, "notes": list(found.notes)}
        show_json(record | {"baseline": baseline and baseline.to_dict()} | untested)
        return
    metric = described.metric
    score = found.scores.estimates[metric]
    show(f"{metric} {score} on {found.rows:,} rows (95 % interval over rows){beside(metric, score, baseline)}")
    for sentence in untested_sentences(untested, len(described.labels), {metric}):
        show(sentence)
    others = [(name, str(estimate), estimate.method) for name, estimate in found.scores.estimates.items()]
    show_table(("metric", "score", "interval by"), [row for row in others if row[0] != metric])
