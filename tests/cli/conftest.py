"""The command line in this process: importing torch anew for every test would take a minute."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from handful.cli.main import run


@dataclass(frozen=True)
class Outcome:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("fit", "data.csv", ...)`: run one command line. The environment is put back after the test."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "1" if name != "TRANSFORMERS_VERBOSITY" else "error")
    monkeypatch.delenv("HANDFUL_DEBUG", raising=False)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


Rows = list[tuple[object, ...]]


def letters(count: int) -> Rows:
    """Texts of two classes that a tiny random model can tell apart."""
    return [(f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}", "ab" if i % 2 else "z9") for i in range(count)]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """`table(rows, "text", "label", name="data.csv")`: a CSV file of forty texts, or of these rows."""

    def write(rows: Rows | None = None, *header: str, name: str = "data.csv") -> Path:
        return write_csv(tmp_path / name, header or ("text", "label"), letters(40) if rows is None else rows)

    return write


def write_csv(path: Path, header: tuple[str, ...], rows: Rows) -> Path:
    """A CSV file with a header."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


QUICK = ("--shots", "16", "--set", "training.epochs=2", "--set", "run.max_length=32")


@pytest.fixture
def quick(tiny_folder: Path, tmp_path: Path) -> tuple[object, ...]:
    """Options of a run on a tiny model that takes a moment; the run folders go below `tmp_path`."""
    return ("--model", tiny_folder, "--output", tmp_path / "runs", *QUICK)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The folder of a finished prefix-subspace run on a tiny model. Do not change it: copy it."""
    root = tmp_path_factory.mktemp("finished")
    data = write_csv(root / "data.csv", ("text", "label"), letters(40))
    assert run(["fit", str(data), "--model", str(tiny_folder), "--output", str(root / "runs"), *QUICK]) == 0
    return next((root / "runs").glob("*/run.json")).parent
