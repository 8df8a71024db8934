"""What a report says: the numbers of the runs and of `studies.compare`, what is missing, what is wrong."""

from __future__ import annotations

import csv
import io
import json

import pytest

from handful.errors import RunError
from handful.evaluation.estimate import Estimate
from handful.reports.report import read_report, shown_duration
from handful.reports.table import Table
from handful.reports.text import to_json, to_markdown, write_csv_files
from handful.studies.compare import compare, summary, with_label
from handful.studies.ranking import rank
from handful.studies.results import read_results


def report_of(*folders):
    return read_report(folders)


def report_text(report) -> str:
    return " ".join(text for section in report.sections for text in section.text)


def test_scores_are_those_of_the_summary(study):
    report, results = report_of(study), read_results([study])[0]
    table = report.table("scores-100-shots")
    cells = {
        (row[0], column): value for row in table.rows for column, value in zip(table.columns[1:], row[1:], strict=True)
    }
    expected = {(s.label, s.task or "mean over tasks"): s.estimate for s in summary(results) if s.shots == 100}
    assert cells == expected
    best = max(value.mean for (_, task), value in expected.items() if task == "trec")
    marked = [table.rows[row][column].mean for row, column in table.best if table.columns[column] == "trec"]
    assert set(marked) == {best}


def test_ranks_and_pairs_are_those_of_compare(study):
    report, results = report_of(study), read_results([study])[0]
    ranking = rank(results)
    assert report.table("ranks").rows == tuple((s.label, s.rank, s.wins, s.ties, s.losses) for s in ranking.standings)
    assert len(report.table("pairs").rows) == 3
    a, b, advantage, elsewhere, wins, ties, losses, pairs, p, verdict = report.table("pairs").rows[0]
    found = compare(with_label(results, a), with_label(results, b))
    assert (advantage, elsewhere, elsewhere.n) == (found.advantage, found.elsewhere, 2)
    assert (wins, ties, losses, pairs, p) == (found.wins, found.ties, found.losses, 8, found.p)
    assert verdict == (found.statement if found.better else "not told apart")
    assert "of these 3 pairs about 0.15 would be told apart" in report_text(report)
    first = ranking.standings[0]
    assert report.headline[0] == (
        f"{first.label} has the best average rank: {first.rank.mean:.2f} of 3 methods over 2 tasks."
    )
    assert f"Against {ranking.standings[1].label}, the second:" in report.headline[-1]


def test_what_failed_and_what_is_damaged_is_counted_and_named(study):
    report = report_of(study)
    assert "1 run of a study failed and is listed at the end." in report.reservations
    assert "1 folder could not be read in full and is listed at the end." in report.reservations
    assert report.table("failed").rows == (("reviews-k50-s2-lora", "out of memory in step 3", "free some memory"),)
    ((folder, problem),) = report.table("skipped").rows
    assert folder == str(study / "broken")
    assert "damaged" in problem
    assert dict(report.facts)["runs"] == "24"


def test_every_figure_has_its_numbers(study, tmp_path):
    report = report_of(study)
    names = [figure.name for figure in report.figures]
    assert names == [
        "score-by-shots", "advantage-of-the-best-ranked", "critical-difference", "dev-curves", "reliability",
        "time-and-memory", "landscape",
    ]  # fmt: skip
    written = write_csv_files(report, tmp_path / "csv")
    assert {path.stem for path in written} == {*names, *(table.name for table in report.tables)}
    rows = list(csv.DictReader((tmp_path / "csv" / "score-by-shots.csv").open()))
    assert len(rows) == 2 * 2 * 3
    assert all(float(row["score low"]) <= float(row["score"]) <= float(row["score high"]) for row in rows)
    curves = list(csv.DictReader((tmp_path / "csv" / "dev-curves.csv").open()))
    assert len(curves) == 16 * 20  # all but the head's runs
    landscape = list(csv.DictReader((tmp_path / "csv" / "landscape.csv").open()))
    assert len(landscape) == 2 * 91
    assert all(abs(sum(float(row[f"vertex {i}"]) for i in (1, 2, 3)) - 1) < 1e-5 for row in landscape)
    shares = list(csv.DictReader((tmp_path / "csv" / "reliability.csv").open()))
    assert sum(float(row["share of rows"]) for row in shares if row["method"] == "lora") == pytest.approx(1)


def test_reliability_pools_runs_but_counts_a_test_row_once(fakes):
    for seed in range(4):
        fakes.run(seed=seed)
    (figure,) = [figure for figure in report_of(fakes.root).figures if figure.name == "reliability"]
    assert sum(row["accuracy"]["n"] for row in figure.numbers.records()) == pytest.approx(fakes.rows, abs=5)


def test_csv_of_an_estimate_has_all_its_parts():
    table = Table("t", "T", ("a", "b"), (("x", Estimate(0.1 + 0.2, 0.25, 0.5, 7)), ("y", None)))
    assert table.csv() == "a,b,b low,b high,b n\nx,0.30000000000000004,0.25,0.5,7\ny,,,,\n"
    assert list(csv.reader(io.StringIO(table.csv())))[2] == ["y", "", "", "", ""]


def test_markdown_and_json_have_words_and_tables(study):
    report = report_of(study)
    markdown = to_markdown(report)
    assert markdown.startswith("# few-shot trial\n\n")
    for said in (*report.headline[:1], "Before you trust this:", "### 100 shots", "| method | rank | wins |"):
        assert said in markdown, said
    content = json.loads(json.dumps(to_json(report)))
    assert content["headline"] == list(report.headline)
    assert len(content["tables"]["runs"]) == 24
    assert content["tables"]["ranks"][0]["rank"]["low"] >= 1


def test_one_run_is_a_report_too(fakes):
    fakes.run(landscape=True)
    report = report_of(fakes.root)
    score = read_results([fakes.root])[0][0].estimate()
    assert report.headline == (f"prefix-subspace on reviews: accuracy {score} on 150 test rows.",)
    assert report.table("scores-50-shots").rows == (("prefix-subspace", score),)
    assert score.method == "Wilson"  # one seed: the interval over test rows
    assert "One seed: nothing here says how much scores move with other training rows." in report.reservations
    assert [section.name for section in report.sections] == [
        "run", "scores", "training", "calibration", "cost", "landscape", "settings", "runs"
    ]  # fmt: skip


def test_without_ranks_the_scores_are_the_headline(fakes):
    for seed in range(2):
        fakes.run(seed=seed)
    for task in ("bank", "trec", "sst2"):
        fakes.run(task=task, shots=100)
    results, report = read_results([fakes.root])[0], report_of(fakes.root)
    of_task = {result.cell.task: result.estimate() for result in results}
    assert report.headline[0] == f"prefix-subspace on reviews, 50 shots: accuracy {summary(results)[0].estimate}."
    assert report.headline[1] == f"prefix-subspace on bank, 100 shots: accuracy {of_task['bank']}."
    assert report.headline[3] == "1 more below."


def test_regression_and_classification_side_by_side(fakes):
    for label in ("head", "lora"):
        for seed in range(2):
            fakes.run(label, seed=seed)
            fakes.run(label, "similarity", seed=seed, labels=())
    report = report_of(fakes.root)
    table = report.table("scores-50-shots")
    assert table.columns == ("method", "mean over tasks", "reviews", "similarity")
    assert table.details == ("", "accuracy and spearman", "accuracy", "spearman")


def test_runs_without_test_rows(fakes):
    fakes.run(changes={"scores": {}})
    report = report_of(fakes.root)
    assert report.headline == ("prefix-subspace on reviews: not scored: there were no test rows.",)
    assert "1 run has no test score." in report.reservations


def test_what_is_uneven_is_said(fakes):
    for seed in range(2):
        fakes.run("lora", seed=seed, study="s", trials=30)
        fakes.run("head", seed=seed, study="s", trials=1)
    fakes.run("lora", seed=2, study="s", trials=30, changes={"versions__torch": "9.9"})
    said = report_of(fakes.root).reservations
    assert "Methods did not have equally many settings to choose from: head 1, lora 30." in said
    assert "Not every method was run in each of the 3 cells (task, shots, seed); missing: head in 1." in said
    assert "Runs were made with several versions of torch: 2.13.0, 9.9." in said


def test_methods_that_share_no_rows_are_not_ranked(fakes):
    fakes.run("lora", "reviews")
    fakes.run("head", "trec")
    report = report_of(fakes.root)
    assert "No ranks: no rows were run and scored by all 2 labels" in report.sections[2].text[0]
    assert "pairs" not in {table.name for table in report.tables}


@pytest.mark.parametrize("damage", ["lacks_fit", "no_object", "unknown_metric", "strange_score", "no_settings"])
def test_a_record_that_lacks_something_is_left_out(fakes, reseal, damage):
    fakes.run("lora")
    path = fakes.run("head").folder / "run.json"
    record = json.loads(path.read_text())
    if damage == "lacks_fit":
        del record["fit"]
    elif damage == "no_object":
        record["task"] = "reviews"
    elif damage == "unknown_metric":
        record["task"]["metric"] = "applause"
    elif damage == "strange_score":
        record["scores"]["accuracy"] = {"mean": 2}
    else:
        del record["spec"]["training"]
    path.write_text(json.dumps(record))
    reseal(path.parent)
    report = report_of(fakes.root)
    ((folder, problem),) = report.skipped
    assert folder == str(path.parent)
    assert "not the record of a run" in problem
    assert dict(report.facts)["methods"] == "1"


@pytest.mark.parametrize("name", ["predictions.jsonl", "landscape.json"])
@pytest.mark.parametrize("content", ["{", '{"points": 3, "target": "?"}', "[]", "\udcff"])
def test_a_damaged_file_costs_its_run_or_without_checksums_its_figure(fakes, unseal, name, content):
    run = fakes.run(landscape=True)
    (run.folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match="found none") as caught:
        report_of(fakes.root)
    assert f"{run.folder / name}: the content is not what was saved" in caught.value.message
    unseal(run.folder)
    report = report_of(fakes.root)
    ((folder, problem),) = report.skipped
    assert (folder, problem.partition(":")[0]) == (str(run.folder), name)
    assert len(report.table("runs").rows) == 1
    assert {"predictions.jsonl": "reliability", "landscape.json": "landscape"}[name] not in {
        figure.name for figure in report.figures
    }


def test_no_runs_at_all_is_an_error_that_names_the_damaged(fakes, tmp_path):
    fakes.break_one()
    with pytest.raises(RunError, match=r"found none \(1 damaged\)\n  .*broken: .*damaged"):
        report_of(fakes.root)
    with pytest.raises(RunError, match="no such folder"):
        report_of(tmp_path / "nowhere")


def test_two_runs_of_one_label_on_the_same_rows_are_told(fakes):
    fakes.run("lora", study="s", trials=2)
    fakes.run("lora", study="s", trials=3)
    with pytest.raises(RunError, match="two different runs on the same rows"):
        report_of(fakes.root)


def test_csv_files_that_cannot_be_written(study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        write_csv_files(report_of(study), tmp_path / "file" / "csv")


def test_durations():
    assert [shown_duration(s) for s in (3.2, 119, 600, 7300)] == ["3 s", "119 s", "10 min", "2.0 h"]
