"""What `check` and `fit` are told: options, `--set` and a TOML file, as one request."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from handful.cli.console import say
from handful.errors import ConfigError, nearest, shown
from handful.runs.defaults import METHOD, MODEL, PRESET, TEST_FRACTION, WRITING_METHOD, WRITING_MODEL
from handful.storage import parse_json

if TYPE_CHECKING:
    from handful.request import Request

Device = Annotated[
    str,
    typer.Option(
        help="auto (CUDA, else Apple's mps, else the CPU), cpu, cuda, cuda:N or mps.", rich_help_panel="The run"
    ),
]
"""An option of every verb that loads a model."""


def _option(flag: str, text: str, default: str, metavar: str | None = None) -> Any:
    """An option of a run; `default` says in words what holds without it."""
    return typer.Option(flag, help=text, metavar=metavar, show_default=default, rich_help_panel=_panel(flag))


def _panel(flag: str) -> str:
    of_data = ("--test", "--test-fraction", "--text", "--text-pair", "--label", "--encoding", "--delimiter", "--kind")
    return "The data" if flag in (*of_data, "--metric") else "The run"


@dataclass
class RunArguments:
    """The data and the settings of a run, as they stand on the command line."""

    data: Annotated[
        str,
        typer.Argument(
            help="A CSV, TSV, JSON, Parquet or Excel file, a task folder, a packaged task, or hub:OWNER/NAME."
        ),
    ]
    test: Annotated[str | None, _option("--test", "File of test rows (hub: a split).", "a share of the rows")] = None
    test_fraction: Annotated[
        float,
        typer.Option(help="Share of rows set apart as test rows, from 0 to 0.9, where there are none.",
                     rich_help_panel=_panel("--test-fraction")),
    ] = TEST_FRACTION  # fmt: skip
    text: Annotated[str | None, _option("--text", "Column of the text.", "text")] = None
    text_pair: Annotated[str | None, _option("--text-pair", "Column of a pair's second text.", "found, or none")] = None
    label: Annotated[str | None, _option("--label", "Column of the label.", "label")] = None
    label_separator: Annotated[
        str | None,
        _option("--label-separator", "Mark between several labels in a cell, or its name: semicolon.", "lists", "MARK"),
    ] = None
    encoding: Annotated[str | None, _option("--encoding", "Encoding of the files.", "utf-8")] = None
    delimiter: Annotated[
        str | None, _option("--delimiter", "One character, or comma, semicolon, tab or pipe.", "found", "CHAR")
    ] = None
    kind: Annotated[
        str | None,
        _option(
            "--kind", "classification, pair-classification, multilabel, regression or generation.", "by the labels"
        ),
    ] = None
    metric: Annotated[str | None, _option("--metric", "The score that counts.", "by the kind")] = None
    model: Annotated[
        str | None,
        _option(
            "--model", "A name of 'handful models', a folder, or OWNER/NAME.", f"{MODEL}; to write {WRITING_MODEL}"
        ),
    ] = None
    method: Annotated[
        str | None,
        _option("--method", "A name of 'handful methods', or auto.", f"{METHOD}; to write {WRITING_METHOD}"),
    ] = None
    preset: Annotated[str | None, _option("--preset", "A preset of the method.", PRESET)] = None
    shots: Annotated[str | None, _option("--shots", "Labelled rows to use, in all.", "every row", "<int>")] = None
    seed: Annotated[str | None, _option("--seed", "Decides rows, start, order and draws.", "0", "<int>")] = None
    dev: Annotated[
        str | None, _option("--dev", "Development rows: carved (of the shots), separate or none.", "by the preset")
    ] = None
    assignments: Annotated[
        list[str],
        _option(
            "--set",
            "Any setting, such as training.epochs=10. Repeatable, the last counts.",
            "the preset's",
            "NAME=VALUE",
        ),
    ] = field(default_factory=list)
    config: Annotated[
        Path | None,
        _option("--config", "TOML with model, preset, and tables method, training, run …", "none", "FILE"),
    ] = None
    budget: Annotated[str | None, _option("--budget", "Seconds for --method auto to choose in.", "300", "<float>")] = (
        None
    )
    speedup: Annotated[
        str | None,
        _option(
            "--speedup",
            "Target speed-up of the exported model, e.g. 1.5 (prune only). `fit` measures how much has to be pruned.",
            "a budget of parameters",
            "<float>",
        ),
    ] = None
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            "--init-from",
            help="Run, inventory, or prompt or Poly saved by PEFT, to start from.",
            show_default="afresh",
            metavar="FOLDER",
            rich_help_panel="The run",
        ),
    ] = None
    adapt: Annotated[
        str | None,
        _option("--adapt", "From an inventory: mu trains its average skill, z only a routing, full both.", "mu"),
    ] = None
    device: Device = "auto"

    def request(self, output: Path | None = None) -> Request:
        """What is asked for: options win over `--set`, `--set` over the file.

        Raises: ConfigError for a file of settings that cannot be read.
        """
        from handful.request import Request

        wrong: list[str] = []
        settings, origins = self._given(wrong)
        columns = ("text", "text_pair", "label", "label_separator", "encoding", "delimiter", "kind", "metric")
        return Request(
            self.data, self.test, self.test_fraction,
            {name: getattr(self, name) for name in columns if getattr(self, name) is not None},
            settings.pop("method", None), settings.pop("model", None), settings.pop("preset", PRESET), settings,
            start=self.start, adapt=self.adapt, budget=self.budget, speedup=self.speedup, device=self.device,
            output=output, origins=origins, wrong=wrong,
        )  # fmt: skip

    def _given(self, problems: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Every setting that was given and where; what is no setting is added to `problems`."""
        given = read_config(self.config, problems) if self.config else {}
        origins = dict.fromkeys(given, str(self.config))
        assigned = read_assignments(self.assignments, problems)
        options = {"model": self.model, "method": self.method, "preset": self.preset}
        options |= {"run.shots": self.shots, "run.seed": self.seed, "run.dev": self.dev}
        options = {name: value for name, value in options.items() if value is not None}
        for name, value in options.items():
            flag = name.removeprefix("run.")
            for twin in {name: None, flag: None}:  # "shots" and "run.shots" are one setting
                found = assigned.pop(twin, value)
                if str(found) != value:
                    problems.append(f"--{flag} {value} contradicts --set {twin}={found}; leave one of them out")
        origins |= dict.fromkeys(assigned, "--set") | {name: f"--{name.removeprefix('run.')}" for name in options}
        return given | assigned | options, origins


def read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """Settings by dotted name from a TOML file; wrong keys are added to `problems`.

    The keys are those of `spec` in a run's `run.json`: model, preset, tables [method] (its `name` names the method),
    [training], [run] and [generation]; `method = "NAME"` does instead of the table.

    Raises: ConfigError for an unreadable file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})", "give a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: expected TOML in UTF-8, found {error}", "correct the file") from None
    tables, names = ("method", "training", "run", "generation"), ("model", "method", "preset")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key in tables and isinstance(value, dict):
            settings |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key in names and isinstance(value, str):
            settings[key] = value
        elif key in tables + names:
            problems.append(f"{path}: {key}: expected {'a table' if key in tables else 'a text'}, found {shown(value)}")
        else:
            problems.append(f"{path}: {key}: no such key; {nearest(key, {*tables, *names})}")
    if "method.name" in settings:
        settings["method"] = str(settings.pop("method.name"))
    return settings


def read_assignments(assignments: list[str], problems: list[str]) -> dict[str, Any]:
    """`a.b=value` by name; the value is JSON where it can be, else a text. What has no "=" is added to `problems`."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            problems.append(f"--set {shown(assignment)}: expected NAME=VALUE, such as training.epochs=10")
            continue
        name = name.strip()
        try:
            value = parse_json(text)
        except json.JSONDecodeError:
            value = text
        except ValueError as error:
            problems.append(f"--set {shown(name)}: the value cannot be read: {error}")
            continue
        settings[name] = value
    return settings


def chosen_device(name: str) -> str:
    """The device of this name, which is said. Raises: ConfigError as `resolve_device` does."""
    from handful.backbone.device import describe_device, resolve_device

    device = resolve_device(name)
    say(f"device {describe_device(device)}")
    return str(device)


def spread_arguments(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer takes it: its first parameter, a dataclass, spread over options of their own."""
    hints = get_type_hints(verb, include_extras=True)
    first, *others = inspect.signature(verb).parameters.values()
    cls = hints[first.name]
    inner = get_type_hints(cls, include_extras=True)
    spread = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=inner[f.name])
        for f in fields(cls)
    ]
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in others]

    @wraps(verb)
    def command(**values: Any) -> None:
        verb(cls(**{f.name: values.pop(f.name) for f in fields(cls)}), **values)

    parameters: Mapping[str, inspect.Parameter] = {p.name: p for p in (*spread, *named)}
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in parameters.items()}
    return command


def _default(f: Field[Any]) -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return inspect.Parameter.empty if f.default is MISSING else f.default
