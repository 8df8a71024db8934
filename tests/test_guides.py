"""The numbers of a page are those that its own script prints."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guides" / "many_tasks.md"


def test_the_sizes_of_many_tasks_are_those_of_its_script(capsys):
    text = GUIDE.read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(script, GUIDE.name, "exec"), {})
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert [row for row in text.splitlines() if row in rows] == rows


@pytest.mark.parametrize("shots", [500, 2000])
def test_the_tables_of_gates_are_those_of_their_runs(shots):
    """None of its lines is missing in docs/experiments.md, in this order."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "fine_gates.py"))
    found, _ = script["arms"](script["read"](ROOT / "experiments" / "fine_gates.jsonl"), shots)
    printed = [line for line in script["tables"](found, shots, script["TASKS"]) if line]
    assert len(printed) > 30
    page = iter((ROOT / "docs" / "experiments.md").read_text(encoding="utf-8").splitlines())
    assert all(line in page for line in printed)  # an iterator goes on where the last line stood
