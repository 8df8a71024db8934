"""Several labels per text, from a file to a scored run and back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import handful
from handful import DataError, FewShotClassifier
from handful.data.files import read_task
from handful.data.holdout import with_held_out_test
from handful.data.label_set_targets import SetTargets
from handful.data.new_rows import labelled_rows
from handful.data.split import Split
from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError
from handful.evaluation.evaluate import encode_rows
from handful.evaluation.landscape import measure_landscape
from handful.evaluation.metrics import check_metric, get_metric
from handful.evaluation.thresholds import choose_thresholds
from handful.objectives import objective_of
from handful.runs.experiment import open_trained, train
from handful.runs.scoring import prediction_records
from handful.runs.spec import resolve

LABELS = ("anger", "fear", "joy")
MANY = objective_of("multilabel")


def rows(count: int = 72) -> list[tuple[str, list[str]]]:
    """Texts whose letters say which labels they have; every eighth has none."""
    letters = {"anger": "aaaa", "fear": "ffff", "joy": "jjjj"}
    found = []
    for index in range(count):
        own = [name for place, name in enumerate(LABELS) if (index % 8) >> place & 1]
        found.append((" ".join([*(letters[name] for name in own), "zz", f"{index:03d}"]), own))
    return found


def write(path, content, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *content])
    return path


@pytest.fixture
def lists(tmp_path):
    return write(tmp_path / "lists.csv", [(text, json.dumps(own)) for text, own in rows()])


def test_lists_flags_and_separated_texts_are_one_task(tmp_path, lists):
    of_lists = read_task(lists)
    assert of_lists.kind == "multilabel"
    assert of_lists.labels == LABELS
    assert of_lists.metric == "micro_f1"
    assert of_lists.pool[3].label == (1, 1, 0)
    flags = [(text, *(int(name in own) for name in LABELS)) for text, own in rows()]
    of_flags = read_task(write(tmp_path / "flags.csv", flags, ("text", *LABELS)), label="anger,fear,joy")
    assert [row.label for row in of_flags.pool] == [row.label for row in of_lists.pool]
    some = [(text, "; ".join(own)) for text, own in rows() if own]
    separated = read_task(write(tmp_path / "marks.csv", some), label_separator="semicolon")
    assert [row.label for row in separated.pool] == [row.label for row in of_lists.pool if any(row.label)]
    assert separated.kind == of_flags.kind == "multilabel"


def test_each_combination_can_still_be_a_class(lists):
    assert read_task(lists, kind="classification").kind == "classification"
    assert any("--kind classification" in note for note in read_task(lists).notes)


def test_lists_of_one_label_are_classes(tmp_path):
    single = [(text, json.dumps(own[:1] or ["joy"])) for text, own in rows()]
    assert read_task(write(tmp_path / "one.csv", single)).kind == "classification"


@pytest.mark.parametrize("cell", [["fear", "joy"], '["fear", "joy"]', "fear;joy", "joy | fear", "fear,joy"])
def test_later_cells_are_read_by_the_known_labels(cell):
    assert SetTargets(LABELS).value(cell, "row 1") == (0, 1, 1)


@pytest.mark.parametrize(("cell", "label"), [("fear", (0, 1, 0)), ([], (0, 0, 0)), ("[]", (0, 0, 0))])
def test_one_label_and_none(cell, label):
    assert SetTargets(LABELS).value(cell, "row 1") == label


@pytest.mark.parametrize("cell", ["hope", "fear;hope", ["hope"]])
def test_an_unknown_label_is_refused(cell):
    with pytest.raises(DataError, match="row 1: the label 'hope' is none of the 3 classes"):
        SetTargets(LABELS).value(cell, "row 1")


def test_a_metric_of_one_name_is_that_of_the_kind():
    assert get_metric("macro_f1", "multilabel") is not get_metric("macro_f1", "classification")
    assert get_metric("micro_f1").needs == "sets"
    with pytest.raises(ConfigError, match="expected a metric for multilabel tasks, found 'accuracy'"):
        check_metric("accuracy", "multilabel", 3)


def test_names_of_metrics_as_scikit_learn_has_them(lists):
    assert read_task(lists, metric="f1_macro").metric == "macro_f1"


def test_few_rows_hold_every_label_in_both_parts_and_are_nested(lists):
    task = read_task(lists)
    few, more = Split(task, 20, 3), Split(task, 40, 3)
    assert {row.text for row in few.labelled} < {row.text for row in more.labelled}
    for part in (few.train, few.dev):
        assert np.sum([row.label for row in part], axis=0).min() > 0


def test_the_probe_is_one_logistic_regression_per_label():
    from sklearn.linear_model import LogisticRegression

    features = np.random.default_rng(0).normal(size=(40, 5))
    targets = np.stack([features[:, 0] > 0, features[:, 1] > 0.5, np.zeros(40)], axis=1).astype(float)
    weight, bias = MANY.fit_probe(features, targets, 1.0, np.ones(40))
    for label in (0, 1):
        model = LogisticRegression(C=1.0, max_iter=2000).fit(features, targets[:, label])
        np.testing.assert_allclose(weight[label], model.coef_[0])
        np.testing.assert_allclose(bias[label], model.intercept_[0])
    assert not weight[2].any()
    assert bias[2] == pytest.approx(np.log(1 / 41))  # no row has it: its smoothed share alone
    assert MANY.choose_penalty(features, targets) > 1


def test_the_loss_is_torchs_of_every_label():
    scores, targets = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets)
    torch.testing.assert_close(MANY.loss(scores, targets), expected)


def test_a_label_is_predicted_where_it_is_more_likely_than_not():
    scores = np.array([[[2.0, -1.0], [-3.0, 0.1]], [[-1.0, -1.0], [-3.0, 0.1]]])
    mean = MANY.probabilities(scores).mean(0)
    assert MANY.answers(scores, lambda: mean).tolist() == [[1, 0], [0, 1]]


@pytest.fixture(scope="module")
def fitted(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multilabel")
    data = write(folder / "lists.csv", [(text, json.dumps(own)) for text, own in rows()])
    return handful.fit(
        str(data), model=str(tiny_folder), method="bias", shots=40, output=folder / "runs",
        settings={"training.epochs": 3, "max_length": 24},
    )  # fmt: skip


def test_a_run_is_fitted_scored_saved_and_loaded(fitted):
    assert set(MANY.metrics) == set(fitted.scores)
    assert fitted.scores["lrap"].low <= fitted.scores["lrap"].mean
    assert fitted.baseline.scores["nll"] > 0
    texts = [text for text, _ in rows(8)]
    probabilities = fitted.predict_proba(texts)
    assert probabilities.shape == (8, 3)
    assert fitted.predict(texts) == [
        [name for name, p in zip(LABELS, row, strict=True) if p > 0.5] for row in probabilities
    ]
    assert fitted.disagreement(texts).shape == (8,)
    loaded = handful.load(fitted.run.folder)
    np.testing.assert_array_equal(loaded.predict_proba(texts), probabilities)
    records = loaded.run.lines("predictions.jsonl")
    assert all(isinstance(record["target"], list) and len(record["probabilities"]) == 3 for record in records)
    card = (fitted.run.folder / "README.md").read_text()
    assert "any of 3 labels, or none: anger, fear, joy" in card


def test_a_text_without_tokens_has_no_prediction(fitted):
    with pytest.warns(UserWarning, match="1 of 2 texts have no tokens"):
        assert fitted.predict(["", "aaaa zz"])[0] is None


def test_later_rows_are_scored(fitted, tmp_path):
    later = write(tmp_path / "later.csv", [(f"{text} x", ";".join(own)) for text, own in rows(24) if own])
    found = fitted.evaluate(later)
    assert found.scores.estimates["micro_f1"].n == 21
    assert labelled_rows(later, fitted._trained.task)[0][0].label == (1, 0, 0)
    assert prediction_records(found.scores, fitted._trained.task)[0]["target"] == ["anger"]


def test_a_dense_export_is_stock_transformers_with_a_sigmoid(fitted, tmp_path):
    from transformers import pipeline

    fitted.export(tmp_path / "dense", format="dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert ".sigmoid()" in (tmp_path / "dense" / "README.md").read_text()
    text = rows(8)[3][0]
    (found,) = pipeline("text-classification", str(tmp_path / "dense"), top_k=None)([text])
    scores = {one["label"]: one["score"] for one in found}
    expected = dict(zip(LABELS, fitted.predict_proba([text])[0], strict=True))
    assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("as_lists", [False, True])
def test_the_classifier_of_scikit_learn_takes_several_labels(tiny_folder, as_lists):
    texts, lists = map(list, zip(*rows(40), strict=True))
    flags = np.array([[int(name in own) for name in LABELS] for own in lists])
    model = FewShotClassifier(method="head", model=str(tiny_folder), settings={"max_length": 24})
    model.fit(texts, lists if as_lists else flags)
    found = model.predict(texts)
    assert found.shape == flags.shape
    assert (found == flags).mean() > 0.8
    np.testing.assert_array_equal(found, model.predict_proba(texts) > 0.5)
    assert model.classes_.tolist() == (list(LABELS) if as_lists else ["0", "1", "2"])
    np.testing.assert_allclose(model.predict_proba([""])[0], flags.mean(0))


def test_pooled_validation_and_a_landscape(lists, tiny_folder):
    model = handful.fit(
        lists, method="prefix-subspace", model=str(tiny_folder), shots=40,
        settings={"max_length": 24, "epochs": 1, "dev": "carved", "validation": "pooled", "draws": 2},
    )  # fmt: skip
    landscape = measure_landscape(model._trained.adapter, encoded(model), "multilabel", 1)
    assert landscape["metric"] == "nll"
    assert len(landscape["points"]) == 3
    model.detach()


def encoded(model):
    trained = model._trained
    rows = [Example("aaaa", label=(1, 0, 0)), Example("jjjj", label=(0, 0, 1))]
    return encode_rows(trained.backbone, rows, trained.task, 24)


def test_rows_set_apart_leave_two_of_every_label(lists):
    labels = [(1, 0)] * 4 + [(1, 1)] * 3 + [(0, 0)] * 8
    pool = tuple(Example(f"text {index}", label=label) for index, label in enumerate(labels))
    for start in range(20):
        rows = tuple(replace(row, text=f"{row.text} {start}") for row in pool)
        task = with_held_out_test(Task("t", "multilabel", ("a", "b"), "micro_f1", rows), 0.5)
        assert sum(row.label[1] for row in task.pool) >= 2
        assert len(task.test or ()) == 8


@pytest.fixture
def head(tiny_folder):
    return FewShotClassifier(method="head", model=str(tiny_folder), settings={"max_length": 24})


def test_columns_of_a_data_frame_keep_their_order_and_its_index_is_looked_at(head):
    import pandas as pd

    texts, lists = map(list, zip(*rows(40), strict=True))
    frame = pd.DataFrame({name: [int(name in own) for own in lists] for name in ("joy", "anger")})
    assert head.fit(texts, frame).classes_.tolist() == ["joy", "anger"]
    assert (head.predict(texts) == frame.to_numpy()).mean() > 0.9
    with pytest.warns(UserWarning, match="same index in another order"):
        head.fit(pd.Series(texts), frame.iloc[::-1])


@pytest.mark.parametrize("form", ["series", "frozensets", "arrays", "objects"])
def test_the_classifier_takes_lists_of_any_kind(head, form):
    import pandas as pd

    texts, lists = map(list, zip(*rows(40), strict=True))
    forms = {"series": pd.Series(lists), "frozensets": [*map(frozenset, lists)], "arrays": [*map(np.array, lists)]}
    forms["objects"] = pd.Series(lists).to_numpy()
    assert head.fit(texts, forms[form]).classes_.tolist() == list(LABELS)


def test_a_label_that_no_row_of_a_fold_has_is_no_error_and_is_said(head):
    texts, lists = map(list, zip(*rows(40), strict=True))
    flags = np.array([[int(name in own) for name in (*LABELS, "hope")] for own in lists])
    head.fit(texts, flags)
    assert head.predict(texts)[:, 3].sum() == 0
    examples = [Example(text, label=tuple(own)) for text, own in zip(texts, flags.tolist(), strict=True)]
    task = Task("t", "multilabel", (*LABELS, "hope"), "micro_f1", tuple(examples))
    spec = resolve("head", model=head.model, overrides={"max_length": 24, "shots": 40, "dev": "none"})
    assert train(task, spec).notes == ("no training row has 1 of the 4 labels ('hope')",)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([["a", "b"], "a", ["b"]], r"expected a list in every row.*1 of 3 rows, the first 'a' \(y\[1\]\).*hint: write"),
        ([["a", "b"], None, ["b"]], r"expected labels for every text, found none for 1 \(first: y\[1\]\).*hint: drop"),
        (np.zeros((3, 2, 2)), r"zeros and ones \(N, C\), found the shape \(3, 2, 2\).*hint: give one row"),
        (np.array([[0, 2], [1, 0], [1, 1]]), r"y\[0\]: expected 0 or 1 .* found 2"),
    ],
)  # fmt: skip
def test_the_classifier_says_which_labels_are_wrong(y, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        FewShotClassifier().fit(["one", "two", "three"], y)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_pefts_methods_learn_label_sets(tiny_folder, lists, tmp_path, method):
    fitted = handful.fit(
        str(lists), model=str(tiny_folder), method=method, shots=40, output=tmp_path / "runs",
        settings={"training.epochs": 6, "max_length": 24},
    )  # fmt: skip
    assert fitted.scores["micro_f1"].mean > fitted.baseline.scores["micro_f1"]
    weights = fitted.run.weights()
    assert any("lora_B" in name or "ia3_l" in name for name in weights)
    assert all(tensor.any() for name, tensor in weights.items() if "lora_B" in name)  # it starts at zero
    texts = [text for text, _ in rows(8)]
    np.testing.assert_array_equal(handful.load(fitted.run.folder).predict_proba(texts), fitted.predict_proba(texts))


# ------------------------------------------------------------------------------------------------------- the threshold


@pytest.fixture
def noisy(lists):
    """Every fourth row has the labels of the row before, so that probabilities are not all near 0 and 1."""
    task = read_task(lists)
    pool = [replace(row, label=task.pool[place - (place % 4 == 3)].label) for place, row in enumerate(task.pool)]
    return replace(task, pool=tuple(pool[:48]), test=TestRows(pool[48:]))


@pytest.fixture
def fit(tiny_folder, noisy, tmp_path):
    def fitted(data=noisy, **settings):
        return handful.fit(
            data, model=str(tiny_folder), method="head", shots=40,
            output=tmp_path / "runs", settings={"training.epochs": 1, "max_length": 24, **settings},
        )  # fmt: skip

    return fitted


def sets(probabilities, threshold):
    return [[name for name, p in zip(LABELS, row, strict=True) if p > threshold] for row in probabilities]


def test_a_threshold_that_is_asked_for_is_used_everywhere_and_is_another_run(fit, lists):
    plain, low = fit(), fit(**{"run.threshold": 0.005})
    assert plain.run.record["threshold"]["value"] == plain.threshold == 0.5
    assert "no development rows" in plain.run.record["threshold"]["reason"]
    assert low.run.key != plain.run.key
    assert low.run.record["threshold"] == {"value": 0.005, "reason": "as asked for"}
    texts = [text for text, _ in rows(32)]
    probabilities = plain.predict_proba(texts)
    np.testing.assert_array_equal(low.predict_proba(texts), probabilities)
    assert sets(probabilities, 0.005) != sets(probabilities, 0.5)
    for model in (low, handful.load(low.run.folder)):
        assert model.predict(texts) == sets(probabilities, 0.005)
    assert plain.predict(texts) == sets(probabilities, 0.5)
    for record in low.run.lines("predictions.jsonl"):
        assert [record["prediction"]] == sets([record["probabilities"]], 0.005)
    sentence = "A label is predicted where its probability is above 0.005: as asked for."
    assert sentence in (low.run.folder / "README.md").read_text()
    assert sentence in low.run.record["notes"]
    found = low.evaluate(lists).scores.predictions
    assert (found.labels == (found.probabilities > 0.005)).all()


def test_a_threshold_is_chosen_on_development_rows_and_never_on_test_rows(fit, noisy):
    task = noisy
    found = fit(task, **{"run.dev": "carved"})
    split = Split(task, 40, 0, dev="carved")
    probabilities = found.predict_proba([row.text for row in split.dev])
    best = choose_thresholds(probabilities, np.array([row.label for row in split.dev]), LABELS)
    assert found.threshold == pytest.approx(best.values[0]) != 0.5
    assert found.run.record["threshold"]["reason"] == f"chosen on development rows; {best.reasons[0]}"
    lies = [replace(row, label=tuple(1 - flag for flag in row.label)) for row in task.test._examples]
    lied = fit(replace(task, name="lies", test=TestRows(lies)), **{"run.dev": "carved"})
    assert lied.run.folder != found.run.folder
    assert lied.run.record["threshold"] == found.run.record["threshold"]
    assert fit(task, **{"run.dev": "carved"}).threshold == found.threshold  # of the saved run


def test_half_is_kept_where_it_is_best(fit, noisy):
    found = fit(replace(noisy, metric="subset_accuracy"), **{"run.dev": "carved"})
    assert found.run.record["threshold"] == {"value": 0.5, "reason": "that is best for subset_accuracy"}


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "half"])
def test_a_threshold_is_between_0_and_1(fit, value):
    with pytest.raises(ConfigError, match=r"run\.threshold: expected"):
        fit(**{"run.threshold": value})


def test_one_label_per_text_has_no_threshold():
    spec = resolve("head", overrides={"run.threshold": 0.3})
    with pytest.raises(ConfigError, match=r"run\.threshold: a task of kind 'classification' has not several labels"):
        spec.suited("classification")


def test_keys_of_runs_without_a_threshold_are_what_they_were():
    plain, asked = resolve("head"), resolve("head", overrides={"run.threshold": 0.5})
    assert plain.key("rows", "weights") == "a8deaaf88179d14f1a4f01f98db4cd10b43d5594c1fc74a09a022e0839a332eb"
    assert asked.key("rows", "weights") != plain.key("rows", "weights")


def test_a_run_from_before_thresholds_has_one_half(fitted, tmp_path):
    record = {name: value for name, value in fitted.run.record.items() if name != "threshold"}
    record["spec"] = record["spec"] | {"run": {k: v for k, v in record["spec"]["run"].items() if k != "threshold"}}
    before = replace(fitted.run, record=record)
    assert open_trained(before).adapter.label_threshold == 0.5


def test_a_named_column_that_no_row_has_stays_a_class(tmp_path):
    flags = [(text, *(int(name in own) for name in LABELS), 0) for text, own in rows()]
    task = read_task(write(tmp_path / "flags.csv", flags, ("text", *LABELS, "hope")), label="anger,fear,joy,hope")
    assert task.labels == ("anger", "fear", "hope", "joy")
    assert task.pool[3].label == (1, 1, 0, 0)
    assert all(row.label[2] == 0 for row in task.pool)
