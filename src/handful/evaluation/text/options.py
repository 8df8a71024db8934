"""How texts are generated. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, final

from handful.methods.settings import convert_settings, setting

_PROTOCOL = "ours"


@final
@dataclass(frozen=True)
class GenerationOptions:
    """How records are shown to a language model, and how it writes. The paper's values are not known to us."""

    name: ClassVar[str] = "generation"

    beams: Annotated[int, setting("beams of the search; 1 is greedy", source=_PROTOCOL, ge=1, le=64)] = 5
    length_penalty: Annotated[float, setting("exponent of the length that a beam's score is divided by")] = 1.0
    max_new_tokens: Annotated[int, setting("most tokens written", source=_PROTOCOL, unit="tokens", ge=1, le=4096)] = 128
    no_repeat_ngram_size: Annotated[
        int, setting("n-grams of this size are written once at most; 0: no such rule", source=_PROTOCOL, ge=0)
    ] = 0
    target_length: Annotated[
        int, setting("tokens kept of a reference in training, the end token included", unit="tokens", ge=2)
    ] = 128
    references: Annotated[
        Literal["all", "one"], setting("train on every reference of a record, or on one that the seed draws")
    ] = "all"
    source_prefix: Annotated[str, setting("put in front of every source, such as 'summarize: '")] = ""
    separator: Annotated[str, setting("between source and text, for models without an encoder")] = "\n"

    def __post_init__(self) -> None:
        convert_settings(self)

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def decoding(self) -> dict[str, Any]:
        """The arguments of transformers' `GenerationConfig`, with what a checkpoint might otherwise add of its own."""
        return {
            "num_beams": self.beams, "length_penalty": self.length_penalty, "max_new_tokens": self.max_new_tokens,
            "no_repeat_ngram_size": self.no_repeat_ngram_size, "do_sample": False,
            "early_stopping": False, "min_length": 0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
            "encoder_no_repeat_ngram_size": 0,
        }  # fmt: skip
