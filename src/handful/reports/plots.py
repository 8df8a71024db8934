"""The drawings of a report as SVG, the only place that knows matplotlib.

No colour is final: each stands for a variable of the page's style sheet (`--ink`, `--series-0`, …), so that the same
drawing is right on a light and on a dark page. Text stays text, in the page's font. No text of the data is read as a
formula, and all of it is escaped by matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import singledispatch
from itertools import pairwise
from math import ceil, floor, log10, sqrt
from statistics import mean, median
from typing import Any
from xml.etree import ElementTree

import numpy as np

from handful.errors import ConfigError
from handful.evaluation.estimate import Estimate
from handful.reports.figure import (
    SHARE_LIMITS,
    Curves,
    Dendrogram,
    Dots,
    Drawing,
    GateMap,
    Intervals,
    Reliability,
    RoutingMap,
    Scores,
    Strips,
    Tradeoff,
    Triangle,
)
from handful.reports.table import shown_number

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator
except ImportError as error:
    raise ConfigError(
        f"the figures of a report need matplotlib, which cannot be imported: {error}", "pip install 'handful[plot]'"
    ) from None

INK, MUTED, FAINT, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0500{index:02d}" for index in range(8))
"""Names of colours, not colours: `_VARIABLES` turns them into variables of the page."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--line", PAPER: "--paper"}
_VARIABLES |= {colour: f"--series-{index}" for index, colour in enumerate(SERIES)}
_COLOURS = re.compile("|".join(_VARIABLES))
_DIGITS = re.compile(r"-?\d+\.\d{3,}")

MARKERS = "osD^vPX*"
LONG = 8
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

CROWD = 5
"""From more labels on, lines of a panel are thin and dots stand further apart."""

WIDTH, HEIGHT = 4.7, 3.3
"""Inches of 72 units; a panel is about as wide as a phone."""

_OPENNESS: Any = (
    {"color": SERIES[0], "linewidth": 0}, {"color": SERIES[0], "linewidth": 0, "alpha": 0.5},
    {"color": FAINT, "linewidth": 0},
)  # fmt: skip

_SHARE_ALPHAS = (0.06, 0.16, 0.3, 0.5, 0.75, 1.0)
"""How strong the colour of a skill's weight is, by `SHARE_LIMITS`."""

_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "handful", "text.parse_math": False,
    "axes.unicode_minus": True, "font.family": "DejaVu Sans",
    "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED, "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "xtick.major.size": 3, "ytick.major.size": 0, "xtick.major.width": 0.8, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": FAINT, "grid.linewidth": 0.8, "axes.axisbelow": True, "lines.linewidth": 1.4,
}  # fmt: skip


def draw(drawing: Drawing, labels: Sequence[str], name: str) -> str:
    """One panel as an SVG element. `labels` decides colours; `name` keeps its ids apart from other panels'."""
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's own font will have it
        figure = Figure(figsize=(WIDTH, _height(drawing)), layout="constrained")
        axes = figure.add_subplot()
        _draw(drawing, axes, {label: index for index, label in enumerate(labels)})
        return _for_page(figure, name)


def swatch(index: int) -> str:
    """The mark of a label in a legend, as an SVG element."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(0.2, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.plot([0], [0], **_mark(index, 6.5))
        return _for_page(figure, f"mark-{index}")


def openness_swatch(state: int) -> str:
    """The mark of open (0), soft or closed (2) gates in a legend, as an SVG element."""
    return _square(f"openness-{state}", _OPENNESS[state])


def share_swatch(level: int) -> str:
    """The mark of a weight between two of `SHARE_LIMITS` in a legend, as an SVG element."""
    return _square(f"share-{level}", {"color": SERIES[0], "linewidth": 0, "alpha": _SHARE_ALPHAS[level]})


def _square(name: str, look: Any) -> str:
    with rc_context(_STYLE):
        figure = Figure(figsize=(0.2, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.bar([0], [1], **look)
        return _for_page(figure, name)


def _for_page(figure: Figure, name: str) -> str:
    """The SVG element alone: colours as variables, ids of its own, as wide as the page gives it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true"}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # that style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _rewritten(key, value, name) for key, value in element.items()}
    return ElementTree.tostring(root, encoding="unicode")


def _rewritten(key: str, value: str, name: str) -> str:
    """An attribute's value with ids that begin with `name`, and variables for colours."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value.removeprefix('#')}"
    if key == "d":
        return _DIGITS.sub(lambda found: f"{float(found[0]):.2f}", value)  # a hundredth of a unit cannot be seen
    value = value.replace("url(#", f"url(#{name}-")
    return _COLOURS.sub(lambda found: f"var({_VARIABLES[found[0]]})", value)


def _height(drawing: Drawing) -> float:
    if isinstance(drawing, Intervals | Strips):
        return 0.75 + 0.3 * len(drawing.rows)
    if isinstance(drawing, Dots):
        most = max(len(values) for _, values in drawing.rows)
        return 0.75 + (0.2 + 0.1 * most) * len(drawing.rows)
    if isinstance(drawing, GateMap):
        return 0.75 + max(0.3 * len(drawing.rows), min(1.6, 0.8 * len(drawing.rows)))
    if isinstance(drawing, RoutingMap | Dendrogram):
        return 0.7 + 0.2 * len(drawing.tasks if isinstance(drawing, RoutingMap) else drawing.leaves)
    return WIDTH * 0.86 if isinstance(drawing, Reliability) else HEIGHT


def _mark(index: int, size: float = 5.5) -> Any:
    """How the dots of a label look; past eight labels, colours come again with other shapes."""
    return {
        "color": SERIES[index % 8], "marker": MARKERS[(index + index // 8) % 8], "markersize": size,
        "linestyle": "none", "markeredgewidth": 0,
    }  # fmt: skip


@singledispatch
def _draw(drawing: Any, axes: Axes, places: dict[str, int]) -> None:
    raise TypeError(f"no drawing: {drawing!r}")


@_draw.register
def _scores(drawing: Scores, axes: Axes, places: dict[str, int]) -> None:
    shots = sorted({x for points in drawing.series.values() for x, _ in points})
    ratio, count = min(b / a for a, b in pairwise(shots)) ** 0.5, len(drawing.series)
    crowded = count > CROWD
    for position, (label, points) in enumerate(drawing.series.items()):
        shift = ratio ** ((0.7 if crowded else 0.4) * (2 * position / max(1, count - 1) - 1))
        look, points = _mark(places[label]), sorted(points, key=lambda point: point[0])
        xs = [x * shift for x, _ in points]
        axes.plot(xs, [e.mean for _, e in points], color=look["color"], linewidth=1, alpha=0.25 if crowded else 0.55)
        for x, (_, estimate) in zip(xs, points, strict=True):
            _interval(axes, estimate, x, look, vertical=True, width=1.1 if crowded else 1.7)
    axes.set_xscale("log")
    axes.set_xlim(shots[0] / ratio**1.1, shots[-1] * ratio**1.1)
    axes.xaxis.set_major_locator(FixedLocator(shots))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("labelled rows")
    axes.set_ylabel(drawing.metric)


def _interval(axes: Axes, estimate: Estimate, at: float, look: Any, *, vertical: bool, width: float = 1.7) -> None:
    """A dot with its interval; without an interval the dot is hollow."""
    if estimate.low is None or estimate.high is None:
        look = look | {"markerfacecolor": PAPER, "markeredgecolor": look["color"], "markeredgewidth": 1.4}
    else:
        ends = (estimate.low, estimate.high)
        line = ((at, at), ends) if vertical else (ends, (at, at))
        axes.plot(*line, color=look["color"], linewidth=width, solid_capstyle="round")
    axes.plot(*((at, estimate.mean) if vertical else (estimate.mean, at)), **look)


@_draw.register
def _intervals(drawing: Intervals, axes: Axes, places: dict[str, int]) -> None:
    for row, (label, estimate) in enumerate(drawing.rows):
        _interval(axes, estimate, row, _mark(places[label], 6.5), vertical=False)
    if drawing.reference is not None:
        axes.axvline(drawing.reference, color=MUTED, linewidth=1)
    _rows(axes, [label for label, _ in drawing.rows], short(drawing.axis, 40))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _rows(axes: Axes, labels: Sequence[str], axis: str) -> None:
    """A row a label, the first on top."""
    axes.set_yticks(range(len(labels)), [short(label) for label in labels])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis)


@_draw.register
def _curves(drawing: Curves, axes: Axes, places: dict[str, int]) -> None:
    of_label: dict[str, list[dict[float, float]]] = defaultdict(list)
    for label, points in drawing.runs:
        of_label[label].append(dict(points))
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), color=SERIES[places[label] % 8], linewidth=0.8, alpha=0.35)
    for label, runs in of_label.items():
        shared = sorted(set.intersection(*map(set, runs)))
        means = [mean(run[x] for run in runs) for x in shared]
        look = _mark(places[label], 4)
        axes.plot(shared, means, color=look["color"], linewidth=1.9)
        axes.plot(shared[-1:], means[-1:], **look | {"markersize": 6.5})
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("epoch")
    axes.set_ylabel(drawing.axis)


@_draw.register
def _reliability(drawing: Reliability, axes: Axes, places: dict[str, int]) -> None:
    look = _mark(places[drawing.label])
    start = drawing.start
    axes.plot([start, 1], [start, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for confidence, accuracy, share in drawing.bins:
        size = 3.5 + 13 * sqrt(share)
        _interval(axes, accuracy, confidence, look | {"markersize": size, "marker": "o"}, vertical=True)
    axes.set_xlim(start - 0.02, 1.03)
    axes.set_ylim(start - 0.02, 1.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.1 if start >= 0.4 else 0.2))
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")


@_draw.register
def _strips(drawing: Strips, axes: Axes, places: dict[str, int]) -> None:
    for row, (label, values) in enumerate(drawing.rows):
        look = _mark(places[label], 6.5)
        alone, middle = len(values) == 1, median(values)
        axes.plot(values, [row] * len(values), **look | {"alpha": 1 if alone else 0.4})
        if alone:
            continue
        axes.plot([middle, middle], [row - 0.28, row + 0.28], color=INK, linewidth=1.8, solid_capstyle="round")
    everything = [value for _, values in drawing.rows for value in values]
    if min(everything) > 0 and max(everything) > LONG * min(everything):
        axes.set_xscale("log")
        ticks = _round_ticks(min(everything), max(everything))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(*ticks, *everything) / 1.1, max(*ticks, *everything) * 1.1)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: shown_number(float(x))))
    _rows(axes, [label for label, _ in drawing.rows], short(drawing.axis, 40))


@_draw.register
def _dots(drawing: Dots, axes: Axes, places: dict[str, int]) -> None:
    for row, (_, values) in enumerate(drawing.rows):
        for position, (label, value) in enumerate(values.items()):
            at = row + 0.7 * ((position + 0.5) / len(values) - 0.5)
            look = _mark(places[label])
            axes.plot([0, value], [at, at], color=look["color"], linewidth=1, alpha=0.4)
            axes.plot(value, at, **look)
    largest = max(value for _, values in drawing.rows for value in values.values()) or 1.0
    axes.set_xlim(-0.02 * largest, 1.04 * largest)
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    _rows(axes, [name for name, _ in drawing.rows], drawing.axis)


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis around these: each power of ten and, where they are few, three times it."""
    powers = [10.0**power for power in range(floor(log10(low)) - 1, ceil(log10(high)) + 1)]
    ticks = powers if high > 1000 * low else [step * power for power in powers for step in (1, 3)]
    return [tick for tick in ticks if low / 2 <= tick <= high * 1.3]


@_draw.register
def _triangle(drawing: Triangle, axes: Axes, places: dict[str, int]) -> None:
    del places
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, sqrt(0.75)]])
    points = np.array(drawing.points)
    x, y = (points[:, :3] @ corners).T
    low, high = points[:, 3].min(), points[:, 3].max()
    levels = np.linspace(low, high, 13) if high > low else [low - 1e-6, low + 1e-6]
    filled = axes.tricontourf(x, y, points[:, 3], levels=levels, cmap="viridis")
    filled.set_edgecolor("face")  # no light seams between levels
    axes.plot(*corners[[0, 1, 2, 0]].T, color=MUTED, linewidth=1)
    for number, (left, up, side) in enumerate(((-0.035, 0, "right"), (1.035, 0, "left"), (0.5, 0.89, "center")), 1):
        axes.text(left, up, str(number), ha=side, va="bottom" if number == 3 else "center", color=INK)
    if drawing.has_midpoint:
        axes.plot(
            *corners.mean(0), marker="o", markersize=9, markerfacecolor="none", markeredgecolor="#ffffff",
            markeredgewidth=2.2,
        )  # fmt: skip
    axes.set_aspect("equal")
    axes.axis("off")
    bar = axes.figure.colorbar(filled, ax=axes, shrink=0.8, aspect=24, pad=0.03, ticks=MaxNLocator(4))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    bar.set_label(f"dev {drawing.metric}")


@_draw.register
def _gate_map(drawing: GateMap, axes: Axes, places: dict[str, int]) -> None:
    """A stack a layer and row, from the bottom: open, soft, closed."""
    del places
    for row, (_, layers) in enumerate(drawing.rows):
        bottom = np.full(len(layers), row + 0.41)
        for state, shares in enumerate(zip(*layers.values(), strict=True)):
            heights = -0.82 * np.array(shares)  # rows count downwards
            axes.bar(list(layers), heights, 0.86, bottom, **_OPENNESS[state])
            bottom += heights
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.margins(x=0.01)
    _rows(axes, [short(label, 34) for label, _ in drawing.rows], "layer")


@_draw.register
def _routing_map(drawing: RoutingMap, axes: Axes, places: dict[str, int]) -> None:
    """A narrow column a skill; all cells of one level are one path, or the page would be large."""
    del places
    cells: dict[int, list[tuple[float, float, float, float]]] = defaultdict(list)  # left, top, width, height
    ticks: list[tuple[float, str]] = []
    left = 0.0
    for name, weights in drawing.blocks:
        skills = len(weights[0])
        cells[0].append((left, -0.42, skills - 0.06, len(weights) - 0.16))
        for row, shares in enumerate(weights):
            for column, level in enumerate(np.searchsorted(SHARE_LIMITS, shares)):
                if level:
                    cells[int(level)].append((left + column, row - 0.42, 0.94, 0.84))
        ticks.append((left + skills / 2, short(name, 12)))
        left += skills + 0.9
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level, found in sorted(cells.items()):
        points = [(x + i * w, y + j * h) for x, y, w, h in found for i, j in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        path = Path(points, codes * len(found))  # type: ignore[arg-type]
        axes.add_patch(PathPatch(path, facecolor=SERIES[0], linewidth=0, alpha=_SHARE_ALPHAS[level]))
    axes.set_xlim(0, left - 0.9)
    axes.set_xticks(*zip(*ticks[:: ceil(len(ticks) / 12)], strict=True))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    _rows(axes, [short(task, 18) for task in drawing.tasks], drawing.axis)


@_draw.register
def _dendrogram(drawing: Dendrogram, axes: Axes, places: dict[str, int]) -> None:
    del places
    for top, bottom, near, joint, far in drawing.links:
        axes.plot([near, joint, joint, far], [top, top, bottom, bottom], color=SERIES[0], linewidth=1.2)
    axes.grid(visible=False)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _rows(axes, drawing.leaves, drawing.axis)


@_draw.register
def _tradeoff(drawing: Tradeoff, axes: Axes, places: dict[str, int]) -> None:
    gained = [x for points in drawing.lines.values() for x, _ in points]
    span = max(*gained, drawing.start) - min(*gained, drawing.start) or 1.0
    apart, crowded = 0.014 * span, len(drawing.lines) > CROWD
    for position, (name, estimate) in enumerate(drawing.references):
        look = _mark(places[name])
        axes.axhline(estimate.mean, color=look["color"], linewidth=1, linestyle=(0, (4, 3)), alpha=0.8)
        at = drawing.start + apart * (position - (len(drawing.references) - 1) / 2)
        _interval(axes, estimate, at, look, vertical=True)
    for position, (name, points) in enumerate(drawing.lines.items()):
        look, points = _mark(places[name]), sorted(points, key=lambda point: point[0])
        xs = [x + apart * (position - (len(drawing.lines) - 1) / 2) for x, _ in points]
        axes.plot(xs, [e.mean for _, e in points], color=look["color"], linewidth=1.2, alpha=0.55)
        for x, (_, estimate) in zip(xs, points, strict=True):
            _interval(axes, estimate, x, look, vertical=True, width=1.1 if crowded else 1.7)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(drawing.axis)
    axes.set_ylabel(drawing.metric)
    if drawing.left:
        top = axes.secondary_xaxis("top", functions=(_left_of_100, _left_of_100))
        top.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        top.set_xlabel(drawing.left)
        top.spines["top"].set_visible(False)


def _left_of_100(x: Any) -> Any:
    return 100 - x


def short(text: str, longest: int = 26) -> str:
    """A text of the data in a drawing: on one line, printable, not too long."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return line if len(line) <= longest else line[: longest - 1] + "…"
