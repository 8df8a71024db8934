"""The landscape: a grid of the triangle, losses that are those of the vertices and of the midpoint, its file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.errors import ConfigError
from handful.evaluation.landscape import measure_landscape, triangle_grid
from handful.evaluation.metrics import score
from handful.evaluation.predict import predict_rows
from handful.methods.prefix_subspace import PrefixSubspace
from handful.runs.experiment import run
from handful.runs.spec import resolve
from handful.testing import toy_task

SETTINGS = {"prefix_length": 4, "epochs": 2, "max_length": 32, "shots": 12, "dev": "carved", "landscape": 3}


def adapter_and_rows(num_vertices: int, **settings):
    """An adapter with vertices far apart, and its rows."""
    backbone, task = tiny_backbone("bert"), toy_task()
    method = PrefixSubspace(num_vertices=num_vertices, prefix_length=4, head_init="normal", **settings)
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapter.head.weight.mul_(50)
    return adapter, encode(task.pool, backbone.tokenizer, 64, kind=task.kind)


def test_the_grid_covers_the_triangle_evenly():
    grid = triangle_grid(4)
    assert grid.shape == (15, 3)
    assert torch.allclose(grid.sum(1), torch.ones(15))
    assert len({tuple(point) for point in grid.tolist()}) == 15
    assert {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.25, 0.25)} <= set(map(tuple, grid.tolist()))


@pytest.mark.parametrize("settings", [{}, {"head_subspace": False}, {"num_vertices": 5}])
def test_corners_and_middle_are_the_vertices_and_the_midpoint(settings):
    settings = {"num_vertices": 3, **settings}
    adapter, rows = adapter_and_rows(**settings)
    measured = measure_landscape(adapter, rows, "classification", 3)
    losses = {tuple(weights): loss for *weights, loss in measured["points"]}
    assert len(losses) == 10

    def loss(predictor):
        return score(
            "nll", predict_rows(adapter, rows, "classification", predictor=predictor).probabilities, rows.labels
        )

    for vertex in range(3):
        assert losses[tuple(np.eye(3)[vertex])] == loss(f"vertex:{vertex}")
    assert measured["midpoint"] == loss("midpoint")
    assert len({round(value, 4) for value in losses.values()}) > 5
    middle = losses[(0.333333, 0.333333, 0.333333)]
    assert (abs(middle - measured["midpoint"]) < 1e-5) == (settings["num_vertices"] == 3)


def test_the_adapter_is_back_at_its_midpoint_afterwards():
    adapter, rows = adapter_and_rows(3)
    before = predict_rows(adapter, rows, "classification").scores
    measure_landscape(adapter, rows, "classification", 1)
    with torch.no_grad():
        after = adapter(rows.batch(range(len(rows))))
    assert np.allclose(before[0], after.numpy(), atol=1e-5)


def test_two_vertices_have_no_triangle():
    adapter, rows = adapter_and_rows(2)
    with pytest.raises(ConfigError, match="at least 3 vertices, found 2"):
        measure_landscape(adapter, rows, "classification", 3)


def test_a_run_writes_it_when_asked_and_has_the_same_numbers_without(tmp_path):
    task, backbone = toy_task(), tiny_backbone("bert")
    task = replace(task, test=None)
    spec = resolve("prefix-subspace", model="tiny", overrides=SETTINGS)
    saved, trained = run(task, spec, tmp_path, backbone=backbone)
    trained.adapter.detach()
    content = json.loads((saved.folder / "landscape.json").read_text())
    assert (content["metric"], content["steps"], content["num_vertices"]) == ("nll", 3, 3)
    assert content["rows"] == saved.record["rows"]["dev"]
    without = resolve("prefix-subspace", model="tiny", overrides=SETTINGS | {"landscape": 0})
    plain, trained = run(task, without, tmp_path / "plain", backbone=backbone)
    trained.adapter.detach()
    assert not (plain.folder / "landscape.json").exists()
    assert (plain.key, plain.record["weights_sha256"]) == (saved.key, saved.record["weights_sha256"])
    told = []
    _, trained = run(task, spec, tmp_path / "plain", backbone=backbone, on_message=told.append)
    trained.adapter.detach()
    assert told[1:] == ["it was trained without a landscape, which is measured when it is trained once more"]


@pytest.mark.parametrize(
    ("method", "overrides", "said"),
    [
        ("head", {"dev": "carved"}, "run.landscape: expected at least 3 vertices, found fewer in 'head'"),
        ("prefix-subspace", {"dev": "carved", "num_vertices": 2}, "run.landscape: expected at least 3 vertices"),
        ("prefix-subspace", {"dev": "none"}, "run.landscape: is measured on development rows; set run.dev"),
        ("prefix-subspace", {"landscape": -1}, "run.landscape"),
    ],
)
def test_what_it_needs_is_said_before_training(method, overrides, said):
    with pytest.raises(ConfigError, match="1 wrong setting") as caught:
        resolve(method, overrides={"landscape": 3, **overrides})
    assert said in caught.value.message
