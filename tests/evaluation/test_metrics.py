"""Metrics against scikit-learn and scipy, against cases worked by hand, and where they are degenerate."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from handful.errors import ConfigError, DataError
from handful.evaluation.metrics import (
    METRICS,
    check_metric,
    confusion_counts,
    expected_calibration_error,
    get_metric,
    score,
)


def quietly(function, *arguments, **options):
    """The oracle's value, without its warnings about degenerate input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def pairs(element, min_size=1):
    """Predictions and targets of equal length."""
    return st.lists(st.tuples(element, element), min_size=min_size, max_size=40).map(
        lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True))
    )


numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))


@st.composite
def distributions(draw):
    """Probabilities (N, C), some of them 0 and 1, and target classes (N,)."""
    num_labels, rows = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = random.dirichlet(np.full(num_labels, draw(st.sampled_from([0.05, 1.0, 10.0]))), size=rows)
    if draw(st.booleans()):
        weights[0] = np.eye(num_labels)[0]
    return weights, random.integers(num_labels, size=rows)


# ------------------------------------------------------------------------------------------------------- oracles


@given(pairs(st.integers(0, 4)))
def test_metrics_of_classes_equal_scikit_learn(rows):
    predictions, targets = rows
    assert score("accuracy", *rows) == pytest.approx(oracle.accuracy_score(targets, predictions), abs=1e-12)
    expected = quietly(oracle.f1_score, targets, predictions, average="macro")
    assert score("macro_f1", *rows) == pytest.approx(expected, abs=1e-12)
    expected = quietly(oracle.matthews_corrcoef, targets, predictions)
    assert score("matthews", *rows) == pytest.approx(expected, abs=1e-12)


@given(pairs(st.integers(0, 1)))
def test_f1_equals_scikit_learn_with_index_1_as_the_positive_class(rows):
    predictions, targets = rows
    expected = oracle.f1_score(targets, predictions, pos_label=1, zero_division=0.0)
    assert score("f1", *rows) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32))
@pytest.mark.parametrize("name", ["accuracy", "matthews", "macro_f1"])
def test_many_confusion_counts_at_once_give_what_each_gives_alone(name, seed):
    samples = np.random.default_rng(seed).integers(3, size=(8, 2, 5))
    counts = np.stack([confusion_counts(*rows, num_labels=3) for rows in samples])
    np.testing.assert_allclose(METRICS[name].function(counts), [score(name, *rows) for rows in samples], rtol=1e-12)


@given(st.integers(0, 2**32))
@pytest.mark.parametrize("name", ["pearson", "spearman", "mse", "mae"])
def test_many_samples_of_values_at_once_give_what_each_gives_alone(name, seed):
    predictions, targets = np.random.default_rng(seed).integers(3, size=(2, 8, 4)).astype(float)
    alone = [score(name, *rows) for rows in zip(predictions, targets, strict=True)]
    np.testing.assert_allclose(METRICS[name].function(predictions, targets), alone, rtol=1e-12, atol=1e-15)


@given(pairs(numbers, min_size=3))
def test_metrics_of_values_equal_scipy_and_scikit_learn(rows):
    predictions, targets = rows
    assert score("mse", *rows) == pytest.approx(oracle.mean_squared_error(targets, predictions))
    assert score("mae", *rows) == pytest.approx(oracle.mean_absolute_error(targets, predictions))
    expected = quietly(stats.spearmanr, predictions, targets).statistic
    assert score("spearman", *rows) == pytest.approx(np.nan_to_num(expected), abs=1e-9)


@given(st.integers(0, 2**32), st.integers(2, 50), st.floats(1e-150, 1e150))
def test_pearson_equals_scipy_at_any_scale(seed, rows, scale):
    x, y = np.random.default_rng(seed).normal(size=(2, rows))
    assert score("pearson", x * scale, y + 3) == pytest.approx(stats.pearsonr(x * scale, y + 3).statistic, abs=1e-9)


@given(pairs(numbers))
def test_pearson_is_a_number_from_minus_1_to_1(rows):
    assert -1 <= score("pearson", *rows) <= 1


@given(distributions())
def test_metrics_of_probabilities_equal_scikit_learn(rows):
    probabilities, targets = rows
    labels = list(range(probabilities.shape[1]))
    nll = quietly(oracle.log_loss, targets, probabilities, labels=labels)
    assert score("nll", *rows) == pytest.approx(nll, abs=1e-12)
    brier = oracle.brier_score_loss(targets, probabilities, labels=labels, scale_by_half=False)
    assert score("brier", *rows) == pytest.approx(brier, abs=1e-12)


@given(distributions())
def test_ece_equals_a_plain_loop_over_bins(rows):
    probabilities, targets = rows
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    expected = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = (predicted[inside] == targets[inside]).mean() - confidence[inside].mean()
            expected += inside.mean() * abs(gap)
    assert score("ece", *rows) == pytest.approx(expected, abs=1e-12)


@given(st.sampled_from(sorted(name for name, metric in METRICS.items() if metric.needs != "texts")), st.data())
def test_every_score_lies_in_the_range_of_its_metric(name, data):
    metric = METRICS[name]
    top = 1 if metric.num_labels == 2 else 3
    rows = {"labels": pairs(st.integers(0, top)), "values": pairs(numbers), "probabilities": distributions()}
    low, high = metric.range
    assert low <= score(metric, *data.draw(rows[metric.needs])) <= high + 1e-12


# ------------------------------------------------------------------------------------------------- worked by hand


def test_f1_counts_the_class_at_index_1():
    targets, predictions = [1, 1, 1, 0], [1, 1, 0, 1]
    assert score("f1", predictions, targets) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    swapped = score("f1", 1 - np.array(predictions), 1 - np.array(targets))
    assert swapped == 0.0  # the other class was never recognised


def test_macro_f1_leaves_out_a_class_that_never_occurs():
    assert score("macro_f1", [0, 0, 4, 4], [0, 0, 4, 0]) == pytest.approx((0.8 + 2 / 3) / 2)


def test_scores_of_classes_may_stand_for_the_predicted_class():
    scores = np.array([[0.1, 0.9], [3.0, -1.0], [0.5, 0.5]])
    assert score("accuracy", scores, [1, 0, 0]) == 1.0
    assert score("accuracy", scores, [1, 0, 1]) == pytest.approx(2 / 3)


def test_brier_sums_over_the_classes():
    assert score("brier", [[0.0, 1.0]], [0]) == 2.0
    assert score("brier", [[0.7, 0.3]], [0]) == pytest.approx(0.18)


def test_nll_of_a_model_that_knows_nothing_is_ln_c():
    assert score("nll", np.full((4, 3), 1 / 3), [0, 1, 2, 0]) == pytest.approx(np.log(3))


def test_ece_by_hand():
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]  # accuracy 1/2 at 0.9 and 1 at 0.8
    assert score("ece", probabilities, [0, 1, 1, 1]) == pytest.approx((0.4 + 0.2) / 2)


def test_adaptive_ece_has_equal_numbers_of_rows_in_its_bins():
    confidence = np.array([0.91, 0.92, 0.93, 0.94])
    probabilities, targets = np.stack([confidence, 1 - confidence], axis=1), np.array([0, 1, 0, 0])
    one_bin = expected_calibration_error(probabilities, targets, bins=10)
    two_bins = expected_calibration_error(probabilities, targets, bins=2, adaptive=True)
    assert one_bin == pytest.approx(abs(0.75 - confidence.mean()))
    assert two_bins == pytest.approx((abs(0.5 - 0.915) + abs(1 - 0.935)) / 2)


def test_adaptive_ece_keeps_rows_of_equal_confidence_together():
    probabilities = np.full((8, 2), 0.5)
    assert expected_calibration_error(probabilities, np.array([0, 1] * 4), bins=4, adaptive=True) == 0.0


# ----------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e300])
def test_correlation_with_a_constant_is_0(name, constant):
    values = [0.3, 0.1, 0.2]
    assert score(name, [constant] * 3, values) == 0.0
    assert score(name, values, [constant] * 3) == 0.0
    assert score(name, [1.0], [1.0]) == 0.0


@pytest.mark.parametrize("targets", [[0, 1, 1], [1, 1, 1], [0, 0, 0]])
def test_matthews_of_constant_predictions_is_0(targets):
    assert score("matthews", [1, 1, 1], targets) == 0.0


def test_f1_without_any_positive_is_0():
    assert score("f1", [0, 0], [0, 0]) == 0.0


def test_nll_of_probability_0_is_finite():
    assert score("nll", [[1.0, 0.0]], [1]) == METRICS["nll"].range[1]


# --------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"found 'acuracy'\n\nhint: did you mean 'accuracy'\?"):
        get_metric("acuracy")
    with pytest.raises(ConfigError, match="did you mean 'macro_f1'"):
        score("macro-F1", [0], [0])


@pytest.mark.parametrize("kind", ["classification", "pair-classification"])
def test_check_metric_passes_what_fits(kind):
    assert check_metric("f1", kind, 2) is METRICS["f1"]
    assert check_metric("macro_f1", kind, 7) is METRICS["macro_f1"]
    assert check_metric(METRICS["spearman"], "regression", 0) is METRICS["spearman"]


def test_check_metric_names_metrics_that_fit():
    with pytest.raises(
        ConfigError, match=r"for classification tasks, found 'spearman', which is for regression"
    ) as error:
        check_metric("spearman", "classification", 2)
    assert error.value.hint == "for classification: accuracy, matthews, f1, macro_f1, nll, brier, ece"
    with pytest.raises(ConfigError, match="which is for classification and pair-classification") as error:
        check_metric("accuracy", "regression", 0)
    assert error.value.hint == "for regression: pearson, spearman, mse, mae"
    with pytest.raises(ConfigError, match="for generation tasks, found 'accuracy'"):
        check_metric("accuracy", "generation", 0)


@pytest.mark.parametrize(
    ("name", "predictions", "targets", "text"),
    [
        ("accuracy", [0, 1], [0], "found 2 and 1 rows"),
        ("accuracy", [], [], r"at least one row of predictions, found shape \(0,\)"),
        ("accuracy", [0.5], [0], r"as class indices \(N\), found float64.*needs labels: pass class indices"),
        ("accuracy", [0, -1], [0, 0], "class indices from 0, found -1 in row 1"),
        ("accuracy", [0], ["yes"], "expected targets as class indices"),
        ("f1", [0, 2], [0, 1], "from 0 below 2, found 2 in row 1"),
        ("nll", [0, 1], [0, 1], r"as numbers \(N, C\), found int64 \(2,\).*needs probabilities: pass those of all"),
        ("nll", [[0.5, 0.5], [3.0, -1.0]], [0, 1], r"sum to 1, found \[3.0, -1.0\] in row 1.*apply_temperature"),
        ("nll", [[0.5, 0.5], [0.5, 0.6]], [0, 1], r"sum to 1, found \[0.5, 0.6\] in row 1"),
        ("nll", [[0.5, 0.5]], [2], "expected targets to be class indices from 0 below 2, found 2 in row 0"),
        ("mse", [[1.0]], [1.0], r"found float64 \(1, 1\).*such as scores\[:, 0\]"),
        ("mse", [1.0, float("nan")], [1.0, 1.0], "expected finite predictions, found nan in row 1.*learning rate"),
        ("mse", [1.0], [None], "expected targets as numbers"),
    ],
)
def test_wrong_arrays_are_named(name, predictions, targets, text):
    with pytest.raises(DataError, match=f"(?s){text}"):
        score(name, predictions, targets)


# ------------------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_says_what_it_is(metric):
    assert METRICS[metric.name] is metric
    assert metric.summary
    assert metric.kinds
    inputs = {"labels": "`counts` (...", "values": "`predictions` (..., N)", "probabilities": "`probabilities` (N, C)"}
    inputs["texts"] = "`texts` (N,)"
    assert inputs[metric.needs] in metric.function.__doc__


def test_importing_needs_no_torch():
    code = "import sys, handful.evaluation.calibration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
