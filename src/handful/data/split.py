"""The K labelled rows of a run: stratified, nested in K, and apart from the test rows.

Per class the pool is shuffled once, by the seed alone. The classes are then interleaved into one order in which
every prefix is as close to the pool's proportions as whole rows allow; K rows are the first K of that order, so 50
rows are contained in 100. Whether a row trains or selects depends only on its place within its class, so the
training rows are nested, and the development rows too.

Generation has no classes: its rows are records, drawn from one shuffled order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Literal, NamedTuple, final

import torch

from handful.data.distinct import contradictions_told, once
from handful.data.mixture import member_rows
from handful.data.task import DevRows, Example, Task, TestRows, as_member, fingerprint_rows, overlap_keys, text_key
from handful.errors import ConfigError, DataError, nearest
from handful.randomness import stream

References = Literal["all", "one"]

GOLDEN_RATIO = (1 + 5**0.5) / 2


@final
@dataclass(frozen=True, init=False, slots=True)
class Split:
    """`shots` labelled rows of a task, in all (`.labelled`), divided into `.train` and `.dev`; `.test` stays closed.

    `dev` says where the development rows come from: "carved" out of the `shots` rows (`dev_fraction` of them),
    "separate" (the task's own development rows, else pool rows after the first `shots`; at most `dev_rows`), or
    "none". Rows whose text repeats within the pool or the development rows, or stands in the test rows (for pool rows
    also in the development rows), are dropped before and counted; of generation also rows that share a long reference
    with those of another file (`closed_keys`). A text with several labels takes that of most of its rows, and is left
    out where no label is that; `dropped_contradictions` counts the rows that have another one.

    Of generation, `shots` counts records, each with all of its `references` or with one drawn by the seed, and there
    are never more separate development records than shots: choosing on a full development set is not few-shot.

    Of a task of tasks every member is divided so, apart from the test rows of all; `shots` is then the most rows of a
    member, and one that has fewer gives all of its own.

    Raises: DataError where this cannot be had; nothing else is silently made smaller.
    """

    task: Task
    shots: int
    seed: int
    labelled: tuple[Example, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: TestRows | None
    dropped_duplicates: int
    dropped_overlap: int
    dropped_contradictions: int

    def __init__(
        self,
        task: Task,
        shots: int,
        seed: int,
        dev: DevRows = "carved",
        dev_fraction: float = 0.2,
        dev_rows: int = 1000,
        references: References = "all",
    ):
        _check_arguments(dev, dev_fraction, dev_rows, references)
        draw = _Draw(shots, seed, dev, dev_fraction, dev_rows, references)
        parts = _divide_members(task, draw) if task.members else [_divide(task, draw, closed_keys(task))]
        train = [row for part in parts for row in part.train]
        selection = [row for part in parts for row in part.dev]
        values = {
            "task": task,
            "shots": shots,
            "seed": seed,
            "labelled": tuple(sorted([*train, *(selection if dev == "carved" else ())], key=text_key)),
            "train": tuple(train),
            "dev": tuple(selection),
            "test": task.test,
            "dropped_duplicates": sum(part.dropped_duplicates for part in parts),
            "dropped_overlap": sum(part.dropped_overlap for part in parts),
            "dropped_contradictions": sum(part.dropped_contradictions for part in parts),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def cell_fingerprint(self) -> str:
        """SHA-256 over the K labelled rows and the test rows: the same for all ways of dividing the K."""
        parts = [fingerprint_rows(self.labelled), *self._test_fingerprints]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the contents of the training, development and test rows in order."""
        parts = [fingerprint_rows(self.train), fingerprint_rows(self.dev), *self._test_fingerprints]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    @property
    def _test_fingerprints(self) -> list[str]:
        tests = [member.test for member in self.task.members] or [self.test]
        return [test.fingerprint() if test else "" for test in tests]


@final
@dataclass(frozen=True, slots=True)
class _Draw:
    """How the rows of one task are drawn, as for `Split`; `at_most` takes all rows where there are fewer than shots."""

    shots: int
    seed: int
    dev: DevRows
    dev_fraction: float
    dev_rows: int
    references: References
    at_most: bool = False


@final
@dataclass(frozen=True, slots=True)
class _Part:
    """The drawn rows of one task, and how many were dropped before."""

    train: Sequence[Example]
    dev: Sequence[Example]
    dropped_duplicates: int
    dropped_overlap: int
    dropped_contradictions: int


class Kept(NamedTuple):
    """Rows of distinct texts; how many repeated another row, stood in closed rows, or had another label; and a row for
    each label of every text that has several (`distinct.Distinct`).
    """

    rows: list[Example]
    repeated: int
    overlap: int
    contradicting: int
    contradictions: Sequence[Sequence[Example]] = ()

    @property
    def dropped(self) -> tuple[int, int, int]:
        """The counts of rows that were dropped."""
        return self.repeated, self.overlap, self.contradicting


def _divide_members(task: Task, draw: _Draw) -> list[_Part]:
    """The parts of the members, their rows as those of the task of tasks."""
    closed, draw, parts = closed_keys(task), replace(draw, at_most=True), []
    for member, labels in zip(task.members, task.label_ranges.values(), strict=True):
        pool = tuple(as_member(row, "", -labels.start) for row in member_rows(task, member.name))
        part = _divide(replace(member, pool=pool), draw, closed)
        train, dev = ([as_member(row, member.name, labels.start) for row in rows] for rows in (part.train, part.dev))
        parts.append(replace(part, train=train, dev=dev))
    return parts


def _divide(task: Task, draw: _Draw, closed: Collection[bytes]) -> _Part:
    """The rows of one task, without those that share one of the `closed` keys."""
    dev_rows = min(draw.dev_rows, draw.shots) if task.objective.generates else draw.dev_rows
    dev_found = distinct((task.dev or ()) if draw.dev == "separate" else (), closed)
    own_dev = dev_found.rows
    open_keys = {key for row in own_dev for key in overlap_keys(row)}
    found = distinct(task.pool, {*closed, *open_keys})
    pool = found.rows
    shots = min(draw.shots, len(pool)) if draw.at_most else draw.shots

    generator = stream(draw.seed, "split")
    strata = _strata(task, pool, found.contradictions)
    minimum = 2 if draw.dev == "carved" else 1
    _check_enough(task, strata, shots, minimum, _left_out(task, found))
    taken = min(len(pool), shots + (dev_rows if draw.dev == "separate" else 0))
    drawn = task.objective.draw(
        [row.label for row in pool], task.labels, taken, generator=generator, task=task.name,
        dev_fraction=draw.dev_fraction if draw.dev == "carved" else None, dropped=_left_out(task, found),
    )  # fmt: skip
    if drawn:
        order = [(pool[place], selects) for place, selects in zip(*drawn, strict=True)]
    else:
        order = _by_strata([_shuffled(rows, generator) for rows in strata], minimum, taken, draw)
    train = [row for row, selects in order[:shots] if not selects]
    selection: Sequence[Example] = [row for row, selects in order[:shots] if selects]
    if draw.dev == "separate":
        rest = [row for row, _ in order[shots:]]
        selection = (_shuffled(own_dev, stream(draw.seed, "split/dev")) if own_dev else rest)[:dev_rows]
        if not selection:
            raise DataError(
                f"task {task.name!r} has no development rows, and no row is left after {shots} shots",
                'give a development file, use fewer shots, or dev="carved"',
            )
    if draw.references == "one":
        train, selection = _with_one_reference(train, draw.seed), _with_one_reference(selection, draw.seed)
    dropped = [mine + its for mine, its in zip(found.dropped, dev_found.dropped, strict=True)]
    return _Part(train, selection, *dropped)


def closed_keys(task: Task) -> frozenset[bytes]:
    """What no row of the pool may share with the task's test rows, or with those of all its members.

    That is `overlap_keys`, but within one file the text alone: many of its rows may have the same long answer.
    """
    if task.held_out and task.test:
        return task.test.text_keys()
    tests = [member.test for member in task.members] or [task.test]
    return frozenset(key for test in tests if test for key in test.overlap_keys())


def _check_arguments(dev: str, dev_fraction: float, dev_rows: int, references: str) -> None:
    if references not in ("all", "one"):
        raise ConfigError(f"references: expected all or one, found {references!r}")
    known = ("carved", "separate", "none")
    if dev not in known:
        raise ConfigError(f"dev: expected one of {', '.join(known)}, found {dev!r}", nearest(dev, known))
    if not 0 < dev_fraction < 1:
        raise ConfigError(
            f"dev_fraction: expected a number between 0 and 1, found {dev_fraction}", 'for no rows, use dev="none"'
        )
    if dev_rows < 1:
        raise ConfigError(f"dev_rows: expected at least 1, found {dev_rows}", 'for no rows, use dev="none"')


def distinct(rows: Sequence[Example], closed: Collection[bytes]) -> Kept:
    """Rows whose text is new and not in `closed`, which are `closed_keys`: of rows that must stay apart."""
    apart = [row for row in rows if overlap_keys(row).isdisjoint(closed)] if closed else rows
    found = once(apart, [text_key(row) for row in apart])
    return Kept(list(found.rows), found.repeated, len(rows) - len(apart), found.contradicting, found.contradictions)


def _strata(
    task: Task, pool: Sequence[Example], contradictions: Sequence[Sequence[Example]] = ()
) -> list[list[Example]]:
    """The rows of each class, or of each quantile of the target; of generation, all rows."""
    objective = task.objective
    if objective.generates:
        return [_with_references(pool)]
    unlabelled = next((row for row in pool if row.label is None), None)
    if unlabelled is not None:
        raise DataError(f"{unlabelled.source}: expected a label, found none", "label every row of the pool")
    seen = Counter(row.label for row in pool)
    if len(seen) < 2 and contradictions:
        told = contradictions_told(contradictions, task.labels, "labelled rows")
        left = f"all {len(pool)} that are left have one and the same" if pool else "no row is left"
        raise DataError(
            f"task {task.name!r}: expected labels that do not contradict each other, found that {told}. Without them "
            f"{left}, and at least two are needed to learn",
            "correct the labels, so that every text has one; where they depend on what the text does not say, such as "
            "a second column, give that as --text-pair",
        )
    if len(seen) == 1 and len(pool) > 1:
        (label,) = seen
        what = objective.describe(label, task.labels)
        raise DataError(f"task {task.name!r}: all {len(pool)} rows have {what}", "at least two are needed to learn")
    strata = objective.strata([row.label for row in pool], len(task.labels))
    return [[pool[place] for place in places] for places in strata]


def _with_references(pool: Sequence[Example]) -> list[Example]:
    for row in pool:
        if not row.references:
            raise DataError(f"{row.source}: expected at least one reference, found none", "give every record a text")
    return list(pool)


def _with_one_reference(rows: Sequence[Example], seed: int) -> list[Example]:
    """The rows with one of their references, drawn for each by the seed and its text alone, so the same at every K."""

    def draw(row: Example) -> int:
        generator = stream(seed, f"split/reference/{text_key(row).hex()}")
        return int(torch.randint(len(row.references), (), generator=generator))

    return [replace(row, references=(row.references[draw(row)],)) if row.references else row for row in rows]


def _left_out(task: Task, found: Kept) -> str:
    """How many rows of the pool were dropped and why, for an error; empty where none was."""
    alike = "have the source or a long reference of" if task.objective.generates else "stand in"
    reasons = [f"{found.repeated} repeat another one"] if found.repeated else []
    reasons += [f"{found.contradicting} have another label than the same text elsewhere"] if found.contradicting else []
    reasons += [f"{found.overlap} {alike} test or development rows"] if found.overlap else []
    return f" (of {len(task.pool)} in the pool, {' and '.join(reasons)})" if reasons else ""


def _check_enough(
    task: Task, strata: Sequence[Sequence[Example]], shots: int, minimum: int, left_out: str = ""
) -> None:
    rows, smallest = sum(map(len, strata)), len(strata) * minimum
    parts = "training and development" if minimum == 2 else "training"
    if (needed := max(shots, minimum)) > rows:
        fewer = f"use at most --shots {rows}, or " if rows >= smallest else ""
        raise DataError(
            f"task {task.name!r}: expected at least {needed} distinct labelled rows, found {rows}{left_out}",
            f"{fewer}label more rows",
        )
    objective = task.objective
    if objective.generates:
        if shots < minimum:
            raise DataError(
                f"task {task.name!r}: {shots} record(s) are too few for {parts}",
                f"the smallest number that works is --shots {minimum}",
            )
        return
    for index, stratum in enumerate(strata):
        if len(stratum) < minimum:
            name = objective.stratum(index, task.labels)
            raise DataError(
                f"task {task.name!r}: {name} has {len(stratum)} row(s), needed {minimum} for {parts}{left_out}",
                "label more rows of it, or leave the class out" if task.labels else "label more rows",
            )
    if shots < smallest:
        raise DataError(
            f"task {task.name!r}: {shots} shots are too few for {len(strata)} "
            f"{objective.strata_name} with {minimum} row(s) each for {parts}",
            f"the smallest number that works is --shots {smallest}",
        )


def _shuffled(rows: Sequence[Example], generator: torch.Generator) -> list[Example]:
    return [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]


def _by_strata(strata: Sequence[Sequence[Example]], minimum: int, rows: int, draw: _Draw) -> list[tuple[Example, bool]]:
    """The first `rows` in the order in which shots are taken, and whether each selects."""
    offsets, carved = _rounding_offsets(len(strata)), draw.dev == "carved"
    return [
        (row, carved and _is_dev(place, offsets[stratum], draw.dev_fraction))
        for row, stratum, place in _interleave(strata, minimum, rows)
    ]


def _interleave(strata: Sequence[Sequence[Example]], minimum: int, rows: int) -> list[tuple[Example, int, int]]:
    """The first `rows` as (row, stratum, place within the stratum) in the order in which shots are taken.

    After `minimum` rows of each stratum comes the quota method of Balinski and Young (1975): the next row goes to
    the largest `size / (taken + 1)` among the strata that have not reached their share of the prefix. It keeps
    every stratum within one row of its share once the minimum no longer exceeds it.
    """
    sizes, total = [len(stratum) for stratum in strata], sum(map(len, strata))
    taken = [0] * len(strata)
    order = []
    for step in range(rows):
        due = [s for s, size in enumerate(sizes) if taken[s] < minimum and taken[s] < size]
        if due:
            stratum = min(due, key=lambda s: taken[s])
        else:
            due = [s for s, size in enumerate(sizes) if taken[s] * total < size * (step + 1)]
            stratum = min(due, key=lambda s: (taken[s] + 1) / sizes[s])
        order.append((strata[stratum][taken[stratum]], stratum, taken[stratum]))
        taken[stratum] += 1
    return order


def _rounding_offsets(strata: int) -> list[float]:
    """An offset in (0, 1) for each stratum, at which it rounds its number of development rows.

    They are evenly spaced, so that rounding evens out over the strata, and in the order of the multiples of the golden
    ratio, so that it also does over the first few strata, which are the ones that are a row ahead.
    """
    order = sorted(range(strata), key=lambda stratum: stratum * GOLDEN_RATIO % 1)
    return [(order.index(stratum) + 0.5) / strata for stratum in range(strata)]


def _is_dev(place: int, offset: float, fraction: float) -> bool:
    """Whether the row at this place of its stratum selects instead of trains.

    The first row trains, the second selects, and from there on `fraction` of the rows select.
    """

    def count(rows: int) -> int:
        return min(max(floor(fraction * rows + offset), 1), rows - 1)

    return place > 0 and count(place + 1) > count(place)
