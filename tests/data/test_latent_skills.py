"""Tasks of known skills: the truth makes the labels, texts tell of nothing else, and a small model can learn them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.data.latent_skills import latent_skills
from handful.data.task import Example
from handful.errors import ConfigError
from handful.methods.peft_bridge import LoRA
from handful.training.config import TrainingConfig
from handful.training.fit import fit


def suite(seed: int = 0, **settings: int):
    return latent_skills(np.random.default_rng(seed), **settings)


def rows_of(task) -> list[Example]:
    """All rows, those of the test too."""
    return [*task.pool, *task.test._examples]


def labels_of(rows) -> np.ndarray:
    return np.array([row.label for row in rows], dtype=int)


def vote(text: str, skill: int) -> int:
    """What a skill votes: -1 for the first of its two letters of the alphabet, +1 for the second."""
    no, yes = "abcdefghijklmnopqrstuvwxyz"[2 * skill : 2 * skill + 2]
    assert (no in text) != (yes in text)
    return 1 if yes in text else -1


def test_the_truth_makes_the_labels():
    found = suite()
    for tasks, truth in ((found.tasks, found.truth), (found.held_out, found.held_out_truth)):
        assert len(tasks) == len(truth)
        for task, skills in zip(tasks, truth, strict=True):
            assert task.name == "skills-" + "-".join(map(str, np.flatnonzero(skills)))
            assert task.labels == ("no", "yes")
            for row in rows_of(task):
                votes = [vote(row.text, skill) for skill in range(6)]
                assert row.label == int(np.dot(votes, skills) > 0)


def test_no_other_combination_makes_the_same_labels():
    """Or the skills of a task could not be known from its rows."""
    found = suite(rows=200)
    every = np.concatenate((found.truth, found.held_out_truth))
    for task, skills in zip(found.tasks, found.truth, strict=True):
        votes = np.array([[vote(row.text, skill) for skill in range(6)] for row in task.pool])
        labels = labels_of(task.pool)
        right = ((votes @ every.T > 0) == labels[:, None]).mean(0)
        assert (right == 1).tolist() == (every == skills).all(1).tolist()


def test_tasks_are_different_combinations_and_training_has_every_skill():
    found = suite(num_skills=7, num_active=3, num_tasks=3, num_held_out=20)
    every = np.concatenate((found.truth, found.held_out_truth))
    assert every.shape == (23, 7)
    assert len(np.unique(every, axis=0)) == 23
    assert (every.sum(1) == 3).all()
    assert found.truth.any(0).all()


def test_half_of_the_rows_have_each_label_and_so_do_the_test_rows():
    for task in suite(rows=50, test_rows=31).tasks:
        assert labels_of(task.pool).sum() == 25
        assert labels_of(rows_of(task)[50:]).sum() in (15, 16)


def test_nothing_but_the_active_votes_tells_of_the_label():
    (task,) = suite(num_skills=5, num_tasks=2, num_held_out=0, rows=4000).tasks[:1]
    labels, active = labels_of(task.pool), [int(skill) for skill in task.name.split("-")[1:]]
    agree = [np.mean([vote(row.text, skill) == 2 * int(row.label or 0) - 1 for row in task.pool]) for skill in range(5)]
    assert agree == pytest.approx([0.75 if skill in active else 0.5 for skill in range(5)], abs=0.03)  # ¾ of majorities
    assert abs(np.corrcoef([len(row.text) for row in task.pool], labels)[0, 1]) < 0.05


def test_no_text_stands_twice():
    found = suite(num_tasks=12, rows=200)
    texts = [row.text for task in (*found.tasks, *found.held_out) for row in rows_of(task)]
    assert len(set(texts)) == len(texts) == 16 * 264


def test_the_same_seed_gives_the_same_and_another_one_others():
    one, again, other = suite(0), suite(0), suite(1)
    assert [task.fingerprint() for task in one.tasks] == [task.fingerprint() for task in again.tasks]
    assert [task.fingerprint() for task in one.held_out] == [task.fingerprint() for task in again.held_out]
    assert np.array_equal(one.truth, again.truth)
    assert not {row.text for task in one.tasks for row in task.pool} & {
        row.text for task in other.tasks for row in task.pool
    }
    assert not np.array_equal(one.truth, other.truth)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"num_active": 2}, "no vote is a tie"), ({"num_active": 7}, "no vote is a tie"),
        ({"num_skills": 14}, "no vote is a tie"), ({"num_tasks": 17}, "more skills, or fewer tasks"),
        ({"num_tasks": 1}, "give 2 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings, hint):
    with pytest.raises(ConfigError, match="expected") as error:
        suite(**settings)
    assert hint in str(error.value)


def test_a_tiny_model_learns_a_task():
    """Test rows, by an ordinary method, in seconds: so that what fails in a test of routing is the routing."""
    (task,) = suite(num_tasks=1, num_skills=3, num_held_out=0, rows=128, test_rows=200).tasks
    backbone = tiny_backbone("bert")
    train, test = (encode(rows, backbone.tokenizer, 32, kind=task.kind) for rows in (task.pool, rows_of(task)[128:]))
    adapter = LoRA().attach(backbone, task, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig.from_settings({"epochs": 20, "batch_size": 16, "learning_rate": 5e-3})
    fit(adapter, train, None, config, kind=task.kind, metric=task.metric, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = adapter.eval()(test.batch(range(200)))
    assert float((scores.argmax(1) == test.labels).float().mean()) > 0.85
