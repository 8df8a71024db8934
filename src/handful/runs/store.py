"""Run folders: written completely or not at all, checked when they are read.

A run is a folder with `run.json` (everything about it), `adapter.safetensors`, `metrics.jsonl` (one line an event),
`predictions.jsonl` (one line a test row), `rows.sha256` (digests of the rows it has seen), `README.md` (the card) and,
where it was asked for, `landscape.json`. It is written under a temporary name beside its final one, flushed to disk and
renamed, so that a folder with its final name is always whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from handful.errors import RunError

FORMAT_VERSION = 1
RECORD, WEIGHTS, METRICS, PREDICTIONS, SEEN, LANDSCAPE, CARD = (
    "run.json",
    "adapter.safetensors",
    "metrics.jsonl",
    "predictions.jsonl",
    "rows.sha256",
    "landscape.json",
    "README.md",
)


@final
@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    folder: Path
    record: dict[str, Any]

    @property
    def key(self) -> str:
        return self.record["key"]

    def weights(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors. Raises: RunError when the file is damaged or not the one that was saved."""
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise RunError(
                f"{self.folder}: expected {WEIGHTS}, found none", "the run folder is incomplete; train again"
            )
        if _sha256(path) != self.record["weights_sha256"]:
            raise RunError(
                f"{path}: the content is not what was saved (SHA-256 differs)",
                "restore the file, or train again with --again",
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RunError(f"{path}: not a readable safetensors file ({error})", "train again with --again") from None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl` or `predictions.jsonl`."""
        path = self.folder / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def seen(self) -> frozenset[bytes] | None:
        """`overlap_keys` of the rows it was trained and selected on, and the run it started from; None where an older
        version kept none. Raises: RunError for a damaged file.
        """
        path = self.folder / SEEN
        if not path.is_file():
            return None
        try:
            return frozenset(map(bytes.fromhex, path.read_text(encoding="ascii").split()))
        except ValueError as error:
            raise RunError(f"{path}: damaged ({error})", "restore the file, or train again with --again") from None


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well and disappears when it does not.

    Raises: RunError when the place cannot be written, or the disk is full.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    except OSError as error:
        raise RunError(f"{final.parent}: cannot be written ({error.strerror})", "give another --output") from None
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # temporary folders and safetensors are made for their owner alone
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~umask)
                _flush(path)
        _move_into_place(partial, final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:  # a full disk is either, depending on who writes
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{final}: could not be written ({getattr(error, 'strerror', None) or error})",
            "free some space or give another --output; nothing that was saved before is lost",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, final: Path) -> None:
    """Rename; an older folder is moved aside first, and put back should the rename not happen."""
    if not final.exists():
        os.replace(partial, final)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
    try:
        os.replace(final, aside / "run")
        os.replace(partial, final)
    finally:
        if not final.exists():
            os.replace(aside / "run", final)
        shutil.rmtree(aside, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Raises: RunError unless a file can be made in this folder (made if missing)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"\0" * 65536)
            file.flush()
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})", "give another --output") from None


def write_run(
    final: Path,
    record: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    *,
    metrics: Iterable[Mapping[str, Any]] = (),
    predictions: Iterable[Mapping[str, Any]] = (),
    seen: Collection[bytes] = (),
    landscape: Mapping[str, Any] | None = None,
    card: str = "",
) -> Run:
    """Write a run folder atomically; an older folder of that name is replaced only once the new one is whole."""
    with new_folder(final) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial / WEIGHTS)
        full = {"format_version": FORMAT_VERSION, **record, "weights_sha256": _sha256(partial / WEIGHTS)}
        (partial / RECORD).write_text(json.dumps(full, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        for name, rows in ((METRICS, metrics), (PREDICTIONS, predictions)):
            with open(partial / name, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        (partial / SEEN).write_text("".join(f"{key}\n" for key in sorted(map(bytes.hex, seen))), encoding="ascii")
        if landscape is not None:
            content = json.dumps(landscape, ensure_ascii=False, allow_nan=False)
            (partial / LANDSCAPE).write_text(content, encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
    return Run(final, full)


def read_run(folder: Path | str) -> Run:
    """The run in this folder. Raises: RunError when it is missing, incomplete, damaged or of a newer version."""
    folder = Path(folder)
    if not folder.is_dir():
        known = (
            [run.name for run in folder.parent.glob("*") if (run / RECORD).is_file()] if folder.parent.is_dir() else []
        )
        hint = "runs here: " + ", ".join(sorted(known)[:10]) if known else "`handful fit` makes a run folder"
        raise RunError(f"{folder}: no such run folder", hint)
    path = folder / RECORD
    if not path.is_file():
        raise RunError(
            f"{folder}: expected {RECORD}, found none", "this is no finished run; give the folder that `fit` printed"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = record["format_version"], record["key"], record["weights_sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error})", "restore the file, or train again with --again") from None
    if version > FORMAT_VERSION:
        raise RunError(
            f"{folder}: written by a newer handful (run format {version}; this one reads up to {FORMAT_VERSION})",
            "upgrade handful",
        )
    return Run(folder, record)


def find_runs(root: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """All finished runs below a folder, and the damaged ones with what is wrong with them."""
    good, bad = [], []
    for path in sorted(root.rglob(RECORD)):
        if any(part.endswith((".partial", ".old")) for part in path.parts):
            continue
        try:
            good.append(read_run(path.parent))
        except RunError as error:
            bad.append((path.parent, error.message))
    return good, bad


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
