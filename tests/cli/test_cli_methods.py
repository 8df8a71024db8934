"""`handful methods NAME`: the search space beside the fields."""

import json
from pathlib import Path


def test_a_method_shows_what_a_search_varies_and_why(command):
    shown = command("methods", "lora").out
    _, found, search = shown.partition("\n[search]")
    assert found and "0.0002 to 0.01, log" in search and "4, 8, 16" in search and "half, all and twice" in search
    record = json.loads(command("methods", "lora", "--json").out)
    assert record["search_space"]["training.learning_rate"]["low"] == 2e-4
    assert record["search_space"]["method.rank"]["values"] == [4, 8, 16]


def test_a_method_with_nothing_to_search_says_so(command):
    assert command("methods", "head").out.rstrip().endswith("nothing: there is one trial")


def test_a_method_that_writes_shows_the_settings_of_writing(command):
    record = json.loads(command("methods", "scaled-prompt", "--json").out)
    assert {"beams", "max_new_tokens", "source_prefix"} <= {field["name"] for field in record["generation"]}
    shown = command("methods", "scaled-prompt").out
    assert "[generation]  (on the command line: --set generation.NAME=VALUE)" in shown
    assert "'\\n'" in shown  # the separator, on one line
    assert "[generation]" not in command("methods", "head").out


def test_rates_for_writing_stand_below_the_preset_they_belong_to(command):
    assert "  for texts to write: learning_rate = 0.1\n" in command("methods", "prefix").out
    assert "for texts to write" not in command("methods", "lora").out


def test_methods_of_other_packages_are_listed_and_broken_ones_named(command, tmp_path, monkeypatch):
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    points = "copy = handful.methods.head:Head\nlost = acme_lost:Lost\nhead = handful.methods.head:Head\n"
    (info / "entry_points.txt").write_text(f"[handful.methods]\n{points}own = acme_own:Own\n")
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "method.md").read_text(encoding="utf-8")
    source = (
        guide.split("```python\n")[1].split("```")[0].replace('"shift"', '"own"').replace("class Shift(", "class Own(")
    )
    (tmp_path / "acme_own.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = command("methods", "--json")
    (listed,) = [method for method in found.json if method["name"] == "own"]
    assert listed["package"] == "acme 1.0" and listed["summary"] == "a trained shift of the features"
    assert {"head", "prefix"} <= {method["name"] for method in found.json} and found.code == 0
    assert "package" not in found.json[0]
    assert "method 'lost' of the package acme 1.0 cannot be imported (acme_lost:Lost)" in found.err
    assert "method 'copy' of the package acme 1.0: expected a class with name = 'copy', found 'head'" in found.err
    assert "2 packages have a method 'head': handful (handful.methods.head:Head), acme 1.0" in found.err
    assert command("methods", "own").out.startswith("own: a trained shift of the features\n")
    refused = command("methods", "owm")
    assert refused.code != 0 and "did you mean 'own'?" in refused.err
