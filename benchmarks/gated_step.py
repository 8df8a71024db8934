"""What gates cost: a training step beside one of bias-only tuning, and a forward beside the ungated model's.

    python benchmarks/gated_step.py [--data ../shared/data] [--rounds 40] [--output FILE.jsonl]

One process, one thread, variants interleaved in random order; CPU seconds, ratios within each round, percentile
bootstrap of the median over rounds. Every variant trains on the same batch of real rows with the same loss, mean
pooling and no dropout. That a gated model is no faster until what is closed is taken out of it is check 11 of the
method's page; `pruned_inference.py` has the other half.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step import MODEL, Rows, cpu_seconds, interleaved, setting, show, summarise, training_step

from handful.backbone.load import load_backbone
from handful.methods import method_class
from handful.randomness import stream
from handful.training.fit import batch_loss

STEPS = 10**6
PEER = "bias-only"
HEAD: dict[str, Any] = {"head_init": "normal"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    PEER: ("bias", {}),
    "published gates": ("fine-gates", {"penalty_start": 0.0, "train_biases": False}),
    "published gates and biases": ("fine-gates", {"penalty_start": 0.0}),
    "learned gates and biases": ("prune", {"importance": "learned"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = Rows(arguments)
    steps, forwards = {}, {}
    for label, (name, settings) in METHODS.items():
        method = method_class(name)(**settings, **HEAD)
        adapter = method.attach(load_backbone(MODEL), rows.task, generator=stream(0, "init"))
        adapter.begin_training(STEPS, rows.encoded)
        adapter.warm_start(rows.encoded, stream(0, "start"))
        steps[label] = partial(cpu_seconds, gated_step(adapter.train(), rows))
    for label in ("frozen model", "published gates", "learned gates and biases"):
        forwards[label] = partial(cpu_seconds, forward(label, rows))
    lines = []
    for table, peer, actions in (("step", PEER, steps), ("forward", "frozen model", forwards)):
        records = summarise(interleaved(actions, arguments.rounds, arguments.seed), peer, arguments.seed)
        show(f"{table}, beside {peer}", records, {})
        lines += [{"table": table, "variant": name, **record, **setting(arguments)} for name, record in records.items()]
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def gated_step(adapter: Any, rows: Rows) -> Any:
    draws = stream(0, "draws")

    def loss() -> torch.Tensor:
        adapter.after_step(STEPS // 3)  # amid closing: some gates are closed, and each step chooses anew which
        draw = adapter.draw(rows.batch, draws)
        value = batch_loss(adapter(rows.batch, draw), rows.batch, adapter, rows.task.kind)
        penalty = adapter.penalty(draw)
        return value if penalty is None else value + penalty

    return training_step(loss, list(adapter.parameters()))


def forward(label: str, rows: Rows) -> Any:
    """A forward without gradients of the model alone, or with the gates of a variant in front of its weights."""
    backbone = load_backbone(MODEL)
    if label == "frozen model":
        run = lambda: backbone.features(rows.batch.inputs)  # noqa: E731
    else:
        name, settings = METHODS[label]
        adapter = method_class(name)(**settings).attach(backbone, rows.task, generator=stream(0, "init")).eval()
        run = lambda: adapter(rows.batch)  # noqa: E731

    def without_gradients() -> None:
        with torch.no_grad():
            run()

    return without_gradients


if __name__ == "__main__":
    main()
