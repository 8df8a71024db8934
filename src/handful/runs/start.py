"""What a run can start from: the parameters of another run, or a prompt that PEFT has saved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from handful.backbone.load import Backbone
from handful.errors import ConfigError, ModelError, RunError
from handful.methods.base import AbstractAdapter
from handful.methods.prompt import PEFT_CONFIG, PromptAdapter, read_peft_prompt
from handful.runs.store import Run, read_run


@final
@dataclass(frozen=True)
class PeftPrompt:
    """A prompt (P, E) in a folder of PEFT's, of which nobody knows what rows it has seen."""

    folder: Path
    vectors: torch.Tensor

    @property
    def key(self) -> str:
        """SHA-256 of its numbers."""
        return hashlib.sha256(self.vectors.numpy().tobytes()).hexdigest()

    def seen(self) -> None:
        """The digests of its rows: none."""

    def parameters(self, adapter: AbstractAdapter) -> dict[str, torch.Tensor]:
        """Those of an adapter that starts from it. Raises: ConfigError or ModelError where it does not fit."""
        if not isinstance(adapter, PromptAdapter) or adapter.num_vertices > 1:
            raise ConfigError(
                f"{self.folder}: a single prompt, from which this run cannot start",
                "use method 'prompt' or 'scaled-prompt' with num_vertices = 1",
            )
        expected, found = adapter.prompt.vectors.shape[1:], self.vectors.shape
        if found[1] != expected[1]:
            raise ModelError(
                f"{self.folder}: expected vectors as wide as the word embeddings of {adapter.backbone.name} "
                f"({expected[1]}), found {found[1]}",
                "give the model that the prompt was trained on",
            )
        if found[0] != expected[0]:
            raise ConfigError(
                f"{self.folder}: expected {expected[0]} vectors, found {found[0]}",
                f"set method.prompt_length = {found[0]}",
            )
        weights = adapter.carry({"prompt.vectors": self.vectors[None]}, {})
        if "prompt.vectors" not in weights:
            raise ConfigError(f"{self.folder}: a PEFT prompt has no scale to carry over", "use method.carry = 'prompt'")
        return {"prompt.vectors": weights["prompt.vectors"]}


Start = Run | PeftPrompt


def read_start(folder: Path) -> Start:
    """The run or the PEFT prompt in a folder. Raises: RunError where neither can be read."""
    return PeftPrompt(folder, read_peft_prompt(folder)) if (folder / PEFT_CONFIG).is_file() else read_run(folder)


def carried_over(start: Start, adapter: AbstractAdapter) -> dict[str, torch.Tensor]:
    """The parameters that another adapter can start from; a head only where the labels are the same.

    Raises: ModelError where a run has another backbone, RunError where nothing of it fits; see `PeftPrompt`.
    """
    if isinstance(start, PeftPrompt):
        return start.parameters(adapter)
    check_backbone(start, adapter.backbone)
    weights = adapter.carry(start.weights(), start.record)
    taken = {
        name: weights[name]
        for name, parameter in adapter.named_parameters()
        if name in weights and weights[name].shape == parameter.shape
    }
    if not taken:
        found = start.record["spec"]["method"]["name"]
        raise RunError(
            f"{start.folder}: none of its parameters (method {found!r}) fits those of the run that starts from it",
            "start from a run of the same method with the same settings of size",
        )
    return taken


def check_backbone(saved: Run, backbone: Backbone) -> None:
    """Raises: ModelError unless the run was trained on these weights."""
    expected = saved.record["backbone"]["fingerprint"]
    if backbone.fingerprint != expected:
        raise ModelError(
            f"{saved.folder}: trained on other weights of {saved.record['spec']['model']!r} "
            f"(expected fingerprint {expected[:12]}, found {backbone.fingerprint[:12]})",
            "give the model it was trained on",
        )
