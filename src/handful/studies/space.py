"""The search space of one method in a study: the method's own, or the recipe's, checked as a whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from handful.errors import ConfigError, nearest
from handful.methods import method_class
from handful.methods.base import AbstractMethod
from handful.methods.search_space import Interval, OneOf, SearchSpace
from handful.methods.settings import wrong_settings
from handful.training.config import TrainingConfig

BETWEEN = 1 / 3
"""Share of an interval at which a value is tried besides its ends."""


def read_space(method: str, table: Mapping[str, Any] | None = None, *, fixed: Collection[str] = ()) -> SearchSpace:
    """What to search for a method: its own space without the settings that are `fixed`, or a recipe's table instead.

    A table maps names as in overrides to a list of values, or to { low, high, log } for an interval; an empty one
    turns the search off. Raises: ConfigError with everything that is wrong at once.
    """
    cls = method_class(method)
    taken = {_full_name(name, cls) for name in fixed}
    if table is None:
        return {name: dimension for name, dimension in cls.search_space.items() if name not in taken}
    space: dict[str, Interval | OneOf] = {}
    problems: dict[str, str] = {}
    for given, value in table.items():
        name = _full_name(given, cls)
        try:
            dimension = _dimension(value)
            problem = "it is searched and has a fixed value too: drop one" if name in taken else None
            problem = problem or ("it is given twice" if name in space else _wrong(cls, name, dimension))
            space[name] = dimension
        except ConfigError as error:
            problem = error.message
        if problem:
            problems[given] = problem
    if problems:
        lines = [f"search_space.{name}: {problem}" for name, problem in problems.items()]
        raise ConfigError(
            f"{len(lines)} wrong line{'s' * (len(lines) > 1)} in the search space of {method!r}:\n  "
            + "\n  ".join(lines),
            f"`handful methods {method}` shows every field and the method's own space",
        )
    return space


def _sections(cls: type[AbstractMethod]) -> dict[str, type]:
    """What can be searched. Not the settings of the run: with other rows or features, scores on dev do not compare."""
    return {"method": cls, "training": TrainingConfig}


def _full_name(name: str, cls: type[AbstractMethod]) -> str:
    """A bare name with the section that knows it; any other as it is."""
    known = [section for section, kind in _sections(cls).items() if name in {f.name for f in fields(kind)}]
    return f"{known[0]}.{name}" if len(known) == 1 else name


def _dimension(value: Any) -> Interval | OneOf:
    """A list of values or a table { low, high, log }. Raises: ConfigError."""
    if isinstance(value, list | tuple):
        return OneOf(tuple(tuple(item) if isinstance(item, list) else item for item in value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a list of values or {{ low = …, high = …, log = … }}, found {value!r}")
    unknown = [f"no such key {key!r}; {nearest(key, ('low', 'high', 'log'))}" for key in value if key not in _KEYS]
    missing = [f"{key!r} is missing" for key in ("low", "high") if key not in value]
    types = [
        f"{key}: expected {what}, found {value[key]!r}"
        for key, (kinds, what) in _KEYS.items()
        if key in value and (not isinstance(value[key], kinds) or (isinstance(value[key], bool) != (key == "log")))
    ]
    if problems := unknown + missing + types:
        raise ConfigError("; ".join(problems))
    return Interval(float(value["low"]), float(value["high"]), value.get("log", False))


_KEYS: dict[str, tuple[Any, str]] = {
    "low": ((int, float), "a number"),
    "high": ((int, float), "a number"),
    "log": (bool, "true or false"),
}


def _wrong(cls: type[AbstractMethod], name: str, dimension: Interval | OneOf) -> str | None:
    """What is wrong with a dimension of this name: no such setting, or a value that the setting does not take."""
    sections = _sections(cls)
    section, _, field = name.rpartition(".")
    if section not in sections:
        names = sections if section else {f.name for kind in sections.values() for f in fields(kind)}
        what = f"expected a name in {' or '.join(sections)}" if section else "no such setting"
        return f"{what}; {nearest(section or name, names)}"
    kind = sections[section]
    if field not in {f.name for f in fields(kind)}:
        return wrong_settings(kind, {field: None})[field]
    if isinstance(dimension, Interval) and get_type_hints(kind)[field] is int:
        return "it takes whole numbers: give a list of values"
    tried = dimension.values if isinstance(dimension, OneOf) else (dimension.low, dimension.at(BETWEEN), dimension.high)
    return next((wrong[field] for value in tried if (wrong := wrong_settings(kind, {field: value}))), None)
