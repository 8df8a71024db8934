"""What a training step and an epoch cost, beside PEFT: one process, one thread, variants interleaved in random order.

    python benchmarks/step.py [--data ../shared/data] [--rounds 40] [--epoch-rounds 10] [--output FILE.jsonl]

Table 1, step: every variant does forward, backward, clipping and AdamW on the same batch of real rows. "Equal
settings" are prefix length 10 on every layer, the model's own pooler, dropout on, shifted positions; our defaults are
mean pooling, dropout off and, through that, no computation for padding.
Table 2, epoch: `handful.training.fit` with the default preset, and the Trainer of `trainer_peft.py`, over 100 rows;
set-up and handful's warm start are left out, its trunk cache (where the preset has one) is not.

Times are CPU seconds of this process. Other load on the machine slows neighbouring measurements alike, so a ratio is
taken within each round; its interval is a percentile bootstrap of the median over rounds. Memory comes from a fresh
process a variant (Linux): the peak of resident memory during three steps above what was resident after loading, and
the bytes that autograd keeps from forward to backward, parameters apart.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainer_peft
from peft import get_peft_model
from scipy.stats import bootstrap
from transformers import AutoModelForSequenceClassification, TrainerCallback

from handful.backbone.load import load_backbone
from handful.backbone.packaged import packaged_folder
from handful.data.batching import Batch, EncodedRows, encode
from handful.data.files import read_folder
from handful.data.split import Split
from handful.data.task import Task
from handful.methods import method_class
from handful.randomness import stream
from handful.runs.spec import resolve
from handful.training.events import Event, FitFinished, FitStarted
from handful.training.fit import batch_loss, fit

MODEL, SHOTS, MAX_LENGTH, LEARNING_RATE = "minilm", 100, 128, 1e-2
Step = Callable[[], None]


class Rows:
    """The rows of one split, and a batch of the first of them."""

    def __init__(self, arguments: argparse.Namespace):
        self.task: Task = read_folder(arguments.data / "glue" / "sst2")
        self.split = Split(self.task, SHOTS, arguments.seed, dev="none")
        self.encoded: EncodedRows = encode(
            self.split.train, load_backbone(MODEL).tokenizer, MAX_LENGTH, kind=self.task.kind
        )
        self.batch: Batch = self.encoded.batch(list(range(arguments.batch_size)))


def handful_step(rows: Rows, method: str, *, equal: bool = True) -> Step:
    """One step of a prefix method of ours: `equal` to PEFT's in pooler and dropout, or by our defaults."""
    backbone = load_backbone(MODEL, pooling="family" if equal else "auto")
    settings: dict[str, Any] = {"head_init": "normal", "prefix_length": 10}
    adapter = method_class(method)(**settings).attach(backbone, rows.task, generator=stream(0, "init")).train()
    backbone.model.train(equal)
    draws = stream(0, "draws")

    def loss() -> torch.Tensor:
        scores = adapter(rows.batch, adapter.draw(rows.batch, draws))
        return batch_loss(scores, rows.batch, adapter, rows.task.kind)

    return training_step(loss, list(adapter.parameters()))


def stock_step(rows: Rows, method: str | None) -> Step:
    """One step of stock PEFT, or with None of full fine-tuning."""
    model = AutoModelForSequenceClassification.from_pretrained(packaged_folder(MODEL), num_labels=2)
    if method is not None:
        model = get_peft_model(model, trainer_peft.peft_config(method))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return training_step(lambda: model(**rows.batch.inputs, labels=rows.batch.labels).loss, trained)


def training_step(loss: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter]) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


PEER = "PEFT prefix tuning"
STEPS: dict[str, Callable[[Rows], Step]] = {
    PEER: lambda rows: stock_step(rows, "prefix"),
    "prefix-subspace, 3 vertices": lambda rows: handful_step(rows, "prefix-subspace"),
    "prefix (1 vertex)": lambda rows: handful_step(rows, "prefix"),
    "prefix-subspace, our defaults": lambda rows: handful_step(rows, "prefix-subspace", equal=False),
    "PEFT LoRA r=8": lambda rows: stock_step(rows, "lora"),
    "full fine-tuning": lambda rows: stock_step(rows, None),
}


def cpu_seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def interleaved(actions: dict[str, Callable[[], float]], rounds: int, seed: int) -> dict[str, np.ndarray]:
    """Seconds (rounds,) that each action returns; in every round each runs once, in random order."""
    order = np.random.default_rng(seed)
    seconds = {name: np.empty(rounds) for name in actions}
    for turn in range(rounds):
        for name in order.permutation(list(actions)):
            seconds[name][turn] = actions[name]()
    return seconds


def handful_epoch(rows: Rows, epochs: int) -> Callable[[], float]:
    """CPU seconds of an epoch of `fit` with the default preset of prefix-subspace."""
    spec = resolve("prefix-subspace", model=MODEL)
    backbone = load_backbone(MODEL, pooling=spec.options.pooling)
    turns = iter(range(1_000_000))

    def run() -> float:
        turn, stamps = next(turns), {}

        def listen(event: Event) -> None:
            stamps[type(event)] = time.process_time()

        adapter = spec.method.attach(backbone, rows.task, generator=stream(turn, "init"))
        config = replace(spec.training, epochs=epochs)
        generator = stream(turn, "fit")
        task: dict[str, Any] = {"kind": rows.task.kind, "metric": rows.task.metric}
        fit(adapter, rows.encoded, None, config, **task, generator=generator, on_event=listen)
        adapter.detach()
        return (stamps[FitFinished] - stamps[FitStarted]) / epochs

    return run


class EpochClock(TrainerCallback):
    """CPU time at the start of the first and the end of the last epoch."""

    def on_epoch_begin(self, *positional, **named) -> None:
        self.start = getattr(self, "start", time.process_time())

    def on_epoch_end(self, *positional, **named) -> None:
        self.end = time.process_time()


def trainer_epoch(rows: Rows, epochs: int, method: str) -> Callable[[], float]:
    """CPU seconds of an epoch of the HF Trainer with PEFT, everything at its default."""
    texts = [{"text": row.text, "label": rows.task.labels[int(row.label or 0)]} for row in rows.split.train]
    turns = iter(range(1_000_000))

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            options = f"--model {packaged_folder(MODEL)} --method {method} --epochs {epochs} --seed {next(turns)} --cpu"
            arguments = trainer_peft.parser().parse_args(["fit", "-", folder, *options.split()])
            trainer, _ = trainer_peft.make_trainer(arguments, texts)
            trainer.add_callback(clock := EpochClock())
            trainer.train()
        return (clock.end - clock.start) / epochs

    return run


def memory(name: str) -> dict[str, float]:
    """MB of one variant, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, *sys.argv[1:]]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def measure_memory(step: Step) -> dict[str, float]:
    """MB of a step: the peak above what is resident now, and what autograd keeps for backward."""
    known = {t.untyped_storage().data_ptr() for t in gc.get_objects() if isinstance(t, torch.nn.Parameter)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = resident("VmRSS")
    for _ in range(3):
        step()
    peak = resident("VmHWM") - before
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return {"peak_mb": round(peak, 1), "saved_mb": round(sum(kept.values()) / 2**20, 1)}


def resident(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def summarise(seconds: dict[str, np.ndarray], peer: str, seed: int) -> dict[str, dict[str, float]]:
    """Median and minimum in ms, and the ratio to the peer with its 95 % interval."""
    records = {}
    for name, own in seconds.items():
        ratios = own / seconds[peer]
        record = {"median_ms": np.median(own) * 1e3, "min_ms": own.min() * 1e3, "ratio": np.median(ratios)}
        if name != peer:
            interval = bootstrap((ratios,), np.median, method="percentile", rng=seed).confidence_interval
            record |= {"low": interval.low, "high": interval.high, "ratio_of_minima": own.min() / seconds[peer].min()}
        records[name] = {key: round(float(value), 4) for key, value in record.items()}
    return records


def show(title: str, records: dict[str, dict[str, float]], extra: dict[str, str]) -> None:
    """Print a Markdown table; `extra` maps further fields to their headings."""
    print(f"\n{title}\n")
    headings = ["", "median ms", "min ms", "ratio [95 %]", "ratio of minima", *extra.values()]
    print("| " + " | ".join(headings) + " |\n|---" + "|---:" * (len(headings) - 1) + "|")
    for name, record in records.items():
        ratio = "1" if "low" not in record else f"{record['ratio']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"
        minima = f"{record.get('ratio_of_minima', 1):.3f}"
        cells = [name, f"{record['median_ms']:.0f}", f"{record['min_ms']:.0f}", ratio, minima]
        print("| " + " | ".join([*cells, *(f"{record[key]:.0f}" for key in extra)]) + " |")


def setting(arguments: argparse.Namespace) -> dict[str, object]:
    """Where and when this was measured."""
    names = ("torch", "transformers", "peft", "accelerate")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "threads": arguments.threads,
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def step_table(arguments: argparse.Namespace, rows: Rows) -> dict[str, dict[str, float]]:
    """Measure and print table 1."""
    steps = {name: make(rows) for name, make in STEPS.items()}
    for step in [*steps.values()] * 2:  # warm up
        step()
    actions = {name: partial(cpu_seconds, step) for name, step in steps.items()}
    records = summarise(interleaved(actions, arguments.rounds, arguments.seed), PEER, arguments.seed)
    for name, record in records.items():
        record |= memory(name)
    shape = "{} × {} tokens".format(*rows.batch.inputs["input_ids"].shape)
    extra = {"saved_mb": "kept for backward MB", "peak_mb": "peak above load MB"}
    show(f"Step: {MODEL}, {shape}, {arguments.rounds} rounds", records, extra)
    return records


def epoch_table(arguments: argparse.Namespace, rows: Rows) -> dict[str, dict[str, float]]:
    """Measure and print table 2."""
    peer = "HF Trainer + PEFT prefix tuning"
    epochs = {
        peer: trainer_epoch(rows, arguments.epochs, "prefix"),
        "handful, prefix-subspace, default preset": handful_epoch(rows, arguments.epochs),
        "HF Trainer + PEFT LoRA r=8": trainer_epoch(rows, arguments.epochs, "lora"),
    }
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints its losses
        seconds = interleaved(epochs, arguments.epoch_rounds, arguments.seed)
    records = summarise(seconds, peer, arguments.seed)
    batches = f"batches of {arguments.batch_size}"
    show(f"Epoch: {MODEL}, {SHOTS} rows, {batches}, {arguments.epoch_rounds} rounds", records, {})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=40, help="of table 1; 0 leaves it out")
    parser.add_argument("--epoch-rounds", type=int, default=10, help="of table 2; 0 leaves it out")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of one training in table 2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSONL, one line a variant")
    parser.add_argument("--memory", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = Rows(arguments)
    if arguments.memory:
        print(json.dumps(measure_memory(STEPS[arguments.memory](rows))))
        return
    where = setting(arguments)
    print(" · ".join(f"{name} {value}" for name, value in where.items()))
    lines = []
    for table, rounds in ((step_table, arguments.rounds), (epoch_table, arguments.epoch_rounds)):
        records = table(arguments, rows) if rounds else {}
        name = table.__name__.removesuffix("_table")
        lines += [{"table": name, "variant": v, "rounds": rounds, **r, **where} for v, r in records.items()]
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
