"""A finished run scored on labelled rows that came later."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

from handful.data.distinct import contradiction_notes, once
from handful.data.task import Example, overlap_keys, text_key
from handful.errors import DataError
from handful.evaluation.evaluate import Scores, Written
from handful.runs.experiment import Trained
from handful.runs.scoring import OnWritten, score_rows


@final
@dataclass(frozen=True)
class NewScores:
    """Scores on new rows with their intervals, and `notes` on the rows that did not count."""

    scores: Scores | Written
    rows: int
    notes: tuple[str, ...]


def score_new_rows(
    trained: Trained,
    rows: Sequence[Example],
    seen: Collection[bytes] | None,
    on_written: OnWritten = lambda done, total: None,
) -> NewScores:
    """Score a trained model on labelled rows, each text once (`distinct.once`), without rows that it was trained on.

    `seen` are the `overlap_keys` of those rows, or None where they are not known. Raises: DataError where no row is
    left, or a row has no label.
    """
    found = once(rows, [text_key(row) for row in rows])
    distinct = found.rows
    kept = [row for row in distinct if not any(key in (seen or ()) for key in overlap_keys(row))]
    notes = []
    if found.repeated:
        notes.append(f"{found.repeated:,} of {len(rows):,} rows repeat the text of another row and do not count again")
    notes += contradiction_notes(found, trained.task.labels, "new rows")
    if overlap := len(distinct) - len(kept):
        notes.append(f"{overlap:,} rows were left out: the model was trained or selected on them")
    if seen is None:
        notes.append("the run kept no digests of its training rows: whether it has seen some of these is not known")
    if not kept:
        raise DataError(
            f"expected rows that the model was not trained on, found none among {len(rows):,}",
            "give labelled rows that are new to the run",
        )
    return NewScores(
        score_rows(trained.adapter, kept, trained.task, trained.spec, on_written=on_written), len(kept), tuple(notes)
    )
