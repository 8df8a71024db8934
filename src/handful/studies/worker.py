"""One worker of a study: does one job after another, and keeps tasks and models loaded between them.

As a program (`python -m handful.studies.worker`) it reads its order and then one job a line from standard input and
answers on standard output, in lines of JSON: {"step", "steps", "what"}, and in the end {} or {"error", "hint"}.
It ends at once when its standard input does, so that no worker outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, final

import torch
from threadpoolctl import threadpool_limits

from handful.backbone.device import resolve_device
from handful.backbone.load import Backbone
from handful.data.task import Task, TaskKind
from handful.errors import HandfulError
from handful.objectives import objective_of
from handful.runs.experiment import open_backbone, run
from handful.runs.memory import release_memory
from handful.runs.spec import RunSpec
from handful.runs.store import Run, read_run
from handful.studies.engines import JobAdvanced, JobDone, JobFailed, JobListener, WorkOrder
from handful.studies.jobs import Job
from handful.studies.recipe import Recipe
from handful.studies.search import search
from handful.training.events import Event, FitStarted, StepDone

TRIALS = "trials"
"""Folder, beside that of the runs, of the trials of searches: a file a job."""

QUIET_SECONDS = 0.5
"""A job tells of its progress at most so often."""


@final
class Worker:
    """Does jobs of one study, in any order."""

    def __init__(self, order: WorkOrder, tasks: dict[str, Task] | None = None):
        self.recipe = Recipe.from_dict(order.recipe)
        self.runs = Path(order.runs)
        self.data = Path(order.data) if order.data else None
        self.tasks: dict[str, Task] = tasks or {}
        self.backbones: dict[tuple[str, str], Backbone] = {}
        self.device = str(resolve_device(order.device or self.recipe.device, place=order.place))

    def do(self, job: Job, on_advance: Callable[[int, int, str], None] = lambda step, steps, what: None) -> Run:
        """The finished run of a job; one that is there already is opened. Raises: whatever the run does."""
        recipe, task = self.recipe, self.task(job.task)
        start = read_run(self.runs / job.start) if job.start else None
        spec = replace(recipe.spec(job), device=self.device)
        backbone = self.backbone(spec, task.kind)
        progress = Progress(on_advance)
        study = {"name": recipe.name, "job": job.name, "label": job.label, "trials": 1, "start": job.start}
        if settings := recipe.search_settings():
            space = recipe.space(recipe.method(job.label))
            journal = self.runs.parent / TRIALS / f"{job.name}.jsonl"
            progress.what = "searching"
            found = search(
                task, spec, settings, space, journal=journal, backbone=backbone, start=start, on_event=progress
            )
            progress.what = "training"
            spec = replace(recipe.spec(job, found.overrides), device=self.device)
            study |= {"trials": found.tried, "search": found.note}
        saved, trained = run(task, spec, self.runs, backbone=backbone, start=start, study=study, on_event=progress)
        trained.adapter.detach()
        return saved

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            self.tasks[name] = self.recipe.open_task(name, self.data)
        return self.tasks[name]

    def backbone(self, spec: RunSpec, kind: TaskKind) -> Backbone:
        key = (spec.model, "lm" if objective_of(kind).generates else spec.options.pooling)
        if key not in self.backbones:
            self.backbones[key] = open_backbone(replace(spec, device=self.device), kind)
        return self.backbones[key]


@final
class Progress:
    """A listener of fits that passes steps on, not too often."""

    def __init__(self, tell: Callable[[int, int, str], None]):
        self.tell, self.what, self.steps, self.told = tell, "training", 0, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, FitStarted):
            self.steps = event.steps
        elif isinstance(event, StepDone) and time.monotonic() - self.told > QUIET_SECONDS:
            self.told = time.monotonic()
            self.tell(event.step, self.steps, self.what)


def one_job(worker: Worker, job: Job, on_event: JobListener) -> JobDone | JobFailed:
    """Do a job; what goes wrong with it is its outcome and stops nothing else."""
    try:
        worker.do(job, lambda step, steps, what: on_event(JobAdvanced(job, step, steps, what)))
    except HandfulError as error:
        return JobFailed(job, error.message, error.hint)
    except Exception as error:  # noqa: BLE001 - a job is somebody's method on somebody's data: the others go on
        return JobFailed(job, f"{type(error).__name__}: {error}")
    finally:
        release_memory()
    return JobDone(job)


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """So many threads for torch and for numpy's and scikit-learn's libraries: results depend on it in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Serve the process at the other end of standard input and output."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is talk, not an answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies)

    def tell(event: object) -> None:
        if isinstance(event, JobAdvanced):
            answer({"step": event.step, "steps": event.steps, "what": event.what})

    worker = Worker(WorkOrder(**json.loads(lines.get())))
    with thread_limit(worker.recipe.threads):
        while True:
            outcome = one_job(worker, Job.from_dict(json.loads(lines.get())), tell)
            answer({"error": outcome.error, "hint": outcome.hint} if isinstance(outcome, JobFailed) else {})


def _listen(source: TextIO, lines: queue.SimpleQueue[str]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
