"""Markdown tables of the trials that `few_shot.py` wrote.

    python benchmarks/table.py experiments/NAME.jsonl [--metric 0] [--baseline CANDIDATE]

A row a candidate, a column a task: the mean over seeds with its 95 % interval (Student's t), on the seeds that every
candidate has. With a baseline: the paired difference to it too, with the interval for tasks like these.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from handful.evaluation.estimate import Estimate, estimate_over_seeds
from handful.studies.verdicts import judge


def brief(estimate: Estimate) -> str:
    """'0.762' or '0.762 [0.731, 0.793]'."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--metric", type=int, default=0, help="0: the task's own; 1: NLL or MSE; 2: ECE")
    parser.add_argument("--baseline")
    arguments = parser.parse_args()
    trials: dict[str, dict[tuple[str, int], dict]] = {}
    for file in arguments.files:
        for record in map(json.loads, file.read_text().splitlines()):
            trials.setdefault(record["candidate"], {})[record["task"], record["seed"]] = record
    shared = sorted(set.intersection(*(set(cells) for cells in trials.values())))
    tasks = list(dict.fromkeys(task for task, _ in shared))

    def value(candidate: str, cell: tuple[str, int]) -> float:
        record = trials[candidate][cell]
        return record[[name for name in record if name.startswith("midpoint/")][arguments.metric]]

    print(f"{len(shared)} cells of task and seed\n")
    header = ["candidate", *tasks, "mean over tasks", "CPU s"] + (["minus baseline"] if arguments.baseline else [])
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for candidate in trials:
        cells = [brief(estimate_over_seeds([value(candidate, c) for c in shared if c[0] == task])) for task in tasks]
        means = [sum(v := [value(candidate, c) for c in shared if c[0] == task]) / len(v) for task in tasks]
        seconds = [trials[candidate][cell]["cpu_seconds"] for cell in shared]
        row = [f"`{candidate}`", *cells, f"{sum(means) / len(means):.3f}", f"{sum(seconds) / len(seconds):.0f}"]
        if arguments.baseline:
            groups = [
                np.array([value(candidate, c) - value(arguments.baseline, c) for c in shared if c[0] == task])
                for task in tasks
            ]
            found = judge(groups, [None] * len(tasks))  # test rows are not kept
            row.append("–" if candidate == arguments.baseline else brief(found.elsewhere or found.here))
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
