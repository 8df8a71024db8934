"""What a report says first: the finding in plain words, and what lessens it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from handful.evaluation.estimate import Estimate
from handful.reports.baseline import baseline_reservations
from handful.reports.table import shown
from handful.reports.tables import score_estimate
from handful.runs.card import headline as run_headline
from handful.studies.compare import Comparison, Summary
from handful.studies.ranking import Ranking
from handful.studies.results import Result, without_stages
from handful.studies.verdicts import NOT_TOLD_APART, Scope


def headline(
    results: Sequence[Result],
    summaries: Sequence[Summary],
    ranking: Ranking | None,
    pairs: Sequence[Comparison],
    sure: Sequence[Comparison],
) -> tuple[str, ...]:
    """The finding in a few sentences. `sure` are the pairs at a level at which all together err in 5 % of cases."""
    if len(results) == 1:
        (result,) = results
        return (f"{result.label} on {result.cell.task}: {run_headline(result.record)}.",)
    if ranking is not None:
        return _ranked(ranking, pairs, sure)
    lines = [
        f"{one.label} on {one.task}, {one.shots:,} shots: {one.metric} {shown(score_estimate(one, results))}."
        for one in summaries
        if one.task is not None
    ]
    if not lines:
        return ("No run has a score: there were no test rows.",)
    more = len(lines) - 3
    return (*lines[:3], f"{more} more below.") if more > 0 else tuple(lines)


def _ranked(ranking: Ranking, pairs: Sequence[Comparison], sure: Sequence[Comparison]) -> tuple[str, ...]:
    first, second = ranking.standings[:2]
    several = len(ranking.tasks) > 1
    tasks = f"over {len(ranking.tasks)} tasks" if several else f"on {ranking.tasks[0]}"
    lines = [
        f"{first.label} has the best average rank: {first.rank.mean:.2f} of {len(ranking.standings)} methods {tasks}."
    ]
    rivals = [(pair, strict) for pair, strict in zip(pairs, sure, strict=True) if first.label in (pair.a, pair.b)]
    for scope in SCOPES:
        if beaten := [_other(p, first.label) for p, s in rivals if s.better == first.label and s.scope == scope]:
            lines.append(f"In pairs it is better on {scope} than {_and(beaten)}.")
    for scope in SCOPES:
        alone = [p for p, s in rivals if p.better == first.label and p.scope == scope and s.better is None]
        if alone:
            lines.append(
                f"Taken alone, it is better on {scope} than {_and([_other(p, first.label) for p in alone])}; as one of "
                f"{len(pairs)} pairs that can be chance."
            )
    if tied := [_other(pair, first.label) for pair, _ in rivals if pair.better is None]:
        lines.append(f"From {_and(tied)} it is {NOT_TOLD_APART}.")
    for scope in SCOPES:
        stronger = [pair.better for pair, _ in rivals if pair.better not in (None, first.label) and pair.scope == scope]
        if stronger:
            names = [name for name in stronger if name]
            lines.append(f"Yet in pairs {_and(names)} {'is' if len(names) == 1 else 'are'} better on {scope}.")
    against = next((pair for pair, _ in rivals if second.label in (pair.a, pair.b)), None)
    if against:
        lines.append(_margin(against, first.label, second.label))
    return tuple(lines)


SCOPES = get_args(Scope)[::-1]
"""The widest first."""


def _margin(pair: Comparison, first: str, second: str) -> str:
    sign, wins, losses = (1, pair.wins, pair.losses) if pair.a == first else (-1, pair.losses, pair.wins)
    where = "this task" if pair.elsewhere is None else "these tasks"
    intervals = f"{_interval(pair.advantage, sign)} on {where}"
    if pair.elsewhere is not None:
        intervals += f" and {_interval(pair.elsewhere, sign)} on tasks like these"
    return (
        f"Against {second}, the second: {sign * pair.advantage.mean:+z.3f}, {intervals}, {wins} won, {pair.ties} tied "
        f"and {losses} lost of {pair.pairs} pairs."
    )


def _interval(estimate: Estimate, sign: int) -> str:
    if estimate.low is None or estimate.high is None:
        return f"no interval ({estimate.method})"
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return f"[{low:+z.3f}, {high:+z.3f}]"


def _other(pair: Comparison, label: str) -> str:
    return pair.b if pair.a == label else pair.a


def _and(names: Sequence[str]) -> str:
    if any("," in name for name in names):
        names = [f"“{name}”" for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def reservations(results: Sequence[Result], ranking: Ranking | None, *, failed: int, skipped: int) -> tuple[str, ...]:
    """What a reader should know before trusting the numbers."""
    lines = [f"{_plural(failed, 'run')} of a study failed and {_are(failed)} listed at the end."] if failed else []
    if skipped:
        lines.append(f"{_plural(skipped, 'folder')} could not be read in full and {_are(skipped)} listed at the end.")
    of_label: dict[str, list[Result]] = {}
    for result in results:
        of_label.setdefault(result.label, []).append(result)
    trials = {label: max(run.trials for run in runs) for label, runs in of_label.items()}
    if len(set(trials.values())) > 1:
        told = ", ".join(f"{label} {count}" for label, count in trials.items())
        lines.append(f"Methods did not have equally many settings to choose from: {told}.")
    compared = without_stages(results)
    cells = {result.cell for result in compared}
    gaps = {one.label: len(cells - {run.cell for run in of_label[one.label]}) for one in compared}
    if missing := {label: count for label, count in gaps.items() if count}:
        told = ", ".join(f"{label} in {count}" for label, count in missing.items())
        lines.append(
            f"Not every method was run in each of the {len(cells)} cells (task, shots, seed); missing: {told}."
        )
    if len({result.cell.seed for result in results}) == 1:
        lines.append("One seed: nothing here says how much scores move with other training rows.")
    if unscored := sum(result.estimate() is None for result in results):
        lines.append(f"{_plural(unscored, 'run')} {'has' if unscored == 1 else 'have'} no test score.")
    lines += baseline_reservations(results)
    lines += _mixed([result.record for result in results])
    if ranking:
        lines += [f"{note[0].upper()}{note[1:]}." for note in ranking.notes]
    return tuple(lines)


def _mixed(records: Sequence[Mapping]) -> list[str]:
    """What runs that are shown side by side do not share."""
    lines = []
    for name in ("handful", "torch", "transformers"):
        if len(found := {record["versions"].get(name, "?") for record in records}) > 1:
            lines.append(f"Runs were made with several versions of {name}: {', '.join(sorted(found))}.")
    if len(found := {record["backbone"]["fingerprint"] for record in records}) > 1:
        lines.append(f"Runs stand on {len(found)} different pretrained models.")
    stopped = sum("diverged" in (record["fit"]["stopped"] or "") for record in records)
    if stopped:
        lines.append(f"{_plural(stopped, 'run')} diverged.")
    return lines


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
