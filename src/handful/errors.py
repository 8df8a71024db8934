"""Every error handful raises on purpose.

Each says what was expected, what was found and where, and what to do; `hint` carries the last part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

EMPTY_NAME = "expected a name, found an empty text"


class HandfulError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback.

    `message` says what was expected and what was found (and where); `hint` says what to do.
    """

    def __init__(self, message: str, hint: str | None = None):
        self.message, self.hint = message, hint
        super().__init__(message if hint is None else f"{message}\n\nhint: {hint}")


class ConfigError(HandfulError, ValueError):
    """A setting, option, recipe or method is wrong."""


class DataError(HandfulError, ValueError):
    """A data file, row or split is wrong."""


class ModelError(HandfulError, ValueError):
    """A backbone cannot be loaded or cannot do what was asked of it."""


class RunError(HandfulError, OSError):
    """A run or export folder cannot be read or written."""

    def __str__(self) -> str:  # OSError would show the two arguments as a tuple
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


def all_in_one(errors: Sequence[HandfulError]) -> HandfulError:
    """One error that says all of these with their hints: a `ConfigError` if all are, else of the first other kind."""
    if len(errors) == 1:
        return errors[0]
    kind = next((type(error) for error in errors if not isinstance(error, ConfigError)), ConfigError)
    parts = [error.message + (f"\nhint: {error.hint}" if error.hint else "") for error in errors]
    return kind(f"{len(errors)} problems:\n  " + "\n  ".join(part.replace("\n", "\n    ") for part in parts))


def in_words(error: Exception) -> str:
    """What an exception says, in one line: of ours the message, of others also what they are."""
    text = error.message if isinstance(error, HandfulError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def shown(value: object, most: int = 100) -> str:
    """A value as an error can show it: its `repr`, cut to so many letters."""
    try:
        text = repr(value[: 2 * most] if isinstance(value, str) else value)
    except (ValueError, RecursionError):  # a number with thousands of digits, or brackets in brackets
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming what is known: the nearest name if one is near, else all of them."""
    names, name = sorted(known), str(name)[:100]
    folded = {candidate.lower(): candidate for candidate in names}
    close = get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return "known: " + ", ".join(names) if names else "nothing is known here"
