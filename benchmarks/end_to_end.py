"""Whole processes, from start to a saved model: `handful fit` beside an HF Trainer + PEFT script and SetFit.

    python benchmarks/end_to_end.py [--data ../shared/data] [--repeats 3] [--setfit-python ENV/bin/python]
                                    [--output experiments/end_to_end.jsonl]

Every subject trains on the same rows of glue/sst2 in a process of its own, with the same number of threads, in turn.
Wall and CPU seconds and the peak resident memory are the operating system's figures for that process, imports and
saving included. Afterwards, untimed, a second process loads what was saved and predicts the task's test rows. The
training seed differs between repeats, the rows do not.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median

from handful.backbone.packaged import packaged_folder
from handful.data.files import read_folder
from handful.data.split import Split

HERE = Path(__file__).parent
MODEL, TASK, SHOTS = "minilm", "glue/sst2", 100


@dataclass(frozen=True)
class Subject:
    """How one library trains and predicts: `fit(folder, seed)` is a command, `accuracy(folder)` a score."""

    fit: Callable[[Path, int], list[str]]
    accuracy: Callable[[Path], float]


def handful_subject(train: Path, test: Path, *settings: str) -> Subject:
    """The command line with the default preset of prefix-subspace and these settings."""
    program = str(Path(sys.executable).with_name("handful"))
    options = ["--model", MODEL, "--test-fraction", "0", *(part for text in settings for part in ("--set", text))]

    def accuracy(folder: Path) -> float:
        run = next(folder.glob("*/run.json")).parent
        lines = output_of([program, "predict", str(run), "--input", str(test), "--json"]).splitlines()
        found = [json.loads(line)["label"] for line in lines]
        expected = [json.loads(line)["label"] for line in test.read_text(encoding="utf-8").splitlines()]
        return fmean(f == e for f, e in zip(found, expected, strict=True))

    def fit(folder: Path, seed: int) -> list[str]:
        return [program, "fit", str(train), "--output", str(folder), "--seed", str(seed), *options]

    return Subject(fit, accuracy)


def script_subject(python: str, script: str, train: Path, test: Path, *options: str) -> Subject:
    """One of the peers' scripts beside this file."""
    program, model = [python, str(HERE / script)], ["--model", str(packaged_folder(MODEL))]

    def fit(folder: Path, seed: int) -> list[str]:
        return [*program, "fit", str(train), str(folder), *model, "--seed", str(seed), *options]

    def accuracy(folder: Path) -> float:
        return json.loads(output_of([*program, "predict", str(test), str(folder)]).splitlines()[-1])["accuracy"]

    return Subject(fit, accuracy)


def environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def output_of(command: list[str]) -> str:
    return subprocess.run(command, check=True, text=True, capture_output=True, env=environment(2)).stdout


def measure(command: list[str], threads: int) -> dict[str, float]:
    """What a process costs from start to end. Raises: SystemExit with its last words if it fails."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment(threads))
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read().decode()[-2000:]}")
    return {
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


def subjects(arguments: argparse.Namespace, folder: Path) -> dict[str, Subject]:
    """Everything to be compared, with its training and test rows written below `folder`."""
    task = read_folder(arguments.data / TASK)
    train, test = folder / "train.jsonl", arguments.data / TASK / "test.jsonl"
    rows = Split(task, SHOTS, 0, dev="none").train
    lines = (json.dumps({"text": row.text, "label": task.labels[int(row.label or 0)]}) for row in rows)
    train.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    epochs, peer = arguments.epochs, "trainer_peft.py"
    trainer = ["--cpu", "--epochs", str(epochs)]
    chosen = {
        f"handful fit, {epochs} epochs": handful_subject(train, test, f"training.epochs={epochs}"),
        f"HF Trainer + PEFT prefix tuning, {epochs} epochs": script_subject(
            sys.executable, peer, train, test, *trainer
        ),
        f"HF Trainer + PEFT LoRA, {epochs} epochs": script_subject(
            sys.executable, peer, train, test, *trainer, "--method", "lora"
        ),
    }
    for iterations in arguments.setfit_iterations if arguments.setfit_python else ():
        name = f"SetFit, {iterations} iterations" if iterations else "SetFit, default pairs, 1 epoch"
        options = ["--iterations", str(iterations)] if iterations else []
        chosen[name] = script_subject(arguments.setfit_python, "setfit_script.py", train, test, *options)
    return chosen


def show(records: list[dict], threads: int) -> None:
    """Print a Markdown table of medians over repeats; the ratio is to the peer's CPU seconds of the same repeat."""
    names = list(dict.fromkeys(record["subject"] for record in records))
    peer = {r["repeat"]: r["cpu_seconds"] for r in records if "PEFT prefix" in r["subject"]}
    print(f"\nWhole process, {MODEL}, {TASK}, K={SHOTS}, {len(peer)} repeats, {threads} thread(s)\n")
    print("| | wall s | CPU s | CPU ratio | peak RSS MB | test accuracy (mean; each) |\n|---|---:|---:|---:|---:|---|")
    for name in names:
        runs = [record for record in records if record["subject"] == name]
        wall, cpu, peak = (median(r[key] for r in runs) for key in ("wall_seconds", "cpu_seconds", "peak_mb"))
        ratio = median(r["cpu_seconds"] / peer[r["repeat"]] for r in runs)
        scores = [r["accuracy"] for r in runs]
        each = ", ".join(f"{value:.3f}" for value in scores)
        print(f"| {name} | {wall:.0f} | {cpu:.0f} | {ratio:.2f} | {peak:.0f} | {fmean(scores):.3f} ({each}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--setfit-python", help="the interpreter of an environment with setfit")
    parser.add_argument("--setfit-iterations", type=int, nargs="+", default=[4], help="0: SetFit's default pairs")
    parser.add_argument("--output", type=Path, help="JSONL, one line a process; appended to")
    arguments = parser.parse_args()
    records: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        compared = subjects(arguments, Path(name))
        for repeat in range(arguments.repeats):
            order = list(compared)
            for subject in order[repeat % len(order) :] + order[: repeat % len(order)]:
                folder = Path(name) / f"{repeat}-{order.index(subject)}"
                cost = measure(compared[subject].fit(folder, repeat), arguments.threads)
                accuracy = round(compared[subject].accuracy(folder), 4)
                where = {"date": datetime.now(UTC).date().isoformat(), "threads": arguments.threads}
                load = round(os.getloadavg()[0], 1)
                records.append(
                    {"subject": subject, "repeat": repeat, **cost, "accuracy": accuracy, **where, "load": load}
                )
                print(records[-1], file=sys.stderr, flush=True)
                if arguments.output:
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    with open(arguments.output, "a", encoding="utf-8") as file:
                        file.write(json.dumps(records[-1]) + "\n")
    records.sort(key=lambda record: list(compared).index(record["subject"]))
    show(records, arguments.threads)


if __name__ == "__main__":
    main()
