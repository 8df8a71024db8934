"""Set rows of a file apart for the final score, where it brings no test file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from operator import itemgetter

from handful.data.distinct import contradiction_notes, once
from handful.data.task import Example, Task, TestRows, overlap_keys, text_key
from handful.errors import ConfigError

KEPT = 2
"""Rows of a label that stay with the labelled rows where a row has several: one to train and one to select on."""


def with_held_out_test(task: Task, fraction: float) -> Task:
    """The task with a share of every class (or of the whole, for regression) moved from its pool to its test rows.

    Of rows that have several labels each, two of every label stay in the pool.

    Which rows is decided by a digest of their text alone: the same rows at every seed, whatever their order in the
    file, and equal texts stay together. The task is then `held_out`. Notes say how many rows were set apart or why none
    was, and how many of the test rows have an answer, or the words of a text, in common with rows of the pool.
    Raises: ConfigError for a share outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"test fraction: expected a number between 0 and 1, found {fraction}")
    groups: dict[object, list[bytes]] = {}
    found = once(task.pool, [text_key(row) for row in task.pool])  # what has no right answer scores nothing
    for row in found.rows:
        groups.setdefault(task.objective.group(row.label), []).append(text_key(row))
    tested: set[bytes] = set()
    for group, keys in groups.items():
        wanted = round(fraction * len(keys))
        tested.update(sorted(keys)[:wanted] if group is not None else _spared(task, found.rows, wanted))
    pool = tuple(row for row in task.pool if text_key(row) not in tested)
    held = [row for row in task.pool if text_key(row) in tested]
    test = TestRows(held)
    if held:
        notes = [f"{len(held)} of {len(task.pool)} rows were set apart as test rows, since no test file was given"]
    else:
        notes = [_why_none(task, fraction, max(map(len, groups.values()), default=0), found.unsettled)]
    notes += test.repeat_notes()
    contradictions = contradiction_notes(found, task.labels, "labelled rows")
    notes += [note for note in contradictions if note not in task.notes]  # of a file, reading has said so
    if alike := test.count_overlap({key for row in pool for key in overlap_keys(row)}):
        notes.append(
            f"{alike} of the {len(test)} test rows share a long reference, or the words of their source, with other "
            "rows; in one file they count as other records"
        )
    notes += alike_notes(test, pool, task)
    return replace(task, pool=pool, test=test, notes=(*task.notes, *notes), held_out=True)


def _spared(task: Task, rows: Sequence[Example], wanted: int) -> list[bytes]:
    """The keys of at most so many rows, by digest, that leave `KEPT` rows of every class; for rows of no group."""
    left = Counter(name for row in rows for name in task.objective.classes_in([row.label]))
    taken: list[bytes] = []
    for key, row in sorted(((text_key(row), row) for row in rows), key=itemgetter(0)):
        names = task.objective.classes_in([row.label])
        if len(taken) < wanted and all(left[name] > KEPT for name in names):
            left.subtract(names)
            taken.append(key)
    return taken


def _why_none(task: Task, fraction: float, most: int, unsettled: int) -> str:
    """Why no row was set apart, and what to do."""
    needed = next(rows for rows in count(1) if round(fraction * rows))
    found = f"no class has more than {most}" if task.labels else f"there are {most}"
    aside = f", not counting {unsettled:,} whose labels contradict each other" if unsettled else ""
    return (
        f"no rows were set apart as test rows, so nothing will be known about how good the model is: a share of "
        f"{fraction:g} takes at least {needed} distinct texts{' of a class' if task.labels else ''}, and {found}{aside}"
        "; label more texts, or give a file of test rows (--test) or a larger share (--test-fraction)"
    )


def alike_notes(test: TestRows, pool: tuple[Example, ...], task: Task) -> list[str]:
    """A sentence on test rows that are nearly rows of the pool; of generation such rows are dropped, and said."""
    alike = 0 if task.objective.generates else test.count_alike(pool)
    if not alike:
        return []
    return [
        f"{alike:,} of the {len(test):,} test rows have the words of a labelled row and differ from it in punctuation "
        "or signs alone: where they mean the same, the score is too good"
    ]
