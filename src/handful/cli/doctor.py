"""`handful doctor`: whether this machine is fit to train, and what to do where it is not."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, final

import typer

from handful.cli.arguments import Device
from handful.cli.console import say, show, show_json
from handful.errors import HandfulError

PACKAGES = ("handful", "torch", "transformers", "accelerate", "safetensors", "scikit-learn", "peft", "datasets")
OPTIONAL = {"peft": "handful[peft]", "datasets": "handful[hub]"}
FREE_SPACE_NEEDED = 1 << 30
"""Bytes for a converted model."""


@final
@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` says what to do where it is not as it should be."""

    name: str
    state: Literal["ok", "note", "wrong"]
    found: str
    advice: str = ""


def doctor(
    device: Device = "auto", as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Look at versions, device, cores, load, models and cache, and train a tiny model; exit code 1 where that fails."""
    findings: list[Finding] = []
    for look in (versions, partial(devices, device), threads, cache, models, tasks, partial(tiny_fit, device)):
        for finding in look():
            findings.append(finding)
            if not as_json:
                show(f"{finding.state:6}{finding.name:14}{finding.found}")
                if finding.advice:
                    show(f"{'':20}→ {finding.advice}")
    if as_json:
        show_json([asdict(finding) for finding in findings])
    wrong = [finding.name for finding in findings if finding.state == "wrong"]
    if wrong:
        say(f"error: not as it should be: {', '.join(wrong)}")
        raise typer.Exit(1)
    say("all is well")


def versions() -> list[Finding]:
    """Python and the packages that matter."""
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    for name in PACKAGES:
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            extra = OPTIONAL.get(name)
            state = "note" if extra else "wrong"
            findings.append(Finding(name, state, "not installed", f"pip install '{extra or name}'"))
    return findings


def devices(name: str = "auto") -> list[Finding]:
    """Where training will run, and what else there is; a small product is computed there."""
    import torch

    from handful.backbone.device import describe_device, has_mps, num_gpus, resolve_device

    try:
        device = resolve_device(name)
    except HandfulError as error:
        return [Finding("device", "wrong", error.message, error.hint or "")]
    found = [f"CPU ({torch.backends.cpu.get_cpu_capability()})"]
    found += [describe_device(torch.device("cuda", index)) for index in range(num_gpus())]
    found += ["mps"] if has_mps() else []
    there = ", ".join(found) + ("" if len(found) > 1 else "; no GPU was found")
    try:
        ones = torch.ones(64, 64, device=device)
        works = float((ones @ ones).sum()) == 64.0**3
        why = "a product of ones came out wrong"
    except (RuntimeError, AssertionError) as error:  # an old driver, or no kernels for this GPU in this torch
        works, why = False, str(error).splitlines()[0]
    if not works:
        return [Finding("device", "wrong", f"{describe_device(device)} does not work: {why}", "use --device cpu")]
    return [Finding("device", "ok", f"--device {name} is {describe_device(device)}; here: {there}")]


def threads() -> list[Finding]:
    """Cores, torch's threads, and whether more is running than there are cores."""
    import torch

    cores = available_cores()
    used, chosen = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS is {chosen or 'not set'}"
    findings = [Finding("threads", "ok", f"{used} of torch on {cores} core(s); {setting}")]
    if used > cores:
        advice = f"threads wait for each other: set OMP_NUM_THREADS={cores}"
        findings = [Finding("threads", "note", f"{used} of torch on only {cores} core(s); {setting}", advice)]
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        busy = load > cores
        advice = f"other programs want the cores too: training will take about {load / cores:.1f} × as long"
        findings.append(
            Finding("load", "note" if busy else "ok", f"{load:.1f} over one minute", advice if busy else "")
        )
    return findings


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache() -> list[Finding]:
    """The folder of converted models: writable, with room."""
    from handful.backbone.packaged import cache_folder
    from handful.storage import check_writable

    folder = cache_folder()
    advice = "set HANDFUL_CACHE to a folder that can be written and has 1 GB free"
    try:
        check_writable(folder)
    except HandfulError as error:
        return [Finding("cache", "wrong", error.message, advice)]
    free = shutil.disk_usage(folder).free
    enough = free > FREE_SPACE_NEEDED
    found = f"{folder}, {free / (1 << 30):.1f} GB free"
    return [Finding("cache", "ok" if enough else "note", found, "" if enough else advice)]


def models() -> list[Finding]:
    """Packaged models that are installed and whole."""
    from handful.backbone.packaged import PACKAGED_MODELS

    return [_carried(model.name, bool(model.missing()), model.install, "model") for model in PACKAGED_MODELS.values()]


def tasks() -> list[Finding]:
    """Packaged texts that are installed."""
    from handful.data.packaged import PACKAGED_TASKS

    return [_carried(task.name, task.source() is None, task.install, "task") for task in PACKAGED_TASKS.values()]


def _carried(name: str, missing: bool, install: str, what: str) -> Finding:
    return Finding(what, "note", f"{name} is not installed", install) if missing else Finding(what, "ok", name)


def tiny_fit(device: str = "auto") -> list[Finding]:
    """A whole run on a tiny random model: train, save, read back, compare."""
    from handful.backbone.device import resolve_device
    from handful.backbone.tiny import tiny_backbone
    from handful.data.task import Example, Task, TestRows
    from handful.runs.experiment import run
    from handful.runs.spec import resolve

    rows = [
        Example(f"{'good' if label else 'bad'} row {index}", label=label) for index in range(12) for label in (0, 1)
    ]
    task = Task("doctor", "classification", ("bad", "good"), "accuracy", tuple(rows[:16]), TestRows(rows[16:]))
    spec = resolve("prefix-subspace", overrides={"training.epochs": 3, "run.max_length": 32})
    started = time.perf_counter()
    try:
        with TemporaryDirectory() as folder:
            backbone = tiny_backbone("bert").to(resolve_device(device))
            saved, _ = run(task, spec, Path(folder), backbone=backbone)
    except HandfulError as error:
        return [Finding("tiny fit", "wrong", error.message, error.hint or "")]
    seconds = time.perf_counter() - started
    return [
        Finding(
            "tiny fit", "ok", f"{saved.record['fit']['steps']} steps in {seconds:.1f} s, saved, read back, same scores"
        )
    ]
