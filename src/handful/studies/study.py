"""A study on disk: the jobs of a recipe, what became of each, and the table of their scores.

    FOLDER/study.json      the recipe, resolved
    FOLDER/runs/JOB/       one run folder a job
    FOLDER/failed/JOB.json {"job", "error", "hint"} of a job that cannot be done
    FOLDER/results.jsonl   the scores, one line a job in the order of the recipe, once all jobs have ended

What is done is read off these folders alone: killed at any moment and started again, a study goes on where it was
and ends with the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from handful.errors import ConfigError, RunError, in_words
from handful.runs.experiment import make_split
from handful.runs.store import Run, read_run, refuse_foreign
from handful.storage import check_writable, clear_leftovers, exists, read_json, remove, write_file
from handful.studies.engines import AbstractEngine, JobEvent, JobFailed, JobListener, WorkOrder
from handful.studies.jobs import Job, Queue
from handful.studies.recipe import Recipe

RECIPE, RUNS, FAILED, RESULTS = "study.json", "runs", "failed", "results.jsonl"


@final
@dataclass
class State:
    """What became of the jobs of a study so far. `damaged` are run folders that cannot be read, and why."""

    jobs: list[Job]
    done: dict[str, Run] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def open(self) -> list[Job]:
        """Jobs that are neither done nor failed."""
        return [job for job in self.jobs if job.name not in self.done and job.name not in self.failed]


@final
class Study:
    """A recipe and the folder of its results. Raises: ConfigError where the folder holds another recipe's results."""

    def __init__(self, recipe: Recipe, folder: Path, data: Path | None = None):
        self.recipe, self.folder, self.data = recipe, folder, data
        self.jobs = recipe.jobs()
        self._check_recipe()

    def state(self) -> State:
        """What is there."""
        state = State(self.jobs)
        for job in self.jobs:
            folder, failure = self.folder / RUNS / job.name, self.folder / FAILED / f"{job.name}.json"
            if exists(folder):
                try:
                    state.done[job.name] = read_run(folder)
                except RunError as error:
                    state.damaged[job.name] = error.message
            elif failure.is_file():
                state.failed[job.name] = _read_failure(failure)
        return state

    def run(
        self,
        engine: AbstractEngine,
        on_event: JobListener,
        *,
        retry_failed: bool = False,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> State:
        """Do what is not done yet; returns what became of every job. `on_message` hears what is removed.

        Raises: DataError for tasks that cannot be had, or have too few rows; RunError when the folder is in use or
        cannot be written, or rows have changed since runs were made from them.
        """
        tasks = self.recipe.check_rows(self.data)
        check_writable(self.folder)
        with self._alone():
            clear_leftovers(self.folder / RUNS, on_message)
            state = self.state()
            self._check_same_rows(state, tasks)
            _write(self.folder / RECIPE, json.dumps(self.recipe.to_dict(), indent=1))
            (self.folder / RESULTS).unlink(missing_ok=True)
            for name, problem in state.damaged.items():
                refuse_foreign(self.folder / RUNS / name)
                on_message(f"{name}: removed and done once more, as it is damaged: {problem}")
                remove(self.folder / RUNS / name)
            for name in state.failed if retry_failed else ():
                (self.folder / FAILED / f"{name}.json").unlink()
            left = Queue(self.state().open, state.done)
            engine.run(left, self.order(), self._keep(on_event))
            state = self.state()
            _write(self.folder / RESULTS, "".join(json.dumps(line) + "\n" for line in results_lines(state)))
        return state

    def order(self) -> WorkOrder:
        """What its workers must know."""
        return WorkOrder(self.recipe.to_dict(), str(self.folder / RUNS), str(self.data) if self.data else None)

    def _keep(self, on_event: JobListener) -> JobListener:
        """A listener that writes failures down before it passes them on."""

        def listen(event: JobEvent) -> None:
            if isinstance(event, JobFailed):
                check_writable(self.folder)  # on a full disk every job would fail: none is written off, the study stops
                record = {"job": event.job.name, "error": event.error, "hint": event.hint}
                _write(self.folder / FAILED / f"{event.job.name}.json", json.dumps(record, indent=1))
            on_event(event)

        return listen

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else runs this study at the same time; the system lets go of the lock whatever happens to us."""
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise RunError(
                f"{self.folder}: another process is running this study", "wait for it, or give another --output"
            ) from None

    def _check_recipe(self) -> None:
        """Raises: ConfigError where runs that are there were made with other settings. More runs are no change."""
        path = self.folder / RECIPE
        if not path.is_file():
            return
        try:
            before = Recipe.from_dict(read_json(path), str(path))
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})", "give another --output") from None
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            hint = "delete it if its runs are of this recipe, or give another --output"
            raise RunError(f"{path}: damaged", hint) from None
        changes = list(changed_settings(before, self.recipe))
        if changes:
            raise ConfigError(
                f"{self.folder} holds results of a recipe that says otherwise:\n  " + "\n  ".join(changes),
                "give another --output, or change the recipe back; more tasks, shots, seeds and methods can be added",
            )

    def _check_same_rows(self, state: State, tasks: Mapping[str, Any]) -> None:
        """Raises: RunError where the rows of a finished run are not what its task gives today."""
        seen: dict[tuple[str, int, int, str], str] = {}
        for job in self.jobs:
            if job.name not in state.done:
                continue
            spec = self.recipe.spec(job)
            rows = (job.task, job.shots, job.seed, spec.options.dev)
            if rows not in seen:
                seen[rows] = make_split(tasks[job.task], spec).fingerprint
            if seen[rows] != state.done[job.name].record["rows"]["fingerprint"]:
                raise RunError(
                    f"{self.folder / RUNS / job.name}: trained or tested on other rows than task {job.task!r} has now",
                    "give another --output, or bring the former rows back",
                )


def changed_settings(before: Recipe, after: Recipe) -> Iterator[str]:
    """What of an earlier recipe a later one says otherwise, one line each; what either has more of is no change."""
    old, new = before.to_dict(), after.to_dict()
    for key in sorted(old.keys() - {"tasks", "methods", "shots", "seeds", "device"}):  # runs say where they were made
        if old[key] != new[key]:
            yield f"{key}: was {_brief(old[key])}, now {_brief(new[key])}"
    for key in ("tasks", "methods"):
        entries = {entry["name"]: entry for entry in new[key]}
        for entry in old[key]:
            now = entries.get(entry["name"], entry)
            for name in entry:
                if entry[name] != now[name]:
                    yield f"{key}: {entry['name']}: {name}: was {_brief(entry[name])}, now {_brief(now[name])}"


def _brief(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def results_lines(state: State) -> Iterator[dict[str, Any]]:
    """What came out of every job: no times and no paths, so that equal results are equal texts."""
    for job in state.jobs:
        line: dict[str, Any] = {"job": job.name, **job.to_dict()}
        if run := state.done.get(job.name):
            fitted = run.record["fit"]
            line |= {"trials": run.record["study"]["trials"], "steps": fitted["steps"]}
            line |= {"chosen_step": fitted["chosen_step"], "parameters": fitted["parameters"]}
            line |= {"rows": run.record["rows"]["fingerprint"], "weights": run.record["weights_sha256"]}
            line |= {"scores": {name: estimate["mean"] for name, estimate in run.record["scores"].items()}}
        else:
            line["error"] = state.failed.get(job.name, {}).get("error", "not done")
        yield line


def _read_failure(path: Path) -> dict[str, Any]:
    """What is kept of a failed job. Raises: RunError for a damaged file."""
    try:
        content = read_json(path)
        return {"error": str(content["error"]), "hint": content.get("hint") and str(content["hint"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: damaged ({in_words(error)})", "remove it: the job is then done once more") from None


def _write(path: Path, text: str) -> None:
    """A small file, whole or not at all. Raises: RunError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    except OSError as error:
        hint = "free some space; nothing saved is lost"
        raise RunError(f"{path}: cannot be written ({error.strerror})", hint) from None
