"""What runs say about their gates: how many are open, soft and closed, what was removed, how fast that is."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, final

from handful.studies.results import Result, settings_of

TARGET = "method.target_sparsity"
EXPORT = "export.json"

_ROLES = {
    "query": "query query_proj q q_proj q_lin",
    "key": "key key_proj k k_proj k_lin",
    "value": "value value_proj v v_proj v_lin",
    "query, key, value": "c_attn",
    "gate": "gate_proj wi_0",
    "in": "intermediate c_fc up_proj lin1 wi wi_1",
    "out": "output o o_proj out_lin c_proj down_proj lin2 wo",
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names.split()}


@final
@dataclass(frozen=True)
class GatedPart:
    """The gates of one side of one matrix: `name` says in words what they gate in their layer."""

    layer: int
    name: str
    matrix: str
    side: str
    open: int
    soft: int
    closed: int

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of gates that are open, soft and closed."""
        gates = self.open + self.soft + self.closed
        return self.open / gates, self.soft / gates, self.closed / gates


@final
@dataclass(frozen=True)
class GateRecord:
    """The gates of a run: all of them by part, the shares closed and soft, and shares of the gateable parameters.

    `removed` is of those that closed gates are of, `target` what it was to be; `dense` and `compact` are what exports
    of these formats can leave out, the rest of it stays as zeros. Language models have no compact export.
    """

    parts: tuple[GatedPart, ...]
    closed: float
    soft: float
    removed: float
    dense: float
    compact: float | None
    target: float | None


def gates_of(result: Result) -> GateRecord | None:
    """The gates of a run, None where it has none. Raises: KeyError, TypeError or ValueError for a damaged record."""
    adapter: Mapping[str, Any] = result.record.get("adapter", {})
    if "removed" not in adapter:
        return None
    sides = adapter["gates"]
    names = [str(side["matrix"]) for side in sides]
    groups = all(side["side"] == "columns" for side in sides)  # a gate takes a unit or head along: no rows of their own
    stacks = {name.partition(".")[0] for name in names} >= {"encoder", "decoder"}
    parts = tuple(
        GatedPart(
            layer_of(name), _part_name(name, None if groups else side["side"], stacks), name, side["side"],
            *(int(side[state]) for state in ("open", "soft", "closed")),
        )
        for name, side in zip(names, sides, strict=True)
    )  # fmt: skip
    if not all(part.open + part.soft + part.closed for part in parts):
        raise ValueError("a side without gates")
    shares = (float(adapter[name]) for name in ("closed", "soft", "removed", "removable"))
    compact, target = adapter.get("removable_compact"), settings_of(result.record["spec"]).get(TARGET)
    compact, target = (None if share is None else float(share) for share in (compact, target))
    return GateRecord(parts, *shares, compact=compact, target=target)


def layer_of(matrix: str) -> int:
    """The first number in a matrix's name."""
    found = re.search(r"(?:^|\.)(\d+)\.", matrix)
    return int(found[1]) if found else 0


def _part_name(matrix: str, side: str | None, stacks: bool) -> str:
    """What is gated, in words; without a side it is units or heads."""
    if side:
        return f"{matrix_name(matrix, stacks)}, {side}"
    stack, cross = _stack(matrix, stacks), _is_cross(matrix)
    return f"{stack}{'cross-attention ' if cross else ''}{'heads' if _is_attention(matrix) else 'feed-forward units'}"


def matrix_name(matrix: str, stacks: bool) -> str:
    """A matrix in words, without its layer: "feed-forward in"; one that is not known keeps its own name.

    With `stacks` it begins with the half of the model it is in.
    """
    *above, leaf = re.sub(r"^.*?\d+\.", "", matrix).split(".")
    role = _ROLE_OF.get(above[-1] if leaf == "dense" and above else leaf)
    attention = _is_attention(matrix)
    place = (
        "cross " if _is_cross(matrix) else "feed-forward " if not attention else "attention " if role == "out" else ""
    )
    return _stack(matrix, stacks) + (place + role if role else ".".join((*above, leaf)))


def _stack(matrix: str, stacks: bool) -> str:
    return f"{matrix.partition('.')[0]} " if stacks else ""


def _is_attention(matrix: str) -> bool:
    return "att" in matrix.lower()


def _is_cross(matrix: str) -> bool:
    return bool(re.search("cross|encdec", matrix.lower()))


def measured_speed(result: Result) -> tuple[float, float] | None:
    """How many times as fast as the whole model an export in the run's folder, or a folder in it, is; and without what.

    That is the share of the gateable parameters that it leaves out. Of several the fastest; but not what another
    library than torch computes, whose speed is not that of leaving something out.

    Raises: OSError, ValueError, KeyError, TypeError or ZeroDivisionError for a damaged record of an export.
    """
    found = []
    for path in sorted((*result.run.folder.glob(EXPORT), *result.run.folder.glob(f"*/{EXPORT}"))):
        size = json.loads(path.read_text(encoding="utf-8")).get("size")
        if size and size["speed"].get("runtime") == "torch":
            before, after = size["speed"]["seconds"]
            all_of_them, left = size["parts"]["gateable"]
            found.append((float(before) / float(after), 1 - float(left) / float(all_of_them)))
    return max(found, default=None)


def lines_of(results: Iterable[Result]) -> dict[str, str]:
    """The line that each label is a point of: labels that differ in their target alone are of one line.

    A setting that varies between the runs of a label, as one that was searched does, tells no labels apart.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for result in results:
        spec = result.record["spec"]
        for name, value in (settings_of(spec) | {"method.name": spec["method"]["name"]}).items():
            found[result.label][name].add(repr(value))
    varying = {name for settings in found.values() for name, values in settings.items() if len(values) > 1} | {TARGET}
    members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for label, settings in sorted(found.items()):
        members[tuple(sorted((name, *values) for name, values in settings.items() if name not in varying))].append(
            label
        )
    lines: dict[str, str] = {}
    for labels in members.values():
        name = _line_name(labels)
        if not name or name in lines.values():
            name = f"{labels[0]} …"
        lines |= dict.fromkeys(labels, name)
    return lines


def _line_name(labels: Sequence[str]) -> str:
    """What labels begin with, up to their numbers: "gates" of "gates, 20 %" and "gates, 40 %"."""
    if len(labels) == 1:
        return labels[0]
    shared = "".join(same[0] for same in takewhile(lambda letters: len(set(letters)) == 1, zip(*labels, strict=False)))
    name = re.sub(r"(\w*\s*=)?[\d.\s]*$", "", shared).rstrip(" ,;:(-@")
    return name + ")" * (name.count("(") - name.count(")"))
