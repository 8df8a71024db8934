"""Tables of generation: which columns hold the source and its references, and one record from all rows of a source."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from handful.data.columns import Columns, check_column, check_text, complain, missing, only, present
from handful.data.derived import CONVERSATIONS, JOINED
from handful.data.layout import describe_columns, look_at, only_text
from handful.data.tables import Table
from handful.data.task import Example, Task, TaskKind, TestRows, text_key
from handful.errors import DataError
from handful.objectives import objective_of

SOURCE_NAMES = ("source", "input", "text", "mr")
REFERENCE_NAMES = ("references", "reference", "ref", "targets", "target")
LAYOUTS = (
    *((f"{name}: input", f"{name}: answer") for name in CONVERSATIONS),
    *((f"{first} + {second}", answer) for first, second in JOINED for answer in ("output", "response", "answer")),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "response"),
    ("context", "response"),
    ("document", "summary"),
    ("article", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("source", "summary"),
    ("source", "target"),
    ("src", "tgt"),
)
"""Names under which data of generation come, source and target; of several that are there the first counts."""

_LABELS = ("label", "labels", "class", "category", "score", "y")
_DOUBTFUL_BESIDE_A_TEXT = ("source", "src", "input", "query", "context", "document", "article")
"""Columns of these names may say where the text to classify is from."""


def generation_columns(table: Table, wanted: Columns, kind: TaskKind | None) -> tuple[Columns, list[str]] | None:
    """The columns of source and references with notes on the choice, or None where the table is of another kind.

    It is of generation if that is asked for, or if what is to be predicted stands in a column named after references,
    holds lists in JSON, is a "target" beside a "source", "input" or "mr", or if two columns are called as one of
    `LAYOUTS` and the second holds no classes. A column "label" that exists always means classes or numbers.
    Raises: DataError if the kind is clear and a column is not.
    """
    if kind not in (None, "generation"):
        return None
    layout = known_layout(table, wanted, beside_labels=kind is not None)
    if layout and (kind is not None or look_at(table, layout[1]).look in ("texts", "names")):
        source, reference = layout
    else:
        found = _choose(table, wanted, kind)
        if found is None:
            return None
        source, reference = found
    notes = [f"{table.name}: read the column {source!r} as the source and {reference!r} as its references"]
    if kind is None:
        notes.append(
            f"kind generation: the column {reference!r} holds texts to write; for classes give --kind classification"
        )
    cells = (row.get(reference) for row in table.rows)
    lists = sum(isinstance(cell, str) and bool(one) for cell, one in zip(cells, _lists(table, reference), strict=True))
    if lists:
        notes.append(f"{lists} cell(s) of {reference!r} are lists in JSON: every text in them is a reference")
    if wanted.text_pair:
        raise DataError(
            f"{table.path}: generation has one source column, found {source!r} and {wanted.text_pair!r}",
            "leave --text-pair out, or write both texts into one column",
        )
    return Columns(source, None, reference), notes


def known_layout(table: Table, wanted: Columns, *, beside_labels: bool = False) -> tuple[str, str] | None:
    """Source and target under names of `LAYOUTS`, those that are wanted by name among them; None where there are none
    such, another column is called as references are, or one as labels are (which does not matter `beside_labels`).
    """
    asked = wanted.text if wanted.text in table.columns and wanted.text else None
    named = wanted.label if wanted.label in table.columns else None
    if named == "label" or (wanted.label not in (named, "label")):
        return None
    for names in LAYOUTS:
        found = present(table, names)
        if len(found) != 2 or (asked or found[0]) != found[0] or (named or found[1]) != found[1]:
            continue
        rivals = REFERENCE_NAMES if beside_labels else (*_LABELS, *REFERENCE_NAMES)
        others = [name for name in present(table, rivals) if name != found[1]]
        doubtful = "text" in table.columns and not asked and found[0].lower() in _DOUBTFUL_BESIDE_A_TEXT
        return None if (others and not named) or doubtful else (found[0], found[1])
    return None


def _choose(table: Table, wanted: Columns, kind: TaskKind | None) -> tuple[str, str] | None:
    """Source and references by the names of columns, or because no other column can be meant."""
    named = wanted.label if wanted.label in table.columns else None
    customary = present(table, REFERENCE_NAMES) if wanted.label == "label" else []
    found = [named] if named else customary
    asked = wanted.text in table.columns and wanted.text != ""  # which an index that was saved along is called
    sources = [wanted.text] if asked else source_columns(table)
    if kind is None and not (len(found) == 1 and _unmistakable(table, found[0], sources, asked)):
        return None
    looks = describe_columns(table)
    if not found and wanted.label == "label" and len(sources) == 1 and (other := only_text(table, sources)):
        found = [other.name]
    reference = only(table, "reference", wanted.label or "references", found, option="--label", looks=looks)
    sources = [name for name in sources if name != reference]
    if not sources and not wanted.text and (other := only_text(table, [reference])):
        sources = [other.name]
    return only(table, "source", wanted.text or "source", sources, option="--text", looks=looks), reference


def source_columns(table: Table) -> list[str]:
    """Columns that may hold the source; one of that very name is the only one."""
    return present(table, ("source",)) or present(table, SOURCE_NAMES)


def source_of(table: Table, wanted: str | None) -> str:
    """The column of the source in rows to write for. Raises: DataError if none is clear."""
    if wanted in table.columns:
        return str(wanted)
    wanted = None if wanted == "text" else wanted  # what it is called where nobody has named it
    found = source_columns(table)
    if not wanted and present(table, ("source",)) == []:
        named = [name for source, _ in LAYOUTS for name in present(table, (source,))]  # those that are made come first
        made = [name for name in named if name.lower() not in SOURCE_NAMES][:1]
        found = made or found or named[:1]
    if not found and not wanted and (other := only_text(table, ())):
        found = [other.name]
    return only(table, "source", wanted or "source", found, option="--text", looks=describe_columns(table))


def _unmistakable(table: Table, reference: str, sources: list[str], asked: bool) -> bool:
    name = reference.lower()
    if name not in REFERENCE_NAMES or not sources:
        return False
    if name.startswith("ref") or any(_lists(table, reference)):
        return True
    doubtful = not asked and present(table, ("text",))  # then "source" may say where a text to classify is from
    return not doubtful and sources[0].lower() in ("source", "input", "mr")


def records(table: Table, columns: Columns) -> tuple[Example, ...]:
    """One example a source, in the order of their first rows, with the references of all rows of that source.

    A cell of references holds one text, or a list of texts in JSON. Raises: DataError naming the lines with a missing
    column, an empty source, no reference, or one that is empty, no text or a broken list.
    """
    source, reference = columns.text, columns.label or "references"
    for name in (source, reference):
        check_column(table, name)
    table = _with_lists(table, reference)
    _check_cells(table, source, reference)
    first: dict[str, int] = {}
    references: dict[str, list[str]] = {}
    for index, row in enumerate(table.rows):
        first.setdefault(row[source], index)
        references.setdefault(row[source], []).extend(_texts(row[reference]))
    return tuple(
        Example(text, source=f"{table.name}:{table.lines[index]}", references=tuple(references[text]))
        for text, index in first.items()
    )


def _lists(table: Table, reference: str) -> list[list[Any] | None]:
    """The list of references in each row's cell, None where it holds none."""
    return [_parsed(row.get(reference), table.cells_are_texts) for row in table.rows]


def _parsed(cell: Any, cells_are_texts: bool) -> list[Any] | None:
    if isinstance(cell, list):
        return cell
    if not (cells_are_texts and isinstance(cell, str) and cell.lstrip().startswith("[")):
        return None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None


def _with_lists(table: Table, reference: str) -> Table:
    """The table with lists of references for cells of CSV that are such a list in JSON."""
    if not table.cells_are_texts or not any(lists := _lists(table, reference)):
        return table
    pairs = zip(table.rows, lists, strict=True)
    table = replace(table, rows=[row if found is None else {**row, reference: found} for row, found in pairs])
    broken = f"whose {reference!r} begins with '[' and is no list of texts in JSON, as others are"
    complain(table, reference, lambda cell: isinstance(cell, str) and cell.lstrip().startswith("["), broken)
    return table


def _texts(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _check_cells(table: Table, source: str, reference: str) -> None:
    complain(table, reference, lambda cell: missing(cell) or cell == [], f"without a reference in {reference!r}")
    for index, row in enumerate(table.rows):
        check_text(table, index, source, row[source])
        for text in _texts(row[reference]):
            check_text(table, index, reference, text)
    complain(table, source, lambda cell: not cell.strip(), f"with an empty source in {source!r}")
    complain(
        table, reference, lambda cell: not all(text.strip() for text in _texts(cell)),
        f"with an empty reference in {reference!r}",
    )  # fmt: skip


def generation_task(
    pool: Table, test: Table | None, dev: Table | None, columns: Columns, notes: list[str], *, metric: str | None
) -> Task:
    """The task in these tables. Sources of the pool that stand in test too are told in a note; a split drops them."""
    found = [records(table, columns) if table else None for table in (pool, test, dev)]
    notes = [*notes, *_merged(pool, found[0] or ())]
    if metric is None:
        metric = objective_of("generation").default_metric
        notes.append(f"metric {metric}: the default for generation")
    closed = TestRows(found[1]) if found[1] is not None else None
    keys = closed.text_keys() if closed else frozenset()
    if repeated := sum(text_key(row) in keys for row in found[0] or ()):
        notes.append(f"{repeated} source(s) of {pool.name} stand in the test rows too and are not used for training")
    notes += closed.notes(()) if closed is not None else []
    return Task(
        pool.name, "generation", (), metric, found[0] or (), closed, found[2], pool.path, tuple(notes), columns=columns
    )


def _merged(table: Table, rows: tuple[Example, ...]) -> list[str]:
    if len(rows) == len(table.rows):
        return []
    return [f"{len(table.rows)} rows of {table.name} are {len(rows)} records: rows of one source are its references"]
