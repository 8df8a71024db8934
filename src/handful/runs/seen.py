"""The rows that a run has seen, and what a run that starts from it must not be tested on."""

from __future__ import annotations

from dataclasses import replace

from handful.data.overlap import TOLERATED_SHARE, refuse_seen
from handful.data.split import Split
from handful.data.task import overlap_keys, text_key
from handful.runs.start import Start


def start_notes(start: Start, split: Split) -> tuple[str, ...]:
    """What is to be said about the rows of the run to start from. Raises: DataError where it has seen the test rows."""
    seen, name = start.seen(), start.folder.name
    if seen is None:
        return (f"the run it started from, {name}, has kept no digests of its rows: it may have seen the test rows",)
    own = {text_key(row) for row in (*split.train, *split.dev)}
    others = tuple(row for row in split.task.pool if text_key(row) not in own)
    found = refuse_seen(name, seen, replace(split.task, pool=others, dev=None))
    for member in split.task.members:
        refuse_seen(name, seen, member)
    if found.pool <= TOLERATED_SHARE * found.pool_rows:
        return ()
    return (f"not only its own shots: the run it started from, {name}, has seen {found.pool:,} more rows of the pool",)


def seen_rows(split: Split, start: Start | None) -> frozenset[bytes]:
    """`overlap_keys` of the rows that a run is trained and selected on, and of those before it."""
    own = frozenset(key for row in (*split.train, *split.dev) for key in overlap_keys(row))
    return own | ((start.seen() or frozenset()) if start else frozenset())
