"""Metrics of written texts: equal to the official scripts, worked by hand, and with intervals over records."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import replace
from importlib.util import find_spec
from math import exp
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from handful.data.files import read_folder
from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError, DataError
from handful.evaluation.estimate import Estimate, bootstrap_score, wilson
from handful.evaluation.metrics import METRICS, check_metric, get_metric, score
from handful.evaluation.text import overlap_scores
from handful.evaluation.text.content_scores import SlotError, missing_entities, slot_errors
from handful.evaluation.text.metrics import GENERATION_METRICS, check_writing, usual_metrics
from handful.evaluation.text.overlap_scores import longest_common_subsequence, penn_tokens, split_dart

NAMES = [metric.name for metric in GENERATION_METRICS]
OFFICIAL = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "java_scores.py"))
NO_JAVA = shutil.which("java") is None or find_spec("pycocoevalcap") is None
needs_java = pytest.mark.skipif(NO_JAVA, reason="needs Java and the package pycocoevalcap")

SOURCE = "Aromi | area | riverside && Aromi | eatType | pub && Aromi | food | Italian"
RECORDS = [
    Example(SOURCE, references=("Aromi is an Italian pub by the river.", "The pub Aromi is Italian and riverside.")),
    Example("Zizzi | area | city centre && Zizzi | eatType | pub", references=("Zizzi is a pub in the city centre.",)),
    Example(
        "Cotto | eatType | coffee shop && Cotto | near | The Portland Arms",
        references=("Cotto is a coffee shop near The Portland Arms.", "Near The Portland Arms is Cotto.", "Cotto!"),
    ),
]
TEXTS = [
    "Aromi is an italian pub at the riverside.",
    "Zizzi is a pub in the city centre.",
    "Near The Portland Arms stands Cotto.",
]

words = st.lists(st.sampled_from(["the", "a", "pub", "cat", "sat", ".", ",", "The"]), max_size=12).map(" ".join)
corpora = st.lists(st.tuples(words, st.lists(words.filter(str.strip), min_size=1, max_size=4)), min_size=1, max_size=5)


def made(*references: str, text: str = "s") -> Example:
    return Example(text, references=references)


# ------------------------------------------------------------------------------------------------ BLEU and chrF++


@given(corpora)
@pytest.mark.parametrize(("name", "lowercase"), [("bleu", False), ("bleu-e2e", True)])
def test_bleu_is_sacrebleu_set_like_the_official_script(name, lowercase, corpus):
    texts, records = [text for text, _ in corpus], [made(*references) for _, references in corpus]
    width = max(len(record.references) for record in records)
    streams = [[(*record.references, *[None] * width)[place] for record in records] for place in range(width)]
    expected = sacrebleu.BLEU(lowercase=lowercase, force=True).corpus_score(texts, streams).score
    assert score(name, texts, records) == pytest.approx(min(expected, 100))


@given(corpora)
def test_chrf_is_sacrebleu(corpus):
    texts, records = [text for text, _ in corpus], [made(*references) for _, references in corpus]
    width = max(len(record.references) for record in records)
    streams = [[(*record.references, *[None] * width)[place] for record in records] for place in range(width)]
    expected = sacrebleu.CHRF(word_order=2).corpus_score(texts, streams).score
    assert score("chrf++", texts, records) == pytest.approx(expected)


def test_case_counts_in_one_variant_and_not_in_the_other():
    texts, records = ["the PUB is by the river"], [made("The pub is by the River")]
    assert score("bleu-e2e", texts, records) == pytest.approx(100)
    assert score("bleu", texts, records) < 50
    assert score("bleu-e2e", ["under Ł20 at the CafÃ© now"], [made("under £20 at the café now")]) == pytest.approx(100)


def test_blank_references_by_hand():
    """Three references wanted, one there: the text of 5 tokens is as near to a blank (5) as to one of 10 (5)."""
    texts, records = ["a b c d e"], [made("a b c d e f g h i j")]
    assert score("bleu-dart", texts, records) == pytest.approx(100)  # the shorter one of equally near ones: no brevity
    assert score("bleu-dart-no-blanks", texts, records) == pytest.approx(100 * exp(1 - 10 / 5))
    assert score("bleu-webnlg20", texts, records) == pytest.approx(100)
    five = [made(*["a b c d e f g h i j"] * 5)]
    assert score("bleu-webnlg20", texts, five) == pytest.approx(100 * exp(1 - 10 / 5))


def test_dart_reads_three_references_split_and_in_lower_case():
    assert split_dart("It's A-B, the (£30) x_y.") == "it ' s a - b , the ( £ 30 ) x_y ."
    unread = [made("q r s t", "u v w x", "y z q r", "one two three four")]
    assert score("bleu-dart", ["one two three four"], unread) == 0
    assert score("bleu-dart", ["One TWO, three!"], [made("one two , three !")]) == pytest.approx(100)


def test_dart_has_no_smoothing():
    assert score("bleu-dart", ["a b x c d"], [made("a b y c d", "a b y c d", "a b y c d")]) == 0
    assert score("bleu", ["a b x c d"], [made("a b y c d")]) > 0


# -------------------------------------------------------------------------------------------------------- ROUGE-L


def test_rouge_takes_the_best_precision_and_the_best_recall_of_different_references():
    """`a b c d` against `a b` (P 1/2, R 1) and `a x b y c z` (P 3/4, R 1/2): P = 3/4, R = 1."""
    expected = (1 + 1.44) * 0.75 * 1 / (1 + 1.44 * 0.75)
    assert score("rouge-l", ["a b c d"], [made("a b", "a x b y c z")]) == pytest.approx(expected)
    best_of_one = max(score("rouge-l", ["a b c d"], [made(text)]) for text in ("a b", "a x b y c z"))
    assert best_of_one < expected


@given(st.lists(st.sampled_from("abcd"), max_size=9), st.lists(st.sampled_from("abcd"), max_size=9))
def test_longest_common_subsequence(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(a, b) == table[-1, -1]


def test_penn_tokens():
    text = (
        "It's a family-friendly pub (under £20.50), isn't it? They cannot eat at 3.30... \"Great\" -- 'No.' -5 Mr. U.S."
    )
    assert penn_tokens(text) == [
        "it",
        "'s",
        "a",
        "family-friendly",
        "pub",
        "(",
        "under",
        "#",
        "20.50",
        ")",
        "is",
        "n't",
        "it",
        "they",
        "can",
        "not",
        "eat",
        "at",
        "3.30",
        "great",
        "no",
        "-5",
        "mr.",
        "u.s.",
    ]


# ------------------------------------------------------------------------------------------------- what was said


def test_slot_errors():
    meaning = "name[Aromi], eatType[pub], food[Italian], priceRange[cheap], familyFriendly[no], near[Café Rouge]"
    assert slot_errors("Aromi is a cheap Italian pub near Cafe Rouge. It is not family-friendly.", meaning) == []
    assert slot_errors("The French pub is cheap, for families, and by the river.", meaning) == [
        SlotError("name", "Aromi", "missing"),
        SlotError("near", "Café Rouge", "missing"),
        SlotError("food", "Italian", "wrong"),
        SlotError("area", "riverside", "added"),
        SlotError("familyFriendly", "no", "wrong"),
    ]
    assert slot_errors("Cottontail is a pub.", "name[Cotto], eatType[pub]") == [SlotError("name", "Cotto", "missing")]
    assert slot_errors("At Bar £5+, near X!'s pub", "name[Bar £5+], near[the X!], eatType[pub]") == []
    assert slot_errors("Zizzi, a restaurant", "Zizzi | area | riverside") == [SlotError("area", "riverside", "missing")]


@pytest.mark.parametrize(
    ("slot", "value", "text"),
    [
        ("priceRange", "less than £20", "under £20"), ("priceRange", "£20-25", "costs £20-25"),
        ("priceRange", "more than £30", "more than £30"), ("priceRange", "high", "is expensive"),
        ("priceRange", "moderate", "moderately priced"), ("priceRange", "cheap", "inexpensive"),
        ("customer rating", "5 out of 5", "rated 5 out of 5"), ("customer rating", "high", "a high customer rating"),
        ("customer rating", "1 out of 5", "a one star place"), ("customer rating", "average", "average reviews"),
        ("familyFriendly", "yes", "kids are welcome"), ("familyFriendly", "no", "isn't child friendly"),
        ("familyFriendly", "no", "for adults only"), ("area", "city centre", "in the center of the city"),
        ("eatType", "coffee shop", "a coffee shop"), ("food", "Fast food", "fast-food"),
    ],
)  # fmt: skip
def test_ways_to_say_a_value(slot, value, text):
    assert slot_errors(f"Aromi: {text}.", f"name[Aromi], {slot}[{value}]") == []
    assert slot_errors("Aromi.", f"name[Aromi], {slot}[{value}]") == [SlotError(slot, value, "missing")]


def test_entities():
    source = (
        "Elliot See | birthDate | 1927-07-23 && Elliot See | almaMater | University (Texas) && Café X | area | 2500.0"
    )
    assert missing_entities("Elliot See, born on July 23, 1927, went to University. Cafe X has 2,500 m.", source) == []
    assert missing_entities("Elliot See, born in 1927, left university.", source) == ["1927-07-23", "Café X", "2500.0"]
    records = [made("x", text=source), made("x", text="Rome | in | Italy")]
    assert score("entity-coverage", ["Elliot See", "Rome"], records) == pytest.approx(2 / 7)


def test_sources_that_say_nothing_are_refused():
    for name, source in (("slot-error", "Rome | country | Italy"), ("entity-coverage", "write a poem")):
        with pytest.raises(DataError, match=r"expected (a meaning of E2E|triples)"):
            score(name, ["text"], [made("x", text=source)])


# ----------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_over_records_and_repeatable(name):
    texts, records = TEXTS * 5, RECORDS * 5
    first, second, other = (
        bootstrap_score(name, texts, records, generator=np.random.default_rng(seed), resamples=200)
        for seed in (1, 1, 2)
    )
    metric = METRICS[name]
    assert isinstance(first, Estimate) and first == second
    still = ("exact-match", "entity-coverage", "slot-error")  # from a formula, or of small whole numbers
    assert first != other or name in still
    assert first.mean == pytest.approx(score(name, texts, records)) == pytest.approx(score(name, TEXTS, RECORDS))
    assert metric.range[0] <= first.low <= first.mean <= first.high <= metric.range[1]  # type: ignore[operator]
    assert first.n == 15
    alone = bootstrap_score(name, texts[:1], records[:1], generator=np.random.default_rng(0))
    assert (alone.low is None) == (name != "exact-match")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_text_is_the_worst_one(name):
    metric, empty = METRICS[name], score(name, ["", "", ""], RECORDS)
    assert empty == (1 if name == "slot-error" else 0)
    assert (score(name, TEXTS, RECORDS) > empty) == metric.higher_is_better


def test_signatures_tell_variants_apart():
    signatures = {metric.name: metric.signature() for metric in GENERATION_METRICS if metric.signature}
    assert len(set(signatures.values())) == len(signatures) == len(GENERATION_METRICS)
    assert signatures["bleu-e2e"].startswith(
        "nrefs:all|blanks:dropped|case:lc|prepare:repaired_e2e|eff:no|tok:13a|smooth:exp"
    )
    assert "blanks:kept to 3" in signatures["bleu-dart"]
    assert f"version:{sacrebleu.__version__}" in signatures["chrf++"]


def test_wrong_rows_and_names():
    with pytest.raises(ConfigError, match=r"found 'bleu-webnlg'\n\nhint: did you mean 'bleu-webnlg20'"):
        get_metric("bleu-webnlg")
    with pytest.raises(
        ConfigError, match=r"for generation tasks, found 'accuracy'(?s:.*)for generation: bleu, bleu-e2e"
    ):
        check_metric("accuracy", "generation", 0)
    with pytest.raises(ConfigError, match="for classification tasks, found 'bleu', which is for generation"):
        check_metric("bleu", "classification", 2)
    with pytest.raises(DataError, match="expected a target for every prediction, found 1 and 3 rows"):
        score("bleu", ["a"], RECORDS)
    with pytest.raises(DataError, match="expected a record with references"):
        score("bleu", ["a"], [Example("a")])
    with pytest.raises(DataError, match="expected a written text, found 3 in row 0"):
        score("bleu", [3], RECORDS[:1])


def test_what_is_missing_is_said_before_training(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(overlap_scores, "import_module", absent)
    with pytest.raises(
        ConfigError, match=r"'sacrebleu', which is not installed\n\nhint: pip install 'handful\[generation\]'"
    ):
        check_metric("bleu", "generation", 0)
    assert check_metric("rouge-l", "generation", 0).name == "rouge-l"
    with pytest.raises(ConfigError, match="'sacrebleu', which is not installed"):  # for chrF++, which is always beside
        check_writing(Task("e2e", "generation", (), "rouge-l", tuple(RECORDS)))


@pytest.mark.parametrize("name", ["meteor", "meteor-e2e", "cider-e2e"])
def test_a_retired_metric_is_read_and_not_computed(name):
    metric = get_metric(name)
    assert metric.higher_is_better and metric.range[0] == 0 and name not in METRICS
    for use in (
        lambda: check_metric(name, "generation", 0),
        lambda: check_writing(Task("t", "generation", (), name, tuple(RECORDS))),
        lambda: score(name, TEXTS, RECORDS),
    ):
        with pytest.raises(
            ConfigError, match=rf"'{name}' is no longer computed(?s:.*)score with chrf\+\+, rouge-l or bleu"
        ):
            use()


def test_usual_metrics_fit_the_sources_of_all_records():
    triples, free = made("x", text="Rome | country | Italy"), made("x", text="write")
    assert usual_metrics("bleu-e2e", RECORDS) == ("bleu-e2e", "chrf++", "rouge-l", "slot-error")
    assert usual_metrics("chrf++", [triples]) == ("chrf++", "rouge-l", "entity-coverage")
    assert usual_metrics("bleu-e2e", [free]) == usual_metrics("bleu-e2e", [triples, free])
    assert usual_metrics("bleu-e2e", [free]) == ("bleu-e2e", "chrf++", "rouge-l")


def test_a_metric_of_sources_is_refused_before_training_where_one_cannot_be_read():
    task = Task("t", "generation", (), "slot-error", (*RECORDS, replace(made("x", text="write"), source="f.csv:9")))
    with pytest.raises(DataError, match=r"metric 'slot-error': f\.csv:9: expected a meaning of E2E"):
        check_writing(task)
    check_writing(replace(task, metric="bleu"))
    closed = replace(task, pool=tuple(RECORDS), test=TestRows(task.pool))
    with pytest.raises(DataError, match=rf"cannot read the sources of 1 of the {len(task.pool)} test rows"):
        check_writing(closed)
    check_writing(replace(closed, metric="bleu"))
    check_writing(replace(task, pool=tuple(RECORDS)))


def test_sources_that_look_like_others():
    assert missing_entities("Foo", "Foo | name | Bar [2]") == ["Bar [2]"]
    assert missing_entities("Foo in 3.", "[TABLECONTEXT] | name | Foo && Foo | rank | 3") == []
    assert [error.slot for error in slot_errors("A cheap pub.", "eatType[pub], priceRange[cheap]")] == []


# ----------------------------------------------------------------------------------------------- official programs


@pytest.fixture(scope="module")
def held_out_references(shared_data):
    """The first reference of E2E's test records as if it had been written, and the records without it."""
    test = read_folder(shared_data / "nlg" / "e2e").test
    assert test is not None
    rows = [row for row in test._examples if len(row.references) > 1]
    return [row.references[0] for row in rows], [replace(row, references=row.references[1:]) for row in rows]


def test_measured_on_real_references(held_out_references):
    """Values of the same texts by sacrebleu 2.6.0, multi-bleu.perl (bleu-dart) and coco-caption with Java (rouge-l)."""
    measured = {
        name: score(name, *held_out_references) for name in ("bleu", "bleu-e2e", "bleu-dart", "chrf++", "rouge-l")
    }
    expected = {"bleu": 58.851, "bleu-e2e": 60.456, "bleu-dart": 49.562, "chrf++": 72.153, "rouge-l": 0.638113}
    assert measured == pytest.approx(expected, rel=1e-5)


@needs_java
def test_rouge_and_tokens_equal_those_of_coco_caption(held_out_references):
    from pycocoevalcap.rouge.rouge import Rouge

    texts, records = (rows[:150] for rows in held_out_references)
    written, references = OFFICIAL["_tokenised"](texts, records)
    brackets = [text.replace("-lrb-", "(").replace("-rrb-", ")") for text in written]
    assert [" ".join(penn_tokens(text)) for text in texts] == brackets
    official, _ = Rouge().compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(written)})
    assert score("rouge-l", texts, records) == pytest.approx(official, abs=1e-4)
    assert OFFICIAL["score"]("CIDEr, as E2E", texts, records) > 1


@needs_java
@pytest.mark.slow
def test_meteor_of_sums_is_meteor_of_all_texts():
    from pycocoevalcap.meteor.meteor import Meteor

    official = Meteor()
    expected, _ = official.compute_score(
        {i: list(record.references) for i, record in enumerate(RECORDS)}, {i: [text] for i, text in enumerate(TEXTS)}
    )
    official.meteor_p.stdout.close()
    official.meteor_p.stderr.close()
    assert OFFICIAL["score"]("METEOR", TEXTS, RECORDS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "system", "metric", "official"),
    [
        ("e2e", "tgen", "bleu-e2e", 65.93), ("e2e", "slug", "bleu-e2e", 66.19), ("e2e", "tuda", "bleu-e2e", 56.57),
        ("e2e", "tr2", "bleu-e2e", 42.02), ("e2e", "dangnt", "bleu-e2e", 59.90),
        ("e2e", "tgen", "rouge-l", 0.6850), ("e2e", "slug", "rouge-l", 0.6772),
        ("webnlg", "amazon", "bleu-webnlg20", 53.98), ("webnlg", "amazon", "chrf++", 68.96),
        ("webnlg", "osu", "bleu-webnlg20", 53.54), ("webnlg", "bt5", "bleu-webnlg20", 51.74),
        ("webnlg", "forge2020", "bleu-webnlg20", 40.57), ("webnlg", "forge2020", "chrf++", 62.15),
        ("dart", "bart-large", "bleu-dart", 48.56), ("dart", "bart-large", "bleu-dart-no-blanks", 47.59),
    ],
)  # fmt: skip
def test_official_figures_of_public_outputs(shared_data, task, system, metric, official):
    """One text a line, in the order of the test records. The outputs have no licence to be copied by."""
    file = shared_data / "nlg" / "outputs" / task / f"{system}.txt"
    if not file.is_file():
        pytest.skip(
            f"needs {task}/{system}.txt in ../shared/data/nlg/outputs, which HANDFUL_REQUIRE_SHARED cannot ask for"
        )
    test = read_folder(shared_data / "nlg" / task).test
    assert test is not None
    texts = file.read_text(encoding="utf-8").splitlines()
    assert score(metric, texts, test._examples) == pytest.approx(official, abs=0.01 if official > 1 else 2e-4)


def test_exact_match_counts_whole_texts_whatever_their_case():
    records = [made("Very low"), made("high", "top"), made("x")]
    assert score("exact-match", ["very  LOW", "top", "x y"], records) == pytest.approx(2 / 3)
    assert usual_metrics("exact-match", records) == ("exact-match", "rouge-l")


def test_no_error_at_all_still_has_an_interval():
    records = [made("yes")] * 10
    found = bootstrap_score("exact-match", ["yes"] * 10, records, generator=np.random.default_rng(0))
    assert found == wilson(10, 10)


@pytest.mark.parametrize("name", ["bleu-e2e", "chrf++", "rouge-l"])
def test_texts_that_all_score_alike_have_no_interval(name):
    """Resampling three zeros gives zeros: that is no certainty."""
    found = bootstrap_score(name, ["qq"] * 3, [made("it is a pub")] * 3, generator=np.random.default_rng(0))
    assert (found.mean, found.low, found.high, found.n) == (0, None, None, 3)
    apart = bootstrap_score(
        name, ["qq", "it is a pub", "it is"], [made("it is a pub")] * 3, generator=np.random.default_rng(0)
    )
    assert apart.low < apart.mean < apart.high
