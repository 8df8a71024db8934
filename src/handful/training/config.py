"""How an adapter is trained: every number that is not the method's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, final

from handful.methods.settings import check_settings, convert_settings, setting

Validation = Literal["deterministic", "pooled", "averaged"]


@final
@dataclass(frozen=True)
class TrainingConfig:
    """Settings of `fit`. Every default is ours unless a field says otherwise."""

    name: ClassVar[str] = "training"

    epochs: Annotated[int, setting("passes over the training rows; 0 keeps the warm start", ge=0, le=10_000)] = 20
    batch_size: Annotated[int, setting("rows a step", unit="rows", ge=1, le=4096)] = 16
    learning_rate: Annotated[float, setting("peak rate of AdamW", gt=0, le=10)] = 1e-2
    head_learning_rate: Annotated[float | None, setting("rate of the head; none: the same", gt=0, le=10)] = None
    weight_decay: Annotated[float, setting("decoupled, not scaled by the schedule's end", ge=0)] = 0.0
    gradient_clip: Annotated[float, setting("largest norm of the gradient; 0 turns it off", ge=0)] = 1.0
    schedule: Annotated[Literal["linear", "cosine", "constant"], setting("decay after warm-up")] = "linear"
    warmup: Annotated[float, setting("share of steps with a rising rate", ge=0, lt=1)] = 0.06
    label_smoothing: Annotated[float, setting("share of the target spread over all classes", ge=0, lt=1)] = 0.0
    class_weight: Annotated[
        Literal["none", "balanced"],
        setting("'balanced': the loss of every class counts the same, however many its rows"),
    ] = "none"
    average_last: Annotated[
        float, setting("the result is the mean of the weights over this last share of steps; 0: the last", ge=0, lt=1)
    ] = 0.0
    selection: Annotated[
        Literal["last", "best"], setting("keep the last weights, or those with the best score on dev")
    ] = "last"
    selection_metric: Annotated[Literal["task", "nll"], setting("what 'best' is judged by")] = "task"
    validation: Annotated[
        Validation,
        setting(
            "dev score at the midpoint, pooled over random draws, or averaged over them", source="paper (second hand)"
        ),
    ] = "deterministic"
    validation_draws: Annotated[int, setting("random draws S a dev row", ge=1, le=1000)] = 10
    fresh_draws: Annotated[bool, setting("new draws at each evaluation, not the same ones (common random numbers)")] = (
        False
    )
    tie: Annotated[Literal["earliest", "latest"], setting("which of equally good evaluations is kept")] = "earliest"
    patience: Annotated[int, setting("evaluations without a gain before stopping; 0: never", ge=0)] = 0
    trunk_dropout: Annotated[bool, setting("dropout inside the frozen model")] = False
    cache_trunk: Annotated[bool, setting("compute layers below the adapter once and keep their output")] = True
    gradient_checkpointing: Annotated[bool, setting("recompute activations in backward to save memory")] = False
    precision: Annotated[Literal["fp32", "bf16"], setting("bf16 is slower on CPUs without AMX")] = "fp32"

    def __post_init__(self) -> None:
        convert_settings(self)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> TrainingConfig:
        """The config with these fields set; all wrong names, types and ranges are reported at once."""
        return cls(**check_settings(cls, settings))

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)
