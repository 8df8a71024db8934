"""Trials of methods and settings on real tasks, one line of JSON each.

    python benchmarks/few_shot.py DATA experiments/NAME.jsonl --tasks glue/sst2 extra/trec --seeds 0 1 --judge pool \
        --candidate "prefix-subspace learning_rate=0.03 num_vertices=3" --candidate "head"

`--judge pool` is for choosing settings: K rows of the pool train, the next `--rows` rows of the pool judge, and test
rows are never opened. `--judge test` is for the final comparison: `--rows` test rows. All candidates of a
task and seed see the same rows. Trials that the output file holds already are skipped. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from handful.backbone.load import Backbone, load_backbone
from handful.data.files import read_folder
from handful.data.split import Split
from handful.data.task import Task
from handful.evaluation.evaluate import Scores, evaluate
from handful.randomness import stream
from handful.runs.experiment import train
from handful.runs.spec import RunSpec, resolve


def parse(candidate: str) -> tuple[str, dict[str, Any]]:
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


def trial(task: Task, spec: RunSpec, backbone: Backbone, judge: str, rows: int, ensemble: bool) -> dict[str, Any]:
    """Train one spec and score it; the record of the trial."""
    options = spec.options
    started = time.process_time()
    training = train(task, spec, backbone=backbone)
    seconds = time.process_time() - started
    adapter = training.trained.adapter
    if judge == "pool":
        judges = Split(task, options.shots or 0, options.seed, dev="separate", dev_rows=rows).dev
    else:
        assert task.test is not None
        judges = task.test.sample(rows)
    record: dict[str, Any] = {"cpu_seconds": round(seconds, 2), "judged_on": judge}
    for predictor in ["midpoint", "ensemble"] if ensemble and adapter.num_vertices > 1 else ["midpoint"]:
        scores: Scores = evaluate(
            adapter, judges, task, max_length=options.max_length, predictor=predictor,
            generator=stream(options.seed, "judge"),
        )  # fmt: skip
        chosen = [task.metric, "mse"] if task.kind == "regression" else [task.metric, "nll", "ece"]
        record |= {f"{predictor}/{name}": round(scores.estimates[name].mean, 4) for name in chosen}
    record |= {name: round(value, 4) for name, value in adapter.diagnostics().items()}
    record |= {"steps": training.result.steps, "chosen_step": training.result.chosen_step}
    adapter.detach()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--candidate", action="append", required=True)
    parser.add_argument("--judge", choices=("pool", "test"), required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--shots", type=int, default=100)
    parser.add_argument("--ensemble", action="store_true", help="score ten random draws too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if arguments.output.exists():
        lines = [json.loads(line) for line in arguments.output.read_text().splitlines()]
        done = {(line["task"], line["seed"], line["candidate"]) for line in lines}
    backbones: dict[str, Backbone] = {}
    for name in arguments.tasks:
        task = read_folder(arguments.data / name)
        for seed in arguments.seeds:
            for candidate in arguments.candidate:
                if (name, seed, candidate) in done:
                    continue
                method, overrides = parse(candidate)
                chosen = {"shots": arguments.shots, "seed": seed, **overrides}
                spec = resolve(method, model=arguments.model, overrides=chosen)
                pooling = spec.options.pooling
                if pooling not in backbones:
                    backbones[pooling] = load_backbone(spec.model, pooling=pooling)
                record = {"task": name, "seed": seed, "candidate": candidate}
                record |= trial(task, spec, backbones[pooling], arguments.judge, arguments.rows, arguments.ensemble)
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                with open(arguments.output, "a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record, flush=True)


if __name__ == "__main__":
    main()
