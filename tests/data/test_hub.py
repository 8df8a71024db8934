"""Datasets of the hub, through a stand-in for `datasets`: revision, splits, class names, errors."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from handful.data.hub import hub_task
from handful.errors import DataError


class FakeDataset(list):
    """Rows with the features of a split."""

    def __init__(self, rows):
        super().__init__(rows)
        self.features = {"sentence": SimpleNamespace(), "label": SimpleNamespace(names=["negative", "positive"])}


def rows(*labels: int) -> FakeDataset:
    return FakeDataset({"sentence": f"text {index} of {len(labels)}", "label": c} for index, c in enumerate(labels))


class FakeBuilder:
    """A dataset whose revision resolves to a commit."""

    hash = "0123abcd"

    def __init__(self, splits: dict[str, FakeDataset]):
        self.splits, self.prepared = splits, False
        self.info = SimpleNamespace(splits=splits)

    def download_and_prepare(self):
        self.prepared = True

    def as_dataset(self, split: str) -> FakeDataset:
        assert self.prepared
        name, _, end = split.partition("[:")
        found = self.splits[name]
        return FakeDataset(found[: int(end.removesuffix("]"))]) if end else found


@pytest.fixture
def hub(monkeypatch):
    """Installs a stand-in serving these splits; returns the calls that were made."""
    calls = []

    class DatasetsError(Exception):
        """As in datasets.exceptions."""

    def install(error: Exception | None = None, **splits: FakeDataset):
        def load_dataset_builder(name, config, *, revision):
            calls.append((name, config, revision))
            if error:
                raise error
            return FakeBuilder(splits)

        module = SimpleNamespace(
            load_dataset_builder=load_dataset_builder, exceptions=SimpleNamespace(DatasetsError=DatasetsError)
        )
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    return install


def test_revision_and_class_names(hub):
    calls = hub(train=rows(0, 1, 1), test=rows(1, 0), validation=rows(0))
    task = hub_task("owner/reviews", config="en", revision="main")
    assert calls == [("owner/reviews", "en", "main")]
    assert (task.name, task.origin) == ("reviews", "hub:owner/reviews/en@0123abcd")
    assert (task.kind, task.labels) == ("classification", ("negative", "positive"))
    assert [row.label for row in task.pool] == [0, 1, 1]
    assert task.pool[1].source == "owner/reviews train:2"
    assert task.test is not None
    assert task.dev is not None
    assert (len(task.test), len(task.dev)) == (2, 1)
    assert any("'sentence'" in note for note in task.notes)
    assert any("the test is the split 'test'" in note for note in task.notes)


def test_unlabelled_test_gives_way_to_validation(hub):
    hub(train=rows(0, 1), test=rows(-1, -1), validation_matched=rows(0, 1, 1))
    task = hub_task("glue")
    assert task.test is not None
    assert (len(task.test), task.dev) == (3, None)
    assert any("the test is the split 'validation_matched'" in note for note in task.notes)


def test_no_test_is_said(hub):
    hub(train=rows(0, 1))
    task = hub_task("owner/small")
    assert task.test is None
    assert any("there is no test" in note for note in task.notes)


def test_named_splits_and_slices(hub):
    hub(train=rows(0, 1, 0, 1), extra=rows(1, 0))
    task = hub_task("owner/small", pool="train[:3]", test="extra")
    assert task.test is not None
    assert (len(task.pool), len(task.test)) == (3, 2)
    with pytest.raises(DataError, match=r"there is no split 'trian'\n\nhint: did you mean 'train'"):
        hub_task("owner/small", pool="trian")
    with pytest.raises(DataError, match=r"the split 'train\[:0\]' has no rows"):
        hub_task("owner/small", pool="train[:0]")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no network"),
        FileNotFoundError("no dataset"),
        ValueError("no config 'x'"),
        RuntimeError("script"),
    ],
)
def test_what_datasets_refuses_is_told(hub, error):
    hub(error)
    with pytest.raises(DataError, match=f"hub:owner/name cannot be loaded: {error}"):
        hub_task("owner/name")


def test_absent_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hint: pip install 'handful\[hub\]'"):
        hub_task("owner/name")
