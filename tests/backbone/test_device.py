"""Names of devices: what each becomes on machines with and without GPUs, alone and among several processes."""

from __future__ import annotations

import pytest
import torch

from handful.api import fit, load
from handful.backbone import device as devices
from handful.backbone.device import describe_device, resolve_device
from handful.backbone.tiny import tiny_backbone
from handful.cli import doctor
from handful.errors import ConfigError
from handful.estimators import FewShotClassifier
from handful.methods.setfit_bridge import check_device
from handful.runs.spec import resolve
from handful.studies.engines import WorkOrder, make_engine
from handful.studies.recipe import Recipe
from handful.studies.worker import Worker
from handful.testing import toy_task


@pytest.fixture
def machine(monkeypatch):
    """`machine(gpus, mps, rank, world)`: what torch and the launcher say from now on."""
    for name in ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)

    def pretend(gpus=0, *, mps=False, rank=None, world=1, cuda="13.0", **environment):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fine GPU")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        if rank is not None:
            environment |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return pretend


@pytest.mark.parametrize(
    ("there", "name", "expected"),
    [
        ({}, "auto", "cpu"),
        ({"gpus": 2}, "auto", "cuda:0"),
        ({"gpus": 2, "mps": True}, "auto", "cuda:0"),
        ({"mps": True}, "auto", "mps"),
        ({"gpus": 2}, "cpu", "cpu"),
        ({"gpus": 2}, "cuda", "cuda:0"),
        ({"gpus": 2}, "cuda:1", "cuda:1"),
        ({"mps": True}, "mps", "mps"),
        ({"gpus": 2, "rank": 1, "world": 2}, "auto", "cuda:1"),
        ({"gpus": 2, "rank": 1, "world": 2}, "cuda", "cuda:1"),
        ({"gpus": 2, "rank": 1, "world": 4}, "cpu", "cpu"),
        ({"rank": 1, "world": 2}, "auto", "cpu"),
        ({"mps": True, "rank": 1, "world": 2}, "auto", "cpu"),
        ({"gpus": 2, "rank": 0, "world": 1}, "cuda:1", "cuda:1"),
        ({"gpus": 2, "ACCELERATE_USE_CPU": "true"}, "auto", "cpu"),
        ({"gpus": 2}, "CPU", "cpu"),
        ({"gpus": 2}, "CUDA:1", "cuda:1"),
    ],
)
def test_a_name_becomes_a_device(machine, there, name, expected):
    machine(**there)
    assert str(resolve_device(name)) == expected


@pytest.mark.parametrize(
    ("there", "name", "said"),
    [
        ({"gpus": 2}, "cuda:3", "device: cuda:3 was asked for, and there are 2 CUDA devices"),
        ({"gpus": 1}, "cuda:1", "device: cuda:1 was asked for, and there is 1 CUDA device"),
        ({}, "cuda", "device: cuda was asked for, and there is no CUDA device"),
        ({"cuda": None}, "cuda:0", "is built without CUDA"),
        ({}, "mps", "device: mps was asked for, and torch finds none here"),
        ({}, "gpu", "device: expected auto, cpu, cuda, cuda:N or mps, found 'gpu'"),
        ({"gpus": 1}, "cuda:", "found 'cuda:'"),
        ({"gpus": 1}, "cuda:-1", "found 'cuda:-1'"),
        ({}, "", "found ''"),
        ({"gpus": 2, "rank": 2, "world": 3}, "auto", "process 2 of this machine needs a GPU of its own"),
        ({"gpus": 2, "rank": 0, "world": 2}, "cuda:1", "cuda:1 was asked for by 2 processes"),
        ({"mps": True, "rank": 0, "world": 2}, "mps", "mps serves one process, found several"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(machine, there, name, said):
    machine(**there)
    with pytest.raises(ConfigError, match=said) as caught:
        resolve_device(name)
    assert caught.value.hint


def test_workers_share_out_the_gpus(machine, tmp_path):
    machine(2)
    record = {"name": "s", "tasks": ["bbc-news"], "shots": 8, "seeds": 1, "methods": ["head"]}
    recipe = Recipe.from_dict(record)
    taken = [Worker(WorkOrder(recipe.to_dict(), str(tmp_path), None, place)).device for place in range(4)]
    assert taken == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    fixed = Recipe.from_dict(record | {"device": "cuda:1"})
    assert {Worker(WorkOrder(fixed.to_dict(), str(tmp_path), None, place)).device for place in range(3)} == {"cuda:1"}
    given = WorkOrder(recipe.to_dict(), str(tmp_path), None, 1, device="cpu")
    assert Worker(given).device == "cpu", "as one of Ray's without a GPU"
    assert make_engine("processes", device="auto").workers == 2
    assert make_engine("processes", device="cuda:1").workers == 1
    assert make_engine("processes", device="cuda", workers=6).workers == 6
    with pytest.raises(ConfigError, match="device cuda: Ray's workers have no GPU unless they are given one"):
        make_engine("ray", device="cuda")
    with pytest.raises(ConfigError, match="device: expected auto, cpu"):
        Recipe.from_dict(record | {"device": "gpu"})


def test_a_run_on_another_kind_of_device_is_another_run():
    """On CPUs keys are what they always were: runs made before are found."""
    from dataclasses import replace

    spec = resolve("head")
    keys = {name: replace(spec, device=name).key("rows", "weights") for name in ("cpu", "cuda:0", "cuda:1", "mps")}
    assert keys["cpu"] == spec.key("rows", "weights")
    assert keys["cuda:0"] == keys["cuda:1"] and len(set(keys.values())) == 3
    assert resolve("head").resolved() == replace(spec, device="cuda:0").resolved()


def test_python_refuses_what_is_not_there_and_keeps_a_given_backbone(machine, tmp_path):
    machine(0)
    said = "device: cuda was asked for"
    with pytest.raises(ConfigError, match=said):
        fit(toy_task(), device="cuda")
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, device="cuda")
    with pytest.raises(ConfigError, match=said):
        FewShotClassifier(device="cuda").fit(["a", "b", "c", "d"], [0, 1, 0, 1])
    backbone = tiny_backbone("bert")
    machine(1)
    with pytest.raises(ConfigError, match="'cuda' was asked for, and the backbone that was given is on cpu"):
        fit(toy_task(), backbone=backbone, device="cuda")
    assert FewShotClassifier(device="cuda").get_params()["device"] == "cuda"
    model = fit(toy_task(), method="head", backbone=backbone, test_fraction=None)
    assert model.spec.device == "cpu"


def test_doctor_says_what_auto_takes_and_tries_it(machine):
    machine(0)
    (found,) = doctor.devices()
    assert found.state == "ok" and found.found.startswith("--device auto is cpu; here: CPU (")
    assert "no GPU was found" in found.found
    (found,) = doctor.devices("cuda")
    assert found.state == "wrong" and "there is no CUDA device" in found.found
    machine(2)
    assert describe_device(torch.device("cuda:1")) == "cuda:1 (Fine GPU)"
    (found,) = doctor.devices()  # torch itself has no CUDA here
    assert found.state == "wrong" and found.found.startswith("cuda:0 (Fine GPU) does not work")
    assert found.advice == "use --device cpu"


@pytest.mark.parametrize(
    ("there", "device", "fits"),
    [
        ({}, "cpu", True),
        ({"gpus": 1}, "cuda:0", True),
        ({"gpus": 1}, "cpu", False),
        ({"gpus": 2}, "cuda:0", False),
        ({"mps": True}, "mps", True),
        ({"mps": True}, "cpu", False),
    ],
)
def test_setfit_trains_where_its_library_does_or_not_at_all(machine, there, device, fits):
    machine(**there)
    if fits:
        check_device(torch.device(device))
        return
    with pytest.raises(ConfigError, match="method 'setfit': its library trains on all that it finds"):
        check_device(torch.device(device))


def test_float64_is_taken_where_there_is_some(monkeypatch):
    tensor = torch.ones(2)
    assert devices.exact(tensor).dtype == torch.float64
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", frozenset(("cpu",)))
    assert devices.exact(tensor).device.type == "cpu"
