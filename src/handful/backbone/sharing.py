"""What models share, and so can be used by one thread at a time: a backbone by its adapters, and torch by the process.

Three things are one for all threads: torch's initialisers and default type, which transformers replaces while it makes
a model; torch's own random numbers, which dropout and PEFT draw from; and, of a backbone, whatever its adapters put
into it for one forward. Locks are always taken in this order: a backbone's, then the process's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch

from handful.errors import ConfigError

if TYPE_CHECKING:
    from handful.backbone.load import Backbone

_PROCESS = threading.RLock()


@contextmanager
def making_models() -> Iterator[None]:
    """For whatever builds or loads modules: nobody else does meanwhile, and torch's random numbers stay as they were.

    transformers replaces `torch.nn.init.*` while it loads, for all threads, and puts back what it found. Two loads that
    overlap would leave the process without initialisers; what another thread builds in between starts uninitialised.
    """
    with _PROCESS, torch.random.fork_rng(devices=[]):
        yield


@final
class TorchStream:
    """A stream of random numbers for what can only draw from torch's own generators, such as dropout.

    Within `lent()` torch's generators of the CPU and of `device` continue where this stream was; outside of it they are
    as if nothing had been drawn.
    """

    def __init__(self, device: torch.device | None = None):
        self._generators = _generators(device or torch.device("cpu"))
        self._states: list[torch.Tensor] | None = None
        self._seed = 0

    def seed(self, seed: int) -> None:
        """Begin anew."""
        self._states, self._seed = None, seed

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within it, torch draws from this stream, for this thread alone."""
        with _PROCESS:
            before = [read() for read, _, _ in self._generators]
            try:
                for place, (_, write, begin) in enumerate(self._generators):
                    if self._states is None:
                        begin(self._seed)
                    else:
                        write(self._states[place])
                yield
                self._states = [read() for read, _, _ in self._generators]
            finally:
                for (_, write, _), state in zip(self._generators, before, strict=True):
                    write(state)


@contextmanager
def lent_seed(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Within it, torch's own generators of the CPU and of `device` start at this seed; then they are as before."""
    stream = TorchStream(device)
    stream.seed(seed)
    with stream.lent():
        yield


_Generator = tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], Any], Callable[[int], Any]]


def _generators(device: torch.device) -> list[_Generator]:
    """How to read, write and seed the state of torch's own generators: the CPU's and, of others, the device's."""
    found: list[_Generator] = [(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed)]
    if device.type == "cuda":

        def begin(seed: int) -> None:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

        found.append(
            (lambda: torch.cuda.get_rng_state(device), lambda state: torch.cuda.set_rng_state(state, device), begin)
        )
    elif device.type == "mps":
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed))
    return found


@final
class Sharing:
    """Who uses a backbone. Several adapters may be on one, if none of them changes the model itself.

    One that does (LoRA's layers, gates, parameters trained in place) has it for itself, from `claim` to `release`.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._lock = threading.RLock()
        self._owner: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"backbone": self.backbone, "_owner": self._owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def claim(self, adapter: object) -> None:
        """The adapter changes the model itself from now on. Raises: ConfigError where another one does."""
        self.check(adapter)
        self._owner = adapter

    def release(self, adapter: object) -> None:
        """The adapter has put everything back; nothing to do where it changed nothing."""
        if self._owner is adapter:
            self._owner = None

    def check(self, adapter: object) -> None:
        """Raises: ConfigError where another adapter changes the model itself."""
        if self._owner is not None and self._owner is not adapter:
            raise ConfigError(
                f"{self.backbone.name} carries an adapter already that changes the model itself "
                f"({type(self._owner).__name__})",
                "detach() that one first, or load the model once more",
            )

    @contextmanager
    def lent_to(self, adapter: object) -> Iterator[None]:
        """Within it, this thread alone uses the backbone; prefixes that another adapter has left in it are taken out.

        From an adapter's forward, which puts what was drawn into the backbone, to the end of the backward pass. Raises:
        ConfigError where another adapter changes the model itself.
        """
        with self._lock:
            self.check(adapter)
            self.backbone.installed = None
            if "injection" in vars(self.backbone):  # made on first use
                self.backbone.injection.clear()
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, this thread alone uses the backbone, as it is."""
        with self._lock:
            yield
