"""`handful inventory`: the tasks of what `handful pretrain` made, listed, taken out, added, removed and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.arguments import Device, chosen_device
from handful.cli.console import say, show, show_json

inventory = typer.Typer(no_args_is_help=True, help="List, take out, add, remove or rename the tasks of an inventory.")

Folder = Annotated[Path, typer.Argument(metavar="INVENTORY", help="The folder that 'handful pretrain' made.")]
Name = Annotated[str, typer.Argument(metavar="TASK", help="The name of a task.")]
Output = Annotated[Path, typer.Option(help="The folder to write; the inventory itself is never changed.")]


@inventory.command("list")
def list_tasks(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The tasks, their labels and their scores."""
    from handful.evaluation.estimate import Estimate
    from handful.runs.inventory import task_names
    from handful.runs.store import read_run

    saved = read_run(folder)
    task_names(saved)
    scores = saved.record.get("members", {})
    if as_json:
        show_json([member | {"scores": scores.get(member["name"], {})} for member in saved.record["task"]["members"]])
        return
    for member in saved.record["task"]["members"]:
        found = scores.get(member["name"], {}).get(member["metric"])
        labels = ", ".join(member["labels"][:6]) + (" …" if len(member["labels"]) > 6 else "")
        show(f"{member['name']}\t{Estimate.from_dict(found) if found else 'not scored'}\t{labels or member['kind']}")


@inventory.command()
def take(folder: Folder, task: Name, output: Output, device: Device = "auto") -> None:
    """One task as a run of its own: for predict, for export as an ordinary LoRA, or to start from."""
    from handful.export.folder import refuse_existing
    from handful.runs.card import run_card
    from handful.runs.inventory import take_task
    from handful.runs.store import read_run, write_run

    refuse_existing(output, False)
    saved = read_run(folder)
    record, taken = take_task(saved, task, device=chosen_device(device))
    write_run(output, record, taken.adapter.state_dict(), seen=saved.seen() or (), card=run_card(record))
    say(f"{task} of {folder} is now a run of its own: {output}")


@inventory.command()
def add(
    folder: Folder,
    run: Annotated[Path, typer.Argument(help="A run that started from it with --adapt z.")],
    output: Output,
) -> None:
    """Another task, by its routing and its head; the scores of all others stay as they are, to the bit."""
    from handful.runs.inventory import add_task, task_names
    from handful.runs.store import read_run

    made = add_task(read_run(folder), read_run(run), output)
    say(f"{output}: {len(task_names(made))} tasks")


@inventory.command()
def remove(folder: Folder, task: Name, output: Output) -> None:
    """All but one task."""
    from handful.runs.inventory import remove_task, task_names
    from handful.runs.store import read_run

    made = remove_task(read_run(folder), task, output)
    say(f"{output}: {len(task_names(made))} tasks")


@inventory.command()
def rename(folder: Folder, task: Name, new: Annotated[str, typer.Argument(metavar="NEW")], output: Output) -> None:
    """The same under another name of a task."""
    from handful.runs.inventory import rename_task
    from handful.runs.store import read_run

    rename_task(read_run(folder), task, new, output)
    say(f"{output}: {task} is called {new}")
