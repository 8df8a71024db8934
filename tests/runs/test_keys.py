"""Which run is the same run: the rows, settings and weights, and what the labels mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

import handful
from handful.data.task import Example, Task
from handful.runs import experiment

TEXTS = [f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}" for i in range(24)]
TASK = Task(
    "letters", "classification", ("ab", "z9"), "accuracy", tuple(Example(t, label=i % 2) for i, t in enumerate(TEXTS))
)


@pytest.fixture
def fit(tiny_folder, tmp_path):
    def fitted(task: Task) -> handful.api.FittedModel:
        return handful.fit(
            task, method="head", model=str(tiny_folder), output=tmp_path / "runs", settings={"max_length": 24}
        )

    return fitted


def test_other_names_of_the_classes_are_another_run(fit, tmp_path):
    first, again = fit(TASK), fit(TASK)
    assert again.run.folder == first.run.folder
    renamed = fit(replace(TASK, labels=("urgent", "later")))
    assert set(renamed.predict(TEXTS)) <= {"urgent", "later"}
    assert renamed.run.key != first.run.key and len(list((tmp_path / "runs").glob("*/run.json"))) == 2
    assert fit(replace(TASK, metric="macro_f1")).run.key not in (first.run.key, renamed.run.key)


def test_a_run_from_before_keys_held_the_names_is_found_by_them(fit, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "meaning_of", lambda task: [])
        old = fit(TASK)
    assert fit(TASK).run.folder == old.run.folder
    assert set(fit(replace(TASK, labels=("urgent", "later"))).predict(TEXTS)) <= {"urgent", "later"}
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 2
