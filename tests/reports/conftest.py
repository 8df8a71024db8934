"""Run folders as `handful fit` and `handful study` leave them, with plausible numbers, made in no time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handful.data.task import Example
from handful.evaluation.estimate import bootstrap_score, wilson
from handful.evaluation.landscape import triangle_grid
from handful.methods.poly.routing_measures import discreteness, sparsity, usage
from handful.runs.store import Run, write_run

SKILL = {"head": 0.70, "prefix": 0.745, "lora": 0.775, "prefix-subspace": 0.79}
PARAMETERS = {"head": 770, "prefix": 47_618, "lora": 74_498, "prefix-subspace": 142_850}
VERTICES = {"prefix-subspace": 3}
NAMES = ("Aromi", "Zizzi", "Cotto", "Alimentum", "<b>Bold</b> & Sons", "The Mill", "Strada", "Wildwood")
"""Restaurants that runs write about."""


class FakeRuns:
    """Writes runs below `root`; every number comes from one generator."""

    def __init__(self, root: Path, rows: int = 150):
        self.root, self.rows, self.generator = root, rows, np.random.default_rng(0)

    def run(
        self, label: str = "prefix-subspace", task: str = "reviews", shots: int = 50, seed: int = 0, **more: Any
    ) -> Run:
        """One run. `labels=()` makes a regression; `landscape`, `study`, `trials` and `history` as their names say.

        `gates` is the share that gates close, on units and heads, or on rows and columns with `published=True`.
        `routing` are the sizes of an inventory (see `_route`).
        """
        labels = more.get("labels", ("negative", "positive"))
        ease = 0.04 * np.log2(shots / 50) + (len(task) % 5 - 2) * 0.03 + self.generator.normal(0, 0.012)
        skill = float(np.clip(SKILL.get(label, 0.72) + ease, 0.5, 0.97))
        scores, predictions = self._test_rows(labels, skill)
        content = f"{label}/{task}/{shots}/{seed}/{more.get('labels')}/{more.get('trials')}"
        key = hashlib.sha256(content.encode()).hexdigest()
        record = self._record(label, task, shots, seed, key, labels) | {"scores": scores}
        record["fit"]["history"] = self._history(skill) if more.get("history", label != "head") else []
        if "study" in more:
            record["study"] = {"name": more["study"], "label": label, "trials": more.get("trials", 1), "start": None}
        if "gates" in more:
            self._gate(record, more["gates"], more.get("published", False))
        weights = {"w": torch.zeros(1)}
        if "routing" in more:
            weights |= {"routing.logits": self._route(record, **more["routing"]), "progress": torch.ones(())}
        for name, value in more.get("changes", {}).items():
            section, _, inner = name.partition("__")
            record[section] = record[section] | {inner: value} if inner else value
        landscape = self._landscape(len(predictions)) if more.get("landscape") else None
        predictions = more.get("predictions", predictions)
        return write_run(self.root / key[:10], record, weights, predictions=predictions, landscape=landscape)

    def study(self, tasks: Sequence[str], shots: Sequence[int], seeds: Sequence[int], labels: Sequence[str]) -> None:
        """A run of every label in every cell."""
        for task in tasks:
            for count in shots:
                for seed in seeds:
                    for label in labels:
                        drawn = label in VERTICES and count == max(shots) and seed == min(seeds)
                        self.run(label, task, count, seed, study="few-shot trial", trials=8, landscape=drawn)

    def writing(
        self, label: str, shots: int = 50, seed: int = 0, task: str = "e2e", written: str = "{} is a pub."
    ) -> Path:
        """The folder of a run that writes one text for every restaurant."""
        records = [
            Example(
                f"{name} | eatType | pub && {name} | area | riverside", references=(f"{name} is a riverside pub.",) * 5
            )
            for name in NAMES
        ]
        texts = [written.format(name) for name in NAMES]
        generator = np.random.default_rng(seed)
        scores = {
            name: bootstrap_score(name, texts, records, generator=generator, resamples=20).to_dict()
            for name in ("bleu-e2e", "rouge-l", "slot-error")
        }
        of_task = {
            "name": task, "kind": "generation", "labels": [], "metric": "bleu-e2e", "origin": "e2e", "notes": [],
        }  # fmt: skip
        lines = [
            {"source": record.source, "text": record.text, "references": list(record.references), "written": text}
            for record, text in zip(records, texts, strict=True)
        ]
        changes = {"task": of_task, "scores": scores}
        return self.run(label, task, shots, seed, changes=changes, predictions=lines).folder

    def fail(self, name: str, error: str) -> None:
        """A failure as a study keeps it."""
        folder = self.root / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"job": {"label": "lora"}, "error": error, "hint": "free some memory"}
        (folder / f"{name}.json").write_text(json.dumps(content))

    def break_one(self, name: str = "broken") -> Path:
        """A folder with half a record."""
        (self.root / name).mkdir(parents=True)
        (self.root / name / "run.json").write_text('{"format_version": 1, "key": ')
        return self.root / name

    def _record(self, label: str, task: str, shots: int, seed: int, key: str, labels: Sequence[str]) -> dict[str, Any]:
        metric, kind = ("accuracy", "classification") if labels else ("spearman", "regression")
        parameters, steps = PARAMETERS.get(label, 50_000), 0 if label == "head" else 20 * shots // 16
        seconds = (0.4 + steps * 0.09 * (1.15 if label in VERTICES else 1)) * float(self.generator.uniform(0.9, 1.15))
        fit = {
            "parameters": parameters, "steps": steps, "chosen_step": steps, "seconds": round(seconds, 2),
            "stopped": None, "scoring_seconds": 1.9, "peak_memory_mb": round(600 + parameters / 900 + shots / 4, 1),
        }  # fmt: skip
        method = {"name": label} | ({"num_vertices": VERTICES[label]} if label in VERTICES else {})
        return {
            "key": key, "created": "2031-05-06T07:08:09+00:00", "preset": "default", "choices": [], "notes": [],
            "versions": {"handful": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}, "temperature": 1.1,
            "spec": {
                "model": "minilm", "method": method,
                "training": {"epochs": 20, "learning_rate": 0.03, "selection": "last", "selection_metric": "task"},
                "run": {
                    "shots": shots, "seed": seed, "dev": "carved", "predictor": "midpoint", "pooling": "auto",
                    "max_length": 128,
                },
            },
            "task": {
                "name": task, "kind": kind, "labels": list(labels), "metric": metric, "origin": f"{task}.csv",
                "notes": [],
            },
            "rows": {
                "train": shots - shots // 5, "dev": shots // 5, "test": self.rows, "dropped_duplicates": 0,
                "dropped_overlap": 0, "truncated": {"train": 0, "dev": 0, "test": 0}, "max_length": 128,
                "fingerprint": f"{task}/{shots}/{seed}",
            },
            "backbone": {
                "name": "minilm", "hub_name": None, "family": "bert", "kind": "encoder", "pooling": "mean",
                "fingerprint": "0123456789abcdef", "parameters": 22_565_376,
            },
            "fit": fit, "adapter": {},
        }  # fmt: skip

    def _test_rows(self, labels: Sequence[str], skill: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        draws = self.generator
        if not labels:
            targets = draws.normal(size=self.rows)
            found = skill * targets + (1 - skill) * draws.normal(size=self.rows)
            score = bootstrap_score("spearman", found, targets, generator=draws, resamples=100)
            return {"spearman": score.to_dict()}, [
                {"source": str(i), "disagreement": 0.0, "target": t, "prediction": p}
                for i, (t, p) in enumerate(zip(targets.tolist(), found.tolist(), strict=True))
            ]
        targets = draws.integers(len(labels), size=self.rows)
        logits = draws.normal(size=(self.rows, len(labels))) * 1.2
        logits[np.arange(self.rows), targets] += 8 * (skill - 0.5)
        probabilities = np.exp(1.25 * logits)
        probabilities /= probabilities.sum(1, keepdims=True)
        right = int((probabilities.argmax(1) == targets).sum())
        scores = {"accuracy": wilson(right, self.rows).to_dict()}
        for name in ("nll", "ece"):
            estimate = bootstrap_score(name, probabilities, targets, generator=draws, resamples=30)
            scores[name] = estimate.to_dict()
        rows = [
            {
                "source": str(i), "disagreement": 0.0, "target": labels[target],
                "prediction": labels[int(row.argmax())], "probabilities": [round(float(p), 6) for p in row],
            }
            for i, (target, row) in enumerate(zip(targets, probabilities, strict=True))
        ]  # fmt: skip
        return scores, rows

    def _history(self, skill: float) -> list[dict[str, float]]:
        noise = self.generator.normal(0, 0.02, size=20)
        curve = 0.5 + (skill - 0.5) * (1 - np.exp(-np.arange(1, 21) / 5)) + noise
        return [
            {"step": 3 * epoch, "epoch": epoch, "score": float(score), "deviation": 0.0}
            for epoch, score in enumerate(np.clip(curve, 0, 1), 1)
        ]

    def _gate(self, record: dict[str, Any], target: float, published: bool) -> None:
        """Gates of six layers, and a history in which they close."""
        attention, width = "encoder.layer.{}.attention.output.dense", 384
        sides = [(f"encoder.layer.{layer}.output.dense", "columns", 1536) for layer in range(6)]
        sides = [(attention.format(layer), "columns", 12) for layer in range(6)] + sides
        if published:
            names = [attention, *(attention.replace("output.dense", f"self.{n}") for n in ("query", "key", "value"))]
            sides = [(n.format(layer), s, width) for layer in range(6) for n in names for s in ("rows", "columns")]
        gates = []
        for matrix, side, count in sides:
            closed = round(count * np.clip(target + self.generator.normal(0, 0.1), 0, 0.95))
            soft = round((count - closed) * self.generator.uniform(0, 0.5))
            counts = {"open": count - closed - soft, "soft": soft, "closed": closed}
            gates.append({"matrix": matrix, "side": side, "gates": count, **counts})
        total = sum(one["gates"] for one in gates)
        shares = {state: sum(one[state] for one in gates) / total for state in ("closed", "soft")}
        removed = float(target * self.generator.uniform(0.97, 1.03))
        record["adapter"] = {"gates": gates, **shares, "removed": removed, "removable": removed}
        record["spec"]["method"] |= {"name": "fine-gates", "target_sparsity": target, "published": published}
        for point in record["fit"]["history"]:
            done = 1 - (1 - min(1.0, point["epoch"] / 12)) ** 3
            point |= {"removed": done * removed, "closed": done * shares["closed"], "soft": shares["soft"]}

    def _route(
        self, record: dict[str, Any], tasks: int = 24, layers: int = 6, splits: int = 1, skills: int = 8, **more: Any
    ) -> torch.Tensor:
        """Logits (R, T, q, S) of tasks in four families that share skills; `spread` is how far they are from 0."""
        places = ("self.query", "self.key", "self.value", "output.dense")
        routers = [f"encoder.layer.{layer}.attention.{place}" for layer in range(layers) for place in places]
        routers = more.get("routers", routers)
        names = [f"{('sentiment', 'topic', 'pairs', 'style')[task % 4]}-{task // 4 + 1}" for task in range(tasks)]
        families = self.generator.normal(-1, 1.5, size=(len(routers), 4, splits, skills))
        logits = families[:, np.arange(tasks) % 4] + self.generator.normal(0, 1, (len(routers), tasks, splits, skills))
        found = torch.tensor(more.get("spread", 2.0) * logits, dtype=torch.float32)
        record["adapter"] = {
            "skills": "lora", "num_skills": skills, "num_splits": splits, "tasks": names, "routers": routers,
            "gate": "gumbel", "discreteness": discreteness(found), "sparsity": sparsity(found), "usage": usage(found),
            "alignment": 0.1,
        }  # fmt: skip
        record["task"]["members"] = [
            {"name": name, "kind": "classification", "labels": ["no", "yes"], "metric": "accuracy"} for name in names
        ]
        record["members"] = {
            name: {"accuracy": wilson(int(self.generator.integers(30, 60)), 64).to_dict()} for name in names
        }
        for point in record["fit"]["history"]:
            point["alignment"] = 0.2 / point["epoch"] + float(self.generator.normal(0, 0.01))
        return found

    def _landscape(self, rows: int) -> dict[str, Any]:
        grid = triangle_grid(12).numpy().astype(float)
        tilt = self.generator.uniform(0, 0.15, size=3)
        loss = 0.42 + ((grid - 1 / 3) ** 2).sum(1) * 0.25 + grid @ tilt
        points = [[*map(float, weights), float(value)] for weights, value in zip(grid, loss, strict=True)]
        midpoint = float(0.42 + tilt.mean())
        return {
            "metric": "nll", "rows": rows, "steps": 12, "num_vertices": 3, "points": points, "midpoint": midpoint,
        }  # fmt: skip


@pytest.fixture
def fakes(tmp_path: Path) -> FakeRuns:
    """Writes fake runs below `tmp_path / "runs"`."""
    return FakeRuns(tmp_path / "runs")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three methods on two tasks, with a failed run and a damaged folder. Do not change it."""
    root = tmp_path_factory.mktemp("study")
    fakes = FakeRuns(root, rows=60)
    fakes.study(("reviews", "trec"), (50, 100), (0, 1), ("head", "lora", "prefix-subspace"))
    fakes.fail("reviews-k50-s2-lora", "out of memory in step 3")
    fakes.break_one()
    return root
