"""What a study will cost: one short timed fit per method, scaled to the rows, lengths and steps of every job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from statistics import fmean, median
from typing import final

from handful.backbone.load import Backbone
from handful.data.split import Split
from handful.data.task import Task
from handful.evaluation.evaluate import encode_for, encode_rows
from handful.evaluation.predict import predict_rows
from handful.evaluation.text.generate import write
from handful.methods.head import AbstractHeadedAdapter
from handful.runs.experiment import make_split, train
from handful.runs.members import num_test_rows
from handful.runs.spec import RunSpec
from handful.studies.jobs import Job
from handful.studies.recipe import Recipe
from handful.studies.worker import Worker
from handful.training.events import Event, FitStarted, StepDone

WRITTEN = 4
"""Records that are written to see how long one takes."""

SCORED = 48
"""Rows that are scored to see how long one takes."""

ROWS_PER_LABEL = 4
"""Of a task of tasks only so many rows of each label (of a member that is written: 4 rows) are trained on."""


@final
@dataclass(frozen=True)
class Forecast:
    """What jobs of one label, task and number of shots need; `seconds` of one of them, test rows included."""

    label: str
    task: str
    shots: int
    parameters: int
    steps: int
    seconds: float


@final
@dataclass(frozen=True)
class _Pace:
    """Seconds of one method on rows of `tokens` on average: to begin, for a step, and to score (or write for) a row."""

    tokens: float
    parameters: int
    start: float
    step: float
    row: float


def forecast(recipe: Recipe, worker: Worker, jobs: Sequence[Job]) -> dict[str, Forecast]:
    """By the name of every job. A step is taken to cost in proportion to the tokens of a row.

    One epoch of every method is trained on the first task that it is for, of a task of tasks on a few rows of each
    member; nothing is saved. Raises: as the job would.
    """
    paces: dict[str, _Pace] = {}
    forecasts: dict[tuple[str, str, int], Forecast] = {}
    for job in jobs:
        key = (job.label, job.task, job.shots)
        if key in forecasts:
            continue
        spec, task = recipe.spec(job), worker.task(job.task)
        backbone = worker.backbone(spec, task.kind)
        if job.label not in paces:
            paces[job.label] = _time(task, spec, backbone)
        forecasts[key] = _scale(job, paces[job.label], task, spec, backbone)
        settings = recipe.search_settings()
        if settings and recipe.space(recipe.method(job.label)):
            searched = forecasts[key].seconds * (1 + settings.trials)
            forecasts[key] = replace(forecasts[key], seconds=searched)
    return {job.name: forecasts[job.label, job.task, job.shots] for job in jobs}


def _time(task: Task, spec: RunSpec, backbone: Backbone) -> _Pace:
    """Train for an epoch and predict some training rows, by the clock."""
    if spec.training.epochs:
        spec = replace(spec, training=replace(spec.training, epochs=1))
    split = make_split(task, spec)
    if task.members:
        split = _with_fewer_rows(split, spec)
        task = split.task
    begun = time.perf_counter()
    stamps: list[tuple[Event, float]] = []
    training = train(
        task, spec, split=split, backbone=backbone, on_event=lambda event: stamps.append((event, time.perf_counter()))
    )
    started = next(stamp for event, stamp in stamps if isinstance(event, FitStarted))
    steps = [started] + [stamp for event, stamp in stamps if isinstance(event, StepDone)]
    adapter = training.trained.adapter
    rows = encode_for(adapter, split.train, task, spec.options.max_length, spec.generation)
    few = split.train[:: ceil(len(rows) / (WRITTEN if spec.generation else SCORED))]
    asked = encode_for(
        adapter, few, task, spec.options.max_length, spec.generation, to_write=spec.generation is not None
    )
    scoring = time.perf_counter()
    if spec.generation:
        assert isinstance(adapter, AbstractHeadedAdapter)
        write(adapter, asked, spec.generation)
    else:
        predict_rows(adapter, asked, task.kind)
    row = (time.perf_counter() - scoring) / len(few)
    adapter.detach()
    step = median(after - before for before, after in pairwise(steps)) if steps[1:] else 0.0
    return _Pace(fmean(rows.lengths), training.result.parameters, started - begun, step, row)


def _with_fewer_rows(split: Split, spec: RunSpec) -> Split:
    """The split of a task of tasks of which the pool has only the first few labelled rows of each member's labels."""
    counts, rows = Counter[tuple[str, object]](), []
    for row in split.labelled:
        counts[row.task, row.label] += 1
        if counts[row.task, row.label] <= ROWS_PER_LABEL:
            rows.append(row)
    dev = "none" if spec.options.dev == "none" else "carved"
    few = replace(spec, options=replace(spec.options, shots=None, dev=dev))
    return make_split(replace(split.task, pool=tuple(rows)), few)


def _scale(job: Job, pace: _Pace, task: Task, spec: RunSpec, backbone: Backbone) -> Forecast:
    split = make_split(task, spec)
    rows = encode_rows(backbone, split.train, task, spec.options.max_length, spec.generation)
    longer = fmean(rows.lengths) / pace.tokens
    steps = spec.training.epochs * ceil(len(rows) / spec.training.batch_size)
    seconds = pace.start + longer * (steps * pace.step + num_test_rows(task) * pace.row)
    return Forecast(job.label, job.task, job.shots, pace.parameters, steps, seconds)
