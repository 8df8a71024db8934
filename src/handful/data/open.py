"""One door to all tasks: a file, a task folder, a packaged name, a release of data-to-text, or a dataset of the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature
from typing import Any

from handful.data.files import read_folder, read_task
from handful.data.hub import hub_task
from handful.data.nlg import RELEASES, read_nlg
from handful.data.packaged import PACKAGED_TASKS, packaged_task
from handful.data.tables import as_path
from handful.data.task import Task
from handful.errors import EMPTY_NAME, ConfigError, DataError, nearest


def open_task(source: Any, **mapping: Any) -> Task:
    """The task at a path, of a packaged name, of a release ("e2e:folder", "webnlg:folder", "dart:folder"), of the
    hub ("hub:owner/name"), or in memory (a data frame, a list of dicts, (texts, labels) …).

    `mapping` goes to `read_task` for a file and for rows in memory, to `read_nlg` for a release and to `hub_task` for
    the hub; a task folder takes a `metric` alone, a packaged task nothing. What is None is left out.

    Raises: DataError, with the nearest name, if there is no such task; ConfigError for what this one does not take.
    """
    mapping = {key: value for key, value in mapping.items() if value is not None}
    for key, value in mapping.items():
        if key != "text_pair" and isinstance(value, str) and not value.strip():  # a pair of "" is none
            if key == "delimiter" and value:
                continue  # it may be a tab
            raise ConfigError(f"{key}: {EMPTY_NAME}", "leave it out, or is a shell variable not set?")
    in_memory = not isinstance(source, str | os.PathLike)
    name = type(source).__name__ if in_memory else str(source)
    read = partial(read_task, source) if in_memory else _reader(name)
    taken = [key for key, parameter in signature(read).parameters.items() if parameter.kind is Parameter.KEYWORD_ONLY]
    if unknown := sorted(mapping.keys() - set(taken)):
        hint = nearest(unknown[0], taken) if taken else "leave it out: the task says itself what its columns mean"
        raise ConfigError(f"the task {name!r} takes no option {', '.join(unknown)}", hint)
    return read(**mapping)


def _reader(name: str) -> Callable[..., Task]:
    """What reads the task of this name, which is bound already; its keywords are what the task takes."""
    if name.startswith("hub:"):
        return partial(hub_task, name.removeprefix("hub:"))
    release, _, folder = name.partition(":")
    if folder and release in RELEASES:
        return partial(read_nlg, release, folder)
    path = as_path(name)
    if path.is_dir():
        return partial(read_folder, path)
    if name in PACKAGED_TASKS:
        return partial(packaged_task, name)
    if not path.exists() and not path.suffix:
        beside = [str(file.parent) for file in path.parent.glob("*/task.json")]
        raise DataError(
            f"{name!r} is neither a file, nor a task folder, nor a packaged task",
            nearest(name, [*PACKAGED_TASKS, *beside]),
        )
    return partial(read_task, path)
