"""Settings: fields of a frozen dataclass, checked all at once by the types and bounds of their annotations.

Importing this imports no torch: what is wrong with a setting can be said before that takes its seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, ValidationError, create_model
from pydantic.fields import FieldInfo

from handful.errors import ConfigError, nearest, shown


def setting(description: str, *, source: str = "ours", unit: str = "", **bounds: Any) -> FieldInfo:
    """Annotation of one hyperparameter: what it does, where its default comes from, its unit and bounds.

    `source` names the paper and section, or "ours". `bounds` are pydantic's (`ge`, `gt`, `le`, `lt`).
    """
    return Field(description=description, json_schema_extra={"source": source, "unit": unit}, **bounds)


@cache
def settings_model(cls: type):
    hints = get_type_hints(cls, include_extras=True)
    definitions: dict[str, Any] = {f.name: (hints[f.name], default_of(f)) for f in fields(cls)}
    try:
        return create_model(cls.__name__, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **definitions)
    except PydanticSchemaGenerationError as error:
        raise ConfigError(
            f"{cls.__name__}: the type of a setting cannot be checked: {error.message.splitlines()[0]}",
            "settings are numbers, texts, booleans, None, and tuples, lists or dicts of these",
        ) from None


def default_of(field: Any) -> Any:
    """The default of a dataclass's field, `...` where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return ... if field.default is MISSING else field.default


def describe_settings(cls: type) -> list[dict[str, Any]]:
    """One record a hyperparameter: name, type, bounds, default, unit, description and source."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    records = []
    for name, info in settings_model(cls).model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        kind = str(get_type_hints(cls)[name]).replace("typing.", "").removeprefix("<class '").removesuffix("'>")
        limits = [
            (sign, getattr(bound, key)) for bound in info.metadata for key, sign in signs.items() if hasattr(bound, key)
        ]
        records.append(
            {
                "name": name,
                "type": kind,
                "bounds": ", ".join(f"{sign} {value:g}" for sign, value in limits),
                "default": info.default,
                "unit": extra.get("unit", ""),
                "description": info.description or "",
                "source": extra.get("source", "ours"),
            }
        )
    return records


class WrongSettings(ConfigError):
    """Settings of a dataclass that are wrong; `problems` says what is wrong with each."""

    def __init__(self, cls: type, problems: Mapping[str, str]):
        self.problems = dict(problems)
        lines = "".join(f"\n  {name}: {problem}" for name, problem in problems.items())
        hint = f"`handful methods {cls.name}` lists every field with its type, default and reason"
        super().__init__(f"{len(problems)} wrong setting(s) for {cls.name!r}:{lines}", hint)


def wrong_settings(cls: type, settings: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each setting of a dataclass whose fields carry `setting(...)`; empty when all are right."""
    try:
        check_settings(cls, settings)
    except WrongSettings as error:
        return error.problems
    return {}


def check_settings(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a dataclass whose fields carry `setting(...)`, with values converted to their types.

    `cls.name` stands in the error. Raises: WrongSettings naming every wrong one.
    """
    numbers = _number_fields(cls)
    problems = {
        name: f"expected {numbers[name]}, found {shown(value)}"
        for name, value in settings.items()
        if name in numbers and _holds_truth(value)  # pydantic would take True as 1
    }
    try:
        found = settings_model(cls)(**settings)
    except ValidationError as error:
        names = [f.name for f in fields(cls)]
        for problem in error.errors():
            name, *inner = (str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                instead = getattr(cls, "former", {}).get(name) or nearest(name, names)
                problems[name] = f"{cls.name} has no such field; {instead}"
            elif name not in problems:  # a union complains once for each of its types
                where = f"item {inner[-1]}: " if inner and inner[-1].isdigit() else ""
                expected = problem["msg"].lower().partition(", unable")[0].replace("input should be", "expected")
                problems[name] = f"{where}{expected}, found {shown(problem['input'])}"
        raise WrongSettings(cls, problems) from None
    if problems:
        raise WrongSettings(cls, problems)
    return found.model_dump(include=set(settings))


@cache
def _number_fields(cls: type) -> dict[str, str]:
    """What is expected in the fields that take numbers and no truth values."""

    def kinds(hint: Any) -> set[Any]:
        return {hint}.union(*map(kinds, get_args(hint))) if get_origin(hint) is not Literal else set()

    hints = get_type_hints(cls)
    found = {f.name: kinds(hints[f.name]) for f in fields(cls)}
    numbers = {name: of for name, of in found.items() if {int, float} & of and bool not in of}
    return {name: "a valid number" if float in of else "a valid integer" for name, of in numbers.items()}


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_truth, value)))


def convert_settings(instance: Any) -> None:
    """`check_settings` for a frozen dataclass that was just made: its fields get their types. Raises: ConfigError."""
    given = {f.name: getattr(instance, f.name) for f in fields(instance)}
    for name, value in check_settings(type(instance), given).items():
        object.__setattr__(instance, name, value)
