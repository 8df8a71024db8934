"""Checkpoints: exact, replaced as a whole, and never read when damaged."""

import os
from random import Random

import pytest
import torch

from handful.errors import RunError
from handful.training.checkpoint import FILE, Checkpoint, pack_optimizer, unpack_optimizer

TENSORS = {
    "adapter/prefix": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "average/prefix": torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "random/order": torch.Generator().manual_seed(5).get_state(),
    "scalar": torch.tensor(0.1),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}
RECORD = {"step": 7, "history": [{"score": 0.1 + 0.2, "epoch": 1}], "stopped": None}


def saved(folder):
    checkpoint = Checkpoint(folder)
    checkpoint.save(TENSORS, RECORD)
    return checkpoint


def test_what_is_saved_is_loaded_exactly(tmp_path):
    tensors, record = saved(tmp_path / "new" / "folder").load() or ({}, {})
    assert record == RECORD and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [FILE]


def test_a_missing_or_removed_checkpoint_is_none(tmp_path):
    assert Checkpoint(tmp_path).load() is None
    checkpoint = saved(tmp_path)
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None


def test_any_flipped_bit_and_any_missing_end_is_noticed(tmp_path):
    checkpoint = saved(tmp_path)
    whole = checkpoint.path.read_bytes()
    chance = Random(0)
    positions = [0, 7, 8, 9, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(300))]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        checkpoint.path.write_bytes(damaged)
        assert checkpoint.load() is None, position
    for end in (0, 5, len(whole) // 2, len(whole) - 1):
        checkpoint.path.write_bytes(whole[:end])
        assert checkpoint.load() is None
    checkpoint.path.write_bytes(whole)
    assert checkpoint.load() is not None


def test_a_checkpoint_of_another_program_is_none(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / FILE)
    assert Checkpoint(tmp_path).load() is None


def test_an_interrupted_save_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint = saved(tmp_path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(RunError, match=r"could not be written \(.*No space left.*\)\n\nhint: free some space"):
        checkpoint.save(TENSORS, RECORD | {"step": 8})
    monkeypatch.undo()
    loaded = checkpoint.load()
    assert loaded is not None and loaded[1]["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_an_optimiser_that_was_packed_goes_on_bit_for_bit():
    def training(module):
        return torch.optim.AdamW([{"params": [module.weight]}, {"params": [module.bias], "lr": 0.3}], lr=0.1)

    def step(module, optimizer, factor):
        optimizer.zero_grad()
        (module(torch.ones(1, 3)) * factor).sum().square().backward()
        optimizer.step()

    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    one, other = training(first), training(second)
    for factor in (1.0, 0.5):
        step(first, one, factor)
    second.load_state_dict(first.state_dict())
    unpack_optimizer(other, {name: tensor.clone() for name, tensor in pack_optimizer(one).items()})
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.3]
    for module, optimizer in ((first, one), (second, other)):
        step(module, optimizer, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
