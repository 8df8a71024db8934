"""Documented search for default settings, on training pools only: rows that no test set holds.

    python benchmarks/search.py DATA experiments/search.jsonl --tasks glue/sst2 extra/trec --seeds 0 1 \
        --candidate "name=prefix-subspace training.learning_rate=0.03 method.num_vertices=3" …

For each task and seed, K rows train and the next `--judge` rows of the pool judge; the task's test rows are never
opened. One line of JSON a run; runs that the output file holds already are skipped. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from handful.backbone.load import load_backbone
from handful.data.files import read_folder
from handful.data.split import Split
from handful.evaluation.evaluate import encode_for
from handful.evaluation.metrics import score
from handful.evaluation.predict import predict_rows
from handful.randomness import stream
from handful.runs.experiment import train
from handful.runs.spec import resolve


def parse(candidate: str) -> tuple[str, dict]:
    """'prefix a.b=1 c=x' → the method's name and its overrides."""
    method, *pairs = candidate.split()
    overrides = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            overrides[name] = json.loads(text)
        except json.JSONDecodeError:
            overrides[name] = text
    return method, overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--candidate", action="append", required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--shots", type=int, default=100)
    parser.add_argument("--judge", type=int, default=300)
    parser.add_argument("--ensemble", action="store_true", help="score ten random draws too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if arguments.output.exists():
        lines = [json.loads(line) for line in arguments.output.read_text().splitlines()]
        done = {(line["task"], line["seed"], line["candidate"]) for line in lines}
    backbones = {}
    for name in arguments.tasks:
        task = read_folder(arguments.data / name)
        for seed in arguments.seeds:
            for candidate in arguments.candidate:
                if (name, seed, candidate) in done:
                    continue
                method, overrides = parse(candidate)
                spec = resolve(
                    method, model=arguments.model, overrides={"shots": arguments.shots, "seed": seed, **overrides}
                )
                pooling = spec.options.pooling
                if pooling not in backbones:
                    backbones[pooling] = load_backbone(spec.model, pooling=pooling)
                judges = Split(task, arguments.shots, seed, dev="separate", dev_rows=arguments.judge).dev
                started = time.process_time()
                training = train(task, spec, backbone=backbones[pooling])
                seconds = time.process_time() - started
                adapter = training.trained.adapter
                rows = encode_for(adapter, judges, task, spec.options.max_length)
                record = {"task": name, "seed": seed, "candidate": candidate, "cpu_seconds": round(seconds, 2)}
                assert rows.labels is not None
                targets = rows.labels.numpy()
                predictors = (
                    ["midpoint", "ensemble"] if arguments.ensemble and adapter.num_vertices > 1 else ["midpoint"]
                )
                for predictor in predictors:
                    predictions = predict_rows(
                        adapter, rows, task.kind, predictor=predictor, generator=stream(seed, "judge")
                    )
                    metrics = [task.metric, "mse" if task.kind == "regression" else "nll"]
                    for metric in metrics:
                        key = f"{predictor}/{metric}"
                        record[key] = round(score(metric, predictions.needed_by(metric), targets), 4)
                record |= {k: round(v, 4) for k, v in adapter.diagnostics().items()}
                record |= {"steps": training.result.steps, "stopped": training.result.stopped}
                adapter.detach()
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                with open(arguments.output, "a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record, flush=True)


if __name__ == "__main__":
    main()
