"""The peer: SetFit as its own quick start does it. Needs an environment with setfit; nothing of handful is imported.

    python benchmarks/setfit_script.py fit train.jsonl OUTPUT --model FOLDER [--iterations 4]
    python benchmarks/setfit_script.py predict test.jsonl OUTPUT

`--iterations R` trains on 2·R pairs a row (SetFit's `num_iterations`); without it SetFit makes all pairs that its
default sampling gives, for one epoch. `predict` prints the accuracy as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def read_rows(path: Path) -> list[dict]:
    """The lines of a JSONL file with "text" and "label"."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fit(arguments: argparse.Namespace) -> None:
    rows = read_rows(arguments.data)
    model = SetFitModel.from_pretrained(arguments.model, labels=sorted({row["label"] for row in rows}))
    settings = TrainingArguments(
        output_dir=str(arguments.output / "checkpoints"),
        batch_size=arguments.batch_size,
        num_epochs=1,
        num_iterations=arguments.iterations,
        max_length=arguments.max_length,
        seed=arguments.seed,
        save_strategy="no",
        report_to="none",
    )
    Trainer(model=model, args=settings, train_dataset=Dataset.from_list(rows)).train()
    model.save_pretrained(str(arguments.output))


def predict(arguments: argparse.Namespace) -> None:
    rows = read_rows(arguments.data)
    found: Any = SetFitModel.from_pretrained(str(arguments.output)).predict([row["text"] for row in rows])
    print(json.dumps({"accuracy": sum(f == row["label"] for f, row in zip(found, rows, strict=True)) / len(rows)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["fit", "predict"])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    {"fit": fit, "predict": predict}[parsed.verb](parsed)
