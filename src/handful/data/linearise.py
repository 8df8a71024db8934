"""Triples and meaning representations as the text that a model reads, and back.

What was fed to the model of a paper differs from paper to paper, so the form is a choice. `pipes` is our default: one
form for all data sets and no signs that a tokenizer lacks (T5 has no "<", so "<H>" would lose its brackets).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from handful.errors import ConfigError, nearest

Triple = tuple[str, str, str]

_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)")
_PLAIN_SLOTS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def pipes(triples: Sequence[Triple]) -> str:
    """`s | p | o && s | p | o`, underscores as spaces, outer quotes left out; what separates is "/" or "&" within an
    entity, so that `parse_source` reads it back. Ours.
    """
    return " && ".join(" | ".join(map(_inseparable, triple)) for triple in triples)


def colons(triples: Sequence[Triple]) -> str:
    """`s : p : o | s : p : o`: the form of LoRA's and PrefixTuning's WebNLG and DART."""
    return " | ".join(" : ".join(map(_clean, triple)) for triple in triples)


def colons_lower(triples: Sequence[Triple]) -> str:
    """`colons` with relations in lower case: LoRA's DART."""
    return colons([(subject, relation.lower(), object_) for subject, relation, object_ in triples])


def head_relation_tail(triples: Sequence[Triple]) -> str:
    """`<H> s <R> p <T> o`, relations split at capitals: plms-graph2text, behind "translate Graph to English: "."""
    return " ".join(f"<H> {_clean(s)} <R> {_split_words(_clean(p))} <T> {_clean(o)}" for s, p, o in triples)


def subject_predicate_object(triples: Sequence[Triple]) -> str:
    """`<S> s <P> p <O> o`: webnlg_toolkit."""
    return " ".join(f"<S> {_clean(s)} <P> {_clean(p)} <O> {_clean(o)}" for s, p, o in triples)


def dart_upstream(triples: Sequence[Triple]) -> str:
    """`<H> s <R> p <T> o` as the script of DART: relations in lower case, no brackets, quotes or commas, ASCII.

    The script uses unidecode; here accents are taken off, and characters without an ASCII form left out.
    """

    def plain(text: str) -> str:
        text = unicodedata.normalize("NFKD", re.sub(r"[\[\]()\"',]", "", text))
        return " ".join(text.encode("ascii", "ignore").decode().split())

    return " ".join(f"<H> {plain(s)} <R> {plain(p).lower()} <T> {plain(o)}" for s, p, o in triples)


LINEARISATIONS: dict[str, Callable[[Sequence[Triple]], str]] = {
    "pipes": pipes,
    "colons": colons,
    "colons-lower": colons_lower,
    "head-relation-tail": head_relation_tail,
    "subject-predicate-object": subject_predicate_object,
    "dart-upstream": dart_upstream,
}
MEANING_FORMS = ("raw", "slots")
"""Forms of E2E's meaning representations that are not made of triples."""


def linearisation(name: str) -> Callable[[Sequence[Triple]], str]:
    """The form of this name. Raises: ConfigError naming the nearest one."""
    if name not in LINEARISATIONS:
        raise ConfigError(f"linearisation: {name!r} is not known", nearest(name, LINEARISATIONS))
    return LINEARISATIONS[name]


def meaning_text(meaning: str, form: str) -> str:
    """An E2E meaning representation as text.

    "raw" leaves it as it is, "slots" is PrefixTuning's `name : Blue Spice | Type : pub | area : riverside`; every other
    form is one of triples (name, slot, value), as DART has them, sorted by slot.
    """
    if form == "raw":
        return meaning
    slots = parse_meaning(meaning)
    if form == "slots":
        return " | ".join(f"{_PLAIN_SLOTS.get(slot, slot)} : {value}" for slot, value in slots)
    if form not in LINEARISATIONS:
        raise ConfigError(f"linearisation: {form!r} is not known", nearest(form, [*LINEARISATIONS, *MEANING_FORMS]))
    return LINEARISATIONS[form](meaning_triples(slots))


def parse_meaning(meaning: str) -> list[tuple[str, str]]:
    """Slots and values of `name[Blue Spice], area[riverside]`, in order; empty for a text of another form."""
    found, position = [], 0
    while position < len(meaning):
        match = _SLOT.match(meaning, position)
        if match is None:
            return []
        found.append((match[1].strip(), match[2].strip()))
        position = match.end()
    return found


def meaning_triples(slots: Sequence[tuple[str, str]]) -> list[Triple]:
    """Triples (name, slot, value), sorted by slot; a meaning of a name alone is one triple of it."""
    name = next((value for slot, value in slots if slot == "name"), "")
    others = sorted((slot, value) for slot, value in slots if slot != "name")
    return [(name, slot, value) for slot, value in others or [("name", name)]]


def parse_source(source: str) -> list[Triple]:
    """The triples of a source in the form `pipes` or of a raw meaning representation; empty for any other text."""
    triples = [tuple(part.strip() for part in triple.split(" | ")) for triple in source.split(" && ")]
    if all(len(triple) == 3 for triple in triples):
        return [(s, p, o) for s, p, o in triples]
    slots = parse_meaning(source)
    return meaning_triples(slots) if slots else []


def _clean(text: str) -> str:
    text = text.replace("_", " ").strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def _inseparable(text: str) -> str:
    return re.sub(r"(?<!\S)(\||&&)(?!\S)", lambda sign: "/" if sign[1] == "|" else "&", _clean(text))


def _split_words(text: str) -> str:
    """`birthPlace` as `birth place`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower()
