"""Files of generation: columns and kind, one record a source, and every mistake named."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.columns import Columns
from handful.data.files import read_folder, read_task
from handful.data.holdout import with_held_out_test
from handful.data.new_rows import labelled_rows, unlabelled_rows
from handful.data.overlap import refuse_another_task, refuse_seen
from handful.data.references import records
from handful.data.split import Split
from handful.data.tables import MAX_CELL, Table
from handful.data.task import Example, Task, TestRows, fingerprint_rows, overlap_keys, text_key
from handful.errors import DataError

PAIRS = "source,reference\nname Ann,This is Ann.\nname Bob,Here is Bob.\nname Ann,Meet Ann.\n"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def lines(*rows: dict) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def test_rows_of_one_source_are_one_record(tmp_path):
    task = read_task(write(tmp_path / "people.csv", PAIRS))
    assert (task.name, task.kind, task.labels, task.metric, task.num_outputs) == ("people", "generation", (), "bleu", 0)
    assert task.pool == (
        Example("name Ann", source="people.csv:2", references=("This is Ann.", "Meet Ann.")),
        Example("name Bob", source="people.csv:3", references=("Here is Bob.",)),
    )
    assert task.notes == (
        "people.csv: read the column 'source' as the source and 'reference' as its references",
        "kind generation: the column 'reference' holds texts to write; for classes give --kind classification",
        "3 rows of people.csv are 2 records: rows of one source are its references",
        "metric bleu: the default for generation",
    )


def test_json_lists_are_the_same_records(tmp_path):
    rows = [{"source": "name Ann", "references": ["This is Ann.", "Meet Ann."]}]
    rows.append({"source": "name Bob", "references": ["Here is Bob."]})
    task = read_task(write(tmp_path / "people.jsonl", lines(*rows)))
    rows_of_a_source = read_task(write(tmp_path / "people.csv", PAIRS))
    assert task.fingerprint() == rows_of_a_source.fingerprint()
    cells = 'source,references\nname Ann,"[""This is Ann."", ""Meet Ann.""]"\nname Bob,Here is Bob.\n'
    listed = read_task(write(tmp_path / "listed.csv", cells))
    assert listed.fingerprint() == task.fingerprint()
    assert "1 cell(s) of 'references' are lists in JSON: every text in them is a reference" in listed.notes
    assert not any("JSON" in note for note in task.notes + rows_of_a_source.notes)
    mixed = read_task(write(tmp_path / "kind.csv", 'text,target\na,"[""b""]"\nc,"[""d"", ""e""]"\n'))
    assert (mixed.kind, mixed.pool[1].references) == ("generation", ("d", "e"))


@pytest.mark.parametrize("cells", [("[laughs] yes", "[3]"), ("[]", "no"), ("[['a']]", '["a'), ("[1, 2]", "[" * 9_999)])
def test_what_only_looks_like_a_list_is_a_text(tmp_path, cells):
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("source", "reference"), *enumerate(cells)])
    assert [row.references for row in read_task(tmp_path / "data.csv").pool] == [(cell,) for cell in cells]
    path = write(tmp_path / "data.jsonl", lines({"source": "a", "reference": '["b"]'}))
    assert read_task(path).pool[0].references == ('["b"]',)


def test_the_source_beside_a_text(tmp_path):
    path = write(tmp_path / "data.csv", ",source,text,reference\n0,a,b,c\n1,d,e,f\n")
    assert [row.text for row in read_task(path).pool] == ["a", "d"]
    assert [row.text for row in read_task(path, text="text").pool] == ["b", "e"]
    assert [row.text for row, _ in unlabelled_rows(path, kind="generation")] == ["a", "d"]
    tweets = write(tmp_path / "tweets.csv", "text,target,source\na,x,web\nb,y,web\n")
    assert read_task(tweets).kind == "classification"
    assert read_task(tweets, text="source", kind="generation").pool[0].references == ("x", "y")


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (("source", "target"), {}),
        (("Source", "Target"), {}),
        (("input", "target"), {}),
        (("input", "reference"), {}),
        (("text", "reference"), {}),
        (("mr", "ref"), {}),
        (("text", "references"), {}),
        (("text", "target"), {"kind": "generation"}),
        (("text", "label"), {"kind": "generation"}),
        (("question", "answer"), {"kind": "generation", "text": "question", "label": "answer"}),
        (("body", "references"), {"text": "body", "label": "references"}),
    ],
)
def test_kind_and_columns_are_found(tmp_path, columns, options):
    task = read_task(write(tmp_path / "data.csv", f"{','.join(columns)}\nin,out one\nother,out two\n"), **options)
    assert (task.kind, task.pool[0].text, task.pool[0].references) == ("generation", "in", ("out one",))
    assert all(repr(name) in task.notes[0] for name in columns)


@pytest.mark.parametrize(
    "columns", [("text", "target"), ("text", "label"), ("sentence", "class"), ("text", "label,references")]
)
def test_classes_stay_classes(tmp_path, columns):
    cells = "a,x,free text\nb,y,more\n" if "references" in columns[1] else "a,x\nb,y\n"
    assert read_task(write(tmp_path / "data.csv", f"{','.join(columns)}\n{cells}")).kind == "classification"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("source,reference\na,b\nc,\n", {}, r"no row without a reference in 'reference', found 1 \(line 3\)"),
        ("source,reference\n ,b\n", {}, r"no row with an empty source in 'source', found 1 \(line 2\)"),
        (
            "source,gist,outline\na,b,c\n",
            {"kind": "generation"},
            "expected a reference column .*'gist'.*--label",
        ),
        ("source,reference,target\na,b,c\n", {"kind": "generation"}, r"name the column: --label reference\|target"),
        ("story,plot,reference\na,b,c\n", {"kind": "generation"}, r"expected a source column .*--text"),
        ('source,reference\na,"[""b""]"\nc,"[""d, e"\n', {}, r"begins with '\[' and is no list of texts.*\(line 3\)"),
        ("source,reference\na,b\n", {"text_pair": "reference"}, "generation has one source column"),
    ],
)
def test_mistakes_are_named(tmp_path, content, options, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_task(write(tmp_path / "data.csv", content), **options)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (None, r"without a reference in 'references', found 1 \(line 2\)"),
        ([], r"without a reference in 'references', found 1 \(line 2\)"),
        (["fine", " "], r"with an empty reference in 'references', found 1 \(line 2\)"),
        (["fine", 3], r"data\.jsonl:2: expected a text in 'references', found 3"),
        ({"text": "x"}, r"data\.jsonl:2: expected a text in 'references'"),
        (["half \ud800"], r"data\.jsonl:2: the text in 'references' holds half of a surrogate pair"),
        (["x" * (MAX_CELL + 1)], r"data\.jsonl:2: a text has more than 1,000,000 characters"),
        ("gone", r"data\.jsonl:2: expected the column 'references', found 'source'"),
    ],
)
def test_wrong_references_in_json(tmp_path, references, message):
    row = {"source": "b"} if references == "gone" else {"source": "b", "references": references}
    path = write(tmp_path / "data.jsonl", lines({"source": "a", "references": ["fine"]}, row))
    with pytest.raises(DataError, match=message):
        read_task(path)


def test_huge_cell_of_csv(tmp_path):
    path = write(tmp_path / "data.csv", f"source,reference\na,{'x' * 10_000_000}\n")
    with pytest.raises(DataError, match=r"data\.csv:2: a cell has more than 1,000,000 characters"):
        read_task(path)


def test_sources_in_both_files_are_told_and_never_trained_on(tmp_path, monkeypatch):
    path = write(tmp_path / "pool.csv", PAIRS + "name Cy,Cy it is.\nname Di,Di it is.\n")
    test = write(tmp_path / "test.csv", "source,reference\nNAME  ann,Some text\n")
    opened = []
    text_keys = TestRows.text_keys
    monkeypatch.setattr(TestRows, "text_keys", lambda rows: opened.append(1) or text_keys(rows))
    task = read_task(path, test=test)
    assert len(opened) == 1, "once a file, and not once a row"
    assert "1 source(s) of pool.csv stand in the test rows too and are not used for training" in task.notes
    split = Split(task, 3, 0)
    assert split.dropped_overlap == 1
    assert "name Ann" not in {row.text for row in split.labelled}


def test_rows_to_write_for_need_no_reference(tmp_path):
    path = write(tmp_path / "new.csv", "source\nname Ann\nname Ann\n")
    assert [row.text for row, _ in unlabelled_rows(path, kind="generation")] == ["name Ann", "name Ann"]
    full = write(tmp_path / "full.csv", PAIRS)
    found, _ = labelled_rows(full, Task("pairs", "generation", (), "bleu", ()))
    assert [len(row.references) for row in found] == [2, 1]


def test_references_count_for_identity_and_classes_do_not_change():
    one, two = Example("a", references=("b",)), Example("a", references=("b", "c"))
    assert len({fingerprint_rows([row]) for row in (one, two, Example("a"))}) == 3
    classified = Example("Some text", "its pair", 1)
    assert fingerprint_rows([classified]) == "14741187daf420d392f32a61f1b92d82677ef08064f73e061926b7b1597b7787"
    assert overlap_keys(classified) == {text_key(classified)}


def test_a_long_reference_gives_a_row_away_and_a_short_one_does_not():
    closed = TestRows([Example("x | y | z", references=("Ann was born in the city of Rome.", "Yes."))])
    keys = closed.overlap_keys()
    same = Example("other source", references=("unlike", "ann was born in THE city of Rome"))
    written_otherwise = Example("X_y: (z)", references=("unlike",))
    short = Example("third source", references=("Yes.",))
    assert [not overlap_keys(row).isdisjoint(keys) for row in (same, written_otherwise, short)] == [True, True, False]
    assert closed.count_overlap(overlap_keys(same)) == 1
    assert closed.count_overlap(overlap_keys(short)) == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.text(min_size=1).filter(str.strip)), min_size=1))
def test_no_reference_is_lost_or_moved(pairs):
    pairs = [(source, text.encode("utf-8", "ignore").decode() or "x") for source, text in pairs]
    pairs = [(source, text if text.strip() else "x") for source, text in pairs]
    rows = [{"source": source, "reference": text} for source, text in pairs]
    table = Table("t.csv", "t.csv", ("source", "reference"), rows, list(range(2, len(rows) + 2)))
    found = records(table, Columns("source", None, "reference"))
    assert len({row.text for row in found}) == len(found) == len({source for source, _ in pairs})
    for row in found:
        assert list(row.references) == [text for source, text in pairs if source == row.text]


def test_holding_out_and_folders(tmp_path):
    rows = tuple(Example(f"source {i}", references=(f"text {i}",)) for i in range(40))
    held = with_held_out_test(Task("made", "generation", (), "bleu", rows), 0.25)
    assert (len(held.pool), len(held.test or ())) == (30, 10)


SENTENCE = "the answer is always this same sentence"


def test_an_answer_that_many_rows_of_a_file_share_drops_none_of_them():
    rows = tuple(Example(f"{i} {sign} {i}", references=(SENTENCE,)) for i in range(20) for sign in "+-")
    held = with_held_out_test(Task("made", "generation", (), "bleu", rows), 0.2)
    assert held.notes[-1].startswith("8 of the 8 test rows share a long reference, or the words of their source, with")
    split = Split(held, 32, 0, dev="none")
    assert (len(split.train), split.dropped_overlap) == (32, 0)
    assert held.test and not {text_key(row) for row in split.train} & held.test.text_keys()
    seen = frozenset(key for row in split.train for key in overlap_keys(row))
    assert refuse_seen("the run before", seen, held).test == 0
    with pytest.raises(DataError, match="has seen test rows"):
        refuse_another_task("another file", seen, held)


def test_between_files_such_rows_are_dropped_and_the_error_says_so():
    rows = tuple(Example(f"question {i}", references=(SENTENCE,)) for i in range(12))
    task = Task("made", "generation", (), "bleu", (*rows[:10], rows[0]), TestRows(rows[10:]))
    for shots in (8, 0):  # 0: all there are
        with pytest.raises(DataError) as caught:
            Split(task, shots, 0)
        assert caught.value.message == (
            f"task 'made': expected at least {shots or 2} distinct labelled rows, found 0 (of 11 in the pool, "
            "11 have the source or a long reference of test or development rows)"
        )
        assert caught.value.hint == "label more rows"
    with pytest.raises(DataError, match=r"found 10 \(of 11 in the pool, 1 repeat another one\)\n\nhint: use at most"):
        Split(replace(task, test=None), 11, 0)


@pytest.mark.parametrize(
    ("name", "metric", "references"), [("e2e", "bleu-e2e", (17122, 4693)), ("webnlg", "bleu-webnlg20", (5340, 5150))]
)
def test_real_folders(shared_data, name, metric, references):
    task = read_folder(shared_data / "nlg" / name)
    assert (task.kind, task.metric) == ("generation", metric)
    assert task.test is not None
    assert sum(len(row.references) for row in task.pool) == references[0]
    assert sum(len(row.references) for row in task.test._examples) == references[1]
    assert any(metric in note for note in task.notes)
    pool = read_task(shared_data / "nlg" / name / "pool.jsonl")
    assert pool.kind == "generation"
    assert [row.references for row in pool.pool] == [row.references for row in task.pool]
