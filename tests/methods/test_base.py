"""What every method has: settings that are checked all at once, and adapters that hold their backbone lightly."""

import json
import re

import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.errors import ConfigError
from handful.methods import method_class, method_names
from handful.methods.base import BorrowedParameters
from handful.methods.prefix import Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.methods.settings import WrongSettings, describe_settings
from handful.testing import differences, toy_task
from handful.training.config import TrainingConfig


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        PrefixSubspace.from_settings({"num_vertces": 3, "prefix_length": "ten", "concentration": -1, "init": "zeros"})
    message = str(caught.value)
    assert message.startswith("4 wrong setting(s) for 'prefix-subspace':\n")
    assert "num_vertces: prefix-subspace has no such field; did you mean 'num_vertices'?" in message
    assert "prefix_length: expected a valid integer, found 'ten'" in message
    assert "concentration: expected greater than 0, found -1" in message
    assert "init: expected 'normal' or 'activations', found 'zeros'" in message
    assert "hint: `handful methods prefix-subspace` lists every field" in message


def test_values_get_the_types_of_their_fields_however_the_method_is_made():
    given = {"prefix_length": "5", "layers": [1, 3]}
    for method in (Prefix(**given), Prefix.from_settings(given)):
        assert method == Prefix(prefix_length=5, layers=(1, 3)) and hash(method)
        assert type(method.prefix_length) is int and method.layers == (1, 3)
    assert TrainingConfig(learning_rate="1e-3").learning_rate == 0.001  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="layers: "):
        Prefix(layers=(1, 2, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="epochs: expected less than or equal to 10000, found 20000"):
        TrainingConfig(epochs=20_000)


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (TrainingConfig, {"epochs": True}, "epochs: expected a valid integer, found True"),
        (TrainingConfig, {"learning_rate": False}, "learning_rate: expected a valid number, found False"),
        (TrainingConfig, {"head_learning_rate": True}, "head_learning_rate: expected a valid number, found True"),
        (Prefix, {"layers": (True, 3)}, "layers: expected a valid integer, found (True, 3)"),
        (TrainingConfig, {"learning_rate": float("nan")}, "learning_rate: expected a finite number, found nan"),
    ],
)
def test_a_truth_value_is_no_number(cls, settings, said):
    for make in (cls.from_settings, lambda given: cls(**given)):
        with pytest.raises(ConfigError, match=re.escape(said)):
            make({"epochs": 2} | settings if cls is TrainingConfig else settings)
    assert TrainingConfig(trunk_dropout=True).trunk_dropout is True


def test_settings_that_are_wrong_are_kept_by_name():
    with pytest.raises(WrongSettings) as caught:
        TrainingConfig.from_settings({"epohs": 1, "batch_size": True, "warmup": 2})
    assert set(caught.value.problems) == {"epohs", "batch_size", "warmup"}


@pytest.mark.parametrize("name", method_names())
def test_settings_survive_json_and_every_one_is_described(name):
    cls = method_class(name)
    method = cls()
    assert cls.from_settings(json.loads(json.dumps(method.settings()))) == method
    assert cls.name == name
    records = describe_settings(cls)
    assert [record["name"] for record in records] == list(method.settings())
    assert all(record["description"] and record["source"] and record["type"] for record in records)


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown method 'prefix-subspce'\n\nhint: did you mean 'prefix-subspace'\?"):
        method_class("prefix-subspce")


def test_the_backbone_is_held_and_not_registered():
    backbone = tiny_backbone("bert")
    adapter = Prefix(prefix_length=2).attach(backbone, toy_task(), generator=torch.Generator().manual_seed(0))
    assert adapter.backbone is backbone
    assert set(adapter.state_dict()) == {"head.weight", "head.bias", "head.offset", "head.scale", "prefix.keys_values"}
    assert {id(m) for m in adapter.modules()}.isdisjoint(id(m) for m in backbone.model.modules())
    assert {group.name: len(group.parameters) for group in adapter.parameter_groups()} == {"adapter": 1, "head": 2}


def test_borrowed_parameters_are_the_models_own_and_are_given_back():
    model = tiny_backbone("bert").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    borrowed = BorrowedParameters(model, lambda name, _: name.endswith("dense.bias"))
    names = [name for name in before if name.endswith("dense.bias")]
    assert list(dict(borrowed.named_parameters())) == [name.replace(".", "__") for name in names]
    assert all(p is q for p, q in zip(borrowed.parameters(), map(model.get_parameter, names), strict=True))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names
    for parameter in borrowed.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.data += 1
    assert differences(before, model.state_dict()) == sorted(names)
    borrowed.restore()
    borrowed.restore()
    assert not differences(before, model.state_dict())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
