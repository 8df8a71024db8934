"""Dimensions of search spaces, the spaces of all methods, and their reading from a recipe."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.errors import ConfigError
from handful.methods import method_class, method_names
from handful.methods.search_space import Interval, OneOf
from handful.runs.spec import resolve
from handful.studies.space import read_space


def test_an_interval_runs_from_its_low_to_its_high_end():
    plain, logarithmic = Interval(1, 100), Interval(1, 100, log=True)
    assert plain.grid(3) == (1, 50.5, 100)
    assert logarithmic.grid(3) == (1, 10, 100)
    assert 1 in plain and 100 in plain and 100.1 not in plain and "1" not in plain and None not in plain
    assert (str(plain), str(logarithmic)) == ("1 to 100", "1 to 100, log")


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e4), st.floats(0, 1), st.booleans())
def test_every_share_of_an_interval_lies_inside(low, factor, share, log):
    dimension = Interval(low, low * factor, log=log)
    assert dimension.at(share) in dimension
    assert dimension.at(0) <= dimension.at(share) <= dimension.at(1)


def test_numbers_have_three_digits_where_the_ends_allow_it():
    assert Interval(0, 1).near(0.123456) == 0.123
    assert Interval(0.12345, 1).near(0.12345) == 0.12345


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interval(2, 2), "expected low < high, found 2 and 2"),
        (lambda: Interval(0, float("inf")), "expected low < high"),
        (lambda: Interval(0, 1, log=True), "expected low > 0 where log = true, found 0"),
        (lambda: OneOf((3,)), r"at least two values, all different, found \[3\]"),
        (lambda: OneOf((3, 4, 3)), "all different"),
    ],
)
def test_a_dimension_without_extent_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_values_are_reached_by_equal_shares_and_numbers_know_their_order():
    dimension = OneOf((1, 2, 5))
    assert [dimension.at(share) for share in (0, 0.33, 0.34, 0.67, 1)] == [1, 1, 2, 5, 5]
    assert dimension.grid(99) == (1, 2, 5) and dimension.ordered
    assert not OneOf((2, 1)).ordered and not OneOf(("a", "b")).ordered and not OneOf((False, True)).ordered


@pytest.mark.parametrize("name", method_names())
def test_a_methods_own_space_is_right_and_holds_its_presets_values(name):
    space, spec = method_class(name).search_space, resolve(name)
    table = {
        setting: {"low": dim.low, "high": dim.high, "log": dim.log} if isinstance(dim, Interval) else dim.values
        for setting, dim in space.items()
    }
    assert dict(read_space(name, table)).keys() == space.keys()
    for setting, dimension in space.items():
        assert dimension.reason
        part, _, field = setting.partition(".")
        assert spec.resolved()[part][field] in dimension, setting


def test_only_the_probe_has_nothing_to_search():
    assert [name for name in method_names() if not method_class(name).search_space] == ["head"]


def test_fixed_settings_are_not_searched():
    assert "method.rank" in read_space("lora")
    assert list(read_space("lora", fixed=["rank", "training.epochs"])) == ["training.learning_rate"]


def test_a_recipes_table_takes_the_place_of_the_methods_own():
    table = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "method.num_vertices": [1, 3]}
    assert read_space("prefix-subspace", table) == {
        "training.learning_rate": Interval(1e-4, 1e-1, log=True),
        "method.num_vertices": OneOf((1, 3)),
    }
    assert read_space("prefix-subspace", {"layers": [[0, 1], [1, 3]]})["method.layers"].at(1) == (1, 3)
    assert read_space("lora", {}) == {}


def test_everything_wrong_with_a_table_is_said_at_once_with_the_nearest_names():
    table = {
        "training.learning_rte": {"low": 1e-4, "high": 1e-1},
        "num_vertices": [1, "x"],
        "epochs": {"low": 1, "high": 5},
        "method.epochs": [1, 2],
        "batch_size": [1, 1],
        "weight_decay": {"lo": 1, "high": True, "log": 1},
        "run.shots": [10, 20],
        "foo": [1, 2],
        "label_smoothing": {"low": 0, "high": 2},
        "prefix_length": 3,
        "warmup": [0.1, 0.2],
        "training.warmup": [0.1, 0.3],
        "init_std": [1, 2],
    }
    with pytest.raises(ConfigError) as caught:
        read_space("prefix-subspace", table, fixed=["method.init_std"])
    lines = {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in str(caught.value).splitlines()[1:-2]}
    expected = {
        "training.learning_rte": "training has no such field; did you mean 'learning_rate'.",
        "num_vertices": "expected a valid integer, found 'x'",
        "epochs": "it takes whole numbers: give a list of values",
        "method.epochs": "prefix-subspace has no such field; known: .*",
        "batch_size": r"expected at least two values, all different, found \[1, 1\]",
        "weight_decay": "no such key 'lo'; did you mean 'low'.*; 'low' is missing; "
        "high: expected a number, found True; log: expected true or false, found 1",
        "run.shots": "expected a name in method or training; .*",
        "foo": "no such setting; .*",
        "label_smoothing": "expected less than 1, found 2.0",
        "prefix_length": r"expected a list of values or \{ low .*, found 3",
        "training.warmup": "it is given twice",
        "init_std": "it is searched and has a fixed value too: drop one",
    }
    assert lines.keys() == {f"search_space.{name}" for name in expected}
    for name, text in expected.items():
        assert re.fullmatch(text, lines[f"search_space.{name}"]), lines[f"search_space.{name}"]
