"""`handful fit`: from labelled rows to a trained model with a score, in a run folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.arguments import RunArguments, spread_arguments
from handful.cli.console import FitProgress, say, show, show_json
from handful.runs.defaults import AUTO

if TYPE_CHECKING:
    from handful.data.task import Task
    from handful.runs.spec import RunSpec
    from handful.runs.store import Run


@spread_arguments
def fit(
    arguments: RunArguments,
    output: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Train once more what has been trained already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as JSON.")] = False,
) -> None:
    """Train on labelled texts, score on rows that training never saw, save everything.

    Stopped by Ctrl-C or a power cut, the same command continues from the last checkpoint.
    """
    plan = arguments.request(output).plan()
    from handful.runs.experiment import run

    task = plan.task
    spec, backbone = plan.decide(say)
    tell_choices(task, spec)
    if backbone is None:
        say(f"loading model {spec.model} …")
    with FitProgress(spec.method.name) as progress:
        saved, trained = run(
            task, spec, output, backbone=backbone, start=plan.start, on_event=progress, again=again,
            on_message=progress.say, on_written=progress.written,
        )  # fmt: skip
    trained.adapter.detach()
    if as_json:
        show_json({"folder": str(saved.folder), **saved.record})
    else:
        show_run(saved)
    tell_next(saved)


def tell_choices(task: Task, spec: RunSpec) -> None:
    """Every value that was chosen for the user, with its reason."""
    import torch

    from handful.backbone.device import describe_device

    say(f"device {describe_device(torch.device(spec.device))}")
    say(f"task {task.name}: {task.kind}, {len(task.pool):,} labelled rows, {len(task.test or ()):,} test rows")
    for note in task.notes:
        say(f"  {note}")
    say(f"method {spec.method.name}: {spec.method.summary}")
    reasons: dict[str, list[str]] = {}
    for choice in (c for c in spec.choices if not c.name.startswith(AUTO)):  # what was weighed has been told
        reasons.setdefault(choice.reason, []).append(f"{choice.name} = {choice.value}")
    for reason, values in reasons.items():
        say(f"  {', '.join(values)}  ({reason})")
    if written := spec.generation:
        say(
            f"  generation.beams = {written.beams}, generation.max_new_tokens = {written.max_new_tokens}, "
            f"generation.target_length = {written.target_length}, generation.references = {written.references}  "
            "(the defaults of writing, unless you set them)"
        )
        if spec.options.dev != "none":
            say("  development rows are judged by the NLL of a reference's tokens  (writing them would take too long)")
    if spec.options.shots is None:
        say("  run.shots = every row  (none were asked for; --shots K takes a stratified part)")
    if spec.options.pooling == "auto" and not task.objective.generates:
        say("  run.pooling = mean over tokens, for decoders the last token  (no pooling was asked for)")
    say(f"  everything else as in `handful methods {spec.method.name}`")


def show_run(saved: Run) -> None:
    """The score and what it cost, on stdout."""
    from handful.evaluation.estimate import Estimate
    from handful.runs.card import headline, left_out, untested_sentences

    record = saved.record
    fitted, rows = record["fit"], record["rows"]
    show(headline(record))
    for sentence in untested_sentences(rows, len(record["task"]["labels"]), {record["task"]["metric"]}):
        show(sentence)
    for name, signature in record.get("signatures", {}).items():  # of texts: a metric is nothing without its variant
        show(f"  {name} {Estimate.from_dict(record['scores'][name])}  {signature}")
    show(f"trained {fitted['parameters']:,} of {record['backbone']['parameters']:,} parameters", end=" ")
    show(f"on {rows['train']:,} rows in {fitted['steps']:,} steps, {fitted['seconds']:.1f} s")
    if sentence := left_out(record):
        show(sentence)
    show(f"run {saved.folder}")


def tell_next(saved: Run) -> None:
    """What there is to know about a run, and what can be done with it."""
    from handful.export.plan import INSTALL_ONNX, recorded_format

    for line in (*record_warnings(saved.record), *saved.record["notes"]):
        say(f"  {line}")
    say("next:")
    say(f"  handful predict {saved.folder} --input new.csv")
    format, what = recorded_format(saved.record)
    if format is None:
        say(f"  this run cannot be exported: {what}")
        return
    named = "" if format == "peft" else f" --format {format}"
    lacking = format == "onnx" and find_spec("onnx") is None
    say(f"  handful export {saved.folder} --output out{named}{f'  (after {INSTALL_ONNX})' if lacking else ''}")


def record_warnings(record: dict[str, Any]) -> list[str]:
    """What lessens a run: cut texts, dropped rows, an early stop."""
    from handful.runs.card import cut_references
    from handful.runs.reading import cut_sentences, dropped_sentences, unknown_sentences

    rows = record["rows"]
    lines = [*cut_sentences(rows), *unknown_sentences(rows), *cut_references(rows), *dropped_sentences(rows)]
    if record["fit"]["stopped"]:
        lines.append(f"training ended early: {record['fit']['stopped']}")
    return lines
