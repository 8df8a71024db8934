"""Which task of a saved run is meant, by its name."""

from pathlib import Path

import pytest

from handful.errors import ConfigError, DataError
from handful.runs.experiment import run
from handful.runs.inventory import member_record
from handful.runs.spec import resolve
from handful.runs.store import Run
from handful.testing import toy_task

MEMBERS = [{"name": name, "kind": "generation", "labels": [], "metric": "rouge-l"} for name in ("news", "mails")]


def saved(unknown_task: str, **task: object) -> Run:
    task = {"name": "all", "kind": "generation", "labels": [], "metric": "rouge-l", "origin": "", "notes": []} | task
    return Run(Path("runs/all"), {"task": task, "spec": {"method": {"unknown_task": unknown_task}}})


def test_a_name_that_is_not_known_is_refused_or_has_the_average_skill():
    with pytest.raises(DataError, match="no task is called 'mail'"):
        member_record(saved("refuse", members=MEMBERS), "mail")
    found = member_record(saved("average", members=MEMBERS), "mail")
    assert found == MEMBERS[0] | {"name": "mail"}
    assert member_record(saved("average", members=MEMBERS), "mails") == MEMBERS[1]


def test_a_routing_alone_is_learned_only_of_skills_that_there_are(tmp_path):
    spec = resolve("poly", model="no-such-model", overrides={"adapt": "z"})
    with pytest.raises(ConfigError, match="between the skills of an inventory, and there is none"):
        run(toy_task(), spec, tmp_path)


def test_a_run_on_one_task_has_no_task_to_name():
    assert member_record(saved("refuse"), None)["name"] == "all"
    with pytest.raises(DataError, match="a run on 'all' alone, found --task all") as error:
        member_record(saved("refuse"), "all")
    assert error.value.hint == "leave --task out"
