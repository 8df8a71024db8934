"""What a figure shows: its panels as numbers, drawn by `plots`, and the same numbers as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from handful.evaluation.estimate import Estimate
from handful.reports.table import Table


@final
@dataclass(frozen=True)
class Scores:
    """Estimates (y) at numbers of shots (x), a series a label."""

    series: dict[str, list[tuple[int, Estimate]]]
    metric: str


@final
@dataclass(frozen=True)
class Intervals:
    """One estimate a label, under each other; `reference` is a value to compare with, such as 0."""

    rows: list[tuple[str, Estimate]]
    axis: str
    reference: float | None = None


@final
@dataclass(frozen=True)
class Curves:
    """Points (epoch, score) of runs, several a label."""

    runs: list[tuple[str, list[tuple[float, float]]]]
    axis: str


@final
@dataclass(frozen=True)
class Reliability:
    """Bins of confidence of one label: (confidence, accuracy, share of the rows). Both axes begin at `start`."""

    label: str
    bins: list[tuple[float, Estimate, float]]
    start: float


@final
@dataclass(frozen=True)
class Strips:
    """Values of runs, a row a label."""

    rows: list[tuple[str, list[float]]]
    axis: str


@final
@dataclass(frozen=True)
class Dots:
    """One value of each label in each row, from 0."""

    rows: list[tuple[str, dict[str, float]]]
    axis: str


@final
@dataclass(frozen=True)
class Triangle:
    """Losses at points (w1, w2, w3, loss) of a triangle; `midpoint` where it lies in the middle of it."""

    points: list[tuple[float, float, float, float]]
    metric: str
    has_midpoint: bool


OPENNESS = ("open", "soft", "closed")


@final
@dataclass(frozen=True)
class GateMap:
    """Shares of gates that are open, soft and closed, by layer (x), a row a part of the layers."""

    rows: list[tuple[str, dict[int, tuple[float, float, float]]]]


@final
@dataclass(frozen=True)
class Tradeoff:
    """Estimates (y) of lines of methods by what was gained (x); `references` gained nothing and lie at `start`.

    `left` names the axis on top that counts down from 100, where x is a share of a whole in %.
    """

    lines: dict[str, list[tuple[float, Estimate]]]
    references: list[tuple[str, Estimate]]
    start: float
    axis: str
    metric: str
    left: str = ""


SHARES = ("less than ¼ of an even share", "¼ to ¾", "about an even share", "1¼ to 2", "2 to 4", "more than 4")
SHARE_LIMITS = (0.25, 0.75, 1.25, 2.0, 4.0)
"""Where each of them ends."""


@final
@dataclass(frozen=True)
class RoutingMap:
    """Weights of skills, in even shares, for tasks (rows): blocks (name, weights of tasks by skills) side by side."""

    tasks: list[str]
    blocks: list[tuple[str, list[list[float]]]]
    axis: str


@final
@dataclass(frozen=True)
class Dendrogram:
    """Leaves from top to bottom, and links (y, y', x, x', x''): from (x, y) over x' to (x'', y')."""

    leaves: list[str]
    links: list[tuple[float, float, float, float, float]]
    axis: str


Drawing = (
    Scores | Intervals | Curves | Reliability | Strips | Dots | Triangle | GateMap | Tradeoff | RoutingMap | Dendrogram
)


@final
@dataclass(frozen=True)
class Panel:
    """One drawing with a title and a line below it."""

    title: str
    drawing: Drawing
    note: str = ""


@final
@dataclass(frozen=True)
class Figure:
    """Panels that share a legend, and the numbers in them.

    `palette` are the names that colours stand for; empty: the labels of the report.
    """

    title: str
    note: str
    panels: tuple[Panel, ...]
    numbers: Table
    legend: tuple[str, ...] = ()
    palette: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the CSV file with its numbers."""
        return self.numbers.name
