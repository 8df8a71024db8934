"""A worker: what it takes in memory does not grow with its jobs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from handful.studies.engines import JobDone, WorkOrder, worker_variables
from handful.studies.jobs import Job
from handful.studies.recipe import Recipe
from handful.studies.worker import Worker, one_job
from handful.testing import toy_study

WARM, GROWTH = 6, 40.0
"""Jobs until everything has been imported and compiled once, and MB by which those after them may differ."""

FEW = 20_000
"""Bytes of tensors that a library may keep for good (the tiny model has 500,000, its LoRA 50,000)."""

ALONE = "HANDFUL_TEST_ALONE"
"""Set in the process that a test has to itself."""


def test_variables_of_a_worker_keep_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    assert worker_variables(2)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "24"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "9")
    assert worker_variables(2)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "9"


def test_nothing_of_a_failed_job_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            self.itself, Held.alive = self, Held.alive + 1

        def __del__(self) -> None:
            Held.alive -= 1

    def break_down(worker: Worker, *arguments: object) -> None:
        held = Held()
        raise ValueError(f"a library's own error, with {type(held).__name__} in its frames")

    monkeypatch.setattr(Worker, "do", break_down)
    worker = order(tmp_path, ["head"], jobs=1)
    gc.disable()
    try:
        one_job(worker, Job("head", "letters", 16, 0), lambda event: None)
    finally:
        gc.enable()
    assert Held.alive == 0


@pytest.mark.slow
def test_jobs_of_many_methods_leave_nothing_behind(tmp_path: Path) -> None:
    methods = ["head", "prefix", "prefix-subspace", "lora", "bias", *(["setfit"] if find_spec("setfit") else [])]
    if os.environ.get(ALONE) != "1":  # what other tests have left in a process comes and goes when it likes
        one = f"{__file__}::test_jobs_of_many_methods_leave_nothing_behind"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, env=os.environ | {ALONE: "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        return
    worker = order(tmp_path, methods, jobs=3 * len(methods))
    tensors, resident = [], []
    gc.collect()  # what tests before this one have left is not the worker's
    gc.disable()  # what only a collection frees must be freed by the worker's own
    try:
        for number in range(3 * len(methods)):
            job = Job(methods[number % len(methods)], "letters", 16, number)
            assert isinstance(one_job(worker, job, lambda event: None), JobDone)
            tensors.append(live_tensors())
            resident.append(resident_memory())
    finally:
        gc.enable()
    # a trainer collects what the one before it has left: both must hold, that none grows and that none stays
    assert max(size for _, size in tensors) < tensors[0][1] + FEW, "a fit's tensors are still there after its job"
    assert set(tensors[WARM:]) == {tensors[WARM]}, f"(number, bytes) of live tensors after each job: {tensors}"
    assert max(resident[WARM:]) - resident[WARM] < GROWTH, f"resident MB after each job: {resident}"


def order(folder: Path, methods: list[str], jobs: int) -> Worker:
    """A worker of the toy study's first task with these methods."""
    toy = toy_study(folder / "data", seeds=1).to_dict()
    names = {"tasks": ["letters"], "methods": methods, "seeds": jobs, "set": {}}
    recipe = Recipe.from_dict(toy | names)
    (folder / "runs").mkdir()
    return Worker(WorkOrder(recipe.to_dict(), str(folder / "runs"), str(folder / "data"), device="cpu"))


def live_tensors() -> tuple[int, int]:
    """Number and bytes of the tensors' storages that some object in memory refers to."""
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(storages), sum(storages.values())


def resident_memory() -> float:
    """MB of this process that are in memory; 0 where the system has no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if statm.exists() else 0.0
