"""Checkpoints that a fit continues from bit for bit: one safetensors file, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from handful.errors import RunError
from handful.storage import PARTIAL, flush_file, parse_json, temporary_name

FILE = "checkpoint.safetensors"


@final
class Checkpoint:
    """The newest checkpoint of one fit in one folder."""

    def __init__(self, folder: Path):
        self.path = folder / FILE

    def save(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        """Write to a temporary name, flush to disk, rename over the old one. Raises: RunError where that fails."""
        partial = temporary_name(self.path, PARTIAL)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"record": json.dumps(record)}
            save_file(contiguous, partial, metadata=metadata | {"sha256": _digest(contiguous, metadata["record"])})
            flush_file(partial)
            os.replace(partial, self.path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RunError(
                f"{self.path}: the checkpoint could not be written ({error})",
                "free some space; the same command then continues from the checkpoint before",
            ) from None

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The tensors and the record, or None where there is no readable checkpoint."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                names, metadata = file.keys(), file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, UnicodeDecodeError):
            return None  # a damaged checkpoint costs time, not results: the fit starts again
        if metadata.get("sha256") != _digest(tensors, metadata.get("record", "")):
            return None
        return tensors, parse_json(metadata["record"])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _digest(tensors: dict[str, torch.Tensor], record: str) -> str:
    """SHA-256 over the record and all tensors: safetensors itself does not see a flipped bit."""
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's per-parameter tensors under flat names."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer/{i}/{name}": tensor for i, values in state.items() for name, tensor in values.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put what `pack_optimizer` returned back; groups and rates stay the optimiser's own."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
