"""Advice in the words of Python rather than those of the command line."""

from __future__ import annotations

import re

_ARGUMENTS = {"init-from": "start", "test-fraction": "test_fraction"}
_NAMES = "method|model|preset|budget|speedup|shots|seed|start|init-from|adapt|output|test-fraction|test|device|dev"
_ARGUMENT = re.compile(rf"--({_NAMES})\b(?![-\w])(?: ([A-Z]+|\d[\w.]*|auto|cpu|cuda|carved|separate|none)\b)?")
_OPTION = re.compile(
    r"--(text-pair|text|label-separator|label|kind|metric)\b(?: ((?:(?! --)(?:[^;,()`]|,(?=[^\s`])))+))?"
)


def in_python(advice: str) -> str:
    """The advice with its options of the command line as arguments: `--text a|b` becomes `columns={"text": "a"}`.

    Of several values the first is shown. Options that follow each other become one mapping. An option that is no column
    becomes a keyword: `--shots 32` is `shots=32`. Commands stay what they are.
    """
    if "handful fit" in advice:
        return advice
    advice = _ARGUMENT.sub(_as_keyword, advice)
    return re.sub(rf"{_OPTION.pattern}(?: {_OPTION.pattern})*", _as_mapping, advice)


def _as_keyword(found: re.Match[str]) -> str:
    name, value = found.groups()
    value = repr(value) if value and value.islower() else value or ""
    return f"{_ARGUMENTS.get(name, name)}={value}"


def _as_mapping(found: re.Match[str]) -> str:
    options = {name.replace("-", "_"): value.partition("|")[0].strip(" '") for name, value in _OPTION.findall(found[0])}
    if all(value in ("", "out") for value in options.values()):  # "leave --text-pair out"
        return " and ".join(options) + " out" * ("out" in options.values())
    return "columns={" + ", ".join(f'"{name}": "{value}"' for name, value in options.items()) + "}"
