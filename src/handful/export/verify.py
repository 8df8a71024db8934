"""Run the code of an export's README in a fresh process without handful, and compare its scores with ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from handful.errors import RunError

RELATIVE_TOLERANCE = 1e-5
ROUNDINGS = 2

SCRIPT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

code, function, given, made = sys.argv[1:]
loader = {}
exec(Path(code).read_text(encoding="utf-8"), loader)
save_file({"made": torch.as_tensor(loader[function](load_file(given))).contiguous()}, made)
"""
"""What the fresh process runs; it imports nothing of handful by itself."""


def can_verify(package: str | None) -> bool:
    """Whether the package that the README needs beside transformers is installed."""
    return package is None or find_spec(package) is not None


def stock_scores(folder: Path, code: str, inputs: Mapping[str, torch.Tensor], function: str = "scores") -> torch.Tensor:
    """Scores (B, C) that the README's code, run in `folder`, gives for token ids and masks (B, S).

    Or what another function of that code gives.

    Raises: RunError where that code fails.
    """
    with TemporaryDirectory() as place:
        script, given, made = (Path(place) / name for name in ("loader.py", "inputs.safetensors", "made.safetensors"))
        script.write_text(code, encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, given)
        command = [sys.executable, "-P", "-c", SCRIPT, str(script), function, str(given), str(made)]
        # The pretrained model was loaded before: it is here. Nothing is imported from the current folder.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise RunError(
                f"the export cannot be loaded by the stock libraries: {last}",
                "nothing was saved; `pip install 'handful[peft]'` has versions that work together",
            )
        return load_file(made)["made"]


def compare(
    found: torch.Tensor, expected: torch.Tensor, unit: float = 1.0, rounding: Callable[[], float] | None = None
) -> float:
    """The largest absolute difference of two sets of scores (B, C).

    `rounding` gives how far float32 scores of both models are, summed, from those in float64: in some deep models that
    is more than the tolerance. Twice that may be the difference, as no two programs round alike.
    Raises: RunError where it is above 1e-5 of the largest score, or of `unit` where that is more, and above roundings.
    """
    difference = float((found - expected).abs().max())
    if not is_close(difference, expected, unit) and not (
        rounding and difference <= allowance(expected, unit, rounding)
    ):
        raise RunError(
            f"the export was written, but the stock libraries get other scores from it (by up to {difference:.2g})",
            "nothing was saved; please report this with the versions that `handful doctor` prints",
        )
    return difference


def allowance(expected: torch.Tensor, unit: float, rounding: Callable[[], float] | None) -> float:
    """How much two sets of scores may differ: see `compare`."""
    tolerance = RELATIVE_TOLERANCE * max(float(expected.abs().max()), unit)
    return max(tolerance, ROUNDINGS * rounding()) if rounding else tolerance


def is_close(difference: float, expected: torch.Tensor, unit: float) -> bool:
    """Whether a difference is at most 1e-5 of the largest expected score, or of `unit` where that is more."""
    return difference <= allowance(expected, unit, None)
