"""How fast a model is once closed units and heads are really taken out of it: one process, one thread, interleaved.

    python benchmarks/pruned_inference.py [--models minilm roberta-base] [--removed 0.4] [--rounds 40] [--output FILE]

Of the parameters in attention and feed-forward matrices, a share is closed at random: as a budget over both kinds, so
that every layer loses the same share of its heads and units up to rounding ("compact"), or all of it in feed-forward
units, as a stock BERT needs it ("dense"). What is measured is the exported model against the original, same inputs, no
padding. roberta-base has random weights: its shape matters here and not what it says.

Times are CPU seconds of this process. Ratios (original / exported) are taken within each round, in which every variant
runs once in random order; the interval is a percentile bootstrap of their median over rounds. Multiply-adds are counted
for the matrices and the attention products, embeddings and norms left out; "of possible" is the measured ratio divided
by that of the multiply-adds, of which `AIM_OF_POSSIBLE` is aimed at.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from transformers import AutoModel, RobertaConfig

from handful.backbone.blocks import Blocks, find_blocks, inputs, matrix, outputs
from handful.backbone.load import load_backbone
from handful.export.shrink import Shrunk, shrink
from handful.methods.gates.budget import Budget
from handful.randomness import stream

SHAPES = ((8, 128), (1, 16), (1, 128))
AIMS = {8: 1.5, 1: 1.3}
AIM_OF_POSSIBLE = 0.85


def load(name: str, seed: int) -> Any:
    """A bare encoder: a packaged one, or roberta-base in shape with random weights."""
    if name != "roberta-base":
        return load_backbone(name).model
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return AutoModel.from_config(RobertaConfig(), add_pooling_layer=False).eval().requires_grad_(False)


@torch.no_grad()
def close(model: Any, share: float, generator: torch.Generator, *, heads: bool) -> Any:
    """A copy with `share` of the gateable parameters closed at random: in units, or in `heads` as well."""
    model = copy.deepcopy(model)
    budget = Budget(find_blocks(model), share, heads, multiple=1)
    for block, size, count in zip(budget.gated, budget.sizes, budget.closing, strict=True):
        columns = matrix(model.get_submodule(block.output))
        columns.view(len(columns), size, -1)[:, torch.randperm(size, generator=generator)[:count]] = 0
    return model


def multiply_adds(blocks: Blocks, rows: int, length: int) -> int:
    """Of the blocks' matrices, and of the two products of attention, for a batch (B, S)."""
    model = blocks.model
    matrices = sum(outputs(model.get_submodule(n)) * inputs(model.get_submodule(n)) for n in blocks.matrices)
    widths = sum(inputs(model.get_submodule(block.output)) for block in blocks.attention)
    return rows * length * (matrices + 2 * length * widths)


def cpu_seconds(model: Any, ids: torch.Tensor) -> float:
    mask = torch.ones_like(ids)
    started = time.process_time()
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask)
    return time.process_time() - started


def interleaved(models: dict[str, Any], ids: torch.Tensor, rounds: int, seed: int) -> dict[str, np.ndarray]:
    """CPU seconds (rounds,) of each model; in every round each runs once, in random order."""
    order, seconds = np.random.default_rng(seed), {name: np.empty(rounds) for name in models}
    for _ in range(3):  # warm up
        for model in models.values():
            cpu_seconds(model, ids)
    for turn in range(rounds):
        for name in order.permutation(list(models)):
            seconds[name][turn] = cpu_seconds(models[name], ids)
    return seconds


def variants(model: Any, share: float, seed: int) -> dict[str, Shrunk]:
    """The exports: "dense" loses units alone, "compact" heads and units."""
    return {
        "dense (units alone)": shrink(close(model, share, stream(seed, "dense"), heads=False)),
        "compact (heads and units)": shrink(close(model, share, stream(seed, "compact"), heads=True), layout="ragged"),
    }


def compare(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants of one model on all shapes."""
    model = load(name, arguments.seed)
    blocks, small = find_blocks(model), variants(model, arguments.removed, arguments.seed)
    models = {"original": model} | {variant: shrunk.model for variant, shrunk in small.items()}
    records = []
    for rows, length in SHAPES:
        ids = torch.randint(1000, 20000, (rows, length), generator=stream(arguments.seed, "tokens"))
        rounds = arguments.rounds if rows > 1 else arguments.rounds * 3
        seconds = interleaved(models, ids, rounds, arguments.seed)
        for variant, shrunk in small.items():
            ratios = seconds["original"] / seconds[variant]
            interval = bootstrap((ratios,), np.median, method="percentile", rng=arguments.seed).confidence_interval
            work = multiply_adds(blocks, rows, length) / multiply_adds(find_blocks(shrunk.model), rows, length)
            records.append(
                {
                    "model": name, "variant": variant, "shape": f"{rows} × {length}", "rounds": rounds,
                    "removed": round(shrunk.record.removed, 4), "parameters": shrunk.record.parameters,
                    "original_ms": round(float(np.median(seconds["original"])) * 1e3, 2),
                    "exported_ms": round(float(np.median(seconds[variant])) * 1e3, 2),
                    "ratio": round(float(np.median(ratios)), 3),
                    "low": round(float(interval.low), 3), "high": round(float(interval.high), 3),
                    "ratio_of_minima": round(float(seconds["original"].min() / seconds[variant].min()), 3),
                    "work_ratio": round(work, 3), "of_possible": round(float(np.median(ratios)) / work, 3),
                    "aim": AIMS[rows], "aim_of_possible": AIM_OF_POSSIBLE,
                }
            )  # fmt: skip
    return records


def judge(low: float, high: float, aim: float) -> str:
    """Whether an interval is above the aim (nothing is said), below it, or holds it."""
    return "" if low >= aim else " (aim missed)" if high < aim else " (aim open)"


def show(records: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    headings = ["removed", "ms before", "ms after", "ratio [95 %]", "ratio of minima", "multiply-adds", "of possible"]
    print("\n| model | export | shape | " + " | ".join(headings) + " |\n|---|---|---" + "|---:" * len(headings) + "|")
    for r in records:
        met = judge(r["low"], r["high"], r["aim"])
        used = judge(r["low"] / r["work_ratio"], r["high"] / r["work_ratio"], r["aim_of_possible"])
        print(
            f"| {r['model']} | {r['variant']} | {r['shape']} | {r['removed']:.1%} | {r['original_ms']:.1f} | "
            f"{r['exported_ms']:.1f} | {r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]{met} | "
            f"{r['ratio_of_minima']:.2f} | {r['work_ratio']:.2f} | {r['of_possible']:.0%}{used} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm", "roberta-base"])
    parser.add_argument("--removed", type=float, default=0.4, help="share of the gateable parameters")
    parser.add_argument("--rounds", type=int, default=40, help="at batch 8; three times as many at batch 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSONL, one line a row of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "threads": arguments.threads,
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    print(" · ".join(f"{name} {value}" for name, value in where.items()))
    records = [record for name in arguments.models for record in compare(name, arguments)]
    show(records)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(r | where) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    main()
