"""Scores with their uncertainty.

Two different questions, two functions. `bootstrap_score`: this trained model, had the test rows been others
(`mean_of` several tasks' too).
`estimate_over_seeds`: this recipe, had the training rows and initial values been others. An interval of the first
kind says nothing about the second. Whether one recipe is better than another: `studies.verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import hypot, inf, isfinite, sqrt
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, ndtri, stdtrit

from handful.errors import ConfigError, DataError, nearest
from handful.evaluation import intervals
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

    `predictions` and `targets` as for `metrics.score`, which also gives the mean. The interval is for the value of the
    metric on endless rows like these; shares of intervals that cover it in simulation, of 30, 60 and 300 rows with two
    and six classes, balanced and not (`docs/experiments.md`, "Coverage of the intervals of single scores"):

    - accuracy, exact-match: Wilson's, from a formula (`wilson`); 93 to 98 %. Where counts are few its coverage moves in
      steps, and no interval of a share has 95 % everywhere.
    - f1, macro_f1, matthews: bootstraps (`intervals.of_classes`); 92 to 98 %, and up to 100 % where a model makes
      almost no error. macro_f1 of weak models on six uneven classes and 30 rows is the least: a class that no row
      belongs to is not scored, though it counts on endless rows.
    - nll, brier: `intervals.of_means`; 93 to 98 %, and up to 100 % where errors are rare but dear, such as a confident
      model that is right in 95 % of 30 rows: nothing in such rows says what its errors cost, so the interval is wide.
    - mse, mae: the same; 92 to 99 % for errors about as large as each other. Of heavy-tailed errors (Student's t of
      three degrees of freedom) mse is covered in 80 to 90 %: a few rows that are not among the tested make up most of
      it.
    - spearman, pearson: `intervals.of_correlation`; spearman 90 to 99 %. Heavy-tailed or uneven errors move pearson
      as they move mse: 84 to 97 %.
    - ece: `intervals.of_calibration_error`, for the ECE of the same bins on endless rows; 93 to 100 %. It is wide, and
      reaches 0 for models that may be perfectly calibrated: the score itself is biased upwards on few rows.
    - metrics of written texts: percentiles over resampled records, each with all of its references, whose statistics
      are added up anew: the mean of BLEU over texts is not the BLEU of a set of them.

    The interval always contains the score itself. One row alone has no interval, except for accuracy and exact-match,
    which draw nothing from `generator`.
    """
    metric = get_metric(metric)
    if metric.estimate is not None:
        return metric.estimate(metric, predictions, targets, generator=generator, resamples=resamples, level=level)
    predictions, targets = check_rows(metric, predictions, targets)
    check_level(level)
    rows = len(targets)
    if metric.name == "accuracy":
        return wilson(int((predictions == targets).sum()), rows, level=level)
    if metric.name == "exact-match":
        return wilson(int(measure(metric, predictions, targets)[:, 0].sum()), rows, level=level)
    if metric.needs == "texts":
        return _of_records(metric, predictions, targets, level, generator, resamples)
    mean = score(metric, predictions, targets)
    if rows == 1:
        return Estimate(mean, None, None, 1, level, "one row")
    if metric.needs == "labels":
        counts = confusion_counts(predictions, targets, metric.num_labels)
        low, high, method = intervals.of_classes(metric, counts, level, generator, resamples)
    elif metric.rows is not None:
        low, high, method = intervals.of_means(metric, predictions, targets, level, generator, resamples)
    elif metric.needs == "values":
        low, high, method = intervals.of_correlation(metric, predictions, targets, level, generator, resamples)
    else:
        low, high, method = intervals.of_calibration_error(predictions, targets, level, generator, resamples)
    least, most = metric.range
    return Estimate(mean, max(min(low, mean), least), min(max(high, mean), most), rows, level, method)


def _of_records(
    metric: Metric,
    texts: np.ndarray,
    records: np.ndarray,
    level: float,
    generator: np.random.Generator,
    resamples: int,
) -> Estimate:
    """The metric of written texts, with percentiles of resampled records."""
    rows = len(records)
    mean, draws = _resample_records(metric, texts, records, generator, resamples if rows > 1 else 0)
    if rows == 1:
        return Estimate(mean, None, None, 1, level, "one row")
    edge = intervals.tail(rows, level)
    low, high = np.quantile(draws, [edge, 1 - edge])
    if low == high:
        return Estimate(mean, None, None, rows, level, "every record scores alike: resampling cannot tell")
    return Estimate(mean, min(float(low), mean), max(float(high), mean), rows, level, "bootstrap")


def _resample_records(
    metric: Metric, texts: np.ndarray, records: np.ndarray, generator: np.random.Generator, resamples: int
) -> tuple[float, np.ndarray]:
    """The metric of written texts, and (resamples,) of records drawn with replacement, from sums of their statistics.

    Drawing N records with replacement is the same as drawing how often each is taken from a multinomial.
    """
    assert metric.combine is not None
    statistics, rows = measure(metric, texts, records), len(records)
    sums = [statistics.sum(0, keepdims=True)]
    for size in intervals.portions(resamples, rows):
        sums.append(generator.multinomial(rows, np.full(rows, 1 / rows), size=size) @ statistics)
    scores = metric.combine(np.concatenate(sums))
    return float(scores[0]), scores[1:]


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of n rows with Wilson's interval, which stays inside 0 to 1 and is not empty at either end.

    Recommended for small n by Brown, Cai and DasGupta (2001), with their correction beside the ends: where one to
    three (on up to 50 rows: two) rows are right, or wrong, the limit there is Poisson's. Without it 30 rows cover a
    true share of 0.995 in 86 % of samples.
    """
    check_level(level)
    z = float(ndtri((1 + level) / 2))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high, few = centre - half, centre + half, min(2 if n <= 50 else 3, n // 2)
    if 0 < successes <= few:
        low = min(low, float(gammaincinv(successes, 1 - level)) / n)
    if 0 < n - successes <= few:
        high = max(high, 1 - float(gammaincinv(n - successes, 1 - level)) / n)
    return Estimate(share, max(0.0, min(low, share)), min(1.0, max(high, share)), n, level, "Wilson")


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
    check_level(level)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1, level, "one seed")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(values.std(ddof=1)) / sqrt(n)
    low, high = min(mean, max(mean - half, limits[0])), max(mean, min(mean + half, limits[1]))
    return Estimate(mean, low, high, n, level, "Student's t")


def check_level(level: float) -> None:
    """Raises: ConfigError for a level that is not between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError(f"expected a level between 0 and 1, found {level!r}", "95 % is 0.95")
