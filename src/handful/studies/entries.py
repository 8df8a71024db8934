"""The tasks and methods of a recipe, as its tables say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from handful.data.files import read_folder
from handful.data.holdout import with_held_out_test
from handful.data.mixture import mix_tasks, text_to_text
from handful.data.open import open_task
from handful.data.task import Task
from handful.errors import ConfigError, DataError, HandfulError, nearest
from handful.runs.defaults import TEST_FRACTION
from handful.storage import exists, is_file

SECTIONS = ("method", "training", "run", "generation")
"""Tables below `set`, in which settings may stand instead of under a dotted name."""


class Closed(BaseModel):
    """A table of the recipe: closed, and unchanged once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Table(Closed):
    """A table with settings."""

    settings: Mapping[str, Any] = Field(default={}, alias="set")

    @field_validator("settings", mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        return dict(_dotted(value)) if isinstance(value, Mapping) else value


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    """{"training": {"epochs": 5}} and {"training.epochs": 5} alike → [("training.epochs", 5)]."""
    pairs: list[tuple[str, Any]] = []
    for name, value in table.items():
        inner = isinstance(value, Mapping) and name in SECTIONS
        pairs += _dotted(value, f"{prefix}{name}.") if inner else [(prefix + name, value)]
    return pairs


class MemberEntry(Closed):
    """A task by its name; `path` is a file, folder, packaged name, "e2e:FOLDER", "webnlg:FOLDER", "dart:FOLDER" or
    "hub:OWNER/NAME" where it differs from that.

    Below the folder given as --data, a task folder of this name is taken in place of `path`. The other fields say what
    the columns of a file are called, which splits of the hub are meant, and how a release is read; `text_to_text` has
    the labels written by a language model.
    """

    name: str
    path: str | None = None
    config: str | None = None
    revision: str | None = None
    pool: str | None = None
    test: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    label_separator: str | None = None
    kind: str | None = None
    metric: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    linearisation: str | None = None
    partition: str | None = None
    text_to_text: bool = False
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = TEST_FRACTION

    def open(self, data: Path | None) -> Task:
        """The task under its name in the study. Raises: DataError or ConfigError, as `open_task`."""
        mapping = set(MemberEntry.model_fields) - {"name", "path", "test_fraction", "text_to_text"}
        if data and is_file(data / self.name / "task.json"):
            task = self._folder_below(data)
        else:
            if data and self.path is None and not exists(self.name):
                found = sorted(str(file.parent.relative_to(data)) for file in data.glob("**/task.json"))
                raise DataError(f"task {self.name!r}: no such folder below {data}", nearest(self.name, found))
            task = open_task(self.path or self.name, **self.model_dump(include=mapping, exclude_none=True))
        if task.test is None:
            task = with_held_out_test(task, self.test_fraction)
        return replace(text_to_text(task) if self.text_to_text else task, name=self.name)

    def _folder_below(self, data: Path) -> Task:
        """The task folder in place of `path`, whose columns and splits are then of no matter; what would make it
        another task is. Raises: ConfigError for that, DataError as `read_folder`.
        """
        task = read_folder(data / self.name, metric=self.metric)
        if forms := [key for key in ("linearisation", "partition") if getattr(self, key)]:
            raise ConfigError(
                f"task {self.name!r}: {' and '.join(forms)} cannot be had of the task folder {task.origin}, which has "
                "its rows and sources as they are",
                "leave it out, or read the release without --data",
            )
        if self.kind not in (None, task.kind):
            raise ConfigError(f"task {self.name!r}: expected the kind {self.kind}, found {task.kind} in {task.origin}")
        return task


@final
class TaskEntry(MemberEntry, Table):
    """A task of the study, or with `members` a task of tasks, for a method that learns many at once.

    `stage` says that it is there for the runs that others start from: nothing else is run on it.
    """

    members: tuple[MemberEntry, ...] | None = None
    stage: bool = False

    @field_validator("members", mode="before")
    @classmethod
    def _named_members(cls, value: Any) -> Any:
        return named(value)

    def open(self, data: Path | None) -> Task:
        """The task under its name in the study. Raises: DataError or ConfigError, of members all that is wrong."""
        if self.members is None:
            return super().open(data)
        tasks, problems = [], []
        for member in self.members:
            try:
                tasks.append(member.open(data))
            except HandfulError as error:
                problems.append(in_one_line(error))
        if problems:
            raise DataError(f"task {self.name!r}:\n  " + "\n  ".join(problems))
        return mix_tasks(self.name, tasks)

    def problems(self) -> list[str]:
        """What is said of a task of tasks that only a member can have."""
        own = set(MemberEntry.model_fields) - {"name"}
        given = self.model_dump(include=own, exclude_defaults=True) if self.members is not None else {}
        return [f"{name}: a task of tasks has none of its own; say it of a member" for name in given]


@final
class Start(Table):
    """The run that another one starts from: of `method` (a name of this recipe), by default on the same rows."""

    method: str
    task: str | None = None
    shots: Annotated[int | None, Field(ge=2, le=10**9)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None


@final
class MethodEntry(Table):
    """A method with its settings, under the name that tables show.

    `stage` says that it is there for others to start from: it is run only where one does.
    """

    method: str
    name: str
    preset: str = "default"
    model: str | None = None
    start: Start | None = None
    space: Mapping[str, Any] | None = None
    stage: bool = False


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def named(value: Any) -> Any:
    """Entries of a list that are a name alone as tables of it."""
    return [{"name": entry} if isinstance(entry, str) else entry for entry in value] if is_list(value) else value


def in_one_line(error: HandfulError) -> str:
    return f"{error.message}{f' ({error.hint})' if error.hint else ''}"
