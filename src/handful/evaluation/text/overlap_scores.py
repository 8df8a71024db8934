"""Scores of written texts by what they share with their references: BLEU, chrF++ and ROUGE-L.

BLEU is not one number: the official scripts differ in case, tokens and what a missing reference counts for, by up to
4 points on the same texts. Each variant is named after the task whose script it equals. The n-grams are counted by
sacrebleu; where it can be set to give the official figure it is, and nothing is counted anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from typing import Any, final

import numpy as np

from handful.data.task import Example
from handful.errors import ConfigError

ROUGE_BETA = 1.2


def require_sacrebleu() -> Any:
    """The package. Raises: ConfigError where it is not installed."""
    try:
        return import_module("sacrebleu")
    except ImportError:
        raise ConfigError(
            "scores of written texts need the package 'sacrebleu', which is not installed",
            "pip install 'handful[generation]'",
        ) from None


@final
@dataclass(frozen=True, slots=True)
class Bleu:
    """One variant of corpus BLEU (Papineni et al. 2002): the geometric mean of 1- to 4-gram precisions, and brevity.

    `prepare` is done to texts and references alike. `references` are read at most (None: all); with `blanks`, a record
    that has fewer gets empty ones, which official scripts read from files padded with blank lines and which can be the
    "closest" reference of the brevity penalty. `smoothing` is sacrebleu's, "exp" that of mteval-v13a.
    """

    lowercase: bool = False
    tokens: str = "13a"
    smoothing: str = "exp"
    references: int | None = None
    blanks: int = 0
    prepare: Callable[[str], str] | None = None

    def measure(self, texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
        """`texts` (N,), `records` (N,). Returns (N, 10): lengths of text and reference, right and all n-grams."""
        prepare = self.prepare or str
        read = [[prepare(text) for text in record.references[: self.references]] for record in records]
        read = [references + [""] * (self.blanks - len(references)) for references in read]
        streams = [list(stream) for stream in zip_longest(*read)]
        return np.array(self._counter()._extract_corpus_statistics([prepare(text) for text in texts], streams), float)

    def combine(self, sums: np.ndarray) -> np.ndarray:
        """`sums` (R, 10) over rows. Returns (R,), 0 to 100."""
        compute = require_sacrebleu().BLEU.compute_bleu

        def of(row: list[int]) -> float:
            correct, total = row[2:6], row[6:]
            return compute(correct, total, row[0], row[1], smooth_method=self.smoothing).score

        return np.clip([of(row) for row in sums.astype(int).tolist()], 0, 100)

    def signature(self) -> str:
        """The variant as sacrebleu writes signatures."""
        case, read = "lc" if self.lowercase else "mixed", self.references or "all"
        blanks = f"kept to {self.blanks}" if self.blanks else "dropped"
        prepared = f"|prepare:{self.prepare.__name__.strip('_')}" if self.prepare else ""
        version = require_sacrebleu().__version__
        return (
            f"nrefs:{read}|blanks:{blanks}|case:{case}{prepared}|eff:no|tok:{self.tokens}|smooth:{self.smoothing}"
            f"|version:{version}"
        )

    def _counter(self) -> Any:
        return require_sacrebleu().BLEU(
            lowercase=self.lowercase, tokenize=self.tokens, smooth_method=self.smoothing, force=True
        )


def repaired_e2e(text: str) -> str:
    """The text as e2e-metrics reads it: signs that were decoded wrongly are put right."""
    for wrong, right in (("Â£", "£"), ("Ł", "£"), ("Ã©", "é")):
        text = text.replace(wrong, right)
    return text


def split_dart(text: str) -> str:
    """The text in lower case with every sign that is no letter, digit or underscore split off, as DART's references."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


BLEU = Bleu()
BLEU_E2E = Bleu(lowercase=True, prepare=repaired_e2e)
BLEU_WEBNLG20 = Bleu(blanks=5)
BLEU_DART = Bleu(tokens="none", smoothing="none", references=3, blanks=3, prepare=split_dart)
BLEU_DART_NO_BLANKS = Bleu(tokens="none", smoothing="none", references=3, prepare=split_dart)


# ------------------------------------------------------------------------------------------------------- chrF++


def _chrf() -> Any:
    return require_sacrebleu().CHRF(word_order=2)


def measure_chrf(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """`texts` (N,), `records` (N,). Returns (N, 24): n-grams of the text, of its best reference, and shared ones."""
    streams = [list(stream) for stream in zip_longest(*(record.references for record in records))]
    return np.array(_chrf()._extract_corpus_statistics(list(texts), streams), float)


def combine_chrf(sums: np.ndarray) -> np.ndarray:
    """`sums` (R, 24) over rows. Returns chrF++ (R,), 0 to 100 (Popović 2017)."""
    chrf = _chrf()
    return np.array([chrf._compute_score_from_stats(row).score for row in sums.astype(int).tolist()])


def chrf_signature() -> str:
    """The variant as sacrebleu writes signatures."""
    return f"nrefs:all|case:mixed|eff:yes|nc:6|nw:2|space:no|version:{require_sacrebleu().__version__}"


# ------------------------------------------------------------------------------------------------------- ROUGE-L


def measure_rouge(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """ROUGE-L as e2e-metrics and coco-caption have it, on `penn_tokens`.

    With LCS the longest common subsequence of a text and one of its references, P = max LCS / |text| and
    R = max LCS / |reference|, each over the references by itself, F = (1 + β²) P R / (R + β² P), β = 1.2. The score is
    the mean of F. `texts` (N,), `records` (N,). Returns (N, 2): F and 1.
    """
    scores = [_rouge(text, record.references) for text, record in zip(texts, records, strict=True)]
    return np.stack([np.array(scores), np.ones(len(scores))], axis=1)


def _rouge(text: str, references: Sequence[str]) -> float:
    written = penn_tokens(text)
    expected = [tokens for tokens in map(penn_tokens, references) if tokens]
    common = [(longest_common_subsequence(written, tokens), len(tokens)) for tokens in expected]
    recall = max((shared / length for shared, length in common), default=0.0)
    if not recall:
        return 0.0
    precision = max(shared for shared, _ in common) / len(written)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit a token of `a` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << index
    row = full = (1 << len(a)) - 1
    for token in b:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


_PENN_SIGNS = re.compile(r"(``|''|--+|\.\.+|[\"“”„()\[\]{};!?…#$%–—]|,(?!\d)|(?<!\d),|:(?!\d))")
_PENN_CLITIC = re.compile(r"(?<=.)(n't|'(?:s|m|d|ll|re|ve))$")
_PENN_DROPPED = frozenset(
    ["''", "'", "``", "`", '"', "“", "”", "„", "–", "—", ".", "?", "!", ",", ":", "-", "--", "…", ";"]
)


def penn_tokens(text: str) -> list[str]:
    """Tokens of the Penn Treebank's kind in lower case, without punctuation.

    Ours, for what e2e-metrics does with Stanford's tokenizer, which needs Java. On 21,815 references of E2E it gives
    other tokens than that in 0.1 %, on 10,490 of WebNLG in 2 % (units, abbreviations).
    """
    chunks = _PENN_SIGNS.sub(r" \1 ", text.lower().replace("’", "'").replace("£", " # ")).split()
    tokens = [token for chunk in chunks for token in _penn_split(chunk)]
    return [token for token in tokens if token not in _PENN_DROPPED and token.strip(".")]


def _penn_split(chunk: str) -> list[str]:
    if len(chunk) == 1:
        return [chunk]
    if chunk == "cannot":
        return ["can", "not"]
    if chunk.endswith(".") and not re.fullmatch(r"(?:[a-z]\.)+|mrs?\.|dr\.|st\.|jr\.|inc\.|corp\.|ltd\.|co\.", chunk):
        return _penn_split(chunk[:-1])
    if chunk[-1] in "',:-`":
        return _penn_split(chunk[:-1])
    if chunk[0] in "'`" or (chunk[0] == "-" and not chunk[1].isdigit()):
        return _penn_split(chunk[1:])
    if clitic := _PENN_CLITIC.search(chunk):
        return [*_penn_split(chunk[: clitic.start()]), clitic[1]]
    return [chunk]


def measure_exact(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """`texts` (N,), `records` (N,). Returns (N, 2): 1 where the text is one of the references, and 1 row."""

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    equal = [plain(text) in map(plain, record.references) for text, record in zip(texts, records, strict=True)]
    return np.stack([np.array(equal, dtype=float), np.ones(len(equal))], axis=1)


def combine_mean(sums: np.ndarray) -> np.ndarray:
    """`sums` (R, 2) of scores and of rows. Returns their means (R,)."""
    return sums[:, 0] / sums[:, 1]
