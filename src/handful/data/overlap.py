"""What one task would give away about another, before a run on the second starts from a run on the first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from handful.data.task import Task, TestRows, overlap_keys, text_key
from handful.errors import DataError

TOLERATED_SHARE = 0.01
"""Share of records that may stand in both tasks. Of E2E's development and test texts 0.3 and 0.5 % stand word for word
in its training file, though the inputs differ: short texts repeat by chance."""


@final
@dataclass(frozen=True, slots=True)
class Overlap:
    """Records of a target task that share a source or a long reference with the rows a source task is trained on.

    `pool` and `test` count them, of `pool_rows` and `test_rows`.
    """

    source: str
    target: str
    pool: int
    pool_rows: int
    test: int
    test_rows: int

    @property
    def share(self) -> float:
        """The larger one of the shares of the target's pool and test that stand in the source too."""
        return max(self.pool / max(self.pool_rows, 1), self.test / max(self.test_rows, 1))

    def __str__(self) -> str:
        return (
            f"{self.source} holds {self.pool:,} of the {self.pool_rows:,} training rows of {self.target} "
            f"and {self.test:,} of its {self.test_rows:,} test rows"
        )


def overlap(source: str, seen: Collection[bytes], target: Task, *, one_file: bool = False) -> Overlap:
    """How many rows of the target's pool, development rows and test are among `seen`, the `overlap_keys` of a source.

    In `one_file` the rows of a text are the same, whatever references others share. The test rows stay closed: they
    are only counted.
    """
    rows = (*target.pool, *(target.dev or ()))
    test = target.test or TestRows(())
    if one_file:
        shared, closed = sum(text_key(row) in seen for row in rows), sum(key in seen for key in test.text_keys())
    else:
        shared, closed = sum(any(key in seen for key in overlap_keys(row)) for row in rows), test.count_overlap(seen)
    return Overlap(source, target.name, shared, len(rows), closed, len(test))


def refuse_seen(source: str, seen: Collection[bytes], target: Task) -> Overlap:
    """The overlap of a target with the rows of a finished run on it, of which `seen` are the `overlap_keys`.

    Raises: DataError where the run has seen more than the tolerated share of the test rows.
    """
    return _refuse_test(overlap(source, seen, target, one_file=target.held_out))


def _refuse_test(found: Overlap) -> Overlap:
    if found.test > TOLERATED_SHARE * found.test_rows:
        raise DataError(
            f"the run to start from has seen test rows: {found}",
            "start from a run on other rows, or test on rows that it has not seen",
        )
    return found


def refuse_another_task(source: str, seen: Collection[bytes], target: Task) -> Overlap:
    """The same for a run on another task, which must not have brought along the target's own rows either.

    Raises: DataError where more than the tolerated share of the pool or of the test rows stands in both.
    """
    found = _refuse_test(overlap(source, seen, target))
    if found.share > TOLERATED_SHARE:
        raise DataError(
            f"a run on another task must not have seen this one's rows: {found}",
            'start from a task that shares nothing with it; of DART a recipe takes `partition = "no_overlap"`, which '
            "leaves E2E and WebNLG out; if it is the same task, give its file the same name",
        )
    return found
