"""Everything the command line does, callable: `fit`, `load` and a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from handful.backbone.load import Backbone
from handful.data.batching import EncodedRows
from handful.data.holdout import with_held_out_test
from handful.data.open import open_task
from handful.data.task import Example, Task
from handful.errors import ConfigError, DataError
from handful.evaluation.baseline import Baseline, beside
from handful.evaluation.estimate import Estimate
from handful.evaluation.evaluate import Written, encode_for, longest_row
from handful.evaluation.predict import Predictions, check_predictor, predict_rows
from handful.evaluation.writing import GenerationOptions, write, writing_vertex
from handful.export.formats import ExportReport, export
from handful.export.plan import best_format
from handful.export.speedup import check_speedup, with_speedup
from handful.methods.base import check_settings
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.poly import Poly
from handful.randomness import stream
from handful.runs.card import escaped_label, recorded_baseline
from handful.runs.defaults import AUTO, METHOD, MODEL, PRESET
from handful.runs.experiment import Trained, check_task, open_backbone, open_trained, run, score, train
from handful.runs.inventory import inherited, take_task, with_inherited
from handful.runs.scoring import untested_in
from handful.runs.spec import RunSpec, full_names, resolve
from handful.runs.start import check_start, names_of, read_start
from handful.runs.store import Run, read_run
from handful.studies.auto import BUDGET, candidate_specs, choose
from handful.training.events import Listener

Text = str | tuple[str, str]


@final
class FittedModel:
    """A trained model: predicts labels, probabilities and disagreement, and exports itself.

    `run` is its folder on disk, or None where it was trained in memory. `scores` are the test scores with their
    intervals, empty without test rows. `baseline` are those of always giving the most usual answer of the training
    rows; None for generation, without test rows, and for runs saved before there were baselines. `untested_classes` are
    those that no test row belongs to.
    """

    def __init__(
        self,
        trained: Trained,
        saved: Run | None,
        scores: Mapping[str, Estimate],
        baseline: Baseline | None = None,
        untested_classes: Sequence[str] = (),
    ):
        self._trained, self.run, self.scores = trained, saved, dict(scores)
        self.baseline, self.untested_classes = baseline, tuple(untested_classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the columns of `predict_proba`; empty where there are no classes."""
        return self._trained.task.labels

    @property
    def num_vertices(self) -> int:
        """Vertices of the adapter's simplex; with 1 there is nothing to disagree about."""
        return self._trained.adapter.num_vertices

    @property
    def spec(self) -> RunSpec:
        return self._trained.spec

    @property
    def headline(self) -> str:
        """The primary score with its interval and the baseline; by which predictor, where an export is another."""
        return self._headline(repr)

    def _headline(self, name: Callable[[str], str]) -> str:
        """The headline, whose labels `name` shows."""
        metric, predictor = self._trained.task.metric, self.spec.options.predictor
        if metric not in self.scores:
            return "not scored: there were no test rows"
        score = self.scores[metric]
        other = self.num_vertices > 1 and predictor != "midpoint"
        how = f", by the predictor {predictor!r}, while an export is the midpoint" if other else ""
        return f"{metric} {score} on {score.n:,} test rows{how}{beside(metric, score, self.baseline, name)}"

    @property
    def max_length(self) -> int:
        """Most tokens of a text; what is longer is cut."""
        trained = self._trained
        return longest_row(trained.adapter, trained.spec.options.max_length, trained.spec.generation)

    def count_cut(self, texts: Sequence[Text] | Sequence[Example]) -> int:
        """How many of the texts are longer than `max_length` tokens."""
        return self._encoded(texts, self.spec.generation).truncated

    def _encoded(
        self, texts: Sequence[Text] | Sequence[Example], generation: GenerationOptions | None = None
    ) -> EncodedRows:
        """The texts tokenised: to be predicted, or to write for."""
        trained = self._trained
        rows = [replace(row, instruction=row.instruction or trained.task.instruction) for row in as_examples(texts)]
        length = trained.spec.options.max_length
        return encode_for(trained.adapter, rows, trained.task, length, generation, to_write=generation is not None)

    def predictions(self, texts: Sequence[Text] | Sequence[Example], predictor: str | None = None) -> Predictions:
        """Scores of texts, or of (text, second text) pairs, under one of the predictors (default: the run's).

        Raises: ConfigError for a run that writes.
        """
        if self.spec.generation is not None:
            raise ConfigError("this run writes texts and predicts no labels", "use write()")
        trained, options = self._trained, self._trained.spec.options
        predictor = predictor or options.predictor
        check_predictor(predictor, trained.adapter.num_vertices)
        return predict_rows(
            trained.adapter, self._encoded(texts), trained.task.kind,
            predictor=predictor, draws=options.draws, generator=stream(options.seed, "predict"),
        )  # fmt: skip

    def write(
        self,
        texts: Sequence[Text] | Sequence[Example],
        predictor: str | None = None,
        *,
        on_progress: Callable[[int], None] = lambda done: None,
        **generation: Any,
    ) -> list[str]:
        """What the model writes for each text, by the run's decoding unless a field of `GenerationOptions` is given.

        Raises: ConfigError for a run that predicts labels, or a field that there is not.
        """
        trained = self._trained
        if trained.spec.generation is None:
            raise ConfigError("this run predicts labels and writes nothing", "use predict()")
        options = GenerationOptions(
            **check_settings(GenerationOptions, {**trained.spec.generation.settings(), **generation})
        )
        predictor = predictor or trained.spec.options.predictor
        check_predictor(predictor, trained.adapter.num_vertices)
        vertex = writing_vertex(predictor)
        assert isinstance(trained.adapter, AbstractHeadedAdapter)
        rows = self._encoded(texts, options)
        return write(trained.adapter, rows, options, vertex=vertex, on_progress=on_progress)

    def predict(self, texts: Sequence[Text], predictor: str | None = None) -> list[str] | list[float]:
        """The label of each text (for regression its number, for generation the text that is written)."""
        if self._trained.spec.generation is not None:
            return self.write(texts, predictor)
        predictions = self.predictions(texts, predictor)
        if not self.labels:
            return predictions.values.tolist()
        return [self.labels[index] for index in predictions.labels]

    def predict_proba(self, texts: Sequence[Text], predictor: str | None = None) -> np.ndarray:
        """Calibrated probabilities (N, C). Raises: ConfigError for regression and for a run that writes."""
        if not self.labels and self.spec.generation is None:
            raise ConfigError("a regression model has no probabilities", "use predict()")
        return self.predictions(texts, predictor).probabilities

    def disagreement(self, texts: Sequence[Text] | Sequence[Example]) -> np.ndarray:
        """How far random points of the simplex disagree about each text (N,); see `Predictions.disagreement`."""
        return self.predictions(texts, "ensemble").disagreement

    def export(self, folder: str | Path, format: str | None = None, *, overwrite: bool = False) -> ExportReport:
        """Write a folder that stock PEFT ("peft"), stock transformers ("dense"), handful's own loader ("compact") or
        onnxruntime ("onnx") loads, and check it there; without a name, in the format that suits the method.
        """
        trained = self._trained
        card = f"Score of the run: {self._headline(escaped_label)}."
        if format is None:
            method, backbone = self.spec.method, trained.backbone
            pooling, report = str(backbone.pooling), trained.adapter.report()
            format = best_format(method, backbone, pooling, trained.task, report) or method.export_format
        return export(
            trained.adapter, trained.backbone, trained.task, Path(folder), format, card=card,
            overwrite=overwrite, max_length=trained.spec.options.max_length, generation=trained.spec.generation,
        )  # fmt: skip

    def detach(self) -> None:
        """Take the adapter off its backbone again."""
        self._trained.adapter.detach()


def fit(
    data: Any,
    *,
    method: str | None = None,
    model: str | None = None,
    preset: str = PRESET,
    test: Any = None,
    test_fraction: float | None = 0.2,
    output: str | Path | None = None,
    again: bool = False,
    columns: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: Backbone | None = None,
    start: str | Path | None = None,
    budget: float = BUDGET,
    speedup: float | None = None,
    on_event: Listener | None = None,
    **overrides: Any,
) -> FittedModel:
    """Train on labelled texts and score on rows that training never saw.

    `data` is a file, a data frame, a list of dicts, a dict of lists, (texts, labels), a task folder, a packaged or hub
    name, or a `Task`; `test` is rows of the same forms. Without test rows, `test_fraction` of the rows are set apart
    first (None: no test score). `output` is the folder for run folders; without it nothing is written. `columns` says
    how to read them (text, text_pair, label, kind, metric, encoding, delimiter). Settings go by dotted name in
    `settings`, or by bare name as keyword: `shots=100, learning_rate=0.01, num_vertices=3`. Where no `method` or
    `model` is named, the kind of the task decides; the method "auto" is chosen by resampling the training rows within
    `budget` seconds; `spec.choices` says why. `start` is a run to start from, or a prompt that PEFT has
    saved, whose method and model are taken where none is named; an inventory of many tasks also decides the sizes.
    `speedup` is how many times as fast the export is to be, by "fine-gates" or "prune", instead of a budget of
    parameters: it is measured on this machine, once, and `spec.choices` says what follows from it.

    Raises: ConfigError, DataError, ModelError or RunError, all before training where it can be known then.
    """

    started = read_start(Path(start)) if start else None
    common = inherited(started)
    given = {**(settings or {}), **overrides}
    if speedup is not None:
        check_speedup(method, speedup, given)
    if common and method not in (Poly.name, None):
        raise ConfigError(f"method: an inventory is of the method {Poly.name!r}, found {method!r}", "leave it out")
    if started:
        method, model = (mine or its for mine, its in zip((method, model), names_of(started), strict=True))
    if common:
        method, given = Poly.name, {**common, **full_names(Poly.name, given)}
    task = data if isinstance(data, Task) else open_task(data, test=test, **(columns or {}))
    if task.test is None and test_fraction:
        task = with_held_out_test(task, test_fraction)

    def resolved(name: str | None) -> RunSpec:
        return with_inherited(resolve(name, model=model, preset=preset, overrides=given, kind=task.kind), common)

    specs = candidate_specs(resolved, task.kind) if method == AUTO else [resolved(method)]
    spec = specs[0]
    if method == AUTO:
        backbone = backbone or open_backbone(spec, task.kind)
        spec = choose(task, specs, backbone=backbone, budget=budget).spec
    if speedup is not None:
        spec, backbone = with_speedup(task, spec, speedup, backbone=backbone)
    if output is not None:
        saved, trained = run(task, spec, Path(output), backbone=backbone, start=started, on_event=on_event, again=again)
        return _fitted(trained, saved)
    check_task(task)
    check_start(spec.method, started)
    training = train(task, spec, backbone=backbone, start=started, on_event=on_event)
    scores = score(training)
    if scores is None:
        return FittedModel(training.trained, None, {})
    baseline = None if isinstance(scores, Written) else scores.baseline
    return FittedModel(training.trained, None, scores.estimates, baseline, untested_in(scores))


def load(folder: str | Path, *, task: str | None = None, backbone: Backbone | None = None) -> FittedModel:
    """The model of a run folder; of an inventory of many tasks, that of one `task`.

    Raises: RunError for a missing or damaged folder, ModelError for another backbone, DataError for an unknown task.
    """
    saved = read_run(folder)
    if task is not None:
        record, trained = take_task(saved, task, backbone)
        return _fitted(trained, None, record)
    return _fitted(open_trained(saved, backbone=backbone), saved)


def as_examples(texts: Sequence[Text] | Sequence[Example]) -> list[Example]:
    """Unlabelled rows from texts or pairs. Raises: DataError for anything else, with its position, and for none."""
    if isinstance(texts, str):
        raise DataError("expected a sequence of texts, found one string", "put it into a list")
    rows = []
    for position, item in enumerate(texts):
        parts = item if isinstance(item, list | tuple | np.ndarray) else (item,)
        if isinstance(item, Example):
            rows.append(replace(item, label=None))
        elif len(parts) in (1, 2) and all(isinstance(part, str) for part in parts):
            text, *pair = map(str, parts)  # str: numpy's texts are of a type of their own
            rows.append(Example(text, pair[0] if pair else None, source=f"row {position}"))
        else:
            raise DataError(f"row {position}: expected a text or a pair of texts, found {item!r}")
    if not rows:
        raise DataError("expected texts, found none")
    return rows


def _fitted(trained: Trained, saved: Run | None, record: Mapping[str, Any] | None = None) -> FittedModel:
    """The model with the scores of its record, by default that of its folder."""
    record = record or (saved.record if saved else {"scores": {}, "rows": {}})
    scores = {name: Estimate.from_dict(value) for name, value in record["scores"].items()}
    return FittedModel(trained, saved, scores, recorded_baseline(record), record["rows"].get("untested_classes", ()))


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of texts, usable in `cross_val_score` and in a `Pipeline`.

    X is a sequence of texts, or an (N, 2) array of pairs; y any labels. `settings` has dotted or bare names, as in
    `fit`; `random_state` is the run's seed. Every row given to `fit` is used. After fitting: `classes_`, `model_`.
    """

    def __init__(
        self,
        method: str = METHOD,
        model: str = MODEL,
        preset: str = PRESET,
        settings: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ):
        self.method, self.model, self.preset = method, model, preset
        self.settings, self.random_state = settings, random_state

    def fit(self, X: Sequence[Any], y: Sequence[Any]) -> FewShotClassifier:
        """Train on texts and labels of the same length."""
        texts, labels = as_examples(_rows(X)), np.asarray(y)
        if len(texts) != len(labels):
            raise DataError(f"expected as many labels as texts, found {len(labels)} and {len(texts)}")
        self.classes_, indices = np.unique(labels, return_inverse=True)
        rows = tuple(replace(row, label=int(index)) for row, index in zip(texts, indices, strict=True))
        kind = "classification" if rows[0].text_pair is None else "pair-classification"
        task = Task("texts", kind, tuple(map(str, self.classes_)), "accuracy", pool=rows)
        settings = {"run.seed": self.random_state, **(self.settings or {})}
        self.model_ = fit(
            task, method=self.method, model=self.model, preset=self.preset, test_fraction=None, settings=settings
        )
        return self

    def predict_proba(self, X: Sequence[Any]) -> np.ndarray:
        """Probabilities (N, C) in the order of `classes_`."""
        check_is_fitted(self)
        return self.model_.predict_proba(_rows(X))

    def predict(self, X: Sequence[Any]) -> np.ndarray:
        """Labels (N,) of the kind given to `fit`."""
        return self.classes_[self.predict_proba(X).argmax(1)]


def _rows(X: Any) -> Sequence[Any]:
    """The rows of X; iterating over a data frame would give its columns' names."""
    return X.to_numpy() if hasattr(X, "to_numpy") else X
