"""The pieces of work of a study, and the order in which they can be done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, final

from handful.storage import short_name


@final
@dataclass(frozen=True)
class Job:
    """One method on one task, number of rows and seed. `start` names the job whose result it starts from."""

    label: str
    task: str
    shots: int
    seed: int
    start: str | None = None

    @property
    def name(self) -> str:
        """Unique in a study, and a safe name for a folder."""
        parts = (safe_part(self.task), f"k{self.shots}", f"s{self.seed}", safe_part(self.label))
        return short_name("-".join(parts))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**record)


def safe_part(name: str) -> str:
    """A name as a part of that of a folder: letters, digits, "-", "_" and "." alone."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "x"


@final
class Queue:
    """Jobs that are not done yet, handed out in their order, each after the one that it starts from.

    `done` holds the names of jobs that were finished before.
    """

    def __init__(self, jobs: Sequence[Job], done: Iterable[str] = ()):
        self._done = set(done)
        self._waiting = {job.name: job for job in jobs if job.name not in self._done}
        self._running: dict[str, Job] = {}

    def __len__(self) -> int:
        """Jobs that are neither finished nor given up."""
        return len(self._waiting) + len(self._running)

    def take(self) -> Job | None:
        """The next job that can be done now."""
        job = next((job for job in self._waiting.values() if job.start is None or job.start in self._done), None)
        if job:
            self._running[job.name] = self._waiting.pop(job.name)
        return job

    def put_back(self, job: Job) -> None:
        """A job whose worker was lost is next in line again."""
        del self._running[job.name]
        self._waiting = {job.name: job, **self._waiting}

    def finish(self, job: Job) -> None:
        """The result of a job is there."""
        del self._running[job.name]
        self._done.add(job.name)

    def give_up(self, job: Job) -> list[Job]:
        """A job has failed; takes out the jobs that cannot be done for that reason and returns them."""
        del self._running[job.name]
        lost, gone = [], {job.name}
        for name, waiting in list(self._waiting.items()):  # a job stands behind the one it starts from
            if waiting.start in gone:
                lost.append(self._waiting.pop(name))
                gone.add(name)
        return lost
