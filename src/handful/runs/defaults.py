"""The method and the model of a run that names none. Nothing heavy is imported: help pages show them."""

METHOD, MODEL, PRESET = "prefix-subspace", "minilm", "default"
AUTO = "auto"
"""The method that stands for choosing one."""

WRITING_METHOD, WRITING_MODEL = "scaled-prompt", "flan-t5-small"
"""Those of a task of texts to write."""
