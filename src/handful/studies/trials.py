"""Trials of a search, and the journal that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

from handful.errors import RunError
from handful.methods.settings import check_settings, convert_settings, setting

Status = Literal["done", "pruned", "failed"]


@final
@dataclass(frozen=True)
class SearchSettings:
    """How to search; the same for every method of a study, so that each has the same number of trials."""

    name: ClassVar[str] = "search"

    strategy: Annotated[
        Literal["random", "grid", "optuna"], setting("random points, all points of a grid, or Optuna's TPE")
    ] = "random"
    trials: Annotated[int, setting("settings tried, the preset's own among them", ge=1, le=10_000)] = 12
    dev_fraction: Annotated[float, setting("share of the labelled rows that judge the trials", gt=0, lt=1)] = 0.3
    points: Annotated[int | None, setting("values of every interval in a grid", ge=2, le=100)] = None
    prune: Annotated[
        bool, setting("Optuna gives up trials whose dev curve lies below the median of those before", source="Optuna")
    ] = True

    def __post_init__(self) -> None:
        convert_settings(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SearchSettings:
        """The settings with these fields set; all wrong names, types and ranges are reported at once."""
        return cls(**check_settings(cls, settings))


@final
@dataclass(frozen=True)
class Trial:
    """One setting that was tried: `overrides` of the preset's values, by dotted name.

    `score` is the task's metric on the development rows and `loss` their NLL or mean squared error; `curve` the scores
    on the way, as (tenth of the run, score); `error` why the trial failed.
    """

    number: int
    overrides: dict[str, Any]
    status: Status
    seconds: float
    score: float | None = None
    loss: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    error: str | None = None


@final
class Journal:
    """The finished trials of one search, in a file of JSON lines; the first line says of which search.

    A line counts once its end is on disk: half a last line, of a killed process, is dropped.
    Raises: RunError for the journal of another search (naming what differs), a damaged line, or a full disk.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.path = path
        self.trials: list[Trial] = []
        identity = json.loads(json.dumps(identity))
        lines = self._whole_lines()
        if not lines:
            self._write({"search": identity})
            return
        try:
            header, *records = (json.loads(line) for line in lines)
            changed = _differences(header["search"], identity)
            self.trials = [_trial(record) for record in records]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: damaged ({error})", "remove it to search anew") from None
        if changed:
            raise RunError(
                f"{path}: holds the trials of another search:\n  " + "\n  ".join(changed),
                "give another folder, or remove it to search anew",
            )

    def append(self, trial: Trial) -> None:
        """Keep a trial, on disk before this returns."""
        self._write(asdict(trial))
        self.trials.append(trial)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror})", "free some space; the trials before are kept"
            ) from None

    def _whole_lines(self) -> list[bytes]:
        """The lines that have an end; what follows the last of them is cut off the file."""
        try:
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror})") from None
        return content[:whole].splitlines()


def _trial(record: dict[str, Any]) -> Trial:
    curve = tuple((int(tenth), float(score)) for tenth, score in record.pop("curve"))
    return Trial(**record, curve=curve)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A line for each name whose value is not what it was."""
    lines = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: was {old!r}, is {new!r}")
    return lines
