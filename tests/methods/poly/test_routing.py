"""Gates, their noise, what routers share, and regularisers against slow formulas (check 6 of docs/methods/poly.md)."""

from math import lgamma, log, log1p

import pytest
import torch
from scipy.stats import kstest, logistic

from handful.methods.poly.routing import (
    START,
    FixedRouting,
    HyperRouting,
    LearnedRouting,
    ibp_prior,
    logistic_noise,
    router_of,
    shared_information,
    straight_through,
    surplus,
)
from handful.methods.poly.routing_measures import skill_weights


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, scale=2.0, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64) * scale


def test_check_6_noise_is_logistic_and_gates_are_relaxed_bernoulli():
    noise = logistic_noise((20_000,), generator())
    assert kstest(noise.numpy(), logistic.cdf).pvalue > 0.01
    assert kstest(torch.sigmoid(noise).numpy(), "uniform").pvalue > 0.01  # gates at z = 0
    z = 1.3
    theirs = torch.distributions.RelaxedBernoulli(1.0, logits=torch.tensor(z))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        samples = theirs.sample((20_000,))
    assert kstest(torch.sigmoid(z + noise).numpy(), samples.numpy()).pvalue > 0.01
    assert torch.sigmoid(z + noise).mean() == pytest.approx(0.706, abs=0.01)  # not σ(1.3) = 0.786


def test_check_6_weights_of_a_skill_are_noisy_as_computed():
    noise = logistic_noise((20_000, 8), generator())
    weights = skill_weights(noise)
    assert weights.mean() == pytest.approx(0.125, abs=1e-3) and weights.std() == pytest.approx(0.072, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, -25.0, -30.0, -40.0, -1000.0])
def test_check_6_weights_sum_to_one_however_negative_all_logits_are(level, dtype):
    routing = LearnedRouting((2, 3, 4, 2), "sigmoid", generator()).to(dtype)
    with torch.no_grad():
        routing.logits.fill_(level)
    weights = routing.weights(torch.tensor([0, 2]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, dtype=dtype))
    gates = torch.sigmoid(routing.logits.double())
    if level <= -30:  # the published form switches the adapter off
        assert (gates / (gates.sum(-1, keepdim=True) + 1e-12)).sum(-1).max() < 0.2


def test_check_6_weights_without_noise_are_normalised_sigmoids_and_always_the_same():
    routing = LearnedRouting((2, 5, 3, 4), "gumbel", generator()).double()
    with torch.no_grad():
        routing.logits.copy_(draw(2, 5, 3, 4))
    tasks = torch.tensor([4, 1])
    gates = torch.sigmoid(routing.logits[:, tasks])
    found = routing.weights(tasks)
    torch.testing.assert_close(found, gates / gates.sum(-1, keepdim=True))
    assert torch.equal(found, routing.weights(tasks))
    noise = draw(2, 2, 3, 4, seed=1)
    gates = torch.sigmoid(routing.logits[:, tasks] + noise)
    torch.testing.assert_close(routing.weights(tasks, noise), gates / gates.sum(-1, keepdim=True))


def test_check_5_logits_start_small():
    logits = LearnedRouting((3, 40, 4, 8), "sigmoid", generator()).logits
    assert 0.99 * START < logits.abs().max() <= START == 1e-3
    assert abs(logits.mean()) < START / 20


def test_check_1_one_skill_has_all_the_weight():
    routing = LearnedRouting((1, 2, 3, 1), "sigmoid", generator())
    with torch.no_grad():
        routing.logits.copy_(draw(1, 2, 3, 1, scale=50.0))
    assert torch.equal(routing.weights(torch.tensor([0, 1])), torch.ones(1, 2, 3, 1))


def test_hard_gates_have_the_gradient_of_soft_ones():
    z = draw(2, 3, 1, 4).requires_grad_()
    weights = straight_through(z)
    hard = (z > 0).double()
    hard = torch.where(hard.sum(-1, keepdim=True) > 0, hard, (z == z.amax(-1, keepdim=True)).double())
    torch.testing.assert_close(weights, hard / hard.sum(-1, keepdim=True))
    value = draw(4, seed=1)
    (weights * value).sum().backward()
    mean = (weights * value).sum(-1, keepdim=True).detach()
    soft = torch.sigmoid(z.detach())
    torch.testing.assert_close(z.grad, soft * (1 - soft) * (value - mean) / hard.sum(-1, keepdim=True))
    closed = straight_through(torch.tensor([[-3.0, -1.0, -2.0]]))
    assert torch.equal(closed, torch.tensor([[0.0, 1.0, 0.0]]))


def test_fixed_weights_are_the_same_for_all_routers_and_splits():
    routing = FixedRouting(torch.eye(3)[[0, 2, 2, 1]], routers=2, splits=4)
    found = routing.weights(torch.tensor([3, 0]))
    assert found.shape == (2, 2, 4, 3) and not list(routing.parameters())
    for router in range(2):
        for split in range(4):
            assert torch.equal(found[router, :, split], torch.tensor([[0.0, 1, 0], [1, 0, 0]]))


def test_a_net_makes_weights_from_the_embedding_of_the_task():
    routing = HyperRouting(2, 5, 3, generator())
    found = routing.weights(torch.tensor([4, 1]))
    assert found.shape == (2, 2, 1, 3)
    for router in range(2):
        for place, task in enumerate((4, 1)):
            hidden = torch.relu(routing.embeddings[router, task] @ routing.inner[router])
            torch.testing.assert_close(found[router, place, 0], hidden @ routing.outer[router])


def test_the_buffet_prior_is_the_formula_by_hand():
    z = draw(2, 6, 2, 3)
    z[:, :, 0, 1] = -1  # a column that nobody uses
    expected = 0.0
    for router in range(2):
        for column in z[router].flatten(1).T:
            used = int((column > 0).sum())
            if used:
                expected -= lgamma(6 - used + 1) + lgamma(used)
    assert float(ibp_prior(z)) == pytest.approx(expected, rel=1e-12)
    z.requires_grad_()
    ibp_prior(z).backward()
    assert z.grad[:, :, 0, 1].abs().max() == 0 < z.grad.abs().max()  # a column of no task has no term


def test_the_surplus_is_the_formula_by_hand():
    z = draw(2, 5, 2, 3)
    terms = []
    for router in range(2):
        for task in range(5):
            mean = sum(1 / (1 + (-x).exp()) for x in z[router, task].flatten()) / 6
            terms.append(max(0.0, float(mean) - 1 / 6))
    assert float(surplus(z)) == pytest.approx(sum(terms) / 10, rel=1e-12)
    assert float(surplus(torch.full((1, 2, 1, 4), -20.0))) == 0


def test_shared_information_is_the_formula_by_hand():
    z = draw(2, 5, 2, 3)

    def entropy(p):
        return -(p * log(p) + (1 - p) * log1p(-p))

    total = 0.0
    for router in range(2):
        for split in range(2):
            for skill in range(3):
                gates = torch.sigmoid(z[router, :, split, skill]).tolist()
                total += sum(map(entropy, gates)) / 5 - entropy(sum(gates) / 5)
    assert float(shared_information(z)) == pytest.approx(total / 12, rel=1e-9)
    same = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    decided = torch.tensor([[[[9.0, -9]], [[-9, 9]]]], dtype=torch.float64)
    assert float(shared_information(same)) == pytest.approx(0, abs=1e-12)
    assert float(shared_information(decided)) == pytest.approx(-log(2), abs=2e-3)


def test_the_penalty_is_the_weighted_sum_of_those_that_are_on():
    routing = LearnedRouting((2, 3, 1, 4), "sigmoid", generator(), regularisers=(0.5, 0.0, 2.0))
    expected = 0.5 * ibp_prior(routing.logits) + 2 * shared_information(routing.logits)
    torch.testing.assert_close(routing.penalty(), expected)
    assert LearnedRouting((2, 3, 1, 4), "sigmoid", generator()).penalty() is None


BERT, T5 = "encoder.layer.2.attention.self.query", "decoder.block.1.layer.1.EncDecAttention.q"


@pytest.mark.parametrize(
    ("matrix", "fine", "layer", "block", "coder"),
    [
        (BERT, BERT, "encoder.layer.2.attention", "encoder.layer.2", "encoder"),
        ("encoder.layer.2.output.dense", "encoder.layer.2.output.dense", "encoder.layer.2.feed-forward",
         "encoder.layer.2", "encoder"),
        (T5, T5, "decoder.block.1.EncDecAttention", "decoder.block.1", "decoder"),
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "model.layers.0.feed-forward",
         "model.layers.0", "model"),
        ("pooler.dense", "pooler.dense", "model", "model", "model"),
    ],
)  # fmt: skip
def test_the_router_of_a_matrix(matrix, fine, layer, block, coder):
    found = [router_of(matrix, sharing) for sharing in ("fine", "layer", "block", "coder", "coarse")]
    assert found == [fine, layer, block, coder, "model"]
