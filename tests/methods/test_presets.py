"""Presets that claim to be a paper's, its code's or published: held against what the method's page says of them.

The words stand on the page, the values here: a preset that loses one, or a page that says something else, fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handful.methods import METHODS, method_class
from handful.runs.spec import resolve

PAGES = Path(__file__).parents[2] / "docs" / "methods"

SAID: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("prefix-subspace", "paper"): {
        "random heads": {"method.head_init": "normal"},
        "the family's own pooler": {"run.pooling": "family"},
        "kept positions": {"method.positions": "kept"},
        "half of the rows carved for": {"run.dev": "carved", "run.dev_fraction": 0.5},
        "pooled stochastic validation": {"training.validation": "pooled"},
        "the best checkpoint": {"training.selection": "best"},
        "wˡ ~ Dir(1, …, 1) for each example and each layer l": {
            "method.draw_per": "observation", "method.draw_layers": "per-layer", "method.concentration": 1.0,
            "method.geometry": "simplex",
        },
        "u  ~ Dir(1, …, 1) for each example, independent of w": {"method.head_subspace": True},
        "| `num_vertices` M | 3 |": {"method.num_vertices": 3},
        "| `validation`, `validation_draws` S | deterministic, 10 |": {"training.validation_draws": 10},
    },
    ("prefix-subspace", "default"): {
        "| `num_vertices` M | 3 |": {"method.num_vertices": 3},
        "| `prefix_length` P | 10 |": {"method.prefix_length": 10},
        "| `draw_per`, `draw_layers` | observation, per-layer |": {
            "method.draw_per": "observation", "method.draw_layers": "per-layer",
        },
        "| `head_subspace` | true |": {"method.head_subspace": True},
        "| `init`, `init_std` | normal, 1 |": {"method.init": "normal", "method.init_std": 1.0},
        "| `head_init` | soft-probe |": {"method.head_init": "soft-probe"},
        "| `cosine_weight` β | 0 |": {"method.cosine_weight": 0.0},
        "| `positions` | auto |": {"method.positions": "auto"},
        "| `validation`, `validation_draws` S | deterministic, 10 |": {
            "training.validation": "deterministic", "training.validation_draws": 10,
        },
    },
    ("fine-gates", "default"): {
        "the same gates with our head, a constant rate of 3e-2, and `penalty_start` = 0.5": {
            "method.head_init": "soft-probe", "training.learning_rate": 3e-2, "training.schedule": "constant",
            "method.penalty_start": 0.5,
        },
        "so that s = 0.4 is met": {"method.target_sparsity": 0.4},
        "u = ½ + tanh(m)": {"method.squash": "tanh"},
        "σ_r = 0.5 against σ_n = 0.1": {"method.penalty_std": 0.5, "method.noise_std": 0.1},
    },
    ("fine-gates", "repo"): {
        "u = ½ + tanh(m)": {"method.squash": "tanh"},
        "σ_r = 0.5 against σ_n = 0.1": {"method.penalty_std": 0.5, "method.noise_std": 0.1},
        "`penalty_weight` takes the sources' λ instead": {"method.penalty_weight": 50.0},
        "(their penalty starts at once)": {"method.penalty_start": 0.0},
        "so that s = 0.4 is met": {"method.target_sparsity": 0.4},
        "(off there, and by default here)": {"method.kurtosis": False},
        "gate starts at m = 1": {"method.init_mean": 1.0},
    },
    ("fine-gates", "paper"): {
        "`paper` is incomplete": {"method.squash": "none", "method.penalty_weight": 50.0},
    },
    ("poly", "polytropon"): {
        "`gumbel`: logistic noise in training (Polytropon)": {"method.gate": "gumbel", "method.noise": "per-example"},
        "q = 1 is Poly": {"method.num_splits": 1},
        "the papers' α is 1": {"method.alpha": 1.0},
        "The routing has 100 times the rate of": {"method.routing_rate": 100.0},
    },
    ("poly", "mhr"): {
        "| `gate` | sigmoid |": {"method.gate": "sigmoid"},
        "q > 1 Poly-S": {"method.num_splits": 64},
        "the papers' α is 1": {"method.alpha": 1.0},
        "The routing has 100 times the rate of": {"method.routing_rate": 100.0},
    },
    ("scaled-prompt", "default"): {
        "| `scale_shape` | dim |": {"method.scale_shape": "dim"},
        "| `scale_target` | prompt |": {"method.scale_target": "prompt"},
        "| `scale_init_std`, `scale_rate` | 0, 1 |": {"method.scale_init_std": 0.0, "method.scale_rate": 1.0},
        "| `prompt_length` P | 20 |": {"method.prompt_length": 20},
        "| `rate_unit`, learning rate | embeddings, 0.3 |": {
            "method.rate_unit": "embeddings", "training.learning_rate": 0.3,
        },
    },
}  # fmt: skip
"""What a page says, and which value that is: by method and preset."""

ELSEWHERE = {("fine-gates", "peft"), ("fine-gates", "stg")}
"""Presets of code that is no paper's, whose constants no page has."""


@pytest.mark.parametrize(("method", "preset"), SAID)
def test_a_preset_is_what_the_methods_page_says(method, preset):
    page = " ".join((PAGES / f"{method}.md").read_text(encoding="utf-8").split())
    resolved = resolve(method, preset=preset).resolved()
    for words, values in SAID[method, preset].items():
        assert " ".join(words.split()) in page, f"docs/methods/{method}.md no longer says {words!r}"
        for name, value in values.items():
            section, _, field = name.partition(".")
            assert resolved[section][field] == value, f"{name}, of which the page says {words!r}"


def test_every_preset_of_a_paper_is_held_against_a_page():
    presets = {(method, preset) for method in METHODS for preset in method_class(method).presets}
    claims = {pair for pair in presets if pair[1] not in ("default", "pretrain", "fixed-pairs")}
    assert claims == (set(SAID) & claims) | ELSEWHERE
