"""One door to all tasks: a file, a task folder, a packaged name, a release of data-to-text, or a dataset of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handful.data.files import read_folder, read_task
from handful.data.hub import hub_task
from handful.data.nlg import RELEASES, read_nlg
from handful.data.packaged import PACKAGED_TASKS, packaged_task
from handful.data.task import Task
from handful.errors import ConfigError, DataError, nearest


def open_task(name_or_path: str | Path, **mapping: Any) -> Task:
    """The task at a path, of a packaged name, of a release ("e2e:folder", "webnlg:folder", "dart:folder"), or of the
    hub ("hub:owner/name").

    `mapping` goes to `read_task` for a file, to `read_nlg` for a release and to `hub_task` for the hub; a task folder
    and a packaged task need none. What is None is left out.

    Raises: DataError, with the nearest name, if there is no such task; ConfigError for a mapping that is not needed.
    """
    name, mapping = str(name_or_path), {key: value for key, value in mapping.items() if value is not None}
    path = Path(name_or_path)
    if name.startswith("hub:"):
        return hub_task(name.removeprefix("hub:"), **mapping)
    release, _, folder = name.partition(":")
    if folder and release in RELEASES:
        return read_nlg(release, folder, **mapping)
    if name not in PACKAGED_TASKS and not path.is_dir():
        if not path.exists() and not path.suffix:
            beside = [str(file.parent) for file in path.parent.glob("*/task.json")]
            raise DataError(
                f"{name!r} is neither a file, nor a task folder, nor a packaged task",
                nearest(name, [*PACKAGED_TASKS, *beside]),
            )
        return read_task(path, **mapping)
    if mapping:
        raise ConfigError(
            f"the task {name!r} says itself what its columns mean, found {', '.join(sorted(mapping))}",
            "leave the options out, or name a file",
        )
    return read_folder(path) if path.is_dir() else packaged_task(name)
