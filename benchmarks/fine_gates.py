"""What is kept of the runs of `recipes/fine_gates.toml`, and the tables and the picture made of it.

    python benchmarks/fine_gates.py keep STUDY… --output experiments/fine_gates.jsonl     (adds runs, or puts them anew)
    python benchmarks/fine_gates.py show experiments/fine_gates.jsonl --shots 500 [--picture FILE.png]

Tables in Markdown: means over the seeds, and paired differences with the intervals and verdicts of `handful compare`:
of the gates and the whole model, of the gates and every other arm of the same size, and of an arm called
"KIND, SIZE, CHANGE" and the one without that change. Predictions were not kept, so that what test rows leave open is
bounded, as if both arms erred on rows of their own. An arm without a run of every task and seed is left out, and named.
The picture: accuracy by what an export really leaves out, means over tasks and seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from handful.evaluation.estimate import Estimate
from handful.studies.verdicts import NOT_TOLD_APART, RowNoise, judge

WHOLE = "whole, bias-only"
TASKS = ["extra/trec", "glue/sst2", "glue/qnli"]
"""In the tables' order."""
COLOURS = {"gates": "C0", "wanda": "C1", "taylor": "C2", "magnitude": "C3", "random": "C7", "published": "C4"}
TEST_ROWS = 500
"""Of every task."""
Cells = dict[tuple[str, int], dict[str, Any]]
"""The record of each task and seed."""


def line(run: Path) -> dict[str, Any]:
    """What is kept of a run, from its record."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    spec, scores, adapter = record["spec"], record["scores"], record["adapter"]
    found = {
        "task": record["study"]["job"].split("-k")[0].replace("-", "/", 1),
        "shots": spec["run"]["shots"], "seed": spec["run"]["seed"], "label": record["study"]["label"],
        "score": round(scores["accuracy"]["mean"], 4), "nll": round(scores["nll"]["mean"], 4),
    }  # fmt: skip
    found |= {name: round(adapter[name], 4) for name in ("removed", "closed", "soft") if name in adapter}
    if spec["method"]["name"] == "fine-gates" and spec["method"].get("mode") != "coupled":
        found |= {"left_out_dense": round(adapter["removable"], 3)}
        found |= {"left_out_compact": round(adapter["removable_compact"], 3)}
    return found | {"epochs": spec["training"]["epochs"], "seconds": round(record["fit"]["seconds"], 3)}


def keep(studies: Iterable[Path], output: Path) -> None:
    """Add every finished run of the studies to the lines of a file, in place of one of the same cell."""
    kept = {cell(record): record for record in read(output)} if output.is_file() else {}
    before = len(kept)
    for study in studies:
        for file in sorted(study.glob("runs/*/run.json")):
            record = line(file.parent)
            kept[cell(record)] = record
    ordered = sorted(kept.values(), key=lambda r: (r["shots"], r["task"], r["seed"], r["label"]))
    output.write_text("".join(json.dumps(record) + "\n" for record in ordered), encoding="utf-8")
    print(f"{output}: {before} lines, now {len(ordered)}", file=sys.stderr)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]


def cell(record: dict[str, Any]) -> tuple[int, str, int, str]:
    return record["shots"], record["task"], record["seed"], record["label"]


def arms(records: Iterable[dict[str, Any]], shots: int) -> tuple[dict[str, Cells], list[str]]:
    """The arms of this K with a run of every task and seed, in a fixed order; and the labels of the others."""
    found: dict[str, Cells] = {}
    for record in records:
        if record["shots"] == shots:
            found.setdefault(record["label"], {})[record["task"], record["seed"]] = record
    full = set(found[WHOLE])
    complete = {label: cells for label, cells in found.items() if set(cells) == full}
    ordered = sorted(complete, key=lambda label: (label != WHOLE, kind(label), size(label), label))
    return {label: complete[label] for label in ordered}, sorted(set(found) - set(complete))


def kind(label: str) -> str:
    return label.split(",")[0]


def plain(label: str) -> str:
    """The arm without its change: "gates, 40 %" of "gates, 40 %, simplex"."""
    return ",".join(label.split(",")[:2])


def size(label: str) -> float:
    """What an arm was asked for: .4 of "gates, 40 %" and of "published, s = .4", 0 of the whole model."""
    percent, target = re.search(r"(\d+) %", label), re.search(r"s = (\.\d+)", label)
    return int(percent[1]) / 100 if percent else float(target[1]) if target else 0.0


def pairs(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Which arms are compared."""
    arms = [label for label in labels if label != WHOLE]
    gates = {size(label): label for label in arms if kind(label) == "gates" and plain(label) == label}
    others = [label for label in arms if kind(label) != "gates" and plain(label) == label]
    return [
        *((gates[each], WHOLE) for each in sorted(gates)),
        *((gates[size(label)], label) for label in others if size(label) in gates),
        *((label, plain(label)) for label in arms if plain(label) != label and plain(label) in arms),
    ]


def brief(number: float) -> str:
    return f"{number:.3f}".replace("0.", ".", 1).replace("-", "−")


def interval(estimate: Estimate) -> str:
    """'+.012 [.004, .019]'."""
    sign = "+" if round(estimate.mean, 3) > 0 else ""
    if estimate.low is None or estimate.high is None:
        return sign + brief(estimate.mean)
    return f"{sign}{brief(estimate.mean)} [{brief(estimate.low)}, {brief(estimate.high)}]"


def tables(found: dict[str, Cells], shots: int, tasks: list[str]) -> list[str]:
    """The lines of both tables, as they stand in docs/experiments.md."""
    names = [task.rpartition("/")[2] for task in tasks]
    lines = [f"| K = {shots:,} | removed | {' | '.join(names)} |", f"|---|---:|{'---|' * len(tasks)}"]
    for label, cells in found.items():
        mine = [[record for (task, _), record in cells.items() if task == each] for each in tasks]
        removed = sorted({round(r.get("left_out_dense", r.get("removed", 0.0)), 2) for part in mine for r in part})
        shares = "–".join(f"{share:.2f}".lstrip("0") or "0" for share in sorted({removed[0], removed[-1]}))
        scores = [f"{brief(mean(part, 'score'))}/{mean(part, 'nll'):.2f}".replace("/0.", "/.") for part in mine]
        lines.append(f"| {label} | {shares if removed[-1] else 0} | {' | '.join(scores)} |")
    heads = [*names, "these tasks", "tasks like these", "verdict"]
    lines += ["", f"| difference | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for first, second in pairs(found):
        groups, noise = [], []
        for task in tasks:
            a, b = ([found[arm][c]["score"] for c in sorted(found[first]) if c[0] == task] for arm in (first, second))
            groups.append(np.subtract(a, b))
            noise.append(
                RowNoise(
                    float(np.mean(np.sqrt([share_error(x) + share_error(y) for x, y in zip(a, b, strict=True)]))),
                    paired=False,
                )
            )
        over = judge(groups, noise)
        assert over.elsewhere is not None
        cells = [interval(judge([group], [one]).here) for group, one in zip(groups, noise, strict=True)]
        better = (first if over.here.mean > 0 else kind(second) if second == WHOLE else second) if over.scope else ""
        verdict = f"{better} better on {over.scope}" if over.scope else NOT_TOLD_APART
        cells += [interval(over.here), interval(over.elsewhere).partition(" ")[2], verdict]
        lines.append(f"| {first} − {kind(second) if second == WHOLE else second} | {' | '.join(cells)} |")
    return lines


def share_error(share: float) -> float:
    """The squared standard error of a share of the test rows; as if one more row were half right and half wrong."""
    count = TEST_ROWS * share
    share = (count + 0.5) / (TEST_ROWS + 1)
    return share * (1 - share) / TEST_ROWS


def mean(records: list[dict[str, Any]], name: str) -> float:
    return sum(record[name] for record in records) / len(records)


def draw(found: dict[str, Cells], shots: int, tasks: list[str], file: Path) -> None:
    """Accuracy by what a dense export leaves out, a line a kind of arm, its name where it ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(
        mean(list(found[WHOLE].values()), "score"), color="0.6", linewidth=1, linestyle=":", label="whole model"
    )
    ends: dict[str, tuple[float, float]] = {}
    lines = {label: cells for label, cells in found.items() if label != WHOLE and plain(label) == label}
    for name in dict.fromkeys(map(kind, lines)):
        mine = [list(cells.values()) for label, cells in lines.items() if kind(label) == name]
        removed = "left_out_dense" if name == "published" else "removed"
        points = sorted((mean(cells, removed), mean(cells, "score")) for cells in mine)
        bold = name == "gates"
        look = {"marker": "o", "markersize": 4, "linewidth": 2.6 if bold else 1.3, "color": COLOURS[name]}
        axes.plot(*zip(*points, strict=True), **look)
        ends[name] = points[-1]
    axes.set(xlabel="share of the gateable parameters that a dense export leaves out", ylabel="accuracy, mean of tasks")
    seeds = len({seed for _, seed in found[WHOLE]})
    names = ", ".join(task.rpartition("/")[2] for task in tasks)
    axes.set_title(f"MiniLM, K = {shots:,}: {names}; {seeds} seeds", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.1)
    axes.legend(frameon=False, loc="lower left")
    low, high = axes.get_ylim()
    below = -1.0
    for name, end in sorted(ends.items(), key=lambda item: item[1][1]):  # names stand 12 points apart
        if end[0] < 0.95 * max(x for x, _ in ends.values()):  # amid other lines
            axes.annotate(
                name, end, (-6, -12), textcoords="offset points", va="center", ha="right", color=COLOURS[name]
            )
            continue
        height = 0.8 * 4.2 * 72 * (end[1] - low) / (high - low)
        below = max(height, below + 12)
        axes.annotate(name, end, (6, below - height), textcoords="offset points", va="center", color=COLOURS[name],
                      weight="bold" if name == "gates" else "normal")  # fmt: skip
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    keeping, showing = verbs.add_parser("keep"), verbs.add_parser("show")
    keeping.add_argument("studies", nargs="+", type=Path)
    keeping.add_argument("--output", required=True, type=Path)
    showing.add_argument("file", type=Path)
    showing.add_argument("--shots", type=int, required=True)
    showing.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "keep":
        keep(arguments.studies, arguments.output)
        return
    found, partial = arms(read(arguments.file), arguments.shots)
    tasks = sorted({task for task, _ in found[WHOLE]}, key=TASKS.index)
    print("\n".join(tables(found, arguments.shots, tasks)))
    if partial:
        print(f"\nnot of every task and seed: {', '.join(partial)}", file=sys.stderr)
    if arguments.picture:
        draw(found, arguments.shots, tasks, arguments.picture)


if __name__ == "__main__":
    main()
