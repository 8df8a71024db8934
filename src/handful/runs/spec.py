"""What one run is: model, method, data and settings, resolved so that every value has a reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, final

from handful.data.split import DevRows
from handful.errors import ConfigError, HandfulError, nearest
from handful.evaluation.predict import check_predictor
from handful.methods import method_class
from handful.methods.base import AbstractMethod, Preset, check_settings, setting
from handful.training.config import TrainingConfig


@final
@dataclass(frozen=True)
class RunOptions:
    """Settings of a run that belong neither to the method nor to training."""

    name: ClassVar[str] = "run"

    shots: Annotated[int | None, setting("labelled rows used in all; none: every row of the file", ge=2)] = None
    seed: Annotated[int, setting("drives rows, start, order and draws", ge=0)] = 0
    dev: Annotated[DevRows, setting("development rows: carved from the shots, separate, or none")] = "none"
    dev_fraction: Annotated[float, setting("share of the shots carved for development", gt=0, lt=1)] = 0.2
    dev_rows: Annotated[int, setting("most rows of a separate development set", unit="rows", ge=1)] = 1000
    pooling: Annotated[
        Literal["auto", "family", "mean", "last"],
        setting("features: the family's own pooler, the mean over tokens, the last token; auto: mean for encoders"),
    ] = "auto"
    max_length: Annotated[int, setting("tokens kept of a row", unit="tokens", ge=4)] = 128
    predictor: Annotated[str, setting("midpoint, ensemble, draw or vertex:N, for the test score")] = "midpoint"
    draws: Annotated[int, setting("random points S for the ensemble and the disagreement", ge=2, le=1000)] = 10

    def __post_init__(self) -> None:
        check_settings(type(self), {f.name: getattr(self, f.name) for f in fields(self)})


@final
@dataclass(frozen=True)
class Choice:
    """One value that was chosen for the user, and why."""

    name: str
    value: Any
    reason: str


@final
@dataclass(frozen=True)
class RunSpec:
    """A resolved run: everything that decides its numbers, except the content of data and model."""

    model: str
    method: AbstractMethod
    training: TrainingConfig
    options: RunOptions
    preset: str
    choices: tuple[Choice, ...] = field(default=(), compare=False)

    def resolved(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return {
            "model": self.model,
            "method": {"name": self.method.name, **self.method.settings()},
            "training": self.training.settings(),
            "run": asdict(self.options),
        }

    def key(self, data_fingerprint: str, backbone_fingerprint: str) -> str:
        """Identity of the run's numbers: SHA-256 of the resolved spec, the rows and the weights."""
        content = json.dumps([self.resolved(), data_fingerprint, backbone_fingerprint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


SECTIONS = ("method", "training", "run")


def resolve(
    method: str,
    *,
    model: str = "minilm",
    preset: str = "default",
    overrides: Mapping[str, Any] | None = None,
) -> RunSpec:
    """The run that a method's preset and the overrides make.

    `overrides` has dotted names, such as "method.prefix_length", "training.epochs" or "run.shots"; a bare name is
    looked up in all three. Raises: ConfigError with everything that is wrong at once.
    """
    cls = method_class(method)
    if preset not in cls.presets:
        raise ConfigError(f"method {method!r} has no preset {preset!r}", nearest(preset, cls.presets))
    chosen = cls.presets[preset]
    parts, problems = _sort_overrides(cls, overrides or {})
    built: dict[str, Any] = {}
    sections = (
        ("method", cls, chosen.settings),
        ("training", TrainingConfig, chosen.training),
        ("run", RunOptions, chosen.run),
    )
    for section, kind, defaults in sections:
        try:
            built[section] = kind(**check_settings(kind, {**defaults, **parts[section]}))
        except HandfulError as error:
            problems.append(error.message)
    if "run" in built and built["run"].predictor != "midpoint":
        try:
            check_predictor(built["run"].predictor, getattr(built.get("method"), "num_vertices", 1))
        except ConfigError as error:
            problems.append(error.message)
    if problems:
        raise ConfigError("\n".join(problems), f"`handful methods {method}` lists every field")
    return RunSpec(model, built["method"], built["training"], built["run"], preset, _choices(chosen, parts, preset))


def _sort_overrides(cls: type[AbstractMethod], overrides: Mapping[str, Any]) -> tuple[dict[str, dict], list[str]]:
    """Overrides by section, and complaints about names that no section knows."""
    known = {"method": cls, "training": TrainingConfig, "run": RunOptions}
    names = {section: {f.name for f in fields(kind)} for section, kind in known.items()}
    parts: dict[str, dict] = {section: {} for section in SECTIONS}
    problems = []
    for dotted, value in overrides.items():
        section, _, name = dotted.rpartition(".")
        matches = [s for s in SECTIONS if name in names[s]] if not section else [section] if section in SECTIONS else []
        if len(matches) == 1:
            parts[matches[0]][name] = value
        elif section and section not in SECTIONS:
            problems.append(f"{dotted}: expected a name in {', '.join(SECTIONS)}; {nearest(section, SECTIONS)}")
        else:
            problems.append(f"{dotted}: no such setting; {nearest(name, set().union(*names.values()))}")
    return parts, problems


def _choices(preset: Preset, parts: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Choice, ...]:
    chosen = (("method", preset.settings), ("training", preset.training), ("run", preset.run))
    return tuple(
        Choice(f"{section}.{key}", value, f"preset {name!r}: {preset.reason}")
        for section, values in chosen
        for key, value in values.items()
        if key not in parts[section]
    )
