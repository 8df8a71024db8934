"""What `handful compare` says of kept scores, as lines of Markdown; the runs themselves are not needed.

    python benchmarks/pairs.py experiments/NAME.jsonl --pairs "A / B" "C / D" [--metric nll] [--test-rows 300] \
        [--fresh "^nothing|^head"]

Every line of a file has a task, shots, a seed, a label (or a candidate) and scores, the task's own first. Predictions
were not kept with them, so what test rows leave open is bounded: with `--test-rows`, of shares of right answers, as if
both methods erred on rows of their own. Of other metrics it is not known, and there is no statement on these tasks.
`--fresh` is a pattern of labels that start from nothing; given it, runs of every other label share a start by seed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handful.evaluation.estimate import Estimate, wilson
from handful.runs.store import Run
from handful.studies.compare import Comparison, compare, with_label
from handful.studies.results import Cell, Result

SHARES = ("accuracy", "exact-match")


def read(files: Iterable[Path], test_rows: int | None = None, fresh: str | None = None) -> list[Result]:
    """Runs of which only the scores are known; of several lines of one cell the last one."""
    found: dict[tuple[Cell, str], Result] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            label = record.get("label") or record["candidate"]
            cell = Cell(record["task"], record.get("shots", 100), record["seed"])
            scores = scores_of(record)
            estimates = {name: _estimate(name, value, test_rows).to_dict() for name, value in scores.items()}
            start = f"{label}/{cell.seed}" if fresh and not re.search(fresh, label) else None
            found[cell, label] = Result(label, cell, Run(Path(f"{label}/{cell}"), {
                "key": f"{label}/{cell}", "task": {"name": cell.task, "metric": next(iter(scores)), "labels": []},
                "rows": {"fingerprint": str(cell)}, "scores": estimates, "spec": {"start": start},
            }))  # fmt: skip
    return list(found.values())


def scores_of(record: dict[str, Any]) -> dict[str, float]:
    """The scores of a line by name, the task's own first; one that only says "score" counts as accuracy."""
    if "scores" in record:
        return record["scores"]
    found = {name.partition("/")[2]: value for name, value in record.items() if name.startswith("midpoint/")}
    return found or {"accuracy": record["score"], "nll": record["nll"]}


def _estimate(name: str, value: float, test_rows: int | None) -> Estimate:
    if name in SHARES and test_rows:
        return wilson(round(value * test_rows), test_rows)
    return Estimate(value, None, None, 1)


def brief(value: float, digits: int = 3) -> str:
    """'+.012', '−.012' or '.000'; numbers above 1 keep their 0."""
    text = f"{value:+.{digits}f}"
    if not float(text):
        text = text[1:]
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", "−")


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "–"
    low, high = (brief(end, digits).replace("+", "") for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def line(found: Comparison, digits: int = 3) -> str:
    """A row: the pair, its advantage, both intervals, won / tied / lost, the verdict."""
    verdict = found.verdict if found.better in (None, found.a) else f"{found.b} {found.verdict}"
    return (
        f"| {found.a} − {found.b} | {brief(found.advantage.mean, digits)} | {interval(found.advantage, digits)} "
        f"| {interval(found.elsewhere, digits)} | {found.wins} / {found.ties} / {found.losses} | {verdict} |"
    )


HEADER = (
    "| | advantage | on these tasks | on tasks like these | won / tied / lost | verdict |\n"
    "|---|---:|---|---|---|---|"
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--pairs", nargs="+", required=True, help='"A / B"')
    parser.add_argument("--metric")
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--fresh")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--digits", type=int, default=3)
    arguments = parser.parse_args()
    results = read(arguments.files, arguments.test_rows, arguments.fresh)
    results = [run for run in results if arguments.shots in (None, run.cell.shots)]
    print(HEADER)
    for pair in arguments.pairs:
        a, b = (with_label(results, name) for name in pair.split(" / "))
        print(line(compare(a, b, metric=arguments.metric), arguments.digits))


if __name__ == "__main__":
    main()
