"""What one run is: model, method, data and settings, resolved so that every value has a reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

from handful.data.task import TaskKind
from handful.errors import EMPTY_NAME, ConfigError, RunError, in_words, nearest, shown
from handful.evaluation.landscape import CORNERS
from handful.evaluation.predict import check_predictor
from handful.evaluation.text.generate import writing_vertex
from handful.evaluation.text.options import GenerationOptions
from handful.methods import import_class, method_class, own_method_class
from handful.methods.base import AbstractMethod, Preset, check_class, check_object, code_of, is_ours, path_of
from handful.methods.settings import WrongSettings, check_settings
from handful.objectives import objective_of
from handful.runs.defaults import METHOD, MODEL, PRESET, WRITING_METHOD, WRITING_MODEL
from handful.runs.options import RunOptions
from handful.training.config import TrainingConfig


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
    """A resolved run: everything that decides its numbers, except the content of data and model.

    `start` is the key of the run whose parameters it starts from, empty where it starts afresh. `generation` is None
    where nothing is to be written, or where nobody said how (`suited` then takes the defaults). `device` is one of this
    machine, such as "cuda:0".
    """

    model: str
    method: AbstractMethod
    training: TrainingConfig
    options: RunOptions
    preset: str
    choices: tuple[Choice, ...] = field(default=(), compare=False)
    start: str = ""
    generation: GenerationOptions | None = None
    device: str = "cpu"

    def suited(self, kind: TaskKind) -> RunSpec:
        """The spec for tasks of a kind. Raises: ConfigError for settings or a method that such tasks cannot have."""
        if self.training.class_weight != "none" and not objective_of(kind).has_classes:
            raise ConfigError(f"training.class_weight: a task of kind {kind!r} has no classes", "leave it out")
        if self.options.threshold is not None and not objective_of(kind).thresholds:
            raise ConfigError(f"run.threshold: a task of kind {kind!r} has not several labels per text", "leave it out")
        if not objective_of(kind).generates:
            if self.generation is not None:
                raise ConfigError(f"generation.*: nothing is written in a task of kind {kind!r}", "leave it out")
            return self
        if not self.method.writes:
            raise ConfigError(
                f"method {self.method.name!r} writes nothing; it is for labels", f"use {WRITING_METHOD!r}"
            )
        writing_vertex(self.options.predictor)
        for name, found, possible, reason in (
            ("run.pooling", self.options.pooling, "auto", "a model that writes has no features to pool"),
            ("run.landscape", self.options.landscape, 0, "it is measured on scores of labels, not on texts"),
            ("training.validation", self.training.validation, "deterministic", "texts are judged at the midpoint"),
        ):
            if found != possible:
                raise ConfigError(f"{name}: {reason}, found {found!r}", f"set it to {possible!r}, as it is by itself")
        return replace(self._with_writing_values(), generation=self.generation or GenerationOptions())

    def _with_writing_values(self) -> RunSpec:
        """With the preset's values for writing in place of those it has for labels, where nobody chose others."""
        preset = type(self.method).presets.get(self.preset)
        chosen = {choice.name: choice.value for choice in self.choices}
        taken = {
            name: value
            for name, value in (preset.writing if preset else {}).items()
            if chosen.get(f"training.{name}") == getattr(self.training, name)
        }
        choices = tuple(
            replace(choice, value=taken.get(choice.name.removeprefix("training."), choice.value))
            for choice in self.choices
        )
        return replace(self, training=replace(self.training, **taken), choices=choices)

    def resolved(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        found: dict[str, Any] = {
            "model": self.model,
            "method": {"name": self.method.name, **self.method.settings()},
            "training": self.training.settings(),
            "run": asdict(self.options),
        }
        found |= {} if is_ours(type(self.method)) else {"method_path": path_of(type(self.method))}
        found |= {"start": self.start} if self.start else {}
        return found | ({"generation": self.generation.settings()} if self.generation else {})

    def key(self, data_fingerprint: str, backbone_fingerprint: str, meaning: Sequence[Any] = ()) -> str:
        """Identity of the run's numbers: SHA-256 of the resolved spec, the rows and the weights, and of what the labels
        mean: rows hold the indices of classes alone. Without a `meaning`, the key that runs had before it was in.

        And of the kind of device where it is no CPU, as kernels round otherwise there; which GPU it is does not count.
        """
        deciding = self.resolved() | {"method": self.method.identity()}
        del deciding["run"]["landscape"]  # it is measured afterwards
        if self.options.threshold is None:
            del deciding["run"]["threshold"]  # as in runs from before there was such a setting
        if self.training.class_weight == "none":
            del deciding["training"]["class_weight"]  # as in runs from before there was such a setting
        for name in self.method.added:
            if deciding["method"][name] == type(self.method).__dataclass_fields__[name].default:
                del deciding["method"][name]
        if not is_ours(type(self.method)):
            deciding["method_code"] = code_of(type(self.method))
        kind = self.device.partition(":")[0]
        content = [deciding, data_fingerprint, backbone_fingerprint, *([kind] if kind != "cpu" else [])]
        content += [list(meaning)] if meaning else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


MethodLike = str | AbstractMethod | type[AbstractMethod]
"""A method by name, as an object with its settings, or as a class, which is the method with its default settings."""


def resolve(
    method: MethodLike | None = None,
    *,
    model: str | None = None,
    preset: str = PRESET,
    overrides: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
    kind: TaskKind | None = None,
) -> RunSpec:
    """The run that a method's preset and the overrides make, on tasks of a `kind` where that is known.

    `overrides` has dotted names, such as "method.prefix_length", "training.epochs", "run.shots" or
    "generation.beams"; a bare name is looked up in all four. `origins` says where "method", "preset" or an override was
    given, such as a file, for errors. A method object has all its settings: of a preset it takes those of training and
    of the run alone, and settings of the method beside it are refused.
    Raises: ConfigError with everything that is wrong at once.
    """
    _refuse_no_text(method, model, preset, overrides or {}, origins or {})
    method, model, defaults = _with_defaults(method, model, kind)
    problems: dict[str, str] = {}
    cls, chosen = None, Preset("none")
    try:
        cls = class_of(method)
        if preset not in cls.presets:
            problems["preset"] = f"method {cls.name!r} has no preset {preset!r}; {nearest(preset, cls.presets)}"
        chosen = cls.presets.get(preset, chosen)
    except ConfigError as error:
        problems["method"] = f"{error.message}; {error.hint}"
    names = _names(cls)
    parts = _sort_overrides(
        {_full_name(name, names): value for name, value in (overrides or {}).items()}, names, problems
    )
    built: dict[str, Any] = {}
    if isinstance(method, AbstractMethod):
        chosen = _beside_object(method, preset, chosen, parts["method"], problems)
        built["method"] = method
    for section, settings, preset_values in (
        ("method", None if built else cls, chosen.settings),
        ("training", TrainingConfig, chosen.training),
        ("run", RunOptions, chosen.run),
        ("generation", GenerationOptions if parts["generation"] else None, {}),
    ):
        if settings is not None:
            built[section] = _build(section, settings, {**preset_values, **parts[section]}, problems)
    _check_together(built, problems)
    if problems or cls is None:
        where = {_full_name(name, names): f"{origin}: " for name, origin in (origins or {}).items()}
        lines = [f"{where.get(name, '')}{name}: {problem}" for name, problem in problems.items()]
        raise ConfigError(
            f"{len(lines)} wrong setting{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines),
            f"`handful methods {cls.name}` lists every field" if cls else "`handful methods` lists every method",
        )
    choices = (*defaults, *_choices(chosen, parts, preset))
    spec = RunSpec(
        model, built["method"], built["training"], built["run"], preset, choices, generation=built.get("generation")
    )
    return spec.suited(kind) if kind else spec


def class_of(method: MethodLike) -> type[AbstractMethod]:
    """The class of a method. Raises: ConfigError for an unknown name, and for what cannot be saved with a run."""
    if isinstance(method, str):
        return method_class(method)
    if isinstance(method, AbstractMethod):
        check_object(method)
        return type(method)
    check_class(method)
    return method


def name_of(method: MethodLike | None) -> str | None:
    """The name of a method, however it is given."""
    return method if method is None or isinstance(method, str) else method.name


def _beside_object(
    method: AbstractMethod, name: str, preset: Preset, given: dict[str, Any], problems: dict[str, str]
) -> Preset:
    """The preset without what it says of the method; settings of the method beside the object go into `problems`."""
    cls = type(method).__name__
    problems |= {
        f"method.{key}": f"expected no setting of the method beside an object; put it into {cls}({key}={value!r})"
        for key, value in given.items()
    }
    found = method.settings()
    others = {key: value for key, value in preset.settings.items() if found.get(key) != value} if name != PRESET else {}
    if others:
        values = ", ".join(f"{key}={value!r}" for key, value in others.items())
        problems["preset"] = f"{name!r} is for other settings than the object's; make it {cls}({values}, …)"
    given.clear()
    return replace(preset, settings={})


def recorded_method(record: Mapping[str, Any]) -> AbstractMethod:
    """The method of a run by its record.

    Raises: ConfigError for an unknown name or wrong settings; RunError where the package of another's is missing.
    """
    settings, path = dict(record["spec"]["method"]), record["spec"].get("method_path")
    name = settings.pop("name")
    if path is None:
        return own_method_class(name).from_record(settings)
    package = record.get("method_package")
    of = f"of the package {package} ({path})" if package else f"of another package than handful ({path})"
    try:
        cls = import_class(path)
        check_class(cls)
    except Exception as error:  # noqa: BLE001 - code of another package can fail in any way when it is imported
        hint = f"install it: pip install {package.replace(' ', '==')}" if package else "put its module on the path"
        found = f"this run is of the method {name!r} {of}, which cannot be imported: {in_words(error)}"
        raise RunError(found, f"{hint}, then try again") from None
    return cls.from_record(settings)


def _refuse_no_text(
    method: object, model: object, preset: object, overrides: Mapping[Any, Any], origins: Mapping[str, str]
) -> None:
    """Raises: ConfigError for names that are no text, or an empty one, of which nothing else can be said."""
    named = {"method": method, "model": model, "preset": preset}
    if isinstance(method, AbstractMethod) or (isinstance(method, type) and issubclass(method, AbstractMethod)):
        del named["method"]
    wrong = [
        f"{f'{origins[name]}: ' if name in origins else ''}{name}: expected a name, found {shown(value)}"
        for name, value in named.items()
        if value is not None and not isinstance(value, str)
    ]
    wrong += [
        f"{f'{origins[name]}: ' if name in origins else ''}{name}: {EMPTY_NAME}"
        for name, value in named.items()
        if isinstance(value, str) and not value.strip()
    ]
    wrong += [f"settings: expected names, found {shown(name)}" for name in overrides if not isinstance(name, str)]
    if wrong:
        count = f"{len(wrong)} wrong setting{'s' * (len(wrong) > 1)}"
        raise ConfigError(f"{count}:\n  " + "\n  ".join(wrong), "`handful methods` and `handful models` list names")


def full_names(method: MethodLike, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a method under their dotted names: "epochs" and "training.epochs" are one setting."""
    names = _names(class_of(method))
    return {_full_name(name, names): value for name, value in overrides.items()}


def _build(section: str, kind: type, settings: dict[str, Any], problems: dict[str, str]) -> Any:
    """The section's dataclass, or None with what is wrong put into `problems`."""
    try:
        return kind(**check_settings(kind, settings))
    except WrongSettings as error:
        problems |= {f"{section}.{name}": text for name, text in error.problems.items()}
    except ConfigError as error:  # settings that are right each, but not together
        problems[section] = f"{error.message}; {error.hint}"
    return None


def _check_together(built: Mapping[str, Any], problems: dict[str, str]) -> None:
    """What is wrong between sections."""
    method, training, options = (built.get(section) for section in ("method", "training", "run"))
    if options and method:
        try:
            check_predictor(options.predictor, getattr(method, "num_vertices", 1))
        except ConfigError as error:
            problems["run.predictor"] = error.message
    if options and options.landscape:
        if method and getattr(method, "num_vertices", 1) < CORNERS:
            problems["run.landscape"] = f"expected at least {CORNERS} vertices, found fewer in {method.name!r}"
        elif options.dev == "none":
            problems["run.landscape"] = "is measured on development rows; set run.dev to 'carved' or 'separate'"
    if options and training and training.epochs and training.selection == "best" and options.dev == "none":
        problems["run.dev"] = (
            "training.selection = 'best' needs development rows, found 'none'; use 'carved' or 'separate'"
        )


def _names(cls: type[AbstractMethod] | None) -> dict[str, set[str]]:
    """The names of the settings in each section."""
    kinds = {"method": cls, "training": TrainingConfig, "run": RunOptions, "generation": GenerationOptions}
    found = {section: {f.name for f in fields(kind)} if kind else set() for section, kind in kinds.items()}
    return found | {"method": found["method"] | set(cls.former if cls else ())}


def _full_name(name: str, names: Mapping[str, set[str]]) -> str:
    """A bare name with the one section that knows it; any other name as it is."""
    sections = [section for section in names if name in names[section]]
    return f"{sections[0]}.{name}" if len(sections) == 1 else name


def _sort_overrides(
    overrides: Mapping[str, Any], names: Mapping[str, set[str]], problems: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Overrides by section; names without a section are put into `problems`."""
    parts: dict[str, dict[str, Any]] = {section: {} for section in names}
    for full_name, value in overrides.items():
        section, _, name = full_name.rpartition(".")
        if section in parts:
            parts[section][name] = value
        elif section:
            problems[full_name] = f"expected a name in {', '.join(names)}; {nearest(section, names)}"
        else:
            problems[full_name] = f"no such setting; {nearest(name, set().union(*names.values()))}"
    return parts


def _with_defaults(
    method: MethodLike | None, model: str | None, kind: TaskKind | None
) -> tuple[MethodLike, str, tuple[Choice, ...]]:
    """A method and the name of a model, and the choices that were made where none was named."""
    names, what = (WRITING_METHOD, WRITING_MODEL), "texts to write"
    if not (kind and objective_of(kind).generates):
        names, what = (METHOD, MODEL), "labels"
    chosen = []
    if method is None:
        method = names[0]
        chosen.append(Choice("method", method, f"none was named; the default for {what}"))
    if model is None:
        model = names[1]
        chosen.append(Choice("model", model, f"none was named; the default for {what}"))
    return method, model, tuple(chosen)


def _choices(preset: Preset, parts: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Choice, ...]:
    chosen = (("method", preset.settings), ("training", preset.training), ("run", preset.run))
    return tuple(
        Choice(f"{section}.{key}", value, f"preset {name!r}: {preset.reason}")
        for section, values in chosen
        for key, value in values.items()
        if key not in parts[section]
    )
