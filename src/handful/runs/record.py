"""The record of a run, `run.json`: read with its checksum and the types of its fields, so that no damage is silent.

Two things are checked. The checksum, SHA-256 over the content, finds every change since the file was written; records
of the format 1 have none. The types find what is no record of a run at all, whoever made it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from handful.data.task import TaskKind
from handful.errors import RunError
from handful.evaluation.baseline import Baseline
from handful.evaluation.estimate import Estimate
from handful.evaluation.metrics import get_metric
from handful.storage import read_json

FORMAT_VERSION = 2
"""1 had no checksums."""

CHECKSUM, FORMAT, FILES, WEIGHTS_SHA = "checksum", "format_version", "files", "weights_sha256"

SEALS = frozenset((CHECKSUM, FORMAT, FILES, WEIGHTS_SHA))
"""What a record says about the folder it stands in; a record that is written elsewhere gets its own."""

AGAIN = "restore the file, or train again with --again"


class WrittenBefore(UserWarning):
    """A run folder is older than checksums."""


def _estimate(value: dict[str, Any]) -> dict[str, Any]:
    Estimate.from_dict(value)
    return value


def _baseline(value: dict[str, Any]) -> dict[str, Any]:
    members = value.get("members", {})
    if not isinstance(members, dict):
        raise ValueError("expected the baselines of members by their names")
    for one in (value, *members.values()):
        if not isinstance(one, dict) or "answer" not in one or type(one.get("ties", 1)) is not int:
            raise ValueError("expected a baseline with an answer and scores")
        Baseline.from_dict(one)
    return value


def _metric(name: str) -> str:
    get_metric(name)
    return name


Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Score = Annotated[dict[str, Any], AfterValidator(_estimate)]
Constant = Annotated[dict[str, Any], AfterValidator(_baseline)]
Metric = Annotated[str, AfterValidator(_metric)]


class _Part(BaseModel):
    """A table of the record; what a later version adds is let through."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


@final
class _Choice(_Part):
    name: str
    value: Any
    reason: str


@final
class _Columns(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"


class _Member(_Part):
    name: str
    kind: TaskKind
    labels: list[str]
    metric: Metric
    instruction: str = ""
    columns: _Columns = _Columns()
    label_separator: str | None = None
    label_flags: bool | None = None


@final
class _Task(_Member):
    origin: str
    notes: list[str]
    members: list[_Member] = []


@final
class _Rows(_Part):
    train: Count
    dev: Count
    test: Count
    dropped_duplicates: Count
    dropped_overlap: Count
    dropped_contradictions: Count = 0
    truncated: dict[str, Count]
    truncated_references: Count = 0
    target_length: Count | None = None
    longest: Count = 0
    most_tokens: Count = 0
    coverage: dict[str, dict[str, Count]] = {}
    max_length: int
    fingerprint: str
    cell_fingerprint: str = ""
    untested_classes: list[str] = []


@final
class _Backbone(_Part):
    name: str
    hub_name: str | None = None
    family: str
    kind: str
    pooling: str | None
    fingerprint: str
    parameters: Positive
    device: str = "cpu"
    device_name: str = "cpu"
    dtype: str = "float32"


@final
class _Evaluation(_Part):
    """One point of the history; beside the score stands what the adapter says of itself."""

    __pydantic_extra__: dict[str, float | None]

    step: Count
    epoch: Count
    score: float
    deviation: float


@final
class _Fit(_Part):
    parameters: Count
    steps: Count
    chosen_step: Count
    seconds: float
    stopped: str | None
    history: list[_Evaluation]
    scoring_seconds: float
    peak_memory_mb: float | None


@final
class _Method(_Part):
    name: str


@final
class _Options(_Part):
    shots: Positive | None
    seed: Annotated[int, Field(ge=0)]
    pooling: str
    max_length: int


@final
class _Spec(_Part):
    model: str
    method: _Method
    method_path: str | None = None
    training: dict[str, Any]
    run: _Options
    start: str = ""
    generation: dict[str, Any] = {}


@final
class _Study(_Part):
    name: str
    label: str
    trials: Count
    start: str | None = None


@final
class _Adapter(_Part):
    removable: float = 0
    removable_compact: float = 0
    tasks: list[str] = []


@final
class _Threshold(_Part):
    value: Annotated[float, Field(gt=0, lt=1)]
    reason: str


@final
class _Record(_Part):
    key: str
    created: str
    versions: dict[str, str]
    spec: _Spec
    preset: str
    choices: list[_Choice]
    notes: list[str]
    method_package: str | None = None
    task: _Task
    rows: _Rows
    backbone: _Backbone
    fit: _Fit
    temperature: float
    threshold: _Threshold | None = None
    adapter: _Adapter
    scores: dict[str, Score]
    baseline: Constant | None = None
    members: dict[str, dict[str, Score]] = {}
    signatures: dict[str, str] = {}
    made_of: list[str] = []
    study: _Study = Field(default=cast(Any, None))  # absent, or a table: never null
    weights_sha256: str
    files: dict[str, str] = {}


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 over the content of a record but its checksum, in whatever order its keys stand."""
    content = {name: value for name, value in record.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sealed(record: Mapping[str, Any], weights: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The record with the digests of the files beside it, and its checksum."""
    content = {name: value for name, value in record.items() if name not in SEALS}
    full = {FORMAT: FORMAT_VERSION, **content, WEIGHTS_SHA: weights, FILES: dict(files)}
    full = json.loads(json.dumps(full, allow_nan=False))  # as it will be read: a checksum must not know of tuples
    return full | {CHECKSUM: checksum(full)}


def read_record(path: Path) -> dict[str, Any]:
    """The record in this file. Raises: RunError where it is damaged, no record, or of a newer version.

    Warns, once, of records that have no checksum.
    """
    try:
        record = read_json(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})", AGAIN) from None
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error})", AGAIN) from None
    version = _version(record, path)
    if version > 1 or CHECKSUM in record:
        if record.get(CHECKSUM) != checksum(record):
            raise RunError(f"{path}: damaged (its content is not what was saved: the checksum differs)", AGAIN)
    else:
        warnings.warn(
            "a run folder was read that is older than checksums: its values have the right types, but damage that "
            "changes no type goes unnoticed (training once more with --again gives it a checksum)",
            WrittenBefore,
            stacklevel=3,
        )
    _check_types(record, path)
    return record


def _version(record: Any, path: Path) -> int:
    version = record.get(FORMAT) if isinstance(record, dict) else None
    if type(version) is not int or version < 1:
        found = f"no object, but {type(record).__name__}" if not isinstance(record, dict) else f"{FORMAT} {version!r}"
        raise RunError(f"{path}: damaged: not the record of a run (found {found})", AGAIN)
    if version > FORMAT_VERSION:
        raise RunError(
            f"{path.parent}: written by a newer handful (run format {version}; this one reads up to {FORMAT_VERSION})",
            "upgrade handful",
        )
    return version


def _check_types(record: dict[str, Any], path: Path) -> None:
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first, *others = error.errors()
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected").splitlines()[0]
        found = "" if first["type"] == "missing" else f", found {repr(first['input'])[:60]}"
        more = f"; {len(others)} more wrong" if others else ""
        problem = f"{where}: {said[:1].lower()}{said[1:]}{found}{more}"
        raise RunError(f"{path}: damaged: not the record of a run ({problem})", AGAIN) from None
