"""What happens during a fit, as values; the progress bar, the log and the tests are all listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class FitStarted:
    """`parameters` is the number of trained numbers; `resumed_at` the step a checkpoint had reached."""

    steps: int
    epochs: int
    train_rows: int
    dev_rows: int
    parameters: int
    resumed_at: int = 0


@final
@dataclass(frozen=True)
class StepDone:
    """`learning_rate` is the adapter's at this step, before a group's own multiple of it."""

    step: int
    loss: float
    learning_rate: float
    tokens: int


@final
@dataclass(frozen=True)
class Evaluated:
    """A score on dev. `deviation` is its standard deviation over draws (0 for one draw)."""

    step: int
    epoch: int
    metric: str
    score: float
    deviation: float
    improved: bool
    diagnostics: dict[str, float]


@final
@dataclass(frozen=True)
class CheckpointSaved:
    step: int


@final
@dataclass(frozen=True)
class Stopped:
    """The run ended before its last step; `reason` is a sentence."""

    step: int
    reason: str


@final
@dataclass(frozen=True)
class FitFinished:
    step: int
    seconds: float
    chosen_step: int


Event = FitStarted | StepDone | Evaluated | CheckpointSaved | Stopped | FitFinished
Listener = Callable[[Event], None]


def to_record(event: Event) -> dict[str, Any]:
    """The event as one JSON line: its fields and `event`, the class's name."""
    return {"event": type(event).__name__, **asdict(event)}
