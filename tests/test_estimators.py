"""scikit-learn estimators: its promises, labels of any kind, weights, and what cannot be learnt."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from handful import ConfigError, DataError, FewShotClassifier, FewShotRegressor

TEXTS = [f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}" for i in range(40)]
LABELS = ["ab" if i % 2 else "z9" for i in range(40)]
NUMBERS = [float(i) for i in range(40)]
QUICK = {"training.epochs": 2, "max_length": 24}
NOT_RUN = {
    FewShotClassifier: {"check_array_api_input": "scipy has to be told of the Array API before it is imported"},
    FewShotRegressor: {
        "check_array_api_input": "as for the classifier",
        "check_fit2d_1sample": "a regression needs rows in every fifth of its target, and says so in these words",
        "check_sample_weights_shape": "four different texts with two targets: as above",
        "check_sample_weights_not_overwritten": "as above",
        "check_regressors_train": "that random numbers, read as texts by a random model, are fitted well",
        "check_methods_subset_invariance": "to 1e-7: batches of other sizes differ by a rounding of float32",
    },
}


@parametrize_with_checks([FewShotClassifier(method="head"), FewShotRegressor(method="head")])
def test_checks_of_scikit_learn(estimator, check):
    """All that scikit-learn has for estimators of texts: a check of the parameters.

    It skips every check on tables of numbers, by the tags; `test_checks_on_numbers_read_as_texts` runs those.
    """
    check(estimator)


class AbstractOnNumbers(BaseEstimator):
    """An estimator of tables of numbers, of which each row is read as a text by one of ours."""

    def __init__(self, inner=None):
        self.inner = inner

    def fit(self, X, y, sample_weight=None):
        self.inner_ = clone(self.inner).fit(self._texts(X), y, sample_weight)
        if hasattr(self.inner_, "classes_"):
            self.classes_ = self.inner_.classes_
        return self

    def predict(self, X):
        check_is_fitted(self)
        return self.inner_.predict(self._texts(X, reset=False))

    def _texts(self, X, **options):
        return [" ".join(f"{value:.3g}" for value in row) for row in validate_data(self, X, **options)]


class ClassifierOnNumbers(ClassifierMixin, AbstractOnNumbers):
    pass


class RegressorOnNumbers(RegressorMixin, AbstractOnNumbers):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "wrapper"), [(FewShotClassifier, ClassifierOnNumbers), (FewShotRegressor, RegressorOnNumbers)]
)
@pytest.mark.filterwarnings("ignore")
def test_checks_on_numbers_read_as_texts(tiny_folder, kind, wrapper):
    """scikit-learn's checks of fitting, weights, shapes, types, pickling and repeated calls; see `NOT_RUN`."""
    inner = kind(method="head", model=str(tiny_folder), settings={"max_length": 24})
    passed = 0
    for wrapped, check in estimator_checks_generator(wrapper(inner), legacy=True):
        if getattr(check, "func", check).__name__ in NOT_RUN[kind]:
            continue
        check(wrapped)
        passed += 1
    assert passed > 40


@pytest.fixture
def classifier(tiny_folder) -> FewShotClassifier:
    return FewShotClassifier(method="head", model=str(tiny_folder), settings={"max_length": 24})


def test_the_classifier_in_cross_validation(classifier):
    scores = cross_val_score(classifier, TEXTS, LABELS, cv=4)
    assert scores.shape == (4,)
    assert scores.mean() > 0.9  # the letters tell the classes apart


def test_the_classifier_in_a_pipeline_and_a_search(classifier):
    pipeline = Pipeline(
        [("strip", FunctionTransformer(lambda texts: [text.strip() for text in texts])), ("few", classifier)]
    )
    search = GridSearchCV(pipeline, {"few__method": ["head", "prefix"], "few__settings": [QUICK]}, cv=2)
    search.fit(TEXTS, LABELS)
    assert search.predict(["zz 99 zz"])[0] in ("ab", "z9")
    assert set(search.cv_results_["param_few__method"]) == {"head", "prefix"}


def test_the_classifier_keeps_scikit_learns_promises(classifier):
    copy = clone(classifier).set_params(random_state=5, preset="default")
    assert copy.get_params()["random_state"] == 5
    assert copy.fit(TEXTS, LABELS) is copy
    assert copy.classes_.tolist() == ["ab", "z9"]
    probabilities = copy.predict_proba(TEXTS[:3])
    assert probabilities.shape == (3, 2)
    assert copy.predict(TEXTS[:3]).tolist() == copy.classes_[probabilities.argmax(1)].tolist()
    assert copy.score(TEXTS, LABELS) > 0.9


@pytest.mark.parametrize("labels", [[0, 1], [True, False], [2.0, 10.0], ["ä", "b"]])
def test_the_classifier_takes_and_gives_labels_of_any_kind(classifier, labels):
    given = np.array([labels[i % 2] for i in range(40)])
    predicted = classifier.fit(np.array(TEXTS), given).predict(np.array(TEXTS))
    assert predicted.dtype == given.dtype
    assert set(predicted) <= set(given)
    assert (predicted == given).mean() > 0.9


def test_the_classifier_takes_pairs(classifier):
    pairs = np.array([(f"a {i}", "aaaa" if i % 2 else "zz99") for i in range(40)])
    classifier.fit(pairs, LABELS)
    assert classifier.predict(pairs[:2]).shape == (2,)
    assert classifier.predict_proba([("a", "zz"), ("b", "aa")]).shape == (2, 2)


def test_the_classifier_takes_data_frames(classifier):
    class Frame:  # as pandas and polars have it
        def __init__(self, rows):
            self.to_numpy = lambda: np.array(rows, dtype=object)

        def __iter__(self):
            return iter(["first", "second"])

    pairs = [(f"a {i}", "aaaa" if i % 2 else "zz99") for i in range(40)]
    assert classifier.fit(Frame(pairs), LABELS).predict(Frame(pairs[:3])).shape == (3,)
    assert classifier.fit(Frame(TEXTS), LABELS).predict(Frame(TEXTS[:3])).shape == (3,)


def test_the_classifier_beside_other_features(classifier):
    union = FeatureUnion([("words", TfidfVectorizer(analyzer="char"))])
    plain = Pipeline([("features", union), ("model", LogisticRegression())])
    assert cross_val_score(plain, TEXTS, LABELS, cv=2).shape == cross_val_score(classifier, TEXTS, LABELS, cv=2).shape


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        (TEXTS, LABELS[:3], "expected as many labels as texts, found 3 and 40"),
        ([3, 4], ["a", "b"], "expected a text or a pair"),
        (TEXTS[:4], ["a"] * 4, "all 4 rows have the class 'a'"),
        ([], [], "expected texts"),
        (["a", None], ["a", "b"], "expected a text or a pair"),
    ],
)
def test_the_classifier_refuses_what_cannot_be_learnt(classifier, texts, labels, said):
    with pytest.raises(DataError, match=said):
        classifier.fit(texts, labels)


@pytest.fixture
def regressor(tiny_folder) -> FewShotRegressor:
    return FewShotRegressor(method="head", model=str(tiny_folder), settings={"max_length": 24})


def test_the_regressor_predicts_numbers(regressor):
    regressor.fit(TEXTS, NUMBERS)
    assert regressor.predict(TEXTS[:3]).shape == (3,) and regressor.predict(TEXTS).dtype == float
    assert regressor.score(TEXTS, NUMBERS) > 0
    assert clone(regressor).get_params() == regressor.get_params()
    assert cross_val_score(regressor, TEXTS, NUMBERS, cv=2).shape == (2,)
    with pytest.raises(DataError, match=r"y\[1\]: expected a finite number, found inf"):
        regressor.fit(TEXTS[:2], [1.0, float("inf")])
    with pytest.raises(DataError, match="y: expected numbers"):
        regressor.fit(TEXTS, LABELS)


@pytest.mark.parametrize("estimator", [FewShotClassifier(), FewShotRegressor()])
def test_an_estimator_that_is_not_fitted_says_so(estimator):
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_a_missing_label_is_named_by_its_row(classifier, absent):
    labels = [*LABELS[:2], absent, *LABELS[3:]]
    for given in (labels, np.array(labels, dtype=object)):
        with pytest.raises(DataError, match=r"expected a label for every row, found none for 1 \(rows 2\)"):
            classifier.fit(TEXTS, given)
    with pytest.raises(DataError, match=r"found none for 1 \(rows 2\)"):
        classifier.fit(TEXTS[:4], [1.0, 0.0, float("nan"), 1.0])


def test_labels_of_mixed_types_are_refused(classifier):
    with pytest.raises(DataError, match="expected labels of one type, found int and str"):
        classifier.fit(TEXTS[:4], np.array(["a", 1, "a", 1], dtype=object))


def test_a_list_of_mixed_labels_is_refused_before_numpy_makes_texts_of_it(classifier):
    for labels in (["a", 1] * 20, [True, 1] * 20, [np.bool_(True), "a"] * 20):
        with pytest.raises(DataError, match="expected labels of one type, found"):
            classifier.fit(TEXTS, labels)
    assert classifier.fit(TEXTS, [0, 1.0] * 20).classes_.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["ship", "ship "] * 20, "differ in case, white space, .* kept apart: 'ship' and 'ship '"),
        ([f"id{i}" for i in range(40)], "40 different values in 40 rows, 40 of them once: it holds a name or number"),
        (["none", "some"] * 20, "'none' is read as the name of a class"),
    ],
)
def test_labels_that_may_not_be_meant_are_warned_of(classifier, labels, said):
    with pytest.warns(UserWarning, match=said):
        classifier.fit(TEXTS, labels)


def test_a_word_for_no_value_is_no_label_as_in_fit(classifier):
    with pytest.raises(DataError, match=r"found none for 20 \(rows 0, .*\); 'nan' is read as none"):
        classifier.fit(TEXTS, ["nan", "a"] * 20)


def test_half_a_surrogate_pair_is_named_by_its_row(classifier):
    with pytest.raises(DataError, match="row 1: the text in 'text' holds half of a surrogate pair"):
        classifier.fit(["x", "x\udc80"], ["a", "b"])
    with pytest.raises(DataError, match=r"y\[1\]: the text in 'y' holds half"):
        classifier.fit(["x", "y"], ["a", "b\udc80"])


def test_an_index_in_another_order_is_warned_of(classifier):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    with pytest.warns(UserWarning, match="same index in another order"):
        classifier.fit(frame["text"].iloc[::-1], frame["label"])


def test_a_column_of_labels_is_taken_with_a_warning(classifier):
    with pytest.warns(DataConversionWarning):
        classifier.fit(TEXTS, np.array(LABELS)[:, None])
    assert classifier.predict(TEXTS[:2]).shape == (2,)


def test_the_seed_can_be_drawn(classifier):
    classifier.set_params(random_state=None).fit(TEXTS, LABELS)
    drawn = classifier.model_.spec.options.seed
    again = classifier.fit(TEXTS, LABELS).model_.spec.options.seed
    assert drawn != again
    states = [np.random.RandomState(3), np.random.RandomState(3)]
    seeds = [classifier.set_params(random_state=state).fit(TEXTS, LABELS).model_.spec.options.seed for state in states]
    assert seeds[0] == seeds[1]


@pytest.mark.filterwarnings("ignore:1 of 2 texts have no tokens")
def test_a_text_without_tokens_gets_what_the_training_rows_say(classifier, regressor):
    labels = ["ab"] * 30 + ["z9"] * 10
    np.testing.assert_allclose(classifier.fit(TEXTS, labels).predict_proba(["", "aaaa"])[0], [0.75, 0.25])
    assert classifier.predict(["", "aaaa"])[0] == "ab"
    assert regressor.fit(TEXTS, NUMBERS).predict(["", "aaaa"])[0] == np.mean(NUMBERS)


def test_a_row_of_weight_zero_is_no_row(classifier):
    noise = [f"{'zz 99 zz' if i % 2 else 'aaaa bbbb'} {i} x" for i in range(20)]
    weights = [1.0] * 40 + [0.0] * 20
    weighted = clone(classifier).fit(TEXTS + noise, LABELS + LABELS[:20], sample_weight=weights)
    np.testing.assert_array_equal(weighted.predict_proba(TEXTS), classifier.fit(TEXTS, LABELS).predict_proba(TEXTS))


@pytest.mark.parametrize("method", ["head", "prefix"])
def test_weights_move_predictions_to_the_heavy_class(tiny_folder, method):
    few = FewShotClassifier(method=method, model=str(tiny_folder), settings=QUICK)
    rows, labels = [f"{'ab' * (i % 4)} {i}" for i in range(40)], ["a"] * 32 + ["b"] * 8
    share = {}
    for name, weights in (("plain", None), ("heavy", [1.0] * 32 + [20.0] * 8)):
        share[name] = clone(few).fit(rows, labels, sample_weight=weights).predict_proba(rows)[:, 1].mean()
    share["balanced"] = (
        clone(few).set_params(class_weight="balanced").fit(rows, labels).predict_proba(rows)[:, 1].mean()
    )
    share["named"] = clone(few).set_params(class_weight={"b": 20.0}).fit(rows, labels).predict_proba(rows)[:, 1].mean()
    assert share["heavy"] == share["named"] > share["balanced"] > share["plain"]


def test_the_setting_balances_as_the_parameter_does(classifier):
    labels = ["ab"] * 30 + ["z9"] * 10
    by_parameter = clone(classifier).set_params(class_weight="balanced").fit(TEXTS, labels)
    settings = {**classifier.settings, "class_weight": "balanced"}
    by_setting = clone(classifier).set_params(settings=settings).fit(TEXTS, labels)
    np.testing.assert_allclose(by_setting.predict_proba(TEXTS), by_parameter.predict_proba(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "said"),
    [([1.0], "expected shape"), ([-1.0] * 40, "finite numbers of zero or more"), ([0.0] * 40, "one weight above zero")],
)
def test_wrong_weights_are_refused(classifier, weights, said):
    with pytest.raises(DataError, match=said):
        classifier.fit(TEXTS, LABELS, sample_weight=weights)


def test_weights_that_a_method_cannot_use_are_refused(tiny_folder):
    few = FewShotClassifier(method="setfit", model=str(tiny_folder), settings={"max_length": 24})
    with pytest.raises(ConfigError, match="it cannot weigh rows or classes"):
        few.fit(TEXTS, LABELS, sample_weight=np.linspace(1, 2, 40))
    numbers = FewShotRegressor(method="head", model=str(tiny_folder), settings={"class_weight": "balanced"})
    with pytest.raises(ConfigError, match="a task of kind 'regression' has no classes"):
        numbers.fit(TEXTS, NUMBERS)
