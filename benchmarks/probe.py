"""Which penalty a probe of few rows should have, and whether its classes should weigh the same: one line of JSON a fit.

    python benchmarks/probe.py DATA experiments/probe.jsonl --tasks glue/sst2 extra/clinc_home --shots 16 32 100

K rows of each task's pool train a logistic regression on frozen features of unit mean square norm, the next `--rows`
rows of the pool judge it; test rows are never opened. `C` is scikit-learn's inverse penalty; "chosen" is the one that
the method `head` takes, which does not weigh classes alike. At the end: means over tasks and draws. One thread.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

from handful.backbone.load import Backbone, load_backbone
from handful.data.batching import encode
from handful.data.files import read_folder
from handful.data.split import Split
from handful.data.task import Task
from handful.methods.head import frozen_features
from handful.objectives import objective_of

GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)


def draw(task: Task, backbone: Backbone, shots: int, seed: int, rows: int) -> tuple[np.ndarray, ...]:
    """Features and labels of the rows to train on, then of those that judge; features scaled as the probe's are."""
    split = Split(task, shots, seed, dev="separate", dev_rows=rows)
    arrays: list[np.ndarray] = []
    for part in (split.train, split.dev):
        encoded = encode(list(part), backbone.tokenizer, 64, kind=task.kind)
        assert encoded.labels is not None
        arrays += [frozen_features(backbone, encoded).double().numpy(), encoded.labels.numpy().astype(int)]
    norm = np.sqrt((arrays[0] ** 2).sum(1).mean())
    return arrays[0] / norm, arrays[1], arrays[2] / norm, arrays[3]


def judged(arrays: tuple[np.ndarray, ...], classes: int, penalty: float, balanced: bool) -> dict[str, Any]:
    """Accuracy and NLL of one fit; a class without a row has probability 1e-9."""
    features, labels, others, truth = arrays
    weight = "balanced" if balanced else None
    model = LogisticRegression(C=penalty, max_iter=2000, class_weight=weight).fit(features, labels)
    probabilities = np.full((len(others), classes), 1e-9)
    probabilities[:, model.classes_] = model.predict_proba(others)
    probabilities /= probabilities.sum(1, keepdims=True)
    return {
        "accuracy": round(float(accuracy_score(truth, probabilities.argmax(1))), 4),
        "nll": round(float(log_loss(truth, probabilities, labels=range(classes))), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--shots", nargs="+", type=int, default=[16, 32, 100])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--model", default="minilm")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone(arguments.model)
    table: dict[tuple[int, str, bool], list[dict[str, Any]]] = defaultdict(list)
    with open(arguments.output, "w") as file:
        for name in arguments.tasks:
            task = read_folder(arguments.data / name)
            for shots in arguments.shots:
                for seed in arguments.seeds:
                    arrays = draw(task, backbone, shots, seed, arguments.rows)
                    chosen = objective_of("classification").choose_penalty(arrays[0], arrays[1].astype(float))
                    fits = [(f"{value:g}", value) for value in GRID] + [("chosen", chosen)]
                    for (label, penalty), balanced in [(fit, balanced) for fit in fits for balanced in (False, True)]:
                        scores = judged(arrays, task.num_outputs, penalty, balanced)
                        table[shots, label, balanced].append(scores)
                        record = {"task": name, "shots": shots, "seed": seed, "C": label, "balanced": balanced}
                        file.write(json.dumps(record | scores) + "\n")
    for (shots, label, balanced), scores in table.items():
        means = "  ".join(f"{key} {np.mean([score[key] for score in scores]):.3f}" for key in ("accuracy", "nll"))
        print(f"K {shots:<4} C {label:<7} {'balanced' if balanced else '':9} {means}")


if __name__ == "__main__":
    main()
