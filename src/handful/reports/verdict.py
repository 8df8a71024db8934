"""What a report says first: the finding in plain words, and what lessens it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from handful.reports.baseline import baseline_reservations
from handful.reports.table import shown
from handful.reports.tables import score_estimate
from handful.runs.card import headline as run_headline
from handful.studies.compare import Comparison, Summary
from handful.studies.ranking import Ranking
from handful.studies.results import Result, without_stages


def headline(
    results: Sequence[Result], summaries: Sequence[Summary], ranking: Ranking | None, pairs: Sequence[Comparison]
) -> tuple[str, ...]:
    """The finding in a few sentences."""
    if len(results) == 1:
        (result,) = results
        return (f"{result.label} on {result.cell.task}: {run_headline(result.record)}.",)
    if ranking is not None:
        return _ranked(ranking, pairs)
    lines = [
        f"{one.label} on {one.task}, {one.shots:,} shots: {one.metric} {shown(score_estimate(one, results))}."
        for one in summaries
        if one.task is not None
    ]
    if not lines:
        return ("No run has a score: there were no test rows.",)
    more = len(lines) - 3
    return (*lines[:3], f"{more} more below.") if more > 0 else tuple(lines)


def _ranked(ranking: Ranking, pairs: Sequence[Comparison]) -> tuple[str, ...]:
    first, second = ranking.standings[:2]
    several = len(ranking.tasks) > 1
    tasks = f"over {len(ranking.tasks)} tasks" if several else f"on {ranking.tasks[0]}"
    lines = [
        f"{first.label} has the best average rank: {first.rank.mean:.2f} of {len(ranking.standings)} methods {tasks}."
    ]
    rivals = [pair for pair in pairs if first.label in (pair.a, pair.b)]
    tied = [_other(pair, first.label) for pair in rivals if pair.better is None]
    beaten = [_other(pair, first.label) for pair in rivals if pair.better == first.label]
    stronger = [_other(pair, first.label) for pair in rivals if pair.better not in (None, first.label)]
    if beaten:
        lines.append(f"In pairs it is better than {_and(beaten)}.")
    if tied:
        lines.append(f"From {_and(tied)} it cannot be told apart.")
    if stronger:
        lines.append(f"Yet in pairs {_and(stronger)} {'is' if len(stronger) == 1 else 'are'} better.")
    against = next((pair for pair in rivals if second.label in (pair.a, pair.b)), None)
    if against:
        lines.append(_margin(against, first.label, second.label))
    return tuple(lines)


def _margin(pair: Comparison, first: str, second: str) -> str:
    sign, wins, losses = (1, pair.wins, pair.losses) if pair.a == first else (-1, pair.losses, pair.wins)
    mean, low, high = sign * pair.advantage.mean, pair.advantage.low, pair.advantage.high
    ends = sorted((sign * low, sign * high)) if low is not None and high is not None else []
    interval = f"[{ends[0]:+z.3f}, {ends[1]:+z.3f}]" if ends else "(no interval)"
    return (
        f"Against {second}, the second: {mean:+z.3f} {interval}, {wins} won, {pair.ties} tied and {losses} lost "
        f"of {pair.pairs} pairs."
    )


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
