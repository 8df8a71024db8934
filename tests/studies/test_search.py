"""Searches: what they see, how they choose, and that a killed one goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from handful.backbone.tiny import tiny_backbone
from handful.data.task import TestRows, text_key
from handful.errors import ConfigError, DataError, RunError
from handful.evaluation.evaluate import encode_for
from handful.evaluation.metrics import score
from handful.evaluation.predict import predict_rows
from handful.methods.search_space import Interval, OneOf
from handful.runs.experiment import make_split, train
from handful.runs.spec import resolve
from handful.studies.search import DevCurve, carve, choose, dev_scores, search, with_overrides
from handful.studies.strategies import STARTUP_TRIALS, STRATEGIES
from handful.studies.trials import SearchSettings, Trial
from handful.testing import toy_task
from handful.training.events import Evaluated, FitStarted
from handful.training.fit import batch_loss

SPACE = {"training.learning_rate": Interval(1e-3, 1e-1, log=True), "method.prefix_length": OneOf((2, 4, 8))}


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone("bert")


def letters_task(kind="classification"):
    """36 distinct rows and 12 for test, in which letters tell the class, but every sixth label is wrong."""
    whole = toy_task(kind, rows=48)
    rows = [replace(row, text=f"{row.text} {number}") for number, row in enumerate(whole.pool)]
    return replace(whole, pool=tuple(rows[:36]), test=TestRows(rows[36:]))


@pytest.fixture(scope="module")
def task():
    return letters_task()


def spec_of(method="prefix", **overrides):
    return resolve(method, model="tiny", overrides={"training.epochs": 2, "run.shots": 24, **overrides})


def run_search(task, backbone, journal, *, spec=None, space=SPACE, on_event=lambda event: None, **settings):
    settings = SearchSettings(**{"trials": 4, **settings})
    return search(task, spec or spec_of(), settings, space, journal=journal, backbone=backbone, on_event=on_event)


def numbers(trials):
    """Everything of trials but their time."""
    return [replace(trial, seconds=0.0) for trial in trials]


# --------------------------------------------------------------------------------------------------- what it sees


@pytest.mark.parametrize("dev", ["none", "carved", "separate"])
def test_a_trial_sees_the_runs_labelled_rows_and_no_other(task, dev):
    spec = spec_of(**{"run.dev": dev})
    split, whole = carve(task, spec, 0.3), make_split(task, spec)
    seen = {text_key(row) for row in (*split.train, *split.dev)}
    labelled = {text_key(row) for row in whole.train} | (
        {text_key(row) for row in whole.dev} if dev == "carved" else set()
    )
    assert seen == labelled and len(split.train) + len(split.dev) == 24
    assert len(split.dev) == pytest.approx(0.3 * 24, abs=1)
    assert split.test is None and split.task.test is None and split.task.dev is None
    assert {text_key(row) for row in split.task.pool} == seen


def test_a_class_with_a_single_row_cannot_be_judged(task):
    rare = (*(row for row in task.pool if row.label == 0), next(row for row in task.pool if row.label == 1))
    with pytest.raises(DataError, match="class 'last' has 1 row"):
        carve(replace(task, pool=rare, test=None), spec_of(**{"run.shots": len(rare)}), 0.3)


def test_test_rows_are_never_opened(task, backbone, tmp_path, monkeypatch):
    expected = run_search(task, backbone, tmp_path / "open.jsonl", trials=3)
    closed = replace(task, test=TestRows([replace(row, text=row.text) for row in task.test._examples]))
    keys, overlapping = closed.test.text_keys(), closed.test.overlap_keys()
    monkeypatch.setattr(TestRows, "text_keys", lambda self: keys)
    monkeypatch.setattr(TestRows, "overlap_keys", lambda self: overlapping)
    object.__setattr__(closed.test, "_examples", None)  # whoever opens them now fails
    monkeypatch.setattr(TestRows, "__len__", lambda self: 12)
    monkeypatch.setattr(TestRows, "fingerprint", lambda self: "")
    found = run_search(closed, backbone, tmp_path / "closed.jsonl", trials=3)
    assert numbers(found.trials) == numbers(expected.trials)


# ------------------------------------------------------------------------------------------------- how it chooses


def test_the_first_trial_is_the_preset_and_the_choice_is_no_worse_on_dev(task, backbone, tmp_path):
    heard = []
    outcome = run_search(task, backbone, tmp_path / "trials.jsonl", trials=5, on_event=heard.append)
    first, best = outcome.trials[0], choose(outcome.trials, True)
    assert first.overrides == {} and best is not None
    assert (best.score, -best.loss) >= (first.score, -first.loss)
    assert outcome.overrides == best.overrides and outcome.tried == 5
    assert outcome.note.startswith("prefix: 5 trials; chosen on dev (accuracy ")
    assert sum(isinstance(event, FitStarted) for event in heard) == 5
    for trial in outcome.trials[1:]:
        assert (
            all(value in SPACE[name] for name, value in trial.overrides.items())
            and trial.overrides.keys() == SPACE.keys()
        )
        assert trial.curve[-1] == (10, trial.score) and len(trial.curve) == 2


def test_a_trials_score_is_the_metric_on_dev_and_its_loss_is_not_calibrated(task, backbone):
    spec = with_overrides(spec_of(), {"run.dev": "carved"})
    split = carve(task, spec, 0.3)
    training = train(split.task, spec, split=split, backbone=backbone)
    adapter = training.trained.adapter
    try:
        found = dev_scores(training)
        adapter.calibrate(1.0)
        rows = encode_for(adapter, split.dev, task, 128)
        predictions = predict_rows(adapter, rows, task.kind)
    finally:
        adapter.detach()
    assert training.temperature != 1.0
    assert found["score"] == score("accuracy", predictions.labels, rows.labels.numpy())
    assert found["loss"] == pytest.approx(score("nll", predictions.probabilities, rows.labels.numpy()), rel=1e-6)


def test_ties_go_to_the_lower_loss_then_to_the_earlier_trial():
    def trial(number, score, loss, status="done"):
        return Trial(number, {}, status, 0.0, score, loss)

    trials = [
        trial(0, 0.8, 0.5),
        trial(1, 0.9, 0.7),
        trial(2, 0.9, 0.6),
        trial(3, 0.9, 0.6),
        trial(4, None, None, "failed"),
    ]
    assert choose(trials, True).number == 2
    assert choose(trials, False).number == 0
    assert choose(trials[4:], True) is None


def test_regression_is_searched_for_the_lowest_error(backbone, tmp_path):
    outcome = run_search(letters_task("regression"), backbone, tmp_path / "trials.jsonl", trials=3)
    assert min(trial.score for trial in outcome.trials) == choose(outcome.trials, False).score
    assert all(trial.score == pytest.approx(trial.loss) for trial in outcome.trials)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_search_is_deterministic_and_depends_on_the_runs_seed(task, backbone, tmp_path, strategy):
    if strategy == "optuna":
        pytest.importorskip("optuna")
    space = (
        SPACE if strategy != "grid" else {"method.prefix_length": OneOf((2, 4, 8)), "training.epochs": OneOf((1, 2))}
    )
    first, again = (
        run_search(task, backbone, tmp_path / f"{number}.jsonl", space=space, strategy=strategy, trials=7)
        for number in range(2)
    )
    assert numbers(first.trials) == numbers(again.trials) and first.note == again.note
    other = run_search(
        task,
        backbone,
        tmp_path / "other.jsonl",
        spec=spec_of(**{"run.seed": 1}),
        space=space,
        strategy=strategy,
        trials=7,
    )
    same = [t.overrides for t in first.trials] == [t.overrides for t in other.trials]
    assert same == (strategy == "grid")


def test_a_setting_that_was_tried_is_not_trained_again(task, backbone, tmp_path):
    heard = []
    space = {"method.prefix_length": OneOf((2, 4))}
    outcome = run_search(task, backbone, tmp_path / "trials.jsonl", space=space, trials=8, on_event=heard.append)
    assert outcome.tried == 8
    assert sum(isinstance(event, FitStarted) for event in heard) == 3  # the preset's 10, 2 and 4
    by_length = {
        repr(t.overrides): {(u.score, u.loss) for u in outcome.trials if u.overrides == t.overrides}
        for t in outcome.trials
    }
    assert all(len(results) == 1 for results in by_length.values())


@pytest.mark.parametrize(
    ("space", "settings", "note"),
    [({}, {}, "head: 1 trial, there is nothing to search"), (SPACE, {"trials": 1}, "head: 1 trial, as asked")],
)
def test_without_anything_to_choose_from_nothing_is_trained(task, tmp_path, space, settings, note):
    journal = tmp_path / "trials.jsonl"
    outcome = run_search(task, None, journal, spec=spec_of("head"), space=space, **settings)
    assert (outcome.overrides, outcome.trials, outcome.tried, outcome.note) == ({}, (), 1, note)
    assert not journal.exists()


# ----------------------------------------------------------------------------------------------- what goes wrong


def test_a_trial_that_diverges_has_failed_and_counts(task, backbone, tmp_path, monkeypatch):
    def loss(scores, batch, adapter, *rest):
        return batch_loss(scores, batch, adapter, *rest) * (float("inf") if adapter.method.prefix_length == 4 else 1)

    monkeypatch.setattr("handful.training.fit.batch_loss", loss)
    space = {"method.prefix_length": OneOf((4, 8))}
    outcome = run_search(task, backbone, tmp_path / "trials.jsonl", space=space, strategy="grid")
    assert [trial.status for trial in outcome.trials] == ["done", "failed", "done"]
    assert "the loss or its gradient became inf at step 1" in outcome.trials[1].error
    assert outcome.tried == 3 and outcome.note.startswith("prefix: 3 trials, 1 failed; chosen on dev")


def test_a_trial_that_is_refused_has_failed_and_says_why(task, backbone, tmp_path):
    space = {"method.layers": OneOf(((0, 1), (7, 9)))}
    refused = run_search(task, backbone, tmp_path / "trials.jsonl", space=space, strategy="grid", trials=3)
    assert [trial.status for trial in refused.trials] == ["done", "done", "failed"]
    assert "layers: expected 0 <= first < stop" in refused.trials[2].error and refused.trials[2].score is None


def test_a_search_in_which_everything_failed_says_why_and_says_it_again(task, backbone, tmp_path):
    spec = spec_of(**{"method.layers": (7, 9)})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"all 3 trials failed, the first with: .*prefix.*cannot be used"):
            run_search(task, backbone, tmp_path / "trials.jsonl", spec=spec, trials=3)
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 4


def test_a_grid_needs_points_and_room_for_all_of_them(task, backbone, tmp_path):
    journal = tmp_path / "trials.jsonl"
    with pytest.raises(ConfigError, match=r"a grid over 'training.learning_rate' needs a number of points"):
        run_search(task, backbone, journal, strategy="grid")
    with pytest.raises(ConfigError, match=r"make 10, found 9"):  # 9 points without the preset's own
        run_search(task, backbone, journal, strategy="grid", points=3, trials=9)
    assert not journal.exists()
    space = {"method.prefix_length": OneOf((5, 10))}  # 10 is the preset's own
    assert run_search(task, backbone, journal, space=space, strategy="grid", trials=9).tried == 2


def test_settings_of_a_search_are_checked_by_name_and_range():
    with pytest.raises(
        ConfigError, match=r"(?s)trials: expected greater than.*trial: search has no such field; did you"
    ):
        SearchSettings.from_settings({"trials": 0, "trial": 3})
    with pytest.raises(ConfigError, match="strategy: expected 'random', 'grid' or 'optuna'"):
        SearchSettings(strategy="hyperband")  # pyright: ignore[reportArgumentType]


def test_without_optuna_the_search_says_so_before_it_begins(task, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs Optuna, which cannot be imported.*") as caught:
        run_search(task, None, tmp_path / "trials.jsonl", strategy="optuna")
    assert "handful[search]" in caught.value.hint


# ------------------------------------------------------------------------------------------------------- pruning


def test_optuna_models_the_trials_and_is_not_confused_by_values_outside_the_space():
    pytest.importorskip("optuna")
    space = {"x": Interval(0.0, 1.0), "y": OneOf(("a", "b"))}
    strategy = STRATEGIES["optuna"](SearchSettings(trials=30), space, {"x": 7.0, "y": "a"}, seed=0, maximise=True)
    trials = [Trial(0, {}, "done", 0.0, -7.0, 0.0)]
    for number in range(1, 30):
        overrides = strategy.propose(trials)
        result = -abs(overrides["x"] - 0.7) - (overrides["y"] == "a")
        trials.append(Trial(number, overrides, "failed" if number == 3 else "done", 0.0, result, 0.0))
    early, late = trials[1:10], trials[-10:]
    assert sum(t.score for t in late) / 10 > sum(t.score for t in early) / 9
    assert abs(choose(trials, True).overrides["x"] - 0.7) < 0.1 and choose(trials, True).overrides["y"] == "b"


def test_a_trial_below_the_median_is_given_up():
    pytest.importorskip("optuna")
    curve = ((3, 0.8), (4, 0.8), (5, 0.8))
    trials = [Trial(number, {}, "done", 0.0, 0.8, 0.5, curve) for number in range(STARTUP_TRIALS)]
    strategy = STRATEGIES["optuna"](SearchSettings(), {"x": Interval(0, 1)}, {"x": 0.5}, seed=0, maximise=True)
    strategy.propose(trials)
    assert not strategy.gives_up(2, 0.1)  # too early to say
    assert not strategy.gives_up(3, 0.9)
    assert not strategy.gives_up(4, 0.7)  # its best so far counts
    strategy.propose(trials)
    assert strategy.gives_up(4, 0.7)
    unpruned = STRATEGIES["optuna"](
        SearchSettings(prune=False), {"x": Interval(0, 1)}, {"x": 0.5}, seed=0, maximise=True
    )
    unpruned.propose(trials)
    assert not unpruned.gives_up(4, 0.7)


def test_giving_up_ends_the_fit_records_the_curve_and_leaves_the_backbone_as_it_was(
    task, backbone, tmp_path, monkeypatch
):
    from handful.studies.strategies import RandomStrategy

    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    monkeypatch.setattr(RandomStrategy, "gives_up", lambda self, tenth, found: tenth >= 3)
    spec = spec_of("lora", **{"training.epochs": 10})
    space = {"training.learning_rate": Interval(1e-4, 1e-2)}
    outcome = run_search(task, backbone, tmp_path / "trials.jsonl", spec=spec, space=space, trials=3)
    assert [trial.status for trial in outcome.trials] == ["done", "pruned", "pruned"]
    assert outcome.overrides == {} and "2 pruned" in outcome.note
    assert [tenth for tenth, _ in outcome.trials[1].curve] == [1, 2, 3] and outcome.trials[1].score is None
    assert all(before[name].equal(tensor) for name, tensor in backbone.model.state_dict().items())


def test_dev_curves_of_runs_of_any_length_are_read_at_the_same_tenths():
    def curve(epochs, metric="accuracy"):
        listener = DevCurve("accuracy", lambda event: None, lambda tenth, found: False)
        listener(FitStarted(epochs, epochs, 1, 1, 1))
        for epoch in range(1, epochs + 1):
            listener(Evaluated(epoch, epoch, metric, epoch / epochs, 0.0, True, {}))
        return list(listener.scores)

    assert curve(10) == curve(20) == curve(37) == list(range(1, 11))
    assert curve(4) == [2, 5, 7, 10]
    assert curve(10, "nll") == []


# ------------------------------------------------------------------------------------------------------- journal


@pytest.mark.parametrize("strategy", ["random", "optuna"])
def test_a_search_that_was_cut_anywhere_ends_with_the_same_trials(task, backbone, tmp_path, strategy):
    if strategy == "optuna":
        pytest.importorskip("optuna")
    whole = tmp_path / "whole.jsonl"
    expected = run_search(task, backbone, whole, strategy=strategy, trials=8)
    content = whole.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in (0, ends[0] // 2, ends[0], ends[2] - 1, ends[5] + 7, ends[-1]):
        journal = tmp_path / f"{cut}.jsonl"
        journal.write_bytes(content[:cut])
        trained = []
        found = run_search(task, backbone, journal, strategy=strategy, trials=8, on_event=trained.append)
        assert numbers(found.trials) == numbers(expected.trials) and found.overrides == expected.overrides
        kept = max(sum(end <= cut for end in ends) - 1, 0)
        assert sum(isinstance(event, FitStarted) for event in trained) == 8 - kept
        assert len(journal.read_bytes().splitlines()) == 9


def test_a_search_can_be_continued_with_more_trials(task, backbone, tmp_path):
    short = run_search(task, backbone, tmp_path / "a.jsonl", trials=3)
    longer = run_search(task, backbone, tmp_path / "a.jsonl", trials=5)
    straight = run_search(task, backbone, tmp_path / "b.jsonl", trials=5)
    assert longer.trials[:3] == short.trials
    assert numbers(longer.trials) == numbers(straight.trials)


def test_a_journal_of_another_search_is_refused_and_what_differs_is_named(task, backbone, tmp_path):
    journal = tmp_path / "trials.jsonl"
    run_search(task, backbone, journal, trials=2)
    content = journal.read_bytes()
    with pytest.raises(RunError, match=r"(?s)another search.*rows: was.*settings.dev_fraction: was 0.3, is 0.4"):
        run_search(task, backbone, journal, trials=2, dev_fraction=0.4)
    with pytest.raises(RunError, match=r"spec.training.epochs: was 2, is 3"):
        run_search(task, backbone, journal, trials=2, spec=spec_of(**{"training.epochs": 3}))
    assert journal.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_not_passed_over(task, backbone, tmp_path):
    journal = tmp_path / "trials.jsonl"
    run_search(task, backbone, journal, trials=3)
    lines = journal.read_text().splitlines(keepends=True)
    for wrong in ("{half\n", '{"number": 0}\n', "[]\n"):
        journal.write_text("".join([lines[0], wrong, *lines[2:]]))
        with pytest.raises(RunError, match="damaged"):
            run_search(task, backbone, journal, trials=3)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_search import *
outcome = run_search(letters_task(), tiny_backbone("bert"), Path(sys.argv[1]), trials=6, strategy="optuna")
print(json.dumps(outcome.overrides))
"""


def test_a_search_killed_in_the_middle_ends_with_the_same_choice(task, backbone, tmp_path):
    pytest.importorskip("optuna")
    expected = run_search(task, backbone, tmp_path / "whole.jsonl", strategy="optuna", trials=6)
    journal = tmp_path / "killed.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(journal), os.path.dirname(__file__)], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, "it should have come to its third trial"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = run_search(task, backbone, journal, strategy="optuna", trials=6)
    assert found.overrides == expected.overrides
    assert [t.overrides for t in found.trials] == [t.overrides for t in expected.trials]
    assert [t.score for t in found.trials] == pytest.approx([t.score for t in expected.trials])
    assert json.loads(journal.read_text().splitlines()[-1])["number"] == 5


def test_a_trial_may_write_with_the_rate_that_labels_have():
    spec = resolve("prefix").suited("generation")
    labels, writing = (getattr(resolve("prefix").method.presets["default"], part) for part in ("training", "writing"))
    assert spec.training.learning_rate == writing["learning_rate"]
    tried = with_overrides(spec, {"training.learning_rate": labels["learning_rate"]}).suited("generation")
    assert tried.training.learning_rate == labels["learning_rate"]
    assert with_overrides(spec, {"method.prefix_length": 4}).suited("generation").training == spec.training
