"""What both gating methods share: gates in a flat vector, biases and LoRA beside them, folding, matched features."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import nn

from handful.backbone.blocks import FAMILIES, find_blocks, inputs, matrix, obstacles, outputs
from handful.backbone.closed import Layout, choose_kept, find_open
from handful.backbone.gating import Gates, Gating, fold, remove_gating
from handful.backbone.load import Backbone
from handful.data.batching import Batch, EncodedRows
from handful.data.task import Task
from handful.methods.base import BorrowedParameters, Draw, ParameterGroup
from handful.methods.exports import Exports
from handful.methods.head import AbstractHeadedAdapter, HeadInit

Side = Literal["rows", "columns"]


@final
@dataclass(frozen=True)
class GatedSide:
    """One side of one matrix and its gates: `start` to `stop` of the flat vector, each for `repeat` rows or columns."""

    matrix: str
    side: Side
    start: int
    stop: int
    repeat: int = 1

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


class AbstractGatedAdapter(AbstractHeadedAdapter):
    """scores = head(features(x)) with gates on matrices of the backbone.

    Parameters: those of the gates, the biases of all matrices of the blocks and LoRA's matrices where they are trained,
    the head.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        sides: Sequence[GatedSide],
        *,
        generator: torch.Generator,
        head_init: HeadInit,
        train_biases: bool,
        lora_rank: int = 0,
        match_features: float = 0.0,
    ):
        _ = backbone.fingerprint  # of the pretrained weights: cached before biases change
        super().__init__(backbone, task, generator=generator, head_init=head_init)
        backbone.sharing.claim(self)
        self.sides, self.num_gates = tuple(sides), sides[-1].stop
        self.blocks = find_blocks(backbone.model)
        gated = {side.matrix for side in sides}
        biases = {f"{name}.bias" for name in self.blocks.matrices} if train_biases else set()
        self.biases = BorrowedParameters(backbone.model, lambda name, _: name in biases)
        self.low_rank = nn.ParameterDict()
        self.gating = Gating(backbone.model, gated)
        for name in sorted(gated) if lora_rank else ():
            down, up = start_low_rank(self.gating.modules[name], lora_rank, generator)
            self.low_rank[f"{name.replace('.', '__')}__down"], self.low_rank[f"{name.replace('.', '__')}__up"] = (
                down,
                up,
            )
        self.match_features = match_features
        self._ungated: dict[int, torch.Tensor] = {}
        self.register_buffer("progress", torch.zeros(()))
        self.steps = 0

    progress: torch.Tensor

    def begin_training(self, steps: int, rows: EncodedRows) -> None:
        del rows
        self.steps = steps
        if not steps:
            self.progress.fill_(1)

    def after_step(self, step: int) -> None:
        self.progress.fill_(step / self.steps)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Gates and LoRA by the adapter's rate, biases by the head's, as in the authors' script."""
        slow = [*self.head.parameters(), *self.biases.parameters()]
        slow += self.pooler.parameters() if self.pooler is not None else []
        held = {id(parameter) for parameter in slow}
        fast = [parameter for parameter in self.parameters() if id(parameter) not in held]
        return [ParameterGroup(name, group) for name, group in (("adapter", fast), ("head", slow)) if group]

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        draw = self.at(weights=self.simplex.draw((), generator))
        if not self.training:
            return draw
        rows, shared = {}, dict(draw.shared)
        noise = self.draw_noise(generator)
        if noise is not None:
            shared["noise"] = noise.to(self.progress.device)
        if self.match_features:
            rows["ungated"] = self._ungated_features(batch)
            shared["ungated_square"] = rows["ungated"].square().mean()
        return Draw(rows, shared)

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        return Draw(shared={"point": self.simplex.point(vertex, weights)})

    @abstractmethod
    def draw_noise(self, generator: torch.Generator) -> torch.Tensor | None:
        """ε (n,) of one forward in training, or None where gates are not drawn."""

    @abstractmethod
    def values(self, draw: Draw | None = None) -> torch.Tensor:
        """The gates (n,) at the point drawn with its noise, or ẑ at the midpoint without noise."""

    def gates(self, values: torch.Tensor) -> dict[str, Gates]:
        """The gates of each matrix from the flat vector (n,)."""
        found: dict[str, Gates] = {}
        for side in self.sides:
            vector = values[side.slice]
            vector = vector if side.repeat == 1 else vector.repeat_interleave(side.repeat)
            setattr(found.setdefault(side.matrix, Gates()), side.side, vector)
        if self.low_rank:
            for name, each in found.items():
                key = name.replace(".", "__")
                each.low_rank = self.low_rank[f"{key}__down"], self.low_rank[f"{key}__up"]
        return found

    def install(self, batch: Batch, draw: Draw) -> None:
        self.backbone.install(partial(setattr, self.gating, "gates", self.gates(self.values(draw))))

    def features(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        self._features = super().features(batch, draw)
        return self._features

    def _ungated_features(self, batch: Batch) -> torch.Tensor:
        """The features (B, D) of these training rows in the model as it was, computed once for each row."""
        rows = batch.rows.tolist()
        if any(row not in self._ungated for row in rows):
            dropping, model = self.backbone.model.training, self.backbone.model.eval()
            with torch.no_grad(), self.gating.open(), self.biases.originals():
                self._ungated.update(zip(rows, self.backbone.features(batch.inputs).float(), strict=True))
            model.train(dropping)
        return torch.stack([self._ungated[row] for row in rows])

    def matching_penalty(self, draw: Draw | None) -> torch.Tensor | None:
        """α ‖f − f₀‖² / ‖f₀‖² over the batch, f₀ the ungated model's features: a signal from texts alone. Ours.

        Of a process's share of a batch, ‖f₀‖² stays that of the whole, so that shares add up.
        """
        if draw is None or "ungated" not in draw.rows:
            return None
        error = F.mse_loss(self._features.float(), draw.rows["ungated"])
        return self.match_features * error / draw.shared["ungated_square"]

    @torch.no_grad()
    def merged_model(self) -> nn.Module:
        """A copy of the backbone's model with ẑ, biases and LoRA folded into its weights; closed parts are zeros."""
        with self.gating.open():  # the gates of a training step cannot be copied
            model = copy.deepcopy(self.backbone.model)
        remove_gating(model.get_submodule(name) for name in self.gating.modules)
        fold(model, self.gates(self.values()))
        return model.requires_grad_(False)

    @torch.no_grad()
    def gate_map(self) -> list[dict[str, Any]]:
        """For each gated side: its matrix, side, and how many gates are open (1), soft and closed (0)."""
        values = self.values()
        records = []
        for side in self.sides:
            z = values[side.slice]
            counts = {
                "open": int((z >= 1).sum()),
                "soft": int(((z > 0) & (z < 1)).sum()),
                "closed": int((z <= 0).sum()),
            }
            records.append({"matrix": side.matrix, "side": side.side, "gates": len(z), **counts})
        return records

    @torch.no_grad()
    def removable(self, layout: Layout) -> float:
        """The share of the gateable parameters that a model of this layout can leave out, as far as gates are closed.

        "padded" is the export format 'dense', "ragged" is 'compact'; what else is closed stays there as zeros.
        """
        gates = self.gates(self.values())

        def open_lines(name: str, side: Side) -> torch.Tensor:
            vector = getattr(gates.get(name), side, None)
            if vector is not None:
                return vector > 0
            module = self.backbone.model.get_submodule(name)
            number = outputs(module) if side == "rows" else inputs(module)
            return torch.ones(number, dtype=torch.bool, device=self.progress.device)

        open_parts = find_open(self.blocks, lambda name: open_lines(name, "rows"), lambda n: open_lines(n, "columns"))
        kept = choose_kept(self.blocks, open_parts, layout)
        return 1 - kept.parameters(self.blocks) / self.blocks.parameters()

    def report(self) -> dict[str, Any]:
        compact = {} if self.backbone.purpose_is_lm else {"removable_compact": self.removable("ragged")}
        return {"gates": self.gate_map(), **self.diagnostics(), **compact}

    def detach(self) -> None:
        self.gating.remove()
        self.biases.restore()
        super().detach()


def gated_exports(backbone: Backbone | str) -> Exports:
    """What gates can be exported as: a smaller model, of the families whose blocks are known."""
    if not isinstance(backbone, str):
        return {"smaller model": next(iter(obstacles(backbone.config)), None)}
    known = f"no exact export of a gated {backbone} is known; there is for {', '.join(sorted(FAMILIES))}"
    return {"smaller model": None if backbone in FAMILIES else known}


def matching_obstacles(backbone: Backbone, match_features: float) -> list[str]:
    """Why features cannot be matched, where they should be: the whole model must have some that mean something."""
    if match_features and backbone.purpose_is_lm:
        return ["method.match_features: a language model ends in scores of tokens, not in features; set it to 0"]
    if match_features and backbone.fresh:
        return [
            "method.match_features: the features of the classification class are of layers that start at random "
            f"({backbone.fresh[0]}); set it to 0, or train with pooling 'mean' or 'last'"
        ]
    return []


def matrix_sides(modules: Mapping[str, nn.Module]) -> list[GatedSide]:
    """A row and a column gate for each matrix."""
    sides: list[GatedSide] = []
    start = 0
    for name, module in modules.items():
        for side, width in (("rows", outputs(module)), ("columns", inputs(module))):
            sides.append(GatedSide(name, side, start, start + width))  # type: ignore[arg-type]
            start += width
    return sides


def start_low_rank(module: nn.Module, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """LoRA's A (k, in), uniform in ±√(1/in) (Kaiming at a = √5), and B (out, k) = 0."""
    out, width = matrix(module).shape
    down = (torch.rand(rank, width, generator=generator) * 2 - 1) / width**0.5
    return nn.Parameter(down), nn.Parameter(torch.zeros(out, rank))
