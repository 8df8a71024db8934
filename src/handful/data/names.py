"""Names of columns: those that are customary, and what has no place in one."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from handful.data.cells import check_row
from handful.errors import DataError

COMMON_NAMES = frozenset(
    [
        "answer",
        "body",
        "category",
        "class",
        "content",
        "context",
        "description",
        "document",
        "hypothesis",
        "id",
        "index",
        "input",
        "instruction",
        "kind",
        "label",
        "labels",
        "lang",
        "language",
        "message",
        "messages",
        "output",
        "passage",
        "premise",
        "prompt",
        "question",
        "rating",
        "reference",
        "references",
        "response",
        "review",
        "score",
        "sentence",
        "sentence1",
        "sentence2",
        "sentiment",
        "source",
        "stars",
        "summary",
        "target",
        "targets",
        "text",
        "text1",
        "text2",
        "text_a",
        "text_b",
        "text_pair",
        "title",
        "topic",
        "type",
        "y",
    ]
)
"""Names by which a first row is known to be a header, in lower case."""

_TEXT_WORDS = COMMON_NAMES | frozenset(
    ["comment", "comments", "complaint", "email", "feedback", "mail", "note", "notes", "opinion", "post", "remark",
     "remarks", "reply", "reviews", "subject", "texts", "ticket", "tweet"]
)  # fmt: skip
"""Last words of names such as "Customer comment", in lower case."""

MAX_NAME = 1000
"""Characters in the name of a column. More is a text."""

_INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad"


def clean_name(name: Any) -> str:
    """The name as a text without outer white space and invisible characters, such as a mark at the start of a file that
    was joined to another.
    """
    text = str(name)
    while (stripped := text.strip().strip(_INVISIBLE)) != text:
        text = stripped
    return text


def is_header(cells: Iterable[Any]) -> bool:
    """Whether cells are the names of columns beyond doubt: two of them are customary."""
    return len({clean_name(cell).lower() for cell in cells} & COMMON_NAMES) > 1


def is_title(name: str, cells: Iterable[str]) -> bool:
    """Whether several words head the column of these texts, and are no text themselves: there are at most four, they
    are no sentence, and the last one is customary or the texts have three times as many words (their median).
    """
    words = name.split()
    if len(words) > 4 or name[-1:] in tuple(".!?…,;:"):
        return False
    return words[-1].lower() in _TEXT_WORDS or median([len(cell.split()) for cell in cells] or [0]) >= 3 * len(words)


def check_names(names: Iterable[str], where: str) -> None:
    """Raises: DataError for the name of a column that is a long text, or cannot be written."""
    for name in names:
        if len(name) > MAX_NAME:
            raise DataError(
                f"{where}: expected the name of a column, found a text of {len(name):,} characters ({name[:40]!r} …)",
                "put a line with the names of the columns first, such as: text,label",
            )
    check_row(dict.fromkeys(names), where)
