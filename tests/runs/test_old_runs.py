"""Run folders of an older version load, predict what they did, and go on under their names."""

import json
from pathlib import Path

import numpy as np
import pytest

import handful
from handful.backbone.tiny import tiny_backbone
from handful.runs.store import read_run
from handful.testing import toy_task

FOLDER = Path(__file__).parents[1] / "fixtures" / "old_runs"
SCORES = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
TEXTS = [row.text for row in toy_task().pool[:6]]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone("bert")


@pytest.mark.parametrize("name", SCORES)
def test_an_old_run_predicts_what_it_did(name, backbone):
    saved = read_run(FOLDER / name)
    saved.check()
    assert "method_path" not in saved.record["spec"] and saved.record["spec"]["method"]["name"] == name
    model = handful.load(FOLDER / name, backbone=backbone)
    try:
        np.testing.assert_allclose(model.predictions(TEXTS).scores[0], SCORES[name], rtol=0, atol=1e-6)
    finally:
        model.detach()
