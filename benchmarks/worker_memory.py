"""Memory of a study's worker over many mixed runs, read from the system after every one.

    nice -n 10 python benchmarks/worker_memory.py [--runs 100] [--engine processes|ray] [--model splade-tiny]
        [--methods NAME ...] [--output FILE.jsonl]

One worker does a whole study: tasks of three lengths of text, three numbers of rows, and methods in turn, so that no
run is like the one before. Resident memory (VmRSS) is read once the run is done, the peak (VmHWM) is of that run alone:
the count is set back when one begins. Linux.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from handful.studies.engines import JobDone, JobEvent, JobFailed, JobStarted, make_engine
from handful.studies.recipe import Recipe
from handful.studies.study import Study

METHODS = ["head", "prefix", "prefix-subspace", "poly", "prune", "lora", "setfit", "prompt", "bias", "full"]
SHOTS, WORDS_PER_TEXT = [16, 50, 100], {"short": 6, "medium": 25, "long": 90}
WORDS = ("the", "a", "parcel", "never", "arrived", "late", "bad", "service", "refund", "please", "order", "nice")
WARM = 10
"""Runs until each method has been imported once."""


def main() -> None:
    """Run the study and print the memory every ten runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--engine", default="processes", choices=("processes", "ray"))
    parser.add_argument("--model", default="splade-tiny")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--output", type=Path, help="JSONL, one line per run; appended to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = measure(study(folder, arguments), arguments.engine)
    if arguments.output:
        with open(arguments.output, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line | {"engine": arguments.engine}) + "\n" for line in lines)
    print(f"{len(lines)} runs, engine {arguments.engine}, 1 worker, {arguments.model}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| after runs | resident MB | median of the ten | largest peak of the ten |\n|---:|---:|---:|---:|")
    for start in range(0, len(lines), 10):
        ten = lines[start : start + 10]
        resident = [line["resident"] for line in ten]
        peak = max(line["peak"] for line in ten)
        print(f"| {start + len(ten)} | {resident[-1]:.0f} | {median(resident):.0f} | {peak:.0f} |")
    later = [line["resident"] for line in lines[WARM:]] or [0.0]
    print(f"\nafter the first {WARM}: {min(later):.0f} to {max(later):.0f} MB")


def study(folder: Path, arguments: argparse.Namespace) -> Study:
    """So many runs of the methods in turn: every seed has each method on each task with each number of rows."""
    for name, words in WORDS_PER_TEXT.items():
        write_task(folder / "data" / f"{name}.csv", words)
    each = len(WORDS_PER_TEXT) * len(SHOTS) * len(arguments.methods)
    recipe = Recipe.from_dict({
        "name": "memory", "model": arguments.model, "shots": SHOTS, "seeds": -(-arguments.runs // each),
        "tasks": [{"name": name, "path": str(folder / "data" / f"{name}.csv")} for name in WORDS_PER_TEXT],
        "test_rows": 30, "threads": 1, "methods": arguments.methods,
        "set": {"training.epochs": 3, "run.max_length": 128},
    })  # fmt: skip
    made = Study(recipe, folder / "study", None)
    made.jobs = made.jobs[: arguments.runs]
    return made


def write_task(path: Path, words: int) -> None:
    """Rows of two classes, of about so many words."""
    path.parent.mkdir(exist_ok=True)
    draw = random.Random(words)
    rows = []
    for index in range(200):
        text = " ".join(draw.choices(WORDS, k=draw.randint(words // 2, 3 * words // 2)))
        rows.append(f"{text} {'great' if index % 2 else 'awful'} {index},{'p' if index % 2 else 'n'}\n")
    path.write_text("text,label\n" + "".join(rows), encoding="utf-8")


def measure(made: Study, engine: str) -> list[dict[str, Any]]:
    """A line per run: what it was, and the worker's memory in MB."""
    lines: list[dict[str, Any]] = []

    def listen(event: JobEvent) -> None:
        if isinstance(event, JobStarted):
            for process in workers():
                (process / "clear_refs").write_text("5")  # sets VmHWM back
        elif isinstance(event, JobFailed):
            raise SystemExit(f"{event.job.name}: {event.error}")
        elif isinstance(event, JobDone):
            (process,) = workers()
            job = event.job
            line: dict[str, Any] = {"run": len(lines) + 1, "method": job.label, "task": job.task, "shots": job.shots}
            line |= {"resident": memory(process, "VmRSS"), "peak": memory(process, "VmHWM"), "process": process.name}
            lines.append(line)
            print(f"\r{len(lines)} of {len(made.jobs)} runs", end="", flush=True)

    made.run(make_engine(engine, workers=1), listen)
    print("\r", end="")
    if len({line["process"] for line in lines}) > 1:
        raise SystemExit("the worker was lost and replaced: nothing can be said of its memory")
    return lines


def workers() -> list[Path]:
    """The workers' folders in /proc: our descendants that are programs of `studies.worker`, or actors of Ray."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = []
    for process in parents:
        above = process
        while above in parents and above != ME:
            above = parents[above]
        if above == ME and re.search(rb"handful\.studies\.worker|ray::RayWorker", command(process)):
            found.append(Path(f"/proc/{process}"))
    return found


ME = int(Path("/proc/self").resolve().name)


def command(process: int) -> bytes:
    """Its command line."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def memory(process: Path, name: str) -> float:
    """A number of MB from its status."""
    found = re.search(rf"{name}:\s+(\d+) kB", (process / "status").read_text())
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
