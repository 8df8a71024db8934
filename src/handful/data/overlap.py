"""What one task would give away about another, before a run on the second starts from a run on the first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from handful.data.task import Task, overlap_keys
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


def overlap(source: Task, target: Task) -> Overlap:
    """How many rows of the target's pool and test stand in the source's pool or development rows, by `overlap_keys`.

    The test rows stay closed: they are only counted.
    """
    keys = {key for row in (*source.pool, *(source.dev or ())) for key in overlap_keys(row)}
    return _overlap(source.name, keys, target)


def _overlap(source: str, keys: Collection[bytes], target: Task) -> Overlap:
    rows = (*target.pool, *(target.dev or ()))
    shared = sum(not overlap_keys(row).isdisjoint(keys) for row in rows)
    closed = target.test.count_overlap(keys) if target.test else 0
    return Overlap(source, target.name, shared, len(rows), closed, len(target.test or ()))


def refuse_overlap(source: Task, target: Task, *, tolerated: float = TOLERATED_SHARE) -> Overlap:
    """The overlap, where so small a share of rows may be chance. Raises: DataError where it is larger."""
    found = overlap(source, target)
    if found.share > tolerated:
        hint = "start from a task that shares nothing with it"
        if source.name == "dart":
            hint = "read DART with partition no_overlap, which leaves E2E and WebNLG out"
        raise DataError(f"starting from another task's run must not show it the target's rows: {found}", hint)
    return found


def refuse_seen(source: str, seen: Collection[bytes], target: Task, *, tolerated: float = TOLERATED_SHARE) -> Overlap:
    """The overlap of a target with the rows of a finished run, of which `seen` are the `overlap_keys`.

    Raises: DataError where the run has seen more than the tolerated share of the test rows. Rows of the pool may have
    been seen: a run on the same task may come first.
    """
    found = _overlap(source, seen, target)
    if found.test > tolerated * found.test_rows:
        raise DataError(
            f"the run to start from has seen test rows: {found}",
            "start from a run on other rows, or test on rows that it has not seen",
        )
    return found
