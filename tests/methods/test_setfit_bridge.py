"""SetFit through the bridge: the library's own numbers, under our contract, leaving no trace."""

import os
import random
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from handful.backbone.load import load_backbone
from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.data.task import TestRows
from handful.errors import ConfigError
from handful.evaluation.predict import predict_rows
from handful.methods import method_class
from handful.methods.setfit_bridge import RowEncoder, SetFit, label_weights, train_setfit
from handful.randomness import stream
from handful.runs.experiment import open_trained, run
from handful.runs.scoring import score_task
from handful.runs.spec import resolve
from handful.testing import check_method, toy_task
from handful.training.config import TrainingConfig
from handful.training.fit import fit


@pytest.fixture
def installed():
    """Skips a test, visibly, where SetFit is not installed."""
    if find_spec("setfit") is None:
        if os.environ.get("HANDFUL_REQUIRE_SHARED") == "1":
            pytest.fail("needs SetFit, and HANDFUL_REQUIRE_SHARED=1 is set")
        pytest.skip("needs SetFit (pip install 'handful[setfit]')")


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone("bert")


@pytest.fixture(scope="module")
def task():
    """24 distinct rows and 12 for test."""
    whole = toy_task(rows=36)
    rows = [replace(row, text=f"{row.text} {number}") for number, row in enumerate(whole.pool)]
    return replace(whole, pool=tuple(rows[:24]), test=TestRows(rows[24:]))


def three_classes(task):
    """The same rows with the length of the text as a third class."""
    rows = tuple(replace(row, label=2 if number % 3 == 2 else row.label) for number, row in enumerate(task.pool))
    return replace(task, labels=("first", "last", "third"), pool=rows, test=None)


def label_sets(task, common=False):
    """The same rows with two labels, and with a third by the length of the text, or in every row."""
    rows = tuple(
        replace(row, label=(row.label, 1 - row.label if number % 4 else 0, int(common or number % 3 == 2)))
        for number, row in enumerate(task.pool)
    )
    return replace(task, kind="multilabel", metric="micro_f1", labels=("a", "b", "c"), pool=rows, test=None)


def trained(method, backbone, task, seed=3):
    """A fitted adapter, and its rows."""
    rows = encode(task.pool, backbone.tokenizer, 64, kind=task.kind)
    adapter = method.attach(backbone, task, generator=stream(seed, "init"))
    config = TrainingConfig.from_settings(dict(SetFit.presets["default"].training))
    fit(adapter, rows, None, config, kind=task.kind, metric=task.metric, generator=stream(seed, "fit"))
    return adapter, rows


def test_it_keeps_the_contract(installed, backbone):
    check_method(SetFit(num_iterations=3), backbone, toy_task())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_it_works_on_decoders_and_on_pairs(installed, family):
    task, other = toy_task("pair-classification"), tiny_backbone(family)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    adapter, rows = trained(SetFit(num_iterations=1), other, task)
    moved = any(not before[name].equal(tensor) for name, tensor in other.model.state_dict().items())
    assert moved and np.isfinite(predict_rows(adapter, rows, task.kind).scores).all()
    adapter.detach()
    assert all(before[name].equal(tensor) for name, tensor in other.model.state_dict().items())


def test_predictions_are_those_of_the_trained_setfit_model(installed, backbone, task):
    for example in (task, three_classes(task), label_sets(task)):
        rows = encode(example.pool, backbone.tokenizer, 64, kind=example.kind)
        adapter = SetFit(num_iterations=2).attach(backbone, example, generator=stream(0, "init"))
        made = []

        def keep(*arguments, made=made):
            made.append(train_setfit(*arguments))
            return made[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("handful.methods.setfit_bridge.train_setfit", keep)
            adapter.warm_start(rows, stream(0, "fit"))
        expected = made[0].predict_proba([str(number) for number in range(len(rows))], as_numpy=True)
        found = predict_rows(adapter, rows, example.kind).probabilities
        adapter.detach()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert expected.shape == (24, example.num_outputs) and expected.std(0).max() > 1e-3


@pytest.mark.parametrize("iterations", [None, 2])
def test_rows_by_number_train_as_texts_do_in_setfits_own_quick_start(
    installed, tiny_folder, task, tmp_path, iterations
):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts, labels = [row.text for row in task.pool], [row.label for row in task.pool]
    stock = SetFitModel.from_pretrained(str(tiny_folder), device="cpu")
    options = {"num_iterations": iterations, "body_learning_rate": 1e-3, "num_epochs": 2, "seed": 11}
    arguments = TrainingArguments(output_dir=str(tmp_path), save_strategy="no", report_to="none", **options)
    untrained = stock.model_body.encode(texts)
    Trainer(stock, arguments, Dataset.from_dict({"text": texts, "label": labels})).train()
    expected = stock.predict_proba(texts, as_numpy=True)

    ours = load_backbone(str(tiny_folder))
    ours.model.requires_grad_(True)
    rows = encode(task.pool, ours.tokenizer, ours.max_length, kind=task.kind)
    encoder = RowEncoder(ours, rows)
    method = SetFit(num_iterations=iterations, body_learning_rate=1e-3, num_epochs=2)
    bridged = train_setfit(encoder, labels, method, seed=11)
    found = bridged.predict_proba([str(number) for number in range(len(texts))], as_numpy=True)
    assert np.abs(stock.model_body.encode(texts) - untrained).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_run_is_reproduced_from_its_seed_and_read_back_without_setfit(
    installed, backbone, task, tmp_path, monkeypatch
):
    def once(folder, seed=0):
        overrides = {"run.shots": 16, "run.seed": seed, "method.num_iterations": 2}
        spec = resolve("setfit", model="tiny", overrides=overrides)
        saved, again = run(task, spec, tmp_path / folder, backbone=backbone)
        again.adapter.detach()
        return saved

    first, second, other = once("a"), once("b"), once("c", seed=1)
    assert first.lines("predictions.jsonl") == second.lines("predictions.jsonl") != other.lines("predictions.jsonl")
    record = first.record
    assert record["rows"]["train"] == 16 and record["fit"]["seconds"] > 0 and record["fit"]["steps"] == 0
    assert record["fit"]["peak_memory_mb"] > 0 and set(record["scores"]) >= {"accuracy", "nll"}
    monkeypatch.setitem(sys.modules, "setfit", None)
    reopened = open_trained(first, backbone=backbone)
    scores = score_task(reopened.adapter, task, reopened.spec)
    reopened.adapter.detach()
    assert scores is not None
    assert scores.estimates["nll"].to_dict() == record["scores"]["nll"]


def test_nothing_global_is_left_changed_and_nothing_is_printed(installed, backbone, task, capfd):
    import setfit

    filters, verbosity = list(warnings.filters), setfit.logging.get_verbosity()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter, _ = trained(SetFit(num_iterations=1), backbone, task)
    adapter.detach()
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all() and torch.get_rng_state().equal(states[2])
    assert list(warnings.filters) == filters and setfit.logging.get_verbosity() == verbosity
    assert not any(module.training for module in backbone.model.modules())


def test_the_head_of_a_label_that_all_rows_or_none_have_is_its_smoothed_share():
    features = np.random.default_rng(0).normal(size=(20, 4))
    targets = np.stack([features[:, 0] > 0, np.ones(20), np.zeros(20)], axis=1).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that a label is in every row
        head = OneVsRestClassifier(LogisticRegression()).fit(features, targets)
    weight, bias = label_weights(head, targets)
    expected = LogisticRegression().fit(features, targets[:, 0])
    np.testing.assert_allclose(weight, [expected.coef_[0], np.zeros(4), np.zeros(4)])
    np.testing.assert_allclose(bias, [expected.intercept_[0], np.log(21), -np.log(21)])


def test_rows_that_all_share_a_label_are_refused(backbone, task):
    example = label_sets(task, common=True)
    adapter = SetFit().attach(backbone, example, generator=stream(0, "init"))
    rows = encode(example.pool, backbone.tokenizer, 64, kind=example.kind)
    with pytest.raises(ConfigError, match="pairs of rows without a label in common, found none") as caught:
        adapter.warm_start(rows, stream(0, "fit"))
    adapter.detach()
    assert caught.value.hint == "leave out the label that every row has, or use another method"


def test_what_cannot_be_done_is_said_before_training(backbone, task, monkeypatch):
    monkeypatch.setattr("handful.methods.setfit_bridge.find_spec", lambda name: None)
    reasons = SetFit().check(backbone, toy_task("regression"))
    assert reasons == [
        "SetFit is not installed: pip install 'handful[setfit]'",
        "SetFit is for classes and labels",
    ]
    monkeypatch.setitem(sys.modules, "setfit", None)
    with pytest.raises(ConfigError, match="needs SetFit, which cannot be imported") as caught:
        trained(SetFit(), backbone, task)
    assert caught.value.hint == "pip install 'handful[setfit]'"


def test_defaults_are_those_of_setfit(installed):
    from setfit import TrainingArguments

    ours, theirs = SetFit(), TrainingArguments(report_to="none")
    assert method_class("setfit") is SetFit
    assert (ours.num_iterations, ours.num_epochs) == (theirs.num_iterations, theirs.embedding_num_epochs)
    assert (ours.pair_batch_size, ours.body_learning_rate) == (
        theirs.embedding_batch_size,
        theirs.body_embedding_learning_rate,
    )
