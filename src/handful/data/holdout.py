"""Set rows of a file apart for the final score, where it brings no test file."""

from __future__ import annotations

from dataclasses import replace

from handful.data.task import Example, Task, TestRows, overlap_keys, text_key
from handful.errors import ConfigError


def with_held_out_test(task: Task, fraction: float) -> Task:
    """The task with a share of every class (or of the whole, for regression) moved from its pool to its test rows.

    Which rows is decided by a digest of their text alone: the same rows at every seed, whatever their order in the
    file, and equal texts stay together. The task is then `held_out`, and a note says how many of its test rows have an
    answer or the words of a source in common with rows of the pool. Raises: ConfigError for a share outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"test fraction: expected a number between 0 and 1, found {fraction}")
    groups: dict[object, list[Example]] = {}
    for row in task.pool:
        groups.setdefault(row.label if task.labels else None, []).append(row)
    kept, held = set(), []
    for rows in groups.values():
        keys = sorted({text_key(row) for row in rows})
        kept.update(keys[round(fraction * len(keys)) :])
    pool = tuple(row for row in task.pool if text_key(row) in kept)
    held = [row for row in task.pool if text_key(row) not in kept]
    test = TestRows(held)
    notes = [f"{len(held)} of {len(task.pool)} rows were set apart as test rows, since no test file was given"]
    if alike := test.count_overlap({key for row in pool for key in overlap_keys(row)}):
        notes.append(
            f"{alike} of the {len(held)} test rows share a long reference, or the words of their source, with other "
            "rows; in one file they count as other records"
        )
    return replace(task, pool=pool, test=test, notes=(*task.notes, *notes), held_out=True)
