"""What was written: every score of the texts, errors by slot, and examples beside their references."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handful.errors import DataError, in_words
from handful.evaluation.estimate import Estimate, estimate_over_seeds
from handful.evaluation.metrics import get_metric
from handful.evaluation.text.content_scores import slot_errors
from handful.objectives import objective_of
from handful.reports.figure import Dots, Figure, Panel
from handful.reports.table import Table, Value, numbers_table
from handful.runs.store import PREDICTIONS
from handful.studies.compare import labels_of, with_label
from handful.studies.results import Result

EXAMPLES = 3
"""Records shown of a task."""
REFERENCES = 3
"""References shown of a record."""

KINDS = ("missing", "wrong", "added")

Texts = Mapping[str, Mapping[str, Any]]
"""The records of `predictions.jsonl` by their input."""

Rates = Mapping[str, Mapping[str, float]]
"""Errors in a hundred texts by label, and there by kind and by slot."""


def what_was_written(
    results: Sequence[Result], damaged: Callable[[Result, str], None]
) -> tuple[tuple[Figure, ...], tuple[Table, ...]]:
    """A figure of errors by slot; and for each task of generation its scores, errors by slot and examples.

    Empty where nothing was written. Unreadable predictions are told to `damaged`.
    """
    wrote = [r for r in results if objective_of(r.record["task"]["kind"]).generates and r.record["scores"]]
    tables: list[Table] = []
    errors: dict[str, Rates] = {}
    for task in sorted({result.cell.task for result in wrote}):
        here = [result for result in wrote if result.cell.task == task]
        most = max(result.cell.shots for result in here)
        texts = {id(r): found for r in here if r.cell.shots == most and (found := _read(r, damaged)) is not None}
        read = [result for result in here if id(result) in texts]
        tables.append(_scores_table(task, here))
        if rates := _slot_rates(read, texts):
            title = f"{task}, {most:,} shots"
            errors[title] = rates
            tables.append(_slots_table(f"slot-errors-{_safe(task)}", title, rates))
        if examples := _examples_table(task, read, texts):
            tables.append(examples)
    return _slots_figure(errors), tuple(tables)


def _read(result: Result, damaged: Callable[[Result, str], None]) -> Texts | None:
    try:
        rows = {str(row["text"]): row for row in result.run.lines(PREDICTIONS)}
        if not all(isinstance(row["written"], str) and isinstance(row["references"], list) for row in rows.values()):
            raise TypeError("expected what was written and its references")
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged(result, f"{PREDICTIONS}: {in_words(error)}")
        return None
    return rows


def _scores_table(task: str, results: Sequence[Result]) -> Table:
    """Every score of the texts by method and shots, the mean over seeds with its interval."""
    names = list(dict.fromkeys(name for result in results for name in result.record["scores"]))
    cells: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in results:
        cells[result.label, result.cell.shots].append(result)
    rows = tuple(
        (label, shots, len(runs), *(_over_seeds(runs, name) for name in names))
        for (label, shots), runs in sorted(cells.items(), key=lambda cell: (cell[0][1], cell[0][0]))
    )
    return Table(f"written-{_safe(task)}", f"{task}: every score", ("method", "shots", "runs", *names), rows,
                 "Mean over seeds, with Student's t interval. Slot errors are better small, everything else large."
                 + _variants(results))  # fmt: skip


def _over_seeds(runs: Sequence[Result], name: str) -> Estimate | None:
    means = [estimate.mean for run in runs if (estimate := run.estimate(name))]
    return estimate_over_seeds(means, limits=get_metric(name).range) if means else None


def _variants(results: Sequence[Result]) -> str:
    """Which variant of each metric the runs were scored with."""
    found = {item: None for result in results for item in result.record.get("signatures", {}).items()}
    return f" Variants: {'; '.join(f'{name}: {signature}' for name, signature in found)}." if found else ""


def _slot_rates(results: Sequence[Result], texts: Mapping[int, Texts]) -> Rates:
    """Over all seeds of the most shots; empty where the sources are not E2E's."""
    found = {}
    try:
        for label in labels_of(results):
            records = [row for run in with_label(results, label) for row in texts[id(run)].values()]
            errors = [error for row in records for error in slot_errors(row["written"], row["text"])]
            counts = Counter(name for error in errors for name in (error.kind, error.slot))
            if records:
                found[label] = {name: 100 * count / len(records) for name, count in counts.items()}
    except DataError:
        return {}
    return found


def _slots(rates: Rates) -> list[str]:
    """The slots with errors, those with most of them first."""
    slots = {name for of_label in rates.values() for name in of_label} - {*KINDS}
    return sorted(slots, key=lambda slot: (-sum(of_label.get(slot, 0) for of_label in rates.values()), slot))


def _slots_table(name: str, title: str, rates: Rates) -> Table:
    names = [*KINDS, *_slots(rates)]
    rows = tuple((label, *(of_label.get(name, 0.0) for name in names)) for label, of_label in rates.items())
    return Table(
        name, f"{title}: errors by slot", ("method", *names), rows,
        "Errors in a hundred texts: what is left out, said with another value, or made up; then the same by slot.",
    )  # fmt: skip


def _slots_figure(errors: Mapping[str, Rates]) -> tuple[Figure, ...]:
    """For each title two panels, errors by kind and by slot; none where there is no error."""
    panels, numbers = [], []
    for title, rates in errors.items():
        slots = _slots(rates)
        for by, names in (("kind", [*KINDS]), ("slot", slots)) if slots else ():
            rows = [(name, {label: rates[label].get(name, 0.0) for label in rates}) for name in names]
            panels.append(Panel(f"By {by}", Dots(rows, "errors in 100 texts"), title))
            numbers += [
                {"task": title, "by": by, "error": name, "method": label, "errors in 100 texts": value}
                for name, values in rows
                for label, value in values.items()
            ]
    if not panels:
        return ()
    figure = Figure(
        "What the texts get wrong",
        "Slots left out, said with another value, or made up, over all seeds. Left is better.",
        tuple(panels),
        numbers_table("slot-errors", "Errors by slot", numbers),
        tuple(dict.fromkeys(label for rates in errors.values() for label in rates)),
    )
    return (figure,)


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
