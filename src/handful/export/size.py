"""How much smaller and faster an exported model is than the full one, measured on the CPU at hand."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import nn

from handful.export.shrink import Shrinkage
from handful.export.verify import compare

BUDGET = 2.0
"""Seconds that a measurement may take, about."""
COARSE, TICKS = 1e-3, 10
"""From what tick on, in seconds, a clock is coarse, and over how many ticks a time is then taken."""
STANDSTILL = 0.2
"""Seconds after which a processor clock that has not moved is not waited for."""
ROWS, LENGTH = 8, 128

Scores = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


@final
@dataclass(frozen=True)
class Speed:
    """Median CPU seconds, of all threads, of a forward of the full and of the exported model on `cpu`.

    `runtime` computes the exported model, and torch the full one.
    """

    rows: int
    length: int
    threads: int
    seconds: tuple[float, float]
    cpu: str
    runtime: str = "torch"

    @property
    def ratio(self) -> float:
        """How many times as fast the exported model is."""
        return self.seconds[0] / self.seconds[1]


@final
@dataclass(frozen=True)
class Size:
    """How an export differs from the full model: its parts, `bytes` of the weights before and after, and speed."""

    parts: Shrinkage
    bytes: tuple[int, int]
    speed: Speed

    def sentences(self) -> list[str]:
        """All of it in words, for the README and the command line."""
        parts, speed = self.parts, self.speed
        before, after = parts.parameters
        lines = [f"Parameters: {before:,}, now {after:,} ({after / before:.1%})"]
        if parts.changed:
            lines[0] += f"; {parts.removed:.1%} of those in attention and feed-forward matrices are gone"
        else:
            lines[0] += "; nothing is zero that this format could leave out"
        if parts.added:
            lines.append(
                f"Of these, {parts.added:,} hold the head inside the stock class, most in one more layer, which costs "
                "its time too; the format 'sentence-transformers' does without it"
            )
        before, after = self.bytes
        lines.append(f"File of weights: {before / 1e6:,.1f} MB, now {after / 1e6:,.1f} MB")
        other = "" if speed.runtime == "torch" else f", computed by {speed.runtime} and before by torch"
        if parts.changed or other:
            lines.append(
                f"CPU time ({speed.cpu}) for {speed.rows} × {speed.length} tokens with {threads(speed.threads)}: "
                f"{speed.seconds[0] * 1e3:,.1f} ms, now {speed.seconds[1] * 1e3:,.1f} ms ({speed.ratio:.2f} × as fast)"
                + other
            )
        if parts.units:
            lines.append(f"Feed-forward units of each layer: {_listed(parts.units)}")
        if parts.heads:
            lines.append(f"Key/value heads of each layer: {_listed(parts.heads)}")
        return lines + [f"Left as zeros: {sentence}" for sentence in parts.zeros]


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{numbers[0]:,}" if len(set(numbers)) == 1 else ", ".join(f"{number:,}" for number in numbers)


def threads(number: int) -> str:
    """'1 thread' or 'N threads'."""
    return "1 thread" if number == 1 else f"{number} threads"


def weight_bytes(folder: Path) -> int:
    """Bytes of all files of weights in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".safetensors", ".onnx"))


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, shared ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def measure(
    full: Scores,
    small: Scores,
    inputs: Callable[[int], Mapping[str, torch.Tensor]],
    unit: float = 1.0,
    rounding: Callable[[Mapping[str, torch.Tensor]], float] | None = None,
    runtime: str = "torch",
) -> Speed:
    """Both in turn in this process, on batches of `inputs(rows)`: 8 rows, or one where 8 take too long.

    `unit` and `rounding` are those of `compare`, `runtime` is what `small` computes with. CPU seconds of this process
    are counted, which other work disturbs less than the clock's.

    Raises: RunError where their scores differ.
    """
    rows = pick_rows(full, inputs)
    batch = inputs(rows)
    with torch.no_grad():
        compare(small(batch), full(batch), unit, rounding and partial(rounding, batch))
    seconds = in_turns(full, small, batch)
    medians = tuple(statistics.median(column) for column in zip(*seconds, strict=True))
    length = next(iter(batch.values())).shape[1]
    return Speed(rows, length, torch.get_num_threads(), (medians[0], medians[1]), cpu_name(), runtime)


def pick_rows(full: Scores, inputs: Callable[[int], Mapping[str, torch.Tensor]]) -> int:
    """How many rows of `inputs(rows)` a measurement takes: `ROWS`, or one where these take too long."""
    return ROWS if Clock.of_processor().seconds(full, inputs(ROWS)) <= BUDGET / 4 else 1


def in_turns(full: Scores, small: Scores, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, float]]:
    """CPU seconds of both on the same batch, one after the other, as often as `BUDGET` allows: at least three times."""
    clock = Clock.of_processor()
    spent = max(clock.least, clock.seconds(full, batch)) + max(clock.least, clock.seconds(small, batch))
    turns = max(3, min(15, int(BUDGET / spent)))
    return [(clock.seconds(full, batch), clock.seconds(small, batch)) for _ in range(turns)]


@final
@dataclass(frozen=True)
class Clock:
    """A clock that seconds are read from, and the `tick` by which it moves; no time it gives is zero.

    What takes less than `least` seconds is done again until that many have passed. Windows' processor clock moves 64
    times a second, and some forwards take less.
    """

    read: Callable[[], float]
    tick: float

    @classmethod
    def of_processor(cls) -> Clock:
        """CPU seconds of this process, which other work disturbs least; the wall clock's where those stand still."""
        begun, last, ticks = time.perf_counter(), time.process_time(), []
        while time.perf_counter() - begun < STANDSTILL and len(ticks) < 3:
            now = time.process_time()
            if now > last:
                ticks.append(now - last)
            last = now
        return cls(time.process_time, min(ticks)) if ticks else cls(time.perf_counter, 1e-7)

    @property
    def least(self) -> float:
        """The shortest time that is taken for right."""
        return self.tick * TICKS if self.tick >= COARSE else self.tick

    @torch.no_grad()
    def seconds(self, scores: Scores, batch: Mapping[str, torch.Tensor]) -> float:
        """Of one forward, on average over as many as `least` seconds take."""
        begun, times = self.read(), 0
        while True:
            scores(batch)
            times += 1
            spent = self.read() - begun
            if spent > 0 and spent >= self.least:
                return spent / times


def cpu_name() -> str:
    """The CPU's name as far as the system tells it, or its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "name unknown"
