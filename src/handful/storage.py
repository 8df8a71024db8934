"""Files and folders that appear whole or not at all, under names that are no paths.

A temporary file or folder stands beside what it becomes. Its name ends in a random part, so that nobody can plant a
link in its place; and says which process it belongs to, so that what a killed one left behind can be cleared.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from handful.errors import RunError

PARTIAL, ASIDE, PROGRESS = ".partial", ".old", ".progress"

LONGEST_NAME = 180
"""Bytes of the longest name that we make: file systems take 255, and temporary names are longer."""

STALE_DAYS, FORGOTTEN_DAYS = 1, 30
"""Age from which on a temporary folder belongs to nobody, and from which on an unfinished fit will not be continued."""

_ASKS_BY_SIGNAL = os.name == "posix"
"""Whether signal 0 asks if a process is there, and does nothing to it."""

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<process>\d+)-[0-9a-f]{12}(?P<kind>\.partial|\.old)")


def short_name(name: str, most: int = LONGEST_NAME) -> str:
    """The name, cut to so many bytes, with a digest of the whole where it was cut; never a device's of Windows."""
    if _RESERVED.fullmatch(name.partition(".")[0].rstrip()):
        name = f"_{name}"
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) <= most:
        return name
    return f"{encoded[: most - 9].decode('utf-8', 'ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def wrong_name(name: str) -> str | None:
    """Why this cannot be the name of a folder, on any system; None where it can."""
    if not name.strip() or name.strip(". ") == "":
        return "it is empty, or dots alone"
    if found := re.search(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]', name):
        return f"a name has no {found[0]!r}"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a space, or ends with a dot"
    if _RESERVED.fullmatch(name.partition(".")[0].rstrip()):
        return "Windows keeps that name for a device"
    if len(name.encode()) > LONGEST_NAME:
        return f"it has more than {LONGEST_NAME} bytes"
    return None


def exists(path: Path | str) -> bool:
    """Whether anything is there, a broken link too; False for what can be no path (too long, a NUL in it)."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def is_folder(path: Path | str) -> bool:
    """Whether a folder is there; False for what can be no path."""
    with suppress(OSError, ValueError):
        return Path(path).is_dir()
    return False


def is_file(path: Path | str) -> bool:
    """Whether a file is there; False for what can be no path."""
    with suppress(OSError, ValueError):
        return Path(path).is_file()
    return False


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises: OSError, or ValueError for what is no JSON, or too deep or long to be."""
    return parse_json(path.read_bytes())


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text. Raises: ValueError, too where brackets are nested deeper than Python can follow."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def temporary_name(final: Path, kind: str) -> Path:
    """A name beside `final` that nobody can foresee."""
    name = short_name(final.name.lstrip(".") or "x")
    return final.with_name(f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(6)}{kind}")


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def open_new(path: Path) -> IO[bytes]:
    """A file that was not there before and is no link, open for writing bytes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def open_append(path: Path) -> IO[bytes]:
    """A file to add to, which is made where there is none; a link is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab")


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file, open for writing bytes, that gets its name when the block ends well and disappears when it does not.

    What is no regular file (a pipe, /dev/null) is written as it is. Raises: OSError.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    clear_abandoned(path)
    partial = temporary_name(path, PARTIAL)
    opened = open_new(partial)  # what stands there already is not ours to remove
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises: RunError unless a file can be made in this folder (made if missing)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / "probe", PARTIAL)
        opened = open_new(probe)
        try:
            with opened as file:
                file.write(b"\0" * 65536)
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{folder}: cannot be written ({reason})", "give another --output") from None


def write_file(path: Path, content: str | bytes) -> None:
    """A small file, whole or not at all; texts in UTF-8. Raises: OSError."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folder(final: Path, check: Callable[[Path], None] = lambda folder: None) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well and disappears when it does not.

    An older folder of that name is replaced; `check` may refuse that, at the last moment. Raises: RunError when the
    place cannot be written, or the disk is full.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(final)
        partial = temporary_name(final, PARTIAL)
        partial.mkdir()
        mode = partial.stat().st_mode
        partial.chmod(0o700)
    except OSError as error:
        raise RunError(f"{final.parent}: cannot be written ({error.strerror})", "give another --output") from None
    try:
        yield partial
        partial.chmod(mode & 0o777)
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(mode & 0o666)  # safetensors are made for their owner alone
                flush_file(path)
        if exists(final):
            check(final)
        _move_into_place(partial, final)
        flush_folder(final.parent)
    except RunError:
        raise
    except (OSError, _safetensor_error()) as error:  # a full disk is either, depending on who writes
        raise RunError(
            f"{final}: could not be written ({getattr(error, 'strerror', None) or error})",
            "free some space or give another --output; nothing that was saved before is lost",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def _move_into_place(partial: Path, final: Path) -> None:
    """Rename; an older folder is moved aside first, and put back should the rename not happen."""
    if not exists(final):
        os.replace(partial, final)
        return
    aside = temporary_name(final, ASIDE)
    aside.mkdir(0o700)
    try:
        os.replace(final, aside / final.name)
        os.replace(partial, final)
    finally:
        if not exists(final):
            os.replace(aside / final.name, final)
        shutil.rmtree(aside, ignore_errors=True)


def flush_file(path: Path) -> None:
    """The file's content on disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """The names in a folder on disk, where the system has that (Windows has not)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_leftovers(folder: Path, on_message: Callable[[str], None]) -> None:
    """Remove what killed processes have left in a folder, and say so: a line each.

    These are temporary files and folders of processes of this machine that are gone, or older than a day. A folder
    that had been moved aside for a new one that never came is put back. `.progress` folders, from which fits continue,
    go when their run is finished, or after 30 days.
    """
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if found := _TEMPORARY.fullmatch(path.name):
                if not _is_alive(path, found["host"], int(found["process"])):
                    _clear(path, found["kind"], on_message)
            elif path.name.startswith(".") and path.name.endswith(PROGRESS) and path.is_dir():
                _clear_progress(path, on_message)


def clear_abandoned(final: Path) -> None:
    """Remove what processes that are gone have left on their way to this file or folder, where its own user writes it
    again. A folder that was moved aside for it is put back.
    """
    name = short_name(final.name.lstrip(".") or "x")
    with suppress(OSError):
        for path in sorted(final.parent.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found and found["name"] == name and not _is_alive(path, found["host"], int(found["process"])):
                _clear(path, found["kind"], lambda message: None)


def _clear(path: Path, kind: str, on_message: Callable[[str], None]) -> None:
    if kind == ASIDE and path.is_dir():
        for saved in path.iterdir():
            if not exists(path.parent / saved.name):
                os.replace(saved, path.parent / saved.name)
                on_message(f"put back what a process that was killed had moved aside: {path.parent / saved.name}")
    remove(path)
    on_message(f"removed what a process that was killed had left: {path}")


def _clear_progress(path: Path, on_message: Callable[[str], None]) -> None:
    name = path.name.removesuffix(PROGRESS)[1:]
    finished = any((path.parent / known / "run.json").is_file() for known in (name, name[:-9]))
    days = _age_days(path)
    if finished and days > STALE_DAYS:
        remove(path)
        on_message(f"removed the checkpoint of a run that is finished: {path}")
    elif days > FORGOTTEN_DAYS:
        remove(path)
        on_message(f"removed the checkpoint of a fit that nobody continued for {FORGOTTEN_DAYS} days: {path}")


def remove(path: Path) -> None:
    """A file, a link (and not what it leads to), or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(path: Path, host: str, process: int) -> bool:
    """Whether the process may still be at work on what it has left here."""
    if _age_days(path) > STALE_DAYS:
        return False
    if host != _host() or not _ASKS_BY_SIGNAL:  # on Windows os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _age_days(path: Path) -> float:
    """Days since the last change to a file or a folder or anything in it."""
    newest = path.lstat().st_mtime
    if path.is_dir() and not path.is_symlink():
        newest = max([newest, *(inner.lstat().st_mtime for inner in path.rglob("*"))])
    return (time.time() - newest) / 86400


def foreign(folder: Path, known: Callable[[str], bool]) -> list[str]:
    """What is in a folder beside regular files of a `known` name (relative, with "/"): links, and files of others."""
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name]
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        ours = path.is_file() and known(name)
        inner = path.is_dir() and any(path.iterdir())  # named by what is in it
        if path.is_symlink() or not (ours or inner):
            found.append(name)
    return found
