"""What was written: examples beside their references, errors by slot, and every score of the texts."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from handful.errors import DataError
from handful.evaluation.content_scores import slot_errors
from handful.reports.table import Table, Value
from handful.runs.store import PREDICTIONS
from handful.studies.compare import labels_of, with_label
from handful.studies.results import Result

EXAMPLES = 3
"""Records shown of a task."""
REFERENCES = 3
"""References shown of a record."""

Texts = Mapping[str, Mapping[str, Any]]
"""The records of `predictions.jsonl` by their input."""


def written_tables(results: Sequence[Result], damaged: Callable[[Result, str], None]) -> tuple[Table, ...]:
    """For each task of generation: scores, errors by slot and examples; empty where nothing was written.

    Unreadable predictions are told to `damaged`.
    """
    wrote = [r for r in results if r.record["task"]["kind"] == "generation" and r.record["scores"]]
    tables: list[Table] = []
    for task in sorted({result.cell.task for result in wrote}):
        here = [result for result in wrote if result.cell.task == task]
        most = max(result.cell.shots for result in here)
        texts = {id(r): found for r in here if r.cell.shots == most and (found := _read(r, damaged)) is not None}
        read = [result for result in here if id(result) in texts]
        tables.append(_scores_table(task, here))
        tables += [table for table in (_slots_table(task, read, texts), _examples_table(task, read, texts)) if table]
    return tuple(tables)


def _read(result: Result, damaged: Callable[[Result, str], None]) -> Texts | None:
    try:
        rows = {str(row["text"]): row for row in result.run.lines(PREDICTIONS)}
        if not all(isinstance(row["written"], str) and isinstance(row["references"], list) for row in rows.values()):
            raise TypeError("expected what was written and its references")
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged(result, f"{PREDICTIONS}: {type(error).__name__}: {error}")
        return None
    return rows


def _scores_table(task: str, results: Sequence[Result]) -> Table:
    """Every score of the texts by method and shots, the mean over seeds."""
    names = list(dict.fromkeys(name for result in results for name in result.record["scores"]))
    cells: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in results:
        cells[result.label, result.cell.shots].append(result)
    rows = tuple(
        (label, shots, len(runs), *(_mean([e.mean for run in runs if (e := run.estimate(name))]) for name in names))
        for (label, shots), runs in sorted(cells.items(), key=lambda cell: (cell[0][1], cell[0][0]))
    )
    return Table(f"written-{_safe(task)}", f"{task}: every score", ("method", "shots", "runs", *names), rows,
                 "Mean over seeds. Slot errors are better small, everything else large.")  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return float(mean(values)) if values else None


def _slots_table(task: str, results: Sequence[Result], texts: Mapping[int, Texts]) -> Table | None:
    """Errors by slot in a hundred texts, over all seeds of the most shots; None where the sources are not E2E's."""
    found: dict[str, Counter[str]] = {}
    try:
        for label in labels_of(results):
            records = [row for run in with_label(results, label) for row in texts[id(run)].values()]
            errors = [error for row in records for error in slot_errors(row["written"], row["text"])]
            found[label] = Counter({"": len(records)})
            found[label].update(error.kind for error in errors)
            found[label].update(f"{error.slot}." for error in errors)
    except DataError:
        return None
    slots = sorted({name for counts in found.values() for name in counts if name.endswith(".")})
    names = ["missing", "wrong", "added", *slots]
    rows = tuple(
        (label, *(100 * counts[name] / counts[""] for name in names)) for label, counts in found.items() if counts[""]
    )
    if not rows:
        return None
    return Table(
        f"slot-errors-{_safe(task)}", f"{task}: errors by slot, {results[0].cell.shots:,} shots",
        ("method", *(name.rstrip(".") for name in names)), rows,
        "Errors in a hundred texts: what is left out, said with another value, or made up; then the same by slot.",
    )  # fmt: skip


def _examples_table(task: str, results: Sequence[Result], texts: Mapping[int, Texts]) -> Table | None:
    """The same few records for all methods at the most shots and one seed, chosen by the digest of their source."""
    seeds: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        seeds[result.cell.seed].append(result)
    if not seeds:
        return None
    seed = min(seeds, key=lambda seed: (-len(seeds[seed]), seed))
    runs = sorted(seeds[seed], key=lambda run: run.label)
    shared = set.intersection(*(set(texts[id(run)]) for run in runs))
    sources = sorted(shared, key=lambda source: hashlib.sha256(source.encode()).digest())[:EXAMPLES]
    if not sources:
        return None
    first = texts[id(runs[0])]
    rows: list[tuple[Value, ...]] = [("source", *sources)]
    rows.append(("references", *(_references(first[source]["references"]) for source in sources)))
    rows += [(run.label, *(texts[id(run)][source]["written"] or "(nothing)" for source in sources)) for run in runs]
    columns = ("", *(f"record {number}" for number in range(1, len(sources) + 1)))
    return Table(
        f"examples-{_safe(task)}", f"{task}: what was written, {runs[0].cell.shots:,} shots, seed {seed}", columns,
        tuple(rows), "The same records for all methods, chosen by chance and not by how they came out.",
    )  # fmt: skip


def _references(references: Sequence[object]) -> str:
    more = f" (and {len(references) - REFERENCES} more)" if len(references) > REFERENCES else ""
    return " — ".join(str(reference) for reference in references[:REFERENCES]) + more


def _safe(task: str) -> str:
    """A task's name in a file's."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in task)
