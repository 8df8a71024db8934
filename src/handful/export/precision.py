"""Computing in float64 all the way, also where a model's code says float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch.overrides import TorchFunctionMode


@final
class KeepFloat64(TorchFunctionMode):
    """Within it, what is float64 stays so: norms (RMSNorm, T5's) and attention's softmax ask for float32 by name."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(_doubled(value) for value in args)
            named = {name: _doubled(value) for name, value in named.items()}
        return func(*args, **named)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
