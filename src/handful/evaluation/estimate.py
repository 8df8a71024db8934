"""Scores with their uncertainty.

Three different questions, three functions. `bootstrap_score`: this trained model, had the test rows been others
(`mean_of` several tasks' too).
`estimate_over_seeds`: this recipe, had the training rows and initial values been others. `paired_difference`: is
one recipe better than another on the same tasks, rows and seeds. An interval of the first kind says nothing
about the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import hypot, inf, isfinite, sqrt
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtrit

from handful.errors import ConfigError, DataError, nearest
from handful.evaluation.metric import Metric
from handful.evaluation.metrics import check_numbers, check_rows, confusion_counts, get_metric, measure, score


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and the interval that covers its true value with probability `level`.

    `n` counts what the uncertainty is over: test rows, seeds or pairs. `low` and `high` are None where one
    row or seed alone cannot tell. `method` says where the interval comes from.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    level: float = 0.95
    method: str = "unstated"

    def __post_init__(self) -> None:
        alone = self.low is None and self.high is None
        ordered = [self.mean] if alone else [self.low, self.mean, self.high]
        if not all(isinstance(x, int | float) and isfinite(x) for x in ordered) or ordered != sorted(ordered):
            raise DataError(f"expected finite low <= mean <= high, found {self.low!r}, {self.mean!r}, {self.high!r}")

    def __str__(self) -> str:
        interval = f"no interval, n={self.n}" if self.low is None else f"{self.low:z.3f}, {self.high:z.3f}"
        return f"{self.mean:z.3f} [{interval}]"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises: DataError for missing or unknown fields, or wrong values."""
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names[:4] if name not in record]:
            raise DataError(f"expected an estimate with {', '.join(names[:4])}, found no {', '.join(missing)}")
        if unknown := [name for name in record if name not in names]:
            raise DataError(f"expected the fields of an estimate, found {unknown[0]!r}", nearest(unknown[0], names))
        return cls(**record)


def bootstrap_score(
    metric: str | Metric,
    predictions: Any,
    targets: Any,
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """The metric of N rows with an interval for other rows of the same kind.

    `predictions` and `targets` as for `metrics.score`, which also gives the mean. The interval:

    - accuracy, exact-match: Wilson's, from a formula. Resampling rows gives [1, 1] when no row is wrong, Wilson's does
      not.
    - f1, macro_f1, matthews: percentiles of two bootstraps, spanning both. One resamples the rows. The other,
      Bayesian, draws the shares of the cells of the confusion matrix given the rows and one more that is spread
      evenly over the cells; it knows that an error not seen yet may still come. On 50 rows at a true accuracy
      of 0.97 resampling alone covers the true F1 in 77 % of samples instead of 95 %, both together in 99 %; at
      0.8 in 97 %. Resampling is the better one for macro_f1 of many classes with few rows each.
    - metrics of written texts: percentiles over resampled records, each with all of its references, whose statistics
      are added up anew: the mean of BLEU over texts is not the BLEU of a set of them.
    - all others: percentiles of the resampled rows. Means of skewed losses are covered a little too rarely on
      few rows (mse of normal errors in 92 % of samples of 50 rows, in 90 % of 20). That of ece is for the score
      on so many rows, upward bias included, and not for the error that endless rows would show.

    Percentiles are widened for small N as Student's t widens the normal ("expanded percentile interval",
    Hesterberg 2015), and the interval always contains the score itself. One row alone has no interval, except
    for accuracy and exact-match, which draw nothing from `generator`.
    """
    metric = get_metric(metric)
    predictions, targets = check_rows(metric, predictions, targets)
    _check_level(level)
    rows = len(targets)
    if metric.name == "accuracy":
        return wilson(int((predictions == targets).sum()), rows, level=level)
    if metric.name == "exact-match":
        return wilson(int(measure(metric, predictions, targets)[:, 0].sum()), rows, level=level)
    if metric.needs == "texts":
        mean, draws = _resample_records(metric, predictions, targets, generator, resamples if rows > 1 else 0)
    else:
        mean, draws = score(metric, predictions, targets), None
    if rows == 1:
        return Estimate(mean, None, None, 1, level, "one row")
    method = "bootstrap"
    if metric.needs == "labels":
        counts = confusion_counts(predictions, targets, metric.num_labels)
        draws, method = _resample_counts(metric, counts, generator, resamples), "bootstrap, with one row added"
    elif draws is None:
        draws = _resample_rows(metric, predictions, targets, generator, resamples)
    tail = ndtr(sqrt(rows / (rows - 1)) * stdtrit(rows - 1, (1 - level) / 2))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=-1)
    if metric.needs == "texts" and low == high:
        return Estimate(mean, None, None, rows, level, "every record scores alike: resampling cannot tell")
    return Estimate(mean, min(float(low.min()), mean), max(float(high.max()), mean), rows, level, method)


def _resample_rows(
    metric: Metric, predictions: np.ndarray, targets: np.ndarray, generator: np.random.Generator, resamples: int
) -> np.ndarray:
    """The metric (resamples,) of N rows drawn with replacement."""
    rows, function = len(targets), metric.function
    if metric.needs == "probabilities":
        picks = (generator.integers(rows, size=rows) for _ in range(resamples))
        return np.array([function(predictions[pick], targets[pick]) for pick in picks])
    picks = (generator.integers(rows, size=(size, rows)) for size in _portions(resamples, rows))
    return np.concatenate([function(predictions[pick], targets[pick]) for pick in picks])


def _resample_records(
    metric: Metric, texts: np.ndarray, records: np.ndarray, generator: np.random.Generator, resamples: int
) -> tuple[float, np.ndarray]:
    """The metric of written texts, and (resamples,) of records drawn with replacement, from sums of their statistics.

    Drawing N records with replacement is the same as drawing how often each is taken from a multinomial.
    """
    assert metric.combine is not None
    statistics, rows = measure(metric, texts, records), len(records)
    sums = [statistics.sum(0, keepdims=True)]
    for size in _portions(resamples, rows):
        sums.append(generator.multinomial(rows, np.full(rows, 1 / rows), size=size) @ statistics)
    scores = metric.combine(np.concatenate(sums))
    return float(scores[0]), scores[1:]


def _resample_counts(metric: Metric, counts: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """The metric (2, resamples): of rows drawn with replacement, and of drawn shares of the cells.

    Drawing N rows with replacement is the same as drawing the counts of their cells (C, C) from a multinomial.
    """
    cells, total = counts.ravel(), counts.sum()
    scores = []
    for size in _portions(resamples, cells.size):
        rows = generator.multinomial(total, cells / total, size=size)
        shares = generator.dirichlet(cells + 1 / cells.size, size=size)
        scores.append([metric.function(draw.reshape(size, *counts.shape)) for draw in (rows, shares)])
    return np.concatenate(scores, axis=1)


def _portions(resamples: int, width: int) -> list[int]:
    """Sizes that add up to `resamples`, each of at most 2 million numbers (16 MB) of that width."""
    size = max(1, 2_000_000 // width)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of n rows with Wilson's interval, which stays inside 0 to 1 and is not empty at either end.

    Recommended for small n by Brown, Cai and DasGupta (2001).
    """
    _check_level(level)
    z = float(ndtri((1 + level) / 2))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
    return Estimate(share, low, high, n, level, "Wilson")


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores on independent rows, such as of several tasks, had the rows of each been others.

    Its interval is recovered from theirs, which need not be symmetric: mean − √(Σ (m_i − l_i)²) / T and
    mean + √(Σ (u_i − m_i)²) / T (MOVER, Zou, Huang and Zhang 2009). None where one of them has none.
    """
    count, level = len(estimates), estimates[0].level
    mean, rows = sum(e.mean for e in estimates) / count, sum(e.n for e in estimates)
    below = [e.mean - e.low for e in estimates if e.low is not None]
    above = [e.high - e.mean for e in estimates if e.high is not None]
    if len(below) < count:
        return Estimate(mean, None, None, rows, level, "one row in a task")
    low, high = mean - hypot(*below) / count, mean + hypot(*above) / count
    return Estimate(mean, low, high, rows, level, f"MOVER over {count} tasks")


def estimate_over_seeds(
    values: ArrayLike, *, level: float = 0.95, limits: tuple[float, float] = (-inf, inf)
) -> Estimate:
    """The mean of one score a seed, with Student's t interval for the mean over all seeds.

    Student's t rather than a bootstrap: of 5 values the bootstrap's 95 % interval covers the mean in about 83 %
    of samples, while the t interval is right for values that are roughly normal. `values` (n,), each from an
    independent seed; `limits`, such as `Metric.range`, cut the interval. One value gives no interval; equal
    values give an empty one.
    """
    values = check_numbers("scores", values, "N")
    _check_level(level)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1, level, "one seed")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(values.std(ddof=1)) / sqrt(n)
    low, high = min(mean, max(mean - half, limits[0])), max(mean, min(mean + half, limits[1]))
    return Estimate(mean, low, high, n, level, "Student's t")


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Estimate:
    """The mean of a - b over pairs, with Student's t interval; 0 outside of it means that they differ.

    `a` and `b` (n,) hold one score a pair in the same order: the same task, shots and seed, hence the same rows.
    What a pair shares (an easy split, a hard task) cancels. Pairs must be independent: to speak about tasks in
    general, average over the seeds of each task first and pass one value a task. Raises: DataError for unequal
    lengths.
    """
    a, b = check_numbers("scores", a, "N"), check_numbers("scores", b, "N")
    if len(a) != len(b):
        raise DataError(
            f"expected scores in pairs, found {len(a)} and {len(b)}",
            "pair them by task, shots and seed, and leave out runs without a partner",
        )
    return estimate_over_seeds(a - b, level=level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"expected a level between 0 and 1, found {level!r}", "95 % is 0.95")
