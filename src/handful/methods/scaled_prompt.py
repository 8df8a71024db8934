"""Scaled prompt tuning: a soft prompt and a scale that multiplies it, both trained.

Idea: with Adam every number of a prompt moves by about the learning rate, however large it is; a factor on it moves it
in proportion. Formula: Z = [V ∘ B(s); X], with s a number, one a vector, one a dimension or one for every number; or
with target "sequence" Z = [V; X] ∘ B(s), which changes the words' embeddings too.
Trained: M·P·E numbers and 1, P, E or P·E for the scale. Inference: folded, Q = V ∘ B(s), it is a plain prompt; with
target "prompt" it can be nothing that a plain prompt could not be, only found differently.
Source: Hu, Meinel & Yang 2023 (arXiv 2309.06759), of which the abstract alone was read. The scale's shape, target,
start and rate are not known to us: every default here is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from handful.backbone.load import Backbone
from handful.errors import ConfigError
from handful.methods.base import Preset, setting
from handful.methods.exports import Exports
from handful.methods.prompt import DEFAULT, RATE_REASON, AbstractPrompt, Carry, ScaleForm, ScaleShape, ScaleTarget
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around


@final
@dataclass(frozen=True)
class ScaledPrompt(AbstractPrompt):
    """Trained vectors in front of the words, and a trained scale on them."""

    name: ClassVar[str] = "scaled-prompt"
    summary: ClassVar[str] = "scaled prompt tuning: trained vectors times a trained scale, for writing text"
    source: ClassVar[str] = "Hu, Meinel & Yang 2023 (abstract)"
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(f"{RATE_REASON}; the paper's settings are not known to us", training=DEFAULT.training),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(3e-2, 0.3, 3.0),
        "training.epochs": EPOCHS,
        "method.scale_shape": OneOf(("scalar", "token", "dim", "full"), "every shape"),
    }

    scale_shape: Annotated[
        ScaleShape, setting("one number, one a vector (P), one a dimension (E), or one for every number (P·E)")
    ] = "dim"
    scale_target: Annotated[ScaleTarget, setting("what is scaled: the prompt, or the words as well")] = "prompt"
    scale_init_std: Annotated[float, setting("the scale starts at N(1, std²); 0: at one, a plain prompt", ge=0)] = 0.0
    scale_rate: Annotated[float, setting("the scale's learning rate, as a multiple of the run's", gt=0)] = 1.0
    carry: Annotated[
        Carry, setting("what of another run's prompt to start from: all, vectors, scale, or vectors times scale")
    ] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_target == "sequence" and self.scale_shape not in ("scalar", "dim"):
            raise ConfigError(
                f"method.scale_shape: {self.scale_shape!r} has a size for the prompt alone, and words are as many as "
                "they are",
                "with scale_target 'sequence' use 'scalar' or 'dim'",
            )
        if self.scale_target == "sequence" and self.num_vertices > 1:
            raise ConfigError(
                f"method.num_vertices: found {self.num_vertices}, but only prompts can be mixed, not scaled words",
                "use scale_target 'prompt'",
            )

    def exports(self, backbone: Backbone | str) -> Exports:
        if self.scale_target == "prompt":
            return super().exports(backbone)
        words = "it scales the words' embeddings too, which no prompt does; train with scale_target 'prompt'"
        return {"peft state": words, "merged weights": words}

    @property
    def form(self) -> ScaleForm:
        return ScaleForm(self.scale_shape, self.scale_target, self.scale_init_std, self.scale_rate, self.carry)
