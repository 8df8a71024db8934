"""What can be done with an inventory without training: take a task out of it, add, remove and rename tasks.

An inventory is a run of `poly` on many tasks. All of this works on the saved tensors; nothing that is there is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import torch

from handful.backbone.load import Backbone
from handful.data.seen import SeenRows
from handful.errors import DataError, RunError, nearest
from handful.evaluation.baseline import Baseline, mean_baseline
from handful.evaluation.estimate import Estimate
from handful.methods.poly.adapter import PolyAdapter
from handful.methods.poly.method import Poly
from handful.methods.poly.routing_measures import routing_measures
from handful.objectives import objective_of
from handful.randomness import stream
from handful.runs.card import run_card
from handful.runs.experiment import Trained, open_trained
from handful.runs.from_peft import PeftPoly
from handful.runs.members import as_member_record, describe_task, recorded_task
from handful.runs.scoring import mean_estimates
from handful.runs.spec import Choice, RunSpec
from handful.runs.start import Start
from handful.runs.store import Run, write_run

INHERITED = (
    "skills", "num_skills", "num_splits", "rank", "alpha", "prefix_length", "target_modules", "sharing", "gate",
)  # fmt: skip
"""Settings that a run which starts from an inventory takes over from it, unless others are given."""


def task_names(saved: Run) -> list[str]:
    """The names of an inventory's tasks. Raises: RunError for another run."""
    members = saved.record["task"].get("members")
    if not members:
        raise RunError(
            f"{saved.folder}: expected an inventory of many tasks, found a run on {saved.record['task']['name']!r}",
            "`handful pretrain` makes an inventory",
        )
    return [member["name"] for member in members]


def member_record(saved: Run, name: str | None) -> dict[str, Any]:
    """What is said of the task of a run, or of the one of this name in an inventory.

    An inventory that takes the average skill for unknown tasks has any.
    Raises: DataError where a name is missing, wrong or not wanted.
    """
    task = saved.record["task"]
    members = {member["name"]: member for member in task.get("members", ())}
    if name is None and members:
        raise DataError(
            f"{saved.folder}: an inventory of {len(members)} tasks", "name one: --task " + next(iter(members))
        )
    if name is None:
        return task
    if members and name not in members and saved.record["spec"]["method"].get("unknown_task") == "average":
        return as_member_record(task) | {"name": name}
    if name not in members:
        found = f"no task is called {name!r}" if members else f"a run on {task['name']!r} alone, found --task {name}"
        raise DataError(f"{saved.folder}: {found}", nearest(name, members) if members else "leave --task out")
    return members[name]


def inherited(saved: Start | None) -> dict[str, Any]:
    """What a run that starts from an inventory has in common with it, by dotted names; empty for other starts."""
    if isinstance(saved, PeftPoly):
        return saved.settings()
    if not isinstance(saved, Run) or not saved.record["task"].get("members"):
        return {}
    spec = saved.record["spec"]
    found = sizes(spec["method"], len(saved.record["task"]["members"]))
    found |= {f"run.{name}": spec["run"][name] for name in ("pooling", "max_length")}
    return found | {f"generation.{name}": value for name, value in spec.get("generation", {}).items()}


def sizes(method: Mapping[str, Any], tasks: int) -> dict[str, Any]:
    """Those of an inventory of so many tasks (0: of a run on one), by dotted names, of the settings of its method.

    A private inventory has a skill for each task, one of experts for each of them, whatever `num_skills` says.
    """
    counts = {"private": tasks, "expert": len(method["experts"])} if tasks else {}
    found = {f"method.{name}": method[name] for name in INHERITED}
    found["method.num_skills"] = counts.get(method["routing"], method["num_skills"])
    return found | (
        {"method.routing": "shared"} if method["routing"] == "shared" else {}
    )  # others are of its own tasks


def with_inherited(spec: RunSpec, common: Mapping[str, Any]) -> RunSpec:
    """The spec, which says of every value that it has from an inventory where it came from."""
    resolved = spec.resolved()
    taken = tuple(
        Choice(name, value, "as in the inventory")
        for name, value in common.items()
        for section, _, field in [name.partition(".")]
        if resolved.get(section, {}).get(field) == value
    )
    return replace(spec, choices=spec.choices + taken)


def take_task(
    saved: Run, name: str, backbone: Backbone | None = None, device: str = "cpu"
) -> tuple[dict[str, Any], Trained]:
    """One task of an inventory as a run of its own: one LoRA (IA3, prefix) and one ordinary head, and its record.

    Raises: RunError for another run, DataError for a task that is not there.
    """
    task_names(saved)
    record, member = saved.record, recorded_task(member_record(saved, name))
    whole = open_trained(saved, backbone=backbone, device=device)
    assert isinstance(whole.adapter, PolyAdapter)
    method = replace(whole.adapter.method, adapt="mu", routing="learned", experts=())
    with whole.backbone.sharing.alone():
        state = whole.adapter.taken(name)
        whole.adapter.detach()
        adapter = method.attach(whole.backbone, member, generator=stream(whole.spec.options.seed, "init"))
        adapter.to(whole.backbone.device)
    adapter.load_state_dict(state)
    adapter.eval()
    taken = Trained(replace(whole.spec, method=method), member, whole.backbone, adapter)
    scores = record.get("members", {}).get(name, {})
    notes = [*record["notes"], f"task {name!r} of the inventory {saved.folder.name}, whose training this is"]
    changed = {"spec": taken.spec.resolved(), "task": describe_task(member), "notes": notes}
    known = _known(record).get(name, _Known())
    changed |= {"adapter": adapter.report(), "baseline": known.baseline}
    changed |= {"rows": _rows_of(record, _scored_rows(scores, member.metric), known.untested)}
    return _keyed(record | changed | {"scores": scores, "members": {}}, f"take {name}"), taken


def rename_task(saved: Run, name: str, new: str, output: Path) -> Run:
    """The inventory with another name for one task. Raises: DataError for a name that is missing or taken."""
    _place(saved, name)
    _refuse_known(saved, new)
    members = [m | {"name": new} if m["name"] == name else m for m in saved.record["task"]["members"]]
    scores = {new if other == name else other: value for other, value in saved.record.get("members", {}).items()}
    spec = saved.record["spec"]
    experts = [[new if other == name else other for other in group] for group in spec["method"]["experts"]]
    renamed = {**saved.record, "spec": spec | {"method": spec["method"] | {"experts": experts}}}
    known = {new if other == name else other: value for other, value in _known(saved.record).items()}
    change = f"rename {name} to {new}"
    return _write(Run(saved.folder, renamed), members, scores, known, saved.weights(), change, output)


def remove_task(saved: Run, name: str, output: Path) -> Run:
    """The inventory without the routing and the labels of one task; its skills stay as they are."""
    place = _place(saved, name)
    _refuse_fixed(saved)
    names = [other for other in task_names(saved) if other != name]
    if len(names) < 2:
        raise DataError(f"{saved.folder}: an inventory has at least two tasks", f"take {names[0]!r} out of it instead")
    weights, span = saved.weights(), recorded_task(saved.record["task"]).label_ranges[name]
    kept = [index for index in range(len(names) + 1) if index != place]
    for key in ("head.labels", "head.own", "head.own_bias"):
        if key in weights:
            weights[key] = torch.cat((weights[key][: span.start], weights[key][span.stop :]))
    weights |= _routing_without(weights, kept)
    members = [member for member in saved.record["task"]["members"] if member["name"] != name]
    scores = {other: value for other, value in saved.record.get("members", {}).items() if other != name}
    return _write(saved, members, scores, _known(saved.record), weights, f"remove {name}", output)


def add_task(saved: Run, added: Run, output: Path) -> Run:
    """The inventory with the routing and the head of a run that started from it with adapt = "z".

    All tensors of other tasks stay as they are, to the bit. Raises: RunError for a run that has changed skills or
    started elsewhere, DataError for a name that is taken and for a task of another kind than those that are there.
    """
    task_names(saved)
    method = added.record["spec"]["method"]
    if (
        method["name"] != Poly.name
        or method.get("adapt") != "z"
        or added.record["spec"].get("start") not in _keys(saved)
    ):
        raise RunError(
            f"{added.folder}: expected a run that learned nothing but its routing, from this inventory",
            f"handful fit DATA --init-from {saved.folder} --adapt z",
        )
    _refuse_fixed(saved)
    _refuse_other_settings(saved, added)
    task = added.record["task"]
    _refuse_known(saved, task["name"])
    _refuse_other_kind(saved, task)
    weights, new = saved.weights(), added.weights()
    if "routing.logits" in weights:
        weights["routing.logits"] = torch.cat((weights["routing.logits"], new["routing.logits"]), 1)
    else:
        weights["routing.table"] = torch.cat((weights["routing.table"], new["routing.table"]))
    if "head.own" in weights:
        ratio = new["head.scale"] / weights["head.scale"]
        own, bias = new["head.weight"][0] * ratio, new["head.bias"][0] * ratio
        weights["head.labels"] = torch.cat((weights["head.labels"], torch.zeros_like(own)))
        weights["head.own"] = torch.cat((weights["head.own"], own))
        weights["head.own_bias"] = torch.cat((weights["head.own_bias"], bias))
    scores = saved.record.get("members", {})
    scores |= {task["name"]: added.record["scores"]} if added.record["scores"] else {}
    members, seen = [*saved.record["task"]["members"], as_member_record(task)], added.seen() or ()
    new_one = _Known(added.record.get("baseline"), tuple(added.record["rows"].get("untested_classes", ())))
    known = _known(saved.record) | {task["name"]: new_one}
    return _write(saved, members, scores, known, weights, f"add {added.key}", output, seen)


def _write(
    saved: Run,
    members: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    known: Mapping[str, _Known],
    weights: Mapping[str, torch.Tensor],
    change: str,
    output: Path,
    seen: Collection[bytes] = (),
) -> Run:
    """Another inventory with these members, in a folder of its own. Raises: RunError where there is one."""
    if output.exists():
        raise RunError(f"{output}: exists already", "give another --output; an inventory is never changed in place")
    labels = [f"{member['name']}: {label}" for member in members for label in member["labels"]]
    task = saved.record["task"] | {"labels": labels, "members": list(members)}
    means = mean_estimates([{n: Estimate.from_dict(e) for n, e in own.items()} for own in scores.values()] or [{}])
    untested = [f"{m['name']}: {label}" for m in members for label in known.get(m["name"], _Known()).untested]
    test = sum(_scored_rows(scores.get(m["name"], {}), m["metric"]) for m in members)
    changed = {
        "task": task,
        "members": dict(scores),
        "scores": {metric: estimate.to_dict() for metric, estimate in means.items()},
        "baseline": _baseline_of({name: known.get(name, _Known()).baseline for name in scores}),
        "rows": _rows_of(saved.record, test, untested),
        "adapter": _adapter_of(saved.record["adapter"], [member["name"] for member in members], weights),
        "notes": [*saved.record["notes"], f"{change}, from {saved.folder.name}"],
    }
    record = _keyed(saved.record | changed, change)
    return write_run(output, record, weights, seen=(saved.seen() or SeenRows()) | seen, card=run_card(record))


def _scored_rows(scores: Mapping[str, Any], metric: str) -> int:
    return scores[metric]["n"] if scores else 0


def _rows_of(record: Mapping[str, Any], test: int, untested: Sequence[str]) -> dict[str, Any]:
    """The "rows" of a record, with so many for its test, of which nobody has counted those that were cut."""
    counted = {
        name: {part: count for part, count in record["rows"].get(name, {}).items() if part != "test"}
        for name in ("truncated", "coverage")
    }
    return {**record["rows"], **counted, "test": test, "untested_classes": list(untested)}


@final
@dataclass(frozen=True)
class _Known:
    """What a record says of one task beside its scores: its baseline, and its classes without a test row."""

    baseline: Mapping[str, Any] | None = None
    untested: tuple[str, ...] = ()


def _known(record: Mapping[str, Any]) -> dict[str, _Known]:
    """That of every task of an inventory."""
    baselines = (record.get("baseline") or {}).get("members", {})
    untested = set(record["rows"].get("untested_classes", ()))
    return {
        name: _Known(baselines.get(name), tuple(label for label in labels if f"{name}: {label}" in untested))
        for name, labels in ((member["name"], member["labels"]) for member in record["task"]["members"])
    }


def _baseline_of(baselines: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The "baseline" of an inventory of these tasks; None unless all have one."""
    found = {name: dict(one) for name, one in baselines.items() if one is not None}
    if not found or len(found) < len(baselines):
        return None
    return mean_baseline([Baseline.from_dict(one) for one in found.values()]).to_dict() | {"members": found}


def _adapter_of(
    adapter: Mapping[str, Any], tasks: Sequence[str], weights: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """What a run says of its adapter, of these tasks; how far their gradients agree was measured on others."""
    logits = weights.get("routing.logits")
    measures = {} if logits is None else routing_measures(logits)
    return {**{name: value for name, value in adapter.items() if name != "alignment"}, "tasks": [*tasks], **measures}


def _keyed(record: Mapping[str, Any], change: str) -> dict[str, Any]:
    """The record under the key of what was changed, with the keys of what it is made of."""
    key = hashlib.sha256(f"{record['key']} {change}".encode()).hexdigest()
    return {
        **record,
        "key": key,
        "made_of": [*record.get("made_of", ()), record["key"]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _routing_without(weights: Mapping[str, torch.Tensor], kept: list[int]) -> dict[str, torch.Tensor]:
    """The routing of some of the tasks, which stand along the axis 1, of a fixed table along 0."""
    return {
        key: weights[key].index_select(axis, torch.tensor(kept))
        for key, axis in (("routing.logits", 1), ("routing.table", 0))
        if key in weights
    }


def _place(saved: Run, name: str) -> int:
    names = task_names(saved)
    if name not in names:
        raise DataError(f"{saved.folder}: no task is called {name!r}", nearest(name, names))
    return names.index(name)


def _refuse_other_settings(saved: Run, added: Run) -> None:
    """Raises: RunError where the inventory would not compute what the run does."""
    spec, wrong = added.record["spec"], []
    for name, value in inherited(saved).items():
        section, _, field = name.partition(".")
        if spec.get(section, {}).get(field) != value:
            wrong.append(f"{name} is {spec.get(section, {}).get(field)!r} and not {value!r}")
    if saved.record["spec"]["method"]["uniform_share"]:
        wrong.append("method.uniform_share has led the inventory to the average of its skills, which uses no routing")
    if wrong:
        raise RunError(
            f"{added.folder}: it cannot be added to {saved.folder}: " + "; ".join(wrong),
            "adapt with the settings that the inventory gives",
        )


def _keys(saved: Run) -> set[str]:
    """Of the inventory and of those it was made of: all have the same skills."""
    return {saved.key, *saved.record.get("made_of", ())}


def _refuse_known(saved: Run, name: str) -> None:
    if name in task_names(saved):
        raise DataError(f"{saved.folder}: a task is called {name!r} already", "rename one of the two first")


def _refuse_other_kind(saved: Run, task: Mapping[str, Any]) -> None:
    """Raises: DataError unless both are of generation or both have labels."""
    writes, kind = objective_of(saved.record["task"]["kind"]).generates, task["kind"]
    objective = objective_of(kind)
    if writes != objective.generates or objective.unmixable:
        wanted = "a task whose texts are written" if writes else "a task with labels"
        raise DataError(
            f"{saved.folder}: expected {wanted}, as its own are, found {task['name']!r} of the kind {kind}",
            "keep the run by itself: it works without the inventory",
        )


def _refuse_fixed(saved: Run) -> None:
    """Raises: RunError where rows of routing cannot come and go by themselves."""
    routing = saved.record["spec"]["method"]["routing"]
    if routing not in ("learned", "shared"):
        raise RunError(
            f"{saved.folder}: tasks cannot be added to or removed from a routing of the kind {routing!r}",
            "they can with routing = 'learned' or 'shared'",
        )
