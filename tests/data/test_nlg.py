"""Releases of data-to-text: their files, forms and counts, and what one gives away about another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data import nlg
from handful.data.files import read_folder
from handful.data.linearise import LINEARISATIONS, meaning_text, parse_meaning, parse_source, pipes
from handful.data.nlg import DART_PARTITIONS, RELEASES, read_nlg
from handful.data.open import open_task
from handful.data.overlap import overlap, refuse_another_task
from handful.data.task import Example, Task, TestRows, overlap_keys
from handful.errors import ConfigError, DataError

MEANING = "name[Blue Spice], eatType[coffee shop], area[city centre]"
TRIPLES = [("250_Delaware_Avenue", "floorArea", '"30843.8"'), ("Buffalo,_New York", "leaderTitle", "Mayor (of [it])")]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("pipes", "250 Delaware Avenue | floorArea | 30843.8 && Buffalo, New York | leaderTitle | Mayor (of [it])"),
        ("colons", "250 Delaware Avenue : floorArea : 30843.8 | Buffalo, New York : leaderTitle : Mayor (of [it])"),
        (
            "colons-lower",
            "250 Delaware Avenue : floorarea : 30843.8 | Buffalo, New York : leadertitle : Mayor (of [it])",
        ),
        (
            "head-relation-tail",
            "<H> 250 Delaware Avenue <R> floor area <T> 30843.8 "
            "<H> Buffalo, New York <R> leader title <T> Mayor (of [it])",
        ),
        (
            "subject-predicate-object",
            "<S> 250 Delaware Avenue <P> floorArea <O> 30843.8 "
            "<S> Buffalo, New York <P> leaderTitle <O> Mayor (of [it])",
        ),
        (
            "dart-upstream",
            "<H> 250_Delaware_Avenue <R> floorarea <T> 30843.8 <H> Buffalo_New York <R> leadertitle <T> Mayor of it",
        ),
    ],
)
def test_forms_of_triples(form, text):
    assert LINEARISATIONS[form](TRIPLES) == text


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("raw", MEANING),
        ("slots", "name : Blue Spice | Type : coffee shop | area : city centre"),
        ("pipes", "Blue Spice | area | city centre && Blue Spice | eatType | coffee shop"),
        ("colons", "Blue Spice : area : city centre | Blue Spice : eatType : coffee shop"),
    ],
)
def test_forms_of_meanings(form, text):
    assert meaning_text(MEANING, form) == text


plain = st.text("abc XYZé0-,'()|&_", min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(plain, plain, plain), min_size=1))
def test_pipes_can_be_read_back(triples):
    text = pipes(triples)
    found = parse_source(text)
    assert len(found) == len(triples)
    assert pipes(found) == text


def test_what_separates_entities_does_not_stand_in_one():
    assert pipes([("AC | DC", "R&B", "a && b || c")]) == "AC / DC | R&B | a & b || c"


def test_other_sources_have_no_triples():
    assert parse_source("write about a pub") == parse_meaning("name[x] and more") == parse_meaning("name[x") == []
    assert parse_source(MEANING) == parse_source(meaning_text(MEANING, "pipes"))
    assert meaning_text("name[Aromi]", "pipes") == "Aromi | name | Aromi"


@pytest.mark.parametrize("part", ["pool", "test"])
def test_real_sources_are_our_default_form(shared_data, part):
    for line in (shared_data / "nlg" / "e2e" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert meaning_text(row["mr"], "pipes") == row["source"]
    for line in (shared_data / "nlg" / "webnlg" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
        source = json.loads(line)["source"]
        assert pipes(parse_source(source)) == source


def entry(number: int, source: str = "good") -> str:
    return f"""<entry category="Food" eid="{number}"><originaltripleset><otriple>a | b | c</otriple></originaltripleset>
    <modifiedtripleset><mtriple>Dish_{number} | country | Spain</mtriple></modifiedtripleset>
    <lex comment="{source}" lid="1">Dish {number} comes from sunny Spain, they say.</lex>
    <lex comment="WikiSQL_lily" lid="2"> Spain has dish {number}. </lex></entry>"""


def xml(*entries: str) -> str:
    return f"<benchmark><entries>{''.join(entries)}</entries></benchmark>"


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """A folder with tiny files in the layout of each release, and counts to match."""
    (tmp_path / "trainset.csv").write_text(f'mr,ref\n"{MEANING}",One.\nname[Aromi],Two.\n"{MEANING}",Three.\n')
    (tmp_path / "testset_w_refs.csv").write_text("mr,ref\nname[Zizzi],Four.\n")
    for part, number in (("train", 1), ("dev", 3)):
        (tmp_path / part / "1triples").mkdir(parents=True)
        (tmp_path / part / "1triples" / "Food.xml").write_text(xml(entry(number), entry(number + 1)))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "rdf-to-text-generation-test-data-with-refs-en.xml").write_text(xml(entry(9)))
    notes = [
        {"source": "e2e", "text": "A long text out of the other data set."},
        {"source": "WikiSQL_lily", "text": "B."},
    ]
    dart = [{"tripleset": [["A", "B C", "D"]], "annotations": notes}]
    dart.append({"tripleset": [["E", "F", "G"]], "annotations": notes[:1]})
    (tmp_path / "dart-v1.1.1-full-dev.json").write_text(json.dumps(dart))
    (tmp_path / "dart-v1.1.1-full-test.xml").write_text(xml(entry(5, "webnlg")))
    counts = {
        "e2e": {"pool": (2, 3), "test": (1, 1)},
        "webnlg": {"pool": (2, 4), "dev": (2, 4), "test": (1, 2)},
        "dart": {"dev": (2, 3), "test": (1, 2)},
    }
    small = {name: replace(release, counts=counts[name]) for name, release in RELEASES.items()}
    monkeypatch.setattr(nlg, "RELEASES", small)
    return tmp_path


def test_e2e_rows_of_one_meaning_are_one_record(releases):
    task = open_task(f"e2e:{releases}")
    assert (task.name, task.kind, task.metric, len(task.test or ())) == ("e2e", "generation", "bleu-e2e", 1)
    assert [row.references for row in task.pool] == [("One.", "Three."), ("Two.",)]
    assert task.pool[0].text == "Blue Spice | area | city centre && Blue Spice | eatType | coffee shop"
    assert open_task(f"e2e:{releases}", linearisation="raw").pool[0].text == MEANING
    assert open_task(f"e2e:{releases}", metric="chrf++").metric == "chrf++"


def test_webnlg_reads_modified_triples(releases):
    task = read_nlg("webnlg", releases)
    assert (task.metric, len(task.pool), len(task.dev or ()), len(task.test or ())) == ("bleu-webnlg20", 2, 2, 1)
    references = ("Dish 1 comes from sunny Spain, they say.", "Spain has dish 1.")
    assert task.pool[0] == Example("Dish 1 | country | Spain", source="Food.xml:entry 1", references=references)


def test_counts_are_those_of_the_official_releases():
    """As counted when the releases were looked into: records and references of each part."""
    assert {name: release.counts for name, release in RELEASES.items()} == {
        "e2e": {"pool": (4_862, 42_061), "dev": (547, 4_672), "test": (630, 4_693)},
        "webnlg": {"pool": (13_211, 35_426), "dev": (1_667, 4_464), "test": (1_779, 5_150)},
        "dart": {"dev": (2_768, 6_980), "test": (5_097, 12_552)},  # its training file could not be counted
    }


@pytest.mark.parametrize("name", ["e2e", "webnlg"])
def test_real_test_rows_are_as_many_as_the_release_has(shared_data, name):
    test = read_folder(shared_data / "nlg" / name).test
    assert test is not None
    assert (len(test), sum(len(row.references) for row in test._examples)) == RELEASES[name].counts["test"]


def test_dart_without_its_training_file(releases):
    task = read_nlg("dart", releases)
    assert (task.metric, len(task.pool), task.dev) == ("bleu-dart", 2, None)
    assert task.pool[0].text == "A | B C | D"
    assert any("development file" in note for note in task.notes)
    manual = read_nlg("dart", releases, partition="manual")
    assert [row.references for row in manual.pool] == [("B.",)]
    assert manual.test is not None
    assert [row.references for row in manual.test._examples] == [("Spain has dish 5.",)]
    assert DART_PARTITIONS["no_overlap"] == DART_PARTITIONS["manual_and_auto"]


@pytest.mark.parametrize("dataset", ["e2e", "webnlg"])
def test_cut_copies_are_refused(releases, dataset):
    file = releases / ("trainset.csv" if dataset == "e2e" else "train/1triples/Food.xml")
    file.write_text("mr,ref\nname[Aromi],Two.\n" if dataset == "e2e" else xml(entry(1)))
    with pytest.raises(DataError, match=r"expected 2 records with .* references in the pool part of .*, found 1 with"):
        read_nlg(dataset, releases)
    assert len(read_nlg(dataset, releases, complete=False).pool) == 1


def test_wrong_options_and_files(releases):
    for options, message in (
        ({"dataset": "webnlgg"}, "did you mean 'webnlg'"),
        ({"dataset": "dart", "partition": "manul"}, "did you mean 'manual'"),
        ({"dataset": "e2e", "partition": "manual"}, "e2e has none"),
        ({"dataset": "webnlg", "linearisation": "pipe"}, "did you mean 'pipes'"),
        ({"dataset": "e2e", "linearisation": "rw"}, "did you mean 'raw'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_nlg(folder=releases, **options)
    (releases / "train" / "1triples" / "Food.xml").write_text("<benchmark>")
    with pytest.raises(DataError, match=r"Food\.xml: expected XML"):
        read_nlg("webnlg", releases)
    (releases / "dart-v1.1.1-full-dev.json").write_text('[{"tripleset": [["a", "b"]]}]')
    with pytest.raises(DataError, match="entry 1: expected a triple"):
        read_nlg("dart", releases)
    (releases / "dart-v1.1.1-full-dev.json").write_text('{"tripleset": 1}')
    with pytest.raises(DataError, match="expected a list of entries with 'tripleset' and 'annotations'"):
        read_nlg("dart", releases)
    (releases / "testset_w_refs.csv").unlink()
    with pytest.raises(DataError, match=r"expected testset_w_refs\.csv, found none"):
        read_nlg("e2e", releases)


def made(name: str, pool: range, test: range, form: str = "{} | has | value") -> Task:
    def row(number: int) -> Example:
        texts = (f"Number {number} has a value of its own here.", "Yes.")
        return Example(form.format(number), references=texts)

    return Task(name, "generation", (), "bleu", tuple(map(row, pool)), TestRows([row(number) for number in test]))


def keys(task: Task) -> set[bytes]:
    return {key for row in task.pool for key in overlap_keys(row)}


def test_the_guard_trips_on_dart_before_e2e():
    dart, e2e = made("dart", range(200), range(0), "D {}"), made("e2e", range(100, 300), range(150, 170))
    found = overlap("dart", keys(dart), e2e)
    assert (found.pool, found.pool_rows, found.test, found.test_rows, found.share) == (100, 200, 20, 20, 1.0)
    with pytest.raises(DataError, match=r"seen test rows: dart holds 100 of the 200 .* 20 of its 20 test rows"):
        refuse_another_task("dart", keys(dart), e2e)
    untested = made("e2e", range(100, 300), range(900, 920))
    with pytest.raises(DataError, match=r"another task .*: dart holds 100 of the 200 .* 0 of its 20") as refused:
        refuse_another_task("dart", keys(dart), untested)
    assert "no_overlap" in str(refused.value)


def test_a_row_in_a_hundred_may_be_chance():
    target = made("e2e", range(1000), range(2000, 2100))
    assert refuse_another_task("other", keys(made("", range(991, 1100), range(0))), target).pool == 9
    assert refuse_another_task("other", keys(made("", range(2099, 2100), range(0))), target).test == 1
    with pytest.raises(DataError, match="holds 0 of the 1,000 training rows of e2e and 2 of its 100 test rows"):
        refuse_another_task("other", keys(made("", range(2098, 2100), range(0))), target)
    with pytest.raises(DataError, match="holds 11 of the 1,000"):
        refuse_another_task("other", keys(made("", range(989, 1100), range(0))), target)


def test_real_tasks_do_not_overlap(shared_data):
    e2e, webnlg = (open_task(shared_data / "nlg" / name) for name in ("e2e", "webnlg"))
    assert refuse_another_task("e2e", keys(e2e), webnlg).share == 0
    assert refuse_another_task("webnlg", keys(webnlg), e2e).share == 0
    with pytest.raises(DataError, match="holds 2,000 of the 2,000"):
        refuse_another_task("e2e", keys(e2e), e2e)
