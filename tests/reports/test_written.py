"""Reports of runs that write: the same examples for all methods, errors by slot, and nothing that is for labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handful.data.task import Example
from handful.evaluation.estimate import bootstrap_score
from handful.reports.html import render_page
from handful.reports.report import Report, read_report
from handful.reports.text import to_json, to_markdown

NAMES = ("Aromi", "Zizzi", "Cotto", "Alimentum", "<b>Bold</b> & Sons", "The Mill", "Strada", "Wildwood")


def writing(fakes: Any, label: str, shots: int = 50, seed: int = 0, task: str = "e2e", written: str = "{} is a pub.") -> Path:  # fmt: skip  # noqa: E501
    """A run that writes one text for every restaurant."""
    records = [
        Example(f"{name} | eatType | pub && {name} | area | riverside", references=(f"{name} is a riverside pub.",) * 5)
        for name in NAMES
    ]
    texts = [written.format(name) for name in NAMES]
    generator = np.random.default_rng(seed)
    scores = {
        name: bootstrap_score(name, texts, records, generator=generator, resamples=20).to_dict()
        for name in ("bleu-e2e", "rouge-l", "slot-error")
    }
    of_task = {"name": task, "kind": "generation", "labels": [], "metric": "bleu-e2e", "origin": "e2e", "notes": []}
    folder = fakes.run(label, task, shots, seed, changes={"task": of_task, "scores": scores}).folder
    lines = [
        {"source": record.source, "text": record.text, "references": list(record.references), "written": text}
        for record, text in zip(records, texts, strict=True)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def report_of(folder: Path) -> Report:
    return read_report([folder], generator=np.random.default_rng(0))


def test_the_same_records_stand_beside_each_other(fakes):
    writing(fakes, "lora", written="{} is a pub by the river.")
    writing(fakes, "prefix")
    writing(fakes, "prefix", shots=10, written="nothing of {}")
    table = report_of(fakes.root).table("examples-e2e")
    assert [row[0] for row in table.rows] == ["source", "references", "lora", "prefix"]
    assert len(table.columns) == 4
    for source, references, lora, prefix in zip(*[row[1:] for row in table.rows], strict=True):
        name = source.partition(" | ")[0]
        assert (lora, prefix) == (f"{name} is a pub by the river.", f"{name} is a pub.")
        assert references.endswith("(and 2 more)")


def test_errors_by_slot_are_counted_over_seeds(fakes):
    for seed in range(2):
        writing(fakes, "lora", seed=seed, written="{} is a pub by the river." if seed else "{} is a cheap pub.")
    (row,) = report_of(fakes.root).table("slot-errors-e2e").records()
    assert row == {"method": "lora", "missing": 50, "wrong": 0, "added": 50, "area": 50, "priceRange": 50}
    (scores,) = report_of(fakes.root).table("written-e2e").records()
    assert scores["runs"] == 2 and scores["slot-error"] == pytest.approx((0 + 2 / 3) / 2)


def test_nothing_that_is_for_labels_is_shown_and_texts_are_escaped(fakes):
    for shots in (10, 50):
        for label in ("lora", "prefix"):
            writing(fakes, label, shots)
    report = report_of(fakes.root)
    names = [section.name for section in report.sections]
    assert "written" in names and "calibration" not in names and not report.skipped
    curves = next(figure for figure in report.figures if figure.name == "dev-curves")
    assert {row["metric"] for row in curves.numbers.records()} == {"nll"}
    page = render_page(report)
    assert "<b>Bold" not in page
    assert "<b>Bold" not in to_markdown(report)
    assert json.loads(json.dumps(to_json(report)))["tables"]["examples-e2e"]


def test_texts_that_are_no_meanings_have_no_slots(fakes):
    folder = writing(fakes, "lora")
    line = {"source": "m:1", "text": "say something", "references": ["hello"], "written": ""}
    (folder / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    report = report_of(fakes.root)
    assert "slot-errors-e2e" not in {table.name for table in report.tables}
    assert report.table("examples-e2e").rows[-1] == ("lora", "(nothing)")


def test_damaged_texts_cost_the_examples_and_not_the_run(fakes):
    folder = writing(fakes, "lora")
    (folder / "predictions.jsonl").write_text('{"text": "a"}\n')
    report = report_of(fakes.root)
    assert [name for name, _ in report.skipped] == [str(folder)]
    assert report.table("written-e2e").rows and "examples-e2e" not in {table.name for table in report.tables}
