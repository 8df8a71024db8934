"""Metrics: what each measures and leaves out, which tasks it is for, and what it has to be given.

Every metric is one function. Those of predicted classes work on confusion counts, so that the reported number
and thousands of resamples of it (`estimate.bootstrap_score`) come from the same few lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from math import inf, log
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from handful.data.task import TaskKind
from handful.errors import ConfigError, DataError, nearest
from handful.evaluation.metric import Metric, Needs
from handful.evaluation.text.metrics import GENERATION_METRICS, RETIRED

SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)
_LARGEST_NLL = -log(SMALLEST_PROBABILITY)
CALIBRATION_BINS = 15

ADVICE: dict[Needs, str] = {
    "labels": "pass class indices (N), or one score a class (N, C)",
    "probabilities": "pass those of all classes (N, C), such as apply_temperature(logits, 1.0)",
    "values": "pass one number a row (N), such as scores[:, 0]",
    "texts": "pass the written texts (N), and as targets the records (N) with their references",
}


def score(metric: str | Metric, predictions: Any, targets: Any) -> float:
    """The metric of N rows.

    `predictions` are what `metric.needs` says: class indices (N,), probabilities (N, C) or values (N,). A metric
    of class indices also takes one score a class (N, C), of which the highest is the prediction (of equal ones
    the first). `targets` are class indices or values (N,); of written texts (N,) they are the records, examples with
    references. Raises: ConfigError for an unknown metric, DataError for arrays of wrong shape, length, type or content.
    """
    metric = get_metric(metric)
    predictions, targets = check_rows(metric, predictions, targets)
    if metric.combine is not None:
        return float(metric.combine(measure(metric, predictions, targets).sum(0, keepdims=True))[0])
    if metric.needs == "labels":
        return float(metric.function(confusion_counts(predictions, targets, metric.num_labels)))
    return float(metric.function(predictions, targets))


def measure(metric: Metric, texts: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Statistics (N, F) of rows, whose sums over any rows `metric.combine` turns into the score of these."""
    if metric.needs == "texts":
        return cast(np.ndarray, metric.function(texts.tolist(), records.tolist()))
    return cast(np.ndarray, metric.function(texts, records))


def get_metric(name: str | Metric, kind: TaskKind | None = None) -> Metric:
    """The metric of that name (a `Metric` is passed through), in the variant for this kind of task.

    Also of a metric that is only read from older runs. Variants of one name differ in what they are given; range and
    direction are the same. Raises: ConfigError naming the nearest one.
    """
    if isinstance(name, Metric):
        return name
    tables = [METRICS, *map(_variants, _VARIANTS), {metric.name: metric for metric in RETIRED}]
    if kind in _VARIANTS:
        tables.insert(0, _variants(kind))
    for table in tables:
        if name in table:
            return table[name]
    known = [known for table in tables[:-1] for known in table]
    raise ConfigError(f"expected the name of a metric, found {name!r}", nearest(name, known))


def metrics_of(kind: TaskKind) -> list[Metric]:
    """All metrics for a kind of task."""
    table = _variants(kind) if kind in _VARIANTS else METRICS
    return [metric for metric in table.values() if kind in metric.kinds]


_VARIANTS: dict[str, tuple[str, str]] = {"multilabel": ("handful.evaluation.label_set_metrics", "LABEL_SET_METRICS")}
"""Kinds of task with metrics of their own, under names that others have too: a module, and its table by name."""


def _variants(kind: str) -> Mapping[str, Metric]:
    module, table = _VARIANTS[kind]
    return getattr(import_module(module), table)


def check_metric(name: str | Metric, kind: TaskKind, num_labels: int) -> Metric:
    """The metric, if it can score tasks of this kind with this many classes (0 for regression).

    Raises: ConfigError naming metrics that can, or what must be installed for this one.
    """
    metric = get_metric(name, kind)
    if kind not in metric.kinds:
        fitting = [other.name for other in metrics_of(kind)]
        kinds = " and ".join(sorted(metric.kinds))
        raise ConfigError(
            f"expected a metric for {kind} tasks, found {metric.name!r}, which is for {kinds}",
            f"for {kind}: {', '.join(fitting)}",
        )
    if metric.num_labels not in (None, num_labels):
        raise ConfigError(
            f"expected {metric.num_labels} classes for metric {metric.name!r}, found {num_labels}",
            "use 'macro_f1', the mean over the classes of each one's F1",
        )
    if metric.ready is not None:
        metric.ready()
    return metric


# ---------------------------------------------------------------------------------------------- checks of arrays


def check_rows(metric: Metric, predictions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets as arrays of what the metric needs. Raises: DataError naming the first wrong row."""
    if metric.check is not None:
        return metric.check(metric, predictions, targets)
    if metric.needs == "texts":
        return _check_texts(predictions, targets)
    hint = f"metric {metric.name!r} needs {metric.needs}: {ADVICE[metric.needs]}"
    if metric.needs == "values":
        predictions = check_numbers("predictions", predictions, "N", hint)
        targets = check_numbers("targets", targets, "N")
    elif metric.needs == "labels":
        if np.ndim(predictions) == 2:
            predictions = check_numbers("predictions", predictions, "NC", hint).argmax(axis=1)
        predictions = check_classes("predictions", predictions, metric.num_labels, hint)
        targets = check_classes("targets", targets, metric.num_labels)
    else:
        predictions = check_numbers("predictions", predictions, "NC", hint)
        wrong = (predictions.min(axis=1) < 0) | (abs(predictions.sum(axis=1) - 1) > 1e-3)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"expected probabilities that sum to 1, found {predictions[row].tolist()} in row {row}", hint
            )
        targets = check_classes("targets", targets, predictions.shape[1])
    check_same_length(predictions, targets)
    return predictions, targets


def _check_texts(texts: Any, records: Any) -> tuple[np.ndarray, np.ndarray]:
    texts, records = np.array(texts, dtype=object), np.array(records, dtype=object)
    check_same_length(texts, records)
    if texts.ndim != 1 or not len(texts):
        raise DataError(f"expected one written text a record, found shape {texts.shape}", ADVICE["texts"])
    for row, (text, record) in enumerate(zip(texts, records, strict=True)):
        if not isinstance(text, str):
            raise DataError(f"expected a written text, found {text!r} in row {row}", ADVICE["texts"])
        if not getattr(record, "references", ()):
            raise DataError(f"expected a record with references, found {record!r} in row {row}", ADVICE["texts"])
    return texts, records


def check_numbers(what: str, values: ArrayLike, axes: str, hint: str | None = None) -> np.ndarray:
    """The values as finite float64 with one axis a letter of `axes`, none of them empty. Raises: DataError."""
    array = np.asarray(values)
    if array.ndim != len(axes) or array.dtype.kind not in "fiu":
        raise DataError(f"expected {what} as numbers ({', '.join(axes)}), found {array.dtype} {array.shape}", hint)
    if array.size == 0:
        raise DataError(f"expected at least one row of {what}, found shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(
            f"expected finite {what}, found {array[place]} in row {place[0]}",
            "non-finite predictions mean that training diverged: lower the learning rate",
        )
    return array


def check_classes(what: str, values: ArrayLike, num_labels: int | None, hint: str | None = None) -> np.ndarray:
    """The values (N,) as class indices from 0 to `num_labels` - 1 (None: no upper bound). Raises: DataError."""
    array = np.asarray(values)
    if array.size == 0:
        raise DataError(f"expected at least one row of {what}, found shape {array.shape}")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"expected {what} as class indices (N), found {array.dtype} {array.shape}", hint)
    wrong = (array < 0) | (array >= (inf if num_labels is None else num_labels))
    if wrong.any():
        row = int(wrong.argmax())
        last = "" if num_labels is None else f" below {num_labels}"
        raise DataError(f"expected {what} to be class indices from 0{last}, found {array[row]} in row {row}", hint)
    return array.astype(np.int64)


def check_same_length(predictions: np.ndarray, targets: np.ndarray) -> None:
    if len(predictions) != len(targets):
        raise DataError(f"expected a target for every prediction, found {len(predictions)} and {len(targets)} rows")


# ------------------------------------------------------------------------------------------- of predicted classes


def confusion_counts(predictions: np.ndarray, targets: np.ndarray, num_labels: int | None = None) -> np.ndarray:
    """Counts (C, C): entry i, j is the number of rows of class i that were predicted as class j.

    Takes class indices (N,) twice. C is `num_labels`; without it, classes that occur in neither array are left
    out, which changes no metric here (C is 2 at least).
    """
    both = np.stack([targets, predictions])
    if num_labels is None:
        seen, both = np.unique(both, return_inverse=True)
        num_labels = max(2, len(seen))
    cells = both[0] * num_labels + both[1]
    return np.bincount(cells, minlength=num_labels**2).reshape(num_labels, num_labels)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """The share of rows whose predicted class is the target.

    It weighs every row alike, so on unbalanced data it mostly measures the frequent classes: always answering
    the class of 90 % of the rows scores 0.9. It does not see how sure the model was.

    `counts` (..., C, C), target by predicted class. Returns (...), from 0 to 1.
    """
    return _diagonal(counts).sum(-1) / counts.sum((-2, -1))


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of the positive class: the harmonic mean of its precision and recall, 2 TP / (2 TP + FP + FN).

    The positive class is the one at index 1 of `Task.labels`, as in GLUE's MRPC and QQP, whose labels are
    not_equivalent and equivalent. Rows of the other class that are rightly recognised do not count, so swapping
    the two classes changes the score, and always answering "positive" scores well where positives are many.
    Where the positive class is neither target nor prediction of any row the score is 0.

    `counts` (..., 2, 2), target by predicted class. Returns (...), from 0 to 1.
    """
    return _class_f1(counts)[..., 1]


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """The unweighted mean over the classes of each one's F1.

    A rare class counts as much as a frequent one, so with few rows of it a single row can move the score by
    several points. The mean runs over the classes that occur among targets or predictions (as in scikit-learn):
    a class that occurs in neither is left out, one that is only ever wrongly predicted counts as 0.

    `counts` (..., C, C), target by predicted class. Returns (...), from 0 to 1.
    """
    occurs = counts.sum(-1) + counts.sum(-2) > 0
    return _class_f1(counts).sum(-1) / occurs.sum(-1)


def matthews(counts: np.ndarray) -> np.ndarray:
    """Matthews correlation: the correlation between predicted and target classes, GLUE's metric for CoLA.

    1 is perfect, 0 is what guessing without looking at the rows earns at any class balance, negative is worse
    than that. With more than two classes it is Gorodkin's R_K, whose minimum lies between -1 and 0.
    Where all predictions, or all targets, are one class there is nothing to correlate and the score is 0, even
    if every row is right.

    `counts` (..., C, C), target by predicted class. Returns (...), from -1 to 1.
    """
    of_target, of_prediction, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1)).astype(np.float64)
    covariance = total * _diagonal(counts).sum(-1) - (of_target * of_prediction).sum(-1)
    variance_of_target = total**2 - (of_target**2).sum(-1)
    variance_of_prediction = total**2 - (of_prediction**2).sum(-1)
    return _ratio(covariance, np.sqrt(variance_of_target * variance_of_prediction))


def _class_f1(counts: np.ndarray) -> np.ndarray:
    """F1 (..., C) of every class; 0 where a class does not occur."""
    return _ratio(2.0 * _diagonal(counts), counts.sum(-1) + counts.sum(-2))


def _diagonal(counts: np.ndarray) -> np.ndarray:
    return counts.diagonal(axis1=-2, axis2=-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


# ----------------------------------------------------------------------------------------------- of probabilities


def negative_log_likelihood(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The mean of -ln p(target class), in nats; what training by cross-entropy minimises.

    It judges the probabilities, not only the answers: ln C is a model that knows nothing, and one confident
    mistake can outweigh a hundred good rows. Probabilities below 2.2e-16 (`SMALLEST_PROBABILITY`) count as that, so
    a row costs at most 36.04 and the score stays finite.

    `probabilities` (N, C), `targets` (N,) class indices. Range 0 to 36.04.
    """
    return float(_surprises(probabilities, targets).mean())


def _surprises(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln p (N,) of each row's target class."""
    of_target = probabilities[np.arange(len(targets)), targets]
    return -np.log(np.clip(of_target, SMALLEST_PROBABILITY, 1.0))


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Brier score: the mean squared distance between the probabilities and the one-hot target.

    The sum runs over all C classes (Brier 1950): the range is 0 to 2, and with two classes the score is twice
    that of the form which looks at the positive class only. It mixes calibration and sharpness, and unlike the
    log-likelihood forgives a confident mistake at a bounded price.

    `probabilities` (N, C), `targets` (N,) class indices.
    """
    return float(_squared_distances(probabilities, targets).mean())


def _squared_distances(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The squared distance (N,) of each row's probabilities to its one-hot target."""
    one_hot = np.eye(probabilities.shape[1])[targets]
    return ((probabilities - one_hot) ** 2).sum(axis=1)


def expected_calibration_error(
    probabilities: np.ndarray, targets: np.ndarray, *, bins: int = CALIBRATION_BINS, adaptive: bool = False
) -> float:
    """Top-label expected calibration error (Guo et al. 2017): by how much confidence and accuracy disagree.

    Rows are put into bins by the probability of their predicted class; the score is the mean over rows of the
    gap between a bin's mean confidence and its accuracy. It ignores the probabilities of all other classes, and
    a model that always answers the base rate can score 0. It is biased upwards on few rows: a perfectly
    calibrated binary model scores about 0.13 on 50 rows, 0.07 on 200 and 0.03 on 1,000, so compare it only
    between models on the same rows.

    `probabilities` (N, C), `targets` (N,) class indices. Bins are of equal width, or with `adaptive` of equal
    numbers of rows (rows of equal confidence stay together). Range 0 to 1.
    """
    confidence, correct = top_label(probabilities, targets)
    _, position = bin_by_confidence(confidence, bins, adaptive)
    return float(np.abs(np.bincount(position, weights=correct - confidence, minlength=bins)).sum() / len(targets))


def top_label(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability (N,) of the predicted class of each row, and whether that class is right (N,)."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets


def bin_by_confidence(confidence: np.ndarray, bins: int, adaptive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Edges (bins + 1,), and the bin (N,) of each row: bin i holds edge i < confidence <= edge i + 1."""
    steps = np.linspace(0.0, 1.0, bins + 1)
    edges = np.quantile(confidence, steps) if adaptive else steps
    return edges, np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


# ------------------------------------------------------------------------------------------------------ of values


def pearson(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pearson's linear correlation between predicted and target values.

    It does not see shift or scale: predictions ten times too large, or off by a constant, still score 1. One
    outlier can make or break it. Constant predictions or targets, and a single row, score 0.

    `predictions` (..., N), `targets` (..., N). Returns (...), from -1 to 1.
    """
    return np.clip((_direction(predictions) * _direction(targets)).sum(-1), -1.0, 1.0)


def _direction(values: np.ndarray) -> np.ndarray:
    """The values (..., N) centred and scaled to length 1, or zeros where they are all equal."""
    constant = (values == values[..., :1]).all(-1, keepdims=True)
    centred = np.where(constant, 0.0, values - values.mean(-1, keepdims=True))  # rounding can leave a rest
    centred = _ratio(centred, np.abs(centred).max(-1, keepdims=True))  # lest squares underflow
    return _ratio(centred, np.linalg.norm(centred, axis=-1, keepdims=True))


def spearman(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation: Pearson's correlation of the ranks, ties sharing their mean rank.

    It sees only the order of the rows, so any increasing function of perfect predictions scores 1. Constant
    predictions or targets, and a single row, score 0.

    `predictions` (..., N), `targets` (..., N). Returns (...), from -1 to 1.
    """
    from scipy.stats import rankdata  # half a second to import, for this metric alone

    return pearson(rankdata(predictions, axis=-1), rankdata(targets, axis=-1))


def mean_squared_error(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The mean squared difference, in squared units of the target; dominated by the largest errors.

    `predictions` (..., N), `targets` (..., N). Returns (...), 0 at best.
    """
    return _squares(predictions, targets).mean(-1)


def _squares(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (predictions - targets) ** 2


def mean_absolute_error(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The mean absolute difference, in units of the target; does not tell many small errors from one large one.

    `predictions` (..., N), `targets` (..., N). Returns (...), 0 at best.
    """
    return _distances(predictions, targets).mean(-1)


def _distances(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.abs(predictions - targets)


_CLASSES: frozenset[TaskKind] = frozenset({"classification", "pair-classification"})
_VALUES: frozenset[TaskKind] = frozenset({"regression"})

_ALL = (
    Metric("accuracy", "share of rows predicted right", _CLASSES, "labels", True, (0, 1), accuracy),
    Metric("matthews", "correlation of predicted and target class", _CLASSES, "labels", True, (-1, 1), matthews),
    Metric("f1", "F1 of the class at index 1 of two", _CLASSES, "labels", True, (0, 1), f1, num_labels=2),
    Metric("macro_f1", "mean over the classes of each one's F1", _CLASSES, "labels", True, (0, 1), macro_f1),
    Metric("pearson", "linear correlation", _VALUES, "values", True, (-1, 1), pearson),
    Metric("spearman", "rank correlation", _VALUES, "values", True, (-1, 1), spearman),
    Metric("mse", "mean squared error", _VALUES, "values", False, (0, inf), mean_squared_error, rows=_squares),
    Metric("mae", "mean absolute error", _VALUES, "values", False, (0, inf), mean_absolute_error, rows=_distances),
    Metric(
        "nll",
        "mean -ln p(target)",
        _CLASSES,
        "probabilities",
        False,
        (0, _LARGEST_NLL),
        negative_log_likelihood,
        rows=_surprises,
    ),
    Metric(
        "brier", "squared distance to one-hot", _CLASSES, "probabilities", False, (0, 2), brier, rows=_squared_distances
    ),
    Metric("ece", "calibration error, 15 bins", _CLASSES, "probabilities", False, (0, 1), expected_calibration_error),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_ALL, *GENERATION_METRICS)}
