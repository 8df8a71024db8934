"""Prompts and inventories that PEFT has saved, to start a run from; nobody knows what rows these have seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from handful.errors import ConfigError, ModelError, RunError
from handful.methods.base import AbstractAdapter
from handful.methods.poly.adapter import PolyAdapter
from handful.methods.prompt import PEFT_CONFIG, PEFT_WEIGHTS, PromptAdapter

_ROOT = "base_model.model."


@final
@dataclass(frozen=True)
class PeftPrompt:
    """A prompt (P, E) in a folder of PEFT's, of which nobody knows what rows it has seen."""

    folder: Path
    vectors: torch.Tensor

    @property
    def key(self) -> str:
        """SHA-256 of its numbers."""
        return hashlib.sha256(_bytes(self.vectors)).hexdigest()

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
        return dict(adapter.carry({"prompt.vectors": self.vectors[None]}, {}))


@final
@dataclass(frozen=True)
class PeftPoly:
    """An inventory of PEFT's Poly. Its tasks have numbers and no names; routing is of the first of them."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def key(self) -> str:
        """SHA-256 of its numbers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode() + _bytes(tensor))
        return digest.hexdigest()

    def seen(self) -> None:
        """The digests of its rows: none."""

    def settings(self) -> dict[str, Any]:
        """What a run that starts from it has in common with it, by dotted names; PEFT scales by 1/r."""
        sizes = {"num_skills": "n_skills", "num_splits": "n_splits", "rank": "r"}
        found: dict[str, Any] = {name: self.config[theirs] for name, theirs in sizes.items()}
        found |= {"alpha": 1.0, "gate": "gumbel", "target_modules": tuple(self.matrices())}
        return {f"method.{name}": value for name, value in found.items()}

    def matrices(self) -> list[str]:
        """Names of the layers that have skills."""
        end = ".poly_lora_A"
        return [name.removeprefix(_ROOT).removesuffix(end) for name in self.tensors if name.endswith(end)]

    def parameters(self, adapter: AbstractAdapter) -> dict[str, torch.Tensor]:
        """Those of an adapter that starts from it; routing only for as many tasks as it has, in its order.

        Raises: ConfigError for an adapter of another kind or size.
        """
        if not isinstance(adapter, PolyAdapter):
            raise ConfigError(f"{self.folder}: an inventory of skills, from which this run cannot start", "use 'poly'")
        weights: dict[str, torch.Tensor] = {}
        for name in self.matrices():
            for theirs, ours in (("A", "down"), ("B", "up")):
                part = self.tensors[f"{_ROOT}{name}.poly_lora_{theirs}"]
                weights[f"skills.parts.{name.replace('.', '__')}__{ours}"] = part.float()
        if set(adapter.skills.routers) != set(self.matrices()):
            raise ConfigError(f"{self.folder}: it has a router for each matrix", "leave method.sharing at 'fine'")
        logits = [self.tensors[f"{_ROOT}{name}.poly_router.module_logits"].float() for name in adapter.skills.routers]
        tasks, shape = len(logits[0]), (-1, self.config["n_splits"], self.config["n_skills"])
        weights["routing.logits"] = torch.stack([rows.view(shape) for rows in logits])
        names = list(adapter.tasks) if len(adapter.tasks) == tasks else []
        return dict(adapter.carry(weights, {"adapter": {"tasks": names}}))


def _bytes(tensor: torch.Tensor) -> bytes:
    """Those of its numbers, of whatever type: NumPy has no bfloat16."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def peft_type(folder: Path) -> str | None:
    """The kind of adapter that PEFT has saved there, None where that cannot be read."""
    try:
        return json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_peft_poly(folder: Path) -> PeftPoly:
    """The inventory in a folder of PEFT's. Raises: RunError for a damaged one."""
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / PEFT_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"{folder}: expected {PEFT_CONFIG} and {PEFT_WEIGHTS} as PEFT saves them: {error}",
            "save it again with safe_serialization=True",
        ) from None
    found = PeftPoly(folder, config, tensors)
    ends = ("poly_lora_A", "poly_lora_B", "poly_router.module_logits")
    missing = [f"{_ROOT}{name}.{end}" for name in found.matrices() for end in ends]
    missing = [name for name in missing if name not in tensors] or ([] if found.matrices() else ["poly_lora_A"])
    missing += [name for name in ("r", "n_skills", "n_splits") if name not in config]
    if missing:
        raise RunError(f"{folder}: expected {missing[0]} in an adapter of the type POLY, found none", "save it again")
    return found
