"""The card of a run: its README.md, whose numbers all come from `run.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def run_card(record: Mapping[str, Any]) -> str:
    """Markdown for `README.md`."""
    return f"# {record['task']['name']}\n"
