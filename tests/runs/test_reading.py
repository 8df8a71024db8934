"""Sentences on what a run reads of its texts, from the "rows" of its record."""

from __future__ import annotations

from handful.runs.reading import cut_sentences, dropped_sentences, unknown_sentences

ROWS = {"train": 16, "dev": 4, "test": 8, "max_length": 128, "truncated": {"train": 3, "dev": 0, "test": 1}}


def test_cut_texts_come_with_the_length_that_cuts_none_or_fewer():
    (known,) = cut_sentences({**ROWS, "longest": 346, "most_tokens": 512})
    assert known == (
        "3 of 16 train texts, 1 of 8 test texts were cut to 128 tokens: the longest has 346, and --set "
        "run.max_length=346 cuts none"
    )
    (longer,) = cut_sentences({**ROWS, "longest": 900, "most_tokens": 512})
    assert longer.endswith("the longest has 900, of which the model can read 512: --set run.max_length=512")
    (most,) = cut_sentences({**ROWS, "max_length": 512, "longest": 900, "most_tokens": 512})
    assert most.endswith("the longest has 900, and the model can read no more") and "--set" not in most
    assert cut_sentences({**ROWS, "truncated": {"train": 0}, "longest": 9, "most_tokens": 512}) == []


def test_records_of_older_versions_say_what_they_know():
    assert cut_sentences(ROWS) == ["3 of 16 train texts, 1 of 8 test texts were cut to 128 tokens"]
    assert unknown_sentences(ROWS) == [] and dropped_sentences({**ROWS, "dropped_duplicates": 0}) == []


def test_reasons_for_dropped_rows_are_told_apart():
    counts = {"dropped_duplicates": 1, "dropped_contradictions": 2, "dropped_overlap": 1300}
    assert dropped_sentences({**ROWS, **counts}) == [
        "1 row was left out: it repeated another row",
        "2 rows were left out: they had another label than the same text elsewhere",
        "1,300 rows were left out: they stood in the test or development rows too",
    ]


def test_what_is_unknown_is_summed_over_all_parts():
    part = {"tokens": 10, "unknown": 3, "rows": 4, "without_token": 0, "all_unknown": 0}
    (line,) = unknown_sentences({**ROWS, "coverage": {"train": part, "test": {**part, "unknown": 0}}})
    assert line.startswith("15% of the tokens of 8 texts are unknown")
