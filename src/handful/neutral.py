"""Texts from outside (labels, names, messages) made harmless where they are shown.

On a terminal a control character is a command: it can colour, move, overwrite, or set the window's title. In a
spreadsheet a cell that begins with "=" is a formula. Neither is what a label is meant to do.
"""

from __future__ import annotations

import re

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_COMMANDS = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff\ufeff]")
"""C0 (but tab and line feed) and C1 controls, line separators, what changes the direction of writing, and halves of
characters, which no output can encode."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?%?", re.ASCII)


def printable(text: object) -> str:
    r"""The text as a terminal can show it: controls as `\x1b` and `\u202e`, tabs and line feeds as they are."""
    return _COMMANDS.sub(lambda found: _escaped(found[0]), str(text))


def one_line(text: object) -> str:
    r"""`printable`, with tabs and line feeds as `\t` and `\n` too: for a name inside a sentence."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def cell(value: object) -> object:
    """A cell of a CSV file that no spreadsheet takes for a formula; only texts are changed.

    A text that begins with =, +, -, @, a tab or a line's end gets an apostrophe in front, as spreadsheets do it
    themselves. A number stays one, as a text too: "-3.5" is no formula.
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or len(value) == 1 or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"
