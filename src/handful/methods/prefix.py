"""Prefix tuning: P trained keys and values in front of every attention layer of a frozen model.

Idea: each layer's queries may also attend to P virtual positions whose keys and values are free parameters; everything
else stays frozen. Formula, layer l: A = softmax(Q [Kᵖ; K]ᵀ / √d + [0; mask]) [Vᵖ; V]; queries are not extended, so the
output keeps its length. Trained: 2·L·H·P·d + C·(D + 1) numbers (flat form). Inference: P more keys a layer.
Source: Li & Liang 2021; flat (P-tuning v2, Liu et al. 2022) by default. Deviations: positions of the real tokens can
stay where they are (PEFT moves them by P), and any pooling.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

import torch
from torch import nn

from handful.backbone.attention import AttentionSite
from handful.backbone.families import ROWS
from handful.backbone.load import Backbone
from handful.data.batching import Batch, EncodedRows
from handful.data.task import Task
from handful.errors import ConfigError
from handful.methods.base import AbstractMethod, Draw, Preset, setting
from handful.methods.exports import Exports, KeyValues, Product, prefix_state
from handful.methods.head import HEAD_INIT, AbstractHeadedAdapter, HeadInit
from handful.methods.prompt import LEAST_ROOM
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around
from handful.methods.simplex import Simplex, mix_layers, spread, squared_cosine

if TYPE_CHECKING:
    from handful.methods.prefix_subspace import PrefixSubspace

PrefixForm = Literal["flat", "mlp"]
PrefixInit = Literal["normal", "activations"]
Positions = Literal["auto", "shifted", "kept"]

STOCK_PREFIX_FAMILIES = frozenset(row.model_type for row in ROWS if row.stock_prefix)
"""Families whose prefix stock PEFT can load and apply as it was trained (positions shifted)."""


@final
class KeyValuePrefix(nn.Module):
    """M vertices of a key/value prefix over L attention sites; `forward()` → (M, L, 2, H, P, d).

    flat: that tensor is the parameter. mlp: per vertex, an embedding (P, D) through Linear(D, 512), tanh and
    Linear(512, 2·L·H·d); points are mixed after the MLP, so that mixing is mixing prefixes.
    """

    def __init__(
        self,
        sites: list[AttentionSite],
        length: int,
        num_vertices: int,
        *,
        form: PrefixForm,
        init_std: float,
        generator: torch.Generator,
        mlp_width: int = 512,
    ):
        super().__init__()
        heads, width = sites[0].heads, sites[0].width
        self.shape = (num_vertices, len(sites), 2, heads, length, width)
        if form == "flat":
            self.keys_values = nn.Parameter(torch.randn(self.shape, generator=generator) * init_std)
            return
        hidden, outputs = heads * width, 2 * len(sites) * heads * width
        self.embedding = nn.Parameter(torch.randn(num_vertices, length, hidden, generator=generator) * init_std)
        self.inner = nn.Parameter(torch.randn(num_vertices, hidden, mlp_width, generator=generator) * hidden**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(num_vertices, 1, mlp_width))
        self.outer = nn.Parameter(torch.randn(num_vertices, mlp_width, outputs, generator=generator) * mlp_width**-0.5)
        self.outer_bias = nn.Parameter(torch.zeros(num_vertices, 1, outputs))

    def forward(self) -> torch.Tensor:
        if hasattr(self, "keys_values"):
            return self.keys_values
        vertices, sites, _, heads, length, width = self.shape
        hidden = torch.tanh(torch.baddbmm(self.inner_bias, self.embedding, self.inner))
        flat = torch.baddbmm(self.outer_bias, hidden, self.outer)  # (M, P, 2·L·H·d)
        return flat.view(vertices, length, sites, 2, heads, width).permute(0, 2, 3, 4, 1, 5)

    def start_from_activations(self, keys_values: torch.Tensor) -> None:
        """Start a flat prefix from recorded keys and values (M, L, 2, H, P, d)."""
        with torch.no_grad():
            self.keys_values.copy_(keys_values)


def check_start(form: PrefixForm, init: PrefixInit) -> None:
    """Raises: ConfigError for a start that the form cannot be given."""
    if form == "mlp" and init == "activations":
        raise ConfigError("init = 'activations' needs form = 'flat', found 'mlp'", "change one of the two")


def chosen_sites(backbone: Backbone, layers: tuple[int, int] | None) -> list[AttentionSite]:
    """The attention sites in the half-open range of layers, all of them for None."""
    sites = backbone.injection.sites
    return [site for site in sites if layers is None or layers[0] <= site.layer < layers[1]]


def check_prefix(backbone: Backbone, layers: tuple[int, int] | None, positions: Positions, length: int) -> list[str]:
    """Reasons why a prefix of P = `length` cannot be put on this backbone."""
    reasons = []
    if layers is not None and not 0 <= layers[0] < layers[1] <= backbone.num_layers:
        reasons.append(f"layers: expected 0 <= first < stop <= {backbone.num_layers}, found {list(layers)}")
        return reasons
    shapes = {(site.heads, site.width) for site in chosen_sites(backbone, layers)}
    if len(shapes) > 1:
        reasons.append(
            f"attention layers differ in shape {sorted(shapes)}; choose a range of `layers` where they agree"
        )
    if positions == "shifted" and not backbone.injection.supports_shift:
        reasons.append(f"positions: {backbone.family} cannot shift positions; use 'kept'")
    elif shifts_positions(backbone, positions) and length + LEAST_ROOM > backbone.max_length:
        reasons.append(
            f"prefix_length: texts that move by {length} positions have {max(backbone.max_length - length, 0)} left of "
            f"the model's {backbone.max_length}, expected at least {LEAST_ROOM}; positions 'kept' does not move them"
        )
    return reasons


def prefix_exports(
    backbone: Backbone | str, length: int, positions: Positions = "auto", layers: tuple[int, int] | None = None
) -> Exports:
    """What a prefix can be exported as: keys and values everywhere, and for stock PEFT where that computes the same."""
    family, num_layers = (backbone, None) if isinstance(backbone, str) else (backbone.family, backbone.num_layers)
    obstacle = None
    if family not in STOCK_PREFIX_FAMILIES:
        known = ", ".join(sorted(STOCK_PREFIX_FAMILIES))
        obstacle = f"stock PEFT has no working prefix for {family}; it has for {known}"
    elif positions == "kept":
        obstacle = (
            "stock PEFT moves the texts' positions by the prefix's length; train with positions 'auto' or 'shifted'"
        )
    elif layers is not None and layers != (0, num_layers):
        obstacle = "stock PEFT puts a prefix on every layer; train without a range of layers"
    elif not isinstance(backbone, str):
        obstacle = _window_obstacle(backbone, length)
    return {"prefix": None, "peft state": obstacle}


def longest_in_sight(backbone: Backbone, length: int) -> int | None:
    """Most tokens of a text behind a stock prefix of P = `length` vectors: None where there is no limit.

    It stands in the cache like earlier tokens, and so slides out of sight of longer texts in layers with sliding
    attention; ours, also in an ONNX file, stays. A prompt is part of the text, and slides with us as in stock PEFT.
    """
    window = getattr(backbone.config, "sliding_window", None)
    layers = getattr(backbone.config, "layer_types", None) or ("sliding_attention",)
    return window - length if window and "sliding_attention" in layers else None


def _window_obstacle(backbone: Backbone, length: int) -> str | None:
    room = longest_in_sight(backbone, length)
    if room is None or room >= LEAST_ROOM:
        return None
    return (
        f"a stock prefix of {length} vectors leaves {max(room, 0)} tokens of a text in its sight, expected at least "
        f"{LEAST_ROOM}, in layers that attend to the last {room + length} alone; train with a shorter prefix"
    )


def fold_prefix(keys_values: KeyValues, product: Product) -> Any:
    """A prefix as what `prefix_exports` names."""
    return keys_values if product == "prefix" else prefix_state(keys_values.keys_values)


def shifts_positions(backbone: Backbone, positions: Positions) -> bool:
    """Whether real tokens move to positions P…P+S−1; "auto" does where stock PEFT can load the export."""
    return positions == "shifted" or (positions == "auto" and backbone.family in STOCK_PREFIX_FAMILIES)


@torch.no_grad()
def sample_activations(
    backbone: Backbone,
    rows: EncodedRows,
    sites: list[AttentionSite],
    num_vertices: int,
    length: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Keys and values (M, L, 2, H, P, d) at P random real tokens of random training rows, afresh for each vertex.

    One token's keys and values stay together over all layers.
    """
    drawn = []
    order = torch.randperm(len(rows), generator=generator)[:64].tolist()
    batch = rows.batch(order)
    recorded = backbone.injection.record(backbone.accepted(batch.to(backbone.device).inputs))
    real = batch.inputs["attention_mask"].nonzero()  # (tokens, 2): row and position
    for _ in range(num_vertices):
        tokens = real[torch.randint(len(real), (length,), generator=generator)]
        row, position = tokens[:, 0], tokens[:, 1]
        layers = [torch.stack([t[row, :, position] for t in recorded[site.index]]) for site in sites]  # (2, P, H, d)
        drawn.append(torch.stack(layers).transpose(2, 3))
    return torch.stack(drawn)


DEFAULT = Preset(
    "search on training pools (docs/experiments.md)",
    training={"learning_rate": 3e-2, "head_learning_rate": 3e-3},
    writing={"learning_rate": 1e-1},
)


@dataclass(frozen=True)
class AbstractPrefix(AbstractMethod):
    """The settings that one prefix and a simplex of them have in common."""

    prefix_length: Annotated[int, setting("virtual keys and values per layer", unit="positions", ge=1, le=512)] = 10
    form: Annotated[PrefixForm, setting("free tensors, or an MLP that is dropped after training")] = "flat"
    init: Annotated[PrefixInit, setting("N(0, init_std²), or the keys and values of random training tokens")] = "normal"
    init_std: Annotated[float, setting("standard deviation at the start", gt=0)] = 1.0
    layers: Annotated[
        tuple[int, int] | None, setting("half-open range of layers from 0, or none for all", unit="layers")
    ] = None
    positions: Annotated[
        Positions, setting("move real tokens' positions by P as PEFT does, keep them, or whichever exports")
    ] = "auto"
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self.form, self.init)

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        return check_prefix(backbone, self.layers, self.positions, self.prefix_length)

    def exports(self, backbone: Backbone | str) -> Exports:
        return prefix_exports(backbone, self.prefix_length, self.positions, self.layers)


@final
@dataclass(frozen=True)
class Prefix(AbstractPrefix):
    """One trained prefix and one head: a simplex of a single vertex, of which nothing is drawn."""

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = "prefix tuning: trained keys and values in front of every attention layer"
    source: ClassVar[str] = "Li & Liang 2021; Liu et al. 2022 (flat form)"
    presets: ClassVar[Mapping[str, Preset]] = {"default": DEFAULT}
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(3e-3, 3e-2, 1e-1),
        "training.epochs": EPOCHS,
        "method.prefix_length": OneOf((5, 10, 20), "ours: half, all and twice the preset's"),
    }

    simplex: ClassVar[Simplex] = Simplex()
    draw_per: ClassVar[str] = "batch"
    draw_layers: ClassVar[str] = "shared"
    head_subspace: ClassVar[bool] = True
    match_sampled: ClassVar[bool] = False
    cosine_weight: ClassVar[float] = 0.0

    def subspace(self, num_vertices: int) -> PrefixSubspace:
        from handful.methods.prefix_subspace import PrefixSubspace

        return PrefixSubspace(num_vertices=num_vertices, **self.settings())

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PrefixAdapter:
        return PrefixAdapter(backbone, task, self, generator=generator)


@final
class PrefixAdapter(AbstractHeadedAdapter):
    """scores = head(features(x; Σ w θ); Σ u φ), for M = 1 with the one prefix θ and the one head φ."""

    def __init__(self, backbone: Backbone, task: Task, method: Prefix | PrefixSubspace, *, generator: torch.Generator):
        simplex = method.simplex
        head_simplex = simplex if method.head_subspace else None
        super().__init__(backbone, task, generator=generator, head_init=method.head_init, head_simplex=head_simplex)
        self.method, self.simplex = method, simplex
        self.sites = chosen_sites(backbone, method.layers)
        backbone.packs = True
        self.shift = shifts_positions(backbone, method.positions)
        self.reserved_positions = method.prefix_length if self.shift else 0
        self.lowest_layer = min(site.layer for site in self.sites)
        scale = ((self.num_vertices + 1) / 2) ** 0.5 if method.match_sampled else 1.0
        self.prefix = KeyValuePrefix(
            self.sites,
            method.prefix_length,
            self.num_vertices,
            form=method.form,
            init_std=method.init_std * scale,
            generator=generator,
        )

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        self.backbone.injection.clear()  # the probe reads the plain model, whatever was predicted before
        super().warm_start(rows, generator)
        if self.method.init == "activations":
            length = self.method.prefix_length
            self.prefix.start_from_activations(
                sample_activations(self.backbone, rows, self.sites, self.num_vertices, length, generator)
            )
        warn_if_degenerate(self.prefix())

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        rows = len(batch) if self.method.draw_per == "observation" else 1
        layers = len(self.sites)
        shape = (rows, layers) if self.method.draw_layers == "per-layer" else (rows, 1)
        weights = self.simplex.draw(shape, generator).expand(rows, layers, self.num_vertices)
        heads = self.head.simplex.draw((rows,), generator)
        paired = self.training and self.method.cosine_weight and self.num_vertices > 1
        return Draw({"prefix": weights, "head": heads}, {"pair": self.simplex.draw_pair(generator)} if paired else {})

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        point, shared = self.simplex.point(vertex, weights), self.head.simplex != self.simplex
        head = self.head.simplex.midpoint if shared else point
        return Draw({"prefix": point.expand(1, len(self.sites), -1), "head": head[None]})

    def install(self, batch: Batch, draw: Draw) -> None:
        inject(self.backbone, self.sites, self.mixed(draw.rows["prefix"]), self.shift)

    def mixed(self, weights: torch.Tensor) -> torch.Tensor:
        """The prefixes (L, B or 1, 2, H, P, d) at the weights (B or 1, L, M)."""
        vertices = self.prefix()
        return vertices[0].unsqueeze(1) if self.num_vertices == 1 else mix_layers(weights, vertices)

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        if draw is None or "pair" not in draw.shared:
            return None
        return self.method.cosine_weight * squared_cosine([self.prefix()], draw.shared["pair"])

    def folded_prefix(self) -> torch.Tensor:
        """The prefix (L, 2, H, P, d) of the deterministic predictor."""
        return self.mixed(self.at().rows["prefix"])[:, 0].detach()

    def fold(self, product: Product) -> Any:
        return fold_prefix(KeyValues(self.folded_prefix(), self.sites, self.shift), product)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        if self.num_vertices == 1:
            return {}
        first, second = torch.triu_indices(self.num_vertices, self.num_vertices, 1).tolist()
        vertices = [self.prefix()]
        cosines = [float(squared_cosine(vertices, pair)) for pair in zip(first, second, strict=True)]
        return {"spread": spread(vertices), "squared_cosine": sum(cosines) / len(cosines)}

    def detach(self) -> None:
        super().detach()
        self.backbone.injection.clear()
        self.backbone.packs = False


def inject(backbone: Backbone, sites: list[AttentionSite], prefix: torch.Tensor, shift: bool) -> None:
    """Set the prefix (L, B or 1, 2, H, P, d) on these sites for the coming forwards."""
    keys_values: list = [(None, None)] * len(backbone.injection.sites)
    for site, layer in zip(sites, prefix, strict=True):
        keys_values[site.index] = (layer[:, 0], layer[:, 1])
    backbone.install(partial(backbone.injection.set, keys_values, shift_positions=shift))


def warn_if_degenerate(vertices: torch.Tensor) -> None:
    """Warns when two vertices coincide: the simplex then stays nearly a point."""
    flat = vertices.detach().flatten(1).cpu()  # pdist is not on every device (mps)
    if len(flat) > 1 and float(torch.pdist(flat).min()) < 1e-6 * float(flat.norm(dim=1).max()):
        warnings.warn("two vertices of the simplex are identical; they will hardly separate in training", stacklevel=2)
