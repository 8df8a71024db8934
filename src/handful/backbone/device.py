"""Where a model computes: the one place that turns `--device` into a device of this machine.

Random numbers are drawn on the CPU, whatever the device, and moved: the same seed gives the same draws everywhere.
"""

from __future__ import annotations

import os
import re

import torch

from handful.errors import ConfigError

AUTO = "auto"
DEVICES = "auto, cpu, cuda, cuda:N or mps"
WITHOUT_FLOAT64 = frozenset(("mps",))
"""Kinds of devices that hold no float64."""


def resolve_device(name: str = AUTO, *, place: int = 0) -> torch.device:
    """The device of this name; "auto" is a CUDA device, else Apple's mps, else the CPU.

    "auto" and "cuda" take GPU number `place`, counted around where there are fewer, so that workers share out the GPUs.
    Of several processes (`accelerate launch`) each takes the GPU of its own LOCAL_RANK. Raises: ConfigError for an
    unknown name, a device that this machine lacks, and more processes than GPUs.
    """
    name = name.strip().lower() if isinstance(name, str) else name
    check_name(name)
    kind, _, index = name.partition(":")
    if kind == AUTO:
        kind = _best()
    if kind == "cuda":
        _check_cuda(name)
        return torch.device("cuda", _gpu(name, int(index) if index else None, place))
    if kind == "mps":
        if not has_mps():
            raise ConfigError(f"device: {name} was asked for, and torch finds none here", "use --device auto or cpu")
        if processes() > 1:
            raise ConfigError("device: mps serves one process, found several", "start one, or use --device cpu")
    return torch.device(kind)


def check_name(name: str) -> None:
    """Raises: ConfigError for what names no device at all."""
    if isinstance(name, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name.strip().lower()):
        return
    number = re.fullmatch(r"(?:gpu|cuda)?:?\s*(\d+)", str(name).strip().lower())
    hint = "leave it out, and the fastest device that is there is taken; cuda:0 is the first GPU"
    raise ConfigError(
        f"device: expected {DEVICES}, found {name!r}", f"GPU number {number[1]} is cuda:{number[1]}" if number else hint
    )


def _best() -> str:
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):  # `accelerate launch --cpu`
        return "cpu"
    return "cuda" if num_gpus() else "mps" if has_mps() and processes() == 1 else "cpu"


def _check_cuda(name: str) -> None:
    if num_gpus():
        return
    if torch.version.cuda is None and torch.version.hip is None:
        raise ConfigError(
            f"device: {name} was asked for, and this torch ({torch.__version__}) is built without CUDA",
            "install a build of torch for CUDA (pytorch.org says which), or use --device auto or cpu",
        )
    raise ConfigError(
        f"device: {name} was asked for, and there is no CUDA device",
        "`nvidia-smi` says what the driver sees, CUDA_VISIBLE_DEVICES hides devices; or use --device auto or cpu",
    )


def _gpu(name: str, index: int | None, place: int) -> int:
    """The number of the GPU to take."""
    count = num_gpus()
    there = f"there {'is 1 CUDA device' if count == 1 else f'are {count} CUDA devices'}"
    if processes() > 1:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        if index is not None:
            raise ConfigError(
                f"device: {name} was asked for by {processes()} processes, and each of them takes a GPU of its own",
                "use --device cuda; CUDA_VISIBLE_DEVICES chooses among GPUs",
            )
        if rank >= count:
            raise ConfigError(
                f"device: process {rank} of this machine needs a GPU of its own, and {there}",
                "start at most one process per GPU (--num_processes), or use --device cpu",
            )
        return rank
    if index is None:
        return place % count
    if index >= count:
        raise ConfigError(f"device: {name} was asked for, and {there}", "they are counted from 0")
    return index


def processes() -> int:
    """How many processes `accelerate launch` (or torchrun) has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def num_gpus() -> int:
    """CUDA devices that torch can use here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_mps() -> bool:
    """Whether torch can use an Apple GPU here."""
    return torch.backends.mps.is_available()


def device_name(device: torch.device) -> str:
    """What the device is, for records: the GPU's model; of the CPU and mps just that."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe_device(device: torch.device) -> str:
    """The device in words, such as "cuda:0 (NVIDIA H200)"."""
    return f"{device} ({device_name(device)})" if device.type == "cuda" else str(device)


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64: on its own device or, where that knows no float64, on the CPU."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
