"""One door: files, folders, packaged names and the hub, and the nearest name for what is none of them."""

from __future__ import annotations

import pytest

from handful.data import open as door
from handful.data.open import open_task
from handful.errors import ConfigError, DataError


@pytest.fixture
def opened(monkeypatch):
    """Which reader was asked for what."""
    calls = []
    for reader in ("read_task", "read_folder", "packaged_task", "hub_task"):
        monkeypatch.setattr(door, reader, lambda *a, reader=reader, **k: calls.append((reader, str(a[0]), k)))
    return calls


def test_each_form_goes_to_its_reader(opened, tmp_path):
    path = tmp_path / "data.csv"
    path.touch()
    open_task(path, text="body", label=None)
    open_task(tmp_path)
    open_task("bbc-news", text=None)
    open_task("hub:owner/name", revision="v1")
    assert opened == [
        ("read_task", str(path), {"text": "body"}),
        ("read_folder", str(tmp_path), {}),
        ("packaged_task", "bbc-news", {}),
        ("hub_task", "owner/name", {"revision": "v1"}),
    ]


@pytest.mark.parametrize("name", ["bbc-news", "."])
def test_mapping_where_none_is_needed(opened, name):
    with pytest.raises(ConfigError, match="says itself what its columns mean, found text"):
        open_task(name, text="body")


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
