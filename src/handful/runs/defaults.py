"""The method and the model of a run that names none. Nothing heavy is imported: help pages show them."""

from __future__ import annotations

METHOD, MODEL, PRESET = "prefix-subspace", "minilm", "default"
AUTO = "auto"
"""The method that stands for choosing one."""

WRITING_METHOD, WRITING_MODEL = "lora", "flan-t5-small"
"""Those of a task of texts to write.

Above prompts by chrF++ in every pair of task and seed of `few_shot_nlg_small`, two tasks that do not tell them apart
(docs/experiments.md); prefixes score higher still, but no stock loader reads one for T5.
"""

TEST_FRACTION = 0.2
"""Share of the rows that are set apart as test rows where there are none."""
