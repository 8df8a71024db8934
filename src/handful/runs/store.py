"""Run folders: written completely or not at all, checked when they are read.

A run is a folder with `run.json` (everything about it), `adapter.safetensors`, `metrics.jsonl` (one line an event),
`predictions.jsonl` (one line a test row), `rows.sha256` (salted digests of the rows it has seen), `README.md` (the
card) and, where it was asked for, `landscape.json`. It is written under a temporary name beside its final one, flushed
to disk and renamed, so that a folder with its final name is always whole. `run.json` has a checksum of its own content
and the SHA-256 of every other file but the card, which nothing reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from handful.data.seen import SeenRows
from handful.errors import RunError
from handful.runs.record import AGAIN, FILES, WEIGHTS_SHA, read_record, sealed
from handful.storage import foreign, new_folder, parse_json

__all__ = ["Run", "find_runs", "new_folder", "read_run", "refuse_foreign", "write_run"]

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
        content = self._content(WEIGHTS)
        if content is None:
            raise RunError(
                f"{self.folder}: expected {WEIGHTS}, found none", "the run folder is incomplete; train again"
            )
        try:
            return load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise RunError(f"{path}: not a readable safetensors file ({error})", "train again with --again") from None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl` or `predictions.jsonl`. Raises: RunError for a damaged file."""
        content, found = self._content(name) or b"", []
        for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), 1):
            found.append(self._object(name, line, f":{number}"))
        return found

    def landscape(self) -> dict[str, Any] | None:
        """The content of `landscape.json`, None where none was asked for. Raises: RunError for a damaged file."""
        content = self._content(LANDSCAPE)
        return None if content is None else self._object(LANDSCAPE, content)

    def seen(self) -> SeenRows | None:
        """`overlap_keys` of the rows it was trained and selected on, and the run it started from; None where an older
        version kept none, or they were removed. Raises: RunError for a damaged file.
        """
        if not (self.folder / SEEN).is_file():
            return None
        content = self._content(SEEN) or b""
        try:
            return SeenRows.loads(content.decode("ascii"))
        except ValueError as error:
            raise RunError(f"{self.folder / SEEN}: damaged ({error})", AGAIN) from None

    def check(self) -> None:
        """Whether every file is what was saved. Raises: RunError for the first that is not, or is missing.

        The digests of rows may be missing: who passes a run on may want to remove them, and that is said where it
        matters.
        """
        for name in (WEIGHTS, *self.record.get(FILES, ())):
            if self._content(name) is None and name == WEIGHTS:
                raise RunError(f"{self.folder}: expected {WEIGHTS}, found none", AGAIN)

    def _content(self, name: str) -> bytes | None:
        """The bytes of a file, None where there is none and none is wanted. Raises: RunError."""
        path = self.folder / name
        expected = self.record[WEIGHTS_SHA] if name == WEIGHTS else self.record.get(FILES, {}).get(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if expected is None or name in (WEIGHTS, SEEN):
                return None
            raise RunError(f"{self.folder}: expected {name}, found none", AGAIN) from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})", AGAIN) from None
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise RunError(f"{path}: the content is not what was saved (SHA-256 differs)", AGAIN)
        return content

    def _object(self, name: str, content: bytes, place: str = "") -> dict[str, Any]:
        try:
            found = parse_json(content)
            if isinstance(found, dict):
                return found
            problem = f"expected an object, found {type(found).__name__}"
        except ValueError as error:
            problem = str(error)
        raise RunError(f"{self.folder / name}{place}: damaged ({problem})", AGAIN)


def refuse_foreign(folder: Path) -> None:
    """Raises: RunError where a folder that is to be replaced holds what no run holds: somebody's own files."""
    known = (RECORD, WEIGHTS, METRICS, PREDICTIONS, SEEN, LANDSCAPE, CARD)
    if found := foreign(folder, known.__contains__):
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise RunError(
            f"{folder}: is in the way, and holds what is not of a run: {named}",
            "move it elsewhere, or give another --output; nothing was removed",
        )


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
    """Write a run folder atomically; an older run of that name is replaced only once the new one is whole.

    Raises: RunError where that cannot be written, or holds what is not of a run.
    """
    with new_folder(final, refuse_foreign) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial / WEIGHTS)
        digests: dict[str, str] = {}
        for name, content in (
            (METRICS, _json_lines(metrics)),
            (PREDICTIONS, _json_lines(predictions)),
            (SEEN, (SeenRows() | seen).dumps()),
            (LANDSCAPE, None if landscape is None else json.dumps(landscape, ensure_ascii=False, allow_nan=False)),
        ):
            if content is not None:
                encoded = content.encode()
                (partial / name).write_bytes(encoded)
                digests[name] = hashlib.sha256(encoded).hexdigest()
        full = sealed(record, _sha256(partial / WEIGHTS), digests)
        content = json.dumps(full, indent=1, ensure_ascii=False, allow_nan=False)
        (partial / RECORD).write_text(content, encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
    return Run(final, full)


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_run(folder: Path | str) -> Run:
    """The run in this folder. Raises: RunError when it is missing, incomplete, damaged or of a newer version."""
    folder = Path(folder)
    try:
        return _read_run(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{folder}: cannot be read ({reason})", "give the folder that `handful fit` printed") from None


def _read_run(folder: Path) -> Run:
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
    return Run(folder, read_record(path))


def find_runs(root: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """All finished runs below a folder, and the damaged ones, of which any file is not what was saved, with what is
    wrong with them.
    """
    good, bad = [], []
    for path in sorted(root.rglob(RECORD)):
        if any(part.startswith(".") and part.endswith((".partial", ".old")) for part in path.parts):
            continue
        try:
            found = read_run(path.parent)
            found.check()
            good.append(found)
        except RunError as error:
            bad.append((path.parent, error.message))
    return good, bad


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
