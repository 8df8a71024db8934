"""Runs on tasks of tasks: rows of each member, drawn by weight, scored each by itself, and read back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from handful.backbone.load import load_backbone
from handful.backbone.tiny import tiny_backbone, tiny_model, tiny_tokenizer
from handful.data.batching import encode_mixed
from handful.data.mixture import mix_tasks, text_to_text
from handful.data.split import Split
from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError, DataError
from handful.evaluation.estimate import Estimate, mean_of, wilson
from handful.methods.head import Head
from handful.methods.poly.method import Poly
from handful.runs.experiment import attach, distinct_rows, make_split, open_trained, run
from handful.runs.members import describe_task, recorded_task, weighted
from handful.runs.spec import resolve


def classes(name: str, labels: tuple[str, ...], rows: int, *, pair: bool = False, metric: str = "accuracy") -> Task:
    def row(number: int) -> Example:
        label = number % len(labels)
        words = ("aaaa", "zz 99", "m5m5")[label]
        return Example(f"{words} {name} {number}", words if pair else None, label, f"{name}:{number}")

    pool = tuple(map(row, range(rows)))
    kind = "pair-classification" if pair else "classification"
    return Task(name, kind, labels, metric, pool, TestRows([row(number) for number in range(100, 118)]))


@pytest.fixture(scope="module")
def mixed() -> Task:
    return mix_tasks("both", [classes("reviews", ("bad", "good"), 40, metric="f1"),
                              classes("nli", ("no", "maybe", "yes"), 24, pair=True)])  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- rows


def test_each_member_is_divided_as_alone(mixed):
    split = Split(mixed, 20, 3, dev="carved", dev_fraction=0.25)
    for member in mixed.members:
        alone = Split(member, 20, 3, dev="carved", dev_fraction=0.25)
        for own, rows in ((alone.train, split.train), (alone.dev, split.dev)):
            assert [row.source for row in own] == [row.source for row in rows if row.task == member.name]
    assert all(mixed.labels[int(row.label or 0)].startswith(f"{row.task}: ") for row in split.train)
    assert len(split.labelled) == 40 and split.test is None


def test_shots_are_the_most_rows_of_a_member(mixed):
    counts = {shots: len(Split(mixed, shots, 0, dev="none").train) for shots in (10, 30, 1000)}
    assert counts == {10: 20, 30: 30 + 24, 1000: 64}
    assert distinct_rows(mixed) == 40
    assert len(make_split(mixed, resolve("head")).train) == 64


def test_rows_that_stand_in_the_test_of_any_member_are_dropped_from_all(mixed):
    reviews, nli = mixed.members
    leaked = replace(reviews, test=TestRows([replace(nli.pool[0], label=0), reviews.pool[1], reviews.pool[1]]))
    task = mix_tasks("leaky", [leaked, replace(nli, pool=(*nli.pool, nli.pool[5]))])
    split = Split(task, 1000, 0, dev="none")
    assert (split.dropped_overlap, split.dropped_duplicates, len(split.train)) == (2, 1, 62)
    assert not {"nli:0", "reviews:1"} & {row.source for row in split.train}


def test_test_rows_of_members_are_part_of_the_fingerprints(mixed):
    split = Split(mixed, 20, 0)
    other = mix_tasks("both", [mixed.members[0], replace(mixed.members[1], test=None)])
    assert Split(other, 20, 0).fingerprint != split.fingerprint
    assert Split(other, 20, 0).cell_fingerprint != split.cell_fingerprint


def test_too_few_rows_of_a_member_are_told_by_its_name(mixed):
    with pytest.raises(DataError, match="task 'nli': 4 shots are too few for 3 classes"):
        Split(mixed, 4, 0)


# ----------------------------------------------------------------------------------------------------------- scores


def test_the_mean_of_scores_has_an_interval_of_its_own():
    first, second = Estimate(0.5, 0.4, 0.7, 10), Estimate(0.9, 0.5, 1.0, 30)
    found = mean_of([first, second])
    assert (found.mean, found.n) == (pytest.approx(0.7), 40)
    assert found.low == pytest.approx(0.7 - (0.1**2 + 0.4**2) ** 0.5 / 2)
    assert found.high == pytest.approx(0.7 + (0.2**2 + 0.1**2) ** 0.5 / 2)
    assert mean_of([first, Estimate(1.0, None, None, 1)]).low is None
    alone = mean_of([first])
    assert (alone.mean, alone.low, alone.high) == pytest.approx((first.mean, first.low, first.high))


def test_the_mean_of_scores_covers_the_true_mean():
    generator, truth, covered = np.random.default_rng(0), np.array([0.6, 0.8, 0.95]), 0
    for _ in range(1000):
        found = mean_of([wilson(int(hits), 50) for hits in generator.binomial(50, truth)])
        covered += (found.low or 0) <= truth.mean() <= (found.high or 1)
    assert 0.93 <= covered / 1000 <= 0.985


# ------------------------------------------------------------------------------------------------------------- runs


def spec(model, method: str = "poly", **settings):
    few = {"training.epochs": 3, "run.max_length": 32, "run.dev": "carved", "training.selection": "best"}
    own = {"method.num_skills": 2, "method.mixing": "uniform"} if method == "poly" else {}
    return resolve(method, model=str(model), overrides=few | own | settings)


@pytest.fixture(scope="module")
def saved(mixed, tiny_folder, tmp_path_factory):
    found, trained = run(mixed, spec(tiny_folder), tmp_path_factory.mktemp("members"))
    trained.adapter.detach()
    return found


def test_members_are_scored_by_their_metrics_on_their_own_rows(saved, mixed):
    record = saved.record
    assert set(record["members"]) == {"reviews", "nli"}
    assert "f1" in record["members"]["reviews"] and "f1" not in record["members"]["nli"]
    assert "f1" not in record["scores"] and record["scores"]["accuracy"]["n"] == 36 == record["rows"]["test"]
    for name, score in record["scores"].items():
        assert score["mean"] == pytest.approx(sum(own[name]["mean"] for own in record["members"].values()) / 2)
    rows = [json.loads(line) for line in (saved.folder / "predictions.jsonl").read_text().splitlines()]
    right = [row["target"] == row["prediction"] for row in rows if row["task"] == "nli"]
    assert sum(right) / 18 == pytest.approx(record["members"]["nli"]["accuracy"]["mean"])
    for row in rows:
        likely = dict(zip(mixed.labels, row["probabilities"], strict=True))
        assert max(likely, key=lambda label: likely[label]) == row["prediction"]
        assert sum(p for label, p in likely.items() if label.startswith(f"{row['task']}: ")) == pytest.approx(
            1, abs=1e-5
        )


def test_the_saved_run_opens_with_its_members(saved, mixed, tiny_folder):
    task = recorded_task(saved.record["task"])
    assert task.label_ranges == mixed.label_ranges
    assert [member.metric for member in task.members] == ["f1", "accuracy"]
    assert describe_task(task)["members"] == saved.record["task"]["members"]
    assert [m.name for m in open_trained(saved, backbone=load_backbone(str(tiny_folder))).task.members] == [
        "reviews", "nli"
    ]  # fmt: skip


def test_a_run_without_test_rows_is_not_scored(mixed, tiny_folder, tmp_path):
    bare = mix_tasks("bare", [replace(member, test=None) for member in mixed.members])
    found, trained = run(bare, spec(tiny_folder, "poly"), tmp_path)
    trained.adapter.detach()
    assert found.record["scores"] == {} and "members" not in found.record
    assert found.record["rows"]["test"] == 0


def test_texts_of_many_tasks_are_written_and_scored_each_by_its_metric(tmp_path):
    def task(name: str, metric: str, rows: int) -> Task:
        def row(number: int) -> Example:
            return Example(f"{name} {number}", references=(f"say {number}", "tell"), source=f"{name}:{number}")

        test = TestRows([row(number) for number in range(100, 104)])
        return Task(name, "generation", (), metric, tuple(map(row, range(rows))), test)

    model = tmp_path / "t5"
    tiny_model("t5").save_pretrained(model)
    tiny_tokenizer("t5").save_pretrained(model)
    few = {"generation.max_new_tokens": 4, "generation.target_length": 8}
    found, trained = run(
        mix_tasks("written", [task("one", "chrf++", 8), task("two", "bleu", 12)]),
        spec(model, "poly", **few),
        tmp_path / "runs",
    )
    trained.adapter.detach()
    members = found.record["members"]
    assert "bleu" in members["two"] and "bleu" not in members["one"]
    assert set(found.record["scores"]) == {"rouge-l", "chrf++"} and found.record["task"]["metric"] == "rouge-l"
    rows = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows if row["task"] == "two"] == [f"two:{number}" for number in range(100, 104)]
    assert len(found.record["fit"]["history"]) == 3


def test_a_metric_that_a_member_cannot_have_is_told_first(mixed, tmp_path):
    wrong = mix_tasks("wrong", [mixed.members[0], replace(mixed.members[1], metric="f1")])
    with pytest.raises(ConfigError, match="expected 2 classes for metric 'f1', found 3"):
        run(wrong, spec("no-such-model"), tmp_path)


def test_only_rows_of_many_tasks_are_weighted_and_only_by_a_method_that_mixes(mixed):
    rows = encode_mixed(mixed.pool, tiny_tokenizer("bert"), 32)
    mixer = Poly(mixing="uniform")
    weights = weighted(rows, mixer).weights
    assert weights is not None and weights[:40].sum() == pytest.approx(32) == weights[40:].sum()
    assert weighted(rows, Head()).weights is None
    assert weighted(replace(rows, tasks=None), mixer).weights is None


def test_a_method_without_a_head_for_many_label_sets_is_refused(mixed):
    with pytest.raises(ConfigError, match="cannot learn many at once; 'poly' can"):
        attach(mixed, resolve("lora", overrides={"run.shots": 8}), tiny_backbone("bert"))


def test_the_instruction_of_a_task_of_written_labels_is_kept():
    task = text_to_text(classes("reviews", ("bad", "good"), 8))
    assert recorded_task(describe_task(task)).instruction == "choices: bad, good. text: "
    both = mix_tasks("both", [task, text_to_text(classes("nli", ("no", "yes"), 8))])
    assert [m.instruction for m in recorded_task(describe_task(both)).members] == [m.instruction for m in both.members]
