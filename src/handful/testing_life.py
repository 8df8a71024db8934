"""The whole life of a method, as the last check of `handful.testing.check_method`.

Fit, a kill after the first checkpoint, the same numbers when it continues, a saved run, its predictions in a fresh
process, a study and its report, and an export that works or is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from handful.backbone.load import Backbone, load_backbone
from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError, RunError
from handful.export.formats import FORMATS, check_export, export
from handful.export.plan import best_format
from handful.methods import is_method, method_class
from handful.methods.base import AbstractMethod
from handful.reports.report import read_report
from handful.runs.experiment import run
from handful.runs.spec import RunSpec, resolve
from handful.runs.store import Run
from handful.studies.engines import SequentialEngine
from handful.studies.recipe import Recipe
from handful.studies.study import Study
from handful.training.events import CheckpointSaved, Event

MAX_NEW_TOKENS = 6
SCRIPT = """
import json, sys, torch
import handful
folder, given, made, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
texts = [tuple(text) if isinstance(text, list) else text for text in json.load(open(given, encoding="utf-8"))]
model = handful.load(folder, device="cpu")
writes = model.spec.generation is not None
found = model.write(texts, max_new_tokens=6) if writes else model.predictions(texts).scores.tolist()
json.dump(found, open(made, "w", encoding="utf-8"))
"""
"""What the fresh process runs."""


class _Killed(BaseException):
    """What ends a fit here, as a kill does: nothing that catches errors catches it."""


def check_life(method: AbstractMethod, backbone: Backbone, task: Task) -> None:
    """Raises: AssertionError, or the error of ours, for the first thing in the method's life that does not hold."""
    number = max(2, len(task.pool) // 3)
    held = task.pool[:number]
    task = replace(task, pool=task.pool[number:], test=TestRows(held))
    with TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        backbone.model.save_pretrained(folder / "model")
        backbone.tokenizer.save_pretrained(folder / "model")
        purpose = "lm" if backbone.purpose_is_lm else "features"
        pooling: Any = backbone.pooling or "auto"
        own = load_backbone(str(folder / "model"), pooling=pooling, purpose=purpose)
        spec = resolve(method, model=str(folder / "model"), overrides=_short(method, pooling), kind=task.kind)
        saved = _check_kill(task, spec, own, folder)
        _check_fresh_process(saved, task, own, folder)
        if not task.objective.generates and is_method(method.name) and method_class(method.name) is type(method):
            _check_study(spec, task, held, folder)
        _check_export(saved, own, folder)


def _short(method: AbstractMethod, pooling: str) -> dict[str, Any]:
    """Two passes over the rows, where the method trains in steps; features pooled as they were."""
    trains = type(method).presets["default"].training.get("epochs") != 0
    return {"run.pooling": pooling} | ({"training.epochs": 2, "training.batch_size": 8} if trains else {})


def _check_kill(task: Task, spec: RunSpec, backbone: Backbone, folder: Path) -> Run:
    """A fit that is killed behind its first checkpoint and goes on saves what one in a single piece does."""
    whole, trained = run(task, spec, folder / "whole", backbone=backbone)
    trained.adapter.detach()
    killed = False

    def kill(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            raise _Killed

    try:
        _, trained = run(task, spec, folder / "killed", backbone=backbone, on_event=kill)
        trained.adapter.detach()
    except _Killed:
        killed = True
    assert killed == bool(spec.training.epochs), "a fit should save a checkpoint behind its first pass over the rows"
    saved, trained = run(task, spec, folder / "killed", backbone=backbone)
    trained.adapter.detach()
    expected, found = whole.weights(), saved.weights()
    differing = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not differing, f"killed and continued, a fit saves other weights than in one piece: {differing[:5]}"
    return saved


def _check_fresh_process(saved: Run, task: Task, backbone: Backbone, folder: Path) -> None:
    """A process that knows nothing but the run folder predicts the same."""
    from handful.api import load

    texts: list[Any] = [_text(row) for row in task.pool[:5]]
    model = load(saved.folder, backbone=backbone)
    writes = model.spec.generation is not None
    expected = model.write(texts, max_new_tokens=MAX_NEW_TOKENS) if writes else model.predictions(texts).scores.tolist()
    model.detach()
    given, made = folder / "texts.json", folder / "found.json"
    given.write_text(json.dumps(texts), encoding="utf-8")
    command = [sys.executable, "-P", "-c", SCRIPT, str(saved.folder), str(given), str(made)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [*command, str(torch.get_num_threads())], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"a fresh process cannot load the run: {ended.stderr.strip()[-500:]}"
    found = json.loads(made.read_text(encoding="utf-8"))
    assert found == expected, f"a fresh process predicts otherwise: expected {expected}, found {found}"


def _text(row: Example) -> str | tuple[str, str]:
    return row.text if row.text_pair is None else (row.text, row.text_pair)


def _check_study(spec: RunSpec, task: Task, held: Sequence[Example], folder: Path) -> None:
    """A study names the method, runs it beside another one, and is reported. Others without a name cannot be in one."""
    name = spec.method.name
    _write_task(folder / "tasks" / task.name, task, held)
    training = {"epochs": spec.training.epochs, "batch_size": spec.training.batch_size}
    own = {"method": name, "set": {f"method.{key}": value for key, value in spec.method.settings().items()}}
    recipe = {
        "name": "life", "model": spec.model, "tasks": [task.name], "shots": [len(task.pool)], "seeds": 1,
        "set": {f"training.{key}": value for key, value in training.items()} | {"run.pooling": spec.options.pooling},
        "methods": [own, {"method": "head" if name != "head" else "bias", "name": "another"}],
    }  # fmt: skip
    state = Study(Recipe.from_dict(recipe), folder / "study", folder / "tasks").run(SequentialEngine(), lambda _: None)
    assert not state.failed, f"a run of the study failed: {state.failed}"
    labels = read_report([folder / "study"]).labels
    assert name in labels, f"the report should have the method {name!r}, found {labels}"


def _write_task(folder: Path, task: Task, held: Sequence[Example]) -> None:
    """A task folder of classes or numbers."""
    folder.mkdir(parents=True)
    for part, rows in (("pool", task.pool), ("test", held)):
        lines: list[dict[str, Any]] = []
        for row in rows:
            label = task.labels[int(row.label or 0)] if task.labels else row.label
            lines.append({"text": row.text, "label": label} | ({"text_pair": row.text_pair} if row.text_pair else {}))
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record = {"name": task.name, "kind": task.kind, "labels": list(task.labels), "metric": task.metric}
    record |= {"pool_rows": len(task.pool), "test_rows": len(held)}
    (folder / "task.json").write_text(json.dumps(record), encoding="utf-8")


def _check_export(saved: Run, backbone: Backbone, folder: Path) -> None:
    """Formats that are possible by `check_export` are written and compared, the best of them here; others refuse."""
    from handful.runs.experiment import open_trained

    trained = open_trained(saved, backbone=backbone)
    method, adapter, task = trained.spec.method, trained.adapter, trained.task
    where = (method, backbone, backbone.pooling or "mean", task)
    plans = {name: check_export(*where, format=name) for name in FORMATS}
    best = best_format(*where, adapter.report())
    try:
        for name, plan in plans.items():
            out = folder / "exports" / name
            if plan.possible and name == best:
                export(adapter, backbone, task, out, name, generation=trained.spec.generation)
                assert (out / "README.md").is_file(), f"the export as {name} has no README"
            elif not plan.possible:
                try:
                    export(adapter, backbone, task, out, name, generation=trained.spec.generation)
                except (ConfigError, RunError):
                    assert not out.exists(), f"a refused export as {name} left a folder"
                else:
                    raise AssertionError(f"check_export refuses {name} ({plan.summary}), but it was written")
    finally:
        adapter.detach()
