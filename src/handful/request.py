"""What a fit is asked for, the same on the command line and in Python: all of it is checked before a model is loaded.

`handful check`, `handful fit` and `handful.fit` make one `Request` each, so that what one refuses all refuse, in the
same sentence. Names, numbers and data come first: torch, whose import takes seconds, is imported only behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf, nan
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from handful.data.holdout import with_held_out_test
from handful.data.open import open_task
from handful.data.task import Task
from handful.errors import ConfigError, HandfulError, all_in_one, nearest, shown
from handful.methods import is_method, method_names
from handful.runs.defaults import AUTO, PRESET, TEST_FRACTION
from handful.runs.options import wrong_options
from handful.storage import check_writable

if TYPE_CHECKING:
    from handful.backbone.load import Backbone
    from handful.runs.spec import RunSpec
    from handful.runs.start import Start

Found = TypeVar("Found")
NO_INVENTORY = "adapt: says how to start from an inventory of many tasks", "give one: --init-from FOLDER"
LARGEST_TEST_FRACTION = 0.9


@final
@dataclass(frozen=True)
class Request:
    """What is asked for, as it was given: nothing of it is checked yet.

    `data` is what `open_task` opens, or a `Task`; `columns` are options of `open_task`. `settings` have dotted or bare
    names, `origins` say where a name was given, such as a file, and `wrong` are lines on what could not be read as a
    setting. Numbers may be texts, as on a command line. `output` is where run folders go, None where nothing is
    written. `opens` takes the place of `data`: from the share of test rows to the task.
    """

    data: Any
    test: Any = None
    test_fraction: Any = TEST_FRACTION
    columns: Any = None
    method: Any = None
    model: Any = None
    preset: Any = PRESET
    settings: Any = field(default_factory=dict)
    start: Any = None
    adapt: Any = None
    budget: Any = None
    speedup: Any = None
    device: Any = "auto"
    backbone: Backbone | None = None
    output: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    wrong: Sequence[str] = ()
    opens: Callable[[float], Task] | None = None

    def plan(self, advice: Callable[[str], str] = str) -> Plan:
        """What is to be trained, and from what; `advice` puts hints into the words of whoever asks.

        Raises: HandfulError with everything that is wrong; a ConfigError unless something else is among it.
        """
        found, problems = self.examine()
        if found is None:
            raise all_in_one([type(p)(p.message, p.hint and advice(p.hint)) for p in problems])
        return found

    def examine(self) -> tuple[Plan | None, list[HandfulError]]:
        """The plan, or None with everything that is wrong, in the order in which it was found."""
        problems: list[HandfulError] = []

        def attempt(part: Callable[..., Found], *arguments: Any) -> Found | None:
            try:
                return part(*arguments)
            except HandfulError as error:
                problems.append(error)
                return None

        settings = attempt(self._settings) or {}
        problems += self._wrong_together(settings)
        budget, speedup = attempt(self._seconds), attempt(self._times)
        task = attempt(self._task)
        attempt(self._check_output)
        if self._needs_no_torch(settings):
            attempt(self._check_light, settings)
            if problems:
                return None, problems
        device, start = attempt(device_for, self.device, self.backbone), attempt(self._start)
        knows_start = start is not None or self.start is None
        specs = attempt(self._specs, task, settings, start) if knows_start else None
        for part in self._parts(task, specs[0], start) if specs else ():
            attempt(part)
        if problems:
            return None, problems
        assert task and specs and device
        specs = tuple(replace(spec, device=device) for spec in specs)
        return Plan(task, specs, start, self.method == AUTO, budget, speedup, self.backbone), []

    def _seconds(self) -> float | None:
        return None if self.budget is None else _above("budget", self.budget, 0, "seconds above 0", "such as 300")

    def _times(self) -> float | None:
        hint = "1.5 is half as fast again"
        return None if self.speedup is None else _above("speedup", self.speedup, 1, "a number above 1", hint)

    def _wrong_together(self, settings: Collection[str]) -> list[ConfigError]:
        """What means nothing beside the rest of what was asked for."""
        is_auto, starts, fast = self.method == AUTO, self.start is not None, self.speedup is not None
        only_auto = "budget: only the method 'auto' chooses within a time", "leave it out, or take 'auto'"
        no_choice = "start: a run to start from decides the method, found the method 'auto'", "name that method"
        no_speed = "speedup: method 'auto' chooses among methods that make nothing faster", "name one with --method"
        budgets = "speedup: method.target_sparsity is the budget already", "leave one of them out"
        wrong = [
            *([only_auto] if self.budget is not None and not is_auto else []),
            *([no_choice] if starts and is_auto else []),
            *([no_speed] if fast and is_auto else []),
            *([budgets] if fast and {"target_sparsity", "method.target_sparsity"} & set(settings) else []),
            *([NO_INVENTORY] if self.adapt is not None and not starts else []),
        ]
        return [ConfigError(*message_and_hint) for message_and_hint in wrong]

    def _task(self) -> Task:
        """The task, with test rows set apart where it brings none."""
        columns = check_mapping("columns", self.columns, "text")
        if unfit := [name for name in columns if not isinstance(name, str) or name in ("test", "source")]:
            raise ConfigError(f"columns: no such option as {unfit[0]}", "text, label and text_pair name columns")
        share = self._share()
        if self.opens:
            return self.opens(share)
        if isinstance(self.data, Task):
            if self.test is not None or columns:
                what = "test" if self.test is not None else "columns"
                raise ConfigError(f"{what}: a Task has its test rows and columns already", f"leave {what} out")
            task = self.data
        else:
            task = open_task(self.data, test=self.test, **columns)
        if task.test is None:
            return with_held_out_test(task, share) if share else task
        if share in (0, TEST_FRACTION):
            return task
        return replace(task, notes=(*task.notes, f"test_fraction {share:g} is not used: there are test rows"))

    def _share(self) -> float:
        """The share of rows to set apart. Raises: ConfigError for none, or nearly all; NaN among them."""
        given = 0 if self.test_fraction is None else self.test_fraction
        share = _number(given)
        if not 0 <= share <= LARGEST_TEST_FRACTION:
            expected = f"expected a number from 0 to {LARGEST_TEST_FRACTION}"
            raise ConfigError(f"test_fraction: {expected}, found {_found(given, share)}", "0.2 is a fifth")
        return share

    def _settings(self) -> dict[str, Any]:
        """All settings by name. Raises: ConfigError for those that are no mapping."""
        return dict(check_mapping("settings", self.settings, "shots"))

    def _needs_no_torch(self, settings: Mapping[Any, Any]) -> bool:
        """Whether all that can be wrong, but for what data and settings make together, is seen without torch.

        The settings of a method are seen in its own module, which imports torch; those of an unknown one nowhere.
        """
        usual = (self.start, self.speedup, self.device) == (None, None, AUTO)
        return usual and (self._is_unknown() or (self.preset == PRESET and not wrong_options(settings)[1]))

    def _is_unknown(self) -> bool:
        """Whether a method is named that there is not."""
        name = self.method
        return isinstance(name, str) and bool(name.strip()) and name != AUTO and not is_method(name)

    def _check_light(self, settings: Mapping[Any, Any]) -> None:
        """Raises: ConfigError, as `resolve` does, for an unknown method and settings that are no method's."""
        lines, name, hint = list(self.wrong), self.method, "`handful methods NAME` lists every field"
        if self._is_unknown():
            hint = "`handful methods` lists every method"
            lines.append(f"{self._where('method')}method: unknown method {name!r}; {nearest(name, method_names())}")
        lines += [f"{self._where(given)}{problem}" for given, problem in wrong_options(settings)[0].items()]
        if lines:
            raise _wrong_settings(lines, hint)

    def _check_output(self) -> None:
        """Raises: RunError for a folder that cannot be written to; what is made to find out is taken away again."""
        if self.output is None:
            return
        new = [folder for folder in (self.output, *self.output.parents) if not folder.exists()]
        try:
            check_writable(self.output)
        finally:
            for folder in new:
                with suppress(OSError):  # it was not made, or others have filled it
                    folder.rmdir()

    def _start(self) -> Start | None:
        """What it starts from. Raises: ConfigError or RunError for what is no run."""
        if self.start is None:
            return None
        if not isinstance(self.start, str | PathLike) or not str(self.start).strip():
            raise ConfigError(f"start: expected the folder of a run, found {shown(self.start)}", "give its path")
        from handful.runs.start import read_start

        return read_start(Path(self.start))

    def _specs(self, task: Task | None, settings: dict[str, Any], start: Start | None) -> list[RunSpec]:
        """The run, or for the method "auto" every candidate's, the probe's first; a start says what nobody named.

        Raises: ConfigError with all wrong settings.
        """
        from handful.methods.poly.method import Poly
        from handful.runs.inventory import inherited, with_inherited
        from handful.runs.spec import full_names, resolve
        from handful.runs.start import names_of
        from handful.studies.auto import candidate_specs

        wrong, kind, common, names = list(self.wrong), task.kind if task else None, inherited(start), names_of(start)
        method, model = names[0] if self.method is None else self.method, names[1] if self.model is None else self.model
        if common:
            if method not in (Poly.name, Poly):
                found = "an object, whose sizes the inventory decides" if isinstance(method, Poly) else shown(method)
                other = f"an inventory is of the method {Poly.name!r}, found {found}; leave it out"
                wrong.append(f"{self._where('method')}method: {other}")
            method, settings = Poly.name, {**common, **full_names(Poly.name, settings)}
        if self.adapt is not None and start:
            if not common:
                raise ConfigError(*NO_INVENTORY)
            if (other := settings.get("method.adapt", self.adapt)) != self.adapt:
                wrong.append(f"adapt: {shown(self.adapt)} contradicts method.adapt = {shown(other)}; leave one out")
            settings["method.adapt"] = self.adapt

        def resolved(name: Any) -> RunSpec:
            spec, hint = None, "`handful methods NAME` lists every field"
            try:
                spec = resolve(
                    name, model=model, preset=self.preset, overrides=settings, origins=self.origins, kind=kind
                )
            except ConfigError as error:
                first, *lines = error.message.split("\n  ")
                wrong.extend(lines or [first])
                hint = error.hint
            if spec is None or wrong:
                raise _wrong_settings(wrong, hint)
            return with_inherited(spec, common)

        return candidate_specs(resolved, kind) if method == AUTO else [resolved(method)]

    def _parts(self, task: Task | None, spec: RunSpec, start: Start | None) -> list[Callable[[], object]]:
        """What is checked of a run: its start, its budget, and the metric and rows of its task."""
        from handful.export.speedup import with_budget
        from handful.runs.experiment import check_task, make_split
        from handful.runs.seen import start_notes
        from handful.runs.start import check_start

        parts: list[Callable[[], object]] = [lambda: check_start(spec.method, start)]
        if self.speedup is not None and self.method != AUTO:
            parts.append(lambda: with_budget(spec))
        if task:
            parts.append(lambda: check_task(task))
            parts.append(lambda: start_notes(start, make_split(task, spec)) if start else make_split(task, spec))
        return parts

    def _where(self, name: str) -> str:
        return f"{self.origins[name]}: " if name in self.origins else ""


@final
@dataclass(frozen=True)
class Plan:
    """A request in which nothing is wrong, as far as can be known before a model is loaded.

    `specs` is the run, or for the method "auto" every candidate's, the probe's first.
    """

    task: Task
    specs: tuple[RunSpec, ...]
    start: Start | None
    is_auto: bool
    budget: float | None
    speedup: float | None
    backbone: Backbone | None

    def decide(self, on_message: Callable[[str], None] = lambda message: None) -> tuple[RunSpec, Backbone | None]:
        """The run to train, once a method has been chosen and a speed been measured, and the model where it is loaded.

        Raises: ConfigError for a speed that cannot be reached, and what the run itself would.
        """
        from handful.export.speedup import with_speedup
        from handful.runs.experiment import open_backbone
        from handful.studies.auto import BUDGET, choose

        spec, backbone = self.specs[0], self.backbone
        if self.is_auto:
            if backbone is None:
                on_message(f"loading model {spec.model} …")
                backbone = open_backbone(spec, self.task.kind)
            budget = BUDGET if self.budget is None else self.budget
            spec = choose(self.task, self.specs, backbone=backbone, budget=budget, on_message=on_message).spec
        if self.speedup is not None:
            spec, backbone = with_speedup(self.task, spec, self.speedup, backbone=backbone, on_message=on_message)
        return spec, backbone


def check_mapping(name: str, value: Any, example: str) -> Mapping[Any, Any]:
    """The options, none for None. Raises: ConfigError for what is no mapping, such as a lone text."""
    if value is not None and not isinstance(value, Mapping):
        put = f"{{{example!r}: {value!r:.40}}}" if isinstance(value, str) else f"{{{example!r}: …}}"
        raise ConfigError(f"{name}: expected a dict, found {shown(value)}", f"write {name}={put}")
    return value or {}


def device_for(name: Any, backbone: Backbone | None = None) -> str:
    """The device to load a model onto, or that of the backbone. Raises: ConfigError for another one than it is on."""
    from handful.backbone.device import check_name, resolve_device

    if backbone is None:
        return str(resolve_device(name))
    check_name(name)
    name = name.strip().lower()
    if name not in (AUTO, str(backbone.device), backbone.device.type):
        raise ConfigError(
            f"device: {name!r} was asked for, and the backbone that was given is on {backbone.device}",
            f"load it there: load_backbone({backbone.name!r}, device={name!r})",
        )
    return str(backbone.device)


def _above(name: str, value: Any, least: float, expected: str, hint: str) -> float:
    """The number. Raises: ConfigError for one that is not above the least, or infinite, and for none."""
    number = _number(value)
    if not least < number < inf:
        raise ConfigError(f"{name}: expected {expected}, found {_found(value, number)}", hint)
    return number


def _number(value: Any) -> float:
    """The number, or the one that a text holds; NaN for what is none, truth values among them."""
    try:
        return float(value) if isinstance(value, Real | str) and not isinstance(value, bool) else nan
    except (ValueError, OverflowError):
        return nan


def _found(value: Any, number: float) -> str:
    """What was given, in the same words whether it was a number or the text of one."""
    is_nan = str(value).strip().lower() in ("nan", "+nan", "-nan")
    return shown(value) if number != number and not is_nan else f"{number:g}"


def _wrong_settings(lines: Sequence[str], hint: str | None) -> ConfigError:
    return ConfigError(f"{len(lines)} wrong setting{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines), hint)
