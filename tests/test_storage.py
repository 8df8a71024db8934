"""Files that appear whole or not at all, names that are no paths, and what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import handful.storage as storage
from handful.errors import RunError
from handful.storage import (
    clear_leftovers,
    new_file,
    new_folder,
    open_append,
    open_new,
    parse_json,
    short_name,
    temporary_name,
    write_file,
    wrong_name,
)


def test_what_a_killed_process_left_goes_when_the_same_thing_is_written_again(tmp_path):
    killed(tmp_path, "with s.new_file(root / 'a.csv') as f:\n f.write(b'x')\n os._exit(9)")
    killed(tmp_path, "with s.new_file(root / 'b.csv') as f:\n f.write(b'x')\n os._exit(9)")
    killed(tmp_path, "with s.new_folder(root / 'out') as p:\n (p / 'a').write_text('x')\n os._exit(9)")
    assert len(list(tmp_path.glob(".*.partial"))) == 3
    with new_file(tmp_path / "a.csv") as first, new_folder(tmp_path / "out"):
        first.write(b"first")
        write_file(tmp_path / "a.csv", "second")  # the file of a process that is alive stays
    assert (tmp_path / "a.csv").read_text() == "first"
    assert [path.name.split(".")[1] for path in tmp_path.glob(".*.partial")] == ["b"]  # is not ours to judge here


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.csv"
    write_file(path, "old")

    def fail_halfway() -> None:
        with new_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert path.read_text() == "old"
    write_file(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [one.name for one in tmp_path.iterdir()] == ["a.csv"]


def test_modes_are_those_of_the_users_other_files(tmp_path):
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    write_file(tmp_path / "a", "x")
    with new_folder(tmp_path / "b") as folder:
        (folder / "inner").touch(0o600)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("plain", "a", "b/inner", "folder", "b")}
    assert modes["a"] == modes["b/inner"] == modes["plain"] and modes["b"] == modes["folder"]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no links to be followed")
def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "out.csv"
    victim.write_text("precious")
    monkeypatch.setattr(storage.secrets, "token_hex", lambda _: "0" * 12)  # as if it could be foreseen
    planted = temporary_name(path, ".partial")
    planted.symlink_to(victim)
    for write in (lambda: write_file(path, "x"), lambda: open_new(planted), lambda: open_append(planted)):
        with pytest.raises(OSError):
            write()
    assert victim.read_text() == "precious"
    monkeypatch.undo()
    path.symlink_to(victim)
    write_file(path, "mine")  # a link where the file goes is replaced
    assert victim.read_text() == "precious" and path.read_text() == "mine" and not path.is_symlink()


def test_temporary_names_differ_and_are_never_too_long(tmp_path):
    path = tmp_path / ("ä" * 127)
    names = {temporary_name(path, ".partial").name for _ in range(50)}
    assert len(names) == 50 and max(len(name.encode()) for name in names) <= 255
    write_file(path, "x")
    assert path.read_text() == "x"


def test_what_is_no_file_is_written_as_it_is():
    write_file(Path(os.devnull), "x")
    assert Path(os.devnull).exists() and not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "/x", "a/b", "a\\b", "C:\\x", "a\0b", "a\nb", "con", "NUL.txt", "lpt1", "x" * 300,
     "a.", " a", "a*", "\ud83d"],
)  # fmt: skip
def test_what_is_no_name(name):
    assert wrong_name(name)


@pytest.mark.parametrize("name", ["news", "few-shot trial 2", "ä.漢", "v1.2", "connect", "a,b;c'd"])
def test_what_is_a_name(name):
    assert wrong_name(name) is None and short_name(name) == name


def test_long_names_are_cut_and_differ():
    names = {short_name("ä" * 200 + end) for end in "abc"}
    assert len(names) == 3 and all(len(name.encode()) <= storage.LONGEST_NAME for name in names)
    assert short_name("nul.x") == "_nul.x"


def test_json_that_python_cannot_follow_is_a_value_error():
    for text in ("[" * 100_000, "9" * 5000, "{", b"\xff\xfe\x00"):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(text)


def killed(folder: Path, code: str) -> None:
    """A process that ends in the middle of its work."""
    script = f"import os, sys\nfrom pathlib import Path\nimport handful.storage as s\nroot = Path(sys.argv[1])\n{code}"
    assert subprocess.run([sys.executable, "-P", "-c", script, str(folder)], check=False).returncode == 9


def test_what_killed_processes_left_is_cleared_and_said(tmp_path):
    with new_folder(tmp_path / "run") as partial:
        (partial / "a").write_text("old")
    killed(tmp_path, "with s.new_folder(root / 'other') as p:\n (p / 'a').write_text('x')\n os._exit(9)")
    killed(tmp_path, "with s.new_file(root / 'b') as f:\n f.write(b'x')\n os._exit(9)")
    killed(
        tmp_path,
        "real = os.replace\n"
        "def replace(a, b):\n os._exit(9) if str(b).endswith('run') else real(a, b)\n"
        "def second(a, b):\n real(a, b)\n s.os.replace = replace\n"
        "s.os.replace = second\n"
        "with s.new_folder(root / 'run') as p:\n (p / 'a').write_text('new')\n",
    )
    assert not (tmp_path / "run").exists()
    mine = temporary_name(tmp_path / "mine", ".partial")  # of this process, which lives
    mine.mkdir()
    theirs = tmp_path / ".notes.partial"
    theirs.write_text("a user's")
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, ".notes.partial", "run"])
    assert (tmp_path / "run" / "a").read_text() == "old"
    assert sum("removed what a process that was killed had left" in line for line in said) == 4
    assert sum("put back" in line for line in said) == 1
    clear_leftovers(tmp_path / "nowhere", said.append)


def test_checkpoints_go_when_their_run_is_there_or_nobody_came_back(tmp_path):
    for name, days in (("done", 2), ("fresh", 2), ("open", 20), ("forgotten", 40)):
        folder = tmp_path / f".{name}.progress"
        folder.mkdir()
        (folder / "checkpoint.safetensors").write_text("x")
        when = storage.time.time() - 86400 * days
        for path in (folder / "checkpoint.safetensors", folder):
            os.utime(path, (when, when))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "run.json").write_text("{}")
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".fresh.progress", ".open.progress"]
    assert len(said) == 2


def test_a_place_for_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"), new_folder(tmp_path / "file" / "a"):
        pass
