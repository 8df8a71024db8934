"""The figures of routing: which task uses which skills where, which tasks are alike, how their gradients agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import final

import numpy as np
import torch

from handful.errors import RunError
from handful.methods.poly.routing_measures import discreteness, sparsity, task_similarity, usage
from handful.reports.figure import SHARE_LIMITS, SHARES, Curves, Dendrogram, Figure, Panel, RoutingMap
from handful.reports.routing import (
    LOGITS,
    Router,
    RoutingRecord,
    Tree,
    alignment_of,
    logits_and_weights,
    router_groups,
    routing_of,
    shares_of,
    tree_of,
)
from handful.reports.table import Table, Value, numbers_table
from handful.runs.store import WEIGHTS
from handful.studies.compare import labels_of, with_label
from handful.studies.results import Result

INVENTORIES, PANELS, TASKS, COLUMNS = 3, 12, 48, 64
"""Drawn at most: runs, panels of a run, tasks in a panel, columns in a panel."""

Damaged = Callable[[Result, str], None]


@final
@dataclass(frozen=True)
class Inventory:
    """A run with learned routing over several tasks: logits, weights (R, T, q, S), and the tree of the tasks shown."""

    result: Result
    routing: RoutingRecord
    logits: torch.Tensor
    weights: torch.Tensor
    shown: tuple[int, ...]
    tree: Tree

    @property
    def order(self) -> list[int]:
        """The tasks shown, like ones beside each other."""
        return [self.shown[place] for place in self.tree.order]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [self.routing.tasks[task] for task in self.order]

    @property
    def where(self) -> str:
        """Which run it is, in words."""
        task, shots, seed = self.result.cell
        left_out = len(self.routing.tasks) - len(self.shown)
        more = f", {left_out:,} tasks left out" if left_out else ""
        return f"{task}, {shots:,} shots, seed {seed}{more}"


def inventories(results: Sequence[Result], damaged: Damaged) -> list[Inventory]:
    """Those drawn, one a label: its first run over several tasks with learned routing between several skills.

    Unreadable weights are told to `damaged`.
    """
    found: dict[str, Inventory] = {}
    for result in results:
        routing = routing_of(result)
        if routing and len(routing.tasks) > 1 and routing.num_skills > 1 and result.label not in found:
            try:
                both = logits_and_weights(result, routing)
            except (RunError, ValueError, KeyError, TypeError) as error:
                damaged(result, error.message if isinstance(error, RunError) else f"{WEIGHTS}: {error}")
                continue
            if both is not None:
                shown = tuple(_spread(len(routing.tasks), TASKS))
                tree = tree_of(both[1][:, list(shown)])
                found[result.label] = Inventory(result, routing, *both, shown, tree)
        if len(found) == INVENTORIES:
            break
    return list(found.values())


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def routing_figures(found: Sequence[Inventory]) -> tuple[Figure, ...]:
    """A map an inventory, and one figure with all their trees."""
    maps = tuple(_map_figure(one, number) for number, one in enumerate(found, 1))
    trees = [one for one in found if one.tree.links]
    return (*maps, _tree_figure(trees)) if trees else maps


def _map_figure(one: Inventory, number: int) -> Figure:
    """Small multiples: routers of one kind in one panel, as far as they have room."""
    routing, shares = one.routing, shares_of(one.weights[:, one.order])
    chosen = list(_panels(routing))
    drawn = [chosen[index] for index in _spread(len(chosen), PANELS)]
    panels, numbers = [], []
    for kind, routers, splits in drawn:
        blocks = [(router, split) for router in routers for split in splits]
        panels.append(_map_panel(one, kind, routers, splits, shares))
        numbers += [
            {"task": one.routing.tasks[task], "router": routing.routers[router.index], "split": split + 1}
            | {
                f"skill {skill + 1}": round(float(share), 4)
                for skill, share in enumerate(shares[router.index, row, split])
            }
            for row, task in enumerate(one.order)
            for router, split in blocks
        ]
    reached = 1 + int(np.searchsorted(SHARE_LIMITS, routing.num_skills))
    less = (
        f" {len(drawn)} of {len(chosen)} panels are shown; {LOGITS} of the run has all." if len(chosen) > PANELS else ""
    )
    return Figure(
        f"Routing of {one.result.label}",
        f"How much of each skill a task (row) uses: {routing.num_skills} narrow columns, one a skill, in every block. "
        f"An even share is 1/{routing.num_skills}; where all are even, nothing was routed. Shown: {one.where}.{less}",
        tuple(panels),
        numbers_table(f"routing-map-{number}", "Routing in even shares", numbers),
        SHARES[:reached],
        SHARES,
    )


def _panels(routing: RoutingRecord) -> Iterator[tuple[str, list[Router], list[int]]]:
    """What stands together: routers of one kind, or as many of them, or of the splits of one, as have room."""
    room = max(1, COLUMNS // routing.num_skills)
    splits = _spread(routing.num_splits, room)
    together = max(1, room // len(splits))
    for kind, routers in router_groups(routing.routers).items():
        for start in range(0, len(routers), together):
            yield kind, routers[start : start + together], splits


def _map_panel(
    one: Inventory, kind: str, routers: Sequence[Router], splits: Sequence[int], shares: np.ndarray
) -> Panel:
    """Blocks are called after what differs between them: layers, splits, or both."""
    in_layers, split_up = routers[0].name.isdecimal(), one.routing.num_splits > 1
    names = [
        [router.name] * (len(routers) > 1 or not split_up) + [str(split + 1)] * split_up
        for router in routers
        for split in splits
    ]
    axis = ["layer"] * (in_layers and (len(routers) > 1 or not split_up)) + ["split"] * split_up
    weights = [shares[router.index, :, split].tolist() for router in routers for split in splits]
    blocks = list(zip(map(":".join, names), weights, strict=True))
    title = kind
    if len(routers) == 1 and split_up:
        some = f", {len(splits)} of {one.routing.num_splits} splits" if len(splits) < one.routing.num_splits else ""
        title += f", {'layer ' * in_layers}{routers[0].name}{some}"
    return Panel(title, RoutingMap(one.names, blocks, ":".join(axis)))


def _tree_figure(found: Sequence[Inventory]) -> Figure:
    numbers: list[Mapping[str, Value]] = []
    panels = []
    for one in found:
        axis = "1 − cosine of their skills"
        panels.append(Panel(one.result.label, Dendrogram(one.names, list(one.tree.links), axis), one.where))
        cosines = task_similarity(one.weights[:, one.order])
        numbers += [
            {"method": one.result.label, "task": a, "other task": b, "cosine": float(cosines[i, j])}
            for i, a in enumerate(one.names)
            for j, b in enumerate(one.names[:i])
        ]
    return Figure(
        "Tasks by the skills they use",
        "Tasks joined on the left are routed alike. The cosine is between their weights in all routers, less the mean "
        "over tasks: unrelated tasks stand at 1 and a little more, whatever all of them share. Joined by the average "
        "over pairs. Where the map is even, there is nothing to be alike in and the tree is one of chance.",
        tuple(panels),
        numbers_table("task-similarity", "Cosines between tasks", numbers),
    )


def alignment_figure(results: Sequence[Result]) -> Figure | None:
    """How far gradients of tasks point the same way during training; None where no run has measured it."""
    found = {id(r): points for r in results if (points := alignment_of(r))}
    measured = [result for result in results if id(result) in found]
    if not measured:
        return None
    numbers: list[Mapping[str, Value]] = [
        {
            "task": r.cell.task, "shots": r.cell.shots, "seed": r.cell.seed, "method": r.label, "epoch": epoch,
            "cosine": cosine,
        }
        for r in measured
        for epoch, cosine in found[id(r)]
    ]  # fmt: skip
    return Figure(
        "Gradients of tasks",
        "Mean cosine between the gradients that the losses of two tasks have for the skills, each on the first 8 of "
        "its training rows: above 0 they help, below 0 they hinder each other. Thin: one run. Thick: the mean over "
        "runs, as far as all of them got.",
        (Panel("", Curves([(r.label, found[id(r)]) for r in measured], "cosine of gradients")),),
        numbers_table("gradient-alignment", "Gradients of tasks", numbers),
        tuple(labels_of(measured)),
    )


def routing_table(results: Sequence[Result]) -> Table:
    """How each label routes: the mean over its runs."""
    rows: list[tuple[Value, ...]] = []
    for label in labels_of(results):
        of_label = [found for run in with_label(results, label) if (found := routing_of(run))]
        by_form: dict[tuple[Value, ...], list[RoutingRecord]] = defaultdict(list)
        for one in of_label:
            form = (one.skills, one.gate, len(one.tasks), len(one.routers), one.num_splits, one.num_skills)
            by_form[form].append(one)
        for form, runs in sorted(by_form.items(), key=repr):
            measures = ([getattr(one, name) for one in runs] for name in _MEASURES)
            rows.append((label, len(runs), *form, *(_mean(values) for values in measures)))
    columns = ("method", "runs", "skills", "gate", "tasks", "routers", "splits", "number", *_MEASURES)
    return Table(
        "routing", "Routing", columns, tuple(rows),
        details=("", "", "", "", "", "", "", "of skills", "1: all skills alike", "bits; 0: on or off",
                 "share of cells on", "mean cosine"),
        note="Mean over runs. A cell is σ(z) of one task and skill; discreteness is its entropy, so less is more "
        "discrete. Usage is the evenness of skills over all tasks.",
    )  # fmt: skip


_MEASURES = ("usage", "discreteness", "sparsity", "alignment")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def routers_table(found: Sequence[Inventory]) -> Table:
    """The same measures by kind of router, from the logits of the inventories drawn."""
    rows: list[tuple[Value, ...]] = []
    for one in found:
        for kind, routers in router_groups(one.routing.routers).items():
            part = one.logits[[router.index for router in routers]]
            rows.append((one.result.label, kind, len(routers), usage(part), discreteness(part), sparsity(part)))
    columns = ("method", "routers", "number", *_MEASURES[:3])
    return Table("routing-by-router", "Routing by kind of router", columns, tuple(rows))
