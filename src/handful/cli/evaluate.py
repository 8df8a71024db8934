"""`handful evaluate`: a finished run scored on labelled rows that came later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli.arguments import Device, chosen_device
from handful.cli.console import FitProgress, say, show, show_json, show_table
from handful.cli.new_rows import (
    ColumnOptions,
    Delimiter,
    Encoding,
    Label,
    Member,
    Pretrained,
    RunFolder,
    Text,
    TextPair,
    open_model,
)
from handful.data.coverage import coverage_sentences


def evaluate(
    run: RunFolder,
    data: Annotated[Path, typer.Argument(help="Labelled rows that are new to the run: a file, as for 'fit'.")],
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    task: Member = None,
    model: Pretrained = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a finished run on new labelled rows: every metric with its 95 % interval.

    A text counts once, and rows that the run was trained or selected on are left out.
    """
    from handful.data.columns import Columns
    from handful.data.new_rows import labelled_rows
    from handful.evaluation.baseline import beside, rescored
    from handful.evaluation.evaluate import Scores
    from handful.runs.card import untested_sentences
    from handful.runs.inventory import member_record
    from handful.runs.members import recorded_task
    from handful.runs.store import read_run

    described = recorded_task(member_record(read_run(run), task))
    asked = ColumnOptions(text, text_pair, encoding, delimiter, label)
    columns = {"text": asked.text or "", "text_pair": asked.text_pair, "label": asked.label or "label"}
    options = {"encoding": asked.encoding, "delimiter": asked.delimiter}
    # what is wrong is said before a model is loaded
    labelled_rows(data, described, wanted=Columns(**columns), **options)
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
