"""The adapter of `poly`: skills on a backbone, routed for the rows of many tasks or for a single one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from handful.backbone.blocks import is_transposed
from handful.backbone.gating import remove_gating
from handful.backbone.load import Backbone
from handful.backbone.low_rank import LowRank, fold_updates
from handful.data.batching import Batch, EncodedRows
from handful.data.task import Task
from handful.errors import ConfigError, DataError
from handful.methods.base import Draw, ParameterGroup
from handful.methods.exports import KeyValues, PeftState, Product
from handful.methods.head import AbstractHeadedAdapter, frozen_features
from handful.methods.label_text import LabelTextHead, has_texts, label_embeddings
from handful.methods.poly.alignment import first_batches, task_alignment
from handful.methods.poly.routing import (
    AbstractRouting,
    FixedRouting,
    HyperRouting,
    LearnedRouting,
    lead_at,
    led,
    logistic_noise,
)
from handful.methods.poly.routing_measures import routing_measures
from handful.methods.poly.skills import (
    AbstractMatrixSkills,
    AbstractSkills,
    LowRankSkills,
    PrefixSkills,
    RescalingSkills,
)
from handful.methods.prefix import fold_prefix, shifts_positions
from handful.methods.targets import lowest_layer

if TYPE_CHECKING:
    from handful.methods.poly.method import Poly


@final
class PolyAdapter(AbstractHeadedAdapter):
    """scores = head(features(x; Σ w_t skills)), for the tasks of a multi-task dataset or for a single one."""

    probes_start = True

    method: Poly

    def __init__(self, backbone: Backbone, task: Task, method: Poly, *, generator: torch.Generator):
        super().__init__(backbone, task, generator=generator, head_init=method.head_init)
        self.method, self.task = method, task
        self.tasks = {member.name: number for number, member in enumerate(task.members)} or {task.name: 0}
        if task.members and not task.objective.generates:
            self.head = LabelTextHead(backbone, task)
        count, splits = self._inventory()
        if method.skills == "prefix":
            self.skills: AbstractSkills = PrefixSkills(backbone, count, method.prefix_length, method.sharing, generator)
            self.reserved_positions = method.prefix_length if shifts_positions(backbone, "auto") else 0
            self.lowest_layer = 0
        else:
            matrices = method.matrices(backbone)
            weights = [backbone.model.get_submodule(name).weight for name in matrices]
            self.lowest_layer = lowest_layer(backbone, weights)  # pyright: ignore[reportArgumentType]
            if method.skills == "ia3":
                self.skills = RescalingSkills(backbone, matrices, method.sharing, (splits, count))
            else:
                shape, scale = (splits, count, method.rank), method.alpha / method.rank
                self.skills = LowRankSkills(backbone, matrices, method.sharing, shape, scale, generator)
            backbone.sharing.claim(self)
        self.routing = self._make_routing(count, splits, generator)
        if not task.members and method.adapt == "z":  # all that tasks of an inventory share stays as it is
            self.skills.requires_grad_(False)
            if self.pooler is not None:
                self.pooler.requires_grad_(False)
        self.register_buffer("progress", torch.zeros(()))
        self.steps = 0
        self._known: tuple[Any, ...] | None = None
        self._first: list[Batch] = []

    progress: torch.Tensor

    def _inventory(self) -> tuple[int, int]:
        """Skills and splits: one of each for a single task that trains the average skill."""
        method = self.method
        if not self.task.members and method.adapt == "mu":
            return 1, 1
        counts = {"shared": 1}
        if self.task.members:
            counts |= {"private": len(self.tasks), "expert": len(method.experts)}
        return counts.get(method.routing, method.num_skills), method.num_splits

    def _make_routing(self, count: int, splits: int, generator: torch.Generator) -> AbstractRouting:
        method, tasks, routers = self.method, len(self.tasks), len(self.skills.routers)
        if count == 1:
            return FixedRouting(torch.ones(tasks, 1), routers, splits)
        if self.task.members and method.routing in ("private", "expert"):
            groups = method.experts or tuple((name,) for name in self.tasks)
            chosen = [next(g for g, group in enumerate(groups) if name in group) for name in self.tasks]
            return FixedRouting(torch.eye(count)[chosen], routers, splits)
        if method.routing == "hypernetwork":
            return HyperRouting(routers, tasks, count, generator)
        weights = (method.ibp_weight, method.sparsity_weight, method.information_weight)
        return LearnedRouting((routers, tasks, splits, count), method.gate, generator, regularisers=weights)

    def begin_training(self, steps: int, rows: EncodedRows) -> None:
        self.steps = steps
        self._first = first_batches(rows, list(self.tasks)) if self.task.members else []

    def after_step(self, step: int) -> None:
        self.progress.fill_(step / self.steps)

    def parameter_groups(self) -> list[ParameterGroup]:
        """What is learned for each task by itself has the rate of the routing and no decay, all else that of skills.

        The layers of a hypernetwork are shared by all tasks: at a hundred times the rate they would only diverge.
        """
        groups, of_tasks = super().parameter_groups(), self.routing.of_tasks()
        routing = {id(parameter) for parameter in of_tasks}
        found = []
        for group in groups:
            rest = [p for p in group.parameters if id(p) not in routing and p.requires_grad]
            found += [ParameterGroup(group.name, rest)] if rest else []
        if routing:
            rate = self.method.routing_rate
            found.append(ParameterGroup("routing", of_tasks, rate, decays=False))
        return found

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        if not self.training or not isinstance(self.routing, LearnedRouting) or self.routing.gate != "gumbel":
            return self.at()
        logits, each = self.routing.logits, self.method.noise == "per-example"
        shape = (len(logits), len(batch) if each else logits.shape[1], *logits.shape[2:])
        noise = logistic_noise(shape, generator).to(logits.device)
        return Draw({"noise": noise.movedim(1, 0)}) if each else Draw(shared={"noise": noise})

    def forward(self, batch: Batch, draw: Draw | None = None) -> torch.Tensor:
        features = self.features(batch, draw)
        return self.head(features, batch.tasks) if isinstance(self.head, LabelTextHead) else self.head(features)

    def install(self, batch: Batch, draw: Draw) -> None:
        self._install(batch.tasks, draw)

    def _install(self, names: Sequence[str], draw: Draw) -> None:
        """Mix the skills of the rows' tasks; what was mixed for the same tasks and numbers stays where it is."""
        numbers = self._numbers(names)
        distinct = list(dict.fromkeys(numbers))
        groups = torch.tensor([distinct.index(number) for number in numbers])
        lead = self._lead()
        known: tuple[Any, ...] | None = None
        if not (draw.rows or draw.shared) and not torch.is_grad_enabled():
            known = (*distinct, lead, *((p.data_ptr(), p._version) for p in self.parameters()))
        elif "noise" in draw.rows:
            rows = len(draw.rows["noise"])
            distinct, groups = numbers * (rows // len(numbers)), torch.arange(rows)
        groups = None if len(distinct) == 1 else groups.to(self.progress.device)
        if known is None or known != self._known:
            self.skills.install(self.weights(distinct, lead, draw), groups)
        else:
            self.skills.regroup(groups)
        self._known = known

    def weights(self, numbers: Sequence[int], lead: float = 1.0, draw: Draw | None = None) -> torch.Tensor:
        """(R, U, q, S) of the tasks with these numbers, -1 for a task without routing."""
        tasks = torch.tensor(numbers, device=self.progress.device)
        draw, noise = draw or Draw(), None
        if "noise" in draw.rows:
            noise = draw.rows["noise"].movedim(0, 1)
        elif "noise" in draw.shared:
            noise = draw.shared["noise"][:, tasks]
        weights = self.routing.weights(tasks.clamp(min=0), noise)
        if -1 in numbers:
            weights = torch.where((tasks < 0)[:, None, None], 1 / weights.shape[-1], weights)
        return led(weights, lead)

    def _lead(self) -> float:
        share = self.method.uniform_share if self.task.members else 0.0
        return lead_at(float(self.progress), share) if share else 1.0  # no look at the device without need

    def _numbers(self, names: Sequence[str]) -> list[int]:
        """The number of the task of every row, -1 for one without routing. Raises: DataError where that is refused."""
        if not self.task.members:
            return [0]
        names = names or ("",)
        unknown = sorted({name for name in names if name not in self.tasks})
        if unknown and self.method.unknown_task == "refuse":
            what = f"no task called {unknown[0]!r}" if unknown[0] else "a row without the name of its task"
            average = "; an inventory trained with method.unknown_task = 'average' takes the average skill"
            raise DataError(
                f"expected rows of {len(self.tasks)} tasks, found {what}",
                f"known: {', '.join(self.tasks)}{average if self.objective.generates else ''}",
            )
        return [self.tasks.get(name, -1) for name in names]

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        if self.objective.generates:
            return
        if isinstance(self.head, LabelTextHead):
            self._clear()
            self.head.start(frozen_features(self.backbone, rows))
            return
        with torch.no_grad():
            self._install((), self.at())  # the probe reads what the inventory makes of the rows
        super().warm_start(rows, generator)

    def _clear(self) -> None:
        """The plain backbone, until the next forward of this adapter."""
        self.skills.clear()
        self._known = None

    def penalty(self, draw: Draw | None = None) -> torch.Tensor | None:
        del draw
        terms = [self.routing.penalty()]
        if self.method.orthogonality_weight:
            terms.append(self.method.orthogonality_weight * self.skills.orthogonality())
        found = [term for term in terms if term is not None]
        return torch.stack(found).sum() if found else None

    def diagnostics(self) -> dict[str, float]:
        return self._routing_measures() | self._agreement()

    @torch.enable_grad()
    def _agreement(self) -> dict[str, float]:
        """How far tasks agree, on the first rows of each, without noise; nothing where fewer than two were trained."""
        if len(self._first) < 2:
            return {}
        return {"alignment": task_alignment(self, [batch.to(self.progress.device) for batch in self._first])}

    @torch.no_grad()
    def _routing_measures(self) -> dict[str, float]:
        if not isinstance(self.routing, LearnedRouting):
            return {}
        return routing_measures(self.routing.logits)

    def report(self) -> dict[str, Any]:
        method = self.method
        return {
            "skills": method.skills, "num_skills": self._inventory()[0], "num_splits": self._inventory()[1],
            "tasks": list(self.tasks), "routers": list(self.skills.routers), "gate": method.gate,
            **self.diagnostics(),
        }  # fmt: skip

    def carry(self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Skills as they are or averaged, the routing of tasks of the same name, and a head from the labels' texts.

        Raises: ConfigError for skills of other sizes or of other matrices.
        """
        prefix = "skills.parts."
        saved = {name.removeprefix("skills."): part for name, part in weights.items() if name.startswith(prefix)}
        if self._inventory()[0] == 1:
            saved = self.skills.collapsed(saved)
        found = {f"skills.{name}": part for name, part in saved.items()}
        own = {name: part.shape for name, part in self.named_parameters() if name.startswith("skills.")}
        if wrong := [name for name, shape in own.items() if name not in found or found[name].shape != shape]:
            raise ConfigError(
                f"the skills to start from are not those of this run: {len(wrong)} of {len(own)} differ ({wrong[0]})",
                "give the model that they were trained on, and leave the settings of their size to them",
            )
        if self.pooler is not None and not any(name.startswith("pooler.") for name in weights):
            frozen = [name for name, part in self.pooler.named_parameters() if not part.requires_grad]
            if frozen:
                raise ConfigError(
                    f"adapt = 'z' leaves {frozen[0].replace('__', '.')} as it is, but what it starts from has none",
                    "give --adapt mu, or --set run.pooling=mean",
                )
        other = super().carry(weights, record)
        found |= {name: tensor for name, tensor in other.items() if name.startswith(("head.", "pooler."))}
        found |= self._carried_routing(weights, record)
        projection = weights.get("head.projection")
        if isinstance(self.head, LabelTextHead):
            return found | ({} if projection is None else {"head.projection": projection})
        if projection is not None and self.method.head_start == "label-text" and has_texts(self.task):
            self._clear()
            classes = label_embeddings(self.backbone, self.task.labels).to(projection) @ projection
            found |= {"head.weight": classes[None], "head.bias": torch.zeros(1, len(classes))}
        return found

    def _carried_routing(
        self, weights: Mapping[str, torch.Tensor], record: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        saved, tasks = weights.get("routing.logits"), record.get("adapter", {}).get("tasks", [])
        if saved is None or not isinstance(self.routing, LearnedRouting):
            return {}
        rows = self.routing.logits.detach().clone()
        if saved.shape[2:] != rows.shape[2:] or len(saved) != len(rows):
            return {}
        for name in set(tasks) & set(self.tasks):
            rows[:, self.tasks[name]] = saved[:, tasks.index(name)]
        return {"routing.logits": rows}

    @torch.no_grad()
    def taken(self, name: str) -> dict[str, torch.Tensor]:
        """The state of an adapter on this one of the tasks alone, which gives the same scores.

        For a task without routing it is that of the average skill, for models that generate text, which need no head.
        """
        weights = self.weights([self.tasks.get(name, -1)], self._lead())
        found = self.skills.collapsed(dict(self.skills.named_parameters()), weights)
        state = {f"skills.{key}": part for key, part in found.items()}
        state |= {"progress": self.progress, "routing.table": torch.ones(1, 1)}
        state |= {key: part for key, part in self.state_dict().items() if key.startswith("pooler.")}
        if isinstance(self.head, LabelTextHead):
            weight, bias = self.head.folded(name)
            state |= {"head.weight": weight[None], "head.bias": bias[None]}
            state |= {"head.offset": self.head.offset, "head.scale": self.head.scale}
        return {key: tensor.detach().clone() for key, tensor in state.items()}

    @torch.no_grad()
    def fold(self, product: Product) -> Any:
        if isinstance(self.skills, PrefixSkills):
            mixed = self.skills.mixed(self.weights([0]))[:, 0].detach()
            return fold_prefix(KeyValues(mixed, self.skills.sites, self.skills.shift), product)
        return self._peft_state() if product == "peft state" else super().fold(product)

    def _peft_state(self) -> PeftState:
        """PEFT's LORA or IA3 of the skills of a single task, mixed into one of each."""
        skills, method = self.skills, self.method
        assert isinstance(skills, AbstractMatrixSkills)
        updates = skills.updates(self.weights([0]), None)
        config: dict[str, Any] = {
            "peft_type": "IA3" if method.skills == "ia3" else "LORA",
            "target_modules": sorted(updates),
            "fan_in_fan_out": any(is_transposed(module) for module in skills.updating.modules.values()),
        }
        tensors: dict[str, torch.Tensor] = {}
        for name, update in updates.items():
            if isinstance(update, LowRank):
                down, up = update.mix()
                tensors[f"base_model.model.{name}.lora_A.weight"] = down[0].T
                tensors[f"base_model.model.{name}.lora_B.weight"] = up[0].T
            else:
                tensors[f"base_model.model.{name}.ia3_l"] = update.mix().T
        size = {"r": method.rank, "lora_alpha": method.alpha, "bias": "none"}
        return PeftState("layers", config | ({"feedforward_modules": []} if method.skills == "ia3" else size), tensors)

    @torch.no_grad()
    def merged_model(self) -> nn.Module:
        if self.task.members:
            raise ConfigError("an inventory of many tasks is not one model", "take one task out of it: --task NAME")
        if isinstance(self.skills, PrefixSkills):
            raise ConfigError("a prefix cannot be folded into weights", "export it as a PEFT adapter")
        assert isinstance(self.skills, AbstractMatrixSkills)
        updates = self.skills.updates(self.weights([0]), None)
        self._clear()  # what a training step has mixed cannot be copied
        model = copy.deepcopy(self.backbone.model)
        remove_gating(model.get_submodule(name) for name in self.skills.updating.modules)
        fold_updates(model, updates)
        return model.requires_grad_(False)

    def detach(self) -> None:
        self.skills.remove()
        super().detach()
