"""How often the 95 % interval of one score covers the true value: `python benchmarks/coverage.py --samples 2000`.

Populations with a known truth, such as two classes at 90 to 10 and a model that is right in 95 % of rows, give sets
of 30, 60 and 300 test rows; each set gives a score with its interval (`evaluation.estimate.bootstrap_score`). The
truth is the value of the metric for the same fixed model on endless rows; for `ece` that of the same 15 bins. Metrics
of label sets (`label_set_intervals.estimate_label_sets`) are called "sets:micro_f1" and so on. A cell of the printed
table holds the share of intervals that cover it, in per cent, and the median width. Nothing is trained, and nothing but
numpy and scipy is needed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

from handful.evaluation.estimate import Estimate, bootstrap_score
from handful.evaluation.label_set_intervals import estimate_label_sets
from handful.evaluation.label_set_metrics import LABEL_SET_METRICS, score_label_sets
from handful.evaluation.metrics import METRICS, score

ENDLESS = 1_000_000
"""Rows from which a truth without a formula is taken."""

Rows = tuple[np.ndarray, np.ndarray]
Draw = Callable[[int, np.random.Generator], Rows]


@final
@dataclass(frozen=True)
class Population:
    """A fixed model and endless rows: `draw(n, generator)` gives predictions and targets, `truths` is by metric."""

    name: str
    draw: Draw
    truths: dict[str, float]
    estimate: Callable[..., Estimate] = bootstrap_score


# ------------------------------------------------------------------------------------------------------- of classes

BALANCES = {
    "2 classes": np.full(2, 1 / 2),
    "90:10": np.array([0.9, 0.1]),
    "6 classes": np.full(6, 1 / 6),
    "6 classes, 50 % to 5 %": np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]),
}
ERRORS = (0.7, 0.3, 0.08, 0.015)
"""Share of rows whose prediction does not look at the text, and is drawn by the sizes of the classes."""


def class_populations() -> Iterator[Population]:
    for name, shares in BALANCES.items():
        for blind in ERRORS:
            table = np.diag(shares) * (1 - blind) + np.outer(shares, shares) * blind
            accuracy = float(np.trace(table))
            names = [
                m
                for m, metric in METRICS.items()
                if metric.needs == "labels" and metric.num_labels in (None, len(shares))
            ]
            truths = {m: float(METRICS[m].function(table)) for m in names}
            yield Population(f"{name}, accuracy {accuracy:.3f}", draw_cells(table), truths)


def draw_cells(table: np.ndarray) -> Draw:
    """Rows whose target and prediction are drawn by a table of shares (C, C)."""

    def draw(rows: int, generator: np.random.Generator) -> Rows:
        cells = generator.choice(table.size, size=rows, p=table.ravel())
        return cells % len(table), cells // len(table)

    return draw


# ------------------------------------------------------------------------------------------------- of probabilities

CONFIDENCE = {"calibrated": 1.0, "too sure": 3.0, "unsure": 0.4}


def probability_populations() -> Iterator[Population]:
    for classes in (2, 6):
        for sharpness in (1.0, 3.0, 8.0):
            for name, factor in CONFIDENCE.items():
                draw, logits = draw_probabilities(classes, sharpness, factor), np.random.default_rng(0)
                predictions, targets = draw(ENDLESS, logits)
                truths = {m: score(m, predictions, targets) for m in ("nll", "brier", "ece")}
                accuracy = float((predictions.argmax(1) == targets).mean())
                yield Population(f"{classes} classes, {name}, accuracy {accuracy:.3f}", draw, truths)


def draw_probabilities(classes: int, sharpness: float, factor: float) -> Draw:
    """Labels drawn by probabilities softmax(logits), and predicted ones softmax(factor · logits)."""

    def draw(rows: int, generator: np.random.Generator) -> Rows:
        logits = generator.normal(scale=sharpness, size=(rows, classes))
        gumbel = generator.gumbel(size=logits.shape)
        wild = np.exp(factor * (logits - logits.max(1, keepdims=True)))
        return wild / wild.sum(1, keepdims=True), (logits + gumbel).argmax(1)

    return draw


# --------------------------------------------------------------------------------------------------------- of values


def value_populations() -> Iterator[Population]:
    for name, noise in NOISES.items():
        for correlation in (0.3, 0.7, 0.95):
            draw = draw_values(noise, correlation, ordinal=False)
            yield from_endless(f"correlation {correlation}, {name} errors", draw)
    for correlation in (0.3, 0.7, 0.95):
        yield from_endless(
            f"correlation {correlation}, targets in six steps", draw_values(NOISES["normal"], correlation, ordinal=True)
        )


def from_endless(name: str, draw: Draw) -> Population:
    predictions, targets = draw(ENDLESS, np.random.default_rng(0))
    return Population(name, draw, {m: score(m, predictions, targets) for m in ("spearman", "pearson", "mse", "mae")})


NOISES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "normal": lambda signal, generator: generator.normal(size=signal.shape),
    "heavy-tailed": lambda signal, generator: generator.standard_t(3, size=signal.shape) / np.sqrt(3),
    "uneven": lambda signal, generator: generator.normal(size=signal.shape) * np.abs(signal),
}


def draw_values(
    noise: Callable[[np.ndarray, np.random.Generator], np.ndarray], correlation: float, ordinal: bool
) -> Draw:
    """Predictions whose signal has variance 1, and targets that follow them with errors; `ordinal` in six steps."""

    def draw(rows: int, generator: np.random.Generator) -> Rows:
        signal = generator.normal(size=rows)
        target = correlation * signal + np.sqrt(1 - correlation**2) * noise(signal, generator)
        return signal, np.clip(np.round(target), -2, 3) if ordinal else target

    return draw


# ----------------------------------------------------------------------------------------------------- of label sets

SETS = "sets:"
LABEL_SHARES = {
    "6 labels, 30 %": np.full(6, 0.3),
    "6 labels, 40 % to 3 %": np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03]),
    "28 labels, 30 % to 0.5 %": np.geomspace(0.3, 0.005, 28),
}
ENDLESS_SETS = 200_000
CUT = 0.4
"""Probability above which a label is predicted."""


def label_set_populations() -> Iterator[Population]:
    for shares_name, shares in LABEL_SHARES.items():
        for unseen in (0.7, 0.3, 0.05):
            for name, factor in CONFIDENCE.items():
                found = draw_label_sets(shares, unseen, factor)
                probabilities, targets = found(ENDLESS_SETS, np.random.default_rng(0))
                kinds = {"sets": (probabilities > CUT).astype(int), "set_probabilities": probabilities}
                # how sure a model is changes neither its ranking nor, by much, its sets
                names = [m for m in LABEL_SET_METRICS if m in ("nll", "ece") or name == "calibrated"]
                truths = {m: score_label_sets(m, kinds[LABEL_SET_METRICS[m].needs], targets) for m in names}
                called = f"{shares_name}, {name}, {1 - unseen:.0%} seen"
                for needs in kinds:
                    own = {SETS + m: truth for m, truth in truths.items() if LABEL_SET_METRICS[m].needs == needs}
                    yield Population(called, cut(found) if needs == "sets" else found, own, estimate_label_sets)


def draw_label_sets(shares: np.ndarray, unseen: float, factor: float) -> Draw:
    """Labels (N, C) that depend on each other, and probabilities given a part of what decides them, as logits times
    `factor`. A label is there where a normal value, of which the share `unseen` is not seen, exceeds its quantile.
    """

    def draw(rows: int, generator: np.random.Generator) -> Rows:
        def normal() -> np.ndarray:
            of_row = generator.normal(size=(rows, 1))
            return np.sqrt(0.3) * of_row + np.sqrt(0.7) * generator.normal(size=(rows, len(shares)))

        seen = ndtri(shares) + np.sqrt(1 - unseen) * normal()
        targets = (seen + np.sqrt(unseen) * normal() > 0).astype(int)
        return expit(factor * logit(np.clip(ndtr(seen / np.sqrt(unseen)), 1e-9, 1 - 1e-9))), targets

    return draw


def cut(draw: Draw) -> Draw:
    """The same rows with predicted sets in place of probabilities."""

    def sets(rows: int, generator: np.random.Generator) -> Rows:
        probabilities, targets = draw(rows, generator)
        return (probabilities > CUT).astype(int), targets

    return sets


# --------------------------------------------------------------------------------------------------------- the table


def coverage(
    population: Population, metric: str, rows: int, samples: int, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Share of intervals below the truth, share above it, and the median width, over so many sets of rows."""
    generator = np.random.default_rng([seed, rows])
    truth, below, above, widths = population.truths[metric], 0, 0, []
    for _ in range(samples):
        drawn, name = population.draw(rows, generator), metric.removeprefix(SETS)
        found = population.estimate(name, *drawn, generator=generator, resamples=resamples)
        assert found.low is not None and found.high is not None
        below, above = below + (found.high < truth - 1e-12), above + (found.low > truth + 1e-12)
        widths.append(found.high - found.low)
    return below / samples, above / samples, float(np.median(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000, help="sets of test rows per cell")
    parser.add_argument("--resamples", type=int, default=1000, help="of each set, as in bootstrap_score")
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 60, 300])
    known = [m for m, metric in METRICS.items() if metric.needs != "texts"] + [SETS + m for m in LABEL_SET_METRICS]
    parser.add_argument("--metric", nargs="+", default=known)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    makers = {
        "labels": class_populations,
        "probabilities": probability_populations,
        "values": value_populations,
        SETS: label_set_populations,
    }
    wanted = {SETS if metric.startswith(SETS) else METRICS[metric].needs for metric in options.metric}
    populations = [population for needs, make in makers.items() if needs in wanted for population in make()]
    print(f"| metric | population | truth | {' | '.join(f'{rows} rows' for rows in options.rows)} |")
    print("|---|---|---:|" + "---|" * len(options.rows))
    for metric in options.metric:
        for population in populations:
            if metric not in population.truths:
                continue
            cells, started = [], time.perf_counter()
            for rows in options.rows:
                below, above, width = coverage(
                    population, metric, rows, options.samples, options.resamples, options.seed
                )
                cells.append(f"{100 * (1 - below - above):.1f} ({100 * below:.1f}, {100 * above:.1f}), {width:.3f}")
            print(
                f"| {metric} | {population.name} | {population.truths[metric]:.3f} | {' | '.join(cells)} |", flush=True
            )
            print(f"{metric} {population.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
