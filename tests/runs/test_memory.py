"""Peak memory on systems that count it otherwise, or not at all; what is free goes back to the system."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest

from handful.runs.memory import peak_memory, release_memory


def test_units_of_linux_and_macos(monkeypatch):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=512 * 2**20))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory() == 512.0
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory() == 512.0 * 1024


@pytest.mark.parametrize("platform", ["win32", "emscripten"])
def test_systems_without_it(monkeypatch, platform):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory() is None


def test_here_it_is_plausible():
    assert 20 < (peak_memory() or 0) < 1e6


def test_a_fit_needs_nothing_that_only_posix_has(tmp_path, make_model):
    """As on Windows, as far as it can be had here: without these modules and names, a fit is trained and saved."""
    data = tmp_path / "data.csv"
    data.write_text(
        "text,label\n" + "".join(f"{'aaaa' if i % 2 else 'zz 99'} {i},{'ab' if i % 2 else 'z9'}\n" for i in range(40))
    )
    arguments = ["fit", str(data), "--model", str(make_model(0)), "--method", "head", "--output", str(tmp_path / "o")]
    code = f"""
import sys, os
import torch, transformers, sklearn, accelerate  # what they need is theirs
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("O_NOFOLLOW", "O_DIRECTORY", "sched_getaffinity", "getuid", "geteuid", "getloadavg", "fork", "umask"):
    delattr(os, name)
import handful.storage
handful.storage._ASKS_BY_SIGNAL = False
from handful.cli.main import run
sys.exit(run({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "o").glob("*/run.json"))) == 1


def test_release_finds_what_refers_to_itself():
    class Held:
        def __init__(self) -> None:
            self.itself = self

    held = Held()
    seen = weakref.ref(held)
    gc.disable()
    try:
        del held
        release_memory()
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_release_gives_back_what_lies_between_pieces_in_use():
    """In a process of its own: nothing else allocates there, and no other allocator is preloaded for the tests."""
    code = """
from pathlib import Path
from handful.runs.memory import release_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20  # MB, of pages of at least 4 KiB

pieces = [bytearray(64_000 if number % 2 else 600) for number in range(3200)]
del pieces[1::2]
kept = resident()
release_memory()
print(kept - resident())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 60  # of 98


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_release_asks_no_other_system_for_it(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("ctypes.CDLL", None)
    release_memory()
