"""Names of classes that may mean the same, or that are numbers written as words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

_ANSWERS = {
    "yes": {"yes", "y", "true", "t", "1", "ja", "j", "oui", "si", "s\u00ed"},
    "no": {"no", "n", "false", "f", "0", "nein", "non"},
}
"""Answers that are written in several ways, in lower case."""

_LETTERS = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u03b1\u03b2\u03b5\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "abekmhopctyxijshdqwabehikmvoptux",
)
"""Small Cyrillic and Greek letters that, small or large, look like a Latin one."""

_RATING = re.compile(
    r"[+-]?\d+(?:[.,]\d+)?(?:\s*(/|out of|of|von|sur)\s*(\d+)|\s*(star|stern|point|punkt)(?:s|e|en)?)", re.I
)
_STARS = re.compile("(?:[\u2605\u2b50]\ufe0f?)+\u2606*")
_SHOWN = 5


def alike_notes(names: Sequence[str], folded: Callable[[str], str]) -> list[str]:
    """A sentence on names that stay different when `folded` but differ in hyphens or look-alike letters alone, and one
    on ways of writing yes and no in one column.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_loose(folded(name)), []).append(name)
    found = [same for same in alike.values() if len(set(map(folded, same))) > 1]
    answers = [[name for name in names if name.lower() in words] for words in _ANSWERS.values()]
    if sum(map(len, answers)) * 2 >= len(names):
        found += [same for same in answers if len(set(map(folded, same))) > 1 and any(len(name) > 1 for name in same)]
    if not found:
        return []
    shown = "; ".join(" and ".join(map(_shown, same)) for same in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"classes whose names may mean the same are kept apart: {shown}{more}; where they do, write them alike"]


def rating_notes(names: Sequence[str]) -> list[str]:
    """A sentence on names that are all numbers out of another one ("7/10"), or counts of stars or points."""
    found = [_RATING.fullmatch(name) for name in names]
    scales = {tuple(part and part.lower() for part in one.groups()) for one in found if one}
    one_scale = len(scales) == 1 and all(found)
    if len(names) < 3 or not (one_scale or all(map(_STARS.fullmatch, names))):
        return []
    return [
        f"the labels look like ratings ({names[0]!r}, {names[-1]!r}), and are read as {len(names)} "
        "classes without an order; for a target write the numbers alone and give --kind regression"
    ]


def _loose(name: str) -> str:
    dashes = "".join("-" if unicodedata.category(letter) == "Pd" else letter for letter in name.translate(_LETTERS))
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", dashes)


def _shown(name: str) -> str:
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"
