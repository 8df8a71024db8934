"""Who does the jobs of a study: this process, processes on this machine, or (in `ray_engine.py`) a Ray cluster.

Every engine gives the same numbers, because a job depends on nothing but the recipe, its rows and the number of
threads, which the recipe fixes. A worker keeps its model loaded from job to job.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, final

from handful.errors import ConfigError, nearest
from handful.runs.memory import FEW_KERNELS
from handful.studies.jobs import Job, Queue

ATTEMPTS = 3
"""Times that a job is begun before the loss of its worker counts as its failure."""


@final
@dataclass(frozen=True)
class WorkOrder:
    """What a worker must know besides its jobs, as JSON values.

    `recipe` is the resolved recipe, `runs` the folder in which every job makes the folder of its run, and `data` the
    folder where task names are looked up first. `place` counts the workers of one machine, which share out its GPUs;
    `device` is where they compute, whatever the recipe says.
    """

    recipe: Mapping[str, Any]
    runs: str
    data: str | None = None
    place: int = 0
    device: str | None = None


@final
@dataclass(frozen=True)
class JobStarted:
    """A worker has begun a job; once more after a lost worker, where it is not the first `attempt`."""

    job: Job
    worker: int
    attempt: int = 1


@final
@dataclass(frozen=True)
class JobAdvanced:
    """A job has come to `step` of `steps`; `what` says of what."""

    job: Job
    step: int
    steps: int
    what: str = "training"


@final
@dataclass(frozen=True)
class JobDone:
    """The job's run folder is complete."""

    job: Job


@final
@dataclass(frozen=True)
class JobFailed:
    """The job cannot be done; `hint` says what may help."""

    job: Job
    error: str
    hint: str | None = None


JobEvent = JobStarted | JobAdvanced | JobDone | JobFailed
JobListener = Callable[[JobEvent], None]


class AbstractEngine(ABC):
    """Does jobs and tells what happens; keeps nothing from one call to the next."""

    name: ClassVar[str]
    workers: int = 1
    """Jobs that it does at the same time, as far as is known before it starts."""

    @abstractmethod
    def run(self, queue: Queue, order: WorkOrder, on_event: JobListener) -> None:
        """Do every job of the queue: for each, `JobStarted` and in the end `JobDone` or `JobFailed`.

        An exception, from a listener or Ctrl-C, ends all workers. What a job has saved stays.
        """


def fail(queue: Queue, failure: JobFailed, on_event: JobListener) -> None:
    """Tell of a job's failure and of those that were to start from it, and take them out of the queue."""
    lost = queue.give_up(failure.job)
    on_event(failure)
    for job in lost:
        on_event(JobFailed(job, f"it starts from {job.start}, which failed", "`--retry failed` tries both again"))


@final
@dataclass(frozen=True)
class SequentialEngine(AbstractEngine):
    """One job after another in this process."""

    name: ClassVar[str] = "sequential"

    def run(self, queue: Queue, order: WorkOrder, on_event: JobListener) -> None:
        from handful.studies.worker import Worker, one_job, thread_limit

        worker = Worker(order)
        with thread_limit(worker.recipe.threads):
            while job := queue.take():
                on_event(JobStarted(job, 0))
                outcome = one_job(worker, job, on_event)
                if isinstance(outcome, JobFailed):
                    fail(queue, outcome, on_event)
                else:
                    queue.finish(job)
                    on_event(outcome)


@final
@dataclass(frozen=True)
class ProcessesEngine(AbstractEngine):
    """Worker processes on this machine, `workers` of them, each with the recipe's number of threads.

    They speak lines of JSON over pipes. A process that ends in the middle of a job is replaced and its job redone.
    """

    name: ClassVar[str] = "processes"
    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers: expected at least 1, found {self.workers}")

    def run(self, queue: Queue, order: WorkOrder, on_event: JobListener) -> None:
        with _Processes(self.workers, queue, order, on_event) as processes:
            processes.serve()


@final
class _Processes:
    """Worker processes, what each is doing, and what they say."""

    def __init__(self, workers: int, queue: Queue, order: WorkOrder, on_event: JobListener):
        self.workers, self.queue, self.order, self.on_event = workers, queue, order, on_event
        self.selector = selectors.DefaultSelector()
        self.running: dict[int, _Process] = {}
        self.attempts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.running.values():
            process.end()
        self.selector.close()

    def serve(self) -> None:
        """Give jobs and listen, until every job is finished or given up."""
        while len(self.queue):
            self.give()
            for key, _ in self.selector.select():
                process: _Process = key.data
                replies = process.receive()
                if replies is None:
                    self.lose(process)
                for reply in replies or ():
                    self.hear(process, reply)

    def give(self) -> None:
        """Jobs for all workers that have none; a worker is started when there is one for it."""
        for number in range(self.workers):
            process = self.running.get(number)
            if process and process.job:
                continue
            job = self.queue.take()
            if job is None:
                return
            if process is None:
                process = self.running[number] = _Process(number, self.order)
                self.selector.register(process.replies, selectors.EVENT_READ, process)
            self.attempts[job.name] += 1
            self.on_event(JobStarted(job, number, self.attempts[job.name]))
            process.begin(job)

    def hear(self, process: _Process, reply: dict[str, Any]) -> None:
        """A worker has said something about its job."""
        job = process.job
        assert job is not None
        if "step" in reply:
            self.on_event(JobAdvanced(job, **reply))
            return
        process.job = None
        if "error" in reply:
            fail(self.queue, JobFailed(job, **reply), self.on_event)
        else:
            self.queue.finish(job)
            self.on_event(JobDone(job))

    def lose(self, process: _Process) -> None:
        """A worker has ended by itself: a new one will do its job."""
        self.selector.unregister(process.replies)
        del self.running[process.number]
        words, job = process.end(), process.job
        if job and self.attempts[job.name] < ATTEMPTS:
            self.queue.put_back(job)
        elif job:
            error = f"its process ended {ATTEMPTS} times ({words})"
            fail(self.queue, JobFailed(job, error, "is there enough memory? try fewer workers"), self.on_event)


@final
class _Process:
    """One worker process."""

    job: Job | None = None

    def __init__(self, number: int, order: WorkOrder):
        self.number = number
        environment = worker_variables(order.recipe["threads"])
        self.talk = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "handful.studies.worker"],  # -P: nothing from the current folder
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.talk, env=os.environ | environment,
            bufsize=0, start_new_session=True,  # Ctrl-C is for the process that has the workers
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.orders, self.replies = self.process.stdin, self.process.stdout
        self.heard = b""
        self.send(asdict(order) | {"place": number})

    def begin(self, job: Job) -> None:
        self.job = job
        self.send(job.to_dict())

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError):  # it has ended, which is noticed where its replies are read
            self.orders.write(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What it has said, or None once it has ended."""
        read = self.replies.read(65536)
        *lines, self.heard = (self.heard + read).split(b"\n")
        return [json.loads(line) for line in lines] if read else None

    def end(self) -> str:
        """Kill it where it still runs; returns how it ended, and its last words."""
        self.process.kill()
        code = self.process.wait()
        self.talk.seek(0)
        words = self.talk.read().decode(errors="replace").strip().splitlines()[-1:]
        for stream in (self.orders, self.replies, self.talk):
            with suppress(BrokenPipeError):
                stream.close()
        return ": ".join([f"signal {-code}" if code < 0 else f"exit code {code}", *words])


def worker_variables(threads: int) -> dict[str, str]:
    """Environment of a worker: read when torch is imported, and so that nothing comes from the current folder."""
    kernels = {name: os.environ.get(name, value) for name, value in FEW_KERNELS.items()}
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1", **kernels}


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_jobs(device: str) -> int:
    """Workers where no number is given: one a core or, on GPUs, one a GPU. Raises: ConfigError as `resolve_device`."""
    from handful.backbone.device import num_gpus, resolve_device

    if resolve_device(device).type == "cpu":
        return available_cores()
    return num_gpus() if device in ("auto", "cuda") else 1


ENGINES = ("sequential", "processes", "ray")


def make_engine(
    name: str,
    *,
    workers: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
    device: str = "cpu",
) -> AbstractEngine:
    """The engine of this name; processes are as many as cores or, where they compute on a `device` with GPUs, as GPUs.

    Raises: ConfigError for an unknown one, for options that it does not have, and for Ray's workers without the GPUs
    that their device needs.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, found {name!r}", nearest(name, ENGINES))
    for option, value in (("address", address), ("gpus", gpus)):
        if value is not None and name != "ray":
            raise ConfigError(f"--{option} is for the engine ray, found the engine {name}", "leave it out")
    if name == "sequential":
        if workers not in (None, 1):
            raise ConfigError(f"the engine sequential has 1 worker, found {workers}", "use --engine processes")
        return SequentialEngine()
    if name == "processes":
        return ProcessesEngine(workers or parallel_jobs(device))
    if device not in ("auto", "cpu") and not gpus:
        raise ConfigError(
            f"device {device}: Ray's workers have no GPU unless they are given one",
            "say how much of one each takes: --gpus 1, or 0.5 for two on each GPU",
        )
    from handful.studies.ray_engine import RayEngine

    return RayEngine(workers=workers, address=address, gpus=gpus or 0.0)
