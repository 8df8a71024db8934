"""A GPU that is pretended: tensors say that they are on it and compute on the CPU, and mixing devices fails as on CUDA.

`pretended()` makes `torch.device("pretended")` usable within a `with`. What fails there as it does on a GPU: an
operation on tensors of both devices (but for scalars and copies), a draw for the device from a generator of the CPU,
and `.numpy()`. Where a device without float64 is asked for (Apple's mps), making such a tensor fails too. What it
cannot show: other rounding, kernels that a GPU lacks, and times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
MOVES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")
TAKES_CPU_INDICES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class WrongDevice(RuntimeError):
    """What a GPU would not do."""


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass


@cache
def _registered() -> torch.device:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    return torch.device(NAME, 0)


class Pretended(torch.Tensor):
    """A tensor that says it is on the device; `raw` is where its numbers are."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=_registered(), requires_grad=False,
        )  # fmt: skip

    def __init__(self, raw: torch.Tensor):
        self.raw = raw

    def tolist(self) -> Any:
        return self.raw.tolist()

    def __format__(self, form: str) -> str:
        return format(self.item() if self.dim() == 0 else self.raw, form)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, float64=True)


def _compute(func: Any, args: Any, kwargs: dict[str, Any], *, float64: bool) -> Any:
    """Run an operation on the numbers; its results are on the device if its arguments are, or if it says so."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if name == "aten::_fused_sdp_choice":
        return 0  # the one that is made of plain operations
    if not ours and (asked is None or asked.type != NAME):
        return func(*args, **kwargs)
    others = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and tensor.dim()]
    indexed = name in TAKES_CPU_INDICES and isinstance(args[0], Pretended)
    if ours and others and name not in MOVES and not indexed:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise WrongDevice(f"{name}: tensors of {NAME} and of the cpu, of shapes {shapes}")
    on_device = asked.type == NAME if asked is not None else bool(ours)
    if name == "aten::copy_":
        on_device = isinstance(args[0], Pretended)
    elif name == "aten::_local_scalar_dense":
        on_device = False
    generators = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Generator)]
    if on_device and generators:
        raise WrongDevice(f"{name}: expected a generator of {NAME}, found one of the cpu")
    plain = lambda leaf: leaf.raw if isinstance(leaf, Pretended) else leaf  # noqa: E731
    named = {key: (torch.device("cpu") if key == "device" else value) for key, value in kwargs.items()}
    found = func(*tree_map(plain, args), **tree_map(plain, named))
    if not on_device:
        return found
    known = {id(tensor.raw): tensor for tensor in ours}

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in known:  # in place
            return known[id(leaf)]
        if leaf.dtype == torch.float64 and not float64:
            raise WrongDevice(f"{name}: {NAME} has no float64")
        return Pretended(leaf)

    return tree_map(wrapped, found)


class _Mode(TorchDispatchMode):
    def __init__(self, float64: bool):
        super().__init__()
        self.float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, float64=self.float64)


@contextmanager
def pretended(*, float64: bool = True) -> Iterator[torch.device]:
    """Within it, the device is there; without `float64` it cannot hold such tensors."""
    device = _registered()
    make, move = torch.tensor, torch.nn.Module._apply

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        found = make(data, **options)  # torch's own goes past all modes where it is given a device
        return found if device is None else found.to(device)

    def moved(module: torch.nn.Module, *arguments: Any, **options: Any) -> torch.nn.Module:
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects, as on CUDA
        try:
            return move(module, *arguments, **options)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    torch.tensor, torch.nn.Module._apply = tensor, moved
    try:
        with _Mode(float64):
            yield device
    finally:
        torch.tensor, torch.nn.Module._apply = make, move
