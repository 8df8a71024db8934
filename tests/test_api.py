"""The public API: fit, load, predict, export, and the scikit-learn classifier."""

from __future__ import annotations

import warnings

import datasets
import numpy as np
import pandas
import pytest

import handful
from handful import DataError, Example, RunError, Task, TestRows
from handful.errors import ConfigError, ModelError

TEXTS = [f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}" for i in range(40)]
LABELS = ["ab" if i % 2 else "z9" for i in range(40)]
QUICK = {"training.epochs": 2, "max_length": 24}


@pytest.fixture(scope="module")
def task() -> Task:
    rows = [Example(text, label=("ab", "z9").index(label)) for text, label in zip(TEXTS, LABELS, strict=True)]
    return Task("letters", "classification", ("ab", "z9"), "accuracy", tuple(rows[:24]), TestRows(rows[24:]))


@pytest.fixture(scope="module")
def shared(task, tiny_folder):
    """A model that is trained once for all that only asks it."""
    return handful.fit(task, model=str(tiny_folder), method="head", settings=QUICK, shots=16, test_fraction=None)


@pytest.fixture
def fitted(task, tiny_folder, tmp_path):
    """A model trained into a folder."""
    return handful.fit(task, model=str(tiny_folder), output=tmp_path / "runs", settings=QUICK, shots=16)


def test_fit_gives_scores_with_intervals_and_predictions(fitted):
    accuracy = fitted.scores["accuracy"]
    assert accuracy.low <= accuracy.mean <= accuracy.high
    assert accuracy.n == 16
    probabilities = fitted.predict_proba(TEXTS)
    assert probabilities.shape == (40, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert fitted.predict(TEXTS) == [fitted.labels[index] for index in probabilities.argmax(1)]
    assert fitted.disagreement(TEXTS).shape == (40,)
    assert (fitted.disagreement(TEXTS) > 0).all()
    assert fitted.num_vertices == 3


def test_load_predicts_what_was_trained_to_the_bit(fitted, task):
    expected = fitted.predict_proba(TEXTS)
    fitted.detach()
    loaded = handful.load(fitted.run.folder)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), expected)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS, "ensemble"), loaded.predict_proba(TEXTS, "ensemble"))
    assert loaded.scores == fitted.scores
    assert loaded.spec.resolved() == fitted.spec.resolved()
    records = loaded.run.lines("predictions.jsonl")
    texts = [row.text for row in task.test._examples]
    assert [record["prediction"] for record in records] == loaded.predict(texts)


def test_in_memory_and_on_disk_are_the_same_model(fitted, task, tiny_folder):
    in_memory = handful.fit(task, model=str(tiny_folder), settings=QUICK, shots=16)
    assert in_memory.run is None
    assert in_memory.scores == fitted.scores
    np.testing.assert_array_equal(in_memory.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_one_backbone_serves_one_model_after_another(task, tiny_folder):
    backbone = handful.load_backbone(str(tiny_folder))
    options = {"model": str(tiny_folder), "settings": QUICK, "backbone": backbone}
    first = handful.fit(task, method="prefix", **options)
    expected = first.predict_proba(TEXTS)
    first.detach()
    handful.fit(task, method="full", **options).detach()
    again = handful.fit(task, method="prefix", **options)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), expected)


def test_a_speed_can_be_asked_for_instead_of_a_budget(task, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    monkeypatch.setattr("handful.export.speedup.in_turns", lambda *arguments: [(1.0, 0.5)])
    model = handful.fit(task, method="prune", model=str(tiny_folder), settings=QUICK, shots=16, speedup=1.1)
    choice = model.spec.choices[0]
    assert choice.name == "method.target_sparsity" and choice.reason.startswith("measured: 1.1 times as fast")
    assert model.spec.method.target_sparsity == choice.value
    with pytest.raises(ConfigError, match="expected a method with a budget"):
        handful.fit(task, model=str(tiny_folder), settings=QUICK, speedup=1.1)


def test_the_method_can_be_chosen(task, tiny_folder, monkeypatch):
    monkeypatch.setattr("handful.studies.auto.REPEATS", 1)
    monkeypatch.setattr("handful.studies.auto.CANDIDATES", ("head", "prefix"))
    chosen = handful.fit(task, method="auto", model=str(tiny_folder), settings=QUICK, shots=16, budget=500)
    names = {choice.name: choice for choice in chosen.spec.choices}
    assert names["method"].value == chosen.spec.method.name
    assert names["auto.prefix"].value["n"] == 5
    settings = {"model": str(tiny_folder), "settings": QUICK, "shots": 16}
    assert handful.fit(task, method=chosen.spec.method.name, **settings).scores == chosen.scores


def test_rows_are_set_apart_where_there_is_no_test(task, tiny_folder):
    untested = Task("letters", "classification", ("ab", "z9"), "accuracy", task.pool)
    assert handful.fit(untested, model=str(tiny_folder), method="head").scores["accuracy"].n == 4
    assert handful.fit(untested, model=str(tiny_folder), method="head", test_fraction=None).scores == {}


def test_rows_in_memory(tiny_folder):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    model = {"model": str(tiny_folder), "settings": QUICK}
    fitted = handful.fit(rows[:24], test=rows[24:], **model)
    assert (fitted.labels, fitted.scores["accuracy"].n) == (("ab", "z9"), 16)
    fitted.detach()
    same = handful.fit((TEXTS[:24], LABELS[:24]), test={"text": TEXTS[24:], "label": LABELS[24:]}, **model)
    assert same.scores == fitted.scores
    same.detach()


def test_regression_predicts_numbers(tiny_folder):
    rows = tuple(Example("a" * (i + 1), label=i / 7) for i in range(30))
    fitted = handful.fit(Task("n", "regression", (), "spearman", rows), model=str(tiny_folder), method="head")
    assert set(fitted.scores) == {"spearman", "pearson", "mse", "mae"}
    assert all(isinstance(value, float) for value in fitted.predict(["aaa", "a"]))
    with pytest.raises(ConfigError, match="a regression model has no probabilities"):
        fitted.predict_proba(["aaa"])


def test_export_by_name(fitted, tmp_path):
    report = fitted.export(tmp_path / "out")
    assert report.difference is not None
    assert report.difference < 1e-4
    with pytest.raises(ConfigError, match="did you mean 'peft'"):
        fitted.export(tmp_path / "other", "pefd")


def test_export_without_a_name_takes_what_suits_the_method(task, tiny_folder, tmp_path):
    """PEFT could not load the gates of a smaller model."""
    budget = {"target_sparsity": 0.4, "multiple": 4}
    gated = handful.fit(
        task, model=str(tiny_folder), method="prune", settings=QUICK | budget | {"importance": "learned"}
    )
    report = gated.export(tmp_path / "out")
    assert report.size is not None
    assert report.size.parts.removed > 0.2


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda task: handful.fit(task, method="prefx"), ConfigError, "did you mean 'prefix'?"),
        (lambda task: handful.fit(task, shotz=3), ConfigError, "shotz: no such setting; did you mean 'shots'?"),
        (lambda task: handful.fit(task, model="minilmm"), ModelError, "did you mean 'minilm'?"),
        (lambda task: handful.fit("no.csv"), DataError, "no.csv: no such file"),
        (lambda task: handful.load("no/run"), RunError, "no such run folder"),
    ],
)
def test_mistakes_are_errors_of_ours(task, call, error, said):
    with pytest.raises(error) as caught:
        call(task)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one text", "found one string"),
        ([3], "row 0: expected a text or a pair of texts"),
        ([("a", 1)], "row 0: expected a"),
    ],
)
def test_what_is_no_text_is_refused(fitted, texts, said):
    with pytest.raises(DataError, match=said):
        fitted.predict(texts)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([("a", "b")], "row 0: expected a single text, found a pair: the run predicts single texts"),
        (["a", ("a", "b")], "row 1: expected a single text, found a pair"),
        (np.array([["a", "b"], ["c", "d"]]), "row 0: expected a single text, found a pair"),
        (["a \ud83d"], "row 0: the text in 'text' holds half of a surrogate pair"),
        ([Example("a", source="x"), Example("\udc80")], "row 1: the text in 'text' holds half of a surrogate pair"),
        (5, "expected a sequence of texts, found 5"),
        (None, "expected a sequence of texts, found None"),
        (np.array("abc"), "expected a sequence of texts, found array"),
        (b"abc", "expected a path or rows, found bytes"),
    ],
)
def test_what_the_run_cannot_read_is_refused(shared, texts, said):
    with pytest.raises(DataError, match=said):
        shared.predict(texts)


@pytest.mark.parametrize(
    "texts",
    [
        ["", TEXTS[0]],
        [None, TEXTS[0]],
        [float("nan"), TEXTS[0]],
        np.array([None, TEXTS[0]], object),
        pandas.Series([pandas.NA, TEXTS[0]]),
        pandas.DataFrame({"text": [None, TEXTS[0]]}),
    ],
)
def test_a_missing_text_is_an_empty_one(shared, texts):
    with pytest.warns(UserWarning, match="1 of 2 texts have no tokens"):
        assert shared.predict(texts) == [None, shared.predict(TEXTS[:1])[0]]


def test_options_are_dicts(shared, task):
    calls = [
        lambda: handful.fit(task, columns="text"),
        lambda: handful.fit(task, settings="shots"),
        lambda: shared.evaluate([], columns="text"),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"expected a dict, found '(text|shots)'"):
            call()
    with pytest.raises(ConfigError, match=r"(?s)no such option as lable.*did you mean 'label'"):
        shared.evaluate([], columns={"lable": "x"})


def test_another_backbone_is_refused(fitted, make_model):
    with pytest.raises(ModelError, match="trained on other weights"):
        handful.load(fitted.run.folder, backbone=handful.load_backbone(str(make_model(1))))


def test_predictions_of_anything_that_has_a_column_of_texts(fitted, tmp_path):
    frames = [
        pandas.DataFrame({"id": range(40), "text": TEXTS}, index=range(7, 47)),
        pandas.DataFrame({"text": TEXTS})[["text"]],
        {"text": TEXTS},
        [{"text": text, "more": 1} for text in TEXTS],
        datasets.Dataset.from_dict({"text": TEXTS}),
        pandas.Series(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS)[:, None],
    ]
    path = tmp_path / "new.csv"
    frames[0].to_csv(path, index=False)
    expected = fitted.predict_proba(TEXTS)
    for texts in (*frames, path):
        np.testing.assert_array_equal(fitted.predict_proba(texts), expected)
        assert fitted.predict(texts) == fitted.predict(TEXTS)
    with pytest.raises(DataError, match="expected rows, found an empty DataFrame"):
        fitted.predict(pandas.DataFrame({"text": []}))


def test_what_was_guessed_in_reading_a_table_is_said(shared):
    frame = pandas.DataFrame({"what": TEXTS, "n": range(len(TEXTS))})
    for ask in (shared.predict, shared.predict_proba):
        with pytest.warns(UserWarning, match="read the column 'what'.* as the text") as said:
            ask(frame)
        assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared.predict(frame.rename(columns={"what": "text"}))  # as in training: nothing was guessed


def test_a_text_without_tokens_has_no_label(fitted):
    with pytest.warns(UserWarning, match="1 of 2 texts have no tokens and get no prediction"):
        assert fitted.predict(["", TEXTS[0]]) == [None, fitted.predict(TEXTS[:1])[0]]


def test_a_model_is_scored_on_new_rows_without_those_of_its_training(fitted, task):
    new = {"text": [f"aaaa {i}" for i in range(20)] + TEXTS[:24], "label": ["ab"] * 20 + LABELS[:24]}
    found = fitted.evaluate(new)
    assert found.rows == 20 + 8 and found.scores.estimates["accuracy"].n == 28
    assert found.notes == ("16 rows were left out: the model was trained or selected on them",)
    in_memory = handful.fit(task, model=fitted.spec.model, settings=QUICK, shots=16)
    assert in_memory.evaluate(new).scores.estimates == found.scores.estimates
