"""The method and the model of a run that names none. Nothing heavy is imported: help pages show them."""

from __future__ import annotations

from handful.errors import ConfigError, shown

METHOD, MODEL, PRESET = "prefix-subspace", "minilm", "default"
AUTO = "auto"
"""The method that stands for choosing one."""

WRITING_METHOD, WRITING_MODEL = "lora", "flan-t5-small"
"""Those of a task of texts to write.

Above prompts by chrF++ in every pair of task and seed of `few_shot_nlg_small`, two tasks that do not tell them apart
(docs/experiments.md); prefixes score higher still, but no stock loader reads one for T5.
"""


def check_auto(is_auto: bool, *, budget: object, starts: bool) -> None:
    """Raises: ConfigError for a time to choose in where nothing is chosen, or none, and for a choice beside a start."""
    if budget is not None and not is_auto:
        raise ConfigError("budget: only the method 'auto' chooses within a time", "leave it out, or take 'auto'")
    sensible = isinstance(budget, int | float) and not isinstance(budget, bool) and 0 < budget < float("inf")
    if budget is not None and not sensible:
        raise ConfigError(f"budget: expected seconds above 0, found {shown(budget)}", "such as 300")
    if starts and is_auto:
        raise ConfigError("start: a run to start from decides the method, found the method 'auto'", "name that method")
