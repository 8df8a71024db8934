"""Search spaces: the settings of a method that are worth varying, and between which values.

A space maps dotted names of settings ("training.learning_rate", "method.prefix_length") to an `Interval` or to
`OneOf` several values, each with the reason for its limits. It is data: who searches it, and how, is no matter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isfinite, log
from typing import Any, final

from handful.errors import ConfigError


@final
@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, uniform in themselves or, with `log`, in their logarithm."""

    low: float
    high: float
    log: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"expected low < high, found {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ConfigError(f"expected low > 0 where log = true, found {self.low:g}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def at(self, share: float) -> float:
        """The number at this share of the way from `low` (0) to `high` (1)."""
        if self.log:
            return self.near(exp(log(self.low) + share * (log(self.high) - log(self.low))))
        return self.near(self.low + share * (self.high - self.low))

    def near(self, value: float) -> float:
        """A number of three digits, which is as exact as such a setting has any meaning, inside the interval."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def grid(self, points: int) -> tuple[float, ...]:
        """So many numbers from `low` to `high` in equal steps."""
        return tuple(self.at(index / (points - 1)) for index in range(points))


@final
@dataclass(frozen=True)
class OneOf:
    """Any of some values."""

    values: tuple[Any, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if len(set(map(repr, self.values))) < max(2, len(self.values)):
            raise ConfigError(f"expected at least two values, all different, found {list(self.values)}")

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    @property
    def ordered(self) -> bool:
        """Whether they are numbers from small to large, so that neighbours are alike."""
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)
        return numbers and all(first < second for first, second in pairwise(self.values))

    def at(self, share: float) -> Any:
        """The value at this share in [0, 1] of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def grid(self, points: int) -> tuple[Any, ...]:
        """All values, however many points are asked for."""
        del points
        return self.values


SearchSpace = Mapping[str, Interval | OneOf]

EPOCHS = OneOf((10, 20, 40), "half, all and twice the preset's; 10 and 20 were compared in docs/experiments.md")


def around(low: float, preset: float, high: float) -> Interval:
    """Learning rates on a logarithmic scale that hold the preset's, with the reason in words."""
    return Interval(low, high, log=True, reason=f"ours: around the preset's {preset:g}")
