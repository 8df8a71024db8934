"""Finished runs as comparisons and reports need them: what was tried where, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

from handful.errors import RunError
from handful.evaluation.estimate import Estimate
from handful.runs.store import RECORD, Run, find_runs


class Cell(NamedTuple):
    """What two methods must share to be compared: the same task, number of rows and seed, hence the same rows."""

    task: str
    shots: int
    seed: int


@final
@dataclass(frozen=True)
class Result:
    """One finished run. `label` names what was tried: a method, with the settings that set it apart from others."""

    label: str
    cell: Cell
    run: Run

    @property
    def record(self) -> Mapping[str, Any]:
        """The content of the run's `run.json`."""
        return self.run.record

    @property
    def metric(self) -> str:
        """The metric that counts on this task."""
        return self.record["task"]["metric"]

    @property
    def trials(self) -> int:
        """How many settings were tried on development rows to arrive at this run's; 1 where there was no search."""
        return self.record.get("study", {}).get("trials", 1)

    @property
    def start(self) -> str | None:
        """The key of the run that this one started from."""
        return self.record.get("spec", {}).get("start")

    @property
    def rows(self) -> str:
        """Fingerprint of the labelled and the test rows, however the labelled ones were divided."""
        return self.record["rows"].get("cell_fingerprint", self.record["rows"]["fingerprint"])

    def estimate(self, metric: str | None = None) -> Estimate | None:
        """The test score, of the task's own metric or another; None where the run has none."""
        found = self.record["scores"].get(metric or self.metric)
        return None if found is None else Estimate.from_dict(found)


def read_results(paths: Iterable[Path | str]) -> tuple[list[Result], list[tuple[Path, str]]]:
    """All runs below these folders, and the damaged folders with what is wrong with each.

    Runs of a study are called by their label there. Others are called by their method and, where a method was run
    with several settings, by those that differ. What was made of an inventory that is here too, without training, is
    left out: it measures nothing anew. Raises: RunError for a folder that does not exist.
    """
    good: dict[Path, Run] = {}
    bad: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path}: no such folder", "give a folder with runs, such as the --output of `handful fit`")
        found, damaged = find_runs(path)
        good |= {run.folder.resolve(): run for run in found}
        bad |= dict(damaged)
    keys, results = {run.key for run in good.values()}, []
    for run in good.values():
        if not keys.isdisjoint(run.record.get("made_of", ())):
            continue
        try:
            results.append(_result(run))
        except (KeyError, TypeError, AttributeError) as error:
            bad[run.folder] = f"{run.folder / RECORD}: not the record of a run ({type(error).__name__}: {error})"
    return sorted(_told_apart(results), key=lambda r: (r.cell, r.label)), sorted(bad.items())


def without_stages(results: Sequence[Result]) -> list[Result]:
    """Those whose scores are to be compared: not runs of labels that others only started from, on tasks of their own.

    Such labels share no rows with the rest, so that no ranks could be had of all.
    """
    started = {result.start for result in results}
    ends = {result.label for result in results if result.run.key not in started}
    tasks = {result.cell.task for result in results if result.label in ends}
    return [result for result in results if result.label in ends or result.cell.task in tasks]


def _result(run: Run) -> Result:
    record, options = run.record, run.record["spec"]["run"]
    shots = options["shots"] or record["rows"]["train"] + record["rows"]["dev"]
    cell = Cell(record["task"]["name"], shots, options["seed"])
    settings_of(record["spec"])  # a record without them is damaged, and is to be found here
    return Result(record.get("study", {}).get("label", record["spec"]["method"]["name"]), cell, run)


def _told_apart(results: list[Result]) -> list[Result]:
    """Labels with the settings that differ between runs of one label; runs of a study have labels of their own."""
    settings = {id(result): settings_of(result.record["spec"]) for result in results}
    varying: dict[str, set[str]] = {}
    for label in {result.label for result in results}:
        same = [settings[id(r)] for r in results if r.label == label and "study" not in r.record]
        names = set().union(*same) if same else set()
        varying[label] = {name for name in names if len({repr(one.get(name)) for one in _having(name, same)}) > 1}
    return [
        result
        if "study" in result.record or not varying[result.label]
        else replace(result, label=_with_settings(result.label, settings[id(result)], varying[result.label]))
        for result in results
    ]


def _having(name: str, settings: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Those that a setting could tell apart: settings of writing only tell runs apart that write."""
    return [one for one in settings if name in one] if name.startswith("generation.") else settings


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that tell methods apart, by dotted name: not those that say which rows were used."""
    parts = {part: spec[part] for part in ("method", "training", "run")} | {"generation": spec.get("generation", {})}
    settings = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    others = {"method.name", "run.shots", "run.seed", "run.landscape"}
    return {"model": spec["model"]} | {name: value for name, value in settings.items() if name not in others}


def _with_settings(label: str, settings: Mapping[str, Any], names: Iterable[str]) -> str:
    parts = [f"{name.rpartition('.')[2]}={settings[name]}" for name in sorted(names) if name in settings]
    line = ", ".join(parts).replace("\n", "\\n")
    return f"{label} ({line})"
