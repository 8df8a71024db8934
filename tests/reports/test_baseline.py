"""Baselines in reports: beside every score, and said where a run is not shown to be better."""

from __future__ import annotations

import json

from handful.reports.baseline import BASELINE
from handful.reports.report import read_report


def report_of(root):
    return read_report([root])


def baseline(score, answer="good"):
    return {"answer": answer, "ties": 1, "scores": {"accuracy": score}}


def test_a_baseline_stands_below_the_scores_of_each_task(fakes):
    for seed, score in enumerate((0.5, 0.6)):
        fakes.run("lora", "reviews", seed=seed, changes={"baseline": baseline(score)})
        fakes.run("lora", "trec", seed=seed)
    report = report_of(fakes.root)
    (table,) = [table for table in report.tables if table.name.startswith("scores-")]
    row = dict(zip(table.columns, table.rows[-1], strict=True))
    assert row["method"] == BASELINE and row["reviews"] == 0.55 and row["trec"] is None
    shown = {(one["task"], one["seed"]): one["baseline"] for one in report.table("runs").records()}
    assert shown == {("reviews", 0): 0.5, ("reviews", 1): 0.6, ("trec", 0): None, ("trec", 1): None}
    assert f"| {BASELINE} |  | 0.550 |  |" in table.markdown()


def test_runs_of_older_versions_have_none_and_are_shown(fakes):
    fakes.run("lora")
    report = report_of(fakes.root)
    assert not report.skipped and "baseline" not in report.table("runs").columns
    assert all(BASELINE not in row for table in report.tables for row in table.rows)


def test_runs_that_are_not_better_than_their_baseline_are_named(fakes):
    run = fakes.run("lora", "reviews")
    score = json.loads((run.folder / "run.json").read_text())["scores"]["accuracy"]
    fakes.run("lora", "reviews", seed=1, changes={"baseline": baseline(0.01)})
    fakes.run("head", "reviews", seed=0, changes={"baseline": baseline(0.99)})
    fakes.run("head", "reviews", seed=1, changes={"baseline": baseline(0.01)})
    said = [line for line in report_of(fakes.root).reservations if "largest class" in line]
    assert said == [
        "1 of 4 runs is not shown to be better than always predicting the largest class, or the mean, of their "
        "training rows: head on reviews, 50 shots."
    ]
    alone = fakes.root.parent / "alone"
    fakes.root = alone
    fakes.run("lora", "reviews", changes={"baseline": baseline(score["mean"])})
    (line,) = report_of(alone).headline
    assert line.endswith(
        f"always predicting 'good', the largest class, scores {score['mean']:.3f}: the interval holds it, so the model "
        "is not shown to be better."
    )


def test_classes_without_a_test_row_are_named_once_per_task(fakes):
    for seed in range(2):
        fakes.run("lora", "reviews", seed=seed, changes={"rows__untested_classes": ["rare"]})
    said = [line for line in report_of(fakes.root).reservations if "no test row" in line]
    assert said == ["reviews: 1 of 2 classes has no test row and is not scored: 'rare'."]
