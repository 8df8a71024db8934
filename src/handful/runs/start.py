"""What a run can start from: the parameters of another run, or a prompt or an inventory that PEFT has saved."""

from __future__ import annotations

from pathlib import Path

import torch

from handful.backbone.load import Backbone
from handful.errors import ConfigError, ModelError, RunError
from handful.methods.base import AbstractAdapter, AbstractMethod
from handful.methods.poly.method import Poly
from handful.methods.prompt import PEFT_CONFIG, Prompt, read_peft_prompt
from handful.runs.from_peft import PeftPoly, PeftPrompt, peft_type, read_peft_poly
from handful.runs.spec import MethodLike, recorded_method
from handful.runs.store import Run, read_run

Start = Run | PeftPrompt | PeftPoly


def read_start(folder: Path) -> Start:
    """The run, or the prompt or inventory of PEFT, in a folder. Raises: RunError where none can be read."""
    if not (folder / PEFT_CONFIG).is_file():
        return read_run(folder)
    return read_peft_poly(folder) if peft_type(folder) == "POLY" else PeftPrompt(folder, read_peft_prompt(folder))


def names_of(start: Start | None) -> tuple[MethodLike | None, str | None]:
    """The method and the model of a run that starts from this, where no others are named; None for what is unknown.

    A method is its name, or its class where it is not ours.
    """
    if isinstance(start, Run):
        spec = start.record["spec"]
        method = recorded_method(start.record)
        return type(method) if "method_path" in spec else method.name, spec["model"]
    return {PeftPoly: Poly.name, PeftPrompt: Prompt.name}.get(type(start)), None


def check_start(method: AbstractMethod, start: Start | None) -> None:
    """Raises: ConfigError for a method that trains nothing but a routing, of skills that nothing has brought."""
    if start is None and isinstance(method, Poly) and method.adapt == "z":
        raise ConfigError(
            "method.adapt: 'z' trains only the routing between the skills of an inventory, and there is none",
            "give one: --init-from FOLDER (start=FOLDER in Python)",
        )


def carried_over(start: Start, adapter: AbstractAdapter) -> dict[str, torch.Tensor]:
    """The parameters that another adapter can start from; a head only where the labels are the same.

    Raises: ModelError where a run has another backbone, RunError where nothing of it fits; see `from_peft`.
    """
    if not isinstance(start, Run):
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
