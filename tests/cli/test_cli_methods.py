"""`handful methods NAME`: the search space beside the fields."""

import json


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
