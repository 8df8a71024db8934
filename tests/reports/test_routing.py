"""What a report says about routing: maps, trees and measures of inventories, the scores of members, damage."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.data.latent_skills import latent_skills
from handful.data.mixture import mix_tasks
from handful.methods.poly.routing_measures import discreteness, skill_weights, sparsity, task_similarity, usage
from handful.reports.baseline import BASELINE
from handful.reports.figure import SHARES
from handful.reports.html import render_page
from handful.reports.report import read_report
from handful.reports.routing import LOGITS, Router, router_groups, shares_of, tree_of
from handful.reports.routing_figures import COLUMNS, INVENTORIES, PANELS, TASKS
from handful.reports.text import to_json, to_markdown, write_csv_files
from handful.runs.experiment import run as run_task
from handful.runs.spec import resolve

ATTENTION = ("query", "key", "value", "attention out")


def report_of(folder):
    return read_report([folder])


def figure_of(report, name):
    return next(figure for figure in report.figures if figure.name == name)


def names_of(report):
    return {figure.name for figure in report.figures}


def test_a_real_run_on_tasks_of_latent_skills_is_shown_as_it_was_recorded(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "model")
    suite = latent_skills(np.random.default_rng(0), num_tasks=3, num_held_out=0, rows=24, test_rows=8)
    settings = {"training.epochs": 2, "method.num_skills": 4, "run.max_length": 32}
    spec = resolve("poly", model=str(tmp_path / "model"), preset="pretrain", overrides=settings)
    run, _ = run_task(mix_tasks("many", suite.tasks), spec, tmp_path / "runs")
    report = report_of(tmp_path / "runs")
    assert not report.skipped
    assert {"routing-map-1", "task-similarity", "gradient-alignment"} <= names_of(report)
    (row,) = report.table("routing").records()
    assert (row["tasks"], row["routers"], row["number of skills"]) == (3, 12, 4)
    assert row["usage 1: all skills alike"] == run.record["adapter"]["usage"]
    panels = figure_of(report, "routing-map-1").panels
    assert [panel.title for panel in panels] == list(ATTENTION)
    assert sorted(panels[0].drawing.tasks) == sorted(task.name for task in suite.tasks)
    scores = {row["member"]: row["poly"]["mean"] for row in report.table("members-1").records()}
    assert scores == {name: found["accuracy"]["mean"] for name, found in run.record["members"].items()}
    assert len(scores) == 3
    constant = {row["member"]: row[BASELINE] for row in report.table("members-1").records()}
    assert constant == {n: one["scores"]["accuracy"] for n, one in run.record["baseline"]["members"].items()}


def test_a_map_shows_the_weights_of_the_run(fakes):
    run = fakes.run("poly", "many", routing={"tasks": 5, "layers": 2, "skills": 3})
    figure = figure_of(report_of(fakes.root), "routing-map-1")
    assert [panel.title for panel in figure.panels] == list(ATTENTION)
    weights = skill_weights(run.weights()[LOGITS].double())
    tasks, routers = run.record["adapter"]["tasks"], run.record["adapter"]["routers"]
    for place, panel in enumerate(figure.panels):
        assert sorted(panel.drawing.tasks) == sorted(tasks)
        assert (panel.drawing.axis, [name for name, _ in panel.drawing.blocks]) == ("layer", ["0", "1"])
        for layer, (_, shares) in enumerate(panel.drawing.blocks):
            order = [tasks.index(task) for task in panel.drawing.tasks]
            assert np.allclose(np.array(shares), 3 * weights[4 * layer + place, order, 0].numpy())
    row = next(
        row for row in figure.numbers.records() if (row["task"], row["router"]) == (tasks[1], routers[-1])
    )  # fmt: skip
    expected = (3 * weights[-1, 1, 0]).tolist()
    assert [row[f"skill {skill}"] for skill in (1, 2, 3)] == pytest.approx(expected, abs=1e-4)
    assert figure.legend == SHARES[:5]  # three even shares are the most there can be
    assert len(figure.numbers.rows) == 5 * 2 * 4


def test_a_map_shows_hard_gates_as_they_are_and_weights_led_to_the_average_as_even(fakes):
    run = fakes.run("hard", "many", routing={"tasks": 4, "layers": 1}, changes={"adapter__gate": "straight-through"})
    method = {"name": "poly", "uniform_share": 0.2}
    fakes.run("led", "many", routing={"tasks": 4, "layers": 1}, changes={"spec__method": method})
    report = report_of(fakes.root)
    opened = run.weights()[LOGITS] > 0
    tasks, panels = run.record["adapter"]["tasks"], figure_of(report, "routing-map-1").panels
    for place, panel in enumerate(panels):
        ((_, shares),) = panel.drawing.blocks
        for name, found in zip(panel.drawing.tasks, shares, strict=True):
            on = opened[place, tasks.index(name), 0]
            if on.any():
                assert found == pytest.approx((8 * on / on.sum()).tolist())
    even = [shares for panel in figure_of(report, "routing-map-2").panels for _, shares in panel.drawing.blocks]
    assert np.allclose(even, 1)


def test_panels_keep_room_for_their_columns(fakes):
    """Layers together where they fit, splits alone where they do not, and no more panels than can be read."""
    fakes.run("a", "many", routing={"splits": 2, "layers": 2})
    fakes.run("b", "many", routing={"splits": 32, "layers": 4})
    fakes.run("c", "many", routing={"layers": 12})
    report = report_of(fakes.root)
    for figure in (figure_of(report, f"routing-map-{number}") for number in (1, 2, 3)):
        assert len(figure.panels) <= PANELS
        for panel in figure.panels:
            assert sum(len(shares[0]) for _, shares in panel.drawing.blocks) <= COLUMNS
    both, splits, layers = (figure_of(report, f"routing-map-{number}").panels for number in (1, 2, 3))
    assert [name for name, _ in both[0].drawing.blocks] == ["0:1", "0:2", "1:1", "1:2"]
    assert both[0].drawing.axis == "layer:split"
    assert splits[0].title == "query, layer 0, 8 of 32 splits"
    assert [name for name, _ in splits[0].drawing.blocks] == ["1", "5", "10", "14", "19", "23", "28", "32"]
    assert "12 of 16 panels are shown" in figure_of(report, "routing-map-2").note
    assert [[name for name, _ in panel.drawing.blocks] for panel in layers[:2]] == [
        [str(layer) for layer in range(8)], ["8", "9", "10", "11"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("routers", "expected"),
    [
        (["model"], {"model": [(0, "model")]}),
        (["encoder", "decoder"], {"model": [(0, "encoder"), (1, "decoder")]}),
        (["encoder.layer.0", "encoder.layer.11"], {"layers": [(0, "0"), (1, "11")]}),
        (["layer.0", "layer.1"], {"layers": [(0, "0"), (1, "1")]}),
        (
            ["encoder.layer.0.attention", "encoder.layer.0.feed-forward", "encoder.layer.1.attention"],
            {"attention": [(0, "0"), (2, "1")], "feed-forward": [(1, "0")]},
        ),
        (
            [
                "encoder.block.2.layer.0.SelfAttention.q", "decoder.block.2.layer.0.SelfAttention.q",
                "decoder.block.2.layer.1.EncDecAttention.q", "decoder.block.3.layer.1.EncDecAttention.q",
            ],
            {"encoder query": [(0, "2")], "decoder query": [(1, "2")], "decoder cross query": [(2, "2"), (3, "3")]},
        ),
        (["model.layers.4.mixer.twist_proj"], {"mixer.twist_proj": [(0, "4")]}),
    ],
)  # fmt: skip
def test_routers_stand_with_their_like(routers, expected):
    assert router_groups(routers) == {kind: [Router(*one) for one in found] for kind, found in expected.items()}


def test_tasks_of_one_family_are_joined_first(fakes):
    run = fakes.run("poly", "many", routing={})
    figure = figure_of(report_of(fakes.root), "task-similarity")
    (panel,) = figure.panels
    families = [leaf.rpartition("-")[0] for leaf in panel.drawing.leaves]
    assert len(set(families)) == 4
    assert sum(a != b for a, b in pairwise(families)) == 3  # each stands together
    assert len(panel.drawing.links) == 23
    cosines = task_similarity(skill_weights(run.weights()[LOGITS].double()))
    tasks = run.record["adapter"]["tasks"]
    for row in figure.numbers.records():
        expected = cosines[tasks.index(row["task"]), tasks.index(row["other task"])]
        assert row["cosine"] == pytest.approx(float(expected))
    assert len(figure.numbers.rows) == 24 * 23 / 2
    assert figure_of(report_of(fakes.root), "routing-map-1").panels[0].drawing.tasks == panel.drawing.leaves


def test_a_tree_by_hand():
    """Weights of 1, 0 and 1 on the first of two skills: 0 and 2 meet at 0, with the other at 1 − (−1)."""
    tree = tree_of(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[None, :, None])
    assert sorted(tree.order) == [0, 1, 2]
    (first, last) = sorted(tree.links, key=lambda link: link[3])
    assert first[2:] == pytest.approx((0, 0, 0))
    assert last[3] == pytest.approx(2)
    assert {tree.order[round(y)] for y in first[:2]} == {0, 2}
    assert sorted(last[:2]) == pytest.approx(sorted([float(tree.order.index(1)), sum(first[:2]) / 2]))


def test_two_tasks_have_a_map_and_no_tree(fakes):
    fakes.run("poly", "many", routing={"tasks": 2})
    assert {"routing-map-1"} == names_of(report_of(fakes.root)) & {"routing-map-1", "task-similarity"}


def test_even_shares_are_ones():
    assert np.array_equal(shares_of(torch.full((2, 3, 1, 4), 0.25)), np.ones((2, 3, 1, 4)))


def test_many_tasks_are_thinned_out_and_it_says_so(fakes):
    fakes.run("poly", "many", routing={"tasks": 100, "layers": 1, "skills": 2})
    report = report_of(fakes.root)
    (panel,) = figure_of(report, "task-similarity").panels
    assert len(panel.drawing.leaves) == TASKS
    assert "52 tasks left out" in panel.note
    assert len(figure_of(report, "routing-map-1").panels[0].drawing.tasks) == TASKS


def test_tables_hold_what_runs_recorded_and_what_their_logits_say(fakes, tmp_path):
    runs = [fakes.run("poly", "many", seed=seed, routing={}) for seed in range(2)]
    report = report_of(fakes.root)
    (row,) = report.table("routing").records()
    adapters = [run.record["adapter"] for run in runs]
    assert (row["runs"], row["tasks"], row["number of skills"]) == (2, 24, 8)
    assert row["usage 1: all skills alike"] == pytest.approx(np.mean([one["usage"] for one in adapters]))
    assert row["sparsity share of cells on"] == pytest.approx(np.mean([one["sparsity"] for one in adapters]))
    assert row["alignment mean cosine"] == pytest.approx(0.1)
    logits = runs[0].weights()[LOGITS]
    for place, row in enumerate(report.table("routing-by-router").records()):
        part = logits[place::4]
        measures = (usage(part), discreteness(part), sparsity(part))
        assert (row["routers"], row["number"]) == (ATTENTION[place], 6)
        assert tuple(row[name] for name in ("usage", "discreteness", "sparsity")) == pytest.approx(measures)
    written = {path.stem for path in write_csv_files(report, tmp_path)}
    assert {"routing", "routing-by-router", "routing-map-1", "task-similarity", "gradient-alignment"} <= written
    assert "### Routing by kind of router" in to_markdown(report)
    assert len(to_json(report)["tables"]["members-1"]) == 24


def test_routing_that_was_not_learned_is_named(fakes):
    fakes.run("learned", "many", routing={}), fakes.run("even", "many", routing={"spread": 1e-3})
    (section,) = [section for section in report_of(fakes.root).sections if section.name == "routing"]
    assert section.text == ("Hardly any routing was learned by even (1.000 bits): their cells are all about ½.",)


def test_alignment_is_drawn_as_it_was_measured_and_gaps_are_left_out(fakes):
    run = fakes.run("poly", "many", routing={}, changes={})
    fakes.run("other", "many")
    (panel,) = figure_of(report_of(fakes.root), "gradient-alignment").panels
    history = run.record["fit"]["history"]
    assert panel.drawing.runs == [("poly", [(point["epoch"], point["alignment"]) for point in history])]
    gap = [{**point, "alignment": None if point["epoch"] == 1 else 0.5} for point in history]
    fakes.run("gap", "many", routing={}, changes={"fit__history": gap})
    (panel,) = figure_of(report_of(fakes.root), "gradient-alignment").panels
    assert [len(points) for label, points in panel.drawing.runs if label == "gap"] == [19]
    fakes.run("none", "one", changes={"fit__history": [{**point, "alignment": None} for point in history]})
    report = report_of(fakes.root)
    assert "none" not in figure_of(report, "gradient-alignment").legend


def test_one_inventory_a_label_and_adapted_tasks_have_no_map(fakes):
    for seed in range(2):
        for label in ("a", "b", "c", "d"):
            fakes.run(label, "many", seed=seed, study="s", routing={"layers": 1})
        fakes.run("z", "reviews", 32, seed, study="s", routing={"tasks": 1})
        fakes.run("shared", "many", seed=seed, study="s", routing={"skills": 1})
    report = report_of(fakes.root)
    maps = [figure for figure in report.figures if figure.name.startswith("routing-map")]
    assert [figure.title for figure in maps] == [f"Routing of {label}" for label in "abc"][:INVENTORIES]
    assert {row["method"] for row in report.table("routing").records()} == {"a", "b", "c", "d", "shared", "z"}


def test_routing_that_is_fixed_has_a_row_and_no_map(fakes):
    made = fakes.run("made", "many", routing={})
    measures = ("usage", "sparsity", "alignment")
    fixed = {key: value for key, value in made.record["adapter"].items() if key not in measures}
    fakes.run("private", "many", changes={"adapter": fixed | {"discreteness": None}, "fit__history": []})
    report = report_of(fakes.root)
    row = next(row for row in report.table("routing").records() if row["method"] == "private")
    assert [row[name] for name in row][-4:] == [None] * 4
    assert [figure.title for figure in report.figures if figure.name.startswith("routing-map")] == ["Routing of made"]
    assert not report.skipped


def test_members_have_their_scores_by_label(fakes):
    one, two = (fakes.run("poly", "many", seed=seed, routing={"tasks": 3}) for seed in range(2))
    lora = fakes.run("lora", "many", routing={"tasks": 3, "skills": 1})
    table = report_of(fakes.root).table("members-1")
    assert table.columns == ("member", "metric", "lora", "poly")
    for at, (member, metric, of_lora, of_poly) in enumerate(table.rows):
        assert metric == "accuracy"
        scores = [run.record["members"][member]["accuracy"]["mean"] for run in (one, two)]
        assert of_poly.mean == pytest.approx(np.mean(scores))
        assert of_poly.method == "Student's t"
        assert of_lora.to_dict() == lora.record["members"][member]["accuracy"]
        best = 3 if of_poly.mean > of_lora.mean else 2
        assert (at, best) in table.best or of_poly.mean == of_lora.mean


def test_a_report_without_routing_says_nothing_of_it(fakes):
    fakes.run("lora"), fakes.run("head", changes={"adapter": {"something": 1}})
    report = report_of(fakes.root)
    assert not {"routing", "members"} & {section.name for section in report.sections}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adapter__routers", 7), ("adapter__tasks", None), ("adapter__num_skills", "many"), ("adapter__usage", {}),
        ("members", {"sentiment-1": {"nll": 1}}), ("members", {"sentiment-1": {"accuracy": {"mean": 1}}}),
        ("task__members", [{"name": "a"}]), ("task__members", [{"name": "a", "metric": "beauty"}]), ("members", 3),
    ],
)  # fmt: skip
def test_a_damaged_record_of_routing_is_left_out(fakes, name, value):
    fakes.run("lora")
    run = fakes.run("poly", "many", routing={"tasks": 3}, changes={name: value})
    ((folder, problem),) = report_of(fakes.root).skipped
    assert folder == str(run.folder)
    assert "not the record of a run" in problem


def test_weights_that_are_damaged_or_of_another_run_are_named_and_the_rest_is_shown(fakes):
    good = fakes.run("good", "many", routing={"tasks": 3})
    wrong = fakes.run("wrong", "many", routing={"tasks": 4}, changes={"adapter__num_splits": 2})
    broken = fakes.run("broken", "many", routing={"tasks": 3})
    (broken.folder / "adapter.safetensors").write_bytes(b"nothing")
    report = report_of(fakes.root)
    problems = dict(report.skipped)
    assert "expected routing.logits of shape (24, 4, 2, 8), found (24, 4, 1, 8)" in problems[str(wrong.folder)]
    assert "SHA-256 differs" in problems[str(broken.folder)]
    assert set(problems) == {str(wrong.folder), str(broken.folder)}
    assert figure_of(report, "routing-map-1").title == "Routing of good"
    assert len(report.table("routing").rows) == 2
    assert len(render_page(report)) < 1_000_000
    assert good.record["adapter"]["tasks"][0] in render_page(report)
