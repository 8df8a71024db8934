"""What a report says about gates: maps of real runs, lines through targets, speed that exports measured, damage."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

from handful.backbone.blocks import FAMILIES, find_blocks
from handful.backbone.tiny import TINY_FAMILIES, tiny_model
from handful.reports.gate_figures import MAPS
from handful.reports.gates import _part_name, layer_of, lines_of
from handful.reports.html import render_page
from handful.reports.report import read_report
from handful.reports.text import to_json, to_markdown, write_csv_files
from handful.studies.engines import SequentialEngine
from handful.studies.recipe import Recipe
from handful.studies.results import read_results
from handful.studies.study import Study
from handful.testing import toy_study


def report_of(folder):
    return read_report([folder])


def figure_of(report, name):
    return next(figure for figure in report.figures if figure.name == name)


@pytest.fixture
def study(fakes):
    """Gates and pruning at two targets on two tasks, three seeds, beside an ungated method."""
    for task in ("reviews", "trec"):
        for seed in range(3):
            fakes.run("whole", task, seed=seed, study="s")
            for target in (0.2, 0.4):
                fakes.run(f"gates, {100 * target:.0f} %", task, seed=seed, study="s", gates=target)
                fakes.run(f"published, s = {target}", task, seed=seed, study="s", gates=target, published=True)
    return fakes.root


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Real runs of gates of both kinds and of pruning, on a tiny model."""
    root = tmp_path_factory.mktemp("real")
    base = toy_study(root / "data", seeds=1)
    cut = {"target_sparsity": 0.4}
    methods = [
        {"name": "whole", "method": "bias"},
        {"name": "gates", "method": "prune", "set": {**cut, "importance": "learned", "groups": "units-and-heads"}},
        {"name": "published", "method": "fine-gates", "set": cut},
        {"name": "wanda", "method": "prune", "set": cut},
    ]
    recipe = Recipe.from_dict(
        {
            "name": "toy-gates", "model": base.model, "tasks": ["letters"], "shots": [16], "seeds": 1,
            "set": {"training.epochs": 3, "run.dev": "carved"}, "methods": methods,
        }
    )  # fmt: skip
    outcome = Study(recipe, root / "study", root / "data").run(SequentialEngine(), lambda event: None)
    assert len(outcome.done) == 4
    return root / "study"


def test_real_runs_are_shown_as_they_were_recorded(real, tmp_path):
    report = report_of(real)
    records = {r.label: r.record for r in read_results([real])[0]}
    assert not report.skipped
    rows = figure_of(report, "gate-map").numbers.records()
    for label in ("gates", "published", "wanda"):
        found = [(r["matrix"], r["side"], r["open"], r["soft"], r["closed"]) for r in rows if r["method"] == label]
        expected = records[label]["adapter"]["gates"]
        assert found == [(g["matrix"], g["side"], g["open"], g["soft"], g["closed"]) for g in expected]
    assert {r["part"] for r in rows if r["method"] == "gates"} == {"heads", "feed-forward units"}
    assert len({r["part"] for r in rows if r["method"] == "published"}) == 12
    assert {r["layer"] for r in rows} == {0, 1, 2}
    table = {row["method"]: row for row in report.table("removed").records()}
    assert set(table) == {"gates", "published", "wanda"}
    columns = {"removed": "closed %, mean", "removable": "removed %, dense", "removable_compact": "removed %, compact"}
    for name, column in columns.items():
        for label, row in table.items():
            assert row[column] == pytest.approx(100 * records[label]["adapter"][name]), (label, column)
    assert table["gates"]["removed %, dense"] < table["gates"]["removed %, compact"]  # a stock BERT keeps its heads
    points = {row["method"]: row["removed %"] for row in figure_of(report, "score-by-removed").numbers.records()}
    assert points == {"whole": None, **{label: row["removed %, dense"] for label, row in table.items()}}
    curves = figure_of(report, "sparsity-curves").numbers.records()
    assert [r["removed"] for r in curves if r["method"] == "gates"] == [
        point["removed"] for point in records["gates"]["fit"]["history"]
    ]
    assert {r["method"] for r in curves} == {"gates", "published"}  # what is cut at once has no course
    assert {"gate-map", "sparsity-curves", "score-by-removed", "removed"} <= {
        path.stem for path in write_csv_files(report, tmp_path)
    }
    assert "### Removed parameters" in to_markdown(report)
    assert {row["method"] for row in to_json(report)["tables"]["removed"]} == set(table)
    assert "Far from the target: published (0 % of 40 %)." in " ".join(report.sections[3].text)
    assert render_page(report).count('id="figure-gate-map') >= 1


@pytest.mark.parametrize("family", [family for family in TINY_FAMILIES if family in FAMILIES])
def test_every_matrix_of_every_family_has_a_name_in_words(family):
    blocks = find_blocks(tiny_model(family))
    stacks = family == "t5"
    names = defaultdict(list)
    for matrix in blocks.matrices:
        name = _part_name(matrix, "rows", stacks)
        assert "." not in name and "_" not in name, f"{matrix} is called {name}"
        names[name].append(layer_of(matrix))
    assert all(sorted(layers) == [0, 1, 2] for layers in names.values()), names
    assert {_part_name(block.output, None, False) for block in blocks.feed_forward} == {"feed-forward units"}
    assert {_part_name(block.output, None, False) for block in blocks.attention} <= {"heads", "cross-attention heads"}


def test_a_matrix_that_is_not_known_keeps_its_name():
    assert _part_name("blocks.3.mixer.twist_proj", "rows", False) == "mixer.twist_proj, rows"
    assert (layer_of("blocks.3.mixer.twist_proj"), layer_of("mixer")) == (3, 0)


def test_scores_stand_over_the_mean_that_was_removed(study):
    report, results = report_of(study), read_results([study])[0]
    figure = figure_of(report, "score-by-removed")
    assert figure.legend == figure.palette == ("gates", "published", "whole")
    assert [panel.title for panel in figure.panels] == ["reviews", "trec"]
    drawing = figure.panels[1].drawing
    found = [100 * r.record["adapter"]["removed"] for r in results if (r.label, r.cell.task) == ("gates, 40 %", "trec")]
    assert len(found) == 3
    x, estimate = drawing.lines["gates"][1]
    assert (x, estimate.n) == (pytest.approx(mean(found)), 3)
    row = next(r for r in figure.numbers.records() if r["task"] == "trec" and r["method"] == "gates, 40 %")
    assert (row["removed %"], row["multiply-adds left %"]) == (pytest.approx(mean(found)), pytest.approx(100 - x))
    ((name, reference),) = drawing.references
    assert (name, reference.n) == ("whole", 3)
    assert "score-by-speed" not in {figure.name for figure in report.figures}


def test_what_stays_as_zeros_is_not_removed(study, reseal):
    for result in read_results([study])[0]:
        if "adapter" in result.record:
            path = result.run.folder / "run.json"
            record = json.loads(path.read_text())
            record["adapter"] |= {"removable": 0.05, "removable_compact": 0.1}
            path.write_text(json.dumps(record))
            reseal(path.parent)
    report = report_of(study)
    figure = figure_of(report, "score-by-removed")
    assert [x for x, _ in figure.panels[0].drawing.lines["published"]] == [pytest.approx(5)] * 2
    assert {row["removed %, compact"] for row in report.table("removed").records()} == {10.0}
    assert {row["removed %"] for row in report.table("runs").records()} == {None, 5.0}
    assert "5 % of parameters removed" in figure_of(report, "gate-map").panels[0].note


def test_lines_join_targets_of_one_method_whatever_a_search_chose(fakes, reseal):
    for seed in range(2):
        for target in (0.2, 0.4):
            fakes.run(f"fine-gates (target_sparsity={target})", seed=seed, gates=target, study="s")
            for rate in (1, 2):
                changes = {"training__learning_rate": 0.01 * (seed + 1)}  # as if searched for
                run = fakes.run(f"{rate} fast, {target}", seed=seed, gates=target, study="s", changes={})
                path = run.folder / "run.json"
                record = json.loads(path.read_text())
                record["spec"]["training"] |= {"epochs": rate, "learning_rate": changes["training__learning_rate"]}
                path.write_text(json.dumps(record))
                reseal(path.parent)
    assert lines_of(read_results([fakes.root])[0]) == {
        "fine-gates (target_sparsity=0.2)": "fine-gates", "fine-gates (target_sparsity=0.4)": "fine-gates",
        "1 fast, 0.2": "1 fast", "1 fast, 0.4": "1 fast", "2 fast, 0.2": "2 fast", "2 fast, 0.4": "2 fast",
    }  # fmt: skip


def test_speed_that_exports_measured_is_shown_and_a_damaged_export_is_named(study):
    runs = [r for r in read_results([study])[0] if (r.label, r.cell.task) == ("gates, 40 %", "trec")]
    for run, ratio in zip(runs, (1.4, 1.6), strict=False):
        for name, extra, left, runtime in (
            ("dense", 0.0, 80, "torch"), ("compact", 0.1, 70, "torch"), ("onnx", 0.9, 70, "onnxruntime"),
        ):  # fmt: skip
            (run.run.folder / name).mkdir()
            speed = {"seconds": [ratio + extra, 1.0], "runtime": runtime}
            content = {"size": {"speed": speed, "parts": {"gateable": [100, left]}}}
            (run.run.folder / name / "export.json").write_text(json.dumps(content))
    (runs[2].run.folder / "export.json").write_text('{"size": {"speed": 3}}')
    report = report_of(study)
    figure = figure_of(report, "score-by-speed")
    (panel,) = figure.panels
    assert panel.title == "trec"
    assert [x for x, _ in panel.drawing.lines["gates"]] == [pytest.approx(1.6)]  # the median of 1.5 and 1.7
    assert panel.drawing.start == 1 and figure.legend == ("gates",)
    (row,) = figure.numbers.records()
    assert row["times as fast"] == pytest.approx(1.6) and row["of the export, removed %"] == pytest.approx(30)
    assert "of several of a run, the fastest" in figure.note
    assert report.skipped == (
        (str(runs[2].run.folder), "export.json: AttributeError: 'int' object has no attribute 'get'"),
    )


def test_an_export_of_a_run_that_says_no_size_counts_for_nothing(study):
    run = read_results([study])[0][0].run
    (run.folder / "export.json").write_text('{"size": null}')
    report = report_of(study)
    assert not report.skipped
    assert "score-by-speed" not in {figure.name for figure in report.figures}


def test_six_maps_are_drawn_a_method_each_first_and_the_csv_has_all(study):
    figure = figure_of(report_of(study), "gate-map")
    assert len(figure.panels) == MAPS
    assert {panel.title for panel in figure.panels} == {
        f"{name}{target}" for name, targets in (("gates, ", ("20 %", "40 %")), ("published, s = ", ("0.2", "0.4")))
        for target in targets
    }  # fmt: skip
    assert "6 of 24 runs are shown" in figure.note
    rows = figure.numbers.records()
    assert len({(r["task"], r["seed"], r["method"]) for r in rows}) == 24
    for panel in figure.panels:
        for _, layers in panel.drawing.rows:
            assert all(sum(shares) == pytest.approx(1) for shares in layers.values())


def test_the_table_of_runs_says_what_was_removed(study, fakes):
    report = report_of(study)
    removed = {row["folder"]: row["removed %"] for row in report.table("runs").records()}
    for result in read_results([study])[0]:
        gated = result.record.get("adapter")
        assert removed[result.run.folder.name] == (pytest.approx(100 * gated["removed"]) if gated else None)


def test_a_report_without_gates_says_nothing_of_them(fakes):
    fakes.run("lora"), fakes.run("head", changes={"adapter": {"something": 1}})
    report = report_of(fakes.root)
    assert "gates" not in [section.name for section in report.sections]
    assert "removed %" not in report.table("runs").columns


@pytest.mark.parametrize(
    "adapter",
    [
        7, {"removed": 0.1}, {"removed": None, "closed": 0.1, "soft": 0.1, "gates": []},
        {"removed": 0.1, "closed": 0.1, "soft": 0.1, "gates": [{"matrix": "a", "side": "rows"}]},
        {"removed": 0.1, "closed": 0.1, "soft": 0.1, "gates": [], "removable": "much"},
        {"removed": 0.1, "closed": 0.1, "soft": 0.1,
         "gates": [{"matrix": "a", "side": "rows", "open": 0, "soft": 0, "closed": 0}]},
    ],
)  # fmt: skip
def test_a_damaged_record_of_gates_is_left_out(fakes, adapter):
    fakes.run("lora")
    run = fakes.run("gates", gates=0.2, changes={"adapter": adapter})
    report = report_of(fakes.root)
    ((folder, problem),) = report.skipped
    assert folder == str(run.folder)
    assert "not the record of a run" in problem
