"""One fit in several processes, as `accelerate launch` starts them.

Every process has the whole model and all rows, walks through the same batches and draws the same random points; of each
batch it computes a share, and gradients are summed. Adapters are small, so one message a step carries them all; no
wrapper stands around the module. Alone in its process a fit is the case of one share. Each process computes on the GPU
of its own LOCAL_RANK (`resolve_device`), or all of them on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import nn

from handful.backbone.device import processes
from handful.errors import ConfigError, RunError


@final
class ProcessGroup:
    """The processes that train one adapter together; `share` is this process's part of a batch's rows.

    The share takes every n-th row, so that the processes get rows of like length; the main process's is never empty.
    """

    def __init__(self, device: torch.device):
        self.device, self.count, self.index = device, 1, 0
        # A process by itself needs none: what it once chose (CPU or GPU) would hold for all its later fits too.
        self.accelerator: Any = None
        if processes() > 1:
            # the precision of the launcher's choice would hold for everything that the process does later
            self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
            self.count, self.index = self.accelerator.num_processes, self.accelerator.process_index
            its = self.accelerator.device  # an index means something on GPUs alone
            if its.type != device.type or (device.type == "cuda" and its != device):
                raise ConfigError(
                    f"process {self.index} of {self.count} computes on {its}, and its model is on {device}",
                    "load the model with device='cuda', or 'cpu' in every process",
                )
        self.is_main = self.index == 0
        self.share = slice(self.index, None, self.count)

    def agree(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        with _together():
            return broadcast_object_list([value])[0]

    def align(self, module: nn.Module) -> None:
        """Give the module the main process's tensors."""
        if self.count > 1:
            with _together():
                module.load_state_dict(broadcast({k: t.clone() for k, t in module.state_dict().items()}))

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            with _together():
                self.accelerator.wait_for_everyone()

    def sum_up(self, loss: torch.Tensor, parameters: Iterable[nn.Parameter]) -> float:
        """The sum of the processes' losses; gradients become their sums too.

        A parameter that has a gradient in no process keeps none, as it would in a single process.
        """
        if self.count == 1:
            return float(loss.detach())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        message = torch.cat([loss.detach().reshape(1), present, *(gradient.flatten() for gradient in gradients)])
        with _together():
            total = self.accelerator.reduce(message, "sum")
        value, present, *gradients = total.split([1, len(trained), *(p.numel() for p in trained)])  # type: ignore[union-attr]
        for parameter, exists, gradient in zip(trained, present.tolist(), gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if exists else None
        return float(value)


@contextmanager
def _together() -> Iterator[None]:
    """Raises: RunError where another process has gone, in place of what its backend says."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this run has ended, or answers no longer",
            "what it printed says why; the same command continues from the last checkpoint",
        ) from error
