"""The numbers of a guide are those that its own script prints."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "many_tasks.md"


def test_the_sizes_of_many_tasks_are_those_of_its_script(capsys):
    text = GUIDE.read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(script, GUIDE.name, "exec"), {})
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert [row for row in text.splitlines() if row in rows] == rows
