"""What stands where an export is to go."""

from __future__ import annotations

import json

import pytest

from handful.errors import RunError
from handful.export.folder import refuse_existing


@pytest.fixture
def export(tmp_path):
    """An older export, as far as its names go."""
    folder = tmp_path / "out"
    (folder / "onnx").mkdir(parents=True)
    for name in ("README.md", "onnx/model.onnx", "labels.json"):
        (folder / name).write_text("x")
    content = {"handful": "0.1.0", "files": ["README.md", "export.json", "labels.json", "onnx/model.onnx"]}
    (folder / "export.json").write_text(json.dumps(content))
    return folder


def test_only_what_an_export_has_written_is_replaced(export):
    refuse_existing(export, True)
    with pytest.raises(RunError, match="expected no such folder, found one"):
        refuse_existing(export, False)
    (export / "onnx" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"what the older export has not written: onnx/thesis\.txt") as refused:
        refuse_existing(export, True)
    assert refused.value.hint and "nothing was removed" in refused.value.hint
    (export / "onnx" / "thesis.txt").unlink()
    (export / "link").symlink_to(export.parent)
    with pytest.raises(RunError, match="link"):
        refuse_existing(export, True)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"name": "my own"}'])
def test_a_file_of_that_name_is_not_yet_an_export(export, content):
    (export / "export.json").write_text(content)
    with pytest.raises(RunError, match="expected an older export to overwrite"):
        refuse_existing(export, True)


def test_exports_that_list_no_files_hold_known_ones(export):
    (export / "export.json").write_text('{"handful": "0.1.0"}')
    with pytest.raises(RunError, match=r"onnx/model\.onnx"):
        refuse_existing(export, True)
    (export / "onnx" / "model.onnx").rename(export / "model.onnx")
    (export / "onnx").rmdir()
    refuse_existing(export, True)
    (export / "notes.md").write_text("precious")
    with pytest.raises(RunError, match=r"notes\.md"):
        refuse_existing(export, True)
