"""The engine for clusters: long-lived Ray actors do the jobs and send the files of their runs back.

The nodes need not see the same files. Tasks go through Ray's object store, once each; an actor works in a temporary
folder of its node, where the run that its job starts from is put first; the driver writes what comes back. The model
must be found under its name on every node, and handful be installed there in the driver's version. Only this file
knows ray, and imports it when it is needed.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Self, final

from handful.errors import ConfigError, RunError
from handful.runs.store import new_folder
from handful.storage import write_file
from handful.studies.engines import (
    ATTEMPTS,
    AbstractEngine,
    JobAdvanced,
    JobDone,
    JobFailed,
    JobListener,
    JobStarted,
    WorkOrder,
    available_cores,
    fail,
    worker_variables,
)
from handful.studies.jobs import Job, Queue
from handful.studies.recipe import Recipe
from handful.studies.worker import TRIALS, Worker, one_job, thread_limit

PATIENCE = 5.0
"""Seconds within which the head of a cluster has to answer."""

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 (and so of gRPC, which Ray's head speaks) says first; a server answers with its settings."""

Files = dict[str, bytes]
"""Content of files by their path below the study's folder."""


@final
class RayEngine(AbstractEngine):
    """Workers on a Ray cluster, each with the recipe's number of CPUs and, where `gpus` is given, so many GPUs.

    With GPUs a worker computes on the recipe's device, without on the CPU.

    `address` is HOST:PORT of the cluster's head, or "auto" for the one this machine belongs to; without it (and
    without RAY_ADDRESS) a cluster of this machine alone is started for the time of the study. `workers` are as many as
    there is room for, where no number is given. A program that has called `ray.init` itself keeps its connection.
    """

    name: ClassVar[str] = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None, gpus: float = 0.0):
        if workers is not None and workers < 1:
            raise ConfigError(f"workers: expected at least 1, found {workers}")
        self.wanted, self.address, self.gpus = workers, address or os.environ.get("RAY_ADDRESS") or None, gpus
        self.workers = workers or available_cores()

    def run(self, queue: Queue, order: WorkOrder, on_event: JobListener) -> None:
        if not len(queue):
            return
        threads = order.recipe["threads"]
        with connected(self.address, self.wanted * threads if self.wanted else max(threads, available_cores())):
            count = min(self.wanted or len(queue), room(threads, self.gpus), len(queue))
            with _Cluster(count, self.gpus, queue, order, on_event) as cluster:
                cluster.serve()


@final
class RayWorker:
    """The actor: a worker on some node."""

    def __init__(self, order: WorkOrder, gpu: bool, folder: str):
        with suppress(OSError):  # relative paths lead on from there; other machines may not have it
            os.chdir(folder)
        self.order = order
        # Ray shows a worker the GPUs that it has been given, and one that has been given none may see all of them
        self.worker = Worker(replace(order, data=None, device=None if gpu else "cpu"))

    def greet(self) -> dict[str, str]:
        """What its numbers depend on."""
        return versions()

    def do(self, job: Job, task: list[Any], files: Files) -> Iterator[dict[str, Any]]:
        """Messages about a job: {"step", "steps", "what"}, and in the end {"files"} or {"error", "hint", "files"}.

        `task` holds a reference to the job's task, `files` are those that it starts from.
        """
        messages: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self._do, job, task, files, messages.put)
            work.add_done_callback(lambda _: messages.put(None))
            while (message := messages.get()) is not None:
                yield message
        yield work.result()

    def _do(self, job: Job, task: list[Any], files: Files, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        import ray

        def listen(event: object) -> None:
            if isinstance(event, JobAdvanced):
                tell({"step": event.step, "steps": event.steps, "what": event.what})

        worker, runs = self.worker, Path(self.order.runs).name
        if job.task not in worker.tasks:
            worker.tasks[job.task] = ray.get(task[0])
        with tempfile.TemporaryDirectory(prefix="handful-") as folder, thread_limit(worker.recipe.threads):
            unpack(files, Path(folder))
            worker.runs = Path(folder, runs)
            outcome = one_job(worker, job, listen)
            made = pack(Path(folder), f"{runs}/{job.name}", f"{TRIALS}/{job.name}.jsonl")
        if isinstance(outcome, JobFailed):
            return {"error": outcome.error, "hint": outcome.hint, "files": made}
        return {"files": made}


@final
class _Actor:
    """An actor as the driver sees it: `awaited` is its greeting, or what it says about its job."""

    def __init__(self, number: int, handle: Any):
        self.number, self.handle = number, handle
        self.job: Job | None = None
        self.awaited: Any = handle.greet.remote()

    def begin(self, job: Job, task: list[Any], files: Files) -> None:
        self.job = job
        self.awaited = self.handle.do.options(num_returns="streaming").remote(job, task, files)

    def hear(self) -> dict[str, Any]:
        """What it has to say. Raises: RayError, or StopIteration, where it is lost."""
        import ray

        message: Any = ray.get(next(self.awaited) if self.job else self.awaited)
        return message


@final
class _Cluster:
    """The actors of one study, and what they do."""

    def __init__(self, count: int, gpus: float, queue: Queue, order: WorkOrder, on_event: JobListener):
        self.gpus, self.queue, self.order, self.on_event = gpus, queue, order, on_event
        self.recipe = Recipe.from_dict(order.recipe)
        self.folder = Path(order.runs).parent
        self.tasks: dict[str, Any] = {}
        self.attempts: Counter[str] = Counter()
        self.lost_starts = 0
        self.actors = [self.start(number) for number in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for actor in self.actors:
            self.end(actor)

    def start(self, number: int) -> _Actor:
        """A new actor wherever there is room."""
        import ray

        threads = self.order.recipe["threads"]
        options = {
            "num_cpus": threads,
            "num_gpus": self.gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": worker_variables(threads)},
        }
        return _Actor(number, ray.remote(RayWorker).options(**options).remote(self.order, bool(self.gpus), os.getcwd()))

    def end(self, actor: _Actor) -> None:
        import ray

        if ray.is_initialized():  # ray.kill would connect anew
            ray.kill(actor.handle)

    def serve(self) -> None:
        """Give jobs and listen, until every job is finished or given up."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        while len(self.queue):
            waiting = {actor.awaited: actor for actor in self.actors if actor.awaited is not None}
            for ready in ray.wait(list(waiting), num_returns=1)[0]:
                actor = waiting[ready]
                try:
                    self.take(actor, actor.hear())
                except RayTaskError as error:
                    self.refuse(actor, error)
                except (RayError, StopIteration) as error:
                    self.lose(actor, error)
            self.give()

    def give(self) -> None:
        """Jobs for all actors that have greeted and have none."""
        import ray

        for actor in self.actors:
            if actor.awaited is not None or (job := self.queue.take()) is None:
                continue
            if job.task not in self.tasks:
                data = Path(self.order.data) if self.order.data else None
                self.tasks[job.task] = ray.put(self.recipe.open_task(job.task, data))
            self.attempts[job.name] += 1
            self.on_event(JobStarted(job, actor.number, self.attempts[job.name]))
            runs = Path(self.order.runs).name
            parts = [f"{TRIALS}/{job.name}.jsonl", *([f"{runs}/{job.start}"] if job.start else [])]
            actor.begin(job, [self.tasks[job.task]], pack(self.folder, *parts))

    def take(self, actor: _Actor, message: dict[str, Any]) -> None:
        """An actor has said something."""
        job = actor.job
        if job is None:
            check_versions(message)
            actor.awaited, self.lost_starts = None, 0
            return
        if "step" in message:
            self.on_event(JobAdvanced(job, **message))
            return
        actor.job = actor.awaited = None
        self.keep(job, message.pop("files"))
        if "error" in message:
            fail(self.queue, JobFailed(job, **message), self.on_event)
        else:
            self.queue.finish(job)
            self.on_event(JobDone(job))

    def keep(self, job: Job, files: Files) -> None:
        """Write the files of a job here: the run as a whole. Raises: RunError when that fails."""
        runs = Path(self.order.runs)
        made = {name.removeprefix(f"{runs.name}/{job.name}/"): content for name, content in files.items()}
        trials = made.pop(f"{TRIALS}/{job.name}.jsonl", None)
        if trials is not None:
            path = self.folder / TRIALS / f"{job.name}.jsonl"
            try:
                path.parent.mkdir(exist_ok=True)
                write_file(path, trials)
            except OSError as error:
                hint = "free some space; nothing saved is lost"
                raise RunError(f"{path}: cannot be written ({error.strerror})", hint) from None
        if made:
            with new_folder(runs / job.name) as folder:
                unpack(made, folder)

    def refuse(self, actor: _Actor, error: Exception) -> None:
        """An actor's own code went wrong. Raises: RunError where it cannot even greet."""
        cause = str(error).strip().splitlines()[-1]
        if actor.job is None:
            raise cannot_start(cause)
        job, actor.job, actor.awaited = actor.job, None, None
        fail(self.queue, JobFailed(job, cause), self.on_event)

    def lose(self, actor: _Actor, error: Exception) -> None:
        """An actor, or its node, is gone: a new one takes its place, and its job is done again."""
        lines = str(error).strip().splitlines() or ["it ended"]
        if actor.job is None:
            self.lost_starts += 1
            if self.lost_starts == ATTEMPTS or getattr(error, "actor_init_failed", False):
                raise cannot_start(lines[-1])
        self.end(actor)
        self.actors[actor.number] = self.start(actor.number)
        job = actor.job
        if job and self.attempts[job.name] < ATTEMPTS:
            self.queue.put_back(job)
        elif job:
            error_text = f"its worker was lost {ATTEMPTS} times ({lines[0]})"
            fail(self.queue, JobFailed(job, error_text, "is there enough memory on the nodes?"), self.on_event)


def pack(folder: Path, *parts: str) -> Files:
    """The files of a folder that are, or lie below, one of these parts of it."""
    paths = [path for part in parts for path in (folder / part, *sorted((folder / part).rglob("*"))) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def versions() -> dict[str, str]:
    """The packages that numbers depend on, as this process has them."""
    return {name: version(name) for name in ("handful", "torch", "transformers")}


def check_versions(found: dict[str, str]) -> None:
    """Raises: RunError for a node whose numbers would not be those of this process."""
    if found != (expected := versions()):
        differing = [
            f"{name} {found[name]}, here {expected[name]}" for name in expected if found[name] != expected[name]
        ]
        raise RunError(
            f"a node of the Ray cluster has {'; '.join(differing)}", "install the same version on every node"
        )


def cannot_start(reason: str) -> RunError:
    return RunError(
        f"no worker can be started on the Ray cluster: {reason}", "install handful in the same version on every node"
    )


def room(threads: int, gpus: float) -> int:
    """Workers that the cluster's nodes can hold. Raises: ConfigError where there is none."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = sum(
        int(min(node.get("CPU", 0) // threads, node.get("GPU", 0) // gpus if gpus else float("inf"))) for node in nodes
    )
    if not count:
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        needs = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise ConfigError(
            f"a worker needs {needs}; the largest of {len(nodes)} nodes has {most:g} CPUs", "set fewer `threads`"
        )
    return count


@contextmanager
def connected(address: str | None, cores: int) -> Iterator[None]:
    """A connection to the cluster at this address, or to one of this machine with so many cores.

    Raises: ConfigError where ray is missing or the address is none; RunError where no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("the engine ray needs the package ray", "pip install 'handful[ray]'") from None
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    here = address in (None, "local")
    if here:
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
    else:
        if address != "auto":
            check_reachable(str(address))
        options["address"] = address
    with tempfile.TemporaryDirectory(prefix="handful-") as empty, _for_ourselves() if here else nullcontext():
        try:
            with chdir(empty):  # from what is the current folder now, Ray's workers would import
                ray.init(**options)
        except Exception as error:  # Ray raises plain ones too
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"Ray: {reason}", "`ray status` says what is running; no run is lost") from error
        ray._private.worker._worker_logs_enabled = False  # pyright: ignore - else a lost worker is told on our stdout
        try:
            yield
        finally:
            ray.shutdown()
            ray._private.worker._worker_logs_enabled = True  # pyright: ignore


@contextmanager
def _for_ourselves() -> Iterator[None]:
    """A cluster that is started within it listens on this machine's loopback alone, and answers nobody who has not the
    token that we have drawn; it reports to nobody.

    Else Ray listens on all interfaces, and runs what whoever connects sends it. Ray reads these variables when it is
    imported, or here, where that is done.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore - of C++

    def refresh() -> None:
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")

    variables = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0", "PYTHONSAFEPATH": "1",
    }  # fmt: skip
    before, clusters = {name: os.environ.get(name) for name in variables}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(variables)
    ray_constants.ENABLE_RAY_CLUSTER = False  # its address is that of the loopback
    refresh()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        refresh()


def check_reachable(address: str) -> None:
    """Raises: ConfigError for what is no HOST:PORT; RunError unless a Ray head may be there.

    `ray.init` would try for minutes.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(
            f"--address: expected HOST:PORT of the cluster's head, or auto, found {address!r}",
            "`ray start --head` prints it; the study itself is started on one of the cluster's nodes",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(GREETING)
            answer = b"" if os.environ.get("RAY_USE_TLS") == "1" else connection.recv(9)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise unreachable(address, reason) from None
    if os.environ.get("RAY_USE_TLS") != "1" and answer[3:4] != b"\x04":  # the type of a frame of settings
        raise unreachable(address, "something else answers there")


def unreachable(address: str, reason: str) -> RunError:
    hint = "`ray status` on the cluster's head says whether it runs; nothing is lost: the same command continues"
    return RunError(f"no Ray cluster at {address} ({reason})", hint)
