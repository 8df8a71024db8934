"""Fine-tune a language model on a handful of examples, know how good it really is, and take it anywhere."""

__version__ = "0.1.0"
