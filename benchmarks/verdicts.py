"""How often a verdict is false where no method is better, and how often a true difference is found. Trains nothing.

    python benchmarks/verdicts.py [--studies 20000]

`judged` sees what `handful compare` sees: an advantage per task and seed, and the noise of test rows. Beside it stands
what handful did before 2026-11-30, `bootstrapped`: percentiles of means over tasks, then seeds, drawn with replacement.
The tests run the same functions with fewer studies (`tests/studies/test_verdicts.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import sqrt
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from handful.studies.verdicts import half_widths, statements, told_apart

Generator = np.random.Generator
CELLS = [(1, seeds) for seeds in (2, 3, 5, 10)]
CELLS += [(tasks, seeds) for tasks in (2, 3, 5, 8, 18) for seeds in (1, 2, 3, 5)]


class Studies(NamedTuple):
    """Many studies of two methods: `gains` (N, T, S), the advantage of one; `rows` (N, T), the error of test rows."""

    gains: np.ndarray
    rows: np.ndarray


# ---------------------------------------------------------------------------------------------------------- the studies


def normal(generator: Generator, studies: int, tasks: int, seeds: int, gain: float = 0.0) -> Studies:
    """Scores of endless test rows; seeds spread by 1."""
    return Studies(generator.normal(gain, 1, (studies, tasks, seeds)), np.zeros((studies, tasks)))


def heavy(generator: Generator, studies: int, tasks: int, seeds: int, gain: float = 0.0) -> Studies:
    """As `normal`, with Student's t of 3 degrees of freedom."""
    return Studies(gain + generator.standard_t(3, (studies, tasks, seeds)), np.zeros((studies, tasks)))


def unlike(generator: Generator, studies: int, tasks: int, seeds: int, gain: float = 0.0) -> Studies:
    """As `normal`, with seeds that spread by 0.2 to 4.5 (two in three), task by task."""
    spread = np.exp(1.5 * generator.normal(size=(studies, tasks, 1)))
    return Studies(gain + spread * generator.normal(size=(studies, tasks, seeds)), np.zeros((studies, tasks)))


def differing(generator: Generator, studies: int, tasks: int, seeds: int, gain: float = 0.0) -> Studies:
    """Tasks whose true differences spread by 1 around the gain, and seeds by 0.2: for tasks like these alone."""
    gains = generator.normal(gain, 1, (studies, tasks, 1)) + generator.normal(0, 0.2, (studies, tasks, seeds))
    return Studies(gains, np.zeros((studies, tasks)))


def shared_rows(
    generator: Generator, studies: int, tasks: int, seeds: int, gain: float = 0.0, *, rows: int = 60, luck: float = 0.3
) -> Studies:
    """Accuracies on the same `rows` test rows for every seed of a task.

    A row is right where its ease, the method's liking for it, the seed's luck and chance add up to more than 0. Liking
    is what seeds share: on endless rows both methods are equally good. `gain` is added to one method.
    """
    shape = (studies, tasks, 2, seeds, rows)
    chance = generator.standard_normal(shape, dtype=np.float32) * 0.3
    ease = generator.normal(1, 1, (studies, tasks, 1, 1, rows)).astype(np.float32)
    liking = 0.4 * generator.standard_normal((studies, tasks, 2, 1, rows), dtype=np.float32)
    of_seed = luck * generator.standard_normal((studies, tasks, 2, seeds, 1), dtype=np.float32)
    right = ease + liking + of_seed + chance + np.float32(gain) * np.array([1, 0], np.float32)[:, None, None] > 0
    differences = right[:, :, 0].astype(np.float32) - right[:, :, 1]
    squares = differences.mean(2).astype(float) ** 2  # over seeds
    return Studies(differences.mean(-1).astype(float), np.sqrt(squares.sum(-1) + 2 * squares.max(-1)) / rows)


# --------------------------------------------------------------------------------------------------------- the verdicts


def judged(found: Studies) -> tuple[np.ndarray, np.ndarray]:
    """Whether one is said to be better (N,): on these tasks, and on tasks like these."""
    means, seeds = found.gains.mean(-1), found.gains.shape[-1]
    squares = found.gains.var(-1, ddof=1) / seeds if seeds > 1 else np.zeros_like(means)
    widths = half_widths(means, squares, np.full(means.shape[-1], seeds), found.rows)
    if means.shape[-1] == 1:
        here = told_apart(means.mean(-1), widths.here)
        return here, np.zeros_like(here)
    return statements(means.mean(-1), widths, paired=True)


def bootstrapped(found: Studies, generator: Generator, resamples: int = 500) -> np.ndarray:
    """Whether the expanded percentile interval of a bootstrap over tasks, then seeds, leaves out 0 (N,)."""
    studies, tasks, seeds = found.gains.shape
    n = tasks if tasks > 1 else seeds
    if n == 1:
        return np.zeros(studies, bool)
    tail = float(ndtr(sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    said = []
    for gains in found.gains:
        picks = generator.integers(tasks, size=(resamples, tasks, 1))
        means = gains[picks, generator.integers(seeds, size=(resamples, tasks, seeds))].mean((1, 2))
        low, high = np.quantile(means, [tail, 1 - tail])
        said.append(low > 1e-12 or high < -1e-12)
    return np.array(said)


# ---------------------------------------------------------------------------------------------------- choosing by folds


def fold_scores(
    generator: Generator,
    rows: int,
    candidates: int,
    *,
    by: Literal["accuracy", "nll"] = "accuracy",
    ease: float = 0.8,
    rounds: int = 3,
    folds: int = 5,
) -> dict[str, np.ndarray]:
    """Scores (J,) in the same folds of classifiers by the nearest centroid, each on four features of its own.

    All are equally good. Classes lie `ease` standard deviations apart.
    """
    labels = np.arange(rows) % 2
    held = []
    for _ in range(rounds):
        order = generator.permutation(rows)
        fold = np.empty(rows, int)
        fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(rows) % folds
        held += [fold == number for number in range(folds)]
    held = np.array(held)  # (J, N)
    parts = [(~held & (labels == label)).astype(float) for label in (0, 1)]
    scores = {}
    for number in range(candidates):
        features = generator.normal(size=(rows, 4)) + ease / 2 * labels[:, None]
        low, high = (part @ features / part.sum(1, keepdims=True) for part in parts)
        margins = (high - low) @ features.T - ((high**2 - low**2).sum(1) / 2)[:, None]
        margins = np.where(labels == 1, margins, -margins)
        worth = margins > 0 if by == "accuracy" else -np.logaddexp(0, -margins)
        scores[f"candidate {number}"] = (worth * held).sum(1) / held.sum(1)
    return scores


def taken(scores: dict[str, np.ndarray], rows: int | None, folds: int = 5) -> bool:
    """Whether another than the first candidate is chosen, as `--method auto` chooses."""
    from handful.studies.auto import advantages_over, best_of  # imports torch

    return best_of(advantages_over("candidate 0", scores, ratio=1 / (folds - 1), rows=rows)) is not None


# ----------------------------------------------------------------------------------------------------------- the tables

SOURCES: dict[str, Callable[..., Studies]] = {
    "normal": normal,
    "heavy tails": heavy,
    "unlike tasks": unlike,
    "60 shared test rows": shared_rows,
    "tasks that differ": differing,
}


def table(studies: int, generator: Generator, gain: float, old: int) -> list[str]:
    """Lines of Markdown in percent: of `old` studies each by the old rule, on these tasks / on tasks like these now."""
    names = [f"{name}: {what}" for name in SOURCES for what in (("before", "now") if old else ("now",))]
    lines = [f"| tasks × seeds | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for tasks, seeds in CELLS:
        cells = []
        for source in SOURCES.values():
            scale = 0.3 if source is shared_rows else 1.0
            found = source(generator, min(studies, 200_000 // (tasks * seeds)), tasks, seeds, gain * scale)
            here, like = judged(found)
            if old:
                some = Studies(found.gains[:old], found.rows[:old])
                cells.append(f"{100 * bootstrapped(some, generator).mean():.0f}" if tasks * seeds > 1 else "–")
            first = f"{100 * here.mean():.1f}" if seeds > 1 and source is not differing else "–"
            second = f"{100 * like.mean():.1f}" if tasks > 1 else "–"
            cells.append(f"{first} / {second}")
        lines.append(f"| {tasks} × {seeds} | {' | '.join(cells)} |")
    return lines


def choices(studies: int, generator: Generator) -> list[str]:
    """Lines of Markdown: how often another than the probe is taken where all are equally good, in percent."""
    lines = ["| rows | by | 2 candidates | 3 candidates |", "|---:|---|---:|---:|"]
    for rows in (16, 50, 100, 300):
        for by in ("accuracy", "nll"):
            counted = rows if by == "accuracy" else None
            rates = [
                np.mean([taken(fold_scores(generator, rows, number, by=by), counted) for _ in range(studies)])
                for number in (2, 3)
            ]
            lines.append(f"| {rows} | {by} | {' | '.join(f'{100 * rate:.1f}' for rate in rates)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    print("False verdicts in %, no method being better\n")
    print("\n".join(table(arguments.studies, generator, 0.0, 1000)))
    print("\nTrue verdicts in %, one method being better by one standard deviation of seeds\n")
    print("\n".join(table(arguments.studies // 4, generator, 1.0, 0)))
    print("\n`--method auto`: another than the probe taken in %, all being equally good\n")
    print("\n".join(choices(arguments.studies // 10, generator)))


if __name__ == "__main__":
    main()
