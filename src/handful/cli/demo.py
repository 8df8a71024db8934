"""`handful demo`: the whole story on a packaged model and real texts, in minutes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.arguments import Device, chosen_device
from handful.cli.console import FitProgress, say, show, show_table

if TYPE_CHECKING:
    from handful.api import FittedModel
    from handful.backbone.load import Backbone
    from handful.data.task import Task
    from handful.evaluation.estimate import Estimate
    from handful.runs.store import Run
    from handful.studies.compare import Comparison

MODEL, TASK, SHOTS, TEST_ROWS = "minilm", "bbc-news", 100, 300
PROBE, SUBSPACE = "head", "prefix-subspace"
METHODS = (PROBE, "lora", "prefix", SUBSPACE)
TRAINING = {"training.epochs": 10}
"""Of the methods that train in steps; the presets take twice as many."""
MAX_LENGTH = 32
"""Tokens kept of an article: its headline and first sentence."""

TEXTS = (
    "The central bank left interest rates unchanged, to the surprise of investors.",
    "The striker scored twice as the visitors won the cup final.",
    "The minister wants football clubs to pay more tax on tickets.",
    "The actor's new film is also coming out as a computer game.",
)
"""New texts to predict; the last two belong to more than one class."""


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the runs and the export.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=2, max=20, help="Seeds of every method.")] = 3,
    device: Device = "auto",
) -> None:
    """Train four methods on 100 real news texts, compare them fairly, predict, and export. A few minutes on 2 cores.

    Everything is kept: started again, it only shows the results.
    """
    say(f"Four ways to learn {TASK} from {SHOTS} labelled texts with the model {MODEL}.\n")
    import torch

    from handful.backbone.load import load_backbone
    from handful.cli.doctor import available_cores
    from handful.storage import check_writable

    started = time.perf_counter(), time.process_time()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    check_writable(output)
    task = demo_task()
    backbone = load_backbone(MODEL, device=chosen_device(device))
    methods = [method for method in METHODS if method != "lora" or find_spec("peft")]
    say(
        f"Every method and seed has the same texts: {SHOTS} of {len(task.pool):,} to train, {TEST_ROWS} to test. "
        f"To be done in minutes,\nthe texts are cut to {MAX_LENGTH} tokens and training takes "
        f"{TRAINING['training.epochs']} epochs; all else is each method's default.\n"
    )
    runs = train_all(task, backbone, methods, range(seeds), output)
    show_comparison(runs)
    best = open_run(runs[SUBSPACE][0], backbone)
    show_predictions(best)
    report = best.export(output / "export", overwrite=True)
    say(f"\nExported the midpoint of the simplex: {report.plan.summary}")
    say(f"Loaded it again: {report.verification}.")
    best.detach()
    tell_where(runs, output, report.folder)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    say(f"\nIt took {wall:.0f} s ({cpu:.0f} s of processor time).")


def demo_task() -> Task:
    """The packaged task with fewer test rows, always the same ones."""
    from handful.data.packaged import packaged_task

    task = packaged_task(TASK)
    assert task.test is not None
    return replace(task, test=task.test.sample(TEST_ROWS))


def train_all(task: Task, backbone: Backbone, methods: list[str], seeds: range, output: Path) -> dict[str, list[Run]]:
    """One run a method and seed, on one loaded model; runs that are there already are not trained again."""
    from handful.runs.experiment import run
    from handful.runs.spec import resolve

    runs: dict[str, list[Run]] = {method: [] for method in methods}
    total = len(methods) * len(seeds)
    with FitProgress() as progress:
        for number, (seed, method) in enumerate(((seed, method) for seed in seeds for method in methods), 1):
            settings: dict[str, Any] = {"run.shots": SHOTS, "run.seed": seed, "run.max_length": MAX_LENGTH}
            spec = resolve(method, model=MODEL, overrides=settings | ({} if method == PROBE else TRAINING))
            progress.title = f"[{number}/{total}] {method}, seed {seed}"
            reused: list[str] = []
            saved, trained = run(
                task, spec, output, backbone=backbone, on_event=progress, on_message=reused.append
            )  # fmt: skip
            trained.adapter.detach()
            score = saved.record["scores"]["accuracy"]["mean"]
            progress.say(f"{progress.title}: accuracy {score:.3f}{' (trained before)' if reused else ''}")
            runs[method].append(saved)
    return runs


def show_comparison(runs: dict[str, list[Run]]) -> None:
    """The mean of each method over its seeds, and what `handful compare` says of it and the probe."""
    rows, said = [], []
    for method, of_method in runs.items():
        scores = {name: over_seeds(of_method, name) for name in ("accuracy", "nll")}
        found = {name: against(method, runs, name) for name in scores} if method != PROBE else {}
        gains = {name: one.advantage for name, one in found.items()}
        fits = [run.record["fit"] for run in of_method]
        seconds = sum(fit["seconds"] for fit in fits) / len(fits)
        cells = [scores["accuracy"], gains.get("accuracy", ""), scores["nll"], gains.get("nll", "")]
        rows.append([method, *cells, f"{fits[0]['parameters']:,}", f"{seconds:.0f}"])
        said += [(name, one.statement) for name, one in found.items()]
    say()
    show_table(("method", "accuracy", "advantage", "NLL (less is better)", "advantage", "trained", "s"), rows)
    for name, statement in sorted(said):
        show(f"{name}: {statement}")
    say(
        f"\nMeans of {len(runs[PROBE])} seeds with 95 % intervals (Student's t); 'head' is the probe, a logistic "
        "regression on the\nfrozen model. Advantages are over the probe, positive where the method is better, with "
        "intervals for other\nseeds and other test texts, as `handful compare` gives them."
    )


def over_seeds(runs: list[Run], metric: str) -> Estimate:
    """The mean of a score over runs that differ in their seed."""
    from handful.evaluation.estimate import estimate_over_seeds
    from handful.evaluation.metrics import get_metric

    return estimate_over_seeds(_means(runs, metric), limits=get_metric(metric).range)


def against(method: str, runs: dict[str, list[Run]], metric: str) -> Comparison:
    """A method compared with the probe, as `handful compare` does it."""
    from handful.studies.compare import compare
    from handful.studies.results import Cell, Result

    def results(label: str) -> list[Result]:
        options = [(run, run.record["spec"]["run"]) for run in runs[label]]
        name = runs[label][0].record["task"]["name"]
        return [Result(label, Cell(name, of_run["shots"], of_run["seed"]), run) for run, of_run in options]

    return compare(results(method), results(PROBE), metric=metric)


def _means(runs: list[Run], metric: str) -> list[float]:
    return [run.record["scores"][metric]["mean"] for run in runs]


def open_run(run: Run, backbone: Backbone) -> FittedModel:
    """The trained model of a run, on the model that is loaded already."""
    from handful.api import load

    return load(run.folder, backbone=backbone)


def show_predictions(model: FittedModel) -> None:
    """A few texts that no file holds, with probabilities and disagreement."""
    probabilities = model.predict_proba(TEXTS)
    rows = []
    for text, row, disagreement in zip(TEXTS, probabilities, model.disagreement(TEXTS), strict=True):
        first, second = (-row).argsort()[:2]
        named = [f"{model.labels[index]} {row[index]:.2f}" for index in (first, second)]
        rows.append([text, *named, f"{disagreement:.3f}"])
    say(f"\nNew texts, predicted by {SUBSPACE} (the last column: how far random points of its simplex disagree):\n")
    show_table(("text", "most probable", "next", "disagreement"), rows)


def tell_where(runs: dict[str, list[Run]], output: Path, exported: Path) -> None:
    """Where everything lies, and what can be done with it."""
    folder = runs[SUBSPACE][0].folder
    say(f"\nThe runs are in {output}, one folder each, with a card in README.md; for instance\n  {folder}")
    say(f"The export is in {exported}; its README.md has the lines that load it without handful.")
    say("\nnext:")
    say(f"  handful compare {SUBSPACE} {PROBE} --runs {output}")
    say(f"  echo 'a text of yours' | handful predict {folder} --input -")
    say("  handful check your.csv")
