"""The linear head and the frozen probe: exact where torch is, sklearn's where sklearn is, in the targets' units."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.evaluation.predict import predict_rows
from handful.methods.head import SOFT_PENALTY, Head, LinearHead, frozen_features
from handful.methods.prefix import Prefix
from handful.methods.simplex import Simplex
from handful.objectives import objective_of
from handful.objectives.classification import LONE_PENALTY
from handful.testing import differences, toy_task
from handful.training.config import TrainingConfig
from handful.training.fit import batch_loss, fit

CLASSES, NUMBERS = objective_of("classification"), objective_of("regression")
FRESH = {
    "roberta": ("classifier.dense.bias", "classifier.dense.weight"),
    "xlm-roberta": ("classifier.dense.bias", "classifier.dense.weight"),
    "electra": ("classifier.dense.bias", "classifier.dense.weight"),
    "distilbert": ("pre_classifier.bias", "pre_classifier.weight"),
    "bart": ("classification_head.dense.bias", "classification_head.dense.weight"),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_head(outputs=2, vertices=1, geometry="simplex", width=8):
    head = LinearHead(width, outputs, Simplex(vertices, geometry))
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator()))
        head.bias.copy_(torch.randn(head.bias.shape, generator=generator(1)))
    return head


def data(classes, rows=60, width=8, noise=0.5):
    """Features around one centre a class, and labels."""
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=generator(7))
    return 20 * (centres[labels] + noise * torch.randn(rows, width, generator=generator(8))), labels


# ------------------------------------------------------------------------------------------------ mixing


@given(batch=st.integers(1, 5), width=st.integers(1, 40), outputs=st.integers(1, 4))
def test_one_vertex_is_a_linear_layer_to_the_bit(batch, width, outputs):
    head, layer = random_head(outputs, width=width), nn.Linear(width, outputs)
    with torch.no_grad():
        layer.weight.copy_(head.weight[0])
        layer.bias.copy_(head.bias[0])
    features = torch.randn(batch, width, generator=generator(2))
    for weights in (None, torch.ones(1, 1), torch.ones(batch, 1)):
        assert torch.equal(head(features, weights), layer(features))


@given(vertices=st.integers(2, 5), outputs=st.integers(1, 4), rows=st.sampled_from([1, 6]))
def test_mixing_logits_is_mixing_weights(vertices, outputs, rows):
    head = random_head(outputs, vertices)
    features = torch.randn(6, 8, generator=generator(2)) / 8
    weights = head.simplex.draw((rows,), generator(3))
    mixed = torch.einsum("bm,mcd->bcd", weights, head.weight).expand(6, -1, -1)
    expected = torch.einsum("bcd,bd->bc", mixed, features) + weights @ head.bias
    torch.testing.assert_close(head(features, weights), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("geometry", "vertices"), [("simplex", 3), ("line", 2), ("curve", 3)])
def test_without_weights_it_is_the_midpoint_and_that_is_what_folds(geometry, vertices):
    head = random_head(2, vertices, geometry)
    features = torch.randn(5, 8, generator=generator(2))
    weight, bias = head.folded()
    torch.testing.assert_close(weight, torch.einsum("m,mcd->cd", head.simplex.midpoint, head.weight))
    torch.testing.assert_close(head(features), features @ weight.T + bias)


def test_logits_are_mixed_in_full_precision_under_autocast():
    head = random_head(2, 3)
    features, weights = torch.randn(5, 8, generator=generator(2)), head.simplex.draw((5,), generator(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features, weights)
        vertices = torch.stack(
            [nn.functional.linear(features, w, b) for w, b in zip(head.weight, head.bias, strict=True)]
        )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.einsum("bm,mbc->bc", weights, vertices.float()))


# ------------------------------------------------------------------------------------------------ the probe


def unit(features):
    return features / features.square().sum(1).mean().sqrt()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [SOFT_PENALTY, 10.0])
def test_the_probe_predicts_what_sklearns_logistic_regression_predicts(classes, penalty):
    features, labels = data(classes)
    head = LinearHead(8, classes)
    head.start_from_probe(features, labels, generator(), CLASSES, penalty=penalty)
    model = LogisticRegression(C=penalty, max_iter=2000).fit(unit(features).double(), labels)
    found = softmax(head(features).detach().numpy(), -1)
    np.testing.assert_allclose(found, model.predict_proba(unit(features).double()), atol=1e-4)
    assert (found.argmax(1) == model.predict(unit(features).double())).all()


def test_the_probe_of_numbers_is_sklearns_ridge_in_standard_units():
    features, _ = data(3)
    targets = 1000 + features[:, 0] + torch.randn(60, generator=generator(9))
    head = LinearHead(8, 1)
    head.offset.fill_(float(targets.mean()))
    head.scale.fill_(float(targets.std(correction=0)))
    head.start_from_probe(features, targets, generator(), NUMBERS, penalty=50.0)
    standard = (targets - targets.mean()) / targets.std(correction=0)
    model = Ridge(alpha=1 / 50).fit(unit(features).double(), standard.double())
    np.testing.assert_allclose(head(features)[:, 0].detach(), model.predict(unit(features).double()), atol=1e-4)
    weight, bias = head.folded()
    np.testing.assert_allclose((features @ weight.T + bias)[:, 0], targets, atol=10)  # in the targets' own units


def test_the_penalty_means_the_same_for_features_of_any_size():
    features, labels = data(2)
    small, large = LinearHead(8, 2), LinearHead(8, 2)
    small.start_from_probe(features / 1000, labels, generator(), CLASSES)
    large.start_from_probe(features * 1000, labels, generator(), CLASSES)
    torch.testing.assert_close(small(features / 1000), large(features * 1000), rtol=1e-4, atol=1e-4)


def test_cross_validation_trusts_clear_rows_more_than_noisy_ones():
    clear, labels = (tensor.numpy() for tensor in data(2, noise=0.1))
    noisy = np.random.default_rng(0).normal(size=(60, 8))
    scale = np.sqrt((clear**2).sum(1).mean())
    assert CLASSES.choose_penalty(clear / scale, labels) > CLASSES.choose_penalty(noisy / 3, labels)
    targets = clear[:, 0] / scale
    assert NUMBERS.choose_penalty(clear / scale, targets) > NUMBERS.choose_penalty(noisy / 3, targets)


def test_a_class_with_a_single_row_has_nothing_to_validate_with():
    features, labels = data(2)
    assert CLASSES.choose_penalty(features[:3].numpy(), labels[:3].numpy()) == LONE_PENALTY


@pytest.mark.parametrize("vertices", [1, 3])
def test_a_soft_probe_of_single_rows_reads_them_and_not_their_number(vertices):
    features = torch.eye(6, 8)[[0, 0, 1, 2, 3, 4, 5]]  # one class of six has two rows
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    head = LinearHead(8, 6, Simplex(vertices))
    head.start_from_probe(features, labels, generator(), CLASSES, penalty=SOFT_PENALTY)
    assert (head(features).argmax(1) == 0).all()  # what balance is for
    head.start_from_probe(features, labels, generator(), CLASSES, penalty=SOFT_PENALTY, balanced=True)
    assert torch.equal(head(features).argmax(1), labels)


def test_balanced_rows_are_sklearns_balanced_classes():
    features, labels = data(3)
    kept = torch.cat([torch.nonzero(labels == label)[:rows, 0] for label, rows in ((0, 3), (1, 12), (2, 6))])
    features, labels = features[kept], labels[kept]
    head = LinearHead(8, 3)
    head.start_from_probe(features, labels, generator(), CLASSES, penalty=1.0, balanced=True)
    model = LogisticRegression(C=1.0, max_iter=2000, class_weight="balanced").fit(unit(features).double(), labels)
    found = softmax(head(features).detach().numpy(), -1)
    np.testing.assert_allclose(found, model.predict_proba(unit(features).double()), atol=1e-4)


def test_vertices_are_probes_of_the_same_rows_that_differ():
    features, labels = data(3, noise=1.5)
    head = LinearHead(8, 3, Simplex(4))
    head.start_from_probe(features, labels, generator(), CLASSES, penalty=1.0)
    vertices = head.weight.detach().flatten(1)
    assert torch.pdist(vertices).min() > 0.05 * vertices.norm(dim=1).mean()
    assert torch.cosine_similarity(vertices[0], vertices[1:]).min() > 0.7
    weight, _ = head.folded()
    plain = LinearHead(8, 3)
    plain.start_from_probe(features, labels, generator(5), CLASSES, penalty=1.0)
    assert torch.cosine_similarity(weight.flatten(), plain.weight[0].flatten(), 0) > 0.9
    again = LinearHead(8, 3, Simplex(4))
    again.start_from_probe(features, labels, generator(), CLASSES, penalty=1.0)
    assert torch.equal(again.weight, head.weight)


def test_a_soft_probe_leaves_something_to_learn():
    losses = {}
    for start in ("soft-probe", "probe", "normal"):
        training = fitted(Head(head_init=start), epochs=0)  # pyright: ignore[reportArgumentType]
        batch = training.rows.batch(range(24))
        losses[start] = batch_loss(training.adapter(batch), batch, training.adapter, "classification").item()
    assert losses["probe"] < losses["soft-probe"] < losses["normal"]
    assert losses["normal"] == pytest.approx(np.log(2), abs=0.15)


# ------------------------------------------------------------------------------------------------ the method


class fitted:
    """A method attached to a tiny backbone and trained on the toy task."""

    def __init__(self, method, family="bert", pooling="auto", kind="classification", epochs=2, backbone=None):
        self.backbone = backbone or tiny_backbone(family, pooling=pooling)
        self.task = toy_task(kind)
        self.adapter = method.attach(self.backbone, self.task, generator=generator()).eval()
        self.rows = encode(self.task.pool, self.backbone.tokenizer, 64, kind=kind)
        self.before = {name: tensor.clone() for name, tensor in self.backbone.model.state_dict().items()}
        config = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=0.01)
        fit(self.adapter, self.rows, None, config, kind=kind, metric=self.task.metric, generator=generator(1))

    def predict(self):
        return predict_rows(self.adapter, self.rows, self.task.kind).scores[0]


def test_the_frozen_probe_is_sklearn_on_the_backbones_features():
    training = fitted(Head(), epochs=0)
    features = frozen_features(training.backbone, training.rows)
    labels = training.rows.labels
    penalty = CLASSES.choose_penalty(unit(features).double().numpy(), labels.numpy())  # pyright: ignore
    model = LogisticRegression(C=penalty, max_iter=2000).fit(unit(features).double(), labels)
    found = softmax(training.predict(), -1)
    np.testing.assert_allclose(found, model.predict_proba(unit(features).double()), atol=1e-4)
    assert sum(p.numel() for p in training.adapter.parameters()) == 2 * 64 + 2


def test_numbers_are_predicted_in_their_own_units():
    training = fitted(Head(), kind="regression", epochs=0)
    targets = training.rows.labels
    assert targets is not None
    predictions = training.predict()[:, 0]
    assert np.corrcoef(predictions, targets)[0, 1] > 0.6 and abs(predictions.mean() - float(targets.mean())) < 5
    batch = training.rows.batch(range(5))
    with torch.no_grad():
        standard, own = training.adapter(batch)[:, 0], training.adapter.target_scores(batch)[:, 0]
    torch.testing.assert_close(training.adapter.standardise(own), standard, rtol=1e-4, atol=1e-4)
    features = frozen_features(training.backbone, training.rows)[:5]
    weight, bias = training.adapter.head.folded()
    torch.testing.assert_close((features @ weight.T + bias)[:, 0], own, rtol=1e-5, atol=1e-3)


def test_equal_targets_do_not_divide_by_zero():
    head = fitted(Head(), kind="regression", epochs=0)
    rows = head.rows.__class__(head.rows.input_ids, head.rows.token_type_ids, torch.full((24,), 5.0), 0, 1)
    head.adapter.warm_start(rows, generator())
    assert head.predict()[:, 0] == pytest.approx(np.full(24, 5.0))


# ------------------------------------------------------------------------------------------------ fresh poolers


@pytest.mark.parametrize("family", FRESH)
def test_layers_that_no_checkpoint_holds_are_trained_saved_and_taken_back(family):
    training = fitted(Prefix(prefix_length=3), family, "family")
    backbone, adapter = training.backbone, training.adapter
    assert backbone.fresh == FRESH[family]
    names = {f"pooler.{name.replace('.', '__')}" for name in backbone.fresh}
    assert names < set(dict(adapter.named_parameters())) and names < adapter.state_dict().keys()
    after = backbone.model.state_dict()
    assert set(differences(training.before, after)) == set(backbone.fresh)  # and nothing else was trained
    expected, weights = training.predict(), {n: t.clone() for n, t in adapter.state_dict().items()}

    adapter.detach()
    plain = tiny_backbone(family, pooling="family").model.state_dict()
    assert not differences(backbone.model.state_dict(), plain)
    assert not any(p.requires_grad for p in backbone.model.parameters())

    other = Prefix(prefix_length=3).attach(backbone, training.task, generator=generator(9)).eval()
    other.load_state_dict(weights)
    assert np.array_equal(predict_rows(other, training.rows, "classification").scores[0], expected)


def test_a_fresh_pooler_starts_from_the_generator_and_counts_for_no_fingerprint():
    backbone = tiny_backbone("roberta", pooling="family")
    fingerprint, task = backbone.fingerprint, toy_task()
    states = []
    for seed in (0, 0, 1):
        adapter = Head().attach(backbone, task, generator=generator(seed))
        states.append({name: tensor.clone() for name, tensor in adapter.state_dict().items()})
        adapter.detach()
    assert not differences(states[0], states[1])
    assert "pooler.classifier__dense__weight" in differences(states[0], states[2])
    assert states[0]["pooler.classifier__dense__weight"].std() == pytest.approx(0.1, rel=0.1)  # the tiny models' own
    assert not states[0]["pooler.classifier__dense__bias"].any()
    assert tiny_backbone("roberta", seed=0, pooling="family").fingerprint == fingerprint
    assert tiny_backbone("roberta", seed=1, pooling="family").fingerprint != fingerprint


def test_bert_keeps_its_trained_pooler():
    backbone = tiny_backbone("bert", pooling="family")
    assert backbone.fresh == ()
    assert Head().attach(backbone, toy_task(), generator=generator()).pooler is None


def test_one_row_a_class_is_enough_to_tell_classes_apart():
    """With a strong penalty the class that has two rows would be predicted for every text."""
    features = torch.cat([torch.eye(6), torch.eye(6)[:1]]) + 3
    labels = torch.arange(7) % 6
    head = LinearHead(6, 6)
    head.start_from_probe(features, labels, generator(), CLASSES)
    assert head(features).argmax(1).tolist() == labels.tolist()
    head.start_from_probe(features, labels, generator(), CLASSES, penalty=0.3)
    assert set(head(features).argmax(1).tolist()) == {0}


@pytest.mark.parametrize("regression", [False, True])
def test_a_row_of_weight_two_is_two_rows_to_the_probe(regression):
    features = F.normalize(torch.randn(12, 5, generator=generator()))  # so that repeats leave the mean norm as it is
    targets = features[:, 0] if regression else (features[:, 0] > 0).long()
    twice = torch.cat([torch.arange(12), torch.arange(3)])
    counts = torch.ones(12)
    counts[:3] = 2
    heads = [LinearHead(5, 1 if regression else 2) for _ in range(2)]
    objective = NUMBERS if regression else CLASSES
    heads[0].start_from_probe(features, targets, generator(), objective, penalty=1.0, row_weights=counts)
    heads[1].start_from_probe(features[twice], targets[twice], generator(), objective, penalty=1.0)
    torch.testing.assert_close(heads[0](features), heads[1](features), atol=1e-4, rtol=1e-4)
    heads[1].start_from_probe(features, targets, generator(), objective, penalty=1.0)
    assert not torch.allclose(heads[0](features), heads[1](features), atol=1e-2)
