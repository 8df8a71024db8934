"""The tables of a report: what was run, scores, ranks, comparisons in pairs, cost, every run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import mean, median
from typing import Any

from handful.errors import RunError
from handful.evaluation.estimate import Estimate, estimate_over_seeds
from handful.evaluation.metrics import get_metric
from handful.reports.baseline import BASELINE, baseline_row, baseline_score, member_baselines
from handful.reports.gates import gates_of
from handful.reports.routing import members_of
from handful.reports.table import Table, Value
from handful.runs.metadata import public_model, public_origin
from handful.studies.compare import Comparison, Summary, compare, labels_of, with_label
from handful.studies.ranking import Ranking
from handful.studies.results import Result
from handful.studies.row_noise import RowReader

MEAN = "mean over tasks"


def methods_table(results: Sequence[Result]) -> Table:
    """What each label is, and how much was spent on finding its settings."""
    rows: list[tuple[Value, ...]] = []
    for label in labels_of(results):
        runs = with_label(results, label)
        models = sorted({model_name(run.record) for run in runs})
        trained = [run.record["fit"]["parameters"] for run in runs]
        rows.append((
            label, _listed(run.record["spec"]["method"]["name"] for run in runs), _listed(models), len(runs),
            _range(run.trials for run in runs), int(median(trained)),
            100 * median(run.record["fit"]["parameters"] / run.record["backbone"]["parameters"] for run in runs),
        ))  # fmt: skip
    columns = ("label", "method", "model", "runs", "trials", "trained numbers", "share of the model")
    return Table(
        "methods", "Methods", columns, tuple(rows), details=("", "", "", "", "settings tried", "median", "%"),
        note="Trials: how many settings were tried on development rows for each run's; 1 means no search.",
    )  # fmt: skip


def tasks_table(results: Sequence[Result]) -> Table:
    """What each task is."""
    rows: list[tuple[Value, ...]] = []
    for name in sorted({result.cell.task for result in results}):
        runs = [result for result in results if result.cell.task == name]
        task = runs[0].record["task"]
        rows.append((
            name, task["kind"], len(task["labels"]) or None, _listed(run.metric for run in runs),
            _range(run.record["rows"]["test"] for run in runs), _listed(run.cell.shots for run in runs),
            len({run.cell.seed for run in runs}), _origin(task),
        ))  # fmt: skip
    columns = ("task", "kind", "classes", "metric", "test rows", "shots", "seeds", "origin")
    return Table("tasks", "Tasks", columns, tuple(rows))


def _origin(task: Mapping[str, Any]) -> str:
    """Where a task is from; many tasks would fill the page."""
    return f"{len(task['members'])} tasks" if task.get("members") else public_origin(task["origin"])


def model_name(record: Mapping[str, Any]) -> str:
    """The pretrained model of a run; a page is for others, who need no folders of this machine."""
    return public_model(record["backbone"]["name"], record["backbone"].get("hub_name"))


def settings_table(results: Sequence[Result]) -> Table:
    """Every setting of every label; first those in which labels differ."""
    labels = labels_of(results)
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for result in results:
        spec = result.record["spec"]
        for part in ("method", "training", "run", "generation"):
            for name, value in spec.get(part, {}).items():
                if (part, name) not in (("method", "name"), ("run", "shots"), ("run", "seed")):
                    found[f"{part}.{name}"][result.label].add(json.dumps(value, ensure_ascii=False))
        found["preset"][result.label].add(result.record["preset"])
    rows = [(name, *(_listed(of_label[label], 4) or "–" for label in labels)) for name, of_label in found.items()]
    rows.sort(key=lambda row: (len(set(row[1:])) == 1, row[0]))
    note = "First what differs between methods. Several values: they differ between runs of one method."
    return Table("settings", "Every setting", ("setting", *labels), tuple(rows), note)


def score_tables(summaries: Sequence[Summary], results: Sequence[Result]) -> list[Table]:
    """One table a number of shots: labels by tasks, each score with its interval."""
    labels = labels_of(results)
    tables = []
    for shots in sorted({one.shots for one in summaries}):
        here = [one for one in summaries if one.shots == shots]
        columns = sorted({(one.task is not None, one.task or MEAN, one.metric) for one in here})
        cells = {(one.label, one.task or MEAN, one.metric): score_estimate(one, results) for one in here}
        rows = tuple(
            (label, *(cells.get((label, task, metric)) for _, task, metric in columns))
            for label in labels
            if any(one.label == label for one in here)
        )
        rows += baseline_row(shots, [(task, metric) for _, task, metric in columns], results)
        tables.append(
            Table(
                f"scores-{shots}-shots",
                f"{shots:,} shots",
                ("method", *(task for _, task, _ in columns)),
                rows,
                details=("", *(metric for *_, metric in columns)),
                best=_best(rows, [metric for *_, metric in columns]),
            )
        )
    return tables


def score_estimate(one: Summary, results: Sequence[Result]) -> Estimate:
    """The estimate over seeds; where there is one seed, that of its run over test rows."""
    if one.task is None or one.estimate.n > 1:
        return one.estimate
    runs = [r for r in results if (r.label, r.cell.task, r.cell.shots) == (one.label, one.task, one.shots)]
    found = [estimate for run in runs if (estimate := run.estimate(one.metric)) and run.metric == one.metric]
    return found[0] if len(found) == 1 else one.estimate


def _best(rows: Sequence[tuple[Value, ...]], metrics: Sequence[str]) -> frozenset[tuple[int, int]]:
    """The places of the best mean in each column that compares several labels."""
    places = set()
    for column, metric in enumerate(metrics, 1):
        means = {at: cell.mean for at, row in enumerate(rows) if isinstance(cell := row[column], Estimate)}
        if len(means) > 1:
            best = (max if get_metric(metric.partition(" and ")[0]).higher_is_better else min)(means.values())
            places |= {(at, column) for at, mean in means.items() if mean == best}
    return frozenset(places)


def rank_table(ranking: Ranking) -> Table:
    """Labels by their average rank."""
    rows = tuple((s.label, s.rank, s.wins, s.ties, s.losses) for s in ranking.standings)
    return Table("ranks", "Average ranks", ("method", "rank", "wins", "ties", "losses"), rows)


def pair_comparisons(
    results: Sequence[Result], ranking: Ranking | None, reader: RowReader, level: float = 0.95
) -> list[Comparison]:
    """Every two labels that were run on the same rows, the better ranked first."""
    labels = [standing.label for standing in ranking.standings] if ranking else labels_of(results)
    pairs = []
    for a, b in combinations(labels, 2):
        try:
            pairs.append(compare(with_label(results, a), with_label(results, b), level=level, reader=reader))
        except RunError:  # they share no rows
            continue
    return pairs


def pairs_table(pairs: Sequence[Comparison]) -> Table:
    """Every two labels compared in pairs, the surest differences first."""
    surest = sorted(pairs, key=lambda pair: (pair.better is None, -abs(pair.advantage.mean)))
    scopes = [f"on {scope}" for scope in scopes_of(pairs)]
    rows = tuple(
        (
            c.a, c.b, c.advantage, *([c.elsewhere] if len(scopes) > 1 else []), c.wins, c.ties, c.losses, c.pairs, c.p,
            c.statement if c.better else c.verdict,
        )
        for c in surest
    )  # fmt: skip
    columns = ("a", "b", *("advantage of a" for _ in scopes), "wins", "ties", "losses", "pairs", "sign test", "verdict")
    details = ("", "", *scopes, "", "", "", "", "p", "at 5 %")
    return Table("pairs", "In pairs", columns, rows, details=details)


def scopes_of(pairs: Sequence[Comparison]) -> tuple[str, ...]:
    """What the intervals of these comparisons are for."""
    several = any(pair.elsewhere is not None for pair in pairs)
    return ("these tasks", "tasks like these") if several else ("this task",)


def cost_table(results: Sequence[Result]) -> Table:
    """Time and memory by label: the median over runs."""
    rows: list[tuple[Value, ...]] = []
    for label in labels_of(results):
        fits = [run.record["fit"] for run in with_label(results, label)]
        seconds = [fit["seconds"] for fit in fits]
        rows.append((
            label, len(fits), float(median(seconds)), float(min(seconds)), float(max(seconds)),
            float(median(fit["scoring_seconds"] for fit in fits)), int(median(fit["steps"] for fit in fits)),
            _median_known(fit["peak_memory_mb"] for fit in fits),
        ))  # fmt: skip
    columns = ("method", "runs", "training", "shortest", "longest", "scoring", "steps", "peak memory")
    return Table(
        "cost", "Cost", columns, tuple(rows), details=("", "", "s, median", "s", "s", "s, median", "median", "MB")
    )


def _median_known(values: Iterable[float | None]) -> float | None:
    """The median of what is known (not every system says its memory); None where nothing is."""
    known = [float(value) for value in values if value is not None]
    return float(median(known)) if known else None


def removed_table(results: Sequence[Result]) -> Table:
    """What runs with gates removed, by label: the mean over runs."""
    rows: list[tuple[Value, ...]] = []
    for label in labels_of(results):
        runs = with_label(results, label)
        gates = [found for run in runs if (found := gates_of(run))]
        closed = [100 * one.removed for one in gates]
        targets = {100 * one.target for one in gates if one.target is not None}
        rows.append((
            label, len(gates), targets.pop() if len(targets) == 1 else _listed(targets),
            mean(closed), min(closed), max(closed),
            _mean_known(one.dense for one in gates), _mean_known(one.compact for one in gates),
            100 * mean(one.closed for one in gates), 100 * mean(one.soft for one in gates),
        ))  # fmt: skip
    columns = ("method", "runs", "target", "closed", "least", "most", "removed", "removed", "closed", "soft")
    return Table(
        "removed", "Removed parameters", columns, tuple(rows),
        details=("", "", "%", "%, mean", "%", "%", "%, dense", "%, compact", "% of gates", "% of gates"),
        note="Of the parameters that gates could remove: those of closed gates, and those that an export of that "
        "format no longer has; the rest of the closed stays there as zeros, and a unit closed on one side goes whole. "
        "Empty: no such format. Closed gates are 0, soft ones between 0 and 1.",
    )  # fmt: skip


def _mean_known(shares: Iterable[float | None]) -> float | None:
    """The mean in %, None where a share is not known."""
    found = list(shares)
    return None if None in found else 100 * mean(share for share in found if share is not None)


def member_tables(results: Sequence[Result]) -> tuple[Table, ...]:
    """One table a task of tasks and number of shots: its members by labels, each score with its interval."""
    cells: dict[tuple[str, int], dict[tuple[str, str], dict[str, list[Estimate]]]] = defaultdict(dict)
    for result in results:
        for member, (metric, estimate) in members_of(result).items():
            here = cells[result.cell.task, result.cell.shots].setdefault((member, metric), defaultdict(list))
            here[result.label].append(estimate)
    tables = []
    for number, ((task, shots), members) in enumerate(sorted(cells.items()), 1):
        labels = sorted({label for found in members.values() for label in found})
        rows = tuple(
            (*key, *(_over_runs(found[label], key[1]) if label in found else None for label in labels))
            for key, found in members.items()
        )
        columns = ("member", "metric", *labels)
        if constants := member_baselines(task, shots, members, results):
            columns, rows = (*columns, BASELINE), tuple((*row, constants.get(row[:2])) for row in rows)
        tables.append(
            Table(
                f"members-{number}", f"{task}, {shots:,} shots", columns, rows,
                "Mean and 95 % interval over seeds; of one run, over its test rows. Bold: the best mean in the row.",
                best=frozenset(place for at, row in enumerate(rows) for place in _best_in_row(at, row)),
            )
        )  # fmt: skip
    return tuple(tables)


def _over_runs(estimates: Sequence[Estimate], metric: str) -> Estimate:
    """Over seeds, or that of the only run."""
    if len(estimates) == 1:
        return estimates[0]
    return estimate_over_seeds([one.mean for one in estimates], limits=get_metric(metric).range)


def _best_in_row(at: int, row: tuple[Value, ...]) -> list[tuple[int, int]]:
    means = {column: cell.mean for column, cell in enumerate(row) if isinstance(cell, Estimate)}
    if len(means) < 2:
        return []
    best = (max if get_metric(str(row[1])).higher_is_better else min)(means.values())
    return [(at, column) for column, mean in means.items() if mean == best]


def runs_table(results: Sequence[Result]) -> Table:
    """Every run: what was tried where, what came out, what it cost."""
    gated = any(gates_of(result) for result in results)
    compared = any(baseline_score(result) is not None for result in results)
    rows: list[tuple[Value, ...]] = []
    for result in results:
        record, fit = result.record, result.record["fit"]
        gates = gates_of(result)
        rows.append((
            result.cell.task, result.cell.shots, result.cell.seed, result.label, result.metric, result.estimate(),
            *([baseline_score(result)] if compared else []), *([gates and 100 * gates.dense] if gated else []),
            result.trials, fit["parameters"], fit["steps"], float(fit["seconds"]), fit["peak_memory_mb"],
            model_name(record), fit["stopped"], result.run.folder.name,
        ))  # fmt: skip
    columns = (
        "task", "shots", "seed", "method", "metric", "score", *(["baseline"] if compared else []),
        *(["removed %"] if gated else []), "trials",
        "trained numbers", "steps", "seconds", "peak MB", "model", "ended early", "folder",
    )  # fmt: skip
    note = "The interval of a run is over its test rows: how its score may differ on others."
    note += " Baseline: always predicting the largest class, or the mean, of its training rows." * compared
    return Table("runs", f"All {len(rows):,} runs", columns, tuple(rows), note)


def failed_table(failed: Iterable[Mapping[str, Any]]) -> Table:
    """Runs of studies that did not end, and why."""
    rows = tuple((one["job"], one["error"], one["hint"]) for one in failed)
    return Table("failed", f"{_count(len(rows), 'run')} failed", ("run", "error", "hint"), rows)


def skipped_table(skipped: Sequence[tuple[str, str]]) -> Table:
    """Folders that cannot be read, and why."""
    title = f"{_count(len(skipped), 'folder')} left out, damaged"
    return Table("skipped", title, ("folder", "problem"), tuple(skipped))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(values: Iterable[object], longest: int = 12) -> str:
    """Different values in their order, the last ones counted where they are many."""
    found = sorted(set(values), key=lambda value: (isinstance(value, str), value))  # type: ignore[type-var]
    more = f" and {len(found) - longest} more" if len(found) > longest else ""
    return ", ".join(str(value) for value in found[:longest]) + more


def _range(values: Iterable[int]) -> int | str:
    found = sorted(set(values))
    return found[0] if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
