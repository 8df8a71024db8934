"""What runs say about their routing: which skills each task uses, and how each member of a task of tasks fared."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final, get_args

import numpy as np
import torch

from handful.evaluation.estimate import Estimate
from handful.evaluation.metrics import get_metric
from handful.methods.poly.routing import Gate, gated_weights, lead_at, led
from handful.methods.poly.routing_measures import task_similarity
from handful.reports.gates import matrix_name
from handful.studies.results import Result

LOGITS = "routing.logits"


@final
@dataclass(frozen=True)
class RoutingRecord:
    """The routing of a run, as its record has it; a measure that it does not have is None."""

    skills: str
    num_skills: int
    num_splits: int
    tasks: tuple[str, ...]
    routers: tuple[str, ...]
    gate: Gate
    usage: float | None
    discreteness: float | None
    sparsity: float | None
    alignment: float | None


def routing_of(result: Result) -> RoutingRecord | None:
    """The routing of a run, None where it has none. Raises: KeyError, TypeError or ValueError for a damaged record."""
    adapter: Mapping[str, Any] = result.record.get("adapter", {})
    if "routers" not in adapter:
        return None
    measures = {name: adapter.get(name) for name in ("usage", "discreteness", "sparsity", "alignment")}
    return RoutingRecord(
        str(adapter["skills"]), int(adapter["num_skills"]), int(adapter["num_splits"]),
        tuple(map(str, adapter["tasks"])), tuple(map(str, adapter["routers"])), _gate(adapter["gate"]),
        *(None if measure is None else float(measure) for measure in measures.values()),
    )  # fmt: skip


def _gate(name: object) -> Gate:
    if name not in get_args(Gate):
        raise ValueError(f"no such gate: {name!r}")
    return cast(Gate, name)


def alignment_of(result: Result) -> list[tuple[float, float]]:
    """(epoch, mean cosine between gradients of tasks) of the evaluations of a run that measured it."""
    history = result.record["fit"]["history"]
    return [(point["epoch"], point["alignment"]) for point in history if point.get("alignment") is not None]


def logits_and_weights(result: Result, routing: RoutingRecord) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Its logits and the weights of skills that it uses, both (R, T, q, S); None where routing was not learned.

    Raises: RunError for damaged tensors, ValueError for those that are not of the record.
    """
    saved = result.run.weights()
    logits = saved.get(LOGITS)
    if logits is None:
        return None
    shape = (len(routing.routers), len(routing.tasks), routing.num_splits, routing.num_skills)
    if tuple(logits.shape) != shape:
        raise ValueError(f"expected {LOGITS} of shape {shape}, found {tuple(logits.shape)}")
    share = float(result.record["spec"]["method"].get("uniform_share", 0.0))
    lead = lead_at(float(saved["progress"]), share) if share else 1.0
    return logits, led(gated_weights(logits.double(), routing.gate), lead)


class Router(NamedTuple):
    """A router: its place in the table, and what it is called among its like."""

    index: int
    name: str


def router_groups(routers: Sequence[str]) -> dict[str, list[Router]]:
    """Routers that have the same place in their layers, called after their layers: {"query": [0, 1, 2], …}."""
    stacks = {name.partition(".")[0] for name in routers} >= {"encoder", "decoder"}
    groups: dict[str, list[Router]] = defaultdict(list)
    for index, router in enumerate(routers):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", router)
        if not number:
            groups["model"].append(Router(index, router))
            continue
        stack = f"{router.partition('.')[0]} " if stacks else ""
        group = matrix_name(router, stacks) if number.end() < len(router) else f"{stack}layers"
        groups[group].append(Router(index, number[1]))
    return dict(groups)


@final
@dataclass(frozen=True)
class Tree:
    """Tasks by how alike their skills are: `order` (T,) puts like ones beside each other, and links join them.

    A link (y, y', x, x', x'') joins two branches that stand at y and y' of that order and were made at the distances
    x and x''; they meet at x', the mean over their pairs of tasks of 1 − the cosine (UPGMA).
    """

    order: tuple[int, ...]
    links: tuple[tuple[float, float, float, float, float], ...]


def tree_of(weights: torch.Tensor) -> Tree:
    """The tree of the tasks of weights (R, T, q, S); fewer than three have none, only an order."""
    tasks = weights.shape[1]
    if tasks < 3:
        return Tree(tuple(range(tasks)), ())
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    distances = (1 - task_similarity(weights)).clamp(min=0).fill_diagonal_(0).numpy()
    drawn = dendrogram(linkage(squareform(distances, checks=False), "average"), no_plot=True)
    links = tuple(
        ((ys[0] - 5) / 10, (ys[3] - 5) / 10, xs[0], xs[1], xs[3])  # SciPy's leaves stand at 5, 15, …
        for ys, xs in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    )
    return Tree(tuple(drawn["leaves"]), links)


def shares_of(weights: torch.Tensor) -> np.ndarray:
    """Weights (…, S) in even shares: 1 is the weight that a skill has where all have the same."""
    return (weights * weights.shape[-1]).numpy()


def members_of(result: Result) -> dict[str, tuple[str, Estimate]]:
    """The metric and score of each member of a task of tasks; empty for other tasks and where there are no scores.

    Raises: KeyError, TypeError or ConfigError for a damaged record.
    """
    metrics = {member["name"]: get_metric(member["metric"]).name for member in result.record["task"].get("members", ())}
    scores: Mapping[str, Any] = result.record.get("members", {})
    return {
        name: (metrics[name], Estimate.from_dict(scores[name][metrics[name]])) for name in metrics if name in scores
    }
