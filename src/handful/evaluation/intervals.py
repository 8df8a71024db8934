"""Intervals of one score over test rows, by kind of metric; how often they cover is in `docs/experiments.md`.

Resampling rows alone covers too rarely on few rows: it knows nothing of errors that no row shows. Where a model is
right in 95 % of rows, a fifth of all sets of 30 holds no error, and every resample of such a set is perfect. Each
interval here therefore spans two that err in different directions: percentiles of resampled rows, and percentiles of
a Bayesian bootstrap (Rubin 1981) with a fraction of a row added that is as wrong as the model could be. Percentiles
are those of `tail`.

All of them are for the value of the metric on endless rows like these, and where they cannot reach 95 % they are
wider rather than narrower: close to a perfect score they cover 97 to 100 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, final

import numpy as np
from scipy.special import ndtr, stdtrit

from handful.evaluation.metric import Metric
from handful.evaluation.metrics import CALIBRATION_BINS, bin_by_confidence, top_label

ADDED = 0.5
"""Rows added to a mean of losses. With a whole one the intervals of good models are twice as wide and cover 99 to 100
%."""

FEWER_RESAMPLES = 400
"""Enough for a standard error, where percentiles need more; each resample of Spearman is ranked anew."""

BISECTIONS = 8
"""Halvings of the range in which the lower end of the ECE lies."""


def tail(rows: int, level: float) -> float:
    """The lower percentile of an interval from resampled rows, as a share.

    Smaller than (1 - level) / 2 on few rows, as Student's t is wider than the normal ("expanded percentile interval",
    Hesterberg 2015). Needs two rows.
    """
    return float(ndtr(sqrt(rows / (rows - 1)) * stdtrit(rows - 1, (1 - level) / 2)))


def of_classes(
    metric: Metric, counts: np.ndarray, level: float, generator: np.random.Generator, resamples: int
) -> tuple[float, float, str]:
    """F1, macro-F1 and Matthews, from confusion counts (C, C).

    Drawing N rows with replacement is drawing the counts of the cells from a multinomial. The Bayesian bootstrap
    draws the shares of the cells given the rows and one more that is spread evenly over the cells. Both are too low
    for macro-F1 of classes with few rows, whose F1 is 0 in many resamples; the upper end also spans a third draw,
    with half a row added to every class that is recognised.
    """
    if counts.size > MANY_CELLS:
        return _of_many_classes(metric, counts, level, generator, resamples)
    cells, total, edge = counts.ravel(), counts.sum(), tail(int(counts.sum()), level)
    added = np.full(cells.size, 1 / cells.size)
    right = added + 0.5 * np.eye(len(counts)).ravel()
    lows, highs = [], []
    draws = (
        lambda size: generator.multinomial(total, cells / total, size=size),
        lambda size: generator.dirichlet(cells + added, size=size),
        lambda size: generator.dirichlet(cells + right, size=size),
    )
    for draw in draws:
        parts = [metric.function(draw(size).reshape(size, *counts.shape)) for size in portions(resamples, cells.size)]
        low, high = np.quantile(np.concatenate(parts), [edge, 1 - edge])
        lows, highs = [*lows, low], [*highs, high]
    return float(min(lows[:2])), float(max(highs)), "bootstrap, with one row added"


MANY_CELLS = 10_000
"""From what number of cells on (100 classes) the empty ones are not drawn one by one: they are nearly all of them."""
STICKS = 12
"""Empty cells that the row which is spread over all of them falls into: what is left for others is 1/4096 of it."""


def _of_many_classes(
    metric: Metric, counts: np.ndarray, level: float, generator: np.random.Generator, resamples: int
) -> tuple[float, float, str]:
    """`of_classes`, drawing only the cells that rows are in, so that time grows with rows and not with C².

    A symmetric Dirichlet over very many cells, each with next to nothing, puts all of its mass into a few of them: it
    is drawn by breaking sticks (the Dirichlet process, which it tends to), at random places.
    """
    classes, edge = len(counts), tail(int(counts.sum()), level)
    taken = np.flatnonzero(counts)
    shown = np.union1d(taken, np.arange(classes) * (classes + 1))  # and the diagonal
    cells, diagonal = counts.ravel()[shown], shown % (classes + 1) == 0
    rest = max(1 - len(shown) / counts.size, 1e-9)
    added = np.full(len(shown), 1 / counts.size)

    def spread(weights: np.ndarray, size: int) -> Margins:
        drawn = generator.dirichlet(np.append(weights, rest), size=size)
        broken = generator.beta(1, rest, size=(size, STICKS))
        broken[:, -1] = 1
        left = np.cumprod(np.hstack([np.ones((size, 1)), 1 - broken[:, :-1]]), axis=1)
        places = generator.integers(counts.size, size=(size, STICKS))
        everywhere = np.hstack([np.broadcast_to(shown, (size, len(shown))), places])
        return Margins.of(everywhere, np.hstack([drawn[:, :-1], drawn[:, -1:] * broken * left]), classes)

    def resampled(size: int) -> Margins:
        drawn = generator.multinomial(counts.sum(), cells / counts.sum(), size=size)
        return Margins.of(np.broadcast_to(shown, drawn.shape), drawn, classes)

    lows, highs, function = [], [], metric.function
    draws = (
        resampled,
        lambda size: spread(cells + added, size),
        lambda size: spread(cells + added + diagonal / 2, size),
    )
    for draw in draws:
        margins: list[Any] = [draw(size) for size in portions(resamples, len(shown) + classes)]
        scores = np.concatenate([function(part) for part in margins])
        low, high = np.quantile(scores, [edge, 1 - edge])
        lows, highs = [*lows, low], [*highs, high]
    return float(min(lows[:2])), float(max(highs)), "bootstrap, with one row added"


@final
@dataclass(frozen=True)
class Margins:
    """What metrics of labels read of confusion counts (R, C, C): the diagonal, and sums over rows and columns.

    Each (R, C). `sum` and `diagonal` are those of the array.
    """

    right: np.ndarray
    of_target: np.ndarray
    of_prediction: np.ndarray

    @classmethod
    def of(cls, cells: np.ndarray, weights: np.ndarray, classes: int) -> Margins:
        """From weights (R, K) of cells (R, K), numbered row by row."""
        size = len(cells)
        first = np.arange(size)[:, None] * classes
        target, prediction = cells // classes, cells % classes

        def total(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
            found = np.bincount((first + places).ravel(), weights.ravel(), minlength=size * classes)
            return found.reshape(size, classes)

        right = np.where(target == prediction, weights, 0)
        return cls(total(target, right), total(target, weights), total(prediction, weights))

    def diagonal(self, *, axis1: int, axis2: int) -> np.ndarray:
        assert (axis1, axis2) == (-2, -1)
        return self.right

    def sum(self, axis: int | tuple[int, int]) -> np.ndarray:
        sums = {-1: self.of_target, -2: self.of_prediction, (-2, -1): self.of_target.sum(-1)}
        return sums[axis]


def of_means(
    metric: Metric,
    predictions: np.ndarray,
    targets: np.ndarray,
    level: float,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[float, float, str]:
    """NLL, Brier, mse and mae: means of a loss per row, which on good models is close to 0 but for a few rows.

    The Bayesian bootstrap has half a row added: a row of these with another answer, any class, or the target of another
    row. Where errors are rare but dear the upper end rests on it.
    """
    assert metric.rows is not None
    rows, losses, edge = len(targets), metric.rows(predictions, targets), tail(len(targets), level)
    answers = np.arange(predictions.shape[1]) if predictions.ndim == 2 else targets
    resampled, bayesian = [], []
    for size in portions(resamples, rows):
        resampled.append(losses[generator.integers(rows, size=(size, rows))].mean(1))
        weights, more = generator.standard_exponential((size, rows)), generator.standard_gamma(ADDED, size=size)
        wrong = metric.rows(predictions[generator.integers(rows, size=size)], generator.choice(answers, size=size))
        bayesian.append((weights @ losses + more * wrong) / (weights.sum(1) + more))
    ends = [np.quantile(np.concatenate(draws), [edge, 1 - edge]) for draws in (resampled, bayesian)]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends)), "bootstrap, with half a row added"


def of_correlation(
    metric: Metric,
    predictions: np.ndarray,
    targets: np.ndarray,
    level: float,
    generator: np.random.Generator,
    resamples: int,
) -> tuple[float, float, str]:
    """Spearman and Pearson: Fisher's z = artanh(r), with Student's t and the larger of two standard errors of z.

    One is the formula for normal values, sqrt((1 + r²/2) / (N - 3)) for Spearman (Bonett and Wright 2000) and 1 /
    sqrt(N - 3) for Pearson; the other is that of resampled rows, which is larger where errors are uneven. |r| counts
    as at most half a step of ranks below 1, so that a perfect order of few rows proves nothing. Fewer than four rows
    have the whole range.
    """
    rows = len(targets)
    if rows < 4:
        return *metric.range, "the whole range, for fewer than 4 rows"
    most = 1 - 6 / (rows**3 - rows)
    sizes = portions(min(resamples, FEWER_RESAMPLES), rows)
    picks = (generator.integers(rows, size=(size, rows)) for size in sizes)
    draws = np.concatenate([metric.function(predictions[pick], targets[pick]) for pick in picks])
    found = float(np.clip(metric.function(predictions, targets), -most, most))
    formula = sqrt((1 + found**2 / 2 if metric.name == "spearman" else 1) / (rows - 3))
    error = max(formula, float(np.arctanh(np.clip(draws, -most, most)).std()))
    half = float(stdtrit(rows - 2, (1 + level) / 2)) * error
    centre = np.arctanh(found)
    return float(np.tanh(centre - half)), float(np.tanh(centre + half)), "Fisher's z"


def of_calibration_error(
    probabilities: np.ndarray, targets: np.ndarray, level: float, generator: np.random.Generator, resamples: int
) -> tuple[float, float, str]:
    """The ECE that endless rows would show in the same bins, for which that of few rows is too high.

    A perfectly calibrated model scores 0.1 on 60 rows, so the lower end is a test: of all models between a perfectly
    calibrated one and one as far off as these rows say, bin by bin, the furthest off that would score this much or
    more with probability (1 - level) / 2; 0 where the perfectly calibrated one does ("consistency resampling",
    Bröcker and Smith 2007, along a line). The upper end is a percentile of drawn shares of right and wrong rows of
    the bins, with one row added.
    """
    confidence, correct = top_label(probabilities, targets)
    _, place = bin_by_confidence(confidence, CALIBRATION_BINS, adaptive=False)
    _, place, sizes = np.unique(place, return_inverse=True, return_counts=True)
    rows, edge = len(targets), tail(len(targets), level)
    right, sure = np.bincount(place, correct), np.bincount(place, confidence) / sizes
    found = float(np.abs(right - sizes * sure).sum() / rows)

    cells = np.stack([right, sizes - right], axis=1)
    shares = generator.dirichlet(cells.ravel() + 1 / cells.size, size=resamples).reshape(resamples, *cells.shape)
    high = float(np.quantile(np.abs(shares[..., 0] - shares.sum(-1) * sure).sum(-1), 1 - edge))

    drawn = generator.multinomial(rows, sizes / rows, size=resamples)
    seed = int(generator.integers(2**62))

    def usual(distance: float) -> float:
        """What hardly any set of rows exceeds where the model is so far off, 1 being what these rows say."""
        accuracy = np.clip(sure + distance * (right / sizes - sure), 0, 1)
        hits = np.random.default_rng(seed).binomial(drawn, accuracy)  # the same draws at every distance
        return float(np.quantile(np.abs(hits - drawn * sure).sum(1) / rows, 1 - edge))

    near, far = 0.0, 1.0
    if usual(0.0) < found:
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            near, far = (middle, far) if usual(middle) < found else (near, middle)
    return near * found, high, "tested against calibrated models; above, bootstrap with one row added"


def portions(resamples: int, width: int) -> Iterator[int]:
    """Sizes that add up to `resamples`, each of at most 2 million numbers (16 MB) of that width."""
    size = max(1, 2_000_000 // width)
    return (min(size, resamples - start) for start in range(0, resamples, size))
