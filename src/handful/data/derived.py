"""Columns that are made of others: turns of a conversation, an instruction with its input, several references."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from handful.data.cells import missing
from handful.data.columns import present
from handful.data.tables import Table
from handful.errors import DataError

CONVERSATIONS = ("messages", "conversations", "conversation", "turns")
SPOKEN = ("prompt", "completion", "response")
"""Columns that hold texts, or turns of a conversation."""

JOINED = (("instruction", "input"), ("instruction", "context"), ("question", "context"))
"""Columns that are one source together, in this order, each on lines of its own."""

_NUMBERED = re.compile(r"(references?|refs?|targets?|summary|completion|output)[ _-]?\d+", re.IGNORECASE)
_SEVERAL = "||"
"""Stands between references that share a cell, where a column is called "references"."""

_ANSWERS = ("assistant", "gpt", "model", "bot", "chatgpt")


def with_derived(table: Table) -> tuple[Table, dict[str, str]]:
    """The table with columns made of others, and by the name of each such column how it was made.

    Conversations are split before their last answer ("messages: input", "messages: answer"). An instruction and its
    input are joined; numbered references, and those with "||" between them, become lists ("references").
    Raises: DataError for a conversation without turns.
    """
    made: dict[str, str] = {}
    for name in present(table, CONVERSATIONS):
        if any(_turns(row.get(name)) for row in table.rows):
            table = _split_conversations(table, name, made)
    for name in present(table, SPOKEN):
        if any(isinstance(row.get(name), list) and _turns(row[name]) for row in table.rows):
            rows = [{**row, name: _as_text(found)} if (found := _turns(row.get(name))) else row for row in table.rows]
            table, made[name] = replace(table, rows=rows), "the texts of its turns"
    names = [found for pair in JOINED if len(found := present(table, pair)) == 2]
    if names:
        first, second = names[0]
        column = f"{first} + {second}"
        table = _with_column(table, column, lambda row, _: _joined(row.get(first), row.get(second)))
        made[column] = f"{first!r} and, where it is not empty, {second!r} on the next line"
    numbered = [name for name in table.columns if _NUMBERED.fullmatch(name)]
    if len(numbered) > 1 and not present(table, ("references",)):

        def listed(row: Mapping[str, Any], _: int) -> list[Any]:
            return [cell for name in numbered if not missing(cell := row.get(name))]

        table = _with_column(table, "references", listed)
        made["references"] = f"{', '.join(map(repr, numbered))} as the references of one record"
    for name in present(table, ("references",)):
        marked = sum(isinstance(row.get(name), str) and _SEVERAL in row[name] for row in table.rows)
        if marked * 2 > len(table.rows):
            rows = [{**row, name: _separate(row.get(name))} for row in table.rows]
            table = replace(table, rows=rows)
            made[name] = f"its cells, of which {marked:,} hold several references with {_SEVERAL!r} between them"
    return table, made


def _with_column(table: Table, name: str, cell: Callable[[Mapping[str, Any], int], Any]) -> Table:
    rows = [{**row, name: cell(row, index)} for index, row in enumerate(table.rows)]
    return replace(table, columns=(*table.columns, name), rows=rows)


def _split_conversations(table: Table, name: str, made: dict[str, str]) -> Table:
    source, answer = f"{name}: input", f"{name}: answer"

    def part(row: Mapping[str, Any], index: int, which: int) -> Any:
        turns = _turns(row.get(name))
        if not turns:
            raise DataError(
                f"{table.where(index)}: expected turns with a role and a content in {name!r}, found {row.get(name)!r}",
                'write a list of objects such as {"role": "user", "content": "a text"}',
            )
        last = turns[-1] if turns[-1][0] in _ANSWERS else None
        before = turns[:-1] if last else turns
        return (last[1] if last else None) if which else _as_text(before)

    table = _with_column(table, source, lambda row, index: part(row, index, 0))
    table = _with_column(table, answer, lambda row, index: part(row, index, 1))
    made[source] = f"the turns of {name!r} before the last answer, each with its role where there are several"
    made[answer] = f"the last answer in {name!r}"
    return table


def _turns(cell: Any) -> list[tuple[str, str]]:
    """Role and text of each turn, empty where a cell holds no conversation."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return []
    if not isinstance(cell, list):
        return []
    turns = []
    for turn in cell:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            return []
        turns.append((role, text))
    return turns


def _as_text(turns: Sequence[tuple[str, str]]) -> str:
    """The text of one turn, or of several, each on a line of its own behind its role."""
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)


def _joined(first: Any, second: Any) -> Any:
    if not isinstance(first, str) or missing(second):
        return first
    return f"{first}\n{second}" if isinstance(second, str) else second


def _separate(cell: Any) -> Any:
    return [text for part in cell.split(_SEVERAL) if (text := part.strip())] if isinstance(cell, str) else cell


def told(made: Mapping[str, str], names: Sequence[str | None]) -> list[str]:
    """A sentence on each of the columns of these names that was made of others."""
    return [f"{name!r} is made of {made[name]}" for name in names if name and name in made]
