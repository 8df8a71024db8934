"""How much of some texts a tokenizer knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

MUCH = 0.05
"""Share of unknown tokens from which on it is said."""


@final
@dataclass(frozen=True, slots=True)
class Coverage:
    """Tokens of texts, without those that only mark beginnings and ends: how many there are and how many of them are
    unknown; of the texts, how many there are, gave no token at all, or none that is known.

    A tokenizer of bytes knows everything.
    """

    tokens: int = 0
    unknown: int = 0
    rows: int = 0
    without_token: int = 0
    all_unknown: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        mine, its = asdict(self), asdict(other)
        return Coverage(**{name: count + its[name] for name, count in mine.items()})

    @property
    def is_poor(self) -> bool:
        """Whether there is something to say."""
        return bool(self.without_token or self.all_unknown or self.unknown > MUCH * self.tokens)


NO_TEXTS = Coverage()
"""The coverage of nothing."""


def count_known(rows: Sequence[Sequence[int]], tokenizer: Any) -> Coverage:
    """The coverage of rows that a tokenizer of transformers made."""
    marks = set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token_id
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id)
    if unknown in others:  # GPT-2 and its like, which know every byte, call their end mark so too
        unknown = None
    marks.discard(unknown)
    tokens = missed = without = nothing = 0
    for ids in rows:
        text = [token for token in ids if token not in marks]
        unread = sum(token == unknown for token in text)
        tokens, missed = tokens + len(text), missed + unread
        without += not text
        nothing += bool(text) and unread == len(text)
    return Coverage(tokens, missed, len(rows), without, nothing)


def coverage_sentences(found: Coverage | Mapping[str, Any], texts: str = "texts") -> list[str]:
    """What there is to say on texts that the model cannot read, for `check`, `fit`, `predict` and cards; nothing where
    it reads them. `found` is also the record that `asdict` made; `texts` says which they are ("train texts").
    """
    found = found if isinstance(found, Coverage) else Coverage(**found)
    lines = []
    if found.unknown > MUCH * found.tokens:
        lines.append(
            f"{found.unknown / found.tokens:.0%} of the tokens of {found.rows:,} {texts} are unknown to the model, "
            "which cannot tell them apart; take a model that knows this script or these signs (--model)"
        )
    if found.all_unknown:
        lines.append(f"{found.all_unknown:,} of {found.rows:,} {texts} have no token that the model knows")
    if found.without_token:
        lines.append(
            f"{found.without_token:,} of {found.rows:,} {texts} become no token at all: to the model they are all the "
            "same empty text"
        )
    return lines
