"""The card: valid front matter, numbers of the record and no others, texts of the data that cannot break it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from handful.runs.card import escape, headline, run_card, untested_sentences

SCORE = {"mean": 0.8125, "low": 0.7701, "high": 0.8499, "n": 400, "level": 0.95, "method": "Wilson"}


def make_record(**changes: object) -> dict:
    """A record as `describe` makes it."""
    record = {
        "key": "abc", "created": "2031-05-06T07:08:09+00:00", "versions": {"handful": "0.1.0", "torch": "2.13.0"},
        "preset": "default", "temperature": 1.0, "notes": ["target_modules = query, value: PEFT's own choice"],
        "choices": [{"name": "training.learning_rate", "value": 0.03, "reason": "preset 'default': a search"}],
        "spec": {
            "model": "minilm", "method": {"name": "prefix-subspace", "num_vertices": 3},
            "training": {"selection": "last", "epochs": 20}, "run": {"predictor": "midpoint", "shots": 100},
        },
        "task": {
            "name": "tickets", "kind": "classification", "labels": ["yes", "no"], "metric": "accuracy",
            "origin": "tickets.csv", "notes": ["read the column 'body' as the text"],
        },
        "rows": {
            "train": 80, "dev": 20, "test": 400, "dropped_duplicates": 3, "dropped_overlap": 2,
            "truncated": {"train": 7, "dev": 0, "test": 31}, "max_length": 128, "fingerprint": "f",
        },
        "backbone": {
            "name": "minilm", "hub_name": "sentence-transformers/all-MiniLM-L6-v2", "family": "bert",
            "kind": "encoder", "pooling": "mean", "fingerprint": "0123456789abcdef", "parameters": 22_565_376,
        },
        "fit": {
            "parameters": 140_550, "steps": 120, "chosen_step": 118, "seconds": 34.56, "stopped": None,
            "scoring_seconds": 2.5, "history": [], "peak_memory_mb": 900.0,
        },
        "scores": {"accuracy": SCORE, "nll": {**SCORE, "mean": 0.5, "low": None, "high": None, "method": "one row"}},
    }  # fmt: skip
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            record[section][key] = value
        else:
            record[section] = value
    return record


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads():
    from huggingface_hub import ModelCard

    card = run_card(make_record())
    assert front_matter(card) == {
        "library_name": "handful",
        "pipeline_tag": "text-classification",
        "tags": ["handful", "few-shot", "prefix-subspace", "text-classification"],
        "metrics": ["accuracy"],
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "adapter",
        "model-index": [
            {
                "name": "tickets: prefix-subspace on minilm",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "tickets, test rows", "type": "private"},
                        "metrics": [
                            {
                                "type": "accuracy", "value": 0.8125,
                                "name": "accuracy, 95 % interval 0.770 to 0.850, 400 test rows",
                            },
                            {"type": "nll", "value": 0.5, "name": "nll, 400 test rows"},
                        ],
                    }
                ],
            }
        ],
    }  # fmt: skip
    (result, _) = ModelCard(card).data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.8125)
    assert ModelCard(card).data.to_dict()["library_name"] == "handful"


def test_a_model_in_a_folder_names_no_base_model():
    assert "base_model" not in front_matter(run_card(make_record(backbone__hub_name=None)))


def test_data_of_the_hub_are_named_and_scores_may_be_missing():
    found = front_matter(run_card(make_record(task__origin="hub:owner/tickets/en@abc123", scores={})))
    assert found["datasets"] == ["owner/tickets"]
    assert "model-index" not in found
    assert "license" not in found


def test_no_path_of_the_machine_is_on_the_card():
    card = run_card(
        make_record(
            task__origin="/home/jane/data of mine/tickets.csv, hub:owner/more@abc",
            task__notes=[
                "33 rows of '/home/jane/x/tickets.csv' were left out",
                r"read C:\Users\jane\tickets.csv, once",
            ],
            backbone__name="/home/jane/models/bert",
            backbone__hub_name=None,
            spec__model="/home/jane/models/bert",
            choices=[{"name": "run.shots", "value": 3, "reason": "the preset's, see https://example.org/a/b and 1/2"}],
        )
    )
    assert "jane" not in card
    assert r"- data: tickets.csv, hub:owner/more\@abc" in card
    assert "33 rows of 'tickets.csv' were left out" in card
    assert "# tickets: prefix-subspace on bert" in card
    assert '"model": "bert"' in card
    assert "/a/b and 1/2" in card


def test_every_number_is_the_records():
    card = run_card(make_record())
    for said in (
        "**accuracy 0.812 [0.770, 0.850] on 400 test rows**",
        "| accuracy | 0.812 | 0.770 to 0.850 | 400 rows | Wilson |",
        "| nll | 0.500 | none | 400 rows | one row |",
        "140,550 (0.62% of the model)",
        "120, weights of step 118",
        "34.6 s of training, 2.5 s of scoring",
        "80 to train, 20 to select, 400 to test",
        "7 of 80 train texts, 31 of 400 test texts were cut to 128 tokens.",
        "3 rows were left out: they repeated another row.",
        "2 rows were left out: they stood in the test or development rows too.",
        "read the column 'body' as the text",
        "target\\_modules = query, value: PEFT's own choice",
        "training.learning\\_rate = 0.03: preset 'default': a search",
        '"num_vertices": 3',
    ):
        assert said in card, said


def test_other_numbers_give_other_cards():
    plain = run_card(make_record())
    for change in (
        {"rows__train": 81}, {"fit__steps": 121}, {"temperature": 1.5}, {"fit__parameters": 7},
        {"scores": {"accuracy": {**SCORE, "mean": 0.813}}}, {"backbone__fingerprint": "f" * 64},
    ):  # fmt: skip
        assert run_card(make_record(**change)) != plain


def test_limits_say_what_lessens_the_score():
    selecting = make_record(fit__stopped="no gain on dev in 3 evaluations")
    selecting["spec"]["training"]["selection"] = "best"
    card = run_card(selecting)
    assert "The 20 development rows chose the weights" in card
    assert "Training ended early: no gain on dev in 3 evaluations" in card
    assert "development rows chose" not in run_card(make_record())
    unscored = run_card(make_record(scores={}))
    assert "Nothing is known about how good it is." in unscored
    assert headline(make_record(scores={})) == "not scored: there were no test rows"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>", "# heading", "- item", "1. item", "| cell", "`code", "```", "[a](http://b.c)",
        "**bold**", "a\n\n---\n\n# b", "![x](y)", "&lt;", "---", "www.evil.com", "\\", "\x1b[31m", "$x$", "~~x~~",
        "x" * 999,
    ],
)  # fmt: skip
def test_texts_of_the_data_stay_texts(text):
    record = make_record(task__labels=[text, "no"], task__name=text, task__origin=text, task__notes=[text])
    record["spec"]["model"] = text
    html = render(run_card(record))
    plain = make_record()
    expected = render(run_card(plain))
    for tag in (
        "script",
        "img",
        "em",
        "del",
        "h1",
        "h2",
        "hr",
        "table",
        "td",
        "a href",
        "pre",
        "ul",
        "ol",
        "blockquote",
    ):
        assert html.count(f"<{tag}") == expected.count(f"<{tag}"), tag
    assert len(escape("x" * 999)) == 200
    assert "\x1b" not in run_card(record)


def render(markdown: str) -> str:
    """The card's HTML, without its front matter."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(markdown.split("---\n", 2)[2])


def test_the_settings_stay_inside_their_block():
    record = make_record()
    record["spec"]["model"] = "```\n# out"
    block = re.search(r"```json\n(.*?)\n```", run_card(record), re.DOTALL)
    assert block is not None
    assert json.loads(block[1]) == record["spec"]


BASELINE = {"answer": "no_way", "ties": 1, "scores": {"accuracy": 0.775, "nll": 0.61}}


def test_the_baseline_stands_beside_every_score():
    record = make_record(baseline=BASELINE)
    card = run_card(record)
    said = "always predicting 'no_way', the largest class"
    assert headline(record) == (
        f"accuracy 0.812 [0.770, 0.850] on 400 test rows; {said}, scores 0.775: the interval holds it, "
        "so the model is not shown to be better"
    )
    escaped = said.replace("_", "\\_")
    assert f"on 400 test rows; {escaped}, scores 0.775: the interval" in card
    assert "| accuracy | 0.812 | 0.770 to 0.850 | 0.775 | 400 rows | Wilson |" in card
    assert f"Baseline: {escaped}. For nll the shares of the classes among the training rows." in card
    beaten = headline(make_record(baseline=BASELINE | {"ties": 2, "scores": {"accuracy": 0.5}}))
    assert beaten.endswith("; always predicting 'no_way', one of the 2 largest classes, scores 0.500")
    worse = headline(make_record(baseline=BASELINE | {"scores": {"accuracy": 0.9}}))
    assert worse.endswith("scores 0.900, which is better than the model")


def test_a_record_without_a_baseline_says_none():
    assert headline(make_record()) == "accuracy 0.812 [0.770, 0.850] on 400 test rows"
    assert "aseline" not in run_card(make_record()) and "aseline" not in run_card(make_record(baseline=None))


def test_classes_without_a_test_row_are_named():
    assert "not scored" not in run_card(make_record())
    assert "1 of 2 classes has no test row and is not scored: 'a\\|b'." in run_card(
        make_record(rows__untested_classes=["a|b"])
    )
    several = make_record(rows__untested_classes=["yes", "no"])
    several["scores"]["macro_f1"] = SCORE
    assert (
        "2 of 2 classes have no test row and are not scored: 'yes', 'no'; macro_f1 leaves them out where they are "
        "never predicted, and counts them as 0 where they are."
    ) in run_card(several)
    many = untested_sentences({"untested_classes": [f"c{i}" for i in range(30)]}, 40)
    assert many[0].endswith("'c19' and 10 more")


def test_regression_and_pairs_are_called_as_they_must_be():
    numbers = make_record(task__kind="regression", task__labels=[], task__metric="spearman", scores={"spearman": SCORE})
    card = run_card(numbers)
    assert "It gives a number." in card
    assert "predict_proba" not in card
    assert '[("a text", "its second text")]' in run_card(make_record(task__kind="pair-classification"))
