"""An inventory of skills: S adapters for every adapted part of a model, in q splits, to be mixed for each task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, final

import torch
from torch import nn

from handful.backbone.attention import AttentionSite
from handful.backbone.blocks import FAMILIES, find_blocks, inputs, obstacles, outputs
from handful.backbone.load import Backbone
from handful.backbone.low_rank import AbstractUpdate, LowRank, Rescale, Updating, mix_factors
from handful.methods.poly.routing import Sharing, router_of
from handful.methods.prefix import KeyValuePrefix, chosen_sites, inject, shifts_positions
from handful.methods.targets import Targets, choose_lora_targets, linear_layers

SkillKind = Literal["lora", "ia3", "prefix"]


def chosen_matrices(backbone: Backbone, targets: Targets) -> list[str]:
    """Names of the linear layers that get skills; "auto": query, key, value and output of every attention block;
    "all-linear": all but the scores of tokens.

    Of a family whose blocks are not known, "auto" is what LoRA would take by name. A pooler's fresh layers get none:
    they are trained as they are.
    """
    fresh = {name.rpartition(".")[0] for name in backbone.fresh}
    layers = {name: layer for name, layer in linear_layers(backbone).items() if name not in fresh}
    if targets == "auto":
        if backbone.family in FAMILIES and not obstacles(backbone.config):
            blocks = find_blocks(backbone.model).attention
            return [name for block in blocks for name in (*block.projections, block.output)]
        targets, _ = choose_lora_targets(backbone, None)
    if targets == "all-linear":
        last = backbone.model.get_output_embeddings() if backbone.purpose_is_lm else None
        return [name for name, layer in layers.items() if layer is not last]
    ends = (targets,) if isinstance(targets, str) else targets
    return [name for name in layers if any(name == end or name.endswith(f".{end}") for end in ends)]


class AbstractSkills(nn.Module, ABC):
    """The parameters of an inventory, and how they are put into a backbone. `routers` has a name for each router."""

    routers: tuple[str, ...]

    @abstractmethod
    def install(self, weights: torch.Tensor, groups: torch.Tensor | None) -> None:
        """Use the skills at the weights (R, U, q, S) in the coming forwards; `groups` (B,) as in `AbstractUpdate`."""

    @abstractmethod
    def regroup(self, groups: torch.Tensor | None) -> None:
        """Use what is installed for rows of other of its tasks."""

    @abstractmethod
    def clear(self) -> None:
        """Use no skill in the coming forwards."""

    @abstractmethod
    def collapsed(
        self, saved: Mapping[str, torch.Tensor], weights: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The parameters of an inventory of one skill and one split, which another inventory's are at the weights
        (R, 1, q, S) of one task, or on average; `saved` are that one's.
        """

    @abstractmethod
    def remove(self) -> None:
        """Take everything off the backbone. Idempotent."""

    def orthogonality(self) -> torch.Tensor:
        """Mean squared cosine between the skills of one matrix, less the 1/S of each with itself."""
        return torch.zeros(())


class AbstractMatrixSkills(AbstractSkills):
    """Skills of matrices; parameters are called after them, with "__" for dots."""

    backbone: Backbone

    def __init__(self, backbone: Backbone, matrices: Sequence[str], sharing: Sharing):
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        self.updating = Updating(backbone.model, matrices)
        names = {name: router_of(name, sharing) for name in matrices}
        self.routers = tuple(dict.fromkeys(names.values()))
        self._router = {name: self.routers.index(router) for name, router in names.items()}
        self.parts = nn.ParameterDict()

    def part(self, name: str, kind: str) -> torch.Tensor:
        """A parameter of a matrix."""
        return self.parts[f"{name.replace('.', '__')}__{kind}"]

    @abstractmethod
    def update(self, name: str, weights: torch.Tensor, groups: torch.Tensor | None) -> AbstractUpdate:
        """The update of one matrix at the weights (U, q, S)."""

    def _weights_of(self, name: str, part: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Those (1, q, S) of a matrix, even where none are given, for a part (q, S, …)."""
        return (
            part.new_full((1, *part.shape[:2]), 1 / part.shape[1]) if weights is None else weights[self._router[name]]
        )

    def updates(self, weights: torch.Tensor, groups: torch.Tensor | None) -> dict[str, AbstractUpdate]:
        """Those of all matrices at the weights (R, U, q, S)."""
        return {name: self.update(name, weights[router], groups) for name, router in self._router.items()}

    def install(self, weights: torch.Tensor, groups: torch.Tensor | None) -> None:
        self.backbone.install(partial(setattr, self.updating, "updates", self.updates(weights, groups)))

    def regroup(self, groups: torch.Tensor | None) -> None:
        for update in self.updating.updates.values():
            update.regroup(groups)

    def clear(self) -> None:
        self.updating.updates = {}

    def remove(self) -> None:
        self.updating.remove()


@final
class LowRankSkills(AbstractMatrixSkills):
    """A (q, S, D/q, r) uniform in ±1/√(3 D) and B (q, S, r, O/q) = 0 for each matrix (Caccia et al. 2023)."""

    def __init__(
        self,
        backbone: Backbone,
        matrices: Sequence[str],
        sharing: Sharing,
        shape: tuple[int, int, int],
        scale: float,
        generator: torch.Generator,
    ):
        super().__init__(backbone, matrices, sharing)
        self.scale, (splits, skills, rank) = scale, shape
        for name, module in self.updating.modules.items():
            width, out = inputs(module), outputs(module)
            down = torch.rand(splits, skills, width // splits, rank, generator=generator) * 2 - 1
            self.parts[f"{name.replace('.', '__')}__down"] = nn.Parameter(down * (3 * width) ** -0.5)
            self.parts[f"{name.replace('.', '__')}__up"] = nn.Parameter(
                torch.zeros(splits, skills, rank, out // splits)
            )

    def update(self, name: str, weights: torch.Tensor, groups: torch.Tensor | None) -> LowRank:
        return LowRank(self.part(name, "down"), self.part(name, "up"), weights, groups, self.scale)

    def collapsed(
        self, saved: Mapping[str, torch.Tensor], weights: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        found = {}
        for name in self.updating.modules:
            keys = [f"parts.{name.replace('.', '__')}__{kind}" for kind in ("down", "up")]
            if all(key in saved for key in keys):
                down, up = (saved[key] for key in keys)
                mixed = mix_factors(down, up, self._weights_of(name, down, weights))
                found |= {key: part[None] for key, part in zip(keys, mixed, strict=True)}
        return found

    def orthogonality(self) -> torch.Tensor:
        terms = []
        for key, part in self.parts.items():
            vectors = part.transpose(2, 3) if key.endswith("__down") else part  # (q, S, r, width of a split)
            vectors = nn.functional.normalize(vectors.permute(0, 2, 1, 3), dim=-1)
            terms.append((vectors @ vectors.transpose(2, 3)).square().mean() - 1 / vectors.shape[2])
        return torch.stack(terms).mean()


@final
class RescalingSkills(AbstractMatrixSkills):
    """l (q, S, O/q) = 1 for each matrix: IA3 on its output."""

    def __init__(self, backbone: Backbone, matrices: Sequence[str], sharing: Sharing, shape: tuple[int, int]):
        super().__init__(backbone, matrices, sharing)
        splits, skills = shape
        for name, module in self.updating.modules.items():
            scales = torch.ones(splits, skills, outputs(module) // splits)
            self.parts[f"{name.replace('.', '__')}__scales"] = nn.Parameter(scales)

    def update(self, name: str, weights: torch.Tensor, groups: torch.Tensor | None) -> Rescale:
        return Rescale(self.part(name, "scales"), weights, groups)

    def collapsed(
        self, saved: Mapping[str, torch.Tensor], weights: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        keys = {f"parts.{name.replace('.', '__')}__scales": name for name in self.updating.modules}
        return {
            key: torch.einsum("uqs,qso->uqo", self._weights_of(keys[key], part, weights), part).flatten()[None, None]
            for key, part in saved.items()
            if key in keys
        }


def router_of_site(site: AttentionSite, sharing: Sharing, *, several_stacks: bool) -> str:
    """The router of a layer's prefix: one per layer of each stack; one per stack with "coder"; one with "coarse"."""
    if sharing == "coarse" or (sharing == "coder" and not several_stacks):
        return "model"
    if sharing == "coder":
        return site.stack
    return f"{site.stack}.layer.{site.layer}" if several_stacks else f"layer.{site.layer}"


@final
class PrefixSkills(AbstractSkills):
    """S prefixes (S, L, 2, H, P, d), routed as `router_of_site` says: routing is a point of their simplex. Ours."""

    def __init__(self, backbone: Backbone, skills: int, length: int, sharing: Sharing, generator: torch.Generator):
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        self.sites = chosen_sites(backbone, None)
        backbone.packs = True
        self.shift = shifts_positions(backbone, "auto")
        self.parts = KeyValuePrefix(self.sites, length, skills, form="flat", init_std=1.0, generator=generator)
        stacks = {site.stack for site in self.sites}
        names = [router_of_site(site, sharing, several_stacks=len(stacks) > 1) for site in self.sites]
        self.routers = tuple(dict.fromkeys(names))
        self._router = [self.routers.index(name) for name in names]

    backbone: Backbone

    def mixed(self, weights: torch.Tensor) -> torch.Tensor:
        """The prefixes (L, U, 2, H, P, d) at the weights (R, U, 1, S)."""
        return torch.einsum("lus,slkhpd->lukhpd", weights[self._router, :, 0], self.parts())

    def install(self, weights: torch.Tensor, groups: torch.Tensor | None) -> None:
        self._prefixes = self.mixed(weights)
        self.regroup(groups)

    def regroup(self, groups: torch.Tensor | None) -> None:
        prefixes = self._prefixes if groups is None else self._prefixes[:, groups]
        inject(self.backbone, self.sites, prefixes, self.shift)

    def clear(self) -> None:
        self.backbone.injection.clear()

    def collapsed(
        self, saved: Mapping[str, torch.Tensor], weights: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        key, prefixes = "parts.keys_values", saved.get("parts.keys_values")
        if prefixes is None:
            return {}
        if weights is None:
            return {key: prefixes.mean(0, keepdim=True)}
        return {key: torch.einsum("ls,slkhpd->lkhpd", weights[self._router, 0, 0], prefixes)[None]}

    def remove(self) -> None:
        self.clear()
        self.backbone.packs = False
