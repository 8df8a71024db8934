"""What a method is: a frozen dataclass of hyperparameters that attaches an adapter to a backbone.

`Method.attach(backbone, task, generator=...)` returns an `AbstractAdapter`, an ordinary `nn.Module` whose
parameters are exactly what is trained, counted and saved.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import nn

from handful.errors import ConfigError, in_words, shown
from handful.methods import METHODS, package_at
from handful.methods.search_space import SearchSpace
from handful.methods.settings import check_settings, convert_settings, default_of, settings_model
from handful.methods.settings import setting as setting  # here too: it is what the file of a method needs
from handful.methods.simplex import Simplex

if TYPE_CHECKING:
    from handful.backbone.load import Backbone
    from handful.data.batching import Batch, EncodedRows
    from handful.data.task import Task
    from handful.methods.exports import Exports, Product
    from handful.methods.gates.budget import Budget


@dataclass(frozen=True)
class Preset:
    """A named choice of settings; data, never code. `reason` says where it comes from.

    `settings` are the method's fields, `training` those of `TrainingConfig`, `run` the split's and pooling; `writing`
    takes the place of `training`'s values where texts are written.
    """

    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    writing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AbstractMethod(ABC):
    """Base of all methods. Subclasses are final frozen dataclasses whose fields are the hyperparameters."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    presets: ClassVar[Mapping[str, Preset]]
    writes: ClassVar[bool] = True
    """Whether it can be put on a language model, to write texts."""
    shares_tasks: ClassVar[bool] = False
    """Whether it tells many tasks apart, so that it can learn them at once."""
    weighs_rows: ClassVar[bool] = True
    """Whether rows and classes can count differently in its training."""
    export_format: ClassVar[str] = "peft"
    """The format to propose for what it trains."""
    added: ClassVar[tuple[str, ...]] = ()
    """Settings that runs from before they were there do not have: at their default they are no part of a run's key."""
    has_budget: ClassVar[bool] = False
    """Whether its setting `target_sparsity` is a share of the model that goes, as `budget` divides it."""
    search_space: ClassVar[SearchSpace] = {}
    """What a search varies, by dotted name, unless it is told otherwise; empty: nothing is worth it."""
    former: ClassVar[Mapping[str, str]] = {}
    """Settings that the method once had, and what to use instead, for errors."""

    def __post_init__(self) -> None:
        convert_settings(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]):
        """The method with these fields set; all wrong names, types and ranges are reported at once."""
        return cls(**check_settings(cls, settings))

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> AbstractMethod:
        """The method of a run's record, whose settings may be from before one was renamed or moved."""
        return cls.from_settings(settings)

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """Name and settings as they go into a run's key: it stays the same where a setting is added or renamed."""
        return {"name": self.name, **self.settings()}

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        """Reasons why this method cannot work on this backbone and task; empty when it can."""
        del backbone, task
        return []

    def exports(self, backbone: Backbone | str) -> Exports:
        """What an export can be made of on a backbone or a family; see `handful.methods.exports`. By default nothing.

        The adapter's `fold` makes what is named here.
        """
        del backbone
        return {}

    def subspace(self, num_vertices: int) -> AbstractMethod:
        """The same with a simplex of M = `num_vertices`. Raises: ConfigError for a method that has none."""
        if "num_vertices" in {f.name for f in fields(self)}:
            return replace(self, num_vertices=num_vertices)  # pyright: ignore[reportCallIssue]
        raise ConfigError(
            f"method {self.name!r} has no simplex",
            "it would need a setting num_vertices; docs/guides/method.md shows how a method gets one",
        )

    def budget(self, backbone: Backbone, share: float) -> Budget:
        """The units and heads of each block that go where this share of the gateable parameters does.

        Raises: ConfigError where the method has no budget, or the model none for its settings.
        """
        raise ConfigError(f"method {self.name!r} has no budget: it removes nothing, {share:g} of the model was asked")

    @abstractmethod
    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> AbstractAdapter:
        """A freshly initialised adapter on the backbone; every random number comes from `generator`."""


def path_of(cls: type) -> str:
    """Where a method's class is, "module:class"."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_ours(cls: type[AbstractMethod]) -> bool:
    """Whether its name alone says which class it is."""
    return METHODS.get(cls.name) == path_of(cls)


def code_of(cls: type[AbstractMethod]) -> list[str]:
    """What of another package's class decides a run besides its settings: its package with the version, and a digest of
    the file that it is in, or in a session of the class. Without them a class that was changed would open the run of
    the old one.
    """
    found = [package_at(path_of(cls))]
    for source in (inspect.getmodule(cls), cls):
        with suppress(OSError, TypeError):  # typed in by hand
            found.append(hashlib.sha256(inspect.getsource(source or cls).encode()).hexdigest())
            break
    return [known for known in found if known]


def check_class(cls: object, where: str = "") -> None:
    """Raises: ConfigError where a class is no method; `where` says in the error which one is meant."""
    where = where or f"method {getattr(cls, '__name__', cls)}"
    base = "a class derived from handful.methods.base.AbstractMethod"
    if not (inspect.isclass(cls) and issubclass(cls, AbstractMethod)):
        raise ConfigError(f"{where}: expected {base}, found {shown(cls)}", "docs/guides/method.md shows a whole method")
    problems = []
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        problems.append(f"expected all abstract methods implemented, found none of {', '.join(missing)}")
    if "__dataclass_fields__" not in vars(cls):
        problems.append("expected the decorator @dataclass(frozen=True), found none")
    for name in ("name", "summary", "source"):
        if not (isinstance(value := getattr(cls, name, None), str) and value.strip()):
            problems.append(f"expected a class attribute {name!r} with a text, found {shown(value)}")
    presets = getattr(cls, "presets", None)
    if not (isinstance(presets, Mapping) and isinstance(presets.get("default"), Preset)):
        problems.append(f"expected a class attribute 'presets' with a Preset 'default', found {shown(presets)}")
    if not problems:
        reserved = sorted({"name"} & {f.name for f in fields(cls)})
        problems += [f"expected another name for the setting {name!r}, which run.json needs" for name in reserved]
        problems += [f"expected a default for {f.name!r}, found none" for f in fields(cls) if default_of(f) is ...]
        try:
            settings_model(cls)
        except (ConfigError, NameError, TypeError) as error:  # annotations are only read here
            problems.append(in_words(error))
    if problems:
        raise ConfigError(f"{where} is no complete method:\n  " + "\n  ".join(problems), f"see `{base.split()[-1]}`")


def check_object(method: AbstractMethod) -> None:
    """Raises: ConfigError where a run of this method could not be saved and loaded again."""
    cls = type(method)
    check_class(cls)
    if "<" in cls.__qualname__:
        raise ConfigError(
            f"method {cls.name!r}: expected a class at the top of a module, found {path_of(cls)}",
            "a saved run finds the class again by its module and name: move it out of the function",
        )
    try:
        stored = json.loads(json.dumps(method.settings(), allow_nan=False))
        again = cls.from_settings(stored)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"method {cls.name!r}: its settings cannot be saved as JSON: {in_words(error)}",
            "settings are numbers, texts, booleans, None, and tuples, lists or dicts of these",
        ) from None
    if again != method:
        raise ConfigError(
            f"method {cls.name!r}: its settings, saved as JSON, make another method: {shown(again)}",
            "annotate each field with the type that it has, such as tuple[int, ...]",
        )


@final
@dataclass(frozen=True)
class Draw:
    """What one forward of a batch uses: a point of the simplex, noise. A value, which no adapter remembers.

    `rows` are drawn for every row: tensors (B, …), or (1, …) for all rows alike. `shared` belongs to the whole batch.
    `draw[rows]` is the draw of a part of the batch: processes and threads that share a batch use that of the whole.
    """

    rows: Mapping[str, torch.Tensor] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, rows: slice) -> Draw:
        cut = {name: tensor if len(tensor) == 1 else tensor[rows] for name, tensor in self.rows.items()}
        return replace(self, rows=cut)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own: `rate` times that of the head where `name` is "head", else of
    the adapter. Weight decay can be left away.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    decays: bool = True


class AbstractAdapter(nn.Module, ABC):
    """What a method adds to a backbone. Its parameters are exactly what is trained, counted and saved.

    `forward(batch, draw)` returns the scores (B, C): logits, or for regression the standardised prediction. The
    hooks do nothing by default. One that changes the model itself calls `backbone.sharing.claim(self)` first: no other
    can be on it until `detach`. The backbone is held, not registered: it is no part of the state dict.
    """

    simplex: Simplex = Simplex()
    """What points are drawn from; one vertex means that nothing is drawn."""

    lowest_layer: int | None = None
    """The lowest layer whose computation the adapter changes: below it the trunk may be computed once and
    kept. `backbone.num_layers` means that only the head is trained; None that nothing may be kept."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        backbone.sharing.check(self)

    backbone: Backbone
    method: Any
    """The method that made it, an `AbstractMethod`; a run sets it where the adapter itself does not."""

    probes_start: bool = False
    """Whether `warm_start` looks through the parameters that the run starts from."""

    reserved_positions: int = 0
    """Positions of the backbone that rows cannot use, because the adapter takes them or moves the rows along."""

    label_threshold: float = 0.5
    """Of several labels per text, those of a larger probability are predicted. A run sets it."""

    notes: Sequence[str] = ()
    """What was chosen for the user, or should be said about what was trained."""

    @property
    def num_vertices(self) -> int:
        """Vertices of the adapter's simplex."""
        return self.simplex.num_vertices

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        """What a forward of this batch uses at random: points of the simplex, and in training mode noise."""
        del batch, generator
        return self.at()

    def at(self, *, vertex: int | None = None, weights: torch.Tensor | None = None) -> Draw:
        """The draw of one place of the simplex, for batches of any size: a vertex, the point of these weights (M,), or
        the deterministic predictor (midpoint). Without noise.
        """
        del vertex, weights
        return Draw()

    @abstractmethod
    def forward(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        """The scores (B, C) of a batch with what was drawn for it; at the midpoint without a draw."""

    def generate(self, batch: Batch, draw: Draw | None = None, **options: Any) -> torch.Tensor:
        """The tokens (B, T) that a language model writes through the adapter; see `Backbone.generate`."""
        raise ConfigError(f"{type(self).__name__} generates no texts", "use a method whose `writes` is true")

    def target_scores(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        """Scores (B, C) to predict with: calibrated logits, or regression in the targets' own units."""
        return self(batch, draw)

    def calibrate(self, temperature: float) -> None:
        """Divide the logits of `target_scores` by a temperature from now on."""

    def standardise(self, targets: torch.Tensor) -> torch.Tensor:
        """Regression targets (B,) in the units of `forward`."""
        return targets

    def carry(self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """What of another run's weights this adapter starts from, under its own parameters' names.

        `record` is that run's `run.json`, empty for weights that are not of a run.
        """
        del record
        return weights

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        """Initialise from training rows (a probe's weights, activations) before the first step."""

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        """A term added to the loss of the batch whose forward was just computed with this draw, or None."""
        del draw
        return None

    settled: bool = True
    """False as long as the adapter is on its way to what is asked of it: no such state is kept as the best."""

    def begin_training(self, steps: int, rows: EncodedRows) -> None:
        """Called once before the first step, or before training continues, with all its steps and rows."""

    def after_step(self, step: int) -> None:
        """Called after every optimiser step, counted from 1."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every parameter once, in groups that may have learning rates of their own."""
        head = [p for n, p in self.named_parameters() if n.startswith("head.")]
        rest = [p for n, p in self.named_parameters() if not n.startswith("head.")]
        return [ParameterGroup(name, group) for name, group in (("adapter", rest), ("head", head)) if group]

    def diagnostics(self) -> dict[str, float]:
        """Numbers worth logging at every evaluation, such as the spread of the vertices."""
        return {}

    def fold(self, product: Product) -> Any:
        """The product, of the deterministic predictor; one of those that the method's `exports` names.

        Raises: ConfigError where that cannot be.
        """
        raise ConfigError(f"this adapter has no {product} to export", "a method names what it has in `exports`")

    def report(self) -> dict[str, Any]:
        """What belongs into the record of a run besides its score, as plain JSON values."""
        return {}

    @abstractmethod
    def detach(self) -> None:
        """Take everything off the backbone again and restore it bit for bit. Idempotent.

        Those that change the backbone call this one too, once it is restored.
        """
        self.backbone.installed = None  # which holds what was drawn last
        self.backbone.sharing.release(self)


class BorrowedParameters(nn.Module):
    """Parameters of the backbone that an adapter trains in place, restorable bit for bit.

    The tensors are the backbone's own (same objects); dots in their names become "__" because parameter names
    may not contain them.
    """

    def __init__(self, model: nn.Module, select: Callable[[str, nn.Parameter], bool]):
        super().__init__()
        self._originals: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            if select(name, parameter):
                self._originals[name] = parameter.detach().clone()
                self.register_parameter(name.replace(".", "__"), parameter.requires_grad_(True))  # type: ignore[arg-type]

    @contextmanager
    @torch.no_grad()
    def originals(self) -> Iterator[None]:
        """Within it, the parameters have their original values."""
        trained = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        for name, original in self._originals.items():
            self.get_parameter(name.replace(".", "__")).copy_(original)
        try:
            yield
        finally:
            for name, value in trained.items():
                self.get_parameter(name).copy_(value)

    def restore(self) -> None:
        """Put the original values back and freeze them."""
        with torch.no_grad():
            for name, original in self._originals.items():
                parameter = self.get_parameter(name.replace(".", "__"))
                parameter.requires_grad_(False).copy_(original)
                parameter.grad = None
