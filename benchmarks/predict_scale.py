"""`handful predict` on files of 1,000, 10,000 and 100,000 short rows: CPU seconds and peak memory of the whole process.

    python benchmarks/predict_scale.py [--rows 1000 10000 100000] [--fits 10 --model minilm]

The model is a tiny random BERT, so that what is measured is everything beside the model: reading, tokenising, batching
and writing. With `--fits N` instead: CPU seconds of N fits with 24 kernels of oneDNN kept and N with 1,024, in turn,
and their ratios. Linux and macOS (it reads the resources of the child process).
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from handful.backbone.tiny import tiny_model, tiny_tokenizer

WORDS = "the a parcel never arrived late good bad service refund please help my order broken nice fast slow"


def main() -> None:
    """Train once, predict each file, and print a table."""
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of predict by number of rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--fits", type=int, default=0, help="Pairs of fits with few and with many kernels.")
    parser.add_argument("--model", default="minilm", help="Of those fits.")
    arguments = parser.parse_args()
    counts = arguments.rows
    if arguments.fits:
        compare_fits(arguments.fits, arguments.model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(folder)
        print("| rows | CPU s | peak memory, MB |\n|---:|---:|---:|")
        for count in counts:
            seconds, memory = predict(folder, run, count)
            print(f"| {count:,} | {seconds:.1f} | {memory:,.0f} |", flush=True)


def train(folder: Path) -> Path:
    """The run folder of a prefix-subspace model on the tiny BERT."""
    tiny_model("bert").save_pretrained(folder / "tiny")
    tiny_tokenizer("bert").save_pretrained(folder / "tiny")
    rows = [(f"{'good nice fast' if i % 2 else 'bad late broken'} {i}", "p" if i % 2 else "n") for i in range(60)]
    write(folder / "train.csv", ("text", "label"), rows)
    options = ["--model", folder / "tiny", "--output", folder / "runs", "--shots", "16", "--set", "training.epochs=1"]
    subprocess.run(handful("fit", folder / "train.csv", *options), check=True, capture_output=True, env=environment())
    return next((folder / "runs").glob("*/run.json")).parent


def compare_fits(pairs: int, model: str) -> None:
    """CPU seconds of fits with 24 and with 1,024 kernels, in turn, and the ratio of each pair."""
    print("| pair | CPU s, 24 kernels | CPU s, 1,024 | ratio |\n|---:|---:|---:|---:|")
    draw, rows = random.Random(0), []
    for index in range(80):
        words = " ".join(draw.choices(WORDS.split(), k=draw.randint(3, 40)))
        rows.append((f"{words} {'good' if index % 2 else 'bad'} {index}", "p" if index % 2 else "n"))
    with tempfile.TemporaryDirectory() as name:
        folder, ratios = Path(name), []
        write(folder / "train.csv", ("text", "label"), rows)
        for pair in range(1, pairs + 1):
            seconds = {}
            for kernels in ("24", "1024") if pair % 2 else ("1024", "24"):
                output = folder / f"runs-{pair}-{kernels}"
                options = ["--model", model, "--output", output, "--set", "training.epochs=8"]
                process = subprocess.Popen(
                    handful("fit", folder / "train.csv", *options), stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=environment() | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": kernels},
                )  # fmt: skip
                _, status, used = os.wait4(process.pid, 0)
                if status:
                    sys.exit(f"fit failed with {kernels} kernels")
                seconds[kernels] = used.ru_utime + used.ru_stime
            ratios.append(seconds["24"] / seconds["1024"])
            print(f"| {pair} | {seconds['24']:.1f} | {seconds['1024']:.1f} | {ratios[-1]:.3f} |", flush=True)
        print(f"\nmedian ratio {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def predict(folder: Path, run: Path, count: int) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of predicting so many rows."""
    draw = random.Random(count)
    texts = (" ".join(draw.choices(WORDS.split(), k=draw.randint(3, 9))) for _ in range(count))
    write(folder / "new.csv", ("id", "text"), ((i, f"{text} {i}") for i, text in enumerate(texts)))
    command = handful("predict", run, "--input", folder / "new.csv", "--output", folder / "out.csv")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"predict failed on {count:,} rows")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    return used.ru_utime + used.ru_stime, used.ru_maxrss / unit


def handful(*arguments: object) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "handful", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, nothing from the network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def write(path: Path, header: tuple[str, ...], rows) -> None:
    """A CSV file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
