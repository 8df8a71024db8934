"""Files of generation under their usual names, and columns that are made of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handful.data.columns import Columns
from handful.data.files import read_task
from handful.data.new_rows import unlabelled_rows
from handful.data.task import Example, TaskKind
from handful.errors import DataError


def read_rows(source: Any, kind: TaskKind = "classification", text: str = "") -> list[Example]:
    """The rows to predict."""
    return [row for row, _ in unlabelled_rows(source, kind=kind, wanted=Columns(text, None, None))]


SOURCES = [f"name Ann, born in {1900 + i}, in Rome" for i in range(8)]
TARGETS = [f"Ann was born in Rome in the year {1900 + i}." for i in range(8)]


def write(path: Path, **columns: list[Any]) -> Path:
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("prompt", "completion"), ("prompt", "response"), ("input", "output"), ("instruction", "output"),
        ("instruction", "response"), ("document", "summary"), ("article", "highlights"), ("dialogue", "summary"),
        ("question", "answer"), ("source", "target"), ("src", "tgt"), ("text", "summary"), ("Prompt", "Completion"),
    ],
)  # fmt: skip
def test_usual_names_are_known(tmp_path, source, target):
    path = write(tmp_path / "data.jsonl", **{source: SOURCES, target: TARGETS})
    task = read_task(path)
    assert (task.kind, task.pool[0].text, task.pool[0].references) == ("generation", SOURCES[0], (TARGETS[0],))
    assert f"read the column {source!r} as the source and {target!r} as its references" in task.notes[0]
    assert "--kind classification" in task.notes[1]
    assert read_rows(path, kind="generation")[0].text == SOURCES[0]


@pytest.mark.parametrize(("source", "target"), [("prompt", "completion"), ("input", "output"), ("question", "answer")])
def test_the_same_names_hold_classes_where_values_repeat(tmp_path, source, target):
    path = write(tmp_path / "data.jsonl", **{source: SOURCES, target: ["yes", "no"] * 4})
    task = read_task(path)
    assert (task.kind, task.labels, task.pool[0].text) == ("classification", ("no", "yes"), SOURCES[0])
    assert read_task(path, kind="generation").kind == "generation"


def test_a_label_column_always_means_labels(tmp_path):
    path = write(tmp_path / "data.jsonl", question=SOURCES, answer=TARGETS, label=["yes", "no"] * 4)
    assert read_task(path).kind == "pair-classification"
    path = write(tmp_path / "more.jsonl", text=SOURCES, summary=TARGETS, label=["yes", "no"] * 4)
    assert read_task(path).kind == "classification"


@pytest.mark.parametrize("name", ["label", "target"])
def test_sentences_as_labels_are_asked_about(tmp_path, name):
    path = write(tmp_path / "data.jsonl", **{"text": SOURCES, name: TARGETS})
    with pytest.raises(DataError, match="holds texts, and no classes\n\nhint: texts to be written: --kind generation"):
        read_task(path)
    assert read_task(path, kind="generation").pool[0].references == (TARGETS[0],)


def test_an_instruction_and_its_input_are_one_source_and_said(tmp_path):
    inputs = [*SOURCES[:4], "", "", "", ""]
    path = write(tmp_path / "a.jsonl", instruction=[f"Say it: {i}" for i in range(8)], input=inputs, output=TARGETS)
    task = read_task(path)
    assert task.pool[0].text == f"Say it: 0\n{SOURCES[0]}"
    assert task.pool[7].text == "Say it: 7"
    assert any("'instruction + input' is made of 'instruction' and" in note for note in task.notes)
    assert task.columns is not None
    again = read_rows(path, kind="generation", text=task.columns.text)
    assert [row.text for row in again] == [row.text for row in task.pool]
    assert read_rows(path, kind="generation")[0].text == task.pool[0].text
    squad = write(tmp_path / "b.jsonl", question=["Who?"] * 8, context=SOURCES, answer=TARGETS)
    assert read_task(squad).pool[1].text == f"Who?\n{SOURCES[1]}"


@pytest.mark.parametrize(
    ("role", "content", "names"), [("role", "content", "user assistant system"), ("from", "value", "human gpt system")]
)
def test_the_last_answer_of_a_conversation_is_the_target(tmp_path, role, content, names):
    user, answer, system = names.split()

    def turn(who: str, text: str) -> dict[str, str]:
        return {role: who, content: text}

    short = [[turn(user, source), turn(answer, target)] for source, target in zip(SOURCES[:4], TARGETS, strict=False)]
    long = [[turn(system, "Be brief."), turn(user, s), turn(answer, "No."), turn(user, "?"), turn(answer, t)]
            for s, t in zip(SOURCES[4:], TARGETS[4:], strict=True)]  # fmt: skip
    path = write(tmp_path / "data.jsonl", messages=[*short, *long])
    task = read_task(path)
    assert (task.kind, task.pool[0].text, task.pool[0].references) == ("generation", SOURCES[0], (TARGETS[0],))
    assert task.pool[7].text == f"{system}: Be brief.\n{user}: {SOURCES[7]}\n{answer}: No.\n{user}: ?"
    assert task.pool[7].references == (TARGETS[7],)
    assert any("the last answer in 'messages'" in note for note in task.notes)
    open_ended = write(tmp_path / "new.jsonl", messages=[one[:1] for one in short])
    assert [row.text for row in read_rows(open_ended, kind="generation")] == SOURCES[:4]
    broken = write(tmp_path / "broken.jsonl", messages=[short[0], [{"role": "user"}]])
    with pytest.raises(DataError, match=r"broken\.jsonl:2: expected turns with a role and a content in 'messages'"):
        read_task(broken)
    unanswered = write(tmp_path / "unanswered.jsonl", messages=[short[0], short[1][:1]])
    with pytest.raises(DataError, match=r"without a reference in 'messages: answer', found 1 \(line 2\)"):
        read_task(unanswered)


def test_turns_in_place_of_texts_are_read_as_texts(tmp_path):
    prompts = [[{"role": "user", "content": source}] for source in SOURCES]
    answers = [[{"role": "assistant", "content": target}] for target in TARGETS]
    task = read_task(write(tmp_path / "data.jsonl", prompt=prompts, completion=answers))
    assert (task.kind, task.pool[0].text, task.pool[0].references) == ("generation", SOURCES[0], (TARGETS[0],))


def test_what_could_be_written_is_asked_about(tmp_path):
    two = write(tmp_path / "two.jsonl", en=SOURCES, de=TARGETS)
    with pytest.raises(DataError, match=r"--text en\|de; .* --kind generation --text en --label de"):
        read_task(two)
    assert read_task(two, kind="generation", text="en", label="de").pool[0].references == (TARGETS[0],)
    dolly = write(
        tmp_path / "d.jsonl", instruction=SOURCES, context=[""] * 8, response=TARGETS, category=["a", "b"] * 4
    )
    with pytest.raises(DataError, match="to write texts: --kind generation"):
        read_task(dolly)
    assert read_task(dolly, kind="generation").pool[0].text == SOURCES[0]
    with pytest.raises(DataError, match="to write it for the other: --kind generation --label reply"):
        read_task(write(tmp_path / "text.jsonl", text=SOURCES, reply=TARGETS))


@pytest.mark.parametrize("names", [("reference1", "reference2"), ("target_1", "target_2"), ("ref 1", "ref 2")])
def test_numbered_references_belong_to_one_record(tmp_path, names):
    second = [f"Another text {i}." for i in range(7)] + [""]
    task = read_task(write(tmp_path / "data.jsonl", **{"source": SOURCES, names[0]: TARGETS, names[1]: second}))
    assert task.pool[0].references == (TARGETS[0], second[0])
    assert task.pool[7].references == (TARGETS[7],)
    assert any(f"{names[0]!r}, {names[1]!r} as the references of one record" in note for note in task.notes)


def test_references_in_one_cell_are_taken_apart_and_said(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("source,references\n" + "".join(f"source {i},one {i}. || two {i}.\n" for i in range(4)))
    task = read_task(path)
    assert task.pool[2].references == ("one 2.", "two 2.")
    assert any("4 hold several references with '||' between them" in note for note in task.notes)
    code = tmp_path / "code.csv"
    code.write_text("source,reference\n" + "".join(f"or of {i},a{i} || b{i}\n" for i in range(4)))
    assert read_task(code).pool[0].references == ("a0 || b0",)


def test_test_rows_of_generation_count_once(tmp_path):
    pool = write(tmp_path / "pool.jsonl", prompt=SOURCES, completion=TARGETS)
    rows = {"prompt": ["New source here", "new  SOURCE here", "Other one"], "completion": ["A text.", "B text.", "C."]}
    task = read_task(pool, test=write(tmp_path / "test.jsonl", **rows))
    assert task.test is not None and len(task.test) == 2
    assert "n = 2 distinct test texts: 1 repeat was left out, since a text counts once" in task.notes
    assert task.test._examples[0].references == ("A text.", "B text.")
