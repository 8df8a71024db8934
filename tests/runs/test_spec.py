"""A run's spec: presets and overrides resolved, every choice with its reason, all mistakes at once."""

from __future__ import annotations

import pytest

from handful.errors import ConfigError
from handful.methods import method_class
from handful.methods.prefix import Prefix
from handful.runs.spec import RunOptions, resolve


def test_the_preset_fills_in_and_overrides_win():
    preset = method_class("prefix-subspace").presets["paper"]
    spec = resolve("prefix-subspace", preset="paper", overrides={"training.epochs": 7, "num_vertices": 2})
    assert spec.training.epochs == 7
    assert spec.method.settings()["num_vertices"] == 2
    assert spec.training.patience == preset.training["patience"]
    chosen = {choice.name: choice for choice in spec.choices}
    assert "training.epochs" not in chosen
    assert chosen["training.patience"].value == preset.training["patience"]
    assert chosen["training.patience"].reason == f"preset 'paper': {preset.reason}"


def test_texts_of_the_command_line_become_their_types():
    spec = resolve("prefix", overrides={"shots": "50", "training.learning_rate": "1e-3", "layers": [0, 2]})
    assert spec.options.shots == 50
    assert spec.training.learning_rate == 1e-3
    assert spec.method.settings()["layers"] == (0, 2)


@pytest.mark.parametrize(
    ("kind", "method", "model"),
    [
        (None, "prefix-subspace", "minilm"),
        ("regression", "prefix-subspace", "minilm"),
        ("generation", "lora", "flan-t5-small"),
    ],
)
def test_where_no_method_and_no_model_is_named_the_kind_decides(kind, method, model):
    spec = resolve(kind=kind)
    assert (spec.method.name, spec.model) == (method, model)
    assert {choice.name: choice.value for choice in spec.choices[:2]} == {"method": method, "model": model}
    assert (spec.generation is not None) == (kind == "generation")
    named = resolve("lora", model="here", kind=kind)
    assert not {"method", "model"} & {choice.name for choice in named.choices}


def test_what_writes_has_rates_of_its_own_unless_they_are_given():
    preset = Prefix.presets["default"]
    assert preset.writing["learning_rate"] != preset.training["learning_rate"]
    for kind, values in (("classification", preset.training), ("generation", {**preset.training, **preset.writing})):
        early = resolve("prefix", kind=kind)
        for spec in (early, resolve("prefix").suited(kind), early.suited(kind)):
            settings = spec.training.settings()
            assert {name: settings[name] for name in values} == values
            shown = {choice.name: choice.value for choice in spec.choices}
            assert {name: shown[f"training.{name}"] for name in values} == values
    given = resolve("prefix", overrides={"learning_rate": 0.5}, kind="generation")
    assert given.training.learning_rate == 0.5
    assert given.training.head_learning_rate == preset.training["head_learning_rate"]


def test_the_key_is_that_of_spec_rows_and_weights():
    spec = resolve("prefix")
    key = spec.key("rows", "weights")
    assert key == resolve("prefix").key("rows", "weights")
    others = (
        resolve("prefix", overrides={"seed": 1}).key("rows", "weights"),
        spec.key("row", "weights"),
        spec.key("rows", "w"),
    )
    assert len({key, *others}) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"epohs": 1}, "epohs: no such setting; did you mean 'epochs'?"),
        (
            {"trainin.epochs": 1},
            "trainin.epochs: expected a name in method, training, run, generation; did you mean 'training'?",
        ),
        ({"training.epohs": 1}, "training.epohs: training has no such field; did you mean 'epochs'?"),
        ({"weight_decay": float("inf")}, "training.weight_decay: expected a finite number, found inf"),
        ({"layers": [0, "x"]}, "method.layers: item 1: expected a valid integer, found 'x'"),
        ({"predictor": "vertex:1"}, "run.predictor: predictor 'vertex:1': expected a vertex from 0 to 0"),
        ({"selection": "best"}, "run.dev: training.selection = 'best' needs development rows, found 'none'"),
    ],
)
def test_a_mistake_names_the_setting(overrides, said):
    with pytest.raises(ConfigError) as caught:
        resolve("prefix", overrides=overrides)
    assert caught.value.message == f"1 wrong setting:\n  {said}" or said in caught.value.message


def test_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="a curve has 3 vertices, found num_vertices = 2"):
        resolve("prefix-subspace", overrides={"geometry": "curve", "num_vertices": 2})


def test_all_mistakes_come_at_once_and_say_where_they_stand():
    overrides = {"epochs": "many", "run.dev": "crved", "method.prefix_length": 0, "x": 1}
    with pytest.raises(ConfigError) as caught:
        resolve("prefx", preset="papr", overrides=overrides, origins={"epochs": "a.toml", "method": "--method"})
    lines = caught.value.message.splitlines()
    assert lines[0] == "4 wrong settings:"  # the settings of a method that there is not cannot be judged
    assert "  --method: method: unknown method 'prefx'; did you mean 'prefix'?" in lines
    assert "  a.toml: training.epochs: expected a valid integer, found 'many'" in lines


def test_options_are_checked_when_they_are_made():
    with pytest.raises(ConfigError, match="seed: expected greater than or equal to 0, found -1"):
        RunOptions(seed=-1)
