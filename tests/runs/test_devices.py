"""Whole runs on a device that is pretended: the numbers of the CPU, nothing left behind on it, every method.

Run as a program, this file does all its cases in a fresh process: torch must know of a device before the first
backward pass of a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from handful.api import FittedModel
from handful.backbone import device as devices
from handful.backbone.tiny import tiny_backbone
from handful.export import folder as export_folder
from handful.export import size
from handful.methods import METHODS
from handful.methods.base import Draw
from handful.methods.head import LinearHead
from handful.methods.prefix import PrefixAdapter
from handful.runs.experiment import open_trained, run
from handful.runs.spec import resolve
from handful.runs.store import read_run
from handful.testing import toy_task

sys.path.append(str(Path(__file__).parents[1]))
from pretended_device import WrongDevice, pretended

pytestmark = pytest.mark.timeout(900)
"""The first test waits for all runs."""

P = "method.prefix_length"
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "head": ("head", "classification", "bert", {}),
    "prefix": ("prefix", "classification", "llama", {P: 3, "training.average_last": 0.5}),
    "activations": ("prefix", "regression", "bert", {P: 3, "method.init": "activations"}),
    "mlp": ("prefix", "classification", "bert", {P: 3, "method.form": "mlp"}),
    "prefix-subspace": (
        "prefix-subspace", "pair-classification", "bert",
        {P: 3, "method.cosine_weight": 0.1, "training.validation": "pooled", "run.landscape": 2, "run.dev": "carved",
         "run.predictor": "ensemble", "training.gradient_checkpointing": True},
    ),
    "paper": (
        "prefix-subspace", "classification", "bert", {P: 3, "run.pooling": "family", "method.layers": [1, 3]},
    ),
    "lora": ("lora", "classification", "bert", {}),
    "ia3": ("ia3", "classification", "bert", {}),
    "prompt-tuning": ("prompt-tuning", "classification", "bert", {"method.prompt_length": 3}),
    "prompt": ("prompt", "classification", "bert", {"method.prompt_length": 3, "method.num_vertices": 3}),
    "full": ("full", "classification", "bert", {}),
    "bias": ("bias", "classification", "bert", {}),
    "gates": ("prune", "classification", "bert", {"method.importance": "learned", "method.init_importance": "wanda"}),
    "published gates": (
        "fine-gates", "classification", "bert",
        {"method.match_features": 0.1, "method.kurtosis": True},
    ),
    "prune": ("prune", "classification", "bert", {}),
    "poly": ("poly", "classification", "bert", {"method.rank": 2}),
    "writing": ("prefix", "generation", "t5", {P: 3}),
    "scaled-prompt": ("scaled-prompt", "generation", "llama", {"method.prompt_length": 3}),
}  # fmt: skip
EXPORTED = {"head": "dense", "prune": "compact"}
"""Cases that are exported too, and as what."""
ELSEWHERE = ("setfit", "peft")
"""Methods without a case: SetFit's library chooses its device, and `peft` is LoRA's way under other names."""

IN_FLOAT64 = ("prefix", "gates", "published gates", "poly")
"""Cases of which something is computed in float64: late averages, Wanda's importance, routing measures."""

TOLERANCE = 2e-4
"""Largest gap of a weight or score of order 1: the device runs without packing, and attention in plain operations."""

MISTAKES = {
    "a tensor of the cpu in a forward": (LinearHead, "forward", lambda self, x, w=None: x @ torch.zeros(64, 2)),
    "weights that stay on the cpu": (
        PrefixAdapter, "mixed",
        lambda self, weights: (weights.transpose(0, 1)[..., None] * self.prefix()[:, :, None].flatten(3).mean(0)),
    ),
    "a draw on the device from a generator of the cpu": (
        PrefixAdapter, "draw",
        lambda self, batch, g: Draw(
            {
                "prefix": torch.rand(len(batch), 3, 3, generator=g, device=self.backbone.device),
                "head": self.head.simplex.draw((len(batch),), g),
            }
        ),
    ),
    "numpy without .cpu()": (LinearHead, "forward", lambda self, x, w=None: x.detach().numpy()),
}  # fmt: skip
"""Mistakes planted into the code, any of which a fit on the device must not survive."""


def spec_of(name: str, **more: Any):
    method, kind, _, settings = CASES[name]
    epochs = {} if method == "head" else {"training.epochs": 1, "training.batch_size": 8}
    preset = "paper" if name == "paper" else "default"
    overrides = {**epochs, "run.max_length": 32, **settings, **more}
    return resolve(method, model="tiny", preset=preset, overrides=overrides, kind=kind)


def trained(name: str, folder: Path, device: torch.device | None, **more: Any) -> dict[str, Any]:
    """What a run gives: its weights' file, scores of other texts, and what is recorded of the device."""
    _, kind, family, _ = CASES[name]
    task, spec = toy_task(kind), spec_of(name, **more)
    backbone = tiny_backbone(family, pooling=spec.options.pooling, purpose="lm" if kind == "generation" else "features")
    if device is not None:
        backbone.to(device)
    saved, opened = run(task, spec, folder, backbone=backbone)
    model = FittedModel(opened, saved, {})
    rows = list(task.pool[:5])
    found: dict[str, Any] = {"key": saved.key, "folder": str(saved.folder), "backbone": saved.record["backbone"]}
    if kind == "generation":
        found["scores"] = model.write(rows, max_new_tokens=5)
    else:
        found["scores"] = model.predictions(rows).scores.tolist()
        found["disagreement"] = model.disagreement(rows).tolist()
    found["history"] = [record["score"] for record in saved.record["fit"]["history"]]
    tensors = (*opened.adapter.state_dict().values(), *backbone.model.state_dict().values())
    found["on"] = sorted({tensor.device.type for tensor in tensors})
    if name in EXPORTED:
        model.export(folder / "export", EXPORTED[name])
        found["export"] = str(folder / "export")
        found["on after"] = sorted({tensor.device.type for tensor in opened.adapter.state_dict().values()})
    opened.adapter.detach()
    return found


def planted(folder: Path, device: torch.device, mistake: str) -> str:
    """The name of the error that a fit with this mistake ends in, or nothing."""
    owner, name, wrong = MISTAKES[mistake]
    original = getattr(owner, name)
    setattr(owner, name, wrong)
    try:
        trained("prefix-subspace", folder, device)
    except (WrongDevice, RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        setattr(owner, name, original)
    return ""


def on_another(folder: Path) -> list[list[float]]:
    """Scores on the CPU of the run that was trained on the device."""
    opened = open_trained(read_run(folder), backbone=tiny_backbone("bert"))
    rows = list(toy_task("pair-classification").pool[:5])
    return FittedModel(opened, None, {}).predictions(rows).scores.tolist()


def main(folder: Path) -> None:
    """All cases, on the CPU and on the device, then without float64, then with mistakes."""
    results: dict[str, Any] = {}
    export_folder.can_verify = lambda package: (
        False
    )  # that exports are right is tested elsewhere, in processes of its own
    size.BUDGET = 0.1
    for name in CASES:
        for where in ("cpu", "device", "no float64"):
            if where == "no float64" and name not in IN_FLOAT64:
                continue
            devices.WITHOUT_FLOAT64 = {"pretended"} if where == "no float64" else set()
            with nullcontext() if where == "cpu" else pretended(float64=where == "device") as device:
                results[f"{name}/{where}"] = trained(name, folder / where.replace(" ", "-") / name, device)
    with pretended() as device:
        results["mistakes"] = {name: planted(folder / "planted", device, name) for name in MISTAKES}
    results["reopened"] = on_another(Path(results["prefix-subspace/device"]["folder"]))
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def close(found: Any, expected: Any) -> None:
    if found and isinstance(found[0], str):
        assert found == expected
        return
    worst = float((torch.tensor(found) - torch.tensor(expected)).abs().max()) if found else 0.0
    assert worst < TOLERANCE, worst


def test_every_method_has_a_case():
    assert {method for method, *_ in CASES.values()} | set(ELSEWHERE) == set(METHODS)


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_the_device_has_the_numbers_of_the_cpu(name, results):
    """The draws are the same: they come from generators of the CPU."""
    cpu, device = results[f"{name}/cpu"], results[f"{name}/device"]
    for part in ("scores", "history", *(["disagreement"] if "disagreement" in cpu else [])):
        close(device[part], cpu[part])
    here, there = (read_run(each["folder"]) for each in (cpu, device))
    expected, found = here.weights(), there.weights()
    assert {key: tensor.shape for key, tensor in expected.items()} == {key: t.shape for key, t in found.items()}
    for key, tensor in expected.items():
        assert float((tensor.double() - found[key].double()).abs().max()) < TOLERANCE, key
    if (here.folder / "landscape.json").is_file():
        losses = [
            [point[-1] for point in json.loads((each.folder / "landscape.json").read_text())["points"]]
            for each in (here, there)
        ]
        close(*losses)


@pytest.mark.parametrize("name", CASES)
def test_everything_is_on_the_device_and_the_record_says_so(name, results):
    cpu, device = results[f"{name}/cpu"], results[f"{name}/device"]
    assert device["on"] == ["pretended"] and cpu["on"] == ["cpu"]
    assert device["backbone"]["device"] == "pretended" and cpu["backbone"]["device"] == "cpu"
    assert device["backbone"]["dtype"] == "float32"
    assert cpu["key"] != device["key"], "numbers differ by rounding: it is another run"


@pytest.mark.parametrize("name", [name for name in CASES if name in IN_FLOAT64])
def test_a_device_without_float64_has_them_too(name, results):
    """As Apple's mps is."""
    close(results[f"{name}/no float64"]["scores"], results[f"{name}/device"]["scores"])


def test_a_run_of_the_device_is_opened_on_the_cpu(results):
    close(results["reopened"], results["prefix-subspace/device"]["scores"])


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_do_not_depend_on_the_device(name, results):
    here, there = (Path(results[f"{name}/{where}"]["export"]) for where in ("cpu", "device"))
    assert results[f"{name}/device"]["on after"] == ["pretended"], "predictions go on there"
    files = [sorted(path.name for path in each.iterdir()) for each in (here, there)]
    assert files[0] == files[1]
    from safetensors.torch import load_file

    for file in here.glob("*.safetensors"):
        expected, found = load_file(file), load_file(there / file.name)
        assert expected.keys() == found.keys()
        assert all(torch.allclose(expected[key], found[key], atol=TOLERANCE) for key in expected)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake, results):
    """Otherwise the tests above could not fail."""
    assert results["mistakes"][mistake]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
