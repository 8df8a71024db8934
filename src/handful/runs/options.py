"""Settings of a run that belong neither to the method nor to training. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, final

from handful.data.task import DevRows
from handful.evaluation.text.options import GenerationOptions
from handful.methods.settings import convert_settings, setting, wrong_settings
from handful.training.config import TrainingConfig


@final
@dataclass(frozen=True)
class RunOptions:
    """Settings of a run that belong neither to the method nor to training."""

    name: ClassVar[str] = "run"

    shots: Annotated[int | None, setting("labelled rows used in all; none: every row of the file", ge=2, le=10**9)] = (
        None
    )
    seed: Annotated[int, setting("drives rows, start, order and draws", ge=0, lt=2**63)] = 0
    dev: Annotated[DevRows, setting("development rows: carved from the shots, separate, or none")] = "none"
    dev_fraction: Annotated[float, setting("share of the shots carved for development", gt=0, lt=1)] = 0.2
    dev_rows: Annotated[int, setting("most rows of a separate development set", unit="rows", ge=1, le=10**9)] = 1000
    pooling: Annotated[
        Literal["auto", "family", "mean", "last"],
        setting("features: the family's own pooler, the mean over tokens, the last token; auto: mean for encoders"),
    ] = "auto"
    max_length: Annotated[int, setting("tokens kept of a row", unit="tokens", ge=4, le=10**9)] = 128
    predictor: Annotated[str, setting("midpoint, ensemble, draw or vertex:N, for the test score")] = "midpoint"
    draws: Annotated[int, setting("random points S for the ensemble and the disagreement", ge=2, le=1000)] = 10
    threshold: Annotated[
        float | None,
        setting(
            "of several labels per text, those of a larger probability are predicted; none: the one of the largest "
            "micro-F1 on development rows, and 0.5 without them", gt=0, lt=1,
        ),
    ] = None  # fmt: skip
    landscape: Annotated[
        int, setting("dev loss over the triangle of the first three vertices: steps a side; 0: none", ge=0, le=60)
    ] = 0

    def __post_init__(self) -> None:
        convert_settings(self)


SECTIONS: Mapping[str, type] = {"training": TrainingConfig, "run": RunOptions, "generation": GenerationOptions}
"""Settings that do not depend on the method."""


def wrong_options(overrides: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What is wrong with settings of these sections, by the names that were given; and those that only a method knows.

    The sentences are those of `resolve`.
    """
    problems: dict[str, str] = {}
    others: list[str] = []
    for given, value in overrides.items():
        section, _, name = str(given).rpartition(".")
        knowing = [section for section, kind in SECTIONS.items() if name in {f.name for f in fields(kind)}]
        section = section or (knowing[0] if len(knowing) == 1 else "")
        if section in SECTIONS:
            for problem in wrong_settings(SECTIONS[section], {name: value}).values():
                problems[given] = f"{section}.{name}: {problem}"
        else:
            others.append(given)
    return problems, others
