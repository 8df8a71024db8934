"""The figures of gates and pruning: what is closed where, how it came to close, and what it costs in scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal, NamedTuple, final

from handful.errors import in_words
from handful.evaluation.estimate import Estimate
from handful.reports.figure import OPENNESS, Curves, Figure, GateMap, Panel, Tradeoff
from handful.reports.gates import EXPORT, GateRecord, gates_of, lines_of, measured_speed
from handful.reports.table import Value, numbers_table
from handful.reports.tables import score_estimate
from handful.studies.compare import Summary, labels_of
from handful.studies.results import Result

MAPS = 6
"""Gate maps drawn; the numbers of all are in the CSV."""

_SHARES = {"removed": "parameters of what is closed, %", "closed": "gates closed, %", "soft": "gates soft, %"}

Damaged = Callable[[Result, str], None]


def gate_map_figure(results: Sequence[Result]) -> Figure | None:
    """Open, soft and closed gates by layer, a panel a run; None where no run has gates."""
    gated = [(result, gates) for result in results if (gates := gates_of(result)) and gates.parts]
    if not gated:
        return None
    numbers = [
        {
            "task": result.cell.task, "shots": result.cell.shots, "seed": result.cell.seed, "method": result.label,
            "layer": part.layer, "part": part.name, "matrix": part.matrix, "side": part.side,
            "open": part.open, "soft": part.soft, "closed": part.closed,
        }
        for result, gates in gated
        for part in gates.parts
    ]  # fmt: skip
    more = f" {MAPS} of {len(gated)} runs are shown; the CSV has all." if len(gated) > MAPS else ""
    return Figure(
        "Gates by layer",
        "How many gates of each part of a layer are open (1), soft (between) and closed (0): what is closed adds "
        f"nothing.{more}",
        tuple(_gate_map(result, gates) for result, gates in _chosen(gated)),
        numbers_table("gate-map", "Gates by layer", numbers),
        OPENNESS,
        OPENNESS,
    )


def _chosen(gated: Sequence[tuple[Result, GateRecord]]) -> list[tuple[Result, GateRecord]]:
    """Those drawn: a run of every label before a second one, learned gates, which have soft ones, before cuts."""
    turns: dict[str, int] = defaultdict(int)
    order = []
    for place, (result, gates) in enumerate(gated):
        order.append((turns[result.label], not gates.soft, place))
        turns[result.label] += 1
    chosen = [gated[place] for *_, place in sorted(order)[:MAPS]]
    return sorted(chosen, key=lambda one: len({part.name for part in one[1].parts}))  # low panels in one row


def _gate_map(result: Result, gates: GateRecord) -> Panel:
    rows: dict[str, dict[int, tuple[float, float, float]]] = defaultdict(dict)
    for part in gates.parts:
        rows[part.name][part.layer] = part.shares
    cell = result.cell
    note = (
        f"{cell.task}, {cell.shots:,} shots, seed {cell.seed}: {100 * gates.closed:.0f} % of gates closed, "
        f"{100 * gates.soft:.0f} % soft; {100 * gates.dense:.0f} % of parameters removed"
    )
    return Panel(result.label, GateMap(list(rows.items())), note)


def sparsity_figure(results: Sequence[Result]) -> Figure | None:
    """Shares removed, closed and soft during training; None where no run has a history of learned gates."""
    gated = [result for result in results if _closes(result.record["fit"]["history"])]
    if not gated:
        return None
    shots = max(result.cell.shots for result in gated)
    numbers: list[Mapping[str, Value]] = [
        {
            "task": r.cell.task, "shots": r.cell.shots, "seed": r.cell.seed, "method": r.label, "step": point["step"],
            "epoch": point["epoch"], **{share: point[share] for share in _SHARES},
        }
        for r in gated
        for point in r.record["fit"]["history"]
    ]  # fmt: skip
    panels = []
    for share, axis in _SHARES.items():
        runs = [
            (r.label, [(point["epoch"], 100 * point[share]) for point in r.record["fit"]["history"]])
            for r in gated
            if r.cell.shots == shots
        ]
        panels.append(Panel("", Curves(runs, axis)))
    return Figure(
        "Sparsity during training",
        f"Of learned gates, at {shots:,} shots. Thin: one run. Thick: the mean over runs, as far as all of them got.",
        tuple(panels),
        numbers_table("sparsity-curves", "Sparsity during training", numbers),
        tuple(labels_of(gated)),
    )


def _closes(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether gates close in training, or could have; what is cut before has no course to show."""
    if any(point.get(share) is None for point in history for share in _SHARES):
        return False
    removed = {point["removed"] for point in history}
    return len(removed) > 1 or removed == {0}


class Where(NamedTuple):
    """What a panel of scores is about."""

    task: str
    metric: str
    shots: int


@final
@dataclass(frozen=True)
class _Point:
    """A label there: its score, the % of parameters removed, how many times as fast its fastest exports are.

    And the % of parameters that those leave out.
    """

    label: str
    score: Estimate
    removed: float | None
    speed: float | None
    left_out: float | None


def tradeoff_figures(summaries: Sequence[Summary], results: Sequence[Result], damaged: Damaged) -> tuple[Figure, ...]:
    """Score by what was removed and, where exports in run folders measured it, by speed; a panel a task and shots."""
    points = _points(summaries, results, damaged)
    lines = lines_of(result for result in results if gates_of(result))
    names = tuple(dict.fromkeys(lines.get(point.label, point.label) for here in points.values() for point in here))
    removed = [_panel(where, here, lines, "removed") for where, here in points.items()]
    speed = [
        _panel(where, here, lines, "speed") for where, here in points.items() if any(p.speed is not None for p in here)
    ]
    told_apart = [
        (where._asdict(), p, {"method": p.label, "line": lines.get(p.label)})
        for where, here in points.items()
        for p in here
    ]
    numbers = [
        {**where, **who, "removed %": p.removed, "score": p.score,
         "multiply-adds left %": None if p.removed is None else 100 - p.removed}
        for where, p, who in told_apart
    ]  # fmt: skip
    fast = [
        {**where, **who, "times as fast": p.speed, "of the export, removed %": p.left_out, "score": p.score}
        for where, p, who in told_apart
        if p.speed is not None
    ]
    of_fast = tuple(dict.fromkeys(lines[record["method"]] for record in fast))
    told = "Mean and 95 % interval, over seeds; where there is one seed, over its test rows. Lines join the targets of "
    told += "a method; dashed: what removes nothing. Dots stand a little apart so as not to hide each other. "
    what = (
        "Removed is what a dense export leaves out, of what gates could remove; what else is closed stays there as "
        "zeros. The upper axis has the multiply-adds of these matrices that are left, attention's own apart."
    )
    figures = (
        Figure(
            "Score by removed parameters", told + what, tuple(removed),
            numbers_table("score-by-removed", "Score by removed parameters", numbers), names, names,
        ),
        Figure(
            "Score by measured speed",
            f"{told}Speed is what dense and compact exports in the run folders measured ({EXPORT}): of several of a "
            "run, the fastest.",
            tuple(speed), numbers_table("score-by-speed", "Score by speed", fast), of_fast, names,
        ),
    )  # fmt: skip
    return tuple(figure for figure in figures if figure.panels)


def _points(summaries: Sequence[Summary], results: Sequence[Result], damaged: Damaged) -> dict[Where, list[_Point]]:
    """Labels with gates, where there are any, and beside them those without, on the same pretrained models."""
    gated = {result.label for result in results if gates_of(result)}
    models = {result.record["backbone"]["fingerprint"] for result in results if result.label in gated}
    points: dict[Where, list[_Point]] = defaultdict(list)
    for one in summaries:
        runs = [r for r in results if (r.label, r.cell.task, r.cell.shots) == (one.label, one.task, one.shots)]
        if one.task is None or not {run.record["backbone"]["fingerprint"] for run in runs} <= models:
            continue
        removed = [100 * gates.dense for run in runs if (gates := gates_of(run))]
        speeds = [speed for run in runs if removed and (speed := _speed(run, damaged)) is not None]
        speed, left_out = (median(values) for values in zip(*speeds, strict=True)) if speeds else (None, None)
        points[Where(one.task, one.metric, one.shots)].append(
            _Point(
                one.label, score_estimate(one, results), mean(removed) if removed else None, speed,
                None if left_out is None else 100 * left_out,
            )
        )  # fmt: skip
    return {where: here for where, here in sorted(points.items()) if any(p.label in gated for p in here)}


def _speed(result: Result, damaged: Damaged) -> tuple[float, float] | None:
    try:
        return measured_speed(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        damaged(result, f"{EXPORT}: {in_words(error)}")
        return None


def _panel(where: Where, here: Sequence[_Point], lines: Mapping[str, str], gain: Literal["removed", "speed"]) -> Panel:
    series: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
    for point in here:
        x = getattr(point, gain)
        if point.removed is not None and x is not None:
            series[lines[point.label]].append((x, point.score))
    references = [(point.label, point.score) for point in here if point.removed is None]
    start, axis, left = (
        (0.0, "parameters removed, %", "multiply-adds of the matrices left, %")
        if gain == "removed"
        else (1.0, "times as fast as the whole model", "")
    )
    return Panel(
        where.task, Tradeoff(dict(series), references, start, axis, where.metric, left), f"{where.shots:,} shots"
    )
