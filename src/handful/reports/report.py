"""A report: what was found, in words, tables and figures, whatever it is then shown as."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from handful.errors import HandfulError, RunError
from handful.evaluation.metrics import get_metric
from handful.reports import figures, gate_figures, routing_figures, tables
from handful.reports.baseline import baseline_score
from handful.reports.figure import Figure
from handful.reports.gates import gates_of
from handful.reports.routing import members_of, routing_of
from handful.reports.table import Table
from handful.reports.verdict import headline, reservations
from handful.reports.written import what_was_written
from handful.runs.store import RECORD
from handful.studies.compare import Comparison, Summary, labels_of, summary
from handful.studies.ranking import Ranking, rank
from handful.studies.results import Result, read_results, without_stages
from handful.studies.row_noise import RowReader


@final
@dataclass(frozen=True)
class Section:
    """One part of a report. `folded` ones are long and shown when asked for."""

    name: str
    title: str
    text: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False

    @property
    def beside(self) -> bool:
        """Whether its figures are small enough to stand beside each other."""
        return len(self.figures) > 1 and all(len(figure.panels) < 3 for figure in self.figures)


@final
@dataclass(frozen=True)
class Report:
    """All there is to show. `headline` are the sentences to read first, `reservations` what lessens them."""

    title: str
    headline: tuple[str, ...]
    reservations: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    labels: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]

    def table(self, name: str) -> Table:
        """The table of that name."""
        return next(table for table in self.tables if table.name == name)


@final
@dataclass
class Findings:
    """What was read and compared, from which sections are made."""

    results: list[Result]
    skipped: list[tuple[str, str]]
    failed: list[dict[str, str]]
    summaries: list[Summary] = field(default_factory=list)
    ranking: Ranking | None = None
    unranked: str | None = None
    pairs: list[Comparison] = field(default_factory=list)
    sure: list[Comparison] = field(default_factory=list)
    """The pairs, at a level at which all of them together err in 5 %; empty where there is one pair."""

    def damaged(self, result: Result, problem: str) -> None:
        """A run of which a file cannot be read; its scores still count."""
        self.skipped.append((str(result.run.folder), problem))


def read_report(paths: Iterable[Path | str], *, title: str = "") -> Report:
    """The report on all runs below these folders; damaged ones are left out and named.

    Raises: RunError for a folder that does not exist, for no runs at all, or for two different runs of one label on
    the same rows.
    """
    paths = [Path(path) for path in paths]
    found, bad = read_results(paths)
    skipped = [(str(folder), problem) for folder, problem in bad]
    results = []
    for result in found:
        if (problem := _wrong(result)) is None:
            results.append(result)
        else:
            skipped.append((str(result.run.folder), problem))
    findings = Findings(results, skipped, _read_failed(paths))
    if not results:
        named = "".join(f"\n  {folder}: {problem}" for folder, problem in findings.skipped)
        failures = f", {len(findings.failed)} failed" if findings.failed else ""
        raise RunError(
            f"expected finished runs below {', '.join(map(str, paths))}, found none "
            f"({len(findings.skipped)} damaged{failures}){named}",
            "`handful fit` and `handful study` make runs",
        )
    findings.summaries = summary(results)
    if len(labels_of(results)) > 1:
        try:
            findings.ranking = rank(without_stages(results))
        except RunError as error:
            findings.unranked = error.message
        reader = RowReader()
        findings.pairs = tables.pair_comparisons(results, findings.ranking, reader)
        if len(findings.pairs) > 1:
            findings.sure = tables.pair_comparisons(results, findings.ranking, reader, 1 - 0.05 / len(findings.pairs))
    return _compose(findings, title)


def _wrong(result: Result) -> str | None:
    """What a record lacks of what a report shows, or None."""
    record = result.record
    try:
        for section, names in _NEEDED.items():
            for name in names:
                record[section][name]
        get_metric(result.metric)
        for name in record["scores"]:
            result.estimate(name)
        for read in (gates_of, routing_of, members_of, baseline_score):
            read(result)
    except (KeyError, TypeError, ValueError, AttributeError, HandfulError) as error:
        return f"{RECORD}: not the record of a run ({type(error).__name__}: {error})"
    return None


_NEEDED = {
    "fit": ("parameters", "steps", "seconds", "scoring_seconds", "peak_memory_mb", "history", "stopped"),
    "backbone": ("name", "parameters", "fingerprint"),
    "task": ("kind", "labels", "origin"),
    "rows": ("test", "fingerprint"),
    "versions": ("handful",),
    "created": (slice(10),),
}


def _compose(findings: Findings, title: str) -> Report:
    """The sections; figures first, since they may find damaged files that the last section names."""
    results = findings.results
    sections = [_scores(findings)]
    if len(labels_of(results)) > 1:
        sections.append(_comparison(findings))
    sections += [
        Section("written", "What was written", (), *what_was_written(results, findings.damaged)),
        _gates(findings),
        Section("members", "Members of tasks of tasks", tables=tables.member_tables(results)),
        _routing(findings),
        Section("training", "Training", figures=_there(figures.dev_figure(results))),
        Section("calibration", "Calibration", figures=_there(figures.reliability_figure(results, findings.damaged))),
        Section("cost", "Cost", (), (figures.cost_figure(results),), (tables.cost_table(results),)),
        Section("landscape", "Landscape", figures=_there(figures.landscape_figure(results, findings.damaged))),
    ]
    methods = (tables.methods_table(results), tables.tasks_table(results))
    sections.insert(0, Section("run", "What was run", tables=methods))
    sections += [
        Section("settings", "Every setting", tables=(tables.settings_table(results),), folded=True),
        Section("runs", "Every run", tables=(tables.runs_table(results),), folded=True),
        Section("problems", "Problems", tables=_problems(findings)),
    ]
    return Report(
        title or _title(results),
        headline(results, findings.summaries, findings.ranking, findings.pairs, findings.sure or findings.pairs),
        reservations(results, findings.ranking, failed=len(findings.failed), skipped=len(findings.skipped)),
        _facts(results),
        tuple(section for section in sections if section.text or section.figures or section.tables),
        tuple(labels_of(results)),
        tuple(findings.skipped),
    )


def _there(figure: Figure | None) -> tuple[Figure, ...]:
    return () if figure is None else (figure,)


def _scores(findings: Findings) -> Section:
    found = tables.score_tables(findings.summaries, findings.results)
    if not found:
        return Section("scores", "Scores", ("No run has a score: there were no test rows.",))
    text = (
        "Mean and 95 % interval. Over seeds: how the score moves with other training rows and another start. Where "
        "there is one seed, over its test rows. Bold: the best mean in the column, which is not yet a proof. The mean "
        "over tasks has an interval over tasks; it holds how much tasks differ, so compare methods in pairs.",
    )
    return Section(
        "scores", "Scores", text, (figures.scores_figure(findings.summaries, findings.results),), tuple(found)
    )


def _comparison(findings: Findings) -> Section:
    text, shown_figures, shown_tables = [], [], []
    ranking = findings.ranking
    if findings.unranked:
        text.append(f"No ranks: {findings.unranked}.")
    if ranking:
        text.append(
            f"Ranks are averaged over {len(ranking.tasks)} task{'s' * (len(ranking.tasks) > 1)}, from "
            f"{ranking.cells} cells (task, shots, seed) that all methods share."
        )
        if ranking.friedman is not None and ranking.p is not None:
            text.append(f"Friedman test that all are alike: χ² = {ranking.friedman:.2f}, p = {ranking.p:.2g}.")
        text += [f"{note[0].upper()}{note[1:]}." for note in ranking.notes]
        if findings.pairs:
            shown_figures.append(figures.pairs_figure(ranking, findings.pairs))
        if ranking.critical_difference is not None:
            shown_figures.append(figures.ranks_figure(ranking))
        shown_tables.append(tables.rank_table(ranking))
    if findings.pairs:
        text.append(
            "In pairs: the same task, shots, seed and rows, so what makes a task or split easy cancels. The advantage "
            "is positive where the first is better, whatever the metric. Intervals are for other seeds and other test "
            "rows of these tasks or, where there are several, for tasks like these."
        )
        if findings.sure:
            text.append(
                f"Each verdict errs in 5 % of cases: of these {len(findings.pairs)} pairs about "
                f"{0.05 * len(findings.pairs):.2g} would be told apart if no two methods differed."
            )
        text += [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(n for p in findings.pairs for n in p.notes)]
        shown_tables.append(tables.pairs_table(findings.pairs))
    return Section("comparison", "Comparison", tuple(text), tuple(shown_figures), tuple(shown_tables))


def _gates(findings: Findings) -> Section:
    """What gates and pruning removed; empty where no run has either."""
    results = findings.results
    gated = [result for result in results if gates_of(result)]
    if not gated:
        return Section("gates", "Gates")
    shown = gate_figures.tradeoff_figures(findings.summaries, results, findings.damaged)
    shown += _there(gate_figures.gate_map_figure(gated)) + _there(gate_figures.sparsity_figure(gated))
    table = tables.removed_table(gated)
    missed = [
        f"{row['method']} ({row['closed %, mean']:.3g} % of {row['target %']:.3g} %)"
        for row in table.records()
        if isinstance(row["target %"], float) and row["closed %, mean"] < row["target %"] / 2
    ]
    text = (f"Far from the target: {', '.join(missed)}. Soft gates scale, and remove nothing.",) if missed else ()
    return Section("gates", "Gates and what they remove", text, shown, (table,))


def _routing(findings: Findings) -> Section:
    """Which tasks use which skills; empty where no run has routing."""
    results = findings.results
    routed = [result for result in results if routing_of(result)]
    if not routed:
        return Section("routing", "Skills and routing")
    found = routing_figures.inventories(routed, findings.damaged)
    shown = routing_figures.routing_figures(found) + _there(routing_figures.alignment_figure(routed))
    shown_tables = [routing_figures.routing_table(routed)]
    if found:
        shown_tables.append(routing_figures.routers_table(found))
    even = [f"{row['method']} ({row[DISCRETENESS]:.3f} bits)" for row in shown_tables[0].records() if _is_even(row)]
    text = (f"Hardly any routing was learned by {', '.join(even)}: their cells are all about ½.",) if even else ()
    return Section("routing", "Skills and routing", text, shown, tuple(shown_tables))


def _is_even(row: Mapping[str, Any]) -> bool:
    found = row[DISCRETENESS]
    return isinstance(found, float) and found > EVEN


DISCRETENESS, EVEN = "discreteness bits; 0: on or off", 0.95
"""Above this the cells are about ½."""


def _problems(findings: Findings) -> tuple[Table, ...]:
    found = []
    if findings.failed:
        found.append(tables.failed_table(findings.failed))
    if findings.skipped:
        found.append(tables.skipped_table(findings.skipped))
    return tuple(found)


def _read_failed(paths: Sequence[Path]) -> list[dict[str, str]]:
    """The failures that studies below these folders have kept."""
    failed = []
    for path in sorted({file for folder in paths for file in folder.rglob("failed/*.json")}):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            failed.append({"job": path.stem, "error": str(content["error"]), "hint": str(content.get("hint") or "")})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            failed.append({"job": path.stem, "error": f"{path} cannot be read: {error}", "hint": ""})
    return failed


def _title(results: Sequence[Result]) -> str:
    names = {name for result in results if (name := result.record.get("study", {}).get("name"))}
    return names.pop() if len(names) == 1 else "handful report"


def _facts(results: Sequence[Result]) -> tuple[tuple[str, str], ...]:
    """What was run, in a few words each."""
    records = [result.record for result in results]
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record["versions"].items():
            versions.setdefault(name, set()).add(version)
    dates = sorted(record["created"][:10] for record in records)
    cells = [result.cell for result in results]
    seconds = sum(record["fit"]["seconds"] for record in records)
    return (
        ("runs", f"{len(results):,}"),
        ("methods", f"{len(labels_of(results)):,}"),
        ("tasks", f"{len({cell.task for cell in cells}):,}"),
        ("shots", ", ".join(f"{shots:,}" for shots in sorted({cell.shots for cell in cells}))),
        ("seeds", f"{len({cell.seed for cell in cells}):,}"),
        ("training", shown_duration(seconds)),
        ("date", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
        ("models", ", ".join(sorted({tables.model_name(record) for record in records}))),
        ("versions", ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in versions.items())),
    )


def shown_duration(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
