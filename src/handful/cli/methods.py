"""`handful methods`: every method, or one with its fields and presets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.console import say, show, show_json, show_table
from handful.errors import ConfigError

if TYPE_CHECKING:
    from handful.methods.search_space import SearchSpace


def methods(
    name: Annotated[str | None, typer.Argument(help="One method.", show_default="all of them")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods, or one method's fields: type, default, bounds, reason; and its presets."""
    from handful.methods import method_class

    if name is None:
        listed, problems = list_methods()
        show_json(listed) if as_json else show_table(
            ("method", "what it is", "source"), [list(m.values())[:3] for m in listed]
        )
        for problem in problems:
            say(problem)
        return
    cls = method_class(name)
    if as_json:
        show_json(describe(cls))
        return
    _show(describe(cls))
    _show_space(cls.search_space)


def list_methods() -> tuple[list[dict[str, Any]], list[str]]:
    """Every method that works, of other packages too, and in words what is wrong with the others."""
    from handful.methods import METHODS, method_class, method_names, own_method_class, package_of, plugins

    listed, problems = [], []
    for name in method_names():
        try:
            cls = method_class(name)
        except ConfigError as error:
            problems.append(f"{error.message}; {error.hint}")
            if name not in METHODS:
                continue
            cls = own_method_class(name)
        package = {} if name in METHODS else {"package": package_of(plugins()[name][0])}
        source = cls.source if name in METHODS else f"{cls.source} ({package['package']})"
        listed.append({"name": name, "summary": cls.summary, "source": source, **package})
    return listed, problems


def describe(cls: Any) -> dict[str, Any]:
    """A method as JSON values: its fields, those of training, of the run and of writing, presets and search space."""
    from dataclasses import asdict

    from handful.evaluation.text.generate import GenerationOptions
    from handful.methods.settings import describe_settings
    from handful.runs.spec import RunOptions
    from handful.training.config import TrainingConfig

    return {
        "name": cls.name,
        "summary": cls.summary,
        "source": cls.source,
        "presets": {name: asdict(preset) for name, preset in cls.presets.items()},
        "search_space": {name: asdict(dimension) for name, dimension in cls.search_space.items()},
        "method": describe_settings(cls),
        "training": describe_settings(TrainingConfig),
        "run": describe_settings(RunOptions),
        **({"generation": describe_settings(GenerationOptions)} if cls.writes else {}),
    }


def _show(record: dict[str, Any]) -> None:
    show(f"{record['name']}: {record['summary']}\nsource: {record['source']}")
    default = record["presets"]["default"]
    preset_values = {"method": default["settings"], "training": default["training"], "run": default["run"]}
    for section in (name for name in (*preset_values, "generation") if name in record):
        chosen = preset_values.get(section, {})
        show(f"\n[{section}]  (on the command line: --set {section}.NAME=VALUE)")
        rows = []
        for f in record[section]:
            kind = re.sub(r"Literal\[([^]]*)\]", _alternatives, f["type"])
            bounds = ", ".join(filter(None, (f["bounds"], f["unit"])))
            from_preset = f["name"] in chosen
            value = _shown(chosen[f["name"]] if from_preset else f["default"])
            origin = "the default preset" if from_preset else f["source"]
            rows.append((f["name"], kind, value, bounds, f["description"], origin))
        show_table(("field", "type", "default", "bounds, unit", "what it does", "default from"), rows)
    for name, preset in record["presets"].items():
        values = {**preset["settings"], **preset["training"], **preset["run"]}
        show(f"\npreset {name}: {preset['reason']}")
        show("  " + _listed(values))
        if preset["writing"] and "generation" in record:
            show("  for texts to write: " + _listed(preset["writing"]))


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {_shown(value)}" for key, value in values.items())


def _show_space(space: SearchSpace) -> None:
    show("\n[search]  (what a study with trials varies, where its recipe says nothing else)")
    if space:
        rows = [(name, str(dimension), dimension.reason) for name, dimension in space.items()]
        show_table(("setting", "values", "why these"), rows)
    else:
        show("nothing: there is one trial")


def _alternatives(literal: re.Match[str]) -> str:
    return literal[1].replace("'", "").replace(", ", " | ")


def _shown(value: Any) -> str:
    if isinstance(value, str) and not value.strip():  # a new line, or nothing
        return repr(value)
    return "none" if value is None else str(value)
