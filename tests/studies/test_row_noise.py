"""The noise of test rows: by hand, for every kind of score, and what is not at hand."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from handful.data.task import Example
from handful.evaluation.estimate import Estimate
from handful.evaluation.metrics import METRICS, score
from handful.runs.store import Run
from handful.studies.results import Cell, Result
from handful.studies.row_noise import RowReader
from handful.studies.verdicts import judge

LABELS = ("no", "yes", "perhaps")


def kind_of(metric):
    """A kind of task that a metric is for."""
    return min(METRICS[metric].kinds) if metric in METRICS else "classification"


@pytest.fixture
def write(tmp_path: Path):
    """Writes the predictions of a run, and returns it; its scores are those of the predictions."""

    def written(label, seed, rows, *, metric="accuracy", labels=LABELS, scores=None, interval=0.1, **more) -> Result:
        folder = tmp_path / f"{label}-{seed}-{metric}"
        folder.mkdir()
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        mean = scores if scores is not None else np.mean([row["prediction"] == row["target"] for row in rows])
        estimate = Estimate(float(mean), float(mean) - interval, float(mean) + interval, len(rows))
        record = {
            "key": folder.name, "task": {"name": "t", "metric": metric, "labels": [*labels], "kind": kind_of(metric)},
            "rows": {"fingerprint": f"t/{seed}"}, "scores": {metric: estimate.to_dict()}, **more,
        }  # fmt: skip
        return Result(label, Cell("t", 16, seed), Run(folder, record))

    return written


def rows_of(right: str, *, sources=None) -> list[dict]:
    """One row per letter: r is right, w is wrong."""
    sources = sources or [f"row {number}" for number in range(len(right))]
    return [
        {"source": source, "target": "yes", "prediction": "yes" if letter == "r" else "no"}
        for source, letter in zip(sources, right, strict=True)
    ]


def test_accuracies_by_hand(write):
    """Two seeds of four rows: differences 1 and 0, 0 and 0, -1 and -1, 0 and 1, averaged over seeds."""
    pairs = [
        (0, write("a", 0, rows_of("rrwr")), write("b", 0, rows_of("wrrr"))),
        (1, write("a", 1, rows_of("rrwr")), write("b", 1, rows_of("rrrw"))),
    ]
    found = RowReader().noise(pairs, "accuracy")
    squares = [0.25, 0, 1, 0.25]
    assert (found.error, found.paired) == (pytest.approx(sqrt(sum(squares) + 2) / 4), True)


def test_shots_of_a_seed_count_within_it(write):
    a, b, c = rows_of("rrww"), rows_of("wwww"), rows_of("wrww")
    pairs = [(0, write("a", 0, a), write("b", 0, b)), (0, write("c", 0, c), write("d", 0, b))]
    pairs.append((1, write("a", 1, b), write("b", 1, b)))
    found = RowReader().noise(pairs, "accuracy")
    squares = [1 / 16, 1 / 4, 0, 0]
    assert found.error == pytest.approx(sqrt(sum(squares) + 2 / 4) / 4)


@pytest.mark.parametrize("rows", [20, 60, 300])
@pytest.mark.parametrize(("more", "fewer"), [(3, 0), (5, 0), (6, 0), (7, 1), (8, 1), (9, 2), (12, 3), (14, 6)])
def test_rows_on_which_one_alone_is_right_tell_apart_as_mcnemars_exact_test_does(write, rows, more, fewer):
    if more + fewer > rows:
        return
    a = "r" * more + "w" * fewer + "r" * (rows - more - fewer)
    b = "w" * more + "r" * fewer + "r" * (rows - more - fewer)
    pairs = [(seed, write("a", seed, rows_of(a)), write("b", seed, rows_of(b))) for seed in (0, 1)]
    noise = RowReader().noise(pairs, "accuracy")
    found = judge([np.array([(more - fewer) / rows] * 2)], [noise])
    assert (found.scope is not None) == (binomtest(more, more + fewer).pvalue < 0.05)


def random_rows(generator, kind, size=40):
    """Rows with a target, a prediction and probabilities; and predictions as `score` takes them."""
    if kind == "values":
        targets, predictions = generator.normal(size=size), generator.normal(size=size)
        rows = [
            {"source": str(i), "target": t, "prediction": p}
            for i, (t, p) in enumerate(zip(targets, predictions, strict=True))
        ]
        return rows, predictions, targets
    targets = np.random.default_rng(0).integers(len(LABELS), size=size)
    probabilities = generator.dirichlet(np.ones(3), size=size).round(6)
    rows = [
        {"source": str(i), "target": LABELS[t], "prediction": LABELS[p.argmax()], "probabilities": p.tolist()}
        for i, (t, p) in enumerate(zip(targets, probabilities, strict=True))
    ]
    return rows, probabilities.argmax(1) if kind == "labels" else probabilities, targets


NAMES = [name for name, metric in METRICS.items() if metric.needs != "texts" and metric.num_labels is None]


@pytest.mark.parametrize("name", NAMES)
def test_what_rows_add_is_the_score_of_every_metric(write, name):
    rows, predictions, targets = random_rows(np.random.default_rng(3), METRICS[name].needs)
    whole = score(name, predictions, targets)
    run = write("a", 0, rows, metric=name, scores=whole)
    effects = RowReader().effects(run, name)
    assert effects is not None and len(effects) == 40
    rest = np.arange(40) != 7
    pseudo = 40 * whole - 39 * score(name, predictions[rest], targets[rest])
    assert next(effect for (_, _, place), effect in effects.items() if place == 7) * 40 == pytest.approx(
        pseudo, abs=1e-5
    )


@pytest.mark.parametrize("name", ["bleu-e2e", "chrf++", "rouge-l", "exact-match"])
def test_written_texts_are_compared_record_by_record(write, name):
    pytest.importorskip("sacrebleu")
    words = [
        "the inn",
        "a pub by the river",
        "it is cheap",
        "near the station",
        "for families",
        "in the centre of town",
    ]
    records = [Example(f"record {i}", references=(f"{words[i % 6]} {words[i % 5]} {i}",)) for i in range(12)]
    written = [r.references[0] if i % 3 else f"{words[i % 4]} {i}" for i, r in enumerate(records)]
    rows = [
        {"source": str(i), "text": r.text, "references": list(r.references), "written": text}
        for i, (r, text) in enumerate(zip(records, written, strict=True))
    ]
    whole = score(name, written, records)
    other = [row | {"written": row["references"][0]} for row in rows]
    a = write("a", 0, rows, metric=name, scores=whole, interval=1.0)
    b = write("b", 0, other, metric=name, scores=score(name, [row["written"] for row in other], records), interval=1.0)
    reader = RowReader()
    effects = reader.effects(a, name)
    assert effects is not None and len(effects) == 12
    rest = [i for i in range(12) if i != 4]
    without = score(name, [written[i] for i in rest], [records[i] for i in rest])
    assert next(e for (_, _, place), e in effects.items() if place == 4) * 12 == pytest.approx(
        12 * whole - 11 * without
    )
    found = reader.noise([(0, a, b)], name)
    assert found.paired and found.error > 0


@pytest.mark.parametrize("name", ["macro_f1", "spearman", "matthews"])
def test_the_jackknife_is_as_wide_as_resampling_rows(write, name):
    generator = np.random.default_rng(5)
    kind = METRICS[name].needs
    rows, predictions, targets = random_rows(generator, kind, 500)
    other, others, _ = random_rows(generator, kind, 500)
    if kind == "values":  # the same targets
        other = [row | {"target": target} for row, target in zip(other, targets.tolist(), strict=True)]
    a = write("a", 0, rows, metric=name, scores=score(name, predictions, targets))
    b = write("b", 0, other, metric=name, scores=score(name, others, targets))
    found = RowReader().noise([(0, a, b)], name)
    draws = [generator.integers(500, size=500) for _ in range(400)]
    spread = np.std([score(name, predictions[d], targets[d]) - score(name, others[d], targets[d]) for d in draws])
    assert found.paired
    assert 0.85 < found.error / spread < 1.35


def test_members_count_alike_however_many_rows_they_have(write):
    def rows(many, few):
        return [row | {"task": "m"} for row in rows_of(many)] + [row | {"task": "n"} for row in rows_of(few)]

    a = write("a", 0, rows("rrrrrw", "rw"), scores=(5 / 6 + 1 / 2) / 2)
    b = write("b", 0, rows("rrrrww", "ww"), scores=(4 / 6 + 0) / 2)
    found = RowReader().noise([(0, a, b)], "accuracy")
    assert found.error == pytest.approx(sqrt((1 / 12) ** 2 + (1 / 4) ** 2 + 2 * (1 / 4) ** 2))


BOUND = sqrt(2) * 0.1 / 1.959964


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run.run.folder / "predictions.jsonl").unlink(),
        lambda run: (run.run.folder / "predictions.jsonl").write_text("{"),
        lambda run: (run.run.folder / "predictions.jsonl").write_text('{"source": "x"}\n'),
        lambda run: (run.run.folder / "predictions.jsonl").write_text("[1]\n"),
        lambda run: run.record["scores"]["accuracy"].update(mean=0.45),
    ],
    ids=["missing", "damaged", "other fields", "no records", "another score"],
)
def test_without_predictions_the_intervals_bound_the_noise(write, spoil):
    a, b = write("a", 0, rows_of("rrww")), write("b", 0, rows_of("rwww"))
    spoil(a)
    found = RowReader().noise([(0, a, b)], "accuracy")
    assert (found.error, found.paired) == (pytest.approx(BOUND, rel=1e-4), False)


def test_predictions_of_other_rows_are_not_paired(write):
    a = write("a", 0, rows_of("rrww"))
    b = write("b", 0, rows_of("rwww", sources=["w", "x", "y", "z"]))
    assert RowReader().noise([(0, a, b)], "accuracy").paired is False


def test_without_an_interval_too_the_noise_is_not_known(write):
    a, b = write("a", 0, rows_of("rrww")), write("b", 0, [], scores=0.5)
    b.record["scores"]["accuracy"] |= {"low": None, "high": None}
    assert RowReader().noise([(0, a, b)], "accuracy") is None


def test_each_run_is_read_once(write):
    a, b = write("a", 0, rows_of("rrww")), write("b", 0, rows_of("rwww"))
    reader = RowReader()
    first = reader.noise([(0, a, b)], "accuracy")
    (a.run.folder / "predictions.jsonl").unlink()
    assert reader.noise([(0, a, b)], "accuracy") == first
