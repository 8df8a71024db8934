"""A simplex of whatever another method trains: M copies of its parameters, of which each batch draws one point.

Idea: that of prefix subspaces, for adapters whose numbers cannot differ between the rows of a batch: LoRA, IA3, biases,
PEFT's own. Formula: θ = Σᵢ wᵢ θᵢ with w ~ Dir(1_M) for each batch, and for each row a head φ = Σᵢ uᵢ φᵢ with
u ~ Dir(1_M). Trained: M times the numbers of the method. Inference at the midpoint: that of the method.

LoRA's factors are mixed, and not their products: ΔW(w) = (α/r)·(Σᵢ wᵢ Bᵢ)·(Σⱼ wⱼ Aⱼ). Then every point is a LoRA of
rank r, and the midpoint (α/r)·B̄·Ā is one that stock PEFT loads. The mean of products, (α/r)·(1/M)·Σᵢ Bᵢ Aᵢ, is linear
in w but of rank M·r: a checkpoint M times as large, which no point but a vertex has in common with the method. What the
two differ by, (1/M)·Σᵢ (Bᵢ − B̄)(Aᵢ − Ā), is in the loss that training sees, since it sees points between vertices.
Source: Wortsman et al. 2021; Falissard et al. 2023; for adapters other than prefixes ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, final

import torch
from torch import nn

from handful.data.batching import Batch, EncodedRows
from handful.methods.base import AbstractAdapter, AbstractMethod, Draw, ParameterGroup, setting
from handful.methods.exports import Product
from handful.methods.head import AbstractHeadedAdapter, LinearHead
from handful.methods.simplex import Simplex, mix, spread

Vertices = Annotated[int, setting("vertices M of a simplex of all that is trained, a point per batch", ge=1, le=16)]
"""The field `num_vertices` of a method whose `attach` ends in `spread_out`."""

SPREAD = 0.05
"""Standard deviation between vertices at the start, where the method's start is the same for all: as a share of the
root mean square of each tensor. A tensor of zeros stays as it is."""


def spread_out(make: Callable[[], AbstractHeadedAdapter], num_vertices: int, generator: torch.Generator) -> Any:
    """The adapter that `make` attaches; with two vertices or more a simplex of such adapters."""
    return make() if num_vertices == 1 else SubspaceAdapter(make, Simplex(num_vertices), generator)


@final
class SubspaceAdapter(AbstractHeadedAdapter):
    """scores = head(features(x; Σ w θ); Σ u φ) for the adapter that `make` attaches, whose parameters are the θ.

    That adapter stays on the backbone. Where its parameters stand in modules, a forward puts the mixed tensors, which
    stay there until the backward pass is over: `train` and `eval` take them out again.
    """

    def __init__(self, make: Callable[[], AbstractHeadedAdapter], simplex: Simplex, generator: torch.Generator):
        starts = []
        for vertex in range(simplex.num_vertices):
            inner = make()
            starts.append({name: p.detach().clone() for name, p in _trained(inner).items()})
            if vertex < simplex.num_vertices - 1:
                inner.detach()
        backbone = inner.backbone  # pyright: ignore[reportPossiblyUnboundVariable]: there is a vertex
        backbone.sharing.release(inner)
        AbstractAdapter.__init__(self, backbone)  # head, pooler and all else are the inner adapter's
        backbone.sharing.claim(self)
        object.__setattr__(self, "inner", inner)  # held, not registered: its parameters are those of a vertex
        self.method, self.simplex, self.pooler = inner.method, simplex, None
        self.objective, self.labels, self.head_init = inner.objective, inner.labels, inner.head_init
        self.lowest_layer, self.reserved_positions = inner.lowest_layer, inner.reserved_positions
        self.notes = inner.notes
        self._places = [_Place(inner, parameter) for parameter in _trained(inner).values()]
        self.vertices = nn.ParameterDict()
        for name in starts[0]:  # one by one: made of a dict they would be sorted
            self.vertices[name.replace(".", "__")] = nn.Parameter(torch.stack([start[name] for start in starts]))
        self.constants = nn.Module()
        constants = {name: tensor for name, tensor in inner.named_buffers() if not name.startswith("head.")}
        self._constant_places = [_Place(inner, tensor) for tensor in constants.values()]
        for name, tensor in constants.items():
            self.constants.register_buffer(name.replace(".", "__"), tensor)
        if isinstance(inner.head, LinearHead):
            outputs, width = inner.head.weight.shape[1:]
            inner.head = LinearHead(width, outputs, simplex)
            inner.head.initialise(generator)
        self.head = inner.head
        for place in self._places:
            place.tensor.requires_grad_(False)
        if inner.pooler is not None:
            inner.pooler.restore()  # its values are vertices now

    inner: AbstractHeadedAdapter
    method: Any

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        point = self.simplex.draw((), generator)
        return Draw({"head": self.head.simplex.draw((len(batch),), generator)}, {"point": point})

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        point = self.simplex.point(vertex, weights)
        return Draw({"head": point[None]}, {"point": point})

    def install(self, batch: Batch, draw: Draw) -> None:
        tensors = [mix(draw.shared["point"], vertices) for vertices in self.vertices.values()]
        tensors += self.constants.buffers()  # which may be on another device by now
        self.inner.install(batch, self.inner.at())
        self.backbone.install(partial(_put, [*self._places, *self._constant_places], tensors))

    def features(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        with self._mixed(batch, draw):
            return self.inner.features(batch)

    def generate(self, batch: Batch, draw: Draw | None = None, **options: Any) -> torch.Tensor:
        with self._mixed(batch, draw):
            return self.inner.generate(batch, **options)

    def _clear(self) -> None:
        _put(self._places, [place.tensor for place in self._places])

    @contextmanager
    def _mixed(self, batch: Batch, draw: Draw | None) -> Iterator[None]:
        """Within it the model has the mixed tensors; behind it too, where a backward pass needs them."""
        self.install(batch, draw or self.at())
        try:
            yield
        except BaseException:
            self._clear()
            raise
        if not torch.is_grad_enabled():
            self._clear()

    def train(self, mode: bool = True) -> SubspaceAdapter:
        self._clear()
        self.inner.train(mode)
        return super().train(mode)

    @torch.no_grad()
    def _set(self, values: Iterable[torch.Tensor]) -> AbstractHeadedAdapter:
        """The inner adapter by itself, its parameters with these values."""
        self._clear()
        for place, value in zip(self._places, values, strict=True):
            place.tensor.copy_(value)
        return self.inner

    @torch.no_grad()
    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        """Start from rows as the method does, once for each vertex where that changes more than the head."""
        before = [place.tensor.clone() for place in self._places]
        for vertex in range(self.num_vertices):
            values = [vertices[vertex].clone() for vertices in self.vertices.values()]
            self._set(values).warm_start(rows, generator)
            found = [place.tensor for place in self._places]
            if all(torch.equal(*pair) for pair in zip(found, values, strict=True)):
                break
            for vertices, value in zip(self.vertices.values(), found, strict=True):
                vertices[vertex] = value
        self._set(before)
        self._separate(generator)

    @torch.no_grad()
    def _separate(self, generator: torch.Generator) -> None:
        """Noise between vertices that start at the same place: they would hardly move apart."""
        for vertices in self.vertices.values():
            if bool((vertices == vertices[:1]).all()):
                noise = torch.randn(vertices.shape, generator=generator).to(vertices)
                vertices.add_(noise * SPREAD * vertices.square().mean().sqrt())

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        return self.inner.penalty()

    def parameter_groups(self) -> list[ParameterGroup]:
        self._clear()
        own = {id(p.tensor): v for p, v in zip(self._places, self.vertices.values(), strict=True)}
        groups = self.inner.parameter_groups()
        return [replace(g, parameters=[own.get(id(p), p) for p in g.parameters]) for g in groups]

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        return {"spread": spread(list(self.vertices.values()) or [self.head.weight])}

    @torch.no_grad()
    def fold(self, product: Product) -> Any:
        return self._set(mix(self.simplex.midpoint, vertices) for vertices in self.vertices.values()).fold(product)

    def detach(self) -> None:
        self._clear()
        self.inner.detach()
        super().detach()


def subspace(method: AbstractMethod, num_vertices: int) -> AbstractMethod:
    """The method with a simplex of M = `num_vertices` of all that it trains.

    Raises: ConfigError for a method that has none.
    """
    return method.subspace(num_vertices)


def _trained(adapter: AbstractHeadedAdapter) -> dict[str, nn.Parameter]:
    """An adapter's parameters without those of its head."""
    return {name: p for name, p in adapter.named_parameters() if not name.startswith("head.")}


@final
class _Place:
    """Where a tensor of an adapter stands: in its own modules, in the backbone's, and in what it holds besides."""

    def __init__(self, adapter: AbstractHeadedAdapter, tensor: torch.Tensor):
        self.tensor = tensor
        held = [value for value in vars(adapter).values() if isinstance(value, nn.Module)]
        modules = {module for root in (adapter, adapter.backbone.model, *held) for module in root.modules()}
        tables: list[dict[str, Any]] = [table for m in modules for table in (m._parameters, m._buffers)]
        self.slots = [(table, name) for table in tables for name, found in table.items() if found is tensor]

    def put(self, tensor: torch.Tensor) -> None:
        """Let every module compute with this tensor."""
        for table, name in self.slots:
            table[name] = tensor


def _put(places: Iterable[_Place], tensors: Iterable[torch.Tensor]) -> None:
    for place, tensor in zip(places, tensors, strict=True):
        place.put(tensor)
