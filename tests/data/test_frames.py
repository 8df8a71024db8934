"""Rows in memory: frames of any library, `datasets`, dicts, lists and texts with labels, with the place of each."""

from __future__ import annotations

import datetime
import io
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handful.data.files import read_task
from handful.data.new_rows import unlabelled_rows
from handful.data.open import open_task
from handful.data.tables import read_table, stream_table
from handful.data.task import Example
from handful.errors import ConfigError, DataError

TEXTS, LABELS = ["good", "bad", "fine"], ["pos", "neg", "pos"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


@dataclass
class Made:
    text: str
    label: str


def package(name: str) -> Any:
    return pytest.importorskip(name)


def refused(source: Any, message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_table(source, **options)


def forms() -> dict[str, Any]:
    Row = namedtuple("Row", ("text", "label"))
    return {
        "list of dicts": ROWS,
        "generator": (row for row in ROWS),
        "named tuples": [Row(**row) for row in ROWS],
        "dict of lists": {"text": TEXTS, "label": LABELS},
        "dict of arrays": {"text": np.array(TEXTS), "label": tuple(LABELS)},
        "texts and labels": (TEXTS, LABELS),
        "dict of dicts": {"text": dict(enumerate(TEXTS)), "label": dict(enumerate(LABELS))},
        "rows by index": dict(enumerate(ROWS)),
        "split": {"columns": ["text", "label"], "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
        "rows and labels": ([{"text": text} for text in TEXTS], LABELS),
        "named array": np.array(list(zip(TEXTS, LABELS, strict=True)), dtype=[("text", "U9"), ("label", "U9")]),
        "data classes": [Made(**row) for row in ROWS],
        "arrays": (np.array(TEXTS), np.array(LABELS).reshape(-1, 1)),
    }


@pytest.mark.parametrize("form", forms())
def test_forms_of_the_language(form):
    table = read_table(forms()[form])
    assert (table.rows, table.columns, table.lines, table.in_memory) == (ROWS, ("text", "label"), [0, 1, 2], True)
    assert all(type(cell) is str for row in table.rows for cell in row.values())


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_frames(library):
    columns = {"text": TEXTS, "label": LABELS}
    frame = package("pyarrow").table(columns) if library == "pyarrow" else package(library).DataFrame(columns)
    assert read_table(frame).rows == ROWS
    if library == "polars":
        assert read_table(frame.lazy()).rows == ROWS
        assert [row["text"] for row in read_table(frame["text"]).rows] == TEXTS
    if library == "pyarrow":
        assert read_table(frame.to_batches()[0]).rows == read_table(frame.to_reader()).rows == ROWS
    if library == "pandas":
        assert read_table([row for _, row in frame.iterrows()]).rows == ROWS
    task = open_task(frame, test=[{"text": "so so", "label": "pos"}])
    assert (task.name, task.origin, task.labels) == (type(frame).__name__.lower(), "memory", ("neg", "pos"))
    assert task.pool[1] == Example("bad", None, 0, f"{task.name}:1")
    assert task.test is not None
    assert len(task.test) == 1
    with pytest.raises(DataError, match="expected other rows than the labelled ones, found the same"):
        open_task(frame, test=frame)


def test_a_frame_and_its_labels():
    pandas = package("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS}).iloc[::-1]
    table = read_table((frame[["text"]], frame["label"]))
    assert table.rows == ROWS[::-1]
    assert table.where(0) == "row 0 (index 2) of the tuple"
    assert read_table((frame["text"], frame["label"])).rows == ROWS[::-1]


def test_columns_with_other_indexes_are_refused():
    pandas = package("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    backwards = frame.iloc[::-1]
    refused((backwards["text"], frame["label"]), "the labels and the texts have different indexes.*hint: .*loc")
    refused((backwards[["text"]], frame["label"]), "the labels and the texts have different indexes")
    refused({"text": backwards["text"], "label": frame["label"]}, "'label' and the dict: 'text' have different indexes")
    assert read_table((backwards["text"].tolist(), LABELS)).rows[0]["text"] == "fine"
    assert read_table({"text": frame["text"], "label": LABELS}).rows == ROWS


def test_cells_of_every_type_become_plain():
    pandas = package("pandas")
    frame = pandas.DataFrame(
        {
            "string": pandas.array(["a", pandas.NA], dtype="string"),
            "category": pandas.Categorical(["u", None]),
            "integer": pandas.array([1, None], dtype="Int64"),
            "boolean": pandas.array([True, None], dtype="boolean"),
            "date": [datetime.datetime(2020, 1, 2), pandas.NaT],
            "float": [1.5, np.nan],
            "object": pandas.Series([np.int64(3), None], dtype=object),
            "list": [np.array(["x", "y"]), None],
            "decimal": [Decimal("2.50"), Decimal("nan")],
        }
    )
    first, second = read_table(frame).rows
    assert list(first.values()) == ["a", "u", 1, True, "2020-01-02 00:00:00", 1.5, 3, ["x", "y"], 2.5]
    types = [str, str, int, bool, str, float, int, list, float]
    assert [type(cell) for cell in first.values()] == types
    assert set(second.values()) == {None}
    arrow = read_table(frame.drop(columns=["object", "list"]).convert_dtypes(dtype_backend="pyarrow")).rows
    assert arrow[0]["integer"] == 1
    assert set(arrow[1].values()) == {None}
    assert read_table([{"a": np.longdouble(2), "b": np.float32(0.5), "c": np.str_("x"), "d": np.bool_(True)}]).rows == [
        {"a": 2.0, "b": 0.5, "c": "x", "d": True}
    ]


def test_names_of_columns_that_are_no_texts():
    pandas = package("pandas")
    table = read_table(pandas.DataFrame([["a", "x"]]))
    assert table.columns == ("0", "1")
    assert table.notes == ("dataframe: the names of columns are read as texts: '0', '1'",)
    levels = pandas.MultiIndex.from_tuples([("text", ""), ("the", "label")])
    assert read_table(pandas.DataFrame([["a", "x"]], columns=levels)).columns == ("text", "the label")
    for names, said in ((["text", "text"], "'text': columns 1, 2"), ([1, "1"], "'1': columns 1, 2")):
        refused(pandas.DataFrame([["a", "x"]], columns=names), rf"columns have the same name \({said}")
    refused([{1: "a", "1": "b"}], r"row 0 of the list: '1' stands there twice")


def test_an_index_with_a_name_is_a_column_and_another_is_named_in_errors():
    pandas = package("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    table = read_table(frame.set_index("text"))
    assert [dict(sorted(row.items())) for row in table.rows] == [dict(sorted(row.items())) for row in ROWS]
    assert table.notes == ("dataframe: the index 'text' is read as a column",)
    shuffled = frame.iloc[::-1]
    assert read_table(shuffled).where(0) == "row 0 (index 2) of the DataFrame"
    assert read_table(frame).where(1) == stream_table(frame).where(1) == "row 1 of the DataFrame"
    with pytest.raises(DataError, match=r"DataFrame: expected no row without a label, found 1 \(row 0\)"):
        read_task(frame.assign(label=[None, "x", "y"]))
    with pytest.raises(DataError, match=r"row 1 \(index 1\) of the DataFrame: expected a text in 'text', found 5"):
        read_task(frame.assign(text=["a", 5, "b"]).iloc[::-1])


def test_datasets():
    datasets = package("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["a", "b"])),
        }
    )
    columns = {"text": ["good", "bad", "?"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}
    data = datasets.Dataset.from_dict(columns, features=features)
    expected = [
        {"text": "good", "label": "pos", "tags": ["a", "b"]},
        {"text": "bad", "label": "neg", "tags": []},
        {"text": "?", "label": None, "tags": ["b"]},
    ]
    assert read_table(data).rows == read_table(data.to_iterable_dataset()).rows == expected
    assert open_task(data.select([0, 1])).labels == ("neg", "pos")
    splits = datasets.DatasetDict({"train": data, "test": data})
    hint = r"data\['train'\], test=data\['test'\]"
    refused(splits, rf"found a DatasetDict with the splits 'train', 'test'\n\nhint: .*{hint}")


def test_texts_without_labels():
    for source in (TEXTS, np.array(TEXTS), tuple(TEXTS), package("pandas").Series(TEXTS), iter(TEXTS)):
        assert [row.text for row, _ in unlabelled_rows(source, kind="classification")] == TEXTS
    pairs = [("a", "b"), ["c", "d"]]
    for source in (pairs, np.array(pairs)):
        found = unlabelled_rows(source, kind="pair-classification")
        assert [(row.text, row.text_pair) for row, _ in found] == [("a", "b"), ("c", "d")]
    assert read_table(("a", "b")).rows == [{"text": "a"}, {"text": "b"}]


def test_tuples_with_labels():
    task = open_task([("good", "pos"), ("bad", "neg")])
    assert (task.pool[0], task.labels) == (Example("good", None, 1, "rows:0"), ("neg", "pos"))
    pairs = open_task(([("a", "b"), ("c", "d")], ["x", "y"]))
    assert (pairs.pool[0].text, pairs.pool[0].text_pair, pairs.kind) == ("a", "b", "pair-classification")
    assert open_task([("a", "b", "x"), ("c", "d", "y")]).pool == pairs.pool


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text,label\na,b\n", r"expected a path, found a text of 15 characters \('text,label\\na,b\\n' …\)"),
        ("a long text " * 500, "expected a path, found a text of 6,000 characters"),
        ("x" * 300, "expected a path, found a text of 300 characters"),
        ("a\0b.csv", "expected a path, found a text"),
        ("https://example.org/a.csv", "expected a path, found the address 'https://example.org/a.csv'.*download"),
        (io.StringIO("text\na\n"), "expected a path or rows, found an open file"),
        (b"data.csv", "expected a path or rows, found bytes.*hint: give a path, a data frame"),
        (5, "expected a path or rows, found int"),
        ("", "expected a path, found an empty text"),
        ("/dev/null", "/dev/null: not a regular file"),
        ([1.5], "row 0 of the list: expected a dict, a text or a pair of texts, found 1.5"),
        ([Example("a")], "row 0 of the list: expected a dict, a text or a pair of texts"),
        (None, "expected a path or rows, found NoneType"),
        (object(), "expected a path or rows, found object"),
        (Path, "expected a path or rows, found the class Path"),
        ([], "expected rows, found an empty list"),
        ({"a": [{}, None]}, "the dict: expected rows under 'a', found None at position 1"),
        ({}, "expected rows, found an empty dict"),
        ({"text": []}, "expected rows, found an empty dict"),
        ({"text": "a", "label": "x"}, r"expected columns as lists, found 'a' under 'text'.*one row alone .* list"),
        ({"text": ["a"], "label": []}, "expected columns of one length, found that 'text' has 1, 'label' has 0"),
        ((["a"], ["x", "y"]), "expected as many labels as texts, found 2 and 1"),
        ((ROWS, LABELS), "found rows that are labelled already"),
        (["a", 5], "row 1 of the list: expected a dict, a text or a pair of texts, found 5"),
        ([("a", "b", "c", "d")], "row 0 of the list: expected a dict, a text or a pair of texts"),
        (np.zeros((1, 1, 1)), "expected an array of one or two dimensions, found 3"),
        ([{"text": "\ud83d"}], r"row 0 of the list: the text in 'text' holds half of a surrogate pair"),
        ({"text": ["a"], "label": ["\ude00"]}, r"row 0 of the dict: the text in 'label' holds half of a surrogate"),
        ([{"text": "a", "n": 10**5000}], "row 0 of the list: the number in 'n' has thousands of digits"),
    ],
    ids=range(29),
)
def test_refusals(source, message):
    refused(source, message)


def test_an_empty_frame_names_its_columns():
    frame = package("pandas").DataFrame({"text": [], "label": []})
    refused(frame, "found an empty DataFrame with the columns 'text', 'label'")


def test_a_cell_that_holds_itself_is_refused():
    cell: list[Any] = []
    cell.append(cell)
    refused([{"text": "a", "cell": cell}], "row 0 of the list: a cell is nested too deeply")


def test_options_of_files_are_refused():
    for option in ({"encoding": "utf-8"}, {"delimiter": ";"}):
        with pytest.raises(ConfigError, match="leave it out"):
            read_table(ROWS, **option)
        with pytest.raises(ConfigError, match="leave it out"):
            open_task(ROWS, **option)


def test_options_of_files_go_to_the_files_alone(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("text^label\nnice^pos\n")
    task = open_task(ROWS, test=str(path), delimiter="^", encoding="utf-8")
    assert task.test is not None
    assert len(task.test) == 1


def test_words_for_no_value_are_labels_where_the_format_has_a_null():
    words = ["NA", "None", "null", "pos"]
    assert open_task(([*TEXTS, "x"], words)).labels == ("NA", "None", "null", "pos")
    for word in ("nan", "NaN", "<NA>", "N/A"):
        with pytest.raises(DataError, match=rf"without a label \(or with '{word}', which is read as none\)"):
            open_task((TEXTS, ["pos", word, "neg"]))


def test_labels_of_text_files_that_stand_for_no_value(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\nNA,a\nnull,b\nx,None\ny,NA\nz,\n")
    with pytest.raises(
        DataError,
        match=r"without a label \(or with 'NA', 'None', which is read as none\), found 3 \(line 4, 5, 6\)\n\n"
        r"hint: .*if 'NA' is a class of its own, write it otherwise",
    ):
        read_task(path)
    path.write_text("text,label\nNA,a\nnull,b\n")
    assert [row.text for row in read_task(path).pool] == ["NA", "null"]


def test_reading_frames_imports_no_library_that_is_not_there_already():
    code = (
        "import sys; from handful.data.tables import read_table; read_table([{'text': 'a'}]); "
        "print([name for name in ('torch', 'numpy', 'pandas', 'narwhals', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_missing_package_of_a_format_is_named(tmp_path, monkeypatch):
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("handful.data.binary_tables.import_module", missing)
    for name, needed in (("a.parquet", "pyarrow"), ("a.xlsx", "openpyxl")):
        (tmp_path / name).write_bytes(b"PK")
        refused(tmp_path / name, rf"read through the package '{needed}'.*\n\nhint: pip install 'handful\[tables\]'")
