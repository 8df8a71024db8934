"""`handful compare`: two methods in pairs of finished runs, or many by their ranks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.console import say, show, show_json, show_table
from handful.errors import ConfigError, RunError

if TYPE_CHECKING:
    from handful.evaluation.estimate import Estimate
    from handful.studies.compare import Comparison, Summary
    from handful.studies.ranking import Ranking
    from handful.studies.results import Result

DEFAULT_RUNS = Path("runs")


def compare(
    labels: Annotated[
        list[str] | None,
        typer.Argument(help="Methods, or labels of a study: two, or more to rank.", show_default="all"),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", help="Folder with run folders. Repeatable.", show_default=str(DEFAULT_RUNS)),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="The score to compare, such as nll.", show_default="each task's own")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare methods over runs on the same rows: how much better, how sure, and how often. Trains nothing.

    Two labels are compared in pairs of the same task, shots and seed; three or more, or all, by their average ranks.
    """
    from handful.studies.compare import compare as compare_pairs
    from handful.studies.compare import labels_of, quoted, summary, with_label
    from handful.studies.ranking import rank
    from handful.studies.results import without_stages

    found, damaged = read(runs or [DEFAULT_RUNS])
    chosen = list(dict.fromkeys(labels or labels_of(without_stages(found))))
    try:
        results = [result for label in chosen for result in with_label(found, label)]
    except ConfigError as error:
        if not damaged:
            raise
        count = f"{len(damaged)} damaged run folder{'s' * (len(damaged) > 1)}"
        raise ConfigError(
            f"{error.message}; {count} left out above may be what is missing",
            "train those anew: `handful fit … --again`",
        ) from None
    if len(chosen) < 2:
        raise ConfigError(f"expected two labels or more, found {chosen[0]!r}", f"here are: {quoted(labels_of(found))}")
    if len(chosen) == 2:
        a, b = (with_label(results, label) for label in chosen)
        comparison = compare_pairs(a, b, metric=metric)
        if as_json:
            own = {"better": comparison.better, "verdict": comparison.verdict, "pairs": comparison.pairs}
            show_json({**asdict(comparison), **own, "damaged": damaged})
        else:
            show_comparison(comparison)
        return
    ranking, scores = rank(results, metric=metric), summary(results, metric=metric)
    if as_json:
        show_json({**asdict(ranking), "summary": [asdict(one) for one in scores], "damaged": damaged})
    else:
        show_ranking(ranking, scores)


def read(folders: list[Path]) -> tuple[list[Result], list[dict[str, str]]]:
    """The runs below these folders; damaged ones are named on stderr and returned as records.

    Raises: RunError where none is whole.
    """
    from handful.studies.results import read_results

    results, damaged = read_results(folders)
    for folder, problem in damaged:
        say(f"left out: {problem if str(folder) in problem else f'{folder}: {problem}'}")
    if damaged:
        say(f"{len(damaged)} damaged run folder{'s' * (len(damaged) > 1)} left out, {len(results)} read")
    if not results:
        raise RunError(f"no finished runs below {', '.join(map(str, folders))}", "give --runs FOLDER, or `handful fit`")
    return results, [{"folder": str(folder), "problem": problem} for folder, problem in damaged]


def show_comparison(found: Comparison) -> None:
    """One comparison for people: the verdict, then the tasks."""
    a, b, tasks = found.a, found.b, len(found.tasks)
    show(f"{a} against {b}: {found.pairs} pairs on {tasks} task{'s' * (tasks > 1)}")
    where = "this task" if found.elsewhere is None else "these tasks"
    show(f"advantage of {a} on {where}: {found.advantage}  ({_how(found.advantage)})")
    if found.elsewhere is not None:
        show(f"advantage of {a} on tasks like these: {found.elsewhere}  ({_how(found.elsewhere)})")
    show(f"{a} wins {found.wins}, ties {found.ties}, loses {found.losses}; sign test p = {found.p:.3g}")
    show(found.statement)
    show()
    header = ("task", "metric", a, b, f"advantage of {a}", "seeds", "wins", "ties", "losses")
    show_table(
        header,
        [
            (t.task, t.metric, str(t.a), str(t.b), str(t.advantage), t.advantage.n, t.wins, t.ties, t.losses)
            for t in found.tasks
        ],
    )
    left_out = {
        f"of which only one of the two was run: {found.left_out.alone}": found.left_out.alone,
        f"run on different rows: {found.left_out.other_rows}": found.left_out.other_rows,
        f"scored by different metrics: {found.left_out.other_metric}": found.left_out.other_metric,
        f"without the score: {found.left_out.unscored}": found.left_out.unscored,
    }
    for reason, count in left_out.items():
        if count:
            say(f"left out, cells {reason}")
    for note in found.notes:
        say(note)
    say("an advantage is positive where the first is better")
    say("its interval is for other seeds and other test rows, the interval of a score for other seeds")
    if tasks == 1:
        say("one task: this says nothing about others")


def show_ranking(found: Ranking, scores: list[Summary]) -> None:
    """The ranking for people, with the mean score by shots."""
    what = found.tasks[0] if len(found.tasks) == 1 else None
    means = [one for one in scores if one.task == what]
    columns = sorted({(one.shots, one.metric) for one in means})
    by_label: dict[tuple[str, int, str], Estimate] = {(one.label, one.shots, one.metric): one.estimate for one in means}
    show(f"{len(found.standings)} labels on {found.cells} shared cells of {len(found.tasks)} task(s)")
    header = ("label", "average rank", *(f"{metric}, K={shots}" for shots, metric in columns), "wins", "ties", "losses")
    rows = []
    for one in found.standings:
        cells = (by_label.get((one.label, *column)) for column in columns)
        rows.append((one.label, str(one.rank), *map(_or_empty, cells), one.wins, one.ties, one.losses))
    show_table(header, rows)
    if found.friedman is not None and found.p is not None:
        show(f"Friedman chi-squared {found.friedman:.2f}, p = {found.p:.3g} (Iman and Davenport)")
        show(f"critical difference of average ranks (Nemenyi): {found.critical_difference:.2f}")
        for group in found.groups:
            show(f"ranks closer than the critical difference: {', '.join(group)}")
    for note in found.notes:
        say(note)
    if found.left_out:
        say(f"left out: {found.left_out} cells that not all labels share")
    say("rank 1 is best; wins, ties and losses are cells against every other label")
    say("intervals: Student's t, of ranks and means over tasks, of one task's score over seeds")
    say("ranks do not say which of two is better: `handful compare A B` does")


def _how(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"no interval: {estimate.method}"
    return f"{estimate.level:.0%} interval: {estimate.method}, n={estimate.n}"


def _or_empty(value: Any) -> str:
    return "" if value is None else str(value)
