"""Processor seconds of training alone: the default beside SetFit with two and three iterations, on 100 rows.

    python benchmarks/setfit_time.py [--data ../shared/data] [--tasks extra/clinc_work ...] [--output FILE.jsonl]

MiniLM, 64 tokens, seed 0, one thread, one process; the order of the three turns round from task to task.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from handful.data.files import read_folder
from handful.runs.experiment import open_backbone, train
from handful.runs.spec import resolve

VARIANTS = {
    "prefix-subspace": ("prefix-subspace", {}),
    "setfit, 2 iterations": ("setfit", {"num_iterations": 2}),
    "setfit, 3 iterations": ("setfit", {"num_iterations": 3}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tasks", nargs="+", default=["extra/clinc_work", "extra/mr", "extra/trec"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for turn, name in enumerate(arguments.tasks):
        task = replace(read_folder(arguments.data / name), test=None)
        for label in list(VARIANTS)[:: -1 if turn % 2 else 1]:
            method, settings = VARIANTS[label]
            spec = resolve(method, overrides={"run.shots": 100, "run.max_length": 64, **settings})
            backbone, started = open_backbone(spec, task.kind), time.process_time()
            train(task, spec, backbone=backbone).trained.adapter.detach()
            seconds = round(time.process_time() - started, 2)
            lines.append({"task": name, "label": label, "shots": 100, "seed": 0, "cpu_seconds": seconds})
            print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
