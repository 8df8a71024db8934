"""`handful pretrain`: many tasks at once, to an inventory from which the next task starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.arguments import Device, RunArguments
from handful.cli.console import FitProgress, say, show_json, show_table
from handful.cli.fit import record_warnings, show_run
from handful.errors import ConfigError, DataError, HandfulError
from handful.runs.defaults import MODEL, TEST_FRACTION
from handful.storage import exists

if TYPE_CHECKING:
    from handful.data.task import Task
    from handful.runs.spec import RunSpec

METHOD, PRESET = "poly", "pretrain"


def pretrain(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="Two or more of: a file of rows, a task folder, a packaged task, or hub:OWNER/NAME; "
            "NAME=TASK calls it otherwise.",
        ),
    ],
    model: Annotated[str, typer.Option(help="A name of 'handful models', a folder, or OWNER/NAME.")] = MODEL,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Most labelled rows of a task.", show_default="every row")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides rows, start, order and draws.", show_default="0")
    ] = None,
    preset: Annotated[str, typer.Option(help=f"A preset of the method {METHOD}.")] = PRESET,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as method.mixing=uniform. Repeatable."),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Share of rows set apart as test rows, from 0 to 0.9, where a task has none.")
    ] = TEST_FRACTION,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the files of text.", show_default="utf-8")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Delimiter of the CSV, TSV and text files.", show_default="found")
    ] = None,
    name: Annotated[str, typer.Option(help="What the tasks together are called.")] = "inventory",
    output: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Train once more what has been trained already.")] = False,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as JSON.")] = False,
) -> None:
    """Train an inventory of skills on many tasks at once; a new task then starts from it with a handful of rows.

    Stopped by Ctrl-C or a power cut, the same command continues from the last checkpoint.
    """
    from handful.data.mixture import mix_tasks
    from handful.runs.experiment import run
    from handful.runs.preflight import preflight

    arguments = RunArguments(
        data="", model=model, method=METHOD, preset=preset, seed=None if seed is None else str(seed),
        assignments=assignments or [], shots=None if rows is None else str(rows), test_fraction=test_fraction,
        device=device,
    )  # fmt: skip
    request, reading = arguments.request(output), {"encoding": encoding, "delimiter": delimiter}
    plan = replace(request, opens=lambda share: mix_tasks(name, open_tasks(tasks, share, reading))).plan()
    task, spec = plan.task, plan.specs[0]
    tell_tasks(task, spec)
    preflight(task, spec)
    say(f"loading model {spec.model} …")
    with FitProgress(METHOD) as progress:
        saved, trained = run(task, spec, output, on_event=progress, again=again, on_message=progress.say)
    trained.adapter.detach()
    if as_json:
        show_json({"folder": str(saved.folder), **saved.record})
    else:
        show_run(saved)
        show_members(saved.record)
    for line in (*record_warnings(saved.record), *saved.record["notes"]):
        say(f"  {line}")
    say("next:")
    say(f"  handful fit new.csv --init-from {saved.folder}")
    say(f"  handful inventory list {saved.folder}")


def open_tasks(names: list[str], test_fraction: float, reading: Mapping[str, str | None]) -> list[Task]:
    """The tasks with their test rows; `reading` is the encoding of files of text and the delimiter of delimited ones.

    Raises: DataError with all that cannot be opened, ConfigError for an encoding or delimiter of no file.
    """
    from handful.data.holdout import with_held_out_test
    from handful.data.open import open_task
    from handful.data.tables import takes_delimiter, takes_encoding

    takes = {"encoding": takes_encoding, "delimiter": takes_delimiter}
    wanted = {option: value for option, value in reading.items() if value is not None}
    tasks, problems, unused = [], [], dict(wanted)
    for given in names:
        called, equals, path = given.partition("=")
        if not equals or "/" in called or exists(given):
            called, path = "", given
        try:
            options = {option: value for option, value in wanted.items() if takes[option](path)}
            unused = {option: value for option, value in unused.items() if option not in options}
            task = open_task(path, **options)
            if task.test is None and test_fraction:
                task = with_held_out_test(task, test_fraction)
            tasks.append(replace(task, name=called or task.name))
        except HandfulError as error:
            problems.append(f"{error.message}; {error.hint}" if error.hint else error.message)
    for option, value in unused.items():
        what = "text" if option == "encoding" else "delimited text"
        raise ConfigError(f"--{option}: none of the tasks is a file of {what}, found {value!r}", "leave it out")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(names)} tasks cannot be opened:\n  " + "\n  ".join(problems),
            "correct or leave out those; the others are as they should be",
        )
    return tasks


def tell_tasks(task: Task, spec: RunSpec) -> None:
    """The tasks, and every value that was chosen for the user."""
    import torch

    from handful.backbone.device import describe_device

    say(f"device {describe_device(torch.device(spec.device))}")
    for member in task.members:
        rows = f"{len(member.pool):,} labelled rows, {len(member.test or ()):,} test rows"
        say(f"task {member.name}: {member.kind}, {rows}")
    for note in task.notes:
        say(f"  {note}")
    say(f"method {spec.method.name}: {spec.method.summary}")
    chosen = ", ".join(f"{choice.name} = {choice.value}" for choice in spec.choices)
    say(f"  {chosen}  (preset {spec.preset!r})")
    if spec.options.shots is None:
        say("  run.shots = every row  (none were asked for; --rows N takes at most so many of a task)")
    say(f"  everything else as in `handful methods {spec.method.name}`")


def show_members(record: dict[str, Any]) -> None:
    """The score of every task by its own metric, on stdout."""
    from handful.evaluation.estimate import Estimate

    rows = []
    for member in record["task"]["members"]:
        found = record.get("members", {}).get(member["name"], {}).get(member["metric"])
        score = (str(Estimate.from_dict(found)), found["n"]) if found else ("not scored", 0)
        rows.append((member["name"], member["metric"], *score))
    show_table(("task", "metric", "score", "test rows"), rows)
