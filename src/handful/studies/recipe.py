"""A study as one TOML file says it: tasks × shots × seeds × methods, all wrong values told at once.

name = "news"
tasks = ["bbc-news", { name = "tickets", path = "tickets.csv", label = "topic" }]
shots = [50, 100]
seeds = 5                                    # 0 to 4; or a list
methods = ["head", { name = "long", method = "prefix", set = { prefix_length = 20 } }]

A task of tasks, from which other runs start: { name = "many", members = ["a", { name = "b", path = "b.csv" }],
stage = true }; `shots` are then the most rows of a member.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self, final

from pydantic import BaseModel, Field, ValidationError, field_validator

from handful.backbone.device import AUTO, check_name
from handful.data.nlg import RELEASES
from handful.data.overlap import refuse_another_task
from handful.data.seen import SeenRows
from handful.data.task import Task
from handful.errors import ConfigError, DataError, HandfulError, nearest, shown
from handful.methods import is_method, method_class
from handful.methods.poly.method import Poly
from handful.methods.search_space import SearchSpace
from handful.runs.experiment import make_split
from handful.runs.inventory import sizes
from handful.runs.seen import seen_rows
from handful.runs.spec import RunOptions, RunSpec, full_names, resolve
from handful.storage import exists, is_folder, wrong_name
from handful.studies.entries import MemberEntry, MethodEntry, Start, Table, TaskEntry, in_one_line, is_list, named
from handful.studies.jobs import Job, safe_part
from handful.studies.space import read_space
from handful.studies.trials import SearchSettings

MOST_SEEDS = 10_000
"""Seeds that a number can stand for."""


@final
class Recipe(Table):
    """A study. `settings` (in the file: `set`) holds for all methods, where it does not hold for those of one.

    `test_rows` keeps at most so many test rows of every task, the same ones for all runs. `threads` is for each
    worker: results depend on it in the last bits, so it is part of the recipe. `device` is where they compute (see
    `resolve_device`). With `search` (the fields of
    `SearchSettings`), every method has the same number of trials of its space in every cell.
    """

    name: str
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    shots: tuple[Annotated[int, Field(ge=2, le=10**9)], ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(min_length=1)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    model: str = "minilm"
    search: Mapping[str, Any] | None = None
    test_rows: Annotated[int | None, Field(ge=1, le=10**9)] = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    device: str = AUTO

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: Any) -> Any:
        return named(value)

    @field_validator("methods", mode="before")
    @classmethod
    def _named_methods(cls, value: Any) -> Any:
        if not is_list(value):
            return value
        entries = [{"method": entry} if isinstance(entry, str) else entry for entry in value]
        return [{"name": e.get("method"), **e} if isinstance(e, Mapping) else e for e in entries]

    @field_validator("shots", mode="before")
    @classmethod
    def _listed_shots(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted_seeds(cls, value: Any) -> Any:
        counts = isinstance(value, int) and not isinstance(value, bool) and value <= MOST_SEEDS
        return list(range(value)) if counts else value

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], origin: str = "recipe") -> Self:
        """The recipe of these values. Raises: ConfigError with everything that is wrong."""
        try:
            recipe = cls.model_validate(record)
        except ValidationError as error:
            raise _wrong(origin, [_explain(cls, problem) for problem in error.errors()]) from None
        if problems := recipe.problems():
            raise _wrong(origin, problems)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    def problems(self) -> list[str]:
        """What is wrong between the values, and with the settings of methods."""
        problems = [f"{what}: {_repeated(names)}" for what, names in self._names().items() if _repeated(names)]
        if reason := wrong_name(self.name):
            problems.append(f"name: expected a name for a folder, found {shown(self.name)}: {reason}")
        problems += [] if problems else self._same_folders()
        problems += [
            f"set.{name}: only settings of training, run and generation can be common to all methods"
            for name in self.settings
            if not name.startswith(("training.", "run.", "generation."))
        ]
        for index, task in enumerate(self.tasks):
            problems += [f"tasks.{index} ({task.name}).{problem}" for problem in task.problems()]
        problems += _complaints("search", self.search_settings)
        problems += _complaints("device", lambda: check_name(self.device))
        for index, method in enumerate(self.methods):
            where = f"methods.{index} ({method.name})"
            for task in self.tasks:
                wrong = _complaints(where, lambda: self._spec(method, task, self.shots[0], self.seeds[0]))  # noqa: B023
                problems += [line for line in wrong if line not in problems]
            if is_method(method.method):
                problems += _complaints(where, lambda: self.space(method))  # noqa: B023
            problems += self._wrong_start(index, method)
        return problems

    def _names(self) -> dict[str, list[str]]:
        lists = {"tasks": [t.name for t in self.tasks], "methods": [m.name for m in self.methods]}
        return lists | {"shots": [str(k) for k in self.shots], "seeds": [str(s) for s in self.seeds]}

    def _same_folders(self) -> list[str]:
        """Tasks or methods whose runs would have folders of the same name, on a system that knows no upper case."""
        problems = []
        for what, names in (("tasks", [t.name for t in self.tasks]), ("methods", [m.name for m in self.methods])):
            alike: dict[str, list[str]] = {}
            for name in names:
                alike.setdefault(safe_part(name).lower(), []).append(name)
            problems += [
                f"{what}: {' and '.join(map(repr, same))} would share folders; give each another name"
                for same in alike.values()
                if len(same) > 1
            ]
        return problems

    def _wrong_start(self, index: int, method: MethodEntry) -> list[str]:
        if method.start is None:
            return []
        where, start = f"methods.{index} ({method.name}): start", method.start
        methods, tasks = {m.name: m for m in self.methods}, [t.name for t in self.tasks]
        if start.method not in methods:
            return [f"{where}.method: no method {start.method!r}; {nearest(start.method, methods)}"]
        if start.task is not None and start.task not in tasks:
            return [f"{where}.task: no task {start.task!r} among the tasks; {nearest(start.task, tasks)}"]
        seen, behind = {method.name}, start.method
        while behind not in seen and (further := methods[behind].start):
            seen.add(behind)
            behind = further.method if further.method in methods else method.name
        return [f"{where}: {method.name} would start from itself"] if behind == method.name else []

    def jobs(self) -> list[Job]:
        """Every run, each after the one that it starts from. Seeds are outermost: a part of it is a smaller study."""
        methods = {method.name: method for method in self.methods}
        jobs: dict[str, Job] = {}

        def add(label: str, task: str, shots: int, seed: int) -> str:
            start, behind = methods[label].start, None
            if start:
                own = (task if start.task is None else start.task, start.shots or shots)
                behind = add(start.method, *own, seed if start.seed is None else start.seed)
            job = Job(label, task, shots, seed, behind)
            jobs.setdefault(job.name, job)
            return job.name

        for seed in self.seeds:
            for task in (task for task in self.tasks if not task.stage):
                for shots in self.shots:
                    for method in self.methods:
                        if not method.stage:
                            add(method.name, task.name, shots, seed)
        return list(jobs.values())

    def spec(self, job: Job, overrides: Mapping[str, Any] | None = None) -> RunSpec:
        """What a job runs; `overrides` are what a search has found."""
        method = self.method(job.label)
        task = next(task for task in self.tasks if task.name == job.task)
        return self._spec(method, task, job.shots, job.seed, overrides)

    def _spec(
        self, method: MethodEntry, task: TaskEntry, shots: int, seed: int, overrides: Mapping[str, Any] | None = None
    ) -> RunSpec:
        sections = ("run.", "generation.", *(["training."] if _takes_steps(method) else []))
        common = {name: value for name, value in self.settings.items() if name.startswith(sections)}
        given = self._inherited(method, task)
        for settings in (common, task.settings, method.settings, overrides or {}):  # the later ones win
            given |= full_names(method.method, settings)
        given |= {"run.shots": shots, "run.seed": seed}
        return resolve(method.method, model=method.model or self.model, preset=method.preset, overrides=given)

    def _inherited(self, method: MethodEntry, task: TaskEntry) -> dict[str, Any]:
        """The sizes of the inventory that a method starts from on a task, where it does."""
        first = next((m for m in self.methods if method.start and m.name == method.start.method), None)
        if method.start is None or first is None or {first.method, method.method} != {Poly.name}:
            return {}
        members = next((len(t.members or ()) for t in self.tasks if t.name == (method.start.task or task.name)), 0)
        with suppress(ConfigError):  # which is told where it stands
            inventory = resolve(first.method, preset=first.preset, overrides=first.settings).method
            return sizes(inventory.settings(), members)
        return {}

    def search_settings(self) -> SearchSettings | None:
        """How every method is searched, or None. Raises: ConfigError with all that is wrong."""
        return None if self.search is None else SearchSettings.from_settings(self.search)

    def space(self, method: MethodEntry) -> SearchSpace:
        """What is searched of a method: not what the recipe fixes. Raises: ConfigError with all that is wrong."""
        return read_space(method.method, method.space, fixed=[*self.settings, *method.settings])

    def method(self, label: str) -> MethodEntry:
        """The entry of this name."""
        return next(method for method in self.methods if method.name == label)

    def open_task(self, name: str, data: Path | None) -> Task:
        """A task of the study with its test rows. Raises: DataError or ConfigError."""
        task = next(task for task in self.tasks if task.name == name).open(data)
        return _with_fewer_test_rows(task, self.test_rows) if self.test_rows else task

    def check_rows(self, data: Path | None) -> dict[str, Task]:
        """All tasks, each with enough rows for every number of shots, and with none that a start on another has seen.

        Raises: DataError with everything that is wrong with any of them.
        """
        tasks: dict[str, Task] = {}
        problems: dict[str, None] = {}
        for entry in self.tasks:
            try:
                tasks[entry.name] = task = self.open_task(entry.name, data)
                for job in {(job.label, job.shots): job for job in self.jobs() if job.task == entry.name}.values():
                    make_split(task, self.spec(job))
            except HandfulError as error:
                problems[in_one_line(error)] = None
        problems |= {} if problems else dict.fromkeys(self._seen_before(tasks))
        if problems:
            raise DataError(f"{self.name}: {len(problems)} wrong with the tasks:\n  " + "\n  ".join(problems))
        return tasks

    def _seen_before(self, tasks: Mapping[str, Task]) -> list[str]:
        """What runs on one task would give away of another that starts from them, a line each."""
        jobs = {job.name: job for job in self.jobs()}
        pairs = [(job, jobs[job.start]) for job in jobs.values() if job.start]
        rows: dict[tuple[str, RunOptions], SeenRows] = {}
        found: dict[tuple[str, str, RunOptions], str] = {}
        for job, start in pairs:
            stage, spec = tasks[start.task], self.spec(start)
            key = (start.task, spec.options)
            names = {start.task, *(member.name for member in stage.members)}
            if job.task in names or (job.task, *key) in found:
                continue
            if key not in rows:
                rows[key] = seen_rows(make_split(stage, spec), None)
            found[job.task, *key] = ""
            try:
                refuse_another_task(start.task, rows[key], tasks[job.task])
            except DataError as error:
                found[job.task, *key] = in_one_line(error)
        return [line for line in found.values() if line]


def _tables(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if is_list(value) else []


def _with_fewer_test_rows(task: Task, rows: int) -> Task:
    members = tuple(_with_fewer_test_rows(member, rows) for member in task.members)
    return replace(task, test=task.test and task.test.sample(rows), members=members)


def _takes_steps(method: MethodEntry) -> bool:
    """Whether the preset trains in steps: common settings of training are not for a method that is fitted at once."""
    preset = None
    with suppress(ConfigError):  # which is told where it stands
        preset = method_class(method.method).presets.get(method.preset)
    return preset is None or preset.training.get("epochs") != 0


def _complaints(where: str, attempt: Callable[[], object]) -> list[str]:
    """What is wrong with one part, a line each; empty where nothing is."""
    try:
        attempt()
    except ConfigError as error:
        first, *lines = error.message.split("\n  ")
        return [f"{where}: {line}" for line in lines or [f"{first}; {error.hint}"]]
    return []


def _repeated(names: Sequence[str]) -> str:
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"{', '.join(map(repr, twice))} more than once; give each a name of its own" if twice else ""


def _wrong(origin: str, problems: Sequence[str]) -> ConfigError:
    count = f"{len(problems)} wrong value{'s' * (len(problems) > 1)}"
    return ConfigError(f"{origin}: {count}:\n  " + "\n  ".join(problems), "docs/guides/studies.md shows every key")


def _explain(cls: type[BaseModel], problem: Any) -> str:
    """One of pydantic's complaints as a line: where, what was expected, what was found."""
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{where}: expected a value, found none"
    if problem["type"] == "extra_forbidden":
        tables = {"tasks": TaskEntry, "methods": MethodEntry}
        tables |= {"tasks": MemberEntry} if "members" in problem["loc"] else {}
        known = Start if "start" in problem["loc"] else tables.get(str(problem["loc"][0]), cls)
        names = [field.alias or name for name, field in known.model_fields.items()]
        return f"{where}: no such key; {nearest(str(problem['loc'][-1]), names)}"
    return f"{where}: {problem['msg'].lower().replace('input should be', 'expected')}, found {shown(problem['input'])}"


def _beside(folder: Path, path: str) -> str:
    """A path that is relative to the folder in full, behind the name of a release too; any other as it is."""
    release, _, name = path.rpartition(":")
    if release and release not in RELEASES:
        return path
    return f"{release}{release and ':'}{(folder / name).resolve()}" if exists(folder / name) else path


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    """A value under its dotted name. Raises: ConfigError where what is above it is no table."""
    *tables, key = name.split(".") if not name.startswith("set.") else ("set", name.removeprefix("set."))
    table = content
    for depth, part in enumerate(tables, 1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            above = ".".join(tables[:depth])
            kind = "a list" if is_list(table) else shown(table)
            raise ConfigError(
                f"--set {name}: expected a table in {above}, found {kind}",
                f"give all of it, such as --set '{tables[0]}=…' in JSON, or change the file",
            )
    table[key] = value


def read_recipe(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file; `overrides` are dotted keys, such as "shots" or "search.trials", put in its place.

    Paths of tasks are relative to the file's folder. Raises: ConfigError for an unreadable file and for everything
    that is wrong in it.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        others = sorted(str(file) for file in path.parent.glob("*.toml")) if is_folder(path.parent) else []
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", nearest(str(path), others)) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML in UTF-8, found {error}", "correct the file") from None
    for name, value in (overrides or {}).items():
        _put(content, name, value)
    content.setdefault("name", path.stem)
    for entry in _tables(content.get("tasks")):
        for table in (entry, *_tables(entry.get("members"))):
            if isinstance(table.get("path"), str):
                table["path"] = _beside(path.parent, table["path"])
    return Recipe.from_dict(content, str(path))
