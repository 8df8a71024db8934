"""The K labelled rows of texts with several labels: stratified by every label, and nested in K.

Rows cannot be put into one stratum per class where they have several. Iterative stratification (Sechidis, Tsoumakas and
Vlahavas 2011) gives rows to parts one by one, so that every label keeps its share; here the part is the next prefix of
one order, so that 50 rows are contained in 100. The next row is of the label set that brings the prefix closest to the
pool: to the least chi-squared distance of the labels' counts from their shares, in which rare labels weigh most, as
they come first in the paper. The distance of the label sets' own counts is added with a small weight: without it, rows
are chosen for the sums they make up, and pairs of labels stray further from the pool than at random.

The libraries that have the paper's algorithm (iterative-stratification, scikit-multilearn) give parts that are not
nested. Halving parts over and over with it gives an order too; numbers: tests/objectives/test_label_set_split.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch

from handful.errors import DataError

WEIGHT_OF_SETS = 0.1
"""Weight of the counts of label sets beside those of labels. At 0 pairs of labels stray; at 1 the labels themselves."""


@final
@dataclass(frozen=True, slots=True)
class LabelSetOrder:
    """Indices of rows in the order in which shots are taken, and which of them select instead of train.

    `without_dev` are labels that no selecting row has: all of their rows are needed for training.
    """

    rows: tuple[int, ...]
    selects: tuple[bool, ...]
    without_dev: tuple[int, ...] = ()

    @property
    def train(self) -> tuple[int, ...]:
        return tuple(row for row, selects in zip(self.rows, self.selects, strict=True) if not selects)

    @property
    def dev(self) -> tuple[int, ...]:
        return tuple(row for row, selects in zip(self.rows, self.selects, strict=True) if selects)


def draw_label_sets(
    sets: Sequence[Collection[int]],
    labels: Sequence[str],
    shots: int,
    *,
    generator: torch.Generator,
    dev_fraction: float | None = None,
    task: str = "task",
    dropped: str = "",
) -> LabelSetOrder:
    """`shots` of the rows, whose `sets` (N) are indices into `labels`; a smaller number of them are the first of these.

    First come rows by which every label has one that trains and, with `dev_fraction`, one that selects; from there on
    labels follow their shares, and that fraction of the rows of each label selects. The order depends on the generator
    alone; `dropped`, such as " (of 90 in the pool, 3 repeat another one)", is said in errors.

    A label without any row asks for none. Raises: DataError where another has too few rows, no row has a label, or
    `shots` are more than there are or too few for all labels.
    """
    minimum = 1 if dev_fraction is None else 2
    parts = "training" if dev_fraction is None else "training and development"
    counts = np.bincount([index for row in sets for index in row], minlength=len(labels))
    if shots > len(sets):
        raise DataError(
            f"task {task!r}: expected at least {shots} distinct labelled rows, found {len(sets)}{dropped}",
            f"use at most --shots {len(sets)}, or label more rows",
        )
    if not counts.any():
        raise DataError(
            f"task {task!r}: none of the {len(sets)} rows has a label{dropped}", "label some rows with one or more"
        )
    if rare := [index for index, count in enumerate(counts) if 0 < count < minimum]:
        more = f", and {len(rare) - 1} more classes have too few" if len(rare) > 1 else ""
        raise DataError(
            f"task {task!r}: class {labels[rare[0]]!r} has {counts[rare[0]]} row(s), needed {minimum} for "
            f"{parts}{dropped}{more}",
            "label more rows of it, or leave the class out",
        )
    draw = _Draw(sets, len(labels), generator, dev_fraction)
    while len(draw.order) < shots or draw.lacking() is not None:
        draw.take()
    if len(draw.order) > shots:
        raise DataError(
            f"task {task!r}: {shots} shots are too few for {len(labels)} classes with one row each for {parts}",
            f"the smallest number that works is --shots {len(draw.order)}",
        )
    without = () if dev_fraction is None else tuple(map(int, np.flatnonzero((counts > 0) & (draw.selecting[:-1] == 0))))
    return LabelSetOrder(tuple(draw.order), tuple(draw.selects), without)


@dataclass
class _Draw:
    """The order so far. Rows with the same set are alike: they are taken in shuffled order.

    Rows without a label have one of their own, the last, so that their share is kept too.
    """

    sets: Sequence[Collection[int]]
    num_labels: int
    generator: torch.Generator
    dev_fraction: float | None
    order: list[int] = field(default_factory=list)
    selects: list[bool] = field(default_factory=list)
    number_selecting: int = 0

    def __post_init__(self) -> None:
        found: dict[tuple[int, ...], list[int]] = {}
        for row in torch.randperm(len(self.sets), generator=self.generator).tolist():
            found.setdefault(tuple(sorted(set(self.sets[row]))) or (self.num_labels,), []).append(row)
        self.kinds, self.rows = [*map(np.array, found)], [*found.values()]  # K sets
        self.owner = np.repeat(np.arange(len(self.kinds)), [len(kind) for kind in self.kinds])
        self.label = np.concatenate(self.kinds)
        self.left = np.array([len(rows) for rows in self.rows])  # (K,) rows not taken
        self.of_set = self.left / len(self.sets)
        self.left_of_label = np.bincount(self.label, self.left[self.owner], minlength=self.num_labels + 1)
        self.of_label = self.left_of_label / len(self.sets)
        self.weight = np.divide(1, self.of_label, out=np.zeros_like(self.of_label), where=self.of_label > 0)
        self.taken_of_set = np.zeros(len(self.kinds))
        self.taken, self.selecting = np.zeros(self.num_labels + 1), np.zeros(self.num_labels + 1)

    def lacking(self) -> int | None:
        """The rarest label that does not yet train, or else select, and can; None where all do."""
        needed = [self.taken - self.selecting, self.selecting] if self.dev_fraction is not None else [self.taken]
        for rows in needed:
            found = np.flatnonzero((rows == 0)[:-1] & (self.left_of_label[:-1] > 0))
            if len(found):
                return int(found[self.left_of_label[found].argmin()])
        return None

    def take(self) -> None:
        """The next row."""
        size, wanted = len(self.order) + 1, self.lacking()
        change = self.weight * (2 * (self.taken - self.of_label * size) + 1)
        costs = np.bincount(self.owner, change[self.label], minlength=len(self.kinds))
        costs += WEIGHT_OF_SETS * (2 * (self.taken_of_set - self.of_set * size) + 1) / self.of_set
        costs[self.left == 0] = np.inf
        if wanted is not None:
            has = np.zeros(len(self.kinds), dtype=bool)
            has[self.owner[self.label == wanted]] = True
            costs[~has] = np.inf
            if self.dev_fraction is not None and self.taken[wanted] == self.selecting[wanted]:
                # it will train: not the last row of another label that has yet to select
                last = (self.taken > 0) & (self.selecting == 0) & (self.left_of_label == 1)
                costs[np.unique(self.owner[last[self.label]])] += 1e12
        kind = int(costs.argmin())
        self.order.append(self.rows[kind][len(self.rows[kind]) - int(self.left[kind])])
        own = self.kinds[kind]
        self.left[kind] -= 1
        self.left_of_label[own] -= 1
        self.taken_of_set[kind] += 1
        self.taken[own] += 1
        self.selects.append(self._selects(own))
        self.selecting[own] += self.selects[-1]
        self.number_selecting += self.selects[-1]

    def _selects(self, own: np.ndarray) -> bool:
        """Whether the row that was just taken, with these labels, selects: stratified into two parts, row by row."""
        if self.dev_fraction is None:
            return False
        named = own[own < self.num_labels]
        if (self.taken[named] - self.selecting[named] == 1).any():  # the row itself is the only one that could train
            return False
        if (self.selecting[named] == 0).any():
            return True
        size, selecting = len(self.order), self.number_selecting
        of_labels = (2 * (self.selecting[own] - self.dev_fraction * self.taken[own]) + 1) / self.taken[own]
        return bool(of_labels.sum() + len(own) * (2 * (selecting - self.dev_fraction * size) + 1) / size < 0)
