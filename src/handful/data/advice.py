"""Advice on how to read a table, in the words of those who hold it in memory rather than those of a command line."""

from __future__ import annotations

import re

_OPTION = re.compile(r"--(text-pair|text|label|kind|metric)\b(?: ((?:(?! --)[^;,()`])+))?")


def in_python(advice: str) -> str:
    """The advice with its options of the command line as arguments: `--text a|b` becomes `columns={"text": "a"}`.

    Of several values the first is shown. Options that follow each other become one mapping.
    """
    return re.sub(rf"{_OPTION.pattern}(?: {_OPTION.pattern})*", _as_mapping, advice)


def _as_mapping(found: re.Match[str]) -> str:
    options = {name.replace("-", "_"): value.partition("|")[0].strip() for name, value in _OPTION.findall(found[0])}
    if all(value in ("", "out") for value in options.values()):  # "leave --text-pair out"
        return " and ".join(options) + " out" * ("out" in options.values())
    return "columns={" + ", ".join(f'"{name}": "{value}"' for name, value in options.items()) + "}"
