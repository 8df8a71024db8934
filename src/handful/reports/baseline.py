"""What a report says of baselines (always the largest class, or the mean) and of classes without a test row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from handful.evaluation.baseline import compared
from handful.reports.table import Value
from handful.runs.card import recorded_baseline, untested_sentences
from handful.studies.results import Result

BASELINE = "always the largest class, or the mean"


def baseline_score(result: Result, metric: str | None = None) -> float | None:
    """The score of the most usual answer of a run's training rows; None where its record has none."""
    baseline = recorded_baseline(result.record)
    return None if baseline is None else baseline.scores.get(metric or result.metric)


def baseline_row(
    shots: int, columns: Sequence[tuple[str, str]], results: Sequence[Result]
) -> tuple[tuple[Value, ...], ...]:
    """The last row of a table of scores by (task, metric): the mean baseline of the runs there, if they have any.

    The column of means over tasks stays empty.
    """
    cells: list[Value] = []
    for task, metric in columns:
        here = [result for result in results if (result.cell.task, result.cell.shots) == (task, shots)]
        found = [score for result in here if (score := baseline_score(result, metric)) is not None]
        cells.append(mean(found) if found else None)
    return ((BASELINE, *cells),) if any(cell is not None for cell in cells) else ()


def member_baselines(
    task: str, shots: int, members: Iterable[tuple[str, str]], results: Sequence[Result]
) -> dict[tuple[Value, ...], float]:
    """The mean baseline of the runs by (member, metric); without those that no run has."""
    here = [result for result in results if (result.cell.task, result.cell.shots) == (task, shots)]
    known = [(result.record.get("baseline") or {}).get("members", {}) for result in here]
    found = {}
    for name, metric in members:
        scores = [one[name]["scores"][metric] for one in known if metric in one.get(name, {}).get("scores", {})]
        if scores:
            found[name, metric] = mean(scores)
    return found


def baseline_reservations(results: Sequence[Result]) -> list[str]:
    """Runs that are not shown to be better than their baseline, and tasks with classes that no test row belongs to."""
    lines, weak = [], [result for result in results if _is_weak(result)]
    if len(results) > 1 and weak:
        names = sorted({f"{result.label} on {result.cell.task}, {result.cell.shots:,} shots" for result in weak})
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(
            f"{len(weak)} of {len(results)} runs {'is' if len(weak) == 1 else 'are'} not shown to be better than "
            "always predicting the largest class, "
            f"or the mean, of their training rows: {'; '.join(names[:_SHOWN])}{more}."
        )
    untested: dict[str, str] = {}
    for result in results:
        for sentence in untested_sentences(
            result.record["rows"], len(result.record["task"]["labels"]), {result.metric}
        ):
            untested.setdefault(result.cell.task, sentence)
    return lines + [f"{task}: {sentence}." for task, sentence in untested.items()]


_SHOWN = 5


def _is_weak(result: Result) -> bool:
    found, estimate = baseline_score(result), result.estimate()
    return found is not None and estimate is not None and compared(result.metric, estimate, found) != "better"
