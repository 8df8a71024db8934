"""Whether a written text says what it was to say: slot errors for E2E, entity coverage for triples.

They need neither references nor weights, only the source (`linearise.parse_source`), and with few shots they tell more
than n-grams: a fluent text about another restaurant scores well in BLEU.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from handful.data.linearise import parse_source
from handful.data.task import Example
from handful.errors import DataError

_YOUNG = r"(?:child(?:ren)?|kids?|famil(?:y|ies))"
_NEGATION = r"(?:\bno|\bnot|\bnon|n't|\bnor|\bwithout|\bnever)"
_RATED = r"(?:rat(?:ings?|ed|es?)|reviews?|reviewed|scores?|standards?|recommended)"
_CHEAP = (
    r"\b(?:cheap\w*|inexpensive\w*|affordabl[ey]|low(?:er)?[- ](?:price[ds]?|cost))\b"
    r"|\bprices?(?: \w+){0,3} low\b"
)
_DEAR = (
    r"(?<!in)expensive|\b(?:high\w*|premium|upper|up)[- ](?:price[ds]?|end|cost)\b|\bhigh(?:er)? (?:price|cost)"
    r"|\bpric(?:es?|ing)(?: \w+){0,3} high|\bpricey\b"
)
_MEDIUM = (
    r"\b(?:moderate\w*|mid\w*|medium|average|reasonabl[ey]|fair(?:ly)?)(?:[- ]\w+)?[- ](?:price[ds]?|pricing|cost)\b"
    r"|\bprices?(?: \w+){0,3} (?:average|moderate|reasonable|medium)|\bmoderate(?:ly)?\b|\bmid-?range\b"
)


def _rated(words: str) -> str:
    """`highly rated`, `a high customer rating`, `rated as high`."""
    return rf"\b(?:{words})\w*(?:[- ]\w+){{0,2}}[- ]{_RATED}|\b{_RATED}(?: \w+){{0,3}} (?:{words})"


def _points(digit: int, word: str) -> str:
    """`5 stars`, `five-star`, `5 out of 5`, `5/5`."""
    of_five = r"(?:[- ](?:stars?|points?))?(?: out)?[- ](?:of )?(?:5|five)"
    return rf"\b(?:{digit}|{word})(?:[- ]stars?|{of_five})\b|\b{digit}/5"


_LOW = rf"{_rated('low|bad|poor|terribl')}|{_points(1, 'one')}"
_MIDDLE = rf"{_rated('average|mediocre|decent|ok|moderate|medium')}|{_points(3, 'three')}"
_HIGH = (
    rf"{_rated('high|excellent|great|well|top|outstanding|good|best|perfect|superb|wonderful')}|{_points(5, 'five')}"
)
_CLOSED_SLOTS: dict[str, dict[str, str]] = {
    "eatType": {
        "coffee shop": r"\bcoffee|\bcaf[eé]\b",
        "pub": r"\bpubs?\b",
        "restaurant": r"\brestaurants?\b",
    },
    "food": {
        "Chinese": r"\bchinese\b",
        "English": r"\benglish\b|\bbritish\b",
        "Fast food": r"\bfast[- ]?food\b",
        "French": r"\bfrench\b",
        "Indian": r"\bindian\b",
        "Italian": r"\bitalian\b",
        "Japanese": r"\bjapanese\b|\bsushi\b",
    },
    "area": {
        "city centre": (
            r"\b(?:city|town)[- ]cent(?:re|er)|\bcent(?:re|er) of (?:the )?(?:city|town)|\b(?:in|the) cent(?:re|er)\b"
            r"|\bdowntown"
        ),
        "riverside": r"\briver",
    },
    "familyFriendly": {
        "no": (
            rf"{_NEGATION}\b[^.,;]*?\b{_YOUNG}|\badults?\b"
            rf"|\b{_YOUNG}\b(?:[- ]\w+){{0,2}}?[- ](?:unfriendly|(?:are|is|be)(?:n't| not))"
        ),
        "yes": rf"\b{_YOUNG}\b",
    },
    "priceRange": {
        "cheap": _CHEAP,
        "moderate": _MEDIUM,
        "high": _DEAR,
        "less than £20": rf"\b(?:less|lower|under|below|cheaper|within|up)\b(?: \w+)? £? ?(?:20|twenty)|{_CHEAP}",
        "£20-25": rf"£? ?20 ?(?:-|–|to|and|or) ?(?:£ ?)?25|\btwenty\b.*\btwenty[- ]five|{_MEDIUM}",
        "more than £30": rf"\b(?:more|over|above|least|upwards?|higher|from)\b(?: \w+)? £? ?(?:30|thirty)|{_DEAR}",
    },
    "customer rating": {
        "low": _LOW,
        "1 out of 5": _LOW,
        "average": _MIDDLE,
        "3 out of 5": _MIDDLE,
        "high": _HIGH,
        "5 out of 5": _HIGH,
    },
}
"""How the values of E2E's closed slots are said. Values that are said alike share a pattern."""
_PATTERNS = {
    slot: {value: re.compile(pattern, re.IGNORECASE) for value, pattern in values.items()}
    for slot, values in _CLOSED_SLOTS.items()
}
_OPEN_SLOTS = ("name", "near")

ErrorKind = Literal["missing", "wrong", "added"]


@final
@dataclass(frozen=True, slots=True)
class SlotError:
    """A slot that is missing, said with another value, or said though it was not asked for; `value` is the one asked
    for, of an added slot the one said.
    """

    slot: str
    value: str
    kind: ErrorKind


def slot_errors(text: str, source: str) -> list[SlotError]:
    """What a text about a restaurant of E2E leaves out, gets wrong or makes up.

    A slot is right where its value is said in one of the usual ways; names must be said word by word, and names that
    were not asked for are not recognised. A place of which nothing was said may be called a restaurant. Raises:
    DataError for a source that is no meaning of E2E.
    """
    wanted = _meaning(source)
    errors = []
    for slot in _OPEN_SLOTS:  # first, and taken out, lest "Café Rouge" is read as a coffee shop
        if slot in wanted:
            name = re.escape(re.sub("^the ", "", wanted[slot], flags=re.IGNORECASE)).replace("é", "[eé]")
            text, found = re.subn(rf"(?<!\w){name}(?!\w)", "@", text, flags=re.IGNORECASE)
            if not found:
                errors.append(SlotError(slot, wanted[slot], "missing"))
    for slot in _PATTERNS:
        value, said = wanted.get(slot), _said(slot, wanted.get(slot), text)
        others = [other for other in said if other != value and (value, other) != (None, "restaurant")]
        if value is not None and value not in said:
            errors.append(SlotError(slot, value, "wrong" if others else "missing"))
        else:
            errors += [SlotError(slot, other, "added") for other in others]
    return errors


def _said(slot: str, wanted: str | None, text: str) -> list[str]:
    """Values of a slot found in a text, each in what the values before it leave of the text.

    The value asked for goes first, as some are said alike; only "not family-friendly" always before "family-friendly".
    """
    order = list(_PATTERNS[slot]) if slot == "familyFriendly" else sorted(_PATTERNS[slot], key=lambda v: v != wanted)
    said = []
    for value in order:
        text, found = _PATTERNS[slot][value].subn("@", text)
        if found:
            said.append(value)
    return said


def _meaning(source: str) -> dict[str, str]:
    triples = parse_source(source)
    slots = {slot: value for _, slot, value in triples}
    if not slots or not slots.keys() <= {*_OPEN_SLOTS, *_PATTERNS} or len({name for name, _, _ in triples}) > 1:
        raise DataError(
            f"expected a meaning of E2E such as 'name[Aromi], area[riverside]' or its triples, found {source!r}",
            "slot errors are counted on E2E alone, with sources in the form pipes or raw",
        )
    name = triples[0][0]
    return {**slots, "name": name} if name else slots


def measure_slots(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """Slot error rate: missing, wrong and added slots by the slots asked for, as Wen et al. (2015) for E2E.

    Patterns are not readers: on E2E's own test references the rate is 0.094, as their authors left much out and some of
    what they said is not recognised.

    `texts` (N,), `records` (N,). Returns (N, 2): errors and slots.
    """
    errors = [len(slot_errors(text, record.text)) for text, record in zip(texts, records, strict=True)]
    return np.stack([np.array(errors, float), [float(len(_meaning(record.text))) for record in records]], axis=1)


# ------------------------------------------------------------------------------------------------ entity coverage

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip


_TABLE = "[TABLECONTEXT]"
"""The subject of DART's triples about a whole table; no text names it."""


def missing_entities(text: str, source: str) -> list[str]:
    """Subjects and objects of a source's triples that a text does not name, each once, in order.

    An entity is named where its words stand in the text in a row, without regard to case, accents and signs; what it
    has in brackets may be left out, a date may be written out, and a number may be grouped. Raises: DataError for a
    source without triples.
    """
    words = _plain(text)
    return [entity for entity in _entities(source) if not any(f" {form} " in words for form in _forms(entity, words))]


def _entities(source: str) -> list[str]:
    entities = dict.fromkeys(entity for subject, _, object_ in parse_source(source) for entity in (subject, object_))
    entities.pop(_TABLE, None)
    if not entities:
        raise DataError(
            f"expected triples such as 'Rome | country | Italy', found {source!r}",
            "entity coverage needs sources in the form pipes, or E2E's raw meanings",
        )
    return list(entities)


def _plain(text: str) -> str:
    """Words in lower case between single spaces, with digits grouped by commas joined: "2,500" is 2500."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", unicodedata.normalize("NFKD", text.lower()))
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    words = " ".join(re.findall(r"[^\W_]+", text))
    return f" {words} "


def _forms(entity: str, words: str) -> list[str]:
    forms = [_plain(entity).strip(), _plain(re.sub(r"\([^)]*\)", "", entity)).strip()]
    number = re.match(r"(\d+)\.0+\b", entity)
    date = re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", entity)
    if number:
        forms.append(number[1])
    if date and 1 <= int(date[2]) <= 12 and f" {_MONTHS[int(date[2]) - 1]} " in words and f" {date[1]} " in words:
        forms += [str(int(date[3])), f"{int(date[3])}st", f"{int(date[3])}nd", f"{int(date[3])}rd", f"{int(date[3])}th"]
    return [form for form in forms if form]


def measure_entities(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """The share of entities of the triples that the texts name. It does not see whether the relations are right.

    `texts` (N,), `records` (N,). Returns (N, 2): named and all entities.
    """
    every = [len(_entities(record.text)) for record in records]
    missing = [len(missing_entities(text, record.text)) for text, record in zip(texts, records, strict=True)]
    return np.stack([np.array(every) - np.array(missing), np.array(every)], axis=1).astype(float)
