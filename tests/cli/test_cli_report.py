"""`handful report` on real runs of a tiny model."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import handful.reports


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A folder with the finished run and a damaged copy of it."""
    root = tmp_path / "runs"
    shutil.copytree(finished, root / "good")
    shutil.copytree(finished, root / "bad")
    (root / "bad" / "run.json").write_text("{")
    return root


def test_markdown_is_what_one_gets_without_asking(command, runs):
    outcome = command("report", runs)
    assert outcome.code == 0, outcome.err
    record = json.loads((runs / "good" / "run.json").read_text())
    assert outcome.out.startswith("# handful report\n\nprefix-subspace on data: accuracy ")
    assert f"| {record['scores']['accuracy']['mean']:.3f} [" in outcome.out
    assert "left out: " in outcome.err
    assert str(runs / "bad" / "run.json") in outcome.err
    assert "1 folder could not be read in full" in outcome.err


def test_json_and_csv_are_for_programs(command, runs):
    record = json.loads((runs / "good" / "run.json").read_text())
    content = command("report", runs, "--format", "json").json
    (run,) = content["tables"]["runs"]
    assert run["score"] == record["scores"]["accuracy"]
    (row,) = csv.DictReader(io.StringIO(command("report", runs, "--format", "csv").out))
    assert float(row["score"]) == record["scores"]["accuracy"]["mean"]
    assert (row["method"], row["shots"], row["steps"]) == ("prefix-subspace", "16", str(record["fit"]["steps"]))


def test_a_page_and_csv_files_print_nothing_on_stdout(command, runs, tmp_path):
    page, folder = tmp_path / "new" / "report.html", tmp_path / "csv"
    outcome = command("report", runs, "--html", page, "--csv", folder, "--title", "Tickets & <more>")
    assert (outcome.code, outcome.out) == (0, "")
    assert re.search(rf"page written to {re.escape(str(page))} \(0\.\d MB\)", outcome.err)
    text = page.read_text(encoding="utf-8")
    assert "<title>Tickets &amp; &lt;more&gt;</title>" in text
    assert {"score-by-shots.csv", "reliability.csv", "time-and-memory.csv", "runs.csv"} <= {
        path.name for path in folder.iterdir()
    }


def test_one_run_may_be_given_by_its_own_folder(command, runs):
    assert command("report", runs / "good", "--format", "json").json["facts"]["runs"] == "1"


def test_what_cannot_be_done_is_said(command, runs, tmp_path):
    nowhere = command("report", tmp_path / "nowhere")
    assert nowhere.code == 1
    assert "no such folder" in nowhere.err
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = command("report", empty)
    assert nothing.code == 1
    assert "expected finished runs below" in nothing.err
    blocked = command("report", runs, "--html", runs / "good" / "run.json" / "r.html")
    assert blocked.code == 1
    assert "cannot be written" in blocked.err
    assert command("report", runs, "--format", "pdf").code == 2


def test_without_matplotlib_only_the_page_is_missing(command, runs, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "handful.reports.plots", raising=False)
    monkeypatch.delattr(handful.reports, "plots", raising=False)
    assert command("report", runs).code == 0
    outcome = command("report", runs, "--html", tmp_path / "r.html")
    assert outcome.code == 2
    assert "figures of a report need matplotlib" in outcome.err
    assert "pip install 'handful[plot]'" in outcome.err
    assert not (tmp_path / "r.html").exists()
