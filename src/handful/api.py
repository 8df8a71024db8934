"""Everything the command line does, callable: `fit` and `load`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np

from handful.backbone.device import AUTO as AUTO_DEVICE
from handful.backbone.load import Backbone
from handful.data.advice import in_python
from handful.data.cells import check_row, missing
from handful.data.columns import Columns
from handful.data.new_rows import labelled_rows, unlabelled_rows
from handful.data.task import Example
from handful.errors import ConfigError, DataError, nearest, shown
from handful.evaluation.baseline import Baseline, beside
from handful.evaluation.estimate import Estimate
from handful.evaluation.evaluate import Written, longest_row
from handful.evaluation.predict import Predictions, check_predictor
from handful.evaluation.text.generate import GenerationOptions, writing_vertex
from handful.evaluation.texts import GeneratedTexts, PredictedTexts, generate_texts, predict_texts
from handful.export.folder import Card
from handful.export.formats import ExportReport, export
from handful.export.plan import best_format
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.settings import check_settings
from handful.randomness import stream
from handful.request import Request, check_mapping, device_for
from handful.runs.card import escaped_label, recorded_baseline
from handful.runs.defaults import PRESET, TEST_FRACTION
from handful.runs.experiment import Trained, open_trained, run, score, train
from handful.runs.inventory import take_task
from handful.runs.rescore import NewScores, score_new_rows
from handful.runs.scoring import untested_in
from handful.runs.seen import seen_rows
from handful.runs.spec import MethodLike, RunSpec
from handful.runs.store import Run, read_run
from handful.training.events import Listener

Text = str | tuple[str, str]
Texts = Sequence[Text] | Sequence[Example] | Any
"""Texts, or pairs of texts, in a sequence; or a data frame, `datasets.Dataset`, list of dicts, dict of lists or path of
a file, whose columns are those of training or have customary names."""


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
        seen: Collection[bytes] | None = None,
    ):
        self._trained, self.run, self.scores, self._seen = trained, saved, dict(scores), seen
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

    def _rows(self, texts: Texts) -> list[Example]:
        """The rows of what is to be predicted: a table's by the columns of training, or else by their names. Warns of
        what was guessed or left out in reading it.
        """
        if not _is_table(texts):
            return as_examples(texts, blank=True)
        task = self._trained.task
        table = unlabelled_rows(texts, kind=task.kind, trained_on=task.columns)
        if not (rows := [row for row, _ in table]):
            raise DataError("expected texts, found none")
        for guess in table.guesses:
            warnings.warn(guess, stacklevel=4)
        return rows

    def stream(
        self, rows: Iterable[Example], predictor: str | None = None, *, disagreement: bool = False
    ) -> Iterator[PredictedTexts]:
        """Rows of any number with their predictions, a chunk at a time: memory does not grow with their number.

        Raises: ConfigError for a run that generates texts.
        """
        if self.spec.generation is not None:
            raise ConfigError("this run generates texts and predicts no labels", "use write()")
        trained, options = self._trained, self.spec.options
        predictor = predictor or options.predictor
        check_predictor(predictor, self.num_vertices)
        return predict_texts(
            trained.adapter, rows, trained.task, max_length=options.max_length, predictor=predictor,
            draws=options.draws, generator=lambda: stream(options.seed, "predict"), disagreement=disagreement,
        )  # fmt: skip

    def stream_texts(
        self,
        rows: Iterable[Example],
        predictor: str | None = None,
        *,
        on_progress: Callable[[int], None] = lambda done: None,
        **generation: Any,
    ) -> Iterator[GeneratedTexts]:
        """Rows of any number with the text generated for each, a chunk at a time.

        Raises: ConfigError for a run that predicts labels, or a field of `GenerationOptions` that there is not.
        """
        trained = self._trained
        if trained.spec.generation is None:
            raise ConfigError("this run is a classifier and cannot generate text", "use predict()")
        options = GenerationOptions(
            **check_settings(GenerationOptions, {**trained.spec.generation.settings(), **generation})
        )
        predictor = predictor or trained.spec.options.predictor
        check_predictor(predictor, self.num_vertices)
        assert isinstance(trained.adapter, AbstractHeadedAdapter)
        return generate_texts(
            trained.adapter, rows, trained.task, options, max_length=trained.spec.options.max_length,
            vertex=writing_vertex(predictor), on_progress=on_progress,
        )  # fmt: skip

    @property
    def threshold(self) -> float:
        """Of several labels per text, those of a larger probability are predicted."""
        return self._trained.adapter.label_threshold

    def predictions(self, texts: Texts, predictor: str | None = None) -> Predictions:
        """Scores of texts, or of (text, second text) pairs, under one of the predictors (default: the run's).

        A text without tokens (empty, or of characters that the tokenizer drops) has NaN scores, and a warning says how
        many there are. Raises: ConfigError for a run that generates texts.
        """
        parts = [part.predictions for part in self.stream(self._rows(texts), predictor)]
        found = Predictions(np.concatenate([part.scores for part in parts], axis=1), parts[0].kind, parts[0].threshold)
        if count := int(found.blank.sum()):
            warnings.warn(f"{count:,} of {len(found.blank):,} texts have no tokens and get no prediction", stacklevel=3)
        return found

    def write(
        self,
        texts: Texts,
        predictor: str | None = None,
        *,
        on_progress: Callable[[int], None] = lambda done: None,
        **generation: Any,
    ) -> list[str]:
        """The text generated for each text, by the run's decoding unless a field of `GenerationOptions` is given; ""
        for an empty one.

        Raises: ConfigError for a run that predicts labels, or a field that there is not.
        """
        parts = self.stream_texts(self._rows(texts), predictor, on_progress=on_progress, **generation)
        return [text or "" for part in parts for text in part.texts]

    def predict(
        self, texts: Texts, predictor: str | None = None
    ) -> list[str | None] | list[float] | list[list[str] | None]:
        """The label of each text, or the list of its labels; None where it has no tokens (for regression its number, or
        NaN; for generation the text that is generated).
        """
        if self._trained.spec.generation is not None:
            return list(self.write(texts, predictor))
        predictions = self.predictions(texts, predictor)
        if not self.labels:
            return predictions.values.tolist()
        found = zip(predictions.labels, predictions.blank, strict=True)
        return [None if blank else predictions.objective.shown(label, self.labels) for label, blank in found]

    def predict_proba(self, texts: Texts, predictor: str | None = None) -> np.ndarray:
        """Calibrated probabilities (N, C). Raises: ConfigError for regression and for a run that generates texts."""
        if not self.labels and self.spec.generation is None:
            raise ConfigError("a regression model has no probabilities", "use predict()")
        return self.predictions(texts, predictor).probabilities

    def disagreement(self, texts: Texts) -> np.ndarray:
        """How far random points of the simplex disagree about each text (N,); see `Predictions.disagreement`."""
        return self.predictions(texts, "ensemble").disagreement

    def evaluate(
        self,
        data: Any,
        *,
        columns: Mapping[str, Any] | None = None,
        on_written: Callable[[int, int], None] = lambda done, total: None,
    ) -> NewScores:
        """Score the model on labelled rows that are new to it: all metrics of its kind with 95 % intervals over rows.

        `data` is a table as for `fit`; its columns are those of training unless `columns` names others (text,
        text_pair, label, encoding, delimiter). A text counts once, and rows that the model was trained or selected on
        are left out; `notes` of the result say how many. Raises: DataError for unknown labels, by line, and where no
        row is left.
        """
        task = self._trained.task
        if task.members:
            raise DataError(
                "expected one task to score, found a multi-task run", "take one: handful.load(..., task=NAME)"
            )
        check_mapping("columns", columns, "text")
        known = ("text", "text_pair", "label", "encoding", "delimiter")
        named = {"text": "", "text_pair": None, "label": "label", **(columns or {})}
        if unknown := sorted(map(str, named.keys() - {*known})):
            raise ConfigError(f"columns: no such option as {', '.join(unknown)}", nearest(unknown[0], known))
        options = {name: named.pop(name, None) for name in ("encoding", "delimiter")}
        rows, notes = labelled_rows(data, task, wanted=Columns(**named), **options)
        found = score_new_rows(self._trained, rows, self._seen, on_written)
        return replace(found, notes=(*notes, *found.notes))

    def export(self, folder: str | Path, format: str | None = None, *, overwrite: bool = False) -> ExportReport:
        """Write a folder in one of the formats of `handful.export.plan.FORMATS`, and check it in the library that loads
        it; without a name, in the format that suits the method and the model.
        """
        trained = self._trained
        card = Card(f"Score of the run: {self._headline(escaped_label)}.", self.scores)
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
        with self._trained.backbone.sharing.alone():
            self._trained.adapter.detach()


def fit(
    data: Any,
    *,
    method: MethodLike | None = None,
    model: str | None = None,
    preset: str = PRESET,
    test: Any = None,
    test_fraction: float | None = TEST_FRACTION,
    output: str | Path | None = None,
    again: bool = False,
    columns: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    backbone: Backbone | None = None,
    start: str | Path | None = None,
    adapt: str | None = None,
    budget: float | None = None,
    speedup: float | None = None,
    device: str = AUTO_DEVICE,
    on_event: Listener | None = None,
    **overrides: Any,
) -> FittedModel:
    """Train on labelled texts and score on rows that training never saw.

    `data` is a file, a data frame, a list of dicts, a dict of lists, (texts, labels), a task folder, a packaged or hub
    name, or a `Task`; `test` is rows of the same forms. Without test rows, `test_fraction` of the rows are set apart
    first (None: no test score). `output` is the folder for run folders; without it nothing is written. `columns` says
    how to read them (text, text_pair, label, label_separator, kind, metric, encoding, delimiter). Settings go by dotted
    name in `settings`, or by bare name as keyword: `shots=100, learning_rate=0.01, num_vertices=3`. `method` is a name,
    a class or an object with its settings, of handful or of anybody: `method=Prefix(prefix_length=5)`. An object has
    all settings of its method: others beside it are refused, and `preset` adds those of training and of the run alone.
    Where no `method` or `model` is named, the kind of the task decides; the method "auto" is chosen by resampling the
    training rows within `budget` seconds; `spec.choices` says why. `start` is a run to start from, or a prompt that
    PEFT has saved, whose method and model are taken where none is named; an inventory of many tasks also decides the
    sizes, and `adapt` what is trained of it: its average skill (mu), only a routing (z), or both (full).
    `speedup` is how many times as fast the export is to be, by "prune", instead of a budget of
    parameters: it is measured on this machine, once, and `spec.choices` says what follows from it.
    `device` is auto (a CUDA device, else Apple's mps, else the CPU), cpu, cuda, cuda:N or mps; a `backbone` that is
    given stays where it is.

    Raises: ConfigError, DataError, ModelError or RunError, all before training where it can be known then.
    """

    given = check_mapping("settings", settings, "shots")
    request = Request(
        data, test, test_fraction, columns, method, model, preset, {**given, **overrides}, start, adapt, budget,
        speedup, device, backbone, None if output is None else Path(output), wrong=_contradictions(given, overrides),
    )  # fmt: skip
    plan = request.plan(in_python)
    task, started = plan.task, plan.start
    spec, backbone = plan.decide()
    if output is not None:
        saved, trained = run(task, spec, Path(output), backbone=backbone, start=started, on_event=on_event, again=again)
        return _fitted(trained, saved, seen=saved.seen())
    training = train(task, spec, backbone=backbone, start=started, on_event=on_event)
    scores, seen = score(training), seen_rows(training.split, started)
    if scores is None:
        return FittedModel(training.trained, None, {}, seen=seen)
    baseline = None if isinstance(scores, Written) else scores.baseline
    return FittedModel(training.trained, None, scores.estimates, baseline, untested_in(scores), seen)


def load(
    folder: str | Path, *, task: str | None = None, backbone: Backbone | None = None, device: str = AUTO_DEVICE
) -> FittedModel:
    """The model of a run folder; of an inventory of many tasks, that of one `task`. `device` as in `fit`, whatever the
    device that it was trained on.

    Raises: RunError for a missing or damaged folder, ModelError for another backbone, DataError for an unknown task.
    """
    where, saved = device_for(device, backbone), read_run(folder)
    if task is not None:
        record, trained = take_task(saved, task, backbone, where)
        return _fitted(trained, None, record, seen=saved.seen())
    return _fitted(open_trained(saved, backbone=backbone, device=where), saved, seen=saved.seen())


def as_examples(texts: Sequence[Text] | Sequence[Example], *, blank: bool = False) -> list[Example]:
    """Unlabelled rows from texts or pairs. With `blank`, a missing text (None, NaN, pandas' NA) is an empty one.

    Raises: DataError for anything else, with its position, for half a surrogate pair, and for no texts.
    """
    if isinstance(texts, str):
        raise DataError("expected a sequence of texts, found one string", "put it into a list")
    try:
        items = iter(texts)
    except TypeError:  # a number, or an array without dimensions
        raise DataError(f"expected a sequence of texts, found {shown(texts)}", "put the texts into a list") from None
    rows = []
    item: Any
    for position, item in enumerate(items):
        several = isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.ndim > 0)
        parts = ["" if blank and missing(part) else part for part in (item if several else (item,))]
        if isinstance(item, Example):
            check_row({"text": item.text, "text_pair": item.text_pair}, f"row {position}")
            rows.append(replace(item, label=None))
        elif len(parts) in (1, 2) and all(isinstance(part, str) for part in parts):
            text, *pair = map(str, parts)  # str: numpy's texts are of a type of their own
            check_row({"text": text, "text_pair": pair[0] if pair else ""}, f"row {position}")
            rows.append(Example(text, pair[0] if pair else None, source=f"row {position}"))
        else:
            raise DataError(f"row {position}: expected a text or a pair of texts, found {shown(item)}")
    if not rows:
        raise DataError("expected texts, found none")
    return rows


def _contradictions(settings: Mapping[Any, Any], keywords: Mapping[str, Any]) -> list[str]:
    """Settings that are given by keyword and, with another value, by their dotted names too."""
    dotted = {str(name).rpartition(".")[2]: name for name in settings}
    return [
        f"{name}={shown(value)} contradicts {dotted[name]!r}: {shown(settings[dotted[name]])} in settings"
        for name, value in keywords.items()
        if name in dotted and settings[dotted[name]] != value
    ]


def _is_table(texts: Any) -> bool:
    """Whether it has columns with names, of which one holds the texts."""
    if isinstance(texts, list | tuple):
        return bool(texts) and isinstance(texts[0], Mapping)
    is_column = hasattr(texts, "dtype")  # an array or a column of a frame
    return isinstance(texts, Sized | Path) and not is_column and not isinstance(texts, str)


def _fitted(
    trained: Trained, saved: Run | None, record: Mapping[str, Any] | None = None, *, seen: Collection[bytes] | None
) -> FittedModel:
    """The model with the scores of its record, by default that of its folder."""
    record = record or (saved.record if saved else {"scores": {}, "rows": {}})
    scores = {name: Estimate.from_dict(value) for name, value in record["scores"].items()}
    untested = record["rows"].get("untested_classes", ())
    return FittedModel(trained, saved, scores, recorded_baseline(record), untested, seen)
