"""`accelerate launch` on two processes: the numbers of a single one, one run folder, nobody left hanging.

Run as a program by the launcher, this file does all its cases in one pair of processes.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from handful.backbone.tiny import tiny_backbone
from handful.cli.main import run
from handful.data.task import TaskKind
from handful.errors import RunError
from handful.evaluation.evaluate import encode_rows
from handful.evaluation.predict import predict_rows
from handful.evaluation.text.generate import GenerationOptions, token_nll
from handful.export import speedup
from handful.methods import method_class
from handful.runs.spec import resolve
from handful.runs.store import read_run
from handful.testing import toy_task
from handful.training.config import TrainingConfig
from handful.training.events import StepDone
from handful.training.fit import fit

TOLERANCE = 2e-5
"""Largest gap of a weight, score or loss, all of order 1: sums in another order, through 25 steps of AdamW."""

CASES = {
    "observation": (
        "prefix-subspace",
        {"prefix_length": 3, "cosine_weight": 0.1},
        {"selection": "best", "patience": 4},
    ),
    "batch": ("prefix-subspace", {"prefix_length": 3, "draw_per": "batch", "layers": (1, 3)}, {"average_last": 0.5}),
    "lora": ("lora", {"rank": 2}, {"weight_decay": 0.1, "learning_rate": 1e-2}),
    "head": ("head", {"head_init": "normal"}, {"gradient_clip": 0.0}),
    "regression": ("prefix-subspace", {"prefix_length": 3}, {"validation": "averaged", "validation_draws": 2}),
    "continued": ("prefix-subspace", {"prefix_length": 3}, {"fresh_draws": True, "validation": "pooled"}),
    "writing": ("scaled-prompt", {"prompt_length": 2}, {}),
    "broken": ("prefix-subspace", {"prefix_length": 3}, {}),
}
"""Method, its settings, and those of training; "batch" and "head" keep the trunk below them.

LoRA at the others' rate of 3e-2 makes a change of one rounding a gap of 6e-5 in one process already; at 1e-2 of 5e-7.
"""

BROKEN_ROW, BROKEN_STEP = 5, 7


the_backbone = cache(lambda: tiny_backbone("bert"))
the_writer = cache(lambda: tiny_backbone("t5", purpose="lm"))
"""Made before the processes know of each other: of several, transformers lets only one write a model."""


class Case:
    """One fit of 17 rows in batches of 4. Every epoch has a batch of one row, of which the second process has none."""

    def __init__(self, name: str):
        method, settings, config = CASES[name]
        self.name, self.step = name, 0
        kinds: dict[str, TaskKind] = {"regression": "regression", "writing": "generation"}
        self.task = toy_task(kinds.get(name, "classification"))
        self.config = TrainingConfig(**{"epochs": 5, "batch_size": 4, "learning_rate": 3e-2, **config})
        self.writes = name == "writing"
        backbone = the_writer() if self.writes else the_backbone()
        generator = torch.Generator().manual_seed(0)
        self.adapter = method_class(method).from_settings(settings).attach(backbone, self.task, generator=generator)
        self.adapter.after_step = self.after_step
        self.rows, self.dev = (
            encode_rows(backbone, rows, self.task, 64, GenerationOptions() if self.writes else None)
            for rows in (self.task.pool[:17], self.task.pool[17:])
        )
        self.adapter.forward = self.forward
        self.seen = 0

    def after_step(self, step: int) -> None:
        self.step = step

    def forward(self, batch, draw=None):
        """The adapter's own, with training rows counted; in "broken" one row's scores are not finite from a step on."""
        scores = type(self.adapter).forward(self.adapter, batch, draw)
        self.seen += len(batch) if self.adapter.training else 0
        broken = self.name == "broken" and self.adapter.training and self.step >= BROKEN_STEP
        return scores * torch.where(batch.rows == BROKEN_ROW, torch.inf, 1.0)[:, None] if broken else scores

    def run(self, folder: Path | None = None) -> tuple[dict[str, torch.Tensor], list]:
        """Weights, dev predictions and losses; and the words and numbers of the result."""
        losses = []
        result = fit(
            self.adapter, self.rows, self.dev, self.config, kind=self.task.kind, metric=self.task.metric,
            generator=torch.Generator().manual_seed(1), checkpoint_folder=folder,
            on_event=lambda event: losses.append(event.loss) if isinstance(event, StepDone) else None,
        )  # fmt: skip
        if self.writes:
            scores = torch.tensor([token_nll(self.adapter, self.dev)])
        else:
            scores = self.adapter.standardise(
                torch.from_numpy(predict_rows(self.adapter, self.dev, self.task.kind).scores)
            )
        tensors = {"scores": scores, "losses": torch.tensor(losses)}
        told = [
            result.steps,
            result.chosen_step,
            result.stopped,
            [record["score"] for record in result.history],
            self.seen,
        ]
        tensors |= {name: tensor.clone() for name, tensor in self.adapter.state_dict().items()}
        self.adapter.detach()
        return tensors, told


def main(folder: Path) -> None:
    """All cases; then a process fails, which the other must notice."""
    rank = os.environ["RANK"]
    the_backbone(), the_writer()
    for name in CASES:
        tensors, told = Case(name).run(folder / "checkpoint" if name == "continued" else None)
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told))
    os.environ["HANDFUL_CACHE"] = str(folder / f"cache-{rank}")
    speedup.in_turns = lambda *arguments: [(1.0, 0.8 if rank == "0" else 0.9)]
    (folder / f"speed-{rank}.json").write_text(json.dumps(asked_for_speed()))
    case = Case("lora")
    if rank == "1":
        case.after_step = case.adapter.after_step = lambda step: sys.exit(3)
    try:
        case.run()
    except RunError as error:
        (folder / "lost.txt").write_text(error.message)
        raise


def asked_for_speed() -> float:
    """The budget that a speed becomes."""
    spec, _ = speedup.with_speedup(toy_task(), resolve("prune"), 1.1, backbone=the_backbone())
    return spec.method.target_sparsity  # type: ignore[attr-defined]


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine. "multi_gpu" is accelerate's name for torchrun, on CPUs too; --cpu starts one."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder where two processes have left what they found."""
    folder = tmp_path_factory.mktemp("launched")
    stopped = Case("continued")

    def stop(step):
        if step == 8:  # a single process has saved one epoch, of five steps
            raise Interrupted

    stopped.adapter.after_step = stop
    with pytest.raises(Interrupted):
        stopped.run(folder / "checkpoint")
    stopped.adapter.detach()
    process = launch(__file__, folder)
    assert (folder / "broken-1.json").is_file(), process.stderr[-3000:]
    assert process.returncode != 0
    return folder


def gaps(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest gap by name."""
    assert {name: tensor.shape for name, tensor in expected.items()} == {name: t.shape for name, t in found.items()}
    return {name: float((tensor - found[name]).abs().max()) for name, tensor in expected.items()}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_numbers_of_one(launched, name):
    expected, told = Case(name).run()
    first, second = (load_file(launched / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert not len(second.pop("losses")), "only the main process tells what happens"
    losses = first.pop("losses")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    expected["losses"] = expected["losses"][-len(losses) :]
    assert len(losses) == {"continued": 20, "broken": 8}.get(name, 25)
    worst = gaps(expected, first | {"losses": losses})
    assert max(worst.values()) < TOLERANCE, worst
    stories = [json.loads((launched / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    seen = [story.pop() for story in stories]
    assert seen == {"continued": [36, 32], "broken": [16, 14]}.get(name, [45, 40]), "each has its share of the rows"
    assert stories[0] == stories[1] and stories[0][:3] == told[:3]
    assert stories[0][3] == pytest.approx(told[3], rel=TOLERANCE)
    assert bool(told[2]) == (name in ("broken", "observation"))


def test_a_speed_becomes_the_same_budget_in_both(launched, monkeypatch, tmp_path):
    """Each of them would have measured another."""
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    monkeypatch.setattr(speedup, "in_turns", lambda *arguments: [(1.0, 0.8)])
    found = [json.loads((launched / f"speed-{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [asked_for_speed()] * 2
    monkeypatch.setattr(speedup, "in_turns", lambda *arguments: [(1.0, 0.9)])
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "other"))
    assert asked_for_speed() != found[0]


def test_a_lost_process_ends_the_others(launched):
    assert "another process of this run has ended" in (launched / "lost.txt").read_text()


def test_the_command_line_makes_one_run_folder_and_speaks_once(tmp_path, tiny_folder):
    data = tmp_path / "data.csv"
    with open(data, "w", encoding="utf-8", newline="") as file:
        rows = [(f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}", "ab" if i % 2 else "z9") for i in range(40)]
        csv.writer(file).writerows([("text", "label"), *rows])
    arguments = ["fit", data, "--model", tiny_folder, "--shots", "18", "--dev", "carved", "--set", "training.epochs=4"]
    arguments += ["--set", "training.batch_size=5", "--set", "run.predictor=ensemble", "--output"]
    process = launch("-m", "handful", *arguments, tmp_path / "two")
    assert process.returncode == 0, process.stderr[-3000:]
    assert [line.split()[0] for line in process.stdout.splitlines()].count("run") == 1
    assert process.stderr.count("loading model") == 1
    assert run([str(argument) for argument in (*arguments, tmp_path / "one")]) == 0
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one.name == two.name  # the key is the same, and no hidden folder is left
    expected, found = read_run(one), read_run(two)
    worst = gaps(expected.weights(), found.weights())
    assert max(worst.values()) < TOLERANCE, worst
    for name, score in expected.record["scores"].items():
        assert found.record["scores"][name]["mean"] == pytest.approx(score["mean"], rel=TOLERANCE), name
    assert len(found.lines("metrics.jsonl")) == len(expected.lines("metrics.jsonl"))
    columns = [[list(line) for line in made.lines("predictions.jsonl")] for made in (expected, found)]
    assert columns[0] == columns[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
