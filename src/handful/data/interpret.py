"""From cells to examples: which columns hold what, which kind of task it is, and which classes there are.

Whatever is chosen for the user is written to `Task.notes` with its reason.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, final, get_args

from handful.data.columns import Columns, check_column, check_text, complain, complain_of_labels, only, present
from handful.data.references import generation_columns, generation_task
from handful.data.tables import Table
from handful.data.task import Example, Task, TaskKind, TestRows
from handful.errors import ConfigError, DataError, nearest

TEXT_NAMES = ("text", "sentence", "review", "content")
PAIR_NAMES = (
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("question", "context"),
)
LABEL_NAMES = ("label", "class", "category", "target", "score", "y")

MOST_NUMERIC_CLASSES = 20
"""More different numbers than this in the label column are read as a regression target."""


@final
@dataclass(frozen=True, slots=True)
class Targets:
    """What labels mean: indices into `labels`, or numbers where there are none."""

    labels: tuple[str, ...]

    def value(self, cell: Any, where: str) -> int | float:
        """The label of one row. Raises: DataError if it is unknown or no finite number."""
        if self.labels:
            name = class_name(cell)
            if name not in self.labels:
                raise DataError(
                    f"{where}: the label {name!r} is none of the {len(self.labels)} classes", nearest(name, self.labels)
                )
            return self.labels.index(name)
        number = _number(cell)
        if number is None or not math.isfinite(number):
            raise DataError(
                f"{where}: expected a finite number as label, found {cell!r}",
                "correct the row, or say that the labels are classes: --kind classification",
            )
        return number


def class_name(cell: Any) -> str:
    """The class a cell names: text without outer space; whole numbers without ".0"; JSON's true and false."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(cell).strip())


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def choose_columns(table: Table, wanted: Columns) -> tuple[Columns, list[str]]:
    """The columns to read and a note for each that was not asked for by name. Raises: DataError if none is clear."""
    text, pair, notes = _choose_text(table, wanted)
    label = wanted.label
    if label is not None and label not in table.columns:
        found = [name for name in present(table, LABEL_NAMES) if name not in (text, pair)] if label == "label" else []
        label = only(table, "label", label, found)
        notes.append(f"{table.name}: read the column {label!r} as the label, there is none named 'label'")
    if label is not None and label in (text, pair):
        raise DataError(f"{table.path}: the column {label!r} is both text and label", "name another label column")
    return Columns(text, pair, label), notes


def _choose_text(table: Table, wanted: Columns) -> tuple[str, str | None, list[str]]:
    text, pair = wanted.text or "text", wanted.text_pair
    if pair and pair not in table.columns:
        only(table, "text pair", pair, [])
    if text in table.columns:
        if text == "text" and pair is None and "text_pair" in table.columns:
            return text, "text_pair", [f"{table.name}: read pairs of texts, as there is a column 'text_pair'"]
        return text, pair or None, []
    pairs = [tuple(found) for names in PAIR_NAMES if len(found := present(table, names)) == 2]
    if text == "text" and pair is None and len(pairs) == 1:
        text, pair = pairs[0]
        note = f"{table.name}: read the columns {text!r} and {pair!r} as a pair, there is none named 'text'"
        return text, pair, [note]
    singles = [name for name in present(table, TEXT_NAMES) if name != pair] if text == "text" else []
    text = only(table, "text", text, [] if len(pairs) > 1 else singles)
    return text, pair or None, [f"{table.name}: read the column {text!r} as the text, there is none named 'text'"]


def examples(table: Table, columns: Columns, targets: Targets | None, *, empty: bool = False) -> tuple[Example, ...]:
    """The rows of a table; labelled if `targets` are given. With `empty`, texts may be empty.

    Raises: DataError naming the lines with a missing column, an empty text or a wrong label.
    """
    names = [name for name in (columns.text, columns.text_pair) if name]
    for name in [*names, columns.label] if targets and columns.label else names:
        check_column(table, name)
    for name in names:
        for index, row in enumerate(table.rows):
            check_text(table, index, name, row[name])
        if not empty:
            complain(table, name, lambda cell: not cell.strip(), f"with an empty text in {name!r}")
    if targets and columns.label:
        complain_of_labels(table, columns.label)
    return tuple(
        Example(
            text=row[columns.text],
            text_pair=row[columns.text_pair] if columns.text_pair else None,
            label=targets.value(row[columns.label], table.where(index)) if targets and columns.label else None,
            source=f"{table.name}:{table.lines[index]}",
        )
        for index, row in enumerate(table.rows)
    )


def infer_targets(table: Table, label: str, kind: TaskKind | None) -> tuple[Targets, list[str]]:
    """The classes in the label column, or that it is a regression target, with notes on what was inferred.

    Raises: DataError if there is one class only, or numbers mixed with something else.
    """
    cells = [row.get(label) for row in table.rows]
    known = [(index, cell) for index, cell in enumerate(cells) if not table.missing_label(cell)]
    for index, cell in known:
        if not isinstance(cell, str | int | float):
            raise DataError(f"{table.where(index)}: expected one label, found {cell!r}", "write a text or a number")
    numbers = [number for _, cell in known if (number := _number(cell)) is not None and math.isfinite(number)]
    regression, notes = kind == "regression", []
    if kind is None and len(numbers) * 2 > len(known):
        fractions = any(not number.is_integer() for number in numbers)
        regression = fractions or len(set(numbers)) > MOST_NUMERIC_CLASSES
        reason = "numbers that are not whole" if fractions else f"{len(set(numbers))} different numbers"
        if regression:
            notes.append(
                f"kind regression: the column {label!r} holds {reason}; for classes give --kind classification"
            )
        elif len(numbers) == len(known):
            reason = f"the column {label!r} holds only {len(set(numbers))} different whole numbers"
            notes.append(f"kind classification: {reason}; for a target give --kind regression")
    if regression:
        targets = Targets(())
        values = {targets.value(cell, table.where(index)) for index, cell in known}
    else:
        values = {class_name(cell) for _, cell in known}
        whole = all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in values)
        targets = Targets(tuple(sorted(values, key=lambda name: (int(name) if whole else 0, name))))
    if len(values) == 1:
        raise DataError(
            f"{table.path}: all {len(known)} rows have the label {values.pop()!r}",
            "at least two different ones are needed",
        )
    return targets, notes


def build_task(
    pool: Table, test: Table | None, dev: Table | None, *, wanted: Columns, kind: TaskKind | None, metric: str | None
) -> Task:
    """The task in these tables, named after the pool; kind and classes are those of the pool."""
    if kind is not None and kind not in get_args(TaskKind):
        raise ConfigError(f"kind: {kind!r} is not known", nearest(kind, get_args(TaskKind)))
    written = generation_columns(pool, wanted, kind)
    if written is not None:
        return generation_task(pool, test, dev, *written, metric=metric)
    columns, notes = choose_columns(pool, wanted)
    if columns.label is None:
        raise DataError(f"{pool.path}: expected a label column, none is named", "name it: --label COLUMN")
    if kind == "pair-classification" and columns.text_pair is None:
        raise DataError(f"{pool.path}: expected pairs of texts, found one text column", "name it: --text-pair COLUMN")
    examples(pool, columns, None)  # columns and texts are checked before labels are interpreted
    targets, inferred = infer_targets(pool, columns.label, kind)
    resolved: TaskKind = "regression"
    if targets.labels:
        resolved = "pair-classification" if columns.text_pair else "classification"
    if metric is None:
        metric = "spearman" if resolved == "regression" else "accuracy"
        inferred.append(f"metric {metric}: the default for {resolved}")
    return Task(
        name=pool.name,
        kind=resolved,
        labels=targets.labels,
        metric=metric,
        pool=examples(pool, columns, targets),
        test=TestRows(examples(test, columns, targets)) if test else None,
        dev=examples(dev, columns, targets) if dev else None,
        origin=pool.path,
        notes=(*notes, *inferred),
        columns=columns,
    )
