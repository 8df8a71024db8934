"""The figures of a report: which numbers of the runs they show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import floor
from statistics import mean
from typing import Any

import numpy as np

from handful.errors import in_words
from handful.evaluation.calibration import reliability
from handful.evaluation.estimate import Estimate, wilson
from handful.objectives import objective_of
from handful.reports.figure import Curves, Figure, Intervals, Panel, Reliability, Scores, Strips, Triangle
from handful.reports.table import Table, Value, numbers_table
from handful.reports.tables import scopes_of, score_estimate
from handful.runs.store import LANDSCAPE, PREDICTIONS
from handful.studies.compare import Comparison, Summary, labels_of, with_label
from handful.studies.ranking import Ranking
from handful.studies.results import Result
from handful.studies.verdicts import NOT_TOLD_APART

BINS = 10
LANDSCAPES = 6
"""Triangles drawn; the numbers of all are in the CSV."""


def scores_figure(summaries: Sequence[Summary], results: Sequence[Result]) -> Figure:
    """Score by shots, a panel a task; where a task was run with one number of shots, score by method."""
    panels, numbers = [], []
    of_task: dict[tuple[str, str], list[Summary]] = defaultdict(list)
    for one in summaries:
        if one.task is not None:
            of_task[one.task, one.metric].append(one)
    for (task, metric), here in sorted(of_task.items()):
        series: dict[str, list[tuple[int, Estimate]]] = defaultdict(list)
        for one in here:
            estimate = score_estimate(one, results)
            series[one.label].append((one.shots, estimate))
            numbers.append({"task": task, "metric": metric, "method": one.label, "shots": one.shots, "score": estimate})
        if len({one.shots for one in here}) > 1:
            panels.append(Panel(task, Scores(dict(series), metric)))
        else:
            rows = [(label, points[0][1]) for label, points in series.items()]
            panels.append(Panel(task, Intervals(rows, metric), f"{here[0].shots:,} shots"))
    by_shots = any(isinstance(panel.drawing, Scores) for panel in panels)
    return Figure(
        "Score by shots" if by_shots else "Scores",
        "Mean and 95 % interval, over seeds; where there is one seed, over its test rows.",
        tuple(panels),
        numbers_table("score-by-shots", "Score by shots", numbers),
        tuple(labels_of(results)) if by_shots else (),
    )


def ranks_figure(ranking: Ranking) -> Figure:
    """Average ranks with half the critical difference on either side."""
    difference = ranking.critical_difference
    assert difference is not None
    rows = [
        (s.label, Estimate(s.rank.mean, s.rank.mean - difference / 2, s.rank.mean + difference / 2, s.rank.n))
        for s in ranking.standings
    ]
    return Figure(
        "Average rank",
        f"1 is best. Bars are half the critical difference ({difference:.2f}, Nemenyi) on either side: where bars "
        "overlap, the ranks are no evidence. Which of two methods is better, the pairs say.",
        (Panel("", Intervals(rows, "average rank")),),
        numbers_table(
            "critical-difference", "Ranks", [{"method": label, "average rank": rank} for label, rank in rows]
        ),
    )


def pairs_figure(ranking: Ranking, pairs: Sequence[Comparison]) -> Figure:
    """The best-ranked method against every other."""
    first = ranking.standings[0].label
    scopes, panels, numbers = scopes_of(pairs), [], []
    for scope in scopes:
        rows = []
        for standing in ranking.standings[1:]:
            for pair in pairs:
                estimate = pair.elsewhere if scope == "tasks like these" else pair.advantage
                if {pair.a, pair.b} == {first, standing.label} and estimate is not None:
                    rows.append((standing.label, estimate if pair.a == first else _mirrored(estimate)))
        if rows:
            panels.append(Panel(f"on {scope}", Intervals(rows, f"advantage of {first}", 0.0)))
        numbers += [{"over": label, "on": scope, "advantage": estimate} for label, estimate in rows]
    return Figure(
        f"How much better {first} is",
        "The paired difference to the method with the best average rank, with its 95 % interval for other seeds and "
        "test rows of these tasks and, where there are several, for tasks like these. Where an interval crosses the "
        f"line, or is missing, the two are {NOT_TOLD_APART} on those tasks.",
        tuple(panels),
        numbers_table("advantage-of-the-best-ranked", "Advantage", numbers),
    )


def _mirrored(estimate: Estimate) -> Estimate:
    if estimate.low is None or estimate.high is None:
        return Estimate(-estimate.mean, None, None, estimate.n, estimate.level, estimate.method)
    return Estimate(-estimate.mean, -estimate.high, -estimate.low, estimate.n, estimate.level, estimate.method)


def dev_figure(results: Sequence[Result]) -> Figure | None:
    """Dev scores during training, a panel a task at its most shots; None where no run has any."""
    with_history = [result for result in results if result.record["fit"]["history"]]
    if not with_history:
        return None
    numbers: list[Mapping[str, Value]] = [
        {
            "task": r.cell.task, "shots": r.cell.shots, "seed": r.cell.seed, "method": r.label,
            "metric": _dev_metric(r), "step": point["step"], "epoch": point["epoch"], "score": point["score"],
            "deviation": point["deviation"],
        }
        for r in with_history
        for point in r.record["fit"]["history"]
    ]  # fmt: skip
    panels = []
    for task, metric in sorted({(r.cell.task, _dev_metric(r)) for r in with_history}):
        here = [r for r in with_history if (r.cell.task, _dev_metric(r)) == (task, metric)]
        shots = max(r.cell.shots for r in here)
        runs = [
            (r.label, [(point["epoch"], point["score"]) for point in r.record["fit"]["history"]])
            for r in here
            if r.cell.shots == shots
        ]
        panels.append(Panel(task, Curves(runs, f"dev {metric}"), f"{shots:,} shots"))
    return Figure(
        "Development scores during training",
        "Thin: one run. Thick: the mean over seeds, as far as all of them got.",
        tuple(panels),
        numbers_table("dev-curves", "Dev curves", numbers),
        tuple(labels_of(with_history)),
    )


def _dev_metric(result: Result) -> str:
    """What the history of a run is measured by."""
    objective = objective_of(result.record["task"]["kind"])
    by_loss = objective.generates or result.record["spec"]["training"].get("selection_metric") == "nll"
    return objective.loss_metric if by_loss else result.metric


def reliability_figure(results: Sequence[Result], damaged: Callable[[Result, str], None]) -> Figure | None:
    """Confidence against accuracy, a panel a label; None where no run has probabilities.

    Unreadable predictions are told to `damaged`.
    """
    found: dict[str, list[tuple[float, Estimate, float]]] = {}
    for label in labels_of(results):
        pooled: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for result in with_label(results, label):
            if objective_of(result.record["task"]["kind"]).has_classes and result.record["scores"]:
                try:
                    pooled[result.cell.task].append(_probabilities(result))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    damaged(result, f"{PREDICTIONS}: {in_words(error)}")
        if any(pooled.values()):
            found[label] = _pooled_bins([runs for runs in pooled.values() if runs])
    if not found:
        return None
    lowest = min(min(confidence, e.low or 0.0) for bins in found.values() for confidence, e, _ in bins)
    start = max(0.0, floor(10 * min(0.5, lowest)) / 10)
    panels, numbers = [], []
    for label, bins in found.items():
        errors = [ece.mean for r in with_label(results, label) if (ece := r.estimate("ece"))]
        note = f"expected calibration error {mean(errors):.3f}, mean over runs" if errors else ""
        panels.append(Panel(label, Reliability(label, bins, start), note))
        numbers += [{"method": label, "confidence": c, "accuracy": a, "share of rows": s} for c, a, s in bins]
    return Figure(
        "Reliability",
        "Is a prediction with confidence 0.8 right in 80 % of cases? Then its dot lies on the line; below it the model "
        "is too sure. All classification runs together, each test row counted once for the interval. The larger a dot, "
        "the more rows.",
        tuple(panels),
        numbers_table("reliability", "Reliability", numbers),
    )


def _probabilities(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C) and target classes (N,) of a run's test rows."""
    rows = result.run.lines(PREDICTIONS)
    labels = result.record["task"]["labels"]
    targets = np.array([labels.index(row["target"]) for row in rows])
    probabilities = np.array([row["probabilities"] for row in rows], dtype=float)
    return probabilities / probabilities.sum(1, keepdims=True), targets  # they were rounded when they were written


def _pooled_bins(tasks: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> list[tuple[float, Estimate, float]]:
    """Bins over all runs; the runs of a task share their test rows, so each counts as one over their number."""
    totals = np.zeros((BINS, 4))  # rows, right rows, confidence, rows counted once
    for runs in tasks:
        for probabilities, targets in runs:
            for index, found in enumerate(reliability(probabilities, targets, BINS)):
                if found.accuracy is not None and found.confidence is not None:
                    right = found.accuracy.mean * found.count
                    totals[index] += found.count, right, found.confidence * found.count, found.count / len(runs)
    bins = []
    for rows, right, confidence, once in totals:
        if rows:
            share, n = right / rows, max(1, round(once))
            interval = wilson(round(share * n), n)
            assert interval.low is not None and interval.high is not None
            accuracy = Estimate(share, min(interval.low, share), max(interval.high, share), n, method="Wilson")
            bins.append((confidence / rows, accuracy, rows / totals[:, 0].sum()))
    return bins


def cost_figure(results: Sequence[Result]) -> Figure:
    """Training time and peak memory of every run."""
    labels = labels_of(results)

    def values(name: str) -> list[tuple[str, list[float]]]:
        found = {label: [r.record["fit"][name] for r in results if r.label == label] for label in labels}
        return [(label, [float(value) for value in of if value is not None]) for label, of in found.items()]

    numbers = [
        {
            "method": r.label, "task": r.cell.task, "shots": r.cell.shots, "seed": r.cell.seed,
            "training seconds": r.record["fit"]["seconds"], "peak memory MB": r.record["fit"]["peak_memory_mb"],
        }
        for r in results
    ]  # fmt: skip
    return Figure(
        "Training time and peak memory",
        "A dot a run; the line is the median. Memory is the most that the process had taken until the run ended: where "
        "one process did many runs, that of the largest so far.",
        (
            Panel("Training time", Strips(values("seconds"), "seconds")),
            Panel("Peak memory", Strips(values("peak_memory_mb"), "MB")),
        ),
        numbers_table("time-and-memory", "Time and memory", numbers),
    )


def landscape_figure(results: Sequence[Result], damaged: Callable[[Result, str], None]) -> Figure | None:
    """Dev loss over the triangle of three vertices, of runs that were asked for it; None where there is none."""
    panels, numbers = [], []
    for result in results:
        try:
            if (content := result.run.landscape()) is None:
                continue
            panel = _triangle(result, content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged(result, f"{LANDSCAPE}: {in_words(error)}")
            continue
        panels.append(panel)
        assert isinstance(panel.drawing, Triangle)
        where = dict(zip(("task", "shots", "seed"), result.cell, strict=True)) | {"method": result.label}
        names = ("vertex 1", "vertex 2", "vertex 3", panel.drawing.metric)
        numbers += [where | dict(zip(names, point, strict=True)) for point in panel.drawing.points]
    if not panels:
        return None
    more = f" {LANDSCAPES} of {len(panels)} are shown; the CSV has all." if len(panels) > LANDSCAPES else ""
    return Figure(
        "Landscape of the simplex",
        "Loss on development rows over the triangle of the first three vertices, dark is low; the ring marks the "
        f"midpoint, which is what predicts. A low, flat middle is what training asks for.{more}",
        tuple(panels[:LANDSCAPES]),
        _landscape_numbers(numbers),
    )


def _landscape_numbers(numbers: Sequence[Mapping[str, Any]]) -> Table:
    """All points; runs of several metrics leave the others' columns empty."""
    names = list(dict.fromkeys(name for row in numbers for name in row))
    return numbers_table("landscape", "Landscape", [{name: row.get(name) for name in names} for row in numbers])


def _triangle(result: Result, content: Mapping[str, Any]) -> Panel:
    points = [(float(a), float(b), float(c), float(loss)) for a, b, c, loss in content["points"]]
    midpoint, count = float(content["midpoint"]), int(content["num_vertices"])
    corners = ", ".join(f"{loss:.3g}" for *weights, loss in points if max(weights) == 1)
    note = f"{content['metric']} on {content['rows']:,} rows: midpoint {midpoint:.3g}, vertices {corners}"
    if count > 3:
        note += f"; the midpoint of all {count} lies outside of the triangle"
    cell = result.cell
    geometry = result.record["spec"]["method"].get("geometry", "simplex")
    drawing = Triangle(points, str(content["metric"]), count == 3 and geometry == "simplex")
    return Panel(f"{cell.task}, {cell.shots:,} shots, seed {cell.seed}", drawing, f"{result.label}: {note}")
