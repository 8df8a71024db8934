"""`handful check`: everything that can be wrong, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.arguments import RunArguments, spread_arguments
from handful.cli.console import say, show, show_json
from handful.cli.fit import tell_choices
from handful.errors import ConfigError, HandfulError

if TYPE_CHECKING:
    from handful.data.task import Task
    from handful.request import Plan
    from handful.runs.preflight import Preflight
    from handful.runs.spec import RunSpec


@spread_arguments
def check(
    arguments: RunArguments,
    output: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check data, settings, model name, output folder and export, and say what 'fit' would do. Trains nothing."""
    record: dict[str, Any] = {}
    try:
        plan, problems = arguments.request(output).examine()
        if plan:
            record = describe_plan(plan)
            if not as_json:
                tell_choices(plan.task, plan.specs[0])
                show_check(record)
    except HandfulError as error:  # a file of settings that cannot be read, or a model
        problems = [error]
    tell_problems(problems, record, as_json)
    tell_outcome(record)


def tell_problems(problems: Sequence[HandfulError], record: dict[str, Any], as_json: bool) -> None:
    """What is wrong, and the record where JSON is wanted. Raises: typer.Exit where there is a problem."""
    if as_json:
        errors = [{"message": problem.message, "hint": problem.hint} for problem in problems]
        show_json({"ok": not problems, "problems": errors, **record})
    for problem in problems:
        say(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""))
    if problems:
        raise typer.Exit(2 if all(isinstance(problem, ConfigError) for problem in problems) else 1)


def tell_outcome(record: dict[str, Any]) -> None:
    """That the run can be trained, and what lessens it."""
    from handful.runs.reading import cut_sentences, unknown_sentences

    rows = record["rows"]
    worries = [name for name, found in (
        ("texts are cut", cut_sentences(rows)), ("the model does not know all texts", unknown_sentences(rows)),
        ("nothing is tested", not rows["test"]), ("classes are not tested", rows["untested_classes"]),
    ) if found]  # fmt: skip
    if worries:
        say(f"`handful fit` with the same options trains it, but see above: {', '.join(worries)}")
    else:
        say("nothing is wrong; `handful fit` with the same options trains it")


def describe_plan(plan: Plan) -> dict[str, Any]:
    """What is planned, as JSON values. Raises: HandfulError for what the model's configuration is not fit for."""
    from handful.runs.preflight import preflight

    task, spec = plan.task, plan.specs[0]
    record = describe(task, spec, preflight(task, spec))
    return record | ({"auto": describe_auto(task, plan.specs)} if plan.is_auto else {})


def describe(task: Task, spec: RunSpec, found: Preflight) -> dict[str, Any]:
    """The run as JSON values."""
    from handful.evaluation.evaluate import untested_classes
    from handful.export.plan import FORMATS, best_format, check_export

    skeleton, split = found.skeleton, found.split
    pooling = str(skeleton.pooling)
    plans = {name: check_export(spec.method, skeleton, pooling, task, format=name) for name in FORMATS}
    return {
        "task": {
            "name": task.name, "kind": task.kind, "metric": task.metric, "origin": task.origin,
            "notes": list(task.notes),
        },
        "rows": {
            "train": len(split.train), "dev": len(split.dev), "test": len(split.test or ()),
            "classes": found.classes, "truncated": found.truncated, "max_length": found.max_length,
            "longest": found.longest, "truncated_references": found.truncated_references,
            "target_length": found.target_length,
            "dropped_duplicates": split.dropped_duplicates, "dropped_overlap": split.dropped_overlap,
            "dropped_contradictions": split.dropped_contradictions, "most_tokens": found.most_tokens,
            "coverage": {part: asdict(counts) for part, counts in found.coverage.items()},
            "untested_classes": list(untested_classes(task)),
        },
        "model": {
            "name": spec.model, "family": skeleton.family, "kind": skeleton.kind, "pooling": skeleton.pooling,
            "layers": skeleton.num_layers, "hidden_size": skeleton.hidden_size,
        },
        "device": spec.device,
        "spec": spec.resolved(),
        "baseline": None if task.members or not task.objective.has_classes else describe_largest(found.classes),
        "notes": [*found.notes, *_writing_notes(task, spec)],
        "steps": found.steps,
        "parameters": found.parameters,
        "export": {name: {"possible": plan.possible, "summary": plan.summary} for name, plan in plans.items()},
        "export_format": best_format(spec.method, skeleton, pooling, task),
    }  # fmt: skip


def describe_largest(classes: Mapping[str, int]) -> dict[str, Any]:
    """The answer that a model has to beat, by the counts of the training rows; `fit` scores it on the test rows."""
    from handful.evaluation.baseline import Baseline

    label = max(classes, key=lambda label: classes[label])
    share, ties = classes[label] / sum(classes.values()), sum(count == classes[label] for count in classes.values())
    says = f"{Baseline(label, {}, ties).describe()}, is right in {share:.1%} of the training rows"
    return {"answer": label, "ties": ties, "share": share, "says": says}


def _writing_notes(task: Task, spec: RunSpec) -> list[str]:
    """What a simplex cannot be asked for where texts are generated."""
    if not task.objective.generates or getattr(spec.method, "num_vertices", 1) == 1:
        return []
    return [
        "texts are generated at the midpoint (or --predictor vertex:N), and so is the model judged in training: "
        "stochastic validation, the predictors 'ensemble' and 'draw', and disagreement are for labels and numbers alone"
    ]


def describe_auto(task: Task, specs: Sequence[RunSpec]) -> dict[str, Any]:
    """What `--method auto` would choose among: folds, and every candidate with what keeps it from being tried."""
    from handful.runs.preflight import preflight
    from handful.studies.auto import count_folds

    candidates: dict[str, str | None] = {}
    for spec in specs:
        try:
            preflight(task, spec)
            candidates[spec.method.name] = None
        except HandfulError as error:
            candidates[spec.method.name] = error.message
    return {"candidates": candidates, "folds": count_folds(task, specs[0])}


def show_check(record: dict[str, Any]) -> None:
    """The run for people."""
    from handful.runs.card import cut_references, described_model, untested_sentences
    from handful.runs.reading import cut_sentences, dropped_sentences, unknown_sentences

    if auto := record.get("auto"):
        able = [name for name, problem in auto["candidates"].items() if problem is None]
        show(f"auto      {' or '.join(able)}, by at most {auto['folds']} folds of the training rows; ", end="")
        show(f"below is {able[0]}, which is kept unless another is better on this task")
        for name, problem in auto["candidates"].items():
            if problem:
                show(f"auto      {name} cannot be tried: {problem}")
    rows, model = record["rows"], record["model"]
    show(f"rows      {rows['train']:,} to train, {rows['dev']:,} to select, {rows['test']:,} to test")
    if rows["classes"]:
        show(f"classes   {', '.join(f'{label}: {count:,}' for label, count in rows['classes'].items())}")
        if baseline := record["baseline"]:
            show(f"baseline  {baseline['says']}")
        for sentence in untested_sentences(rows, len(rows["classes"]), {record["task"]["metric"]}):
            show(f"test      {sentence}")
    for sentence in dropped_sentences(rows):
        show(f"rows      {sentence}")
    show(f"texts     the longest has {rows['longest']:,} tokens; the run keeps {rows['max_length']:,} of each")
    for sentence in (*cut_sentences(rows), *unknown_sentences(rows)):
        show(f"texts     {sentence}")
    for sentence in cut_references(rows):
        show(f"texts     {sentence}")
    show(f"model     {model['name']}: {described_model(model)}, {model['layers']} layers")
    for note in record["notes"]:
        show(f"method    {note}")
    trained = "known once the model is loaded" if record["parameters"] is None else f"{record['parameters']:,}"
    show(f"training  {record['steps']:,} steps, trained parameters: {trained}")
    for name, plan in record["export"].items():
        chosen = "  (what `handful export` writes unless it is told otherwise)" * (name == record["export_format"])
        show(f"export    {name}: {plan['summary'] if plan['possible'] else 'not possible: ' + plan['summary']}{chosen}")
