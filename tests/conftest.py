"""Fixtures for all tests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how long a case takes says nothing on a busy machine
settings.load_profile("patient")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tasks beside the repository. Without it the test is skipped, or fails where it is required."""
    if not SHARED_DATA.is_dir():
        reason = "needs the real tasks of ../shared/data"
        if os.environ.get("HANDFUL_REQUIRE_SHARED") == "1":
            pytest.fail(f"{reason}, and HANDFUL_REQUIRE_SHARED=1 is set")
        pytest.skip(reason)
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`make_model(seed)`: the folder of a tiny BERT with random weights of that seed, and its tokenizer."""

    @cache
    def make(seed: int) -> Path:
        from handful.backbone.tiny import tiny_model, tiny_tokenizer

        folder = tmp_path_factory.mktemp("models") / f"tiny-bert-{seed}"
        tiny_model("bert", seed=seed).save_pretrained(folder)
        tiny_tokenizer("bert").save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_folder(make_model: Callable[[int], Path]) -> Path:
    """The folder of a tiny BERT."""
    return make_model(0)


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """`reseal(folder)`: a run folder that was edited by hand gets the digests and the checksum of what it holds now."""
    from handful.runs.record import sealed

    def seal(folder: Path) -> None:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()
        }
        files = {name: digests[name] for name in record["files"] if name in digests}
        sealed_record = sealed(record, digests["adapter.safetensors"], files)
        (folder / "run.json").write_text(json.dumps(sealed_record), encoding="utf-8")

    return seal


@pytest.fixture
def unseal() -> Callable[[Path], None]:
    """`unseal(folder)`: a run folder as it was before there were checksums."""

    def strip(folder: Path) -> None:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        old = {name: value for name, value in record.items() if name not in ("checksum", "files")}
        (folder / "run.json").write_text(json.dumps(old | {"format_version": 1}), encoding="utf-8")

    return strip
