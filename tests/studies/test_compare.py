"""Comparisons of finished runs: against sums done by hand, other implementations, and in simulation."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare
from scipy.stats import t as student

from handful.errors import ConfigError, RunError
from handful.evaluation.estimate import Estimate
from handful.runs.store import Run
from handful.studies.compare import compare, labels_of, sign_test, summary, with_label
from handful.studies.ranking import critical_difference, friedman_test, rank
from handful.studies.results import Cell, Result, _having, _with_settings, without_stages

NOISE = 0.01
"""Half the interval over test rows of every score."""


def result(label, task, seed, score, *, shots=16, rows="", metric="accuracy", key=None, **others) -> Result:
    """A run that only its record knows of; `others` are scores by further metrics."""
    found = {metric: score} | others
    scores = {name: Estimate(value, value - NOISE, value + NOISE, 900).to_dict() for name, value in found.items()}
    record = {
        "key": key or f"{label}/{task}/{shots}/{seed}/{rows}/{score}",
        "task": {"name": task, "kind": "classification", "metric": metric},
        "rows": {"fingerprint": f"{task}/{shots}/{seed}/{rows}"},
        "scores": scores,
    }
    return Result(label, Cell(task, shots, seed), Run(Path("runs") / label, record))


def results(label, **scores_of_tasks) -> list[Result]:
    """One run a task and seed: `results("head", sst2=[0.5, 0.75])`."""
    return [result(label, task, seed, s) for task, scores in scores_of_tasks.items() for seed, s in enumerate(scores)]


def versus(a, b, **options):
    return compare(a, b, **options)


# ------------------------------------------------------------------------------------------------------------- in pairs


def test_a_comparison_done_by_hand():
    a = results("lora", mrpc=[0.5, 0.75], sst2=[0.875, 0.75, 1.0])
    b = results("head", mrpc=[0.25, 0.75], sst2=[0.75, 0.875, 0.5])
    found = versus(a, b)
    assert (found.a, found.b, found.pairs) == ("lora", "head", 5)
    assert (found.wins, found.ties, found.losses) == (3, 1, 1)
    assert found.p == 2 * (1 + 4) / 16  # at most one loss of four, on both sides
    mrpc, sst2 = found.tasks
    assert (mrpc.task, mrpc.a.mean, mrpc.b.mean, mrpc.advantage.mean) == ("mrpc", 0.625, 0.5, 0.125)
    assert (sst2.wins, sst2.ties, sst2.losses, sst2.advantage.n) == (2, 0, 1, 3)
    assert sst2.advantage.mean == pytest.approx(0.5 / 3)
    assert found.advantage.mean == pytest.approx((0.125 + 0.5 / 3) / 2)  # tasks count alike, not runs
    assert (found.advantage.n, found.elsewhere.n) == (5, 2)
    assert found.advantage.method == "Student's t over seeds, and a bound for test rows"
    assert found.elsewhere.method == "Student's t over tasks"
    half = student.ppf(0.975, 1) * abs(0.125 - 0.5 / 3) / 2
    assert (found.elsewhere.low, found.elsewhere.high) == pytest.approx(
        (found.advantage.mean - half, found.advantage.mean + half)
    )
    assert (found.scope, found.better, found.verdict) == (None, None, "not told apart")
    assert found.statement == "lora and head are not told apart"


def test_shots_of_one_seed_are_one_piece_of_evidence():
    def runs(label, *scores):
        return [result(label, "sst2", seed, s, shots=shots) for seed, shots, s in scores]

    a = runs("a", (0, 16, 0.5), (0, 32, 1.0), (1, 16, 0.75))
    b = runs("b", (0, 16, 0.5), (0, 32, 0.5), (1, 16, 0.25))
    found = versus(a, b)
    assert found.pairs == 3
    assert found.advantage.n == 2
    assert found.advantage.mean == (0.25 + 0.5) / 2
    assert found.elsewhere is None


def test_less_is_better_where_the_metric_says_so():
    a, b = ([result(label, "sst2", seed, 0.5, nll=nll) for seed in (0, 1)] for label, nll in (("a", 0.3), ("b", 0.7)))
    found = versus(a, b, metric="nll")
    assert found.advantage.mean == pytest.approx(0.4)
    assert (found.wins, found.losses, found.better) == (2, 0, "a")
    assert found.statement == "a is better on this task"
    assert found.tasks[0].a.mean == 0.3
    assert versus(a, b).ties == 2
    assert versus(a, b).better is None


def test_what_cannot_be_paired_is_counted_and_left_out():
    a = [
        *results("a", sst2=[0.5, 0.5, 0.5]),
        result("a", "cola", 0, 0.5),
        result("a", "rte", 0, 0.5, rows="old"),
        result("a", "mrpc", 0, 0.5, metric="f1"),
    ]
    b = [
        *results("b", sst2=[0.25, 0.25]),
        result("b", "rte", 0, 0.25, rows="new"),
        result("b", "mrpc", 0, 0.25),
    ]
    found = versus(a, b)
    assert found.pairs == 2
    left = found.left_out
    assert (left.alone, left.other_rows, left.other_metric, left.unscored) == (2, 1, 1, 0)
    assert versus(a, b, metric="accuracy").left_out.unscored == 1  # the run scored by F1 alone


def test_nothing_to_compare_is_an_error_that_says_why():
    a, b = [result("a", "rte", 0, 0.5, rows="old")], [result("b", "rte", 0, 0.5, rows="new")]
    with pytest.raises(RunError, match=r"'a' and 'b' have no runs on the same rows \(1 run on different rows\)"):
        versus(a, b)
    with pytest.raises(RunError, match="1 without a score nll"):
        versus(results("a", rte=[0.5]), results("b", rte=[0.5]), metric="nll")
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        versus(a, a, metric="acuracy")
    with pytest.raises(ConfigError, match="expected the results of one label, found a, b"):
        versus(a + b, b)


def test_two_different_runs_on_the_same_rows_are_refused_and_copies_are_not():
    a, b = results("a", sst2=[0.5, 0.75]), results("b", sst2=[0.25, 0.25])
    assert versus(a + a, b) == versus(a, b)
    with pytest.raises(RunError, match="'a' has two different runs on the same rows"):
        versus([*a, result("a", "sst2", 0, 0.5, key="another")], b)


def test_labels_are_found_or_the_nearest_is_named():
    runs = results("head", rte=[0.5]) + results("lora", rte=[0.5])
    assert labels_of(runs) == ["head", "lora"]
    assert with_label(runs, "lora") == runs[1:]
    with pytest.raises(ConfigError, match=r"found 'haed'; here are: 'head', 'lora'(.|\n)*did you mean 'head'"):
        with_label(runs, "haed")


scores = st.integers(0, 20).map(lambda count: count / 20)
tables = st.dictionaries(
    st.sampled_from(["sst2", "rte", "cola"]), st.lists(st.tuples(scores, scores), min_size=1, max_size=4), min_size=1
)


@given(table=tables)
@example(table={"sst2": [(0.0, 0.0), (0.0, 0.05), (0.0, 0.05)], "rte": [(0.0, 0.05)]})
def test_swapping_the_two_turns_everything_round(table):
    a = results("a", **{task: [pair[0] for pair in pairs] for task, pairs in table.items()})
    b = results("b", **{task: [pair[1] for pair in pairs] for task, pairs in table.items()})
    there, back = versus(a, b), versus(b, a)
    assert (there.wins, there.ties, there.losses, there.p) == (back.losses, back.ties, back.wins, back.p)
    ours, theirs = there.advantage, back.advantage
    assert ours.mean == pytest.approx(-theirs.mean)
    if ours.low is None or ours.high is None:
        assert theirs.low is None
    else:
        assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low))
    assert (there.better, there.scope) == (back.better, back.scope)
    own = versus(a, [replace(run, label="copy") for run in a])
    assert (own.ties, own.p, own.advantage.mean) == (own.pairs, 1, 0)


def test_the_order_of_the_results_does_not_matter():
    gains = np.random.default_rng(0).random((2, 9)).tolist()
    a, b = results("a", rte=gains[0], sst2=gains[1]), results("b", rte=[0.0] * 9, sst2=[0.5] * 9)
    assert versus(a[::-1], b) == versus(a, b[::-1])


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1), (1, 0, 1), (6, 0, 2 / 64), (3, 3, 1), (7, 1, 18 / 256)])
def test_the_sign_test_by_counting(wins, losses, p):
    assert sign_test(wins, losses) == sign_test(losses, wins) == pytest.approx(p)


def test_one_seed_of_a_task_gives_no_verdict_and_one_of_each_task_speaks_for_tasks_like_these():
    one = versus(results("a", rte=[0.9]), results("b", rte=[0.1]))
    assert (one.better, one.advantage.low, one.advantage.method) == (None, None, "one seed")
    each = versus(results("a", rte=[0.9], sst2=[0.91], cola=[0.92]), results("b", rte=[0.1], sst2=[0.1], cola=[0.1]))
    assert (each.advantage.low, each.statement) == (None, "a is better on tasks like these")


def test_runs_that_start_from_the_same_run_share_its_luck():
    def started(start, tasks):
        found = results("a", **tasks)
        for one in found:
            one.record["spec"] = {"start": start.format(seed=one.cell.seed, task=one.cell.task)}
        return found

    luck = np.array([0.1, 0.4, 0.5, 0.6, 0.9])
    tasks = {f"task{number}": list(luck + number / 100) for number in range(8)}
    b = results("b", **{name: [0.0] * 5 for name in tasks})
    shared, own = versus(started("stage-{seed}", tasks), b), versus(started("first-{task}-{seed}", tasks), b)
    assert shared.elsewhere.method == "Student's t over tasks, and seeds that they share"
    alone = versus(results("a", **tasks), b)
    assert own.elsewhere == alone.elsewhere
    assert own.elsewhere.method == "Student's t over tasks"
    for a, c in ((shared.advantage, own.advantage), (shared.elsewhere, own.elsewhere)):
        assert c.high - c.low < 0.5 * (a.high - a.low)
    fewer = versus([one for one in started("stage-{seed}", tasks) if one.cell != ("task3", 16, 2)], b).elsewhere
    assert fewer.method == shared.elsewhere.method
    assert fewer.high - fewer.low > shared.elsewhere.high - shared.elsewhere.low
    (first,) = {one.cell.task for one in started("x", {"rte": [0.5, 0.6]})}
    assert versus(started("x", {first: [0.5, 0.6]}), results("b", rte=[0.1, 0.1])).advantage.method.startswith(
        "Student's t over seeds, and"
    )


def test_tasks_of_the_same_rows_count_as_one():
    def under(label, task, *values):
        return [replace(one, cell=Cell(task, 16, one.cell.seed)) for one in results(label, rte=values)]

    a = [*under("a", "rte", 0.9, 0.8), *under("a", "rte copy", 0.9, 0.8), *under("a", "another name", 0.9, 0.8)]
    b = [*under("b", "rte", 0.5, 0.5), *under("b", "rte copy", 0.5, 0.5), *under("b", "another name", 0.5, 0.5)]
    found = versus(a, b)
    assert len(found.tasks) == 3
    assert (found.advantage.n, found.elsewhere) == (2, None)
    assert "the same rows under several names count as one task: another name, rte, rte copy" in found.notes
    more = versus(a + results("a", sst2=[0.7, 0.7]), b + results("b", sst2=[0.5, 0.5]))
    assert (more.elsewhere.n, more.advantage.mean) == (2, pytest.approx((0.35 + 0.2) / 2))


def test_seeds_of_the_same_training_rows_are_named():
    a, b = results("a", rte=[0.9, 0.8, 0.85]), results("b", rte=[0.5, 0.5, 0.5])
    assert not any("same training rows" in note for note in versus(a, b).notes)
    for run in a + b:
        run.record["rows"]["fingerprint"] = "all"
    (note,) = (note for note in versus(a, b).notes if "same training rows" in note)
    assert note == "seeds had the same training rows on rte: nothing here says how other training rows would do"


def test_scores_without_an_interval_over_test_rows_give_no_verdict_on_these_tasks():
    a, b = results("a", rte=[0.9, 0.9, 0.9]), results("b", rte=[0.5, 0.5, 0.5])
    assert versus(a, b).better == "a"
    for run in a:
        run.record["scores"]["accuracy"] |= {"low": None, "high": None}
    found = versus(a, b)
    assert (found.better, found.advantage.method) == (None, "noise of test rows unknown")


# -------------------------------------------------------------------------------------------------------------- by rank


def test_a_ranking_done_by_hand():
    runs = [
        *results("a", t1=[0.9, 0.7], t2=[0.9], t3=[0.5]),
        *results("b", t1=[0.8, 0.8], t2=[0.8], t3=[0.5]),
        *results("c", t1=[0.1, 0.1], t2=[0.7], t3=[0.1]),
    ]
    found = rank(runs)
    # t1: a and b win a seed each, hence 1.5, 1.5, 3; t2: 1, 2, 3; t3: 1.5, 1.5, 3
    assert [(one.label, one.rank.mean) for one in found.standings] == [
        ("a", pytest.approx(4 / 3)), ("b", pytest.approx(5 / 3)), ("c", 3),
    ]  # fmt: skip
    assert [(one.wins, one.ties, one.losses) for one in found.standings] == [(6, 1, 1), (5, 1, 2), (0, 0, 8)]
    assert (found.tasks, found.cells, found.left_out) == (("t1", "t2", "t3"), 4, 0)
    # Σ n² (R_j - 2)² = 4 + 1 + 9; Σ r² = 13.5 + 14 + 13.5, less 3 · 3 · 16 / 4
    assert found.friedman == pytest.approx(2 * 14 / 5)
    assert found.critical_difference == pytest.approx(2.3437 * sqrt(12 / 18), abs=1e-3)
    assert found.groups == (("a", "b", "c"),)
    assert "3 tasks: the tests of ranks are approximations" in found.notes[0]


def test_only_what_all_labels_share_is_ranked():
    runs = results("a", t1=[0.9], t2=[0.9]) + results("b", t1=[0.8], t2=[0.8], t3=[0.8]) + results("c", t1=[0.7])
    found = rank(runs)
    assert (found.cells, found.left_out, found.tasks) == (1, 2, ("t1",))
    assert (found.friedman, found.p, found.critical_difference, found.groups) == (None, None, None, ())
    assert (found.standings[0].rank.low, found.standings[0].rank.method) == (None, "one task")
    assert "one task" in found.notes[0]
    with pytest.raises(RunError, match=r"all 4 labels \(cells: 'a' 2, 'b' 3, 'c' 1, 'd' 1\)"):
        rank(runs + results("d", t3=[0.5]))
    with pytest.raises(RunError, match="at least two labels, found 'a'"):
        rank(results("a", t1=[0.9]))


def test_few_tasks_are_told_when_they_can_show_nothing():
    few = rank(results("a", t1=[0.9], t2=[0.9]) + results("b", t1=[0.8], t2=[0.8]))
    assert "too few tasks: on 2, even the ranks of the best everywhere and the worst" in few.notes[0]
    assert few.groups == (("a", "b"),)
    tasks = [f"t{i:02}" for i in range(12)]
    many = rank([result(label, task, 0, score) for label, score in (("a", 0.9), ("b", 0.8)) for task in tasks])
    assert (many.notes, many.groups) == ((), ())
    assert many.p == 0.5**11  # all twelve agree


def test_groups_are_the_largest_neighbourhoods():
    rng = np.random.default_rng(0)
    runs = []
    for label, mean in {"a": 0.9, "b": 0.85, "c": 0.8, "d": 0.3, "e": 0.1}.items():
        runs += results(label, **{f"t{i:02}": [mean + 0.1 * rng.random()] for i in range(12)})
    found = rank(runs)
    means = {one.label: one.rank.mean for one in found.standings}
    for group in found.groups:
        assert means[group[-1]] - means[group[0]] < found.critical_difference
    assert all(not set(one) <= set(other) for one in found.groups for other in found.groups if one != other)
    assert not any({"a", "e"} <= set(group) for group in found.groups)


@given(data=st.data(), tasks=st.integers(2, 8), labels=st.integers(3, 6))
def test_friedmans_statistic_is_scipys(data, tasks, labels):
    from scipy.stats import rankdata

    table = data.draw(st.lists(st.lists(st.integers(0, 9), min_size=labels, max_size=labels), min_size=tasks,
                               max_size=tasks).filter(lambda rows: any(len(set(row)) > 1 for row in rows)))  # fmt: skip
    statistic, p = friedman_test(rankdata(np.array(table), axis=1))
    assert statistic == pytest.approx(friedmanchisquare(*np.array(table).T).statistic)
    assert 0 < p <= 1


def test_the_example_of_demsar():
    """Demšar 2006, table 6 and section 3.2.2: C4.5 and three variants of it on 14 data sets."""
    ranks = np.array([
        [4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1],
        [2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3],
        [3, 1, 4, 2],
    ])  # fmt: skip
    assert ranks.mean(0).round(3).tolist() == [3.143, 2.0, 2.893, 1.964]
    statistic, p = friedman_test(ranks)
    ties = 1 - (3 * 6 + 60) / (14 * (4**3 - 4))  # the paper does without this correction
    assert statistic * ties == pytest.approx(9.28, abs=0.01)
    assert p < 0.05
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)


def test_where_every_task_has_all_tied_nothing_is_found():
    assert friedman_test(np.full((3, 2), 1.5)) == (0.0, 1.0)


@pytest.mark.parametrize(("labels", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_the_table(labels, q):
    assert critical_difference(labels, 20) == pytest.approx(q * sqrt(labels * (labels + 1) / 120), abs=1e-3)


# --------------------------------------------------------------------------------------------------------------- alone


def test_a_summary_has_every_label_task_and_shots():
    runs = results("a", t1=[0.5, 1.0], t2=[0.25]) + results("b", t1=[0.5], t2=[0.75], t3=[0.5])
    rows = {(one.label, one.task, one.shots): one.estimate for one in summary(runs)}
    assert rows["a", "t1", 16].mean == 0.75
    assert rows["a", "t1", 16].n == 2
    assert rows["a", "t1", 16].high == 1  # accuracy goes no higher
    assert rows["a", "t2", 16].low is None
    assert (rows["a", None, 16].mean, rows["b", None, 16].mean) == (0.5, 0.625)  # over t1 and t2, which both have
    assert rows["b", None, 16].n == 2
    assert len(rows) == 7


def test_there_is_no_mean_of_more_and_less():
    runs = [result("a", "t1", 0, 0.5), result("a", "t2", 0, 2.0, metric="mse"), result("a", "t3", 0, 0.5, shots=32)]
    assert [(one.task, one.shots, one.metric) for one in summary(runs)] == [
        ("t1", 16, "accuracy"), ("t2", 16, "mse"), ("t3", 32, "accuracy"),
    ]  # fmt: skip
    assert summary(runs, metric="nll") == []
    mixed = summary([*runs[:1], result("a", "t4", 0, 0.25, metric="f1")])[-1]
    assert (mixed.task, mixed.metric, mixed.estimate.mean) == (None, "accuracy and f1", 0.375)


def test_stages_have_no_rank_among_what_started_from_them():
    stage = [result("stage", "many", seed, 0.5, key=f"stage-{seed}") for seed in range(2)]
    arms = results("lora", sst2=[0.5, 0.75]) + results("head", sst2=[0.25, 0.75])
    for one in arms[:2]:
        one.record["spec"] = {"start": f"stage-{one.cell.seed}"}
    with pytest.raises(RunError):
        rank([*stage, *arms])
    assert without_stages([*stage, *arms]) == arms
    assert [one.label for one in rank(without_stages([*stage, *arms])).standings] == ["lora", "head"]
    also_an_arm = result("stage", "sst2", 2, 0.5)
    assert without_stages([*stage, *arms, also_an_arm]) == [*stage, *arms, also_an_arm]
    beside = result("stage", "sst2", 0, 0.5, key="beside")  # started from, on the task of the others
    arms[2].record["spec"] = {"start": "beside"}
    assert without_stages([*arms, beside]) == [*arms, beside]


def test_settings_of_writing_tell_only_runs_that_write_apart() -> None:
    """And whatever stands in them, a label is one line."""
    writing = [{"generation.separator": "\n", "generation.beams": beams} for beams in (1, 4)]
    labels = [{"training.epochs": 1}, {"training.epochs": 1}]
    assert len(_having("generation.beams", [*writing, *labels])) == 2
    assert len(_having("training.epochs", [*writing, *labels])) == 4
    assert _with_settings("lora", writing[0], ["generation.separator", "generation.beams"]) == (
        "lora (beams=1, separator=\\n)"
    )
