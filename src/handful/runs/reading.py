"""What a run reads of its texts: sentences on what is cut, left out or unknown, by the "rows" of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handful.data.coverage import NO_TEXTS, Coverage, coverage_sentences

PARTS = ("train", "dev", "test")
DROPPED = (
    ("dropped_duplicates", "repeated another row"),
    ("dropped_contradictions", "had another label than the same text elsewhere"),
    ("dropped_overlap", "stood in the test or development rows too"),
)
"""Counts of rows that were left out, and why they were."""


def cut_sentences(rows: Mapping[str, Any]) -> list[str]:
    """How many texts of each part are cut, and the setting that would cut none or fewer; none where none are."""
    cut = {part: count for part in PARTS if (count := rows["truncated"].get(part, 0))}
    if not cut:
        return []
    counts = ", ".join(f"{count:,} of {rows[part]:,} {part} texts" for part, count in cut.items())
    return [f"{counts} were cut to {rows['max_length']:,} tokens{_way_out(rows)}"]


def _way_out(rows: Mapping[str, Any]) -> str:
    longest, most = rows.get("longest", 0), rows.get("most_tokens", 0)
    if not longest or not most:
        return ""  # a record of an older version
    found = f": the longest has {longest:,}"
    if longest <= most:
        return f"{found}, and --set run.max_length={longest} cuts none"
    if rows["max_length"] < most:
        return f"{found}, of which the model can read {most:,}: --set run.max_length={most}"
    return f"{found}, and the model can read no more"


def unknown_sentences(rows: Mapping[str, Any]) -> list[str]:
    """What the model cannot read of all texts; none where it reads them."""
    found = rows.get("coverage") or {}
    return coverage_sentences(sum((Coverage(**part) for part in found.values()), NO_TEXTS))


def dropped_sentences(rows: Mapping[str, Any]) -> list[str]:
    """Rows that were left out, a sentence for each reason."""
    found = [(count, why) for name, why in DROPPED if (count := rows.get(name, 0))]
    what = {True: "row was left out: it", False: "rows were left out: they"}
    return [f"{count:,} {what[count == 1]} {why}" for count, why in found]
