"""Poly, Poly-mu and Poly-S: many tasks share an inventory of skills, of which each task learns which to use.

Idea: S small adapters ("skills") for every matrix are trained on many tasks at once, each task mixing them by its own
weights; a new task starts from that inventory. Formula (LoRA skills, q splits, rank r): A_t = ⊕_h Σ_s w_ths A_hs along
the inputs, B_t = ⊕_h Σ_s w_ths B_hs along the outputs, y = W x + b + (α/r) (x A_t) B_t with w_th = σ(z_th) / Σ σ(z_th):
the average of factors, so that every task is one LoRA of rank r. q = 1 is Poly, q > 1 is Poly-S (multi-head routing).
Trained: Σ S r (D + O) numbers and routing R·T·q·S for R routers and T tasks; adapting to one task: r (D + O) a matrix
("mu"), R·q·S ("z"), or both kinds with S skills ("full"). Inference: that of LoRA, or nothing once it is merged.
Source: Ponti et al. 2022 (Polytropon, arXiv 2202.13914) and Caccia et al. 2023 (multi-head routing, arXiv 2211.03831,
of which we know the abstract and constants of the code). Deviations: skills are averaged before they are trained on as
"mu", which is the same function with 1/S of the numbers; softmax of log σ(z) instead of σ(z) / (Σ σ(z) + 1e-12);
prefixes as skills, and the head for many label sets (`label_text`), are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import gcd
from typing import Annotated, ClassVar, Literal, final

import torch

from handful.backbone.blocks import inputs, outputs
from handful.backbone.families import family_of
from handful.backbone.load import Backbone
from handful.data.mixture import Mixing
from handful.data.task import Task
from handful.errors import ConfigError
from handful.methods.base import AbstractMethod, Preset, setting
from handful.methods.exports import Exports
from handful.methods.head import HEAD_INIT, HeadInit
from handful.methods.poly.adapter import PolyAdapter
from handful.methods.poly.routing import Gate, Sharing
from handful.methods.poly.skills import SkillKind, chosen_matrices
from handful.methods.prefix import check_prefix, prefix_exports
from handful.methods.search_space import EPOCHS, OneOf, SearchSpace, around
from handful.methods.targets import Targets, check_targets

Routing = Literal["learned", "shared", "private", "expert", "hypernetwork"]
Adapt = Literal["mu", "z", "full"]

_OF_GATES = ("ibp_weight", "sparsity_weight", "information_weight")
"""Settings that weigh what the gates of a learned routing are pressed to."""

_PONTI = "Ponti et al. 2022"
_CACCIA = "Caccia et al. 2023, their code"


@final
@dataclass(frozen=True)
class Poly(AbstractMethod):
    """An inventory of skills and a learned routing."""

    name: ClassVar[str] = "poly"
    summary: ClassVar[str] = "Poly: an inventory of skills for many tasks, each mixing them by its own routing"
    source: ClassVar[str] = "Ponti et al. 2022; Caccia et al. 2023"
    shares_tasks: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "ours: three rates tried on pools with MiniLM, two with flan-t5-small for writing (docs/experiments.md)",
            training={"learning_rate": 5e-4, "head_learning_rate": 1e-3},
            writing={"learning_rate": 2e-3},
        ),
        "pretrain": Preset(
            "ours, for many tasks at once: three rates tried on pools with MiniLM, two with flan-t5-small for writing "
            "(docs/experiments.md)",
            training={"learning_rate": 5e-4, "head_learning_rate": 1e-3, "epochs": 5, "batch_size": 32},
            run={"dev": "carved", "dev_fraction": 0.1},
            writing={"learning_rate": 2e-3},
        ),
        "polytropon": Preset(
            "the paper's pre-training; its number of skills was chosen on validation tasks",
            {"gate": "gumbel", "rank": 16, "alpha": 1.0},
            {"learning_rate": 1e-3, "epochs": 30, "batch_size": 32, "warmup": 0.06},
        ),
        "mhr": Preset(
            "the authors' final recipe for T0, with AdamW for Adafactor; q must divide all widths",
            {"gate": "sigmoid", "rank": 1, "alpha": 1.0, "num_splits": 64, "target_modules": "all-linear"},
            {"learning_rate": 1e-3, "batch_size": 16, "warmup": 0.06, "gradient_clip": 1.0},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "training.learning_rate": around(1e-4, 5e-4, 5e-3),
        "training.epochs": EPOCHS,
        "method.adapt": OneOf(("mu", "full"), "the two ways with a full adapter (docs/methods/poly.md)"),
    }

    skills: Annotated[SkillKind, setting("what a skill is: LoRA, IA3 on outputs, or a prefix (ours)")] = "lora"
    num_skills: Annotated[int, setting("skills S", source=_CACCIA, ge=1, le=128)] = 8
    num_splits: Annotated[
        int,
        setting("splits q of every matrix, each with weights of its own; 1 is Poly", source=_CACCIA, ge=1),
    ] = 1
    rank: Annotated[int, setting("rank r of a LoRA skill", ge=1, le=1024)] = 8
    alpha: Annotated[float, setting("LoRA's update is scaled by alpha / rank; the papers' is 1", gt=0)] = 16.0
    prefix_length: Annotated[
        int, setting("virtual keys and values per layer of a prefix skill", unit="positions", ge=1)
    ] = 10
    target_modules: Annotated[
        Targets, setting("ends of layer names, or 'all-linear'; auto: query, key, value and output of attention")
    ] = "auto"
    routing: Annotated[
        Routing,
        setting(
            "learned; or all skills shared (S = 1), one per task, by experts, or made by a net",
            source=_PONTI,
        ),
    ] = "learned"
    gate: Annotated[Gate, setting("gates of a learned routing: noisy, soft or hard", source=_CACCIA)] = "sigmoid"
    noise: Annotated[
        Literal["per-example", "per-task"], setting("gate noise is drawn for each example, or for each task of a batch")
    ] = "per-example"
    sharing: Annotated[
        Sharing, setting("a router for each matrix, block part, layer, coder, or one", source=_CACCIA)
    ] = "fine"
    experts: Annotated[
        tuple[tuple[str, ...], ...], setting("with routing = 'expert': names of the tasks that share a skill")
    ] = ()
    adapt: Annotated[
        Adapt,
        setting(
            "a single task trains the average skill, only its routing, or skills and routing",
            source=_CACCIA,
        ),
    ] = "mu"
    routing_rate: Annotated[float, setting("learning rate of the routing, as a multiple", source=_PONTI, gt=0)] = 100.0
    uniform_share: Annotated[
        float,
        setting("last share of training in which weights are led to 1/S", source=_CACCIA, ge=0, lt=1),
    ] = 0.0
    ibp_weight: Annotated[float, setting("Indian buffet prior on the gates", source=_PONTI, ge=0)] = 0.0
    sparsity_weight: Annotated[float, setting("L1 on gates beyond one free skill", source=_CACCIA, ge=0)] = 0.0
    information_weight: Annotated[float, setting("gates decided for a task, open over all", source=_CACCIA, ge=0)] = 0.0
    orthogonality_weight: Annotated[float, setting("squared cosines between skills", source=_CACCIA, ge=0)] = 0.0
    unknown_task: Annotated[
        Literal["refuse", "average"], setting("texts for a task without routing: an error, or by the average skill")
    ] = "refuse"
    mixing: Annotated[Mixing, setting("share of the draws of a task of n rows: n, n^(1/temperature), or the same")] = (
        "size"
    )
    mixing_temperature: Annotated[float, setting("temperature of the mixing", gt=0)] = 2.0
    head_init: Annotated[HeadInit, setting(HEAD_INIT)] = "soft-probe"
    head_start: Annotated[
        Literal["label-text", "probe"],
        setting(
            "the head of a task that starts from an inventory: from its labels' texts, where all have letters, or "
            "head_init through skills"
        ),
    ] = "label-text"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if self.num_splits > 1 and (self.skills == "prefix" or self.routing == "hypernetwork"):
            problems.append("num_splits: prefixes and hypernetworks have one split")
        if (self.routing == "expert") != bool(self.experts):
            problems.append("experts: goes with routing = 'expert', and that with it")
        problems += self._meaningless(
            (self.skills != "lora", ("rank", "alpha"), f"skills = {self.skills!r} has none"),
            (self.skills == "prefix", ("target_modules",), "prefixes are on every layer"),
            (self.skills != "prefix", ("prefix_length",), "goes with skills = 'prefix'"),
            (self.routing != "learned", ("gate", "noise", *_OF_GATES), f"routing = {self.routing!r} has no gates"),
            (self.gate != "gumbel", ("noise",), "goes with gate = 'gumbel'"),
        )
        if problems:
            raise ConfigError("method: " + "; ".join(problems), "change one of the two")

    def _meaningless(self, *rules: tuple[bool, tuple[str, ...], str]) -> list[str]:
        """What is set, but would be ignored: of each rule that holds, the settings with other values than presets'."""
        usual = {field.name: [field.default] for field in fields(self)}
        for preset in self.presets.values():
            for name, value in preset.settings.items():
                usual[name].append(value)
        return [
            f"{name} = {getattr(self, name)!r}: {why}"
            for holds, names, why in rules
            for name in names
            if holds and getattr(self, name) not in usual[name]
        ]

    def _misplaced(self, single: bool) -> list[str]:
        """What is set, but would be ignored on a single task, or on many; what an inventory hands down may be."""
        alone, one = "goes with many tasks", "is for a single task that starts from an inventory"
        unrouted = (*_OF_GATES, "noise", "orthogonality_weight") + ("routing",) * (self.routing == "hypernetwork")
        return self._meaningless(
            (not single, ("head_start",) + ("adapt",) * (self.adapt == "z"), one),  # "full" is what many tasks do
            (single, ("mixing", "mixing_temperature", "uniform_share", "unknown_task", "experts"), alone),
            (single and self.routing in ("private", "expert"), ("routing",), alone),
            (single and self.adapt == "mu", unrouted, "adapt = 'mu' trains one skill and no routing"),
        )

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        names = [member.name for member in task.members] or [task.name]
        reasons = self._misplaced(single=not task.members)
        reasons += _wrong_experts(self.experts, names) if task.members else []
        if task.members and not task.objective.generates and self.unknown_task == "average":
            reasons.append("unknown_task: labels of a task that is not known cannot be scored; leave it at 'refuse'")
        if self.skills == "prefix":
            return reasons + check_prefix(backbone, None, "auto", self.prefix_length)
        targets = self.target_modules
        if targets not in ("auto", "all-linear"):
            reasons += check_targets(backbone, (targets,) if isinstance(targets, str) else targets)
        matrices = self.matrices(backbone)
        if not matrices:
            return [*reasons, "target_modules: none found"]
        reasons += _wrong_splits(backbone, matrices, self.num_splits, both=self.skills == "lora")
        return reasons + (_read_positions(backbone, matrices) if task.members or self.gate == "gumbel" else [])

    def matrices(self, backbone: Backbone) -> list[str]:
        """Names of the layers that get skills."""
        return chosen_matrices(backbone, self.target_modules)

    def exports(self, backbone: Backbone | str) -> Exports:
        if self.skills == "prefix":
            return prefix_exports(backbone, self.prefix_length)
        return {"peft state": None, "merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> PolyAdapter:
        return PolyAdapter(backbone, task, self, generator=generator)


def _wrong_experts(experts: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    named = [name for group in experts for name in group]
    wrong = [f"experts: no task is called {name!r}" for name in named if name not in names]
    wrong += [
        f"experts: task {name!r} has {named.count(name)} experts"
        for name in names
        if experts and named.count(name) != 1
    ]
    return wrong


def _read_positions(backbone: Backbone, matrices: Sequence[str]) -> list[str]:
    """A reason where a layer also reads embeddings of positions, once for all rows: it cannot differ between rows."""
    leaves = {name.rpartition(".")[2] for name in matrices}
    shared = sorted(leaves & {"query_proj", "key_proj", "pos_query_proj", "pos_key_proj"})
    if not family_of(backbone.family).reads_positions or not shared:
        return []
    return [
        f"target_modules: {', '.join(shared)} of {backbone.family} also read positions, which are of no row and so of "
        "no task; take ['value_proj', 'output.dense']"
    ]


def _wrong_splits(backbone: Backbone, matrices: Sequence[str], splits: int, *, both: bool) -> list[str]:
    """A reason where the splits do not divide the widths of all layers."""
    modules = [backbone.model.get_submodule(name) for name in matrices]
    widths = [outputs(module) for module in modules] + ([inputs(module) for module in modules] if both else [])
    common = gcd(*widths)
    if common % splits == 0:
        return []
    divisors = ", ".join(str(number) for number in range(1, min(common, 256) + 1) if common % number == 0)
    return [f"num_splits: {splits} does not divide the layers' widths {sorted(set(widths))}; these do: {divisors}"]
