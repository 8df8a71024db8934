"""Reports of runs that write: the same examples for all methods, errors by slot, and nothing that is for labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handful.reports.html import render_page
from handful.reports.report import Report, read_report
from handful.reports.text import to_json, to_markdown
from handful.studies.compare import compare, with_label
from handful.studies.results import read_results


def report_of(folder: Path) -> Report:
    return read_report([folder])


def test_the_same_records_stand_beside_each_other(fakes):
    fakes.writing("lora", written="{} is a pub by the river.")
    fakes.writing("prefix")
    fakes.writing("prefix", shots=10, written="nothing of {}")
    table = report_of(fakes.root).table("examples-e2e")
    assert [row[0] for row in table.rows] == ["source", "references", "lora", "prefix"]
    assert len(table.columns) == 4
    for source, references, lora, prefix in zip(*[row[1:] for row in table.rows], strict=True):
        name = source.partition(" | ")[0]
        assert (lora, prefix) == (f"{name} is a pub by the river.", f"{name} is a pub.")
        assert references.endswith("(and 2 more)")


def test_errors_by_slot_are_counted_over_seeds(fakes):
    for seed in range(2):
        fakes.writing("lora", seed=seed, written="{} is a pub by the river." if seed else "{} is a cheap pub.")
    (row,) = report_of(fakes.root).table("slot-errors-e2e").records()
    assert row == {"method": "lora", "missing": 50, "wrong": 0, "added": 50, "area": 50, "priceRange": 50}
    (scores,) = report_of(fakes.root).table("written-e2e").records()
    assert scores["runs"] == 2 and scores["slot-error"]["mean"] == pytest.approx((0 + 2 / 3) / 2)
    assert scores["slot-error"]["method"] == "Student's t"


def test_the_figure_has_every_error_by_kind_and_slot_with_the_worst_slot_first(fakes):
    fakes.writing("lora", written="{} is a cheap pub.")
    fakes.writing("prefix", written="{} is cheap.")
    fakes.writing("full", written="{} is a pub by the river.")
    (figure,) = next(section for section in report_of(fakes.root).sections if section.name == "written").figures
    kinds, slots = (panel.drawing.rows for panel in figure.panels)
    assert kinds == [
        ("missing", {"full": 0, "lora": 100, "prefix": 200}),
        ("wrong", {"full": 0, "lora": 0, "prefix": 0}),
        ("added", {"full": 0, "lora": 100, "prefix": 100}),
    ]
    assert slots == [
        ("area", {"full": 0, "lora": 100, "prefix": 100}),
        ("priceRange", {"full": 0, "lora": 100, "prefix": 100}),
        ("eatType", {"full": 0, "lora": 0, "prefix": 100}),
    ]
    assert len(figure.numbers.rows) == 3 * 6


def test_texts_without_errors_have_a_table_of_zeros_and_no_figure(fakes):
    fakes.writing("lora", written="{} is a pub by the river.")
    report = report_of(fakes.root)
    assert report.table("slot-errors-e2e").rows == (("lora", 0, 0, 0),)
    assert "slot-errors" not in {figure.name for figure in report.figures}


def test_nothing_that_is_for_labels_is_shown_and_texts_are_escaped(fakes):
    for shots in (10, 50):
        for label in ("lora", "prefix"):
            fakes.writing(label, shots)
    report = report_of(fakes.root)
    names = [section.name for section in report.sections]
    assert "written" in names and "calibration" not in names and not report.skipped
    curves = next(figure for figure in report.figures if figure.name == "dev-curves")
    assert {row["metric"] for row in curves.numbers.records()} == {"nll"}
    page = render_page(report)
    assert "<b>Bold" not in page
    assert "<b>Bold" not in to_markdown(report)
    assert json.loads(json.dumps(to_json(report)))["tables"]["examples-e2e"]


def test_texts_that_are_no_meanings_have_no_slots(fakes, reseal):
    folder = fakes.writing("lora")
    line = {"source": "m:1", "text": "say something", "references": ["hello"], "written": ""}
    (folder / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    reseal(folder)
    report = report_of(fakes.root)
    assert "slot-errors-e2e" not in {table.name for table in report.tables}
    assert report.table("examples-e2e").rows[-1] == ("lora", "(nothing)")


def test_damaged_texts_cost_the_examples_and_not_the_run(fakes, reseal):
    folder = fakes.writing("lora")
    (folder / "predictions.jsonl").write_text('{"text": "a"}\n')
    reseal(folder)
    report = report_of(fakes.root)
    assert [name for name, _ in report.skipped] == [str(folder)]
    assert report.table("written-e2e").rows and "examples-e2e" not in {table.name for table in report.tables}


def test_runs_with_a_score_that_is_no_longer_computed_are_compared_and_shown(fakes):
    for label, mean in (("lora", 0.4), ("prefix", 0.3)):
        for seed in range(3):
            record = json.loads((fakes.writing(label, seed=seed) / "run.json").read_text())
            score = {"mean": mean + seed / 50, "low": 0.2, "high": 0.6, "n": 3, "level": 0.95, "method": "bootstrap"}
            changes = {"task": record["task"] | {"metric": "meteor"}, "scores": record["scores"] | {"meteor": score}}
            lines = [json.loads(line) for line in (fakes.root / record["key"][:10] / "predictions.jsonl").open()]
            fakes.run(label, "e2e", 50, seed, changes=changes, predictions=lines)
    report = report_of(fakes.root)
    assert "0.420" in to_markdown(report) and not report.skipped
    comparison = compare(*(with_label(read_results([fakes.root])[0], label) for label in ("lora", "prefix")))
    assert comparison.tasks[0].metric == "meteor" and comparison.advantage.mean == pytest.approx(0.1)
