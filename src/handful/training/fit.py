"""Train an adapter on a handful of rows: one function, the same for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

from handful.backbone.load import Backbone
from handful.backbone.sharing import TorchStream
from handful.backbone.trunk import TrunkCache, recomputing, trunk_cache
from handful.data.batching import Batch, EncodedRows, plan_batches
from handful.data.mixture import draw_rows
from handful.data.task import TaskKind, TestRows
from handful.errors import ConfigError, DataError
from handful.methods.base import AbstractAdapter, Draw
from handful.objectives import objective_of
from handful.training.checkpoint import Checkpoint, pack_optimizer, unpack_optimizer
from handful.training.config import TrainingConfig
from handful.training.events import (
    CheckpointSaved,
    Evaluated,
    FitFinished,
    FitStarted,
    Listener,
    StepDone,
    Stopped,
)
from handful.training.optim import LateAverage, make_optimizer, rate_factor
from handful.training.process_group import ProcessGroup
from handful.training.selection import Selector

SAVING_PAUSE = 20
"""Between two checkpoints lies at least so many times as long as the last one took to save: they cost 5 % at most."""


@final
@dataclass
class FitResult:
    """What a fit did; the trained weights are in the adapter.

    `history` has one record an evaluation; `stopped` says why the run ended early (None: it ran to its end), and
    `diverged` whether that was a loss or gradient that is no finite number.
    """

    steps: int
    chosen_step: int
    seconds: float
    parameters: int
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str | None = None
    diverged: bool = False


def fit(
    adapter: AbstractAdapter,
    train: EncodedRows,
    dev: EncodedRows | None,
    config: TrainingConfig,
    *,
    kind: TaskKind,
    metric: str,
    generator: torch.Generator,
    on_event: Listener | None = None,
    checkpoint_folder: Path | None = None,
    initial: Mapping[str, torch.Tensor] | None = None,
) -> FitResult:
    """Train the adapter in place and leave it with the chosen weights.

    `initial` are parameters to begin with, in place of those that the method itself begins with.
    All randomness comes from `generator`, split into streams of their own for order, draws, validation and dropout,
    so that none depends on how much another drew. With `checkpoint_folder`, progress is saved at the end of the first
    epoch and of those before which `SAVING_PAUSE` has passed; an interrupted fit continues from there bit for bit.
    Started by `accelerate launch`, the processes share out each batch and end with the numbers of a single one up to
    rounding (and dropout); only the main one emits events. Other threads that use the adapter's backbone wait until the
    fit is over; fits on backbones of their own run side by side.
    Raises: DataError for test rows or unlabelled rows; ConfigError when nothing is trainable, or "best" without dev.
    """
    _check(train, dev, config)
    return _Fit(adapter, train, dev, config, kind, metric, generator, on_event, checkpoint_folder, initial or {}).run()


def _check(train: EncodedRows, dev: EncodedRows | None, config: TrainingConfig) -> None:
    for name, rows in (("train", train), ("dev", dev)):
        if isinstance(rows, TestRows):
            raise DataError(
                f"{name}: expected encoded training rows, found TestRows", "test rows are for evaluate() alone"
            )
        if rows is not None and rows.labels is None and rows.target_ids is None:
            raise DataError(f"{name}: expected labelled rows, found none with a label")
    if not len(train):
        raise DataError("train: expected at least one row, found none")
    if config.selection == "best" and config.epochs and (dev is None or not len(dev)):
        raise ConfigError(
            "training.selection = 'best' needs development rows, found none",
            "use dev = 'carved', or selection = 'last'",
        )
    if config.selection == "best" and config.average_last:
        raise ConfigError(
            "training.average_last is a way of keeping the last weights, found selection = 'best'", "drop one"
        )


@final
class _Fit:
    """The state of one fit: everything that a checkpoint has to hold."""

    def __init__(self, adapter, train, dev, config, kind, metric, generator, on_event, checkpoint_folder, initial):
        self.adapter: AbstractAdapter = adapter
        self.train: EncodedRows = train
        self.dev: EncodedRows | None = dev if dev is not None and len(dev) else None
        self.config: TrainingConfig = config
        self.initial: Mapping[str, torch.Tensor] = initial
        self.kind: TaskKind = kind
        self.objective = objective_of(kind)
        self.group = ProcessGroup(adapter.backbone.device)
        self.emit: Listener = on_event if on_event and self.group.is_main else lambda event: None
        self.checkpoint = Checkpoint(checkpoint_folder) if checkpoint_folder and self.group.is_main else None
        seeds = torch.randint(2**62, (5,), generator=generator).tolist()
        self.order, self.draws, self.start = (torch.Generator().manual_seed(seed) for seed in seeds[:3])
        self.selector = Selector(config, kind, metric, seeds[3])
        self.dropout, self.dropout_seed = TorchStream(self.group.device), seeds[4]
        self.steps = config.epochs * math.ceil(len(train) / config.batch_size)
        self.step = self.epoch = self.chosen_step = 0
        self.seconds = 0.0
        self.next_save = 0.0
        self.history: list[dict[str, float]] = []
        self.stopped: str | None = None
        self.diverged = False
        self.chosen: dict[str, torch.Tensor] = {}

    def run(self) -> FitResult:
        with self.adapter.backbone.lent_to(self.adapter):
            return self._run()

    def _run(self) -> FitResult:
        adapter, config = self.adapter, self.config
        self.clock = time.perf_counter()
        adapter.backbone.to(self.group.device)
        adapter.to(self.group.device)
        self.optimizer = make_optimizer(adapter, config)
        parameters = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
        late = round(self.steps * (1 - config.average_last))
        self.average = LateAverage(adapter, late if config.average_last else self.steps)
        adapter.begin_training(self.steps, self.train)
        if not self._resume():
            adapter.calibrate(1.0)  # an adapter that is fitted again may carry a temperature
            if adapter.probes_start:
                self._begin_with_initial()
            adapter.warm_start(self.train, self.start)
            self._begin_with_initial()
            self.group.align(adapter)
            self._keep()
        self._count_seconds()
        self.emit(FitStarted(self.steps, config.epochs, len(self.train), len(self.dev or ()), parameters, self.step))
        if self.steps:
            self._train()
        adapter.load_state_dict(self.chosen)
        if self.stopped is None:
            self.average.copy_to(adapter)
        self.emit(FitFinished(self.step, self.seconds, self.chosen_step))
        return FitResult(
            self.step, self.chosen_step, self.seconds, parameters, self.history, self.stopped, self.diverged
        )

    @torch.no_grad()
    def _begin_with_initial(self) -> None:
        for name, value in self.initial.items():
            self.adapter.get_parameter(name).copy_(value)

    def _train(self) -> None:
        adapter, config = self.adapter, self.config
        caching = config.cache_trunk and not config.trunk_dropout
        trunk = self._cache(self.train) if caching else None
        dev_trunk = self._cache(self.dev) if caching and self.dev else None
        while self.epoch < config.epochs and self.stopped is None:
            adapter.train()
            with training_mode(adapter.backbone, config.trunk_dropout, config.gradient_checkpointing):
                self._epoch(trunk)
            if self.stopped is None:
                self.epoch += 1
                self._evaluate(dev_trunk)
            self._count_seconds()
            if self.checkpoint and self.stopped is None and time.perf_counter() >= self.next_save:
                self._save()
        adapter.eval()

    def _count_seconds(self) -> None:
        """Add the time since the last call to what was spent, before an interruption too."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def _cache(self, rows: EncodedRows) -> TrunkCache | None:
        adapter = self.adapter
        adapter.eval()
        return trunk_cache(adapter.backbone, rows, adapter.lowest_layer, adapter)

    def _epoch(self, trunk: TrunkCache | None) -> None:
        # Dropout takes no generator. Seeded anew each epoch, it needs no place in a checkpoint, on whatever device.
        self.dropout.seed(self.dropout_seed + self.epoch * self.group.count + self.group.index)
        for indices in self._plan():
            factor = rate_factor(self.step, self.steps, self.config)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            loss = self._step(indices, trunk)
            if not math.isfinite(loss):
                self.diverged = True
                kept = f"kept the weights of step {self.chosen_step}; try a lower training.learning_rate"
                self._stop(f"the loss or its gradient became {loss} at step {self.step + 1}: {kept}")
                return
            self.step += 1
            self.adapter.after_step(self.step)
            self.average.update(self.adapter, self.step)
            tokens = sum(len(self.train.input_ids[row]) for row in indices)
            self.emit(StepDone(self.step, loss, self.config.learning_rate * factor, tokens))

    def _plan(self) -> list[list[int]]:
        """Row positions by batch: every row once, or as often as its weight has it drawn."""
        lengths, size = self.train.lengths, self.config.batch_size
        if self.train.weights is None:
            return plan_batches(lengths, size, self.order)
        drawn = draw_rows(self.train.weights, self.order)
        batches = plan_batches([lengths[row] for row in drawn], size, self.order)
        return [[drawn[place] for place in batch] for batch in batches]

    def _step(self, indices: list[int], trunk: TrunkCache | None) -> float:
        """One forward, backward and update on the rows at these positions; returns the loss.

        Where the loss or the norm of its gradient is not finite, returns that and leaves the weights alone.
        """
        whole, mine = self.train.batch(indices).to(self.group.device), indices[self.group.share]
        draw = self.adapter.draw(whole, self.draws)[self.group.share]
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.group.device)
        if mine:
            batch = whole if len(mine) == len(indices) else self.train.batch(mine).to(self.group.device)
            with self.dropout.lent():
                loss = self._loss(batch, draw, trunk) * (self._terms(batch) / self._terms(whole))
                loss.backward()
        value = self.group.sum_up(loss, self.adapter.parameters())
        if not math.isfinite(value):
            return value
        limit = self.config.gradient_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), limit))
        if not math.isfinite(norm):
            return norm
        self.optimizer.step()
        return value

    def _terms(self, batch: Batch) -> int:
        """The number of terms that the mean loss of a batch is over."""
        assert batch.labels is not None
        return self.objective.num_terms(batch.labels)

    def _loss(self, batch: Batch, draw: Draw, trunk: TrunkCache | None) -> torch.Tensor:
        """The mean loss of a batch, with the adapter's penalty."""
        half = torch.autocast(batch.rows.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with trunk or nullcontext():
            if trunk:
                trunk.choose(batch)
            with half:
                scores = self.adapter(batch, draw)
                loss = batch_loss(scores, batch, self.adapter, self.kind, self.config.label_smoothing)
                penalty = self.adapter.penalty(draw)
        return loss if penalty is None else loss + penalty

    def _evaluate(self, trunk: TrunkCache | None) -> None:
        """Score dev, and keep the weights if they are the best so far (or simply the last)."""
        keep_last = self.config.selection == "last"
        if self.dev is None:
            self._keep()
            return
        result = self.group.agree(self.selector.evaluate(self.adapter, self.dev, trunk))
        improved = self.adapter.settled and self.selector.improves(result.score)
        if improved or keep_last:
            self._keep()
        diagnostics = self.adapter.diagnostics()
        where = {"step": self.step, "epoch": self.epoch}
        self.history.append({**where, "score": result.score, "deviation": result.deviation, **diagnostics})
        self.emit(
            Evaluated(
                **where,
                metric=self.selector.metric,
                score=result.score,
                deviation=result.deviation,
                improved=improved,
                diagnostics=diagnostics,
            )
        )
        if self.selector.exhausted:
            self._stop(f"no gain on dev in {self.config.patience} evaluations")

    def _keep(self) -> None:
        self.chosen = {name: tensor.detach().clone() for name, tensor in self.adapter.state_dict().items()}
        self.chosen_step = self.step

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self.emit(Stopped(self.step, reason))

    def _save(self) -> None:
        assert self.checkpoint is not None
        begun = time.perf_counter()
        tensors = {f"adapter/{name}": tensor for name, tensor in self.adapter.state_dict().items()}
        tensors |= {f"chosen/{name}": tensor for name, tensor in self.chosen.items()}
        if self.average.count:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.sums.items()}
        tensors |= pack_optimizer(self.optimizer)
        tensors |= {"random/order": self.order.get_state(), "random/draws": self.draws.get_state()}
        record = {"selector": self.selector.state(), "averaged": self.average.count}
        record |= {name: getattr(self, name) for name in _RECORDED}
        self.checkpoint.save(tensors, record)
        saved = time.perf_counter()
        self.next_save = saved + SAVING_PAUSE * (saved - begun)
        self.emit(CheckpointSaved(self.step))

    def _resume(self) -> bool:
        """Continue from the checkpoint, if there is a readable one."""
        loaded = self.group.agree(self.checkpoint.load() if self.checkpoint else None)
        if loaded is None:
            return False
        tensors, record = loaded
        part = lambda prefix: {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.adapter.load_state_dict(part("adapter/"))
        self.chosen = part("chosen/")
        self.average.count = record["averaged"]
        if self.average.count:
            self.average.restore(part("average/"))
        unpack_optimizer(self.optimizer, tensors)
        self.order.set_state(tensors["random/order"])
        self.draws.set_state(tensors["random/draws"])
        self.selector.restore(record["selector"])
        for name in _RECORDED:
            setattr(self, name, record[name])
        return True


_RECORDED = ("step", "epoch", "chosen_step", "seconds", "history", "stopped")


def batch_loss(
    scores: torch.Tensor, batch: Batch, adapter: AbstractAdapter, kind: TaskKind, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The mean loss of scores (B, C) by the objective of the kind, over rows or over the tokens (N) of references.

    Where rows have weights w of mean 1 over all training rows, it is Σ w ℓ / B: a row of weight 2 counts as two rows,
    in whichever batch it is.
    """
    assert batch.labels is not None
    targets, weights = adapter.standardise(batch.labels), batch.loss_weights
    loss = objective_of(kind).loss
    if weights is None:
        return loss(scores.float(), targets, smoothing=label_smoothing)
    return (weights * loss(scores.float(), targets, smoothing=label_smoothing, reduction="none")).mean()


@contextmanager
def training_mode(backbone: Backbone, dropout: bool, checkpointing: bool) -> Iterator[None]:
    """The frozen model as it should be during an epoch: with or without dropout, with or without checkpointing."""
    backbone.model.train(dropout)
    try:
        with recomputing(backbone) if checkpointing else nullcontext():
            yield
    finally:
        backbone.model.eval()
