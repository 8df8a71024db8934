"""From cells to examples: which columns hold what, which kind of task it is, and which classes there are.

Whatever is chosen for the user is written to `Task.notes` with its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from handful.data.columns import Columns, check_column, check_text, complain, complain_of_labels, only, present
from handful.data.derived import told, with_derived
from handful.data.distinct import contradiction_notes, once
from handful.data.holdout import alike_notes
from handful.data.label_set_targets import SetTargets, flag_columns, set_targets, with_flags
from handful.data.label_set_targets import share_notes as set_notes
from handful.data.labels import (
    LEAST_ROWS,
    MOST_CLASSES,
    WEAK_MARKS,
    Targets,
    as_list,
    check_cells,
    check_number_of_classes,
    check_one_label,
    class_name,
    class_names,
    name_notes,
    share_notes,
    shared_part_notes,
    with_numbers,
)
from handful.data.layout import describe_columns, flags_hint, look_at, one_hot, only_label, only_text, telling, unused
from handful.data.numbers import read_number
from handful.data.references import generation_columns, generation_task, known_layout
from handful.data.tables import Table
from handful.data.task import Example, Task, TaskKind, TestRows, text_key
from handful.errors import DataError
from handful.objectives import objective_of

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
LABEL_NAMES = ("label", "labels", "class", "category", "target", "score", "y")

MOST_FRACTIONS = 10
"""Up to so many different numbers with fractions, each written several times, are classes, such as versions."""

MOST_NUMERIC_CLASSES = 20
"""More different numbers than this in the label column are read as a regression target."""


def choose_columns(table: Table, wanted: Columns) -> tuple[Columns, list[str]]:
    """The columns to read and a note for each that was not asked for by name, and on those that are not read.

    A column is taken by its name, by a customary name, or because no other can be meant by what it holds.
    Raises: DataError if none is clear.
    """
    text, pair, notes = _choose_text(table, wanted)
    label = wanted.label
    if label is not None and label not in table.columns:
        label, note = _choose_label(table, label, text, pair)
        notes.append(note)
    if label is not None and label in (text, pair):
        raise DataError(f"{table.path}: the column {label!r} is both text and label", "name another label column")
    if wanted.label is not None:
        notes += unused(table, (text, pair, label))
    return Columns(text, pair, label), notes


def _choose_label(table: Table, label: str, text: str, pair: str | None) -> tuple[str, str]:
    """The column of the label where there is none of the wanted name, and a note on the choice."""
    found = [name for name in present(table, LABEL_NAMES) if name not in (text, pair)] if label == "label" else []
    if label == "label" and not found and (column := only_label(table, (text, pair))):
        return column.name, f"{table.name}: read the column {column} as the label, no other can be one"
    if label == "label" and not found and (flags := one_hot(table, (text, pair))):
        columns = ", ".join(map(repr, table.columns))
        raise DataError(
            f"{table.path}: expected a label column {label!r}, found the columns {columns}", flags_hint(table, flags)
        )
    if len(found) == 1:
        label = found[0]
    else:
        others = [name for name in table.columns if name not in (text, pair)]
        hint = f"name the column: --label {'|'.join(found or telling(table, others))}"
        hint = hint if others else "the file has texts alone: give one whose rows have labels"
        written = [name for name in others if look_at(table, name).look == "texts"]
        more = f"; to write it for the other: --kind generation --label {written[0]}" if len(written) == 1 else ""
        label = only(table, "label", label, found, looks=describe_columns(table), hint=hint, more=more)
    return label, f"{table.name}: read the column {label!r} as the label, there is none named 'label'"


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
    if text == "text" and not singles and not pairs:
        named = wanted.label if wanted.label in table.columns else None
        customary = present(table, LABEL_NAMES) if named is None and wanted.label == "label" else []
        taken = (pair, named or (customary[0] if len(customary) == 1 else None))
        if column := only_text(table, taken):
            note = f"{table.name}: read the column {column} as the text, no other can be one"
            return column.name, pair or None, [note]
    found = [] if len(pairs) > 1 else singles
    if len(found) == 1:
        text = found[0]
    else:
        hint, more = _texts_hint(table, wanted, found)
        text = only(table, "text", text, found, looks=describe_columns(table), hint=hint, more=more)
    return text, pair or None, [f"{table.name}: read the column {text!r} as the text, there is none named 'text'"]


def _texts_hint(table: Table, wanted: Columns, found: list[str]) -> tuple[str | None, str]:
    """How to say which of two columns of texts is meant, or that they are pairs; and how, that one is to be written."""
    looks = {name: look_at(table, name).look for name in table.columns}
    texts = found or [name for name, look in looks.items() if look == "texts" and name != wanted.label]
    more = ""
    if known_layout(table, wanted, beside_labels=True):
        more = "; to write texts: --kind generation"
    elif len(texts) == 2 and not {"classes", "numbers", "list"} & {*looks.values()}:
        more = f"; to write one for the other: --kind generation --text {texts[0]} --label {texts[1]}"
    if len(texts) != 2 or wanted.text_pair is not None:
        return None, more
    return f"name the column: --text {'|'.join(texts)}; for pairs both: --text {texts[0]} --text-pair {texts[1]}", more


def examples(
    table: Table, columns: Columns, targets: Targets | SetTargets | None, *, empty: bool = False
) -> tuple[Example, ...]:
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


def targets_of(
    kind: TaskKind, labels: tuple[str, ...], separator: str | None = None, flags: bool | None = None
) -> Targets | SetTargets:
    """What the label cells of later rows mean for a task of this kind; see `SetTargets`."""
    return SetTargets(labels, separator, flags) if kind == "multilabel" else Targets(labels)


def infer_targets(
    table: Table, label: str, kind: TaskKind | None, separator: str | None = None, named: tuple[str, ...] = ()
) -> tuple[Targets | SetTargets, list[str]]:
    """The classes in the label column, or that it is a regression target, with notes on what was inferred.

    `named` are the classes where columns were named for them, of which some may be in no row.

    Raises: DataError if there is one class only, several labels in a row, nearly as many classes as rows where nobody
    said that they are classes, or numbers mixed with something else.
    """
    if (several := set_targets(table, label, kind, separator, named)) is not None:
        return several
    check_cells(table, label, lists=True)
    cells = [row.get(label) for row in table.rows]
    known = [(index, cell) for index, cell in enumerate(cells) if not table.missing_label(cell)]
    notes = []
    if kind is None or not objective_of(kind).has_classes:
        check_one_label(table, label, known)
        if lists := sum(as_list(cell) is not None for _, cell in known):
            known = [(index, found[0] if (found := as_list(cell)) else cell) for index, cell in known]
            notes.append(f"{lists:,} labels are lists of one, and read as that one")
    regression, reason = _is_regression([cell for _, cell in known], label, kind)
    notes += reason
    if regression:
        targets = Targets(())
        values: set[Any] = {targets.value(cell, table.where(index)) for index, cell in known}
    else:
        cells = [cell for _, cell in known]
        names, merged = class_names(cells)
        if kind is None:
            check_number_of_classes(table, label, cells, names)
            check_one_label(table, label, known, WEAK_MARKS)
            notes += shared_part_notes(names)
        targets, values = Targets(names), set(names)
        notes += [*merged, *name_notes(cells, names)]
    if len(values) == 1:
        raise DataError(
            f"{table.path}: all {len(known)} rows have the label {values.pop()!r}",
            "at least two different ones are needed",
        )
    return targets, notes


def _is_regression(cells: list[Any], label: str, kind: TaskKind | None) -> tuple[bool, list[str]]:
    """Whether these labels are numbers to be predicted, with the reason where nobody has said so."""
    if kind is not None:
        return not objective_of(kind).has_classes, []
    numbers = [number for cell in cells if (number := read_number(cell)) is not None]
    if len(numbers) * 2 <= len(cells):
        return False, []
    distinct, fractions = len(set(numbers)), any(not number.is_integer() for number in numbers)
    many = distinct > MOST_NUMERIC_CLASSES or (len(cells) >= LEAST_ROWS and distinct > MOST_CLASSES * len(cells))
    times = Counter(map(class_name, cells))
    plain = all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in times if read_number(name) is not None)
    if fractions and plain and 1 < len(times) <= MOST_FRACTIONS and min(times.values()) > 1 and not many:
        written = sum(read_number(name) is not None for name in times)
        return False, [
            f"kind classification: the column {label!r} holds only {written} different numbers, each several times; "
            "for a target give --kind regression"
        ]
    if fractions or many:
        reason = "numbers that are not whole" if fractions else f"{distinct} different numbers"
        return True, [f"kind regression: the column {label!r} holds {reason}; for classes give --kind classification"]
    if len(numbers) < len(cells):
        return False, []
    reason = f"the column {label!r} holds only {distinct} different whole numbers"
    return False, [f"kind classification: {reason}; for a target give --kind regression"]


def build_task(
    pool: Table,
    test: Table | None,
    dev: Table | None,
    *,
    wanted: Columns,
    kind: TaskKind | None,
    metric: str | None,
    separator: str | None = None,
) -> Task:
    """The task in these tables, named after the pool; kind and classes are those of the pool."""
    flagged = flag_columns(pool, wanted.label)
    pool = with_flags(pool, wanted.label, first=True)
    test, dev = (table and with_flags(table, wanted.label) for table in (test, dev))
    asked = None if kind is None else objective_of(kind)
    derived, made = with_derived(pool)
    if (written := generation_columns(derived, wanted, kind)) is not None:
        columns, notes = written
        notes += told(made, (columns.text, columns.label))
        test, dev = (with_derived(table)[0] if table else None for table in (test, dev))
        return generation_task(derived, test, dev, columns, notes, metric=metric)
    if (layout := known_layout(derived, wanted)) and not (asked and asked.pairs):
        wanted = Columns(layout[0], wanted.text_pair or "", layout[1])
    if not {wanted.text, wanted.label}.isdisjoint(made):
        pool = derived
        test, dev = (with_derived(table)[0] if table else None for table in (test, dev))
    columns, notes = choose_columns(pool, wanted)
    notes += told(made, (columns.text, columns.label))
    if columns.label is None:
        raise DataError(f"{pool.path}: expected a label column, none is named", "name it: --label COLUMN")
    if asked and asked.pairs and columns.text_pair is None:
        raise DataError(f"{pool.path}: expected pairs of texts, found one text column", "name it: --text-pair COLUMN")
    examples(pool, columns, None)  # columns, texts and missing labels are checked before labels are interpreted
    check_column(pool, columns.label)
    complain_of_labels(pool, columns.label)
    targets, inferred = infer_targets(pool, columns.label, kind, separator, class_names(flagged)[0])
    resolved: TaskKind = kind if kind and asked and not asked.has_labels else "regression"
    if isinstance(targets, SetTargets):
        resolved = "multilabel"
    elif targets.labels:
        resolved = "pair-classification" if columns.text_pair else "classification"
    else:
        (read, test, dev), notation = with_numbers((pool, test, dev), columns.label)
        pool, inferred = read or pool, inferred + notation
    rows = examples(pool, columns, targets)
    if isinstance(targets, SetTargets):
        inferred += set_notes([row.label for row in rows], targets.labels)
    elif targets.labels:
        inferred += share_notes(Counter(targets.labels[int(row.label or 0)] for row in rows), metric)
    if metric is None:
        metric = objective_of(resolved).default_metric
        inferred.append(f"metric {metric}: the default for {resolved}")
    task = Task(
        name=pool.name,
        kind=resolved,
        labels=targets.labels,
        metric=objective_of(resolved).aliases.get(metric, metric),
        pool=rows,
        test=TestRows(examples(test, columns, targets)) if test else None,
        dev=examples(dev, columns, targets) if dev else None,
        origin=pool.path,
        notes=(*notes, *inferred),
        columns=columns,
        label_separator=targets.separator if isinstance(targets, SetTargets) else None,
        label_flags=targets.flags if isinstance(targets, SetTargets) else None,
    )
    return replace(task, notes=(*task.notes, *repeat_notes(task)))


def repeat_notes(task: Task) -> list[str]:
    """Sentences on labelled texts that have several labels, on test rows that repeat and on such that nearly do."""
    found = once(task.pool, [text_key(row) for row in task.pool])
    notes = contradiction_notes(found, task.labels, "labelled rows")
    if task.test is None:
        return notes
    return [*notes, *task.test.notes(task.labels), *alike_notes(task.test, task.pool, task)]
