"""`handful study`: every run of a recipe, on one core or on a cluster, stopped and continued at will."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, final

import typer

from handful.cli.arguments import read_assignments
from handful.cli.console import say, show, show_json, show_table
from handful.errors import ConfigError, RunError
from handful.neutral import printable

if TYPE_CHECKING:
    from handful.studies.engines import JobEvent
    from handful.studies.jobs import Job
    from handful.studies.recipe import Recipe
    from handful.studies.results import Result
    from handful.studies.study import State, Study


def study(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: tasks, shots, seeds, methods.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the study.", show_default="runs/NAME of the recipe")
    ] = None,
    engine: Annotated[str, typer.Option(help="sequential, processes or ray.")] = "processes",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at the same time.", show_default="one a core, or one a GPU")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.", show_default="one is started here")] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each worker of Ray, such as 0.5.", show_default="0")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto (CUDA, else mps, else the CPU), cpu, cuda, cuda:N or mps; workers share out the GPUs.",
            show_default="the recipe's, or auto",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with task folders of the recipe's names.", show_default="none")
    ] = None,
    assignments: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Any key, such as seeds=2. Repeatable.")
    ] = [],  # noqa: B006 - typer makes a new one
    retry: Annotated[
        Literal["failed"] | None, typer.Option(help="Do once more the runs that failed.", show_default="no")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and what they will cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run every task, number of shots, seed and method of a recipe on the same rows, and compare.

    Stopped at any moment, the same command continues; what is done is not done again.
    """
    from handful.studies.engines import make_engine, parallel_jobs
    from handful.studies.recipe import read_recipe
    from handful.studies.study import Study

    problems: list[str] = []
    overrides = read_assignments(assignments, problems)
    if problems:
        raise ConfigError("; ".join(problems))
    chosen = read_recipe(recipe, overrides | ({"device": device} if device else {}))
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder", "give the folder that the task folders are in")
    this = Study(chosen, output or Path("runs") / chosen.name, data)
    say(f"{chosen.name}: {len(this.jobs):,} run{'s' * (len(this.jobs) != 1)}, {describe_size(chosen)}")
    computing = say_device(this, engine, gpus)
    if dry_run:
        parallel = workers or (1 if engine == "sequential" else parallel_jobs(computing))
        show_forecast(this, parallel, as_json)
        return
    done = this.state().done
    if done:
        say(f"{len(done):,} of them {'is' if len(done) == 1 else 'are'} done already, in {this.folder}")
    with StudyProgress(this, len(done)) as progress:
        state = this.run(
            make_engine(engine, workers=workers, address=address, gpus=gpus, device=computing),
            progress,
            retry_failed=retry == "failed",
            on_message=progress.say,
        )
    show_study(this, state, as_json)


def say_device(study: Study, engine: str, gpus: float | None) -> str:
    """Say where runs will be made, and where those were that are done; returns the device's name."""
    from handful.backbone.device import describe_device, num_gpus, resolve_device

    name = study.recipe.device
    if engine == "ray" and gpus:  # this machine may have none
        say(f"device {name}: {gpus:g} GPUs for each worker of Ray")
        return name
    if engine == "ray" and name == "auto":
        name = "cpu"
        say("Ray's workers compute on the CPU; --gpus 1 gives each of them a GPU")
    device = resolve_device(name)
    shared = device.type == "cuda" and name in ("auto", "cuda") and num_gpus() > 1
    say(f"device cuda: {num_gpus()} GPUs, shared out among workers" if shared else f"device {describe_device(device)}")
    others = [run.record["backbone"].get("device", "cpu") for run in study.state().done.values()]
    if elsewhere := sorted({other for other in others if other != device.type}):
        count = sum(other != device.type for other in others)
        say(f"  {count:,} done run{'s' * (count != 1)} computed on {', '.join(elsewhere)}: numbers differ by rounding")
    return name


def describe_size(recipe: Recipe) -> str:
    """The factors of the cross product."""
    parts = {"task": recipe.tasks, "number of shots": recipe.shots, "seed": recipe.seeds, "method": recipe.methods}
    counted = [f"{len(of)} {what if len(of) == 1 else PLURALS[what]}" for what, of in parts.items()]
    return " × ".join(counted)


PLURALS = {"task": "tasks", "number of shots": "numbers of shots", "seed": "seeds", "method": "methods"}


def show_forecast(study: Study, parallel: int, as_json: bool) -> None:
    """The runs that are left, with parameters, steps and time, from a few timed steps of every method."""
    from handful.studies.forecast import forecast
    from handful.studies.worker import Worker, thread_limit

    tasks = study.recipe.check_rows(study.data)
    worker = Worker(study.order(), tasks)
    jobs = study.state().open
    say("timing some steps of every method …")
    with thread_limit(study.recipe.threads):
        found = forecast(study.recipe, worker, jobs)
    if as_json:
        show_json([{**job.to_dict(), **vars(found[job.name])} for job in jobs])
        return
    rows: dict[tuple[str, str, int], list[Job]] = defaultdict(list)
    for job in jobs:
        rows[job.label, job.task, job.shots].append(job)
    lines = []
    for (label, task, shots), same in rows.items():
        cost = found[same[0].name]
        lines.append(
            [task, shots, label, len(same), cost.parameters, cost.steps, duration(cost.seconds),
             duration(cost.seconds * len(same))]
        )  # fmt: skip
    show_table(("task", "shots", "method", "runs", "parameters", "steps", "a run", "all"), lines)
    total = sum(found[job.name].seconds for job in jobs)
    say(f"\n{len(jobs):,} runs: about {duration(total)} of one worker, {duration(total / parallel)} with {parallel}")
    say("From a few timed steps: other load on the machine, or workers that share a memory bus, make it longer.")


def busy(wanted: int) -> str:
    """That the machine has more to do than it has cores, of which this study takes so many; else nothing.

    Where others' work is on it, what is left takes longer than it would on an idle machine. Windows does not say.
    """
    from handful.studies.engines import available_cores

    if not hasattr(os, "getloadavg"):
        return ""
    load, cores = os.getloadavg()[0], available_cores()
    others = load - wanted
    return f" (the machine is busy: load {load:.0f} on {cores} cores)" if others > 1 and load > 1.5 * cores else ""


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_study(study: Study, state: State, as_json: bool) -> None:
    """The scores by task, shots and method, and what failed."""
    from handful.studies.compare import summary
    from handful.studies.results import read_results
    from handful.studies.study import RUNS, results_lines

    if as_json:
        show_json(list(results_lines(state)))
    else:
        results = read_results([study.folder / RUNS])[0] if state.done else []
        rows = [
            [s.task or "mean over tasks", s.shots, s.label, s.metric, s.estimate, s.estimate.n]
            for s in summary(results)
        ]
        show_table(("task", "shots", "method", "metric", "mean [95 %]", "n"), rows)
        show_verdicts(results)
    for name, failure in state.failed.items():
        say(f"failed: {name}: {failure['error']}" + (f" ({failure['hint']})" if failure["hint"] else ""))
    if state.failed:
        say(f"{len(state.failed)} of {len(study.jobs)} runs failed; --retry failed does them once more")
    say(f"\nnext:\n  handful report {study.folder} --html report.html\n  handful compare A B --runs {study.folder}")
    if state.failed:
        raise typer.Exit(1)


def show_verdicts(results: Sequence[Result]) -> None:
    """What `handful compare` says of every two methods, where they are few."""
    from itertools import combinations

    from handful.studies.compare import compare, labels_of, with_label
    from handful.studies.results import without_stages
    from handful.studies.row_noise import RowReader

    labels, reader = labels_of(without_stages(results)), RowReader()
    if not 1 < len(labels) <= MOST_LABELS:
        return
    for a, b in combinations(labels, 2):
        try:
            found = compare(with_label(results, a), with_label(results, b), reader=reader)
        except RunError:  # they share no rows yet, or no scores
            continue
        show(found.statement)
    if len(labels) > 2:
        say(f"each verdict errs in 5 % of cases; there are {len(labels) * (len(labels) - 1) // 2} of them")


MOST_LABELS = 5
"""With more methods the report shows the pairs."""


@final
class StudyProgress:
    """Shows a study: what every worker does, how much is done, and when the rest will be.

    On a terminal a live table, elsewhere a line for every finished run.
    """

    def __init__(self, study: Study, done: int):
        from rich.console import Console
        from rich.live import Live

        self.study, self.total, self.done, self.failed = study, len(study.jobs), done, 0
        self.begun = time.monotonic()
        self.running: dict[str, tuple[Job, int, float, str]] = {}
        self.seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.left = {job.name: job for job in study.state().open}
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def __call__(self, event: JobEvent) -> None:
        from handful.studies.engines import JobAdvanced, JobFailed, JobStarted

        name = event.job.name
        if isinstance(event, JobStarted):
            self.running[name] = (event.job, event.worker, time.monotonic(), "")
            if event.attempt > 1:
                self._print(f"{name}: its worker was lost; begun once more")
        elif isinstance(event, JobAdvanced):
            job, worker, since, _ = self.running[name]
            self.running[name] = (job, worker, since, f"{event.what}: step {event.step} of {event.steps}")
        else:
            self._end(event, failed=isinstance(event, JobFailed))

    def say(self, text: str) -> None:
        """A line of talk above the table."""
        self._print(text)

    def _end(self, event: Any, *, failed: bool) -> None:
        name = event.job.name
        self.left.pop(name, None)
        _, _, since, _ = self.running.pop(name, (event.job, 0, time.monotonic(), ""))
        self.failed += failed
        self.done += not failed
        if failed:
            text = f"failed: {event.error}"
        else:
            seconds = time.monotonic() - since
            self.seconds[event.job.label, event.job.shots].append(seconds)
            text = f"{self._score(name)}, {duration(seconds)}"
        rest = self._time_left()
        left = f"; {rest} left{busy(self.study.recipe.threads * max(1, len(self.running)))}" if rest else ""
        self._print(f"[{self.done + self.failed}/{self.total}] {name}: {text}{left}")

    def _score(self, name: str) -> str:
        from handful.studies.study import RUNS, read_run

        record = read_run(self.study.folder / RUNS / name).record
        metric = record["task"]["metric"]
        return f"{metric} {record['scores'][metric]['mean']:.3f}" if record["scores"] else "no test rows"

    def _time_left(self) -> str:
        """From the mean time of runs of the same method and shots, or of all where there are none yet."""
        if not self.seconds:
            return ""
        overall = fmean(value for of in self.seconds.values() for value in of)
        means = {key: fmean(of) for key, of in self.seconds.items()}
        rest = sum(means.get((job.label, job.shots), overall) for job in self.left.values())
        return duration(rest / max(1, len(self.running) or 1))

    def _print(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(printable(text)), soft_wrap=True)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for job, worker, since, what in sorted(self.running.values(), key=lambda one: one[1]):
            table.add_row(f"worker {worker}", Text(job.name), Text(printable(what)), duration(time.monotonic() - since))
        ended = self.done + self.failed
        rest = self._time_left()
        failures = f", {self.failed} failed" if self.failed else ""
        table.add_row("study", f"{ended} of {self.total}{failures}", f"{rest} left" if rest else "", "")
        return table
