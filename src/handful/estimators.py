"""scikit-learn estimators of texts: `FewShotClassifier` and `FewShotRegressor`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, final

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from handful.api import as_examples, fit
from handful.backbone.device import AUTO as AUTO_DEVICE
from handful.data.cells import check_row, missing_label
from handful.data.label_sets import LabelSets, read_indicators, read_label_sets
from handful.data.labels import name_notes, no_classes
from handful.data.task import Example, Task, TaskKind
from handful.errors import ConfigError, DataError
from handful.evaluation.predict import Predictions
from handful.objectives import objective_of
from handful.runs.defaults import METHOD, MODEL, PRESET
from handful.runs.spec import MethodLike

LARGEST_SEED = 2**31 - 1


@dataclass(eq=False, repr=False)
class AbstractFewShotEstimator(BaseEstimator):
    """What the classifier and the regressor share: parameters, rows and their weights, and predictions.

    `settings` has dotted or bare names, as in `handful.fit`. `random_state` is the run's seed: an integer, or None or
    a `RandomState` to draw it from; `device` is that of `handful.fit`. Every row given to `fit` is used, without
    development or test rows.
    """

    method: MethodLike = METHOD
    model: str = MODEL
    preset: str = PRESET
    settings: Mapping[str, Any] | None = None
    random_state: int | np.random.RandomState | None = 0
    device: str = AUTO_DEVICE

    def _fit(self, rows: Sequence[Example], weights: np.ndarray, kind: TaskKind, labels: Sequence[str]) -> None:
        """Train on rows whose label is an index into `labels`, or a number.

        A row that repeats another, as in resampling with replacement, adds its weight to it.
        """
        if rows[0].text_pair is not None and objective_of(kind).pairs is False:
            kind = "pair-classification"
        counted: dict[Example, float] = {}
        for row, weight in zip(rows, weights.tolist(), strict=True):
            row = replace(row, source="memory")
            counted[row] = counted.get(row, 0.0) + weight
        kept = tuple(replace(row, weight=weight) for row, weight in counted.items() if weight > 0)
        metric = objective_of(kind).default_metric
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(LARGEST_SEED)
        self.model_ = fit(
            Task("texts", kind, tuple(labels), metric, pool=kept),
            method=self.method, model=self.model, preset=self.preset, test_fraction=None,
            settings={"run.seed": int(seed), **(self.settings or {})}, device=self.device,
        )  # fmt: skip

    def _predictions(self, X: Any) -> Predictions:
        check_is_fitted(self)
        return self.model_.predictions(as_examples(_texts(X), blank=True))

    def __sklearn_tags__(self) -> Tags:
        """X is one text per row, or a pair of texts; the target is required."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        return tags


@final
@dataclass(eq=False, repr=False)
class FewShotClassifier(ClassifierMixin, AbstractFewShotEstimator):
    """A scikit-learn classifier of texts, usable in `cross_val_score`, a search and a `Pipeline`.

    X is a sequence of texts or an (N, 2) array of pairs, or a data frame with such columns; y any labels, or for
    several labels per text zeros and ones (N, C), or lists of labels.

    `class_weight` is None, "balanced" or a weight for each class. A text without tokens gets the class frequencies of
    the training rows as its probabilities. After fitting: `classes_`, `model_`. See `AbstractFewShotEstimator`.
    """

    class_weight: Literal["balanced"] | Mapping[Any, float] | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on texts and as many labels. Rows of weight 0 are left out.

        Labels are taken as they are; a warning says where that seems not to be meant: names that differ in white space
        or case alone, or nearly as many classes as rows. As in `handful.fit`, a text such as "nan" is no label.

        Raises: DataError for labels that are missing or of mixed types, and for what is no text.
        """
        if (sets := _label_sets(y)) is not None:
            return self._fit_sets(X, y, sets, sample_weight)
        rows, labels = _rows_and_targets(self, X, y)
        _check_types(y)
        if labels.dtype == object and len({type(label) for label in labels.tolist()}) > 1:
            types = sorted({type(label).__name__ for label in labels.tolist()})
            raise DataError(f"y: expected labels of one type, found {' and '.join(types)}", "convert them, e.g. to str")
        check_classification_targets(labels)
        weights = _weights(sample_weight, len(rows))
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, labels)  # pyright: ignore[reportArgumentType]
        kept = weights > 0
        self.classes_, self._several = np.unique(labels[kept]), False
        _warn_of_labels(labels[kept].tolist(), self.classes_.tolist())
        indices = np.searchsorted(self.classes_, labels[kept])
        self._prior = np.bincount(indices, weights[kept]) / weights[kept].sum()
        rows = [
            replace(row, label=int(index)) for row, index in zip(np.array(rows, object)[kept], indices, strict=True)
        ]
        self._fit(rows, weights[kept], "classification", tuple(map(str, self.classes_)))
        return self

    def _fit_sets(self, X: Any, y: Any, sets: LabelSets, sample_weight: Any) -> Self:
        """`fit` on several labels per text. Raises: ConfigError for weights of classes."""
        if self.class_weight is not None:
            raise ConfigError("class_weight: texts with several labels have no classes to weigh", "leave it out")
        rows, _ = _rows_and_targets(self, X, np.arange(len(sets.rows)))
        _warn_of_order(X, y)
        weights, flags = _weights(sample_weight, len(rows)), sets.indicators()
        if len(flags) < len(sets.rows):
            raise DataError(
                f"y: expected labels for every text, found none for {len(sets.rows) - len(flags)} (first: "
                f"{_place(sets.rows.index(None))})",
                "drop these rows; a text with none of the classes has an empty list",
            )
        self.classes_, self._several = np.array(sets.labels), True
        self._prior = (flags * weights[:, None]).sum(0) / weights.sum()
        labelled = [replace(row, label=tuple(own)) for row, own in zip(rows, flags.tolist(), strict=True)]
        self._fit(labelled, weights, "multilabel", sets.labels)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, C) in the order of `classes_`; of several labels per text those of each by itself."""
        predictions = self._predictions(X)
        return np.where(predictions.blank[:, None], self._prior, predictions.probabilities)

    def predict(self, X: Any) -> np.ndarray:
        """Labels (N,) of the kind given to `fit`; of several labels per text zeros and ones (N, C)."""
        probabilities = self.predict_proba(X)  # raises NotFittedError before there are classes
        if self._several:
            return (probabilities > self.model_.threshold).astype(np.int64)
        return self.classes_[probabilities.argmax(1)]


@final
class FewShotRegressor(RegressorMixin, AbstractFewShotEstimator):
    """A scikit-learn regressor of texts: as `FewShotClassifier`, with finite numbers as targets.

    A text without tokens gets the mean of the training targets. After fitting: `model_`.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on texts and as many numbers. Rows of weight 0 are left out.

        Raises: DataError for targets that are missing or not finite, and for what is no text.
        """
        rows, targets = _rows_and_targets(self, X, y)
        try:
            numbers = targets.astype(float)
        except (TypeError, ValueError) as error:
            raise DataError(f"y: expected numbers ({error})", "use FewShotClassifier for classes") from None
        if not np.isfinite(numbers).all():
            place = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise DataError(f"y[{place}]: expected a finite number, found {numbers.tolist()[place]!r}")
        weights = _weights(sample_weight, len(rows))
        self._mean = float(np.average(numbers, weights=weights))
        rows = [replace(row, label=float(number)) for row, number in zip(rows, numbers, strict=True)]
        self._fit(rows, weights, "regression", ())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers (N,)."""
        predictions = self._predictions(X)
        return np.where(predictions.blank, self._mean, predictions.values)


def _rows_and_targets(estimator: BaseEstimator, X: Any, y: Any) -> tuple[list[Example], np.ndarray]:
    """The rows and their targets (N,), none of which is missing."""
    if y is None:
        name = type(estimator).__name__
        raise DataError(f"This {name} estimator requires y to be passed, but the target y is None.")
    rows, targets = as_examples(_texts(X)), column_or_1d(y, warn=True)
    if len(rows) != len(targets):
        raise DataError(f"expected as many labels as texts, found {len(targets)} and {len(rows)}")
    if absent := [
        place for place, target in enumerate(targets.tolist()) if missing_label(target, cells_are_texts=False)
    ]:
        shown = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
        given = y if isinstance(y, list | tuple) else targets.tolist()  # numpy writes a NaN among texts as "nan"
        words = sorted({given[place].strip() for place in absent if isinstance(given[place], str)} - {""})
        called = f"; {' and '.join(map(repr, words))} is read as none" if words else ""
        raise DataError(
            f"y: expected a label for every row, found none for {len(absent)} (rows {shown}){called}",
            f"drop these rows; if {words[0]!r} is a class of its own, write it otherwise"
            if words
            else "drop these rows",
        )
    _warn_of_order(X, y)
    return rows, targets


def _check_types(y: Any) -> None:
    """Raises: DataError for a list of labels of mixed types, which numpy would make texts or numbers of."""
    if not isinstance(y, list | tuple):
        return
    types = {bool: "bool", np.bool_: "bool", str: "str", bytes: "bytes", int: "number", float: "number"}
    types |= {np.integer: "number", np.floating: "number"}
    found = {next((name for kind, name in types.items() if isinstance(label, kind)), "") for label in y} - {""}
    if len(found) > 1:
        raise DataError(
            f"y: expected labels of one type, found {' and '.join(sorted(found))}", "convert them, e.g. to str"
        )


def _label_sets(y: Any) -> LabelSets | None:
    """The label sets of a matrix (N, C) of zeros and ones with two columns or more, or of lists; None of other y.

    The classes of a data frame are its columns in their order, which is that of `predict`. Raises: DataError for other
    values, lists among single labels, and more dimensions.
    """
    shape = getattr(y, "shape", ())
    if len(shape) > 2:
        raise DataError(
            f"y: expected labels (N,), or zeros and ones (N, C), found the shape {tuple(shape)}",
            "give one row of zeros and ones, or one list of labels, for each text",
        )
    if len(shape) == 2:
        if shape[1] < 2:
            return None
        found = read_indicators(y, where=_place)  # raises where all rows are alike
        names = [*map(str, y.columns)] if hasattr(y, "columns") else None
        return found if names is None else read_indicators(y, names, where=_place)
    of_objects = len(shape) == 1 and str(getattr(y, "dtype", "")) == "object"
    cells = [*y] if isinstance(y, list | tuple) or of_objects else []
    several = any(isinstance(cell, list | tuple | set | frozenset) or getattr(cell, "ndim", 0) for cell in cells)
    return read_label_sets(cells, where=_place, column="y") if several else None


def _place(index: int) -> str:
    return f"y[{index}]"


def _warn_of_labels(labels: list[Any], classes: list[Any]) -> None:
    """Warn of classes that may not be meant, in the sentences of `handful.fit`."""
    names = [name for name in classes if isinstance(name, str)]
    for name in names:
        check_row({"y": name}, f"y[{labels.index(name)}]")
    said = name_notes((), names)
    if found := no_classes(labels, list(map(str, classes))):
        said.append(f"y has {found[0]}")
    for sentence in said:
        warnings.warn(sentence, stacklevel=3)


def _warn_of_order(X: Any, y: Any) -> None:
    """Warn of an X and a y from pandas that hold the same index in another order: rows are paired by position."""
    ours: Any = getattr(X, "index", None)
    its: Any = getattr(y, "index", None)
    if not hasattr(ours, "equals") or not hasattr(its, "equals") or ours.equals(its):  # a list has an index() too
        return
    if set(ours) == set(its):
        warnings.warn(
            "X and y have the same index in another order and are paired by position, as scikit-learn does; to pair "
            "them by index give y.loc[X.index]",
            stacklevel=4,
        )


def _texts(X: Any) -> Any:
    """The rows of X; iterating over a data frame would give its columns' names."""
    if hasattr(X, "to_numpy"):
        return X.to_numpy()
    return zip(*X.columns, strict=True) if hasattr(X, "column_names") and hasattr(X, "columns") else X


def _weights(sample_weight: Any, rows: int) -> np.ndarray:
    """Weights (N,), 1 where none are given. Raises: DataError for negative ones, or none above 0."""
    if sample_weight is None:
        return np.ones(rows)
    weights = np.asarray(sample_weight, dtype=float)
    if weights.ndim == 0:
        weights = np.full(rows, float(weights))
    if weights.shape != (rows,):
        raise DataError(f"sample_weight: expected shape ({rows},), found {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
        raise DataError("sample_weight: expected finite numbers of zero or more, and at least one weight above zero")
    return weights
