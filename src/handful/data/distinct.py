"""Rows of one text count once: which row stands for a text that repeats, and what is done where its labels differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from handful.data.task import Example

EXAMPLES = 3
"""How many contradictions are named."""


@final
@dataclass(frozen=True, slots=True)
class Distinct:
    """One row for each text.

    `repeated` counts rows that were left out because an earlier row has their text and their label; `contradicting`
    those whose label is another one than that of the row that was kept, and those of texts in `unsettled`.
    `contradictions` hold one row for each label of every text that has several, in the order of the rows; `unsettled`
    counts the texts among them of which no row was kept.
    """

    rows: tuple[Example, ...]
    repeated: int = 0
    contradicting: int = 0
    contradictions: tuple[tuple[Example, ...], ...] = ()
    unsettled: int = 0


def once(rows: Sequence[Example], keys: Sequence[bytes]) -> Distinct:
    """One row for each of the `keys` (N), which say whether two rows have the same text.

    A text that has several classes takes that of most of its rows; of equally many none of its rows is kept: there is
    no right answer to learn or to score. Several numbers of a text are averaged, and the references of a record of
    generation are joined.
    """
    groups: dict[bytes, list[Example]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(key, []).append(row)
    if len(groups) == len(rows):
        return Distinct(tuple(rows))
    kept, contradictions, repeated, contradicting, unsettled = [], [], 0, 0, 0
    for group in groups.values():
        first = {row.label: row for row in reversed(group) if row.label is not None}
        chosen = _chosen(group)
        if len(first) > 1:
            contradictions.append(tuple(row for row in group if row.label is not None and row is first[row.label]))
        if chosen is None:
            unsettled, contradicting = unsettled + 1, contradicting + len(group)
            continue
        kept.append(chosen)
        other = sum(row.label not in (None, chosen.label) for row in group) if len(first) > 1 else 0
        other = min(other, len(group) - 1)  # a mean of numbers may be the label of no row
        contradicting, repeated = contradicting + other, repeated + len(group) - 1 - other
    return Distinct(tuple(kept), repeated, contradicting, tuple(contradictions), unsettled)


def _chosen(group: list[Example]) -> Example | None:
    """The row that stands for rows of one text, or None."""
    references = tuple(dict.fromkeys(text for row in group for text in row.references))
    if references:
        return replace(group[0], references=references)
    labels = [row.label for row in group if row.label is not None]
    (label, most), *others = Counter(labels).most_common(2) or [(None, 0)]
    if not others:
        return next((row for row in group if row.label == label), group[0])
    if any(isinstance(label, float) for label in labels):
        return replace(group[0], label=sum(labels) / len(labels))
    return None if others[0][1] == most else next(row for row in group if row.label == label)


def contradiction_notes(found: Distinct, labels: Sequence[str], rows: str) -> list[str]:
    """A sentence on the texts that have several labels among these `rows` ("labelled rows"); none where there are none.

    `labels` are the names of the classes, empty for numbers.
    """
    if not found.contradictions:
        return []
    done = "the label of most of its rows is taken" if labels else "their mean is taken"
    if found.unsettled:
        done += f"; {found.unsettled:,} without one {'was' if found.unsettled == 1 else 'were'} left out"
    return [f"{contradictions_told(found.contradictions, labels, rows)}. Of each, {done}"]


def contradictions_told(contradictions: Sequence[Sequence[Example]], labels: Sequence[str], rows: str) -> str:
    """How many texts have several labels among these `rows`, with the first of them."""
    count, more = len(contradictions), len(contradictions) - EXAMPLES
    shown = [" and ".join(f"{_label(row, labels)} ({row.source})" for row in group) for group in contradictions]
    return (
        f"{count:,} {'text has' if count == 1 else 'texts have'} several {'labels' if labels else 'numbers'} among the "
        f"{rows}: {'; '.join(shown[:EXAMPLES])}{f'; and {more:,} more' if more > 0 else ''}"
    )


def _label(row: Example, labels: Sequence[str]) -> str:
    if isinstance(row.label, tuple):
        return repr([name for name, flag in zip(labels, row.label, strict=True) if flag])
    return repr(labels[int(row.label or 0)]) if labels else f"{row.label:g}"
