"""One door: files, folders, packaged names and the hub, and the nearest name for what is none of them."""

from __future__ import annotations

from functools import wraps

import pytest

from handful.data import open as door
from handful.data.open import open_task
from handful.errors import ConfigError, DataError


@pytest.fixture
def opened(monkeypatch):
    """Which reader was asked for what."""
    calls = []
    for reader in ("read_task", "read_folder", "packaged_task", "hub_task", "read_nlg"):

        @wraps(getattr(door, reader))
        def note(*arguments, reader=reader, **mapping):
            calls.append((reader, str(arguments[0]), mapping))

        monkeypatch.setattr(door, reader, note)
    return calls


def test_each_form_goes_to_its_reader(opened, tmp_path):
    path = tmp_path / "data.csv"
    path.touch()
    open_task(path, text="body", label=None)
    open_task(tmp_path)
    open_task("bbc-news", text=None)
    open_task("hub:owner/name", revision="v1")
    open_task("dart:folder", partition="no_overlap", metric="chrf++")
    assert opened == [
        ("read_task", str(path), {"text": "body"}),
        ("read_folder", str(tmp_path), {}),
        ("packaged_task", "bbc-news", {}),
        ("hub_task", "owner/name", {"revision": "v1"}),
        ("read_nlg", "dart", {"partition": "no_overlap", "metric": "chrf++"}),
    ]


@pytest.mark.parametrize(
    ("name", "option", "hint"),
    [
        ("bbc-news", "text", "says itself what its columns mean"),
        (".", "text", "known: metric"),
        ("e2e:folder", "encoding", "known: complete, linearisation, metric, partition"),
        ("e2e:folder", "partitions", "did you mean 'partition'"),
        (
            "data.csv",
            "linearisation",
            "known: delimiter, dev, encoding, kind, label, label_separator, metric, name, test, text",
        ),
        ("hub:owner/name", "encoding", "known: config, kind"),
    ],
)
def test_options_that_a_task_does_not_take(opened, name, option, hint):
    with pytest.raises(ConfigError, match=rf"{name!r} takes no option {option}\n\nhint: .*{hint}"):
        open_task(name, **{option: "value"})
    assert not opened


def test_misspelt_names_offer_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "task.json").touch()
    (tmp_path / "data.csv").touch()
    monkeypatch.chdir(tmp_path)
    for name, near in (("bbcnews", "bbc-news"), ("sst", "sst2"), (f"{tmp_path}/sts2", f"{tmp_path}/sst2")):
        with pytest.raises(DataError, match=f"did you mean {near!r}"):
            open_task(name)
    with pytest.raises(DataError, match=r"no such file\n\nhint: did you mean 'data\.csv'"):
        open_task("dta.csv")


def test_real_folder(shared_data):
    assert open_task(shared_data / "glue" / "sst2").name == "sst2"
    assert open_task(shared_data / "nlg" / "e2e", metric="chrf++").metric == "chrf++"
