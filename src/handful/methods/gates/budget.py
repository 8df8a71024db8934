"""How many units and heads each layer may lose, so that a given share of the gateable parameters is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

from handful.backbone.blocks import Attention, Blocks, FeedForward, find_blocks, head_rule, why_heads_stay
from handful.backbone.load import Backbone
from handful.backbone.resize import possible_groups
from handful.errors import ConfigError

Groups = Literal["auto", "units", "units-and-heads"]

MULTIPLE, FINEST = 16, 48
"""Units go in multiples of 16; of less where that is more than a 48th of a width: a budget is met within a percent."""


@final
@dataclass(frozen=True)
class Budget:
    """How many groups each block may lose so that `target` of all gateable parameters are gone, the same in each layer.

    Widths that are equal in all layers are what a stock checkpoint can have. Units kept are a multiple of
    `multiple`; where that is `MULTIPLE`, halved until `FINEST` of it fit into the width. Heads go as far as the share
    of the target allows and, where it is the stock class that takes fewer, in numbers that it takes; units make up for
    the rest.
    """

    blocks: Blocks
    target: float
    heads: bool
    multiple: int

    @cached_property
    def gated(self) -> tuple[Attention | FeedForward, ...]:
        """The blocks that lose something."""
        return (*(self.blocks.attention if self.heads else ()), *self.blocks.feed_forward)

    @cached_property
    def costs(self) -> tuple[int, ...]:
        """Parameters that go with one group of each block."""
        cost, unit = self.blocks.group_cost, self.blocks.unit_cost
        return tuple(cost(block) if isinstance(block, Attention) else unit(block) for block in self.gated)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Groups of each block."""
        return tuple(block.groups if isinstance(block, Attention) else block.units for block in self.gated)

    @property
    def largest_target(self) -> float:
        """The share that is gone when every block has one unit, or as few heads as it can have, left."""
        fewest = [self._possible[0] if isinstance(block, Attention) else 1 for block in self.gated]
        return self.removed([size - least for size, least in zip(self.sizes, fewest, strict=True)])

    @cached_property
    def closing(self) -> tuple[int, ...]:
        """How many groups each block loses. Raises: ConfigError where the target is too much, or rounds to nothing."""
        fewest = min(block.units for block in self.blocks.feed_forward)
        if self.multiple != MULTIPLE and self.multiple > fewest // 2:
            raise ConfigError(
                f"method.multiple: expected at most half of the {fewest:,} units of a block, found {self.multiple}",
                "give less, or leave it out",
            )
        if self.target > self.largest_target:
            others = not self.heads and head_rule(self.blocks.model.config) != "none"
            raise ConfigError(
                f"method.target_sparsity: {self.target:g} of the attention and feed-forward parameters cannot be "
                f"removed: with one unit {'and as few heads as can be ' * self.heads}left in every block "
                f"{self.largest_target:.3f} of them are gone",
                "give less" + (", or groups 'units-and-heads'" if others else ""),
            )
        # heads go first, in the numbers that are possible; units, which are finer, make up for the rest of the target
        heads = self._heads()
        share = min(max(self._left(heads), 0.0), 1.0)
        found = (*heads, *(self._units(block.units, share) for block in self.blocks.feed_forward))
        if not any(found):
            step = self._multiple(self.blocks.feed_forward[0].units)
            least = self.removed([*(0 for _ in heads), *(step for _ in self.blocks.feed_forward)])
            raise ConfigError(
                f"method.target_sparsity: {self.target:g} of the parameters is rounded to none: {step} units of every "
                f"layer, which go together, are {least:.3f} of them",
                "give more, or a smaller method.multiple",
            )
        return found

    @cached_property
    def _possible(self) -> tuple[int, ...]:
        """The numbers of key/value heads, rising, that blocks may have."""
        config = self.blocks.model.config
        if head_rule(config) == "stock":
            return possible_groups(config)
        return tuple(range(1, self.blocks.attention[0].groups + 1))

    def _heads(self) -> list[int]:
        """Heads that each attention block loses; more than the target's share where units alone cannot do the rest."""
        if not self.heads:
            return []
        groups, most = self.blocks.attention[0].groups, max(block.units for block in self.blocks.feed_forward)
        share = groups - min(round(self.target * groups), groups - 1)
        start = min(kept for kept in self._possible if kept >= share)
        plans = [[groups - kept for _ in self.blocks.attention] for kept in self._possible if kept <= start]
        return next((heads for heads in reversed(plans) if self._left(heads) <= 1 - 1 / most), plans[0])

    def _left(self, heads: Sequence[int]) -> float:
        """The share of all units that the budget leaves when each attention block, if any, has lost so many heads."""
        left = self.target * self.blocks.parameters()
        blocks = zip(self.blocks.attention, heads, strict=False)
        left -= sum(self.blocks.group_cost(block) * count for block, count in blocks)
        return left / sum(self.blocks.unit_cost(block) * block.units for block in self.blocks.feed_forward)

    def _multiple(self, size: int) -> int:
        multiple = self.multiple
        while self.multiple == MULTIPLE and multiple > max(1, size // FINEST):
            multiple //= 2
        return multiple

    def _units(self, size: int, share: float) -> int:
        multiple = self._multiple(size)
        kept = max(multiple * round((1 - share) * size / multiple), 1)
        return max(0, min(size - kept, size - 1))

    def removed(self, closed: Sequence[int]) -> float:
        """The share of the gateable parameters that goes with so many closed groups of each block."""
        return sum(cost * count for cost, count in zip(self.costs, closed, strict=True)) / self.blocks.parameters()


def plan_budget(backbone: Backbone, target: float, groups: Groups, multiple: int) -> Budget:
    """The budget of a method on a backbone; groups "auto" are those that a stock checkpoint can do without.

    Raises: ConfigError where heads are asked for that no export takes out.
    """
    rule = head_rule(backbone.config)
    only_compact = backbone.purpose_is_lm and rule == "compact"
    if groups == "units-and-heads" and (rule == "none" or only_compact):
        why = "only the format 'compact' leaves them out, which is for models that do not write"
        raise ConfigError(
            f"method.groups: expected 'units' or 'auto', found 'units-and-heads', but heads have to stay: "
            f"{why if only_compact else why_heads_stay(backbone.config)}"
        )
    heads = groups == "units-and-heads" or (groups == "auto" and rule == "stock")
    return Budget(find_blocks(backbone.model), target, heads, multiple)
