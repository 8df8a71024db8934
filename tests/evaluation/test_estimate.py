"""Intervals: that they cover, that they are the formulas they claim to be, and where they are degenerate."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from handful.errors import ConfigError, DataError
from handful.evaluation import intervals
from handful.evaluation.estimate import Estimate, bootstrap_score, estimate_over_seeds, wilson
from handful.evaluation.metrics import METRICS, get_metric, score

COUNTED = [name for name, metric in METRICS.items() if metric.needs != "texts"]  # those: test_generation_metrics.py


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def draw_rows(needs, rows, generator, accuracy=0.8):
    """Predictions and targets of two classes, or values, as a fair model of known quality would give them."""
    if needs == "values":
        targets = generator.normal(size=rows)
        return 0.8 * targets + 0.6 * generator.normal(size=rows), targets
    if needs == "labels":
        targets = generator.integers(2, size=rows)
        return np.where(generator.random(rows) < accuracy, targets, 1 - targets), targets
    positive = 1 / (1 + np.exp(-generator.normal(scale=1.5, size=rows)))
    return np.stack([1 - positive, positive], axis=1), (generator.random(rows) < positive).astype(int)


def coverage(metric, truth, samples, rows=50, **options):
    """The share of samples of so many rows whose interval contains the truth."""
    generator = np.random.default_rng(1)
    needs = METRICS[metric].needs
    hits = 0
    for _ in range(samples):
        estimate = bootstrap_score(
            metric, *draw_rows(needs, rows, generator, **options), generator=generator, resamples=400
        )
        hits += estimate.low <= truth <= estimate.high
    return hits / samples


# ------------------------------------------------------------------------------------------------------- Estimate


def test_it_reads_as_a_score_with_its_interval():
    assert str(Estimate(0.8119, 0.774, 0.8484, 300)) == "0.812 [0.774, 0.848]"
    assert str(Estimate(-0.0001, -0.2, 0.2, 5)) == "0.000 [-0.200, 0.200]"
    assert str(Estimate(0.8, None, None, 1)) == "0.800 [no interval, n=1]"


@pytest.mark.parametrize("estimate", [Estimate(0.8, 0.7, 0.9, 40, 0.9, "Wilson"), Estimate(0.8, None, None, 1)])
def test_it_survives_json(estimate):
    assert Estimate.from_dict(json.loads(json.dumps(estimate.to_dict()))) == estimate


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"mean": 1.0, "n": 3}, "expected an estimate with mean, low, high, n, found no low, high"),
        ({"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3, "levle": 0.9}, "found 'levle'\n\nhint: did you mean 'level'"),
        ({"mean": "1", "low": 1.0, "high": 1.0, "n": 3}, "expected finite low <= mean <= high, found 1.0, '1', 1.0"),
        ({"mean": 0.5, "low": 0.6, "high": 0.7, "n": 3}, "found 0.6, 0.5, 0.7"),
        ({"mean": 0.5, "low": None, "high": 0.7, "n": 3}, "found None, 0.5, 0.7"),
        ({"mean": float("nan"), "low": None, "high": None, "n": 1}, "found None, nan, None"),
    ],
)
def test_wrong_records_are_refused(record, text):
    with pytest.raises(DataError) as error:
        Estimate.from_dict(record)
    assert text in str(error.value)


# ------------------------------------------------------------------------------------------------------ over rows


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy(share, level):
    successes, n = share
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    estimate = wilson(successes, n, level=level)
    found, few = (estimate.low, estimate.high), min(2 if n <= 50 else 3, n // 2)
    assert found[0] <= estimate.mean <= found[1]
    assert found[0] <= expected.low + 1e-9 and found[1] >= expected.high - 1e-9
    if not 0 < successes <= few:
        assert found[0] == pytest.approx(expected.low, abs=1e-9)
    if not 0 < n - successes <= few:
        assert found[1] == pytest.approx(expected.high, abs=1e-9)


@pytest.mark.parametrize("n", [30, 60, 300])
def test_intervals_of_shares_cover_up_to_the_ends(n):
    """Exactly, by the binomial. Without Poisson's limits 30 rows cover 0.995 in 86 %, 60 rows 0.998 in 89 %."""
    ends = [wilson(hits, n) for hits in range(n + 1)]
    low, high = np.array([one.low for one in ends]), np.array([one.high for one in ends])
    for truth in (0.5, 0.55, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998):
        chances = stats.binom.pmf(np.arange(n + 1), n, truth)
        assert chances[(low <= truth) & (truth <= high)].sum() > 0.929, truth


def test_accuracy_has_the_interval_of_wilson(generator):
    predictions, targets = draw_rows("labels", 60, generator)
    estimate = bootstrap_score("accuracy", predictions, targets, generator=generator)
    assert estimate == wilson(int((predictions == targets).sum()), 60)
    assert (estimate.n, estimate.level, estimate.method) == (60, 0.95, "Wilson")


@pytest.mark.parametrize("name", COUNTED)
def test_the_mean_is_the_score_and_lies_in_the_interval(name, generator):
    rows = draw_rows(METRICS[name].needs, 40, generator)
    estimate = bootstrap_score(name, *rows, generator=generator, resamples=200)
    assert estimate.mean == pytest.approx(score(name, *rows), abs=1e-12)
    assert METRICS[name].range[0] <= estimate.low < estimate.mean < estimate.high <= METRICS[name].range[1]
    assert estimate.n == 40


@pytest.mark.parametrize("name", ["f1", "spearman", "nll"])
def test_the_same_generator_gives_the_same_interval(name):
    rows = draw_rows(METRICS[name].needs, 30, np.random.default_rng(5))
    first, second, other = (
        bootstrap_score(name, *rows, generator=np.random.default_rng(seed), resamples=100) for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


# Bands: three standard errors of that many samples around the coverage of thousands of samples (see the docstring).


def test_intervals_of_accuracy_cover():
    assert 0.93 <= coverage("accuracy", 0.9, 2000, accuracy=0.9) <= 0.98


@pytest.mark.parametrize(("name", "truth"), [("f1", 0.8), ("macro_f1", 0.8), ("matthews", 0.6)])
def test_intervals_of_class_metrics_cover(name, truth):
    assert 0.93 <= coverage(name, truth, 700, accuracy=0.8) <= 0.985


def test_intervals_of_a_nearly_perfect_classifier_cover():
    """Resampling alone covers 77 % here, as a fifth of all samples holds no error at all."""
    assert coverage("f1", 0.97, 700, accuracy=0.97) > 0.95


@pytest.mark.parametrize(("name", "truth"), [("pearson", 0.8), ("spearman", 6 / np.pi * np.arcsin(0.4))])
def test_intervals_of_correlations_cover(name, truth):
    assert 0.91 <= coverage(name, truth, 400) <= 0.98


def test_intervals_of_a_skewed_loss_cover():
    """Percentiles of resampled rows cover in 92 %."""
    assert 0.96 <= coverage("mse", 0.4, 700) <= 0.998  # 0.4 is 0.2 squared plus 0.6 squared


def covered(metric, draw, truth, rows, samples=300):
    """The share of samples of `draw(rows, generator)` whose interval contains the truth."""
    generator, hits = np.random.default_rng(3), 0
    for _ in range(samples):
        found = bootstrap_score(metric, *draw(rows, generator), generator=generator, resamples=300)
        hits += found.low <= truth <= found.high
    return hits / samples


def draw_logits(sharpness, factor):
    """Labels of two classes by softmax(logits), predicted with softmax(factor · logits)."""

    def draw(rows, generator):
        margin = generator.normal(scale=sharpness * np.sqrt(2), size=rows)
        positive = 1 / (1 + np.exp(-factor * margin))
        labels = generator.random(rows) < 1 / (1 + np.exp(-margin))
        return np.stack([1 - positive, positive], axis=1), labels.astype(int)

    return draw


@pytest.mark.parametrize(("sharpness", "factor"), [(8, 3), (8, 1), (3, 3)])
@pytest.mark.parametrize("rows", [30, 60])
def test_intervals_of_dear_errors_cover(sharpness, factor, rows):
    """Percentiles of resampled rows cover the NLL of 30 rows in 66, 80 and 83 %, as most rows cost next to nothing."""
    draw = draw_logits(sharpness, factor)
    truth = score("nll", *draw(400_000, np.random.default_rng(0)))
    assert covered("nll", draw, truth, rows) >= 0.95


@pytest.mark.parametrize("rows", [30, 60, 300])
def test_the_interval_of_a_calibration_error_holds_that_of_endless_rows(rows):
    """Percentiles of resampled rows never hold 0, which is the truth of the first, and that of the second in 81 %."""
    assert covered("ece", draw_logits(1, 1), 0.0, rows) >= 0.94
    draw = draw_logits(1, 3)
    truth = score("ece", *draw(400_000, np.random.default_rng(0)))
    assert truth == pytest.approx(0.153, abs=0.003)
    assert 0.92 <= covered("ece", draw, truth, rows) <= 0.99


def test_intervals_of_macro_f1_cover_where_classes_are_many_and_uneven():
    """Without the rows added to recognised classes 85 % at 30 rows, as the score is too low where classes are small."""
    shares = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    table = np.diag(shares) * 0.3 + np.outer(shares, shares) * 0.7  # 3 of 10 rows are looked at

    def draw(rows, generator):
        cells = generator.choice(36, size=rows, p=table.ravel())
        return cells % 6, cells // 6

    truth = float(METRICS["macro_f1"].function(table))
    assert covered("macro_f1", draw, truth, 30) >= 0.95
    assert covered("macro_f1", draw, truth, 60) >= 0.94


def test_intervals_of_ranks_cover_where_errors_have_heavy_tails():
    """The formula for normal values covers in 88 %."""

    def draw(rows, generator):
        signal = generator.normal(size=rows)
        return signal, 0.95 * signal + 0.18 * generator.standard_t(3, size=rows)

    truth = score("spearman", *draw(400_000, np.random.default_rng(0)))
    assert covered("spearman", draw, truth, 30) >= 0.94


def test_a_perfect_order_of_few_rows_proves_little(generator):
    found = bootstrap_score("spearman", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], generator=generator)
    assert (found.mean, found.high) == (1.0, 1.0) and found.low < 0
    found = bootstrap_score("pearson", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], generator=generator)
    assert (found.low, found.high, found.method) == (-1, 1, "the whole range, for fewer than 4 rows")


def test_a_lower_level_gives_a_narrower_interval(generator):
    rows = draw_rows("labels", 80, generator)
    wide, narrow = (bootstrap_score("f1", *rows, generator=generator, level=level) for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews"])
def test_no_error_among_the_rows_is_no_proof_that_there_is_none(name, generator):
    targets = np.array([0, 1] * 25)
    estimate = bootstrap_score(name, targets, targets, generator=generator)
    assert estimate.mean == estimate.high == 1.0
    assert 0.8 < estimate.low < 0.97


@pytest.mark.parametrize("name", COUNTED)
def test_constant_predictions_give_an_interval_without_warnings(name, generator):
    needs = METRICS[name].needs
    predictions = {"labels": np.zeros(20, int), "values": np.ones(20), "probabilities": np.full((20, 2), 0.5)}[needs]
    targets = np.zeros(20, int) if needs != "values" else np.ones(20)
    estimate = bootstrap_score(name, predictions, targets, generator=generator, resamples=50)
    assert estimate.mean == pytest.approx(score(name, predictions, targets))


def test_an_upward_biased_score_lies_in_its_interval():
    """The resampled calibration error of a calibrated model often lies above the error itself as a whole."""
    for seed in range(60):
        generator = np.random.default_rng(seed)
        estimate = bootstrap_score(
            "ece", *draw_rows("probabilities", 50, generator), generator=generator, resamples=100
        )
        assert estimate.low <= estimate.mean


def test_one_row_has_no_interval_except_for_accuracy(generator):
    assert bootstrap_score("mse", [1.0], [2.0], generator=generator) == Estimate(1.0, None, None, 1, 0.95, "one row")
    assert bootstrap_score("accuracy", [1], [1], generator=generator).low == pytest.approx(0.2065, abs=1e-4)


def test_many_classes_are_drawn_in_portions(generator):
    targets = generator.integers(150, size=600)
    predictions = np.where(generator.random(600) < 0.8, targets, generator.integers(150, size=600))
    estimate = bootstrap_score("macro_f1", predictions, targets, generator=generator, resamples=300)
    assert 0.7 < estimate.low < estimate.mean < estimate.high < 0.9


# ----------------------------------------------------------------------------------------------------- over seeds


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_the_interval_over_seeds_is_students(values):
    estimate = estimate_over_seeds(values)
    spread = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread) if spread else (np.mean(values),) * 2
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((low, np.mean(values), high), abs=1e-9)
    assert (estimate.n, estimate.method) == (len(values), "Student's t")


def test_intervals_over_five_seeds_cover_where_the_bootstrap_does_not():
    generator = np.random.default_rng(2)
    samples = generator.normal(size=(3000, 5))
    estimates = [estimate_over_seeds(sample) for sample in samples]
    resampled = np.take_along_axis(samples[:, None], generator.integers(5, size=(3000, 300, 5)), axis=2).mean(axis=2)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    assert 0.938 <= np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]) <= 0.962
    assert ((low <= 0) & (high >= 0)).mean() < 0.87


def test_one_seed_has_no_interval():
    assert estimate_over_seeds([0.8]) == Estimate(0.8, None, None, 1, 0.95, "one seed")


def test_limits_cut_the_interval():
    estimate = estimate_over_seeds([0.9, 1.0, 1.0], limits=METRICS["accuracy"].range)
    assert estimate.high == 1.0
    assert estimate.low == estimate_over_seeds([0.9, 1.0, 1.0]).low


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: estimate_over_seeds([]), DataError, "at least one row of scores"),
        (lambda: estimate_over_seeds([0.5, float("nan")]), DataError, "expected finite scores, found nan in row 1"),
        (lambda: estimate_over_seeds([0.5, 0.6], level=95), ConfigError, "level between 0 and 1, found 95"),
        (lambda: wilson(1, 2, level=0.0), ConfigError, "level between 0 and 1, found 0.0"),
    ],
)
def test_wrong_input_is_named(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)


@pytest.mark.parametrize("metric", ["macro_f1", "matthews"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_many_classes_get_the_same_interval_without_a_draw_for_every_cell(metric, share, monkeypatch):
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 25, 150)
    predictions = np.where(generator.random(150) < share, targets, generator.integers(0, 25, 150))
    every = bootstrap_score(metric, predictions, targets, generator=np.random.default_rng(1))
    monkeypatch.setattr(intervals, "MANY_CELLS", 0)
    few = bootstrap_score(metric, predictions, targets, generator=np.random.default_rng(2))
    assert (few.mean, few.method) == (every.mean, every.method)
    assert (few.low, few.high) == pytest.approx((every.low, every.high), abs=0.015)  # what 2,000 draws leave open


@pytest.mark.parametrize("metric", ["macro_f1", "matthews", "accuracy"])
def test_margins_give_the_metric_of_the_whole_table(metric):
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 4, (7, 5, 5)) * (generator.random((7, 5, 5)) < 0.4)
    margins = intervals.Margins.of(np.broadcast_to(np.arange(25), (7, 25)), counts.reshape(7, 25), 5)
    function = get_metric(metric).function
    assert function(margins) == pytest.approx(function(counts), abs=1e-12)


def test_five_hundred_classes_are_scored_from_the_rows_alone(monkeypatch):
    generator = np.random.default_rng(0)
    targets = np.arange(500)
    predictions = np.where(generator.random(500) < 0.4, targets, generator.integers(0, 500, 500))
    widths = []
    real = intervals.Margins.of.__func__

    def of(cls, cells, weights, classes):
        widths.append(cells.shape[1])
        return real(cls, cells, weights, classes)

    monkeypatch.setattr(intervals.Margins, "of", classmethod(of))
    estimate = bootstrap_score("macro_f1", predictions, targets, generator=np.random.default_rng(1), resamples=200)
    assert max(widths) <= 500 + 500 + intervals.STICKS  # rows, the diagonal and a few empty cells, of 250,000
    assert estimate.low < estimate.mean < estimate.high
