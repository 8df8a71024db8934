"""Rows that are in memory already: data frames of any library, `datasets`, dicts, lists, texts with their labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from handful.data.cells import NAMED_PLACES, check_row, missing, plain, repeated
from handful.data.mappings import as_list, check_order, is_column, rows_of_mapping
from handful.data.names import check_names, clean_name
from handful.data.stream import TableStream, place
from handful.errors import DataError

_NAMES = {"list": "rows", "tuple": "rows", "dict": "columns"}
_GIVE = "give a path, a data frame, a list of dicts, a dict of lists, or (texts, labels)"


def memory_stream(source: Any, *, labelled: bool = False) -> TableStream:
    """The rows of what is in memory; missing values are None.

    A list of texts has the column "text"; tuples of two are ("text", "text_pair"), or with `labelled` ("text",
    "label"); those of three are a pair with its label. Raises: DataError for anything that has no rows of cells.
    """
    _refuse_splits(source)
    if _is_dataset(source):
        return _stream("Dataset", plain_rows(source))
    if (table := _arrow_table(source)) is not None:
        return _narwhals_stream(table)
    if isinstance(source, Mapping):
        rows, note = rows_of_mapping(source, "the dict")
        return _stream("dict", rows, notes=[note] if note else [])
    if _is_pandas(source, "DataFrame"):
        return _pandas_stream(source)
    if _is_pandas(source, "Series"):
        return _stream("Series", _rows_of_items("Series", source.tolist(), labelled))
    if isinstance(source, bytes | bytearray | memoryview | int | float | complex | None):
        raise _not_rows(source)
    if hasattr(source, "read"):
        raise DataError("expected a path or rows, found an open file", "give its path")
    if isinstance(source, tuple) and len(source) == 2 and not isinstance(source[0], str) and _has_labels(source[1]):
        return _texts_and_labels(*source)
    if isinstance(source, Sequence | Iterator | set | frozenset):
        kind = type(source).__name__
        return _stream(kind, _rows_of_items(kind, list(source), labelled))
    if hasattr(source, "dtype") and hasattr(source, "ndim"):
        if source.ndim not in (1, 2):
            raise DataError(f"expected an array of one or two dimensions, found {source.ndim}", _GIVE)
        names = getattr(source.dtype, "names", None)
        items = [dict(zip(names, row, strict=True)) for row in source.tolist()] if names else source.tolist()
        return _stream("array", _rows_of_items("array", items, labelled))
    return _narwhals_stream(source)


def plain_rows(dataset: Any) -> list[dict[str, Any]]:
    """Rows of `datasets` with the names of classes in place of their numbers; -1 means that there is none."""
    features = dict(dataset.features or {})
    names = {column: _class_names(feature) for column, feature in features.items()}
    rows = [dict(row) for row in dataset]
    for column, classes in names.items():
        if classes is not None:
            for row in rows:
                row[column] = _named(row[column], classes)
    return rows


def _class_names(feature: Any) -> list[str] | None:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _named(cell: Any, classes: list[str]) -> Any:
    if isinstance(cell, list):
        return [_named(value, classes) for value in cell]
    return classes[cell] if cell is not None and cell >= 0 else None


def _is_dataset(source: Any) -> bool:
    datasets = sys.modules.get("datasets")  # what is one of its objects has imported it
    return datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset))


def _refuse_splits(source: Any) -> None:
    """Raises: DataError for a dict of data sets by split."""
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        splits = list(source)
        first = "train" if "train" in splits else splits[0] if splits else "train"
        raise DataError(
            f"expected one data set, found a {type(source).__name__} with the splits {', '.join(map(repr, splits))}",
            f"give one of them: data[{first!r}]" + (", test=data['test']" if "test" in splits else ""),
        )


def _arrow_table(source: Any) -> Any:
    """Batches of pyarrow as the table they are parts of; None for anything else."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and isinstance(source, arrow.RecordBatch):
        return arrow.Table.from_batches([source])
    return source.read_all() if arrow is not None and isinstance(source, arrow.RecordBatchReader) else None


def _is_pandas(source: Any, name: str) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, getattr(pandas, name, ()))


def _pandas_stream(frame: Any) -> TableStream:
    """Columns by the texts of their names, a MultiIndex joined by spaces; a named index is a column of its own."""
    titles = [_title(title) for title in frame.columns]
    columns = [frame.iloc[:, position] for position in range(len(titles))]
    notes, index = [], None
    levels = [level for level in frame.index.names if level is not None]
    for level in levels:
        if _title(level) not in titles:
            titles.append(_title(level))
            columns.append(frame.index.get_level_values(level))
            notes.append(f"the index {_title(level)!r} is read as a column")
    if not _counts(frame.index):
        index = frame.index.tolist()
    found = [title for title in frame.columns if not isinstance(title, str)]
    if found:
        shown = ", ".join(map(repr, titles[:5]))
        notes.append(f"the names of columns are read as texts: {shown}")
    cells = [column.tolist() for column in columns]
    return _frame_stream("DataFrame", titles, cells, notes, index)


def _title(name: Any) -> str:
    return clean_name(" ".join(map(str, name)) if isinstance(name, tuple) else name)


def _counts(index: Any) -> bool:
    """Whether an index of pandas says no more than the position of a row."""
    return index.nlevels == 1 and index.tolist() == list(range(len(index)))


def _narwhals_stream(source: Any) -> TableStream:
    titles = getattr(source, "column_names", None)  # of pyarrow, whose tables may have a name twice
    if isinstance(titles, list):
        _check_unique(type(source).__name__, titles)
    narwhals: Any = import_module("narwhals")  # only where there is a frame: `handful --help` needs none
    try:
        frame = narwhals.from_native(source, allow_series=True)
    except (TypeError, ValueError, AttributeError):
        raise _not_rows(source) from None
    if isinstance(frame, narwhals.Series):
        return _stream("Series", _rows_of_items("Series", frame.to_list(), False))
    if isinstance(frame, narwhals.LazyFrame):
        frame = frame.collect()
    titles = [clean_name(title) for title in frame.columns]
    cells = [frame.get_column(title).to_list() for title in frame.columns]
    return _frame_stream(type(source).__name__, titles, cells, [], None)


def _frame_stream(
    holder: str, titles: list[str], cells: list[list[Any]], notes: list[str], index: list[Any] | None
) -> TableStream:
    _check_unique(holder, titles)
    rows = [dict(zip(titles, row, strict=True)) for row in zip(*cells, strict=True)]
    return _stream(holder, rows, titles, notes, index)


def _check_unique(holder: str, titles: list[str]) -> None:
    if twice := repeated(titles)[:NAMED_PLACES]:
        positions = {title: [i + 1 for i, other in enumerate(titles) if other == title] for title in twice}
        shown = "; ".join(f"{title!r}: columns {', '.join(map(str, found))}" for title, found in positions.items())
        raise DataError(f"{holder}: columns have the same name ({shown})", "give each column its own name")


def _stream(
    holder: str,
    rows: Sequence[Mapping[Any, Any]],
    columns: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    index: Sequence[Any] | None = None,
) -> TableStream:
    if not rows:
        found = f"an empty {holder}" + (f" with the columns {', '.join(map(repr, columns))}" if columns else "")
        raise DataError(f"expected rows, found {found}", "give labelled rows")
    name, kept = _NAMES.get(holder, holder.lower()), []
    for number, row in enumerate(rows):
        where = place(holder, number, f"the {holder}", index)
        titles = [_title(key) for key in row]
        if number == 0:
            check_names(titles, where)
        if twice := repeated(titles):
            raise DataError(f"{where}: {', '.join(map(repr, twice))} stands there twice", "give each its own name")
        try:
            cells = dict(zip(titles, map(plain, row.values()), strict=True))
        except RecursionError:
            raise DataError(f"{where}: a cell is nested too deeply", "leave it out") from None
        check_row(cells, where)
        kept.append((number, cells))
    return TableStream(
        holder, name, tuple(columns or kept[0][1]), lambda: iter(kept),
        tuple(f"{name}: {note}" for note in notes), f"the {holder}", index,
    )  # fmt: skip


def _has_labels(labels: Any) -> bool:
    """Whether these are a column, or a frame whose `columns` are names (those of pyarrow are cells)."""
    is_frame = hasattr(labels, "columns") and not hasattr(labels, "column_names")
    return is_column(labels) or (is_frame and len(getattr(labels, "shape", ())) == 2)


def _of_frame(frame: Any) -> list[Any]:
    """The labels in a frame: its one column, or of columns of 0 and 1 the names of those that hold a 1."""
    names = [*map(str, frame.columns)]
    if len(names) == 1:
        return as_list(frame[frame.columns[0]])
    from handful.data.label_sets import read_indicators  # which reads tables itself

    _check_unique("the labels", names)
    found = read_indicators(frame, names, where=lambda index: f"row {index} of the labels")
    return [None if row is None else [found.labels[place] for place in row] for row in found.rows]


def _texts_and_labels(texts: Any, labels: Any) -> TableStream:
    """Rows of any form, such as texts or a frame, with their labels. Raises: DataError where their indexes differ."""
    check_order({"the texts": texts, "the labels": labels})
    stream, several = memory_stream(texts), not is_column(labels)
    labels = _of_frame(labels) if several else as_list(labels)
    rows = [row for _, row in stream]
    if len(rows) != len(labels):
        raise DataError(
            f"expected as many labels as texts, found {len(labels)} and {len(rows)}",
            "(texts, labels) are two sequences of one length",
        )
    if "label" in stream.columns:
        raise DataError("expected (texts, labels), found rows that are labelled already", "give the rows alone")
    if not several and all(isinstance(label, list | tuple) and len(label) == 1 for label in labels):
        labels = [label[0] for label in labels]  # a matrix of one column
    labelled = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    notes = [note.partition(": ")[2] for note in stream.notes]
    return _stream("tuple", labelled, notes=notes, index=stream.index)


def _rows_of_items(kind: str, items: list[Any], labelled: bool) -> list[dict[Any, Any]]:
    """Dicts as they are; texts and tuples of texts under customary names."""
    rows: list[dict[Any, Any]] = []
    for number, item in enumerate(items):
        if isinstance(item, Mapping):
            rows.append(dict(item))
        elif hasattr(item, "_asdict"):  # a named tuple
            rows.append(item._asdict())
        elif _is_pandas(item, "Series"):
            rows.append(item.to_dict())
        elif is_dataclass(item) and not isinstance(item, type) and not type(item).__module__.startswith("handful."):
            rows.append({each.name: getattr(item, each.name) for each in fields(item)})
        elif isinstance(item, list | tuple):
            names = _tuple_names(len(item), labelled)
            if names is None:
                raise _wrong_item(number, kind, item)
            rows.append(dict(zip(names, item, strict=True)))
        elif isinstance(item, str) or missing(item):  # pandas has NaN where there is no text
            rows.append({"text": item})
        else:
            raise _wrong_item(number, kind, item)
    return rows


def _tuple_names(length: int, labelled: bool) -> tuple[str, ...] | None:
    named = {1: ("text",), 2: ("text", "label" if labelled else "text_pair"), 3: ("text", "text_pair", "label")}
    return named.get(length)


def _wrong_item(number: int, kind: str, item: Any) -> DataError:
    return DataError(
        f"row {number} of the {kind}: expected a dict, a text or a pair of texts, found {item!r:.80}", _GIVE
    )


def _not_rows(source: Any) -> DataError:
    kind = type(source).__name__
    if isinstance(source, type):
        kind = f"the class {source.__name__}"
    return DataError(f"expected a path or rows, found {kind}", _GIVE)
