"""`handful fit`: from labelled rows to a trained model with a score, in a run folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.arguments import RunArguments, Speedup, spread_arguments
from handful.cli.console import FitProgress, say, show, show_json
from handful.errors import ConfigError
from handful.runs.defaults import AUTO, check_auto

if TYPE_CHECKING:
    from handful.backbone.load import Backbone
    from handful.data.task import Task, TaskKind
    from handful.runs.spec import RunSpec
    from handful.runs.store import Run


@spread_arguments
def fit(
    arguments: RunArguments,
    output: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    budget: Annotated[
        float | None, typer.Option(min=1, help="Seconds for --method auto to choose in.", show_default="300")
    ] = None,
    speedup: Speedup = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            "--init-from",
            help="Run, inventory, or prompt or Poly saved by PEFT, to start from.",
            show_default="afresh",
        ),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            help="From an inventory: mu trains its average skill, z only a routing, full both.", show_default="mu"
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Train once more what has been trained already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as JSON.")] = False,
) -> None:
    """Train on labelled texts, score on rows that training never saw, save everything.

    Stopped by Ctrl-C or a power cut, the same command continues from the last checkpoint.
    """
    is_auto = arguments.is_auto()
    check_auto(is_auto, budget=budget, starts=start is not None)
    arguments.check_method()
    task = arguments.task()  # what is wrong with data is said before torch is imported, which takes seconds
    from handful.export.speedup import check_speedup, with_speedup
    from handful.methods.poly.method import Poly
    from handful.runs.experiment import run
    from handful.runs.inventory import inherited, with_inherited
    from handful.runs.start import names_of, read_start
    from handful.runs.store import check_writable

    if speedup is not None:
        check_speedup(AUTO if is_auto else None, speedup, arguments.given())
    started = read_start(start) if start else None
    common, names = inherited(started), names_of(started)
    if adapt is not None and not common:
        raise ConfigError("--adapt: says how to start from an inventory of many tasks", "give one: --init-from FOLDER")
    arguments.assignments += [f"method.adapt={adapt}"] if adapt else []
    check_writable(output)
    if common:
        specs = [with_inherited(arguments.spec(task.kind, Poly.name, common, names), common)]
    else:
        specs = auto_specs(arguments, task.kind) if is_auto else [arguments.spec(task.kind, otherwise=names)]
    spec, backbone = choose_method(task, specs, budget) if is_auto else (specs[0], None)
    if speedup is not None:
        spec, backbone = with_speedup(task, spec, speedup, on_message=say)
    tell_choices(task, spec)
    if backbone is None:
        say(f"loading model {spec.model} …")
    with FitProgress(spec.method.name) as progress:
        saved, trained = run(
            task, spec, output, backbone=backbone, start=started, on_event=progress, again=again,
            on_message=progress.say, on_written=progress.written,
        )  # fmt: skip
    trained.adapter.detach()
    if as_json:
        show_json({"folder": str(saved.folder), **saved.record})
    else:
        show_run(saved)
    tell_next(saved)


def auto_specs(arguments: RunArguments, kind: TaskKind | None) -> list[RunSpec]:
    """The runs among which `--method auto` chooses, the probe's first."""
    from handful.studies.auto import candidate_specs

    return candidate_specs(lambda name: arguments.spec(kind, name), kind)


def choose_method(task: Task, specs: list[RunSpec], budget: float | None) -> tuple[RunSpec, Backbone]:
    """The spec that resampling the training rows speaks for, and the loaded model."""
    from handful.runs.experiment import make_split, open_backbone
    from handful.studies.auto import BUDGET, choose

    make_split(task, specs[0])  # what is wrong with the rows is said before the model is loaded
    say(f"loading model {specs[0].model} …")
    backbone = open_backbone(specs[0], task.kind)
    return choose(task, specs, backbone=backbone, budget=budget or BUDGET, on_message=say).spec, backbone


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
