"""The first sentences of a report: which methods are better than others, on what, and what many pairs allow to say."""

from __future__ import annotations

from handful.evaluation.estimate import Estimate
from handful.reports.verdict import headline
from handful.studies.compare import Comparison, LeftOut
from handful.studies.ranking import Ranking, Standing

LABELS = ("lora", "prefix", "ia3", "head")


def pair(a, b, scope, mean=0.1, several=True) -> Comparison:
    here = Estimate(mean, mean - 0.05, mean + 0.05, 9)
    elsewhere = Estimate(mean, mean - 0.2, mean + 0.2, 3) if several else None
    return Comparison(a, b, here, elsewhere, scope, 6, 1, 2, 0.3, (), LeftOut())


def ranking(labels=LABELS, tasks=("t1", "t2", "t3")) -> Ranking:
    standings = tuple(
        Standing(label, Estimate(rank + 1.0, None, None, 3), 0, 0, 0) for rank, label in enumerate(labels)
    )
    return Ranking(standings, tasks, 9, 0, None, None, None, (), ())


def told(pairs, sure, ranked) -> list[str]:
    results = [object(), object()]  # more than one; the ranking says the rest
    return list(headline(results, [], ranked, pairs, sure))  # type: ignore[arg-type]


def test_what_is_better_is_said_by_what_it_is_better_on():
    wide, narrow, none = (
        pair("lora", "head", "tasks like these"),
        pair("lora", "ia3", "these tasks"),
        pair("lora", "prefix", None),
    )
    pairs = [none, narrow, wide, pair("prefix", "head", "these tasks")]
    assert told(pairs, pairs, ranking()) == [
        "lora has the best average rank: 1.00 of 4 methods over 3 tasks.",
        "In pairs it is better on tasks like these than head.",
        "In pairs it is better on these tasks than ia3.",
        "From prefix it is not told apart.",
        "Against prefix, the second: +0.100, [+0.050, +0.150] on these tasks and [-0.100, +0.300] on tasks like these, "
        "6 won, 1 tied and 2 lost of 9 pairs.",
    ]


def test_what_many_pairs_do_not_allow_is_said_apart():
    pairs = [pair("lora", "prefix", "these tasks"), pair("lora", "head", "these tasks"), pair("prefix", "head", None)]
    sure = [pair("lora", "prefix", None), pair("lora", "head", "these tasks"), pair("prefix", "head", None)]
    lines = told(pairs, sure, ranking(("lora", "prefix", "head")))
    assert lines[1:3] == [
        "In pairs it is better on these tasks than head.",
        "Taken alone, it is better on these tasks than prefix; as one of 3 pairs that can be chance.",
    ]
    assert not any("not told apart" in line for line in lines)


def test_one_that_is_better_than_the_best_ranked_is_named():
    pairs = [pair("prefix", "lora", "this task", several=False)]
    lines = told(pairs, pairs, ranking(("lora", "prefix"), ("rte",)))
    assert lines == [
        "lora has the best average rank: 1.00 of 2 methods on rte.",
        "Yet in pairs prefix is better on this task.",
        "Against prefix, the second: -0.100, [-0.150, -0.050] on this task, 2 won, 1 tied and 6 lost of 9 pairs.",
    ]
