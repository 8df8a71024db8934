"""The rows that a run has seen, and what a run that starts from it must not be tested on."""

from __future__ import annotations

from dataclasses import replace

from handful.data.overlap import TOLERATED_SHARE, refuse_another_task, refuse_seen
from handful.data.seen import SeenRows
from handful.data.split import Split
from handful.data.task import overlap_keys, text_key
from handful.runs.from_peft import PeftPoly
from handful.runs.start import Start
from handful.runs.store import Run


def start_notes(start: Start, split: Split) -> tuple[str, ...]:
    """What is to be said about the rows of the run to start from.

    Raises: DataError where it has seen the test rows, or as a run on another task the rows of this one.
    """
    seen, name = start.seen(), start.folder.name
    if seen is None:
        notes = (f"the run it started from, {name}, has kept no digests of its rows: it may have seen the test rows",)
        base = start.config.get("base_model_name_or_path") if isinstance(start, PeftPoly) else None
        return (*notes, f"PEFT made {name} for the model {base}: only sizes were compared") if base else notes
    for member in split.task.members:
        refuse_seen(name, seen, member)
    if isinstance(start, Run) and split.task.name not in _tasks(start):
        refuse_another_task(name, seen, split.task)
        return ()
    own = {text_key(row) for row in (*split.train, *split.dev)}
    others = tuple(row for row in split.task.pool if text_key(row) not in own)
    found = refuse_seen(name, seen, replace(split.task, pool=others, dev=None))
    if found.pool <= TOLERATED_SHARE * found.pool_rows:
        return ()
    return (f"not only its own shots: the run it started from, {name}, has seen {found.pool:,} more rows of the pool",)


def _tasks(start: Run) -> set[str]:
    """The names of what a run was trained on: its task, and of a task of tasks the members."""
    task = start.record["task"]
    return {task["name"], *(member["name"] for member in task.get("members", ()))}


def seen_rows(split: Split, start: Start | None) -> SeenRows:
    """`overlap_keys` of the rows that a run is trained and selected on, and of those before it."""
    own = frozenset(key for row in (*split.train, *split.dev) for key in overlap_keys(row))
    return SeenRows(own) | ((start.seen() or ()) if start else ())
