"""From files to tasks: columns, kinds, classes, and every mistake named before anything heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from handful.data.files import read_folder, read_task
from handful.data.task import Example
from handful.errors import ConfigError, DataError

GOOD = "text,label\ngreat,pos\nawful,neg\n"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def table(*columns: str, rows=(("first", "second", "a"), ("third", "fourth", "b"))) -> str:
    """CSV of these columns; a column named after a label holds the last cell of each row."""
    lines = [",".join([*row[: len(columns) - 1], row[-1]]) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"


def labels(*values: object) -> str:
    return "text,label\n" + "".join(f"text {index},{value}\n" for index, value in enumerate(values))


def refused(path: Path, message: str, **options):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_task(path, **options)


def test_task_from_csv(tmp_path):
    path = write(tmp_path / "reviews.csv", GOOD)
    task = read_task(path, test=write(tmp_path / "test.jsonl", '{"text": "fine", "label": "pos"}\n'), dev=path)
    assert (task.name, task.kind, task.labels, task.metric) == ("reviews", "classification", ("neg", "pos"), "accuracy")
    assert task.pool == (
        Example("great", None, 1, "reviews.csv:2"),
        Example("awful", None, 0, "reviews.csv:3"),
    )
    assert task.dev == task.pool
    assert task.test is not None
    assert len(task.test) == 1
    assert task.origin == str(path)
    assert task.notes == ("metric accuracy: the default for classification",)
    assert read_task(path, name="mine", metric="macro_f1").notes == ()


@pytest.mark.parametrize(
    ("columns", "text", "pair"),
    [
        (("sentence", "label"), "sentence", None),
        (("Review", "label"), "Review", None),
        (("content", "category"), "content", None),
        (("Text", "Label"), "Text", None),
        (("text", "text_pair", "label"), "text", "text_pair"),
        (("sentence1", "sentence2", "score"), "sentence1", "sentence2"),
        (("premise", "hypothesis", "class"), "premise", "hypothesis"),
        (("question", "sentence", "target"), "question", "sentence"),
        (("question", "answer", "y"), "question", "answer"),
    ],
)
def test_customary_names_are_found_and_noted(tmp_path, columns, text, pair):
    task = read_task(write(tmp_path / "data.csv", table(*columns)))
    assert task.pool[0].text == "first"
    assert task.pool[0].text_pair == ("second" if pair else None)
    assert task.kind == ("pair-classification" if pair else "classification")
    chosen = [name for name in columns if name not in ("text", "label")]
    assert all(any(repr(name) in note for note in task.notes) for name in chosen)


def test_named_columns(tmp_path):
    path = write(tmp_path / "data.csv", table("body", "title", "topic"))
    task = read_task(path, text="title", text_pair="body", label="topic")
    assert (task.pool[0].text, task.pool[0].text_pair, task.labels) == ("second", "first", ("a", "b"))
    both = write(tmp_path / "both.csv", table("text", "text_pair", "label"))
    assert read_task(both, text_pair="").pool[0].text_pair is None


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            ("txt", "tags", "label"),
            {},
            r"expected a text column 'text', found the columns 'txt', 'tags', 'label'\n\nhint: .* 'txt'",
        ),
        (("body", "head", "label"), {}, r"hint: name the column: --text body\|head\|label"),
        (("review", "content", "label"), {}, r"hint: name the column: --text review\|content"),
        (("text", "lable"), {}, r"expected a label column 'label'.*\n\nhint: did you mean 'lable'"),
        (("text", "class", "score"), {}, r"hint: name the column: --label class\|score"),
        (("text", "label"), {"text": "tekst"}, r"expected a text column 'tekst'.*\n\nhint: did you mean 'text'"),
        (("text", "label"), {"text_pair": "pair"}, "expected a text pair column 'pair'"),
        (("text", "label"), {"label": "text"}, "the column 'text' is both text and label"),
        (("text", "label"), {"kind": "pair-classification"}, "expected pairs of texts, found one text column"),
        (("text;label",), {}, r"data\.csv:2: expected 2 cells \(text, label\), found 1"),
    ],
)
def test_unclear_columns_are_refused(tmp_path, columns, options, message):
    refused(write(tmp_path / "data.csv", table(*columns)), message, **options)


def test_unknown_kind(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'regression'"):
        read_task(write(tmp_path / "data.csv", GOOD), kind="regresion")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "kind", "classes", "note"),
    [
        (("b", "a", "c"), "classification", ("a", "b", "c"), None),
        ((10, 9, 1), "classification", ("1", "9", "10"), "3 different whole numbers"),
        (("1.0", "0", "1"), "classification", ("0", "1"), "2 different whole numbers"),
        (("01", "02"), "classification", ("01", "02"), "2 different whole numbers"),
        ((0.5, 1, 2), "regression", (), "numbers that are not whole"),
        (tuple(range(20)) * 2, "classification", tuple(map(str, range(20))), "20 different"),
        (tuple(range(21)) * 2, "regression", (), "21 different numbers"),
        (tuple(range(12)), "regression", (), "12 different numbers"),
        (("1.0", "1.1", "2.0"), "regression", (), "numbers that are not whole"),
        (("1", "2", "many", "few"), "classification", ("1", "2", "few", "many"), None),
    ],
)
def test_kind_is_inferred_from_the_labels(tmp_path, values, kind, classes, note):
    task = read_task(write(tmp_path / "data.csv", labels(*values)))
    assert (task.kind, task.labels) == (kind, classes)
    assert task.metric == ("spearman" if kind == "regression" else "accuracy")
    assert any(note in found for found in task.notes) if note else len(task.notes) == 1


def test_kind_can_be_said(tmp_path):
    path = write(tmp_path / "data.csv", labels(*range(21)))
    assert len(read_task(path, kind="classification").labels) == 21
    few = write(tmp_path / "few.csv", labels(1, 2, 3))
    assert [row.label for row in read_task(few, kind="regression").pool] == [1.0, 2.0, 3.0]


def test_json_labels(tmp_path):
    lines = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    path = write(tmp_path / "data.jsonl", "\n".join(map(json.dumps, lines)))
    assert read_task(path).labels == ("false", "true")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labels("a", "a"), "all 2 rows have the label 'a'"),
        (labels(1.5, 1.5), "all 2 rows have the label 1.5"),
        (labels("a", "", "b", " "), r"expected no row without a label, found 2 \(line 3, 5\)"),
        ("text,label\n ,a\nb,b\n,a\n", r"expected no row with an empty text in 'text', found 2 \(line 2, 4\)"),
        ("text,label\n" + ",a\n" * 8, r"found 8 \(line 2, 3, 4, 5, 6 and 3 more\)"),
        (labels(1.5, 2.5, "many"), r"data\.csv:4: expected a finite number as label, found 'many'\n\nhint: .*--kind"),
        (labels(1.5, 2.5, "nan"), r"without a label \(or with 'nan', which is read as none\), found 1 \(line 4\)"),
        (labels("a", "b", "NaN", "<NA>"), r"'<NA>', 'NaN', which is read as none\), found 2 \(line 4, 5\)"),
        (labels(1.5, "inf", 2), r"data\.csv:3: expected a finite number as label, found 'inf'"),
    ],
)
def test_wrong_labels_and_texts_are_refused(tmp_path, content, message):
    refused(write(tmp_path / "data.csv", content), message)


def test_mixed_labels_are_refused_for_regression(tmp_path):
    path = write(tmp_path / "data.csv", labels("low", "high", 3))
    refused(path, r"data\.csv:2: expected a finite number as label, found 'low'", kind="regression")


@pytest.mark.parametrize("part", ["test", "dev"])
def test_unknown_label_outside_the_pool_is_named(tmp_path, part):
    other = write(tmp_path / "other.csv", "text,label\nfine,pos\nbad,negg\n")
    refused(
        write(tmp_path / "data.csv", GOOD),
        r"other\.csv:3: the label 'negg' is none of the 2 classes\n\nhint: did you mean 'neg'",
        **{part: other},
    )


def test_missing_column_outside_the_pool_is_named(tmp_path):
    other = write(tmp_path / "other.csv", "text,lable\nfine,pos\n")
    refused(write(tmp_path / "data.csv", GOOD), r"other\.csv:2: expected the column 'label'.*did you mean", test=other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": "b"}', r"data\.jsonl:2: expected the column 'text', found 'label'"),
        ('{"text": "b"}', r"data\.jsonl:2: expected the column 'label', found 'text'"),
        ('{"text": 5, "label": "b"}', r"data\.jsonl:2: expected a text in 'text', found 5"),
        ('{"text": null, "label": "b"}', r"data\.jsonl:2: expected a text in 'text', found None"),
        ('{"text": "\\ud800", "label": "b"}', r"data\.jsonl:2: .* half of a surrogate pair"),
        ('{"text": "b", "label": null}', r"expected no row without a label, found 1 \(line 2\)"),
        ('{"text": "b", "label": NaN}', r"expected no row without a label, found 1 \(line 2\)"),
        ('{"text": "b", "label": {"b": 1}}', r"data\.jsonl:2: expected one label, found \{'b': 1\}"),
        ('{"text": "b", "label": "\\ud800"}', r"data\.jsonl:2: .* half of a surrogate pair"),
    ],
)
def test_wrong_json_rows_are_refused(tmp_path, line, message):
    path = write(tmp_path / "data.jsonl", f'{{"text": "a", "label": "a"}}\n{line}\n{{"text": "c", "label": "c"}}\n')
    refused(path, message)


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = [{"text": f"text {index}", "label": ("no", "yes")[index % 2]} for index in range(6)]
    for part, chosen in (("pool", rows[:4]), ("test", rows[4:])):
        write(tmp_path / f"{part}.jsonl", "\n".join(map(json.dumps, chosen)) + "\n")
    record = {"name": "made", "kind": "classification", "labels": ["yes", "no"], "metric": "f1"}
    write(tmp_path / "task.json", json.dumps({**record, "pool_rows": 4, "test_rows": 2}))
    return tmp_path


def amend(folder: Path, **changes):
    path = folder / "task.json"
    record = json.loads(path.read_text())
    write(path, json.dumps({key: value for key, value in {**record, **changes}.items() if value != "gone"}))


def test_task_folder(folder):
    task = read_folder(folder)
    assert (task.name, task.labels, task.metric, len(task.pool)) == ("made", ("yes", "no"), "f1", 4)
    assert task.pool[1] == Example("text 1", None, 0, "pool.jsonl:2")
    assert task.test is not None
    assert len(task.test) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool_rows": 5}, r"pool\.jsonl: expected 5 rows \(task\.json: pool_rows\), found 4"),
        ({"test_rows": 1}, r"test\.jsonl: expected 1 rows \(task\.json: test_rows\), found 2"),
        ({"labels": ["yes", "noo"]}, r"pool\.jsonl:1: the label 'no' is none of .*\n\nhint: did you mean 'noo'"),
        ({"kind": "writing", "labels": None}, "expected one of the kinds .* found 'writing'"),
        ({"kind": "generation", "labels": None}, r"pool\.jsonl:1: expected the column 'source', found 'text', 'label'"),
        ({"kind": "generation"}, "the labels of generation are"),
        ({"labels": None}, "the labels of classification are"),
        ({"kind": "regression"}, "the labels of regression are"),
        ({"metric": "gone"}, "expected the key 'metric'"),
        ({"pool_rows": "four"}, r"'pool_rows' is 'four'\n\nhint: expected int"),
    ],
)
def test_wrong_task_folders_are_refused(folder, changes, message):
    amend(folder, **changes)
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_broken_or_missing_task_json(folder):
    write(folder / "task.json", "{")
    with pytest.raises(DataError, match=r"task\.json: expected a JSON object"):
        read_folder(folder)
    (folder / "task.json").unlink()
    with pytest.raises(DataError, match="a task folder holds"):
        read_folder(folder)


def test_real_folders_are_read_whole(shared_data):
    folders = [path.parent for group in ("glue", "extra") for path in sorted((shared_data / group).glob("*/task.json"))]
    assert len(folders) == 36
    for folder in folders:
        record = json.loads((folder / "task.json").read_text())
        task = read_folder(folder)
        assert task.test is not None
        assert (len(task.pool), len(task.test)) == (record["pool_rows"], record["test_rows"])
        assert task.num_outputs == len(record["labels"] or [None])
        assert not {row.source for row in task.pool if task.kind == "pair-classification" and not row.text_pair}


def test_empty_test_row_of_a_real_folder_is_noted(shared_data):
    assert read_folder(shared_data / "extra" / "cr").notes == (
        "1 row(s) with an empty text are kept as they are: test.jsonl:768",
    )


@pytest.mark.parametrize("name", ["stsb", "mnli"])
def test_inference_agrees_with_real_folders(shared_data, name):
    folder = shared_data / "glue" / name
    known, read = read_folder(folder), read_task(folder / "pool.jsonl", test=folder / "test.jsonl")
    assert (read.kind, set(read.labels), read.metric) == (known.kind, set(known.labels), known.metric)


def test_reading_imports_nothing_heavy():
    code = (
        "import sys, handful.data.open; print([name for name in ('torch', 'numpy', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TAGGED = [
    {
        "id": i,
        "date": "2024-01-01",
        "subject": f"my subject is {i}",
        "body": f"long body text {i} it is",
        "tag": "ab"[i % 2],
    }
    for i in range(20)
]


def test_hints_for_rows_in_memory_are_of_python_and_leave_out_what_says_nothing():
    with pytest.raises(DataError) as caught:
        read_task(TAGGED)
    hint = (
        'name the column: columns={"text": "subject"}; for pairs both: columns={"text": "subject", "text_pair": "body"}'
    )
    assert caught.value.hint == hint
    with pytest.raises(DataError) as caught:
        read_task(TAGGED, text="body", label="subject")
    assert 'for another column: columns={"label": "body"}; to take' in str(caught.value.hint)
    assert "--" not in str(caught.value)


def test_columns_that_say_nothing_are_not_offered(tmp_path):
    rows = "".join(f"{i},2024-01-01,{'ab'[i % 2]},{'cde'[i % 3]},text of number {i}\n" for i in range(12))
    with pytest.raises(DataError) as caught:
        read_task(write(tmp_path / "a.csv", f"id,date,kind,tone,text\n{rows}"))
    assert caught.value.hint == "name the column: --label kind|tone"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (("train.csv", "test.csv"), "handful fit {}/train.csv --test {}/test.csv"),
        (("data/train-00000-of-00001.parquet", "data/validation.jsonl"),
         "handful fit {0}/data/train-00000-of-00001.parquet --test {0}/data/validation.jsonl"),
        (("reviews.tsv", "README.md"), "handful fit {}/reviews.tsv"),
        (("a.csv", "b.csv", "trains.csv"), "{} holds a.csv, b.csv, trains.csv"),
    ],
)  # fmt: skip
def test_a_folder_of_files_is_told_how_to_be_read(tmp_path, files, command):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\n")
    with pytest.raises(DataError, match="no such file") as caught:
        read_folder(tmp_path)
    assert str(caught.value.hint).endswith(command.format(*[tmp_path] * 2))


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.csv", "text~label\na b~x\nc d~y\n", "found the columns 'text~label'", "--delimiter '~'"),
        ("a.csv", "text   label\na b   x\nc d   y\n", "found the columns", "several spaces seem to part the columns"),
        ("a.csv", '{"text": "a", "label": "x"}\n', "expected delimited text, found JSON lines", "end in .jsonl"),
        ("a.tsv", '[\n{"text": "a"}]', "expected delimited text, found an array of JSON objects", "end in .json"),
        ("a.jsonl", "text,label\na,x\n", "expected a JSON object", "a file of CSV is to end in .csv"),
        ("a.jsonl", "{}\n{}\n", "a.jsonl:1: expected an object with columns", "or remove it"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{}\n', "found an object without any", "remove it"),
        ("a.csv", 'text,label\n"say \\"hi\\", x",a\nb,c\n', "escaped by backslashes", "save it again"),
        ("a.csv", "text,label\n", "found only a header", "give a file with rows below the header"),
    ],
)
def test_files_of_another_form_than_they_seem(tmp_path, name, content, message, hint):
    with pytest.raises(DataError, match=message) as caught:
        read_task(write(tmp_path / name, content))
    assert hint in str(caught.value.hint)
