"""Runs an hour: `handful study` in processes and in sequence, a loop over `handful fit`, a loop over HF Trainer + PEFT.

    python benchmarks/study.py [--data ../shared/data] [--runs 6] [--shots 50] [--epochs 10] [--output FILE.jsonl]

Every subject does the same work from start to end: for each seed, train prefix tuning on K rows of glue/sst2 and score
the same test rows; imports, loading, training, scoring and saving included. Subjects that work on one run at a time
may use every core for it; `processes` has one worker of one thread a core. The peer's loop gets files with the very
rows of each seed. Wall-clock time: run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from handful.backbone.packaged import packaged_folder
from handful.data.files import read_folder
from handful.data.split import Split

HERE = Path(__file__).parent
MODEL, TASK = "minilm", "glue/sst2"


def recipe(arguments: argparse.Namespace, threads: int) -> str:
    """The study in TOML."""
    return f"""
        name = "throughput"
        model = "{MODEL}"
        tasks = ["{TASK}"]
        shots = [{arguments.shots}]
        seeds = {arguments.runs}
        test_rows = {arguments.test_rows}
        threads = {threads}
        methods = [{{ method = "prefix", set = {{ training.epochs = {arguments.epochs} }} }}]
    """


def rows_of_seed(arguments: argparse.Namespace, folder: Path, seed: int) -> tuple[Path, Path]:
    """The training and test rows of a seed as files for others."""
    task = read_folder(arguments.data / TASK)
    train, test = folder / f"train-{seed}.jsonl", folder / "test.jsonl"
    lines = [
        {"text": row.text, "label": task.labels[int(row.label or 0)]}
        for row in Split(task, arguments.shots, seed, dev="none").train
    ]
    train.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = (arguments.data / TASK / "test.jsonl").read_text(encoding="utf-8").splitlines()[: arguments.test_rows]
    test.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return train, test


def study_commands(arguments: argparse.Namespace, folder: Path, engine: str, threads: int) -> list[list[str]]:
    path = folder / f"{engine}.toml"
    path.write_text(recipe(arguments, threads), encoding="utf-8")
    program = str(Path(sys.executable).with_name("handful"))
    options = ["--engine", engine, "--data", str(arguments.data), "--output", str(folder / engine)]
    return [[program, "study", str(path), *options]]


def fit_commands(arguments: argparse.Namespace, folder: Path) -> list[list[str]]:
    program, commands = str(Path(sys.executable).with_name("handful")), []
    for seed in range(arguments.runs):
        train, test = rows_of_seed(arguments, folder, seed)
        options = ["--method", "prefix", "--set", f"training.epochs={arguments.epochs}", "--seed", str(seed)]
        commands.append([program, "fit", str(train), "--test", str(test), "--output", str(folder / "fits"), *options])
    return commands


def trainer_commands(arguments: argparse.Namespace, folder: Path) -> list[list[str]]:
    program, commands = [sys.executable, str(HERE / "trainer_peft.py")], []
    for seed in range(arguments.runs):
        train, test = rows_of_seed(arguments, folder, seed)
        output = str(folder / f"trainer-{seed}")
        options = ["--model", str(packaged_folder(MODEL)), "--epochs", str(arguments.epochs), "--seed", str(seed)]
        commands.append([*program, "fit", str(train), output, *options, "--cpu"])
        commands.append([*program, "predict", str(test), output, "--cpu"])
    return commands


def seconds_for(commands: list[list[str]], threads: int) -> float:
    """Wall time of commands after each other. Raises: SystemExit with the last words of one that fails."""
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    started = time.perf_counter()
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--shots", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--test-rows", type=int, default=200)
    parser.add_argument("--output", type=Path, help="JSONL, one line a subject; appended to")
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects: dict[str, tuple[Callable[[], list[list[str]]], int]] = {
            "HF Trainer + PEFT, a loop of scripts": (lambda: trainer_commands(arguments, folder), cores),
            "handful fit, a loop": (lambda: fit_commands(arguments, folder), cores),
            "handful study, sequential": (lambda: study_commands(arguments, folder, "sequential", cores), cores),
            "handful study, processes": (lambda: study_commands(arguments, folder, "processes", 1), 1),
        }
        measured = {name: seconds_for(commands(), threads) for name, (commands, threads) in subjects.items()}
    peer = measured["HF Trainer + PEFT, a loop of scripts"]
    print(f"\n{arguments.runs} runs, K={arguments.shots}, {arguments.epochs} epochs, {MODEL}, {TASK}, {cores} cores\n")
    print("| | wall s | runs an hour | ratio |\n|---|---:|---:|---:|")
    for name, seconds in measured.items():
        print(f"| {name} | {seconds:.0f} | {arguments.runs * 3600 / seconds:.0f} | {peer / seconds:.2f} |")
        if arguments.output:
            record = {"date": datetime.now(UTC).date().isoformat(), "subject": name, "wall_seconds": round(seconds, 2)}
            record |= {"runs": arguments.runs, "shots": arguments.shots, "epochs": arguments.epochs, "cores": cores}
            with open(arguments.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
