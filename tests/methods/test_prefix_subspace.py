"""The twelve checks of docs/methods/prefix-subspace.md, each a test named after its number, and a few of our own.

Bounds are those that the page gives; float64 where rounding would hide something.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from handful.backbone.tiny import tiny_backbone, tiny_model
from handful.data.batching import EncodedRows, encode
from handful.data.split import Split
from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError
from handful.evaluation.predict import Predictions, predict_rows
from handful.methods import method_names
from handful.methods.base import Draw
from handful.methods.prefix import Prefix, inject
from handful.methods.prefix_subspace import PrefixSubspace
from handful.methods.simplex import Simplex, mix_layers, spread
from handful.runs.experiment import make_split
from handful.runs.spec import resolve
from handful.testing import toy_task
from handful.training.config import TrainingConfig
from handful.training.events import StepDone
from handful.training.fit import batch_loss, fit
from handful.training.selection import Selector, combine

LENGTH, LAYERS, WIDTH = 4, 3, 64  # P, L, D of the tiny models
TASK = toy_task()
EXACT = {"rtol": 0, "atol": 1e-12}  # of float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(backbone, task=TASK) -> EncodedRows:
    return encode(task.pool, backbone.tokenizer, 64, kind=task.kind)


def attach(method, backbone=None, seed=0, dtype=torch.float32):
    backbone = backbone or tiny_backbone("bert", pooling="family")
    backbone.model.to(dtype)
    return method.attach(backbone, TASK, generator=generator(seed)).to(dtype).eval()


def subspace(num_vertices=3, **settings):
    return PrefixSubspace(num_vertices=num_vertices, prefix_length=LENGTH, head_init="normal", **settings)


def batch_of(adapter, size=5):
    return rows_of(adapter.backbone).batch(range(size))


def scores(adapter, batch, draw=None):
    with torch.no_grad():
        return adapter(batch, draw)


def train(method, **settings):
    """Losses and final weights of 21 steps, on a fresh backbone."""
    adapter, losses = attach(method), []
    fit(
        adapter,
        rows_of(adapter.backbone),
        None,
        TrainingConfig(**{"epochs": 7, "batch_size": 8, **settings}),
        kind=TASK.kind,
        metric=TASK.metric,
        generator=generator(1),
        on_event=lambda event: losses.append(event.loss) if isinstance(event, StepDone) else None,
    )
    return adapter, losses


def stock_peft(adapter, **options):
    """Stock PEFT prefix tuning with the adapter's base weights, folded prefix (positions shifted) and folded head."""
    peft = pytest.importorskip("peft")
    model = tiny_model("bert", head="classifier", **options)
    model.base_model.load_state_dict(adapter.backbone.model.base_model.state_dict())
    shape = {"num_layers": LAYERS, "num_attention_heads": 4, "token_dim": WIDTH, "encoder_hidden_size": WIDTH}
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH, **shape)
    wrapped = peft.get_peft_model(model, config).eval()
    head = wrapped.base_model.classifier.modules_to_save["default"]
    rows = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        rows.copy_(as_rows(adapter.folded_prefix()))
        for parameter, folded in zip((head.weight, head.bias), adapter.head.folded(), strict=True):
            parameter.copy_(folded)
    return wrapped, rows, head


def as_rows(prefix):
    """A prefix (L, 2, H, P, d) in PEFT's layout (P, 2·L·H·d)."""
    return prefix.flatten(0, 1).permute(2, 0, 1, 3).reshape(prefix.shape[3], -1)


# ------------------------------------------------------------------------------------------------ 1: m = 1


def test_check_01_m1_is_plain_prefix_tuning():
    adapter = attach(subspace(num_vertices=1, positions="shifted"))
    batch = batch_of(adapter)
    draw = adapter.draw(batch, generator(5))
    weights = draw.rows["prefix"]
    assert torch.equal(weights, torch.ones(5, LAYERS, 1))
    vertex = adapter.prefix()[0]
    assert torch.equal(adapter.mixed(weights), vertex.unsqueeze(1))
    assert torch.equal(mix_layers(weights, adapter.prefix())[:, 2], vertex)

    found = scores(adapter, batch, draw)
    features = adapter.backbone.features(batch.inputs)
    assert torch.equal(found, F.linear(features, adapter.head.weight[0], adapter.head.bias[0]))
    theirs, _, _ = stock_peft(adapter)
    with torch.no_grad():
        assert torch.equal(found, theirs(**batch.inputs).logits)


@pytest.mark.parametrize("positions", ["shifted", "kept"])
@pytest.mark.parametrize("form", ["flat", "mlp"])
def test_check_01_m1_trains_as_plain_prefix_tuning_bit_for_bit(form, positions):
    shared = {"prefix_length": LENGTH, "form": form, "positions": positions}
    first, first_losses = train(PrefixSubspace(num_vertices=1, **shared), trunk_dropout=True)
    second, second_losses = train(Prefix(**shared), trunk_dropout=True)
    assert len(first_losses) == 21 and first_losses == second_losses
    assert first_losses != train(Prefix(**shared))[1]  # dropout was on
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_check_01_m1_trains_as_stock_peft_bit_for_bit(monkeypatch):
    """The same batches, rates and dropout through stock PEFT and a plain AdamW give the same losses and weights."""
    method = subspace(num_vertices=1, positions="shifted")
    theirs, prefix, head = stock_peft(attach(method))
    batches, random_states = [], []
    forward = type(attach(method)).forward

    def spy(self, batch, draw=None):
        if torch.is_grad_enabled():  # a step of training, at the state that its dropout draws from
            batches.append(batch)
            random_states.append(torch.get_rng_state())
        return forward(self, batch, draw)

    monkeypatch.setattr(type(attach(method)), "forward", spy)
    settings = {"learning_rate": 0.01, "gradient_clip": 0.0, "schedule": "constant", "warmup": 0.0}
    adapter, losses = train(method, trunk_dropout=True, **settings)

    optimizer = torch.optim.AdamW([prefix, head.weight, head.bias], lr=0.01, weight_decay=0)
    theirs.train()
    plain = []
    with torch.random.fork_rng(devices=[]):
        for batch, random_state in zip(batches, random_states, strict=True):
            torch.set_rng_state(random_state)
            loss = F.cross_entropy(theirs(**batch.inputs).logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plain.append(loss.item())
    assert len(plain) == 21 and losses == plain
    assert torch.equal(as_rows(adapter.folded_prefix()), prefix)
    assert torch.equal(adapter.head.weight[0], head.weight) and torch.equal(adapter.head.bias[0], head.bias)


# ------------------------------------------------------------------------------------------------ 2: midpoint


def test_check_02_the_midpoint_is_the_mean_of_the_vertices():
    adapter = attach(subspace(positions="shifted"))
    batch = batch_of(adapter)
    torch.testing.assert_close(adapter.folded_prefix(), adapter.prefix().mean(0), rtol=0, atol=1e-6)
    midpoint = scores(adapter, batch)
    theirs, _, _ = stock_peft(adapter)
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch.inputs).logits, midpoint, rtol=0, atol=1e-6)
    plain = attach(Prefix(prefix_length=LENGTH, positions="shifted"))
    with torch.no_grad():
        plain.prefix.keys_values.copy_(adapter.prefix().mean(0, keepdim=True))
        plain.head.weight.copy_(adapter.head.weight.mean(0, keepdim=True))
        plain.head.bias.copy_(adapter.head.bias.mean(0, keepdim=True))
    torch.testing.assert_close(scores(plain, batch), midpoint, rtol=0, atol=1e-6)


def test_check_02_the_midpoint_of_a_curve_is_not_the_mean():
    adapter = attach(subspace(geometry="curve"))
    start, control, end = adapter.prefix()
    torch.testing.assert_close(adapter.folded_prefix(), (start + 2 * control + end) / 4, rtol=0, atol=1e-6)
    assert (adapter.folded_prefix() - adapter.prefix().mean(0)).abs().max() > 0.05
    weight = adapter.head.weight
    torch.testing.assert_close(adapter.head.folded()[0], (weight[0] + 2 * weight[1] + weight[2]) / 4)


def test_check_02_an_mlp_prefix_is_mixed_behind_its_mlp():
    adapter = attach(subspace(form="mlp"))
    torch.testing.assert_close(adapter.folded_prefix(), adapter.prefix().mean(0), rtol=0, atol=1e-5)
    form = adapter.prefix
    with torch.no_grad():  # the mean of the parameters would be something else
        for parameter in form.parameters():
            parameter.copy_(parameter.mean(0, keepdim=True).expand_as(parameter).clone())
    assert (form()[0] - attach(subspace(form="mlp")).folded_prefix()).abs().max() > 0.05


# ------------------------------------------------------------------------------------------------ 3: gradients


def gradients_of_a_draw(adapter, batch, draw):
    """One backward pass: mixed prefix and its gradient, scores and theirs."""
    kept = []
    mixed = type(adapter).mixed

    def spy(weights):
        kept.append(mixed(adapter, weights))
        kept[-1].retain_grad()
        return kept[-1]

    adapter.mixed = spy
    found = adapter(batch, draw)
    found.retain_grad()
    batch_loss(found, batch, adapter, TASK.kind).backward()
    return kept[0], found


def test_check_03_vertices_learn_in_proportion_to_their_weight():
    adapter = attach(subspace(), dtype=torch.float64)
    batch = batch_of(adapter)
    draw = adapter.draw(batch, generator(2))
    mixed, found = gradients_of_a_draw(adapter, batch, draw)
    weights, head_weights = draw.rows["prefix"].double(), draw.rows["head"].double()
    expected = torch.einsum("blm,lbkhpd->mlkhpd", weights, mixed.grad)
    torch.testing.assert_close(adapter.prefix.keys_values.grad, expected, **EXACT)
    with torch.no_grad():
        features = adapter.backbone.features(batch.inputs)
    expected = torch.einsum("bm,bc,bd->mcd", head_weights, found.grad, features)
    torch.testing.assert_close(adapter.head.weight.grad, expected, **EXACT)
    torch.testing.assert_close(adapter.head.bias.grad, head_weights.T @ found.grad, **EXACT)


def test_check_03_the_vertices_gradients_add_up_to_the_plain_gradient():
    adapter = attach(subspace(), dtype=torch.float64)
    plain = attach(subspace(num_vertices=1), dtype=torch.float64)
    batch = batch_of(adapter)
    with torch.no_grad():
        for many, one in zip(adapter.parameters(), plain.parameters(), strict=True):
            many.copy_(one.expand_as(many))
    gradients_of_a_draw(adapter, batch, adapter.draw(batch, generator(2)))
    batch_loss(plain(batch), batch, plain, TASK.kind).backward()
    for many, one in zip(adapter.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(many.grad.sum(0, keepdim=True), one.grad, rtol=0, atol=1e-8)  # weights are float32


def test_check_03_a_vertex_without_weight_gets_no_gradient_at_all():
    adapter = attach(subspace())
    batch = batch_of(adapter)
    gradients_of_a_draw(adapter, batch, adapter.at(vertex=1))
    for parameter in adapter.parameters():
        assert parameter.grad[1].abs().max() > 0
        assert not parameter.grad[0].any() and not parameter.grad[2].any()


# ------------------------------------------------------------------------------------------------ 4: sampler


def is_uniform_on_the_simplex(weights) -> bool:
    """Whether weights (N, M) have the moments and the marginal law of Dirichlet(1, …, 1)."""
    draws, count = weights.shape
    variance = (count - 1) / (count**2 * (count + 1))
    covariance = np.full((count, count), -1 / (count**2 * (count + 1)))
    np.fill_diagonal(covariance, variance)
    distance = max(stats.kstest(column, stats.beta(1, count - 1).cdf).statistic for column in weights.T[:2])
    return bool(
        np.allclose(weights.mean(0), 1 / count, atol=0.003)
        and np.allclose(np.cov(weights.T), covariance, atol=0.02 * variance)
        and abs((weights**2).sum(1).mean() - 2 / (count + 1)) < 0.003
        and distance < 1.63 / draws**0.5 * 1.2
    )


@pytest.mark.parametrize("count", [2, 3, 6])
def test_check_04_draws_are_uniform_on_the_simplex(count):
    draws = Simplex(count).draw((200_000,), generator(1)).double()
    assert torch.allclose(draws.sum(1), torch.ones(200_000, dtype=torch.float64), atol=1e-6)
    assert is_uniform_on_the_simplex(draws.numpy())
    uniforms = torch.rand(200_000, count, generator=generator(1), dtype=torch.float64)
    assert not is_uniform_on_the_simplex((uniforms / uniforms.sum(1, keepdim=True)).numpy())
    denser = Simplex(count, concentration=1.1).draw((200_000,), generator(1))
    assert not is_uniform_on_the_simplex(denser.double().numpy())


# ------------------------------------------------------------------------------------------------ 5: granularity


def drawn(adapter, rows=4000):
    """Weights (B, L, M) and head weights (B, M) of one draw for a batch of that many rows."""
    repeated = rows_of(adapter.backbone).batch([0] * rows)
    draw = adapter.draw(repeated, generator(3))
    return draw.rows["prefix"].numpy(), draw.rows["head"].numpy()


def correlation(first, second):
    return abs(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_check_05_every_observation_layer_and_head_draws_for_itself():
    weights, head = drawn(attach(subspace()))
    assert weights.shape == (4000, LAYERS, 3) and head.shape == (4000, 3)
    for vertex in range(3):
        points = weights[..., vertex]
        assert len(np.unique(points)) > 0.99 * points.size
        assert correlation(points[:-1], points[1:]) < 0.04  # observations
        assert max(correlation(points[:, i], points[:, j]) for i in range(3) for j in range(i)) < 0.06  # layers
        assert max(correlation(points[:, layer], head[:, vertex]) for layer in range(3)) < 0.06


def test_check_05_batch_and_shared_draws_are_equal_along_their_axis():
    weights, head = drawn(attach(subspace(draw_per="batch")), 6)
    assert weights.shape == (1, LAYERS, 3) and head.shape == (1, 3)  # one for all rows
    assert len(np.unique(weights[..., 0])) == LAYERS
    weights, _ = drawn(attach(subspace(draw_layers="shared")), 6)
    assert (weights == weights[:, :1]).all() and len(np.unique(weights[..., 0])) == 6
    weights, _ = drawn(attach(subspace(draw_per="batch", draw_layers="shared")), 6)
    assert weights.shape[0] == 1 and len(np.unique(weights[..., 0])) == 1


def test_check_05_key_and_value_of_a_layer_share_their_draw():
    adapter = attach(subspace(num_vertices=2))
    with torch.no_grad():
        adapter.prefix.keys_values[0].zero_()
        adapter.prefix.keys_values[1].fill_(1)  # so that the mixed prefix shows the weight of vertex 1
    weights = adapter.draw(batch_of(adapter), generator(3)).rows["prefix"]
    mixed = adapter.mixed(weights)  # (L, B, 2, H, P, d)
    expected = weights[..., 1].T[..., None, None, None, None].expand_as(mixed)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------------ 6: per observation


def test_check_06_a_batch_of_draws_is_as_many_single_forwards():
    adapter = attach(subspace(), dtype=torch.float64)
    batch = batch_of(adapter)
    draw = adapter.draw(batch, generator(4))
    together = scores(adapter, batch, draw)
    rows = rows_of(adapter.backbone)
    for row in range(5):
        torch.testing.assert_close(
            scores(adapter, rows.batch([row]), draw[row : row + 1]), together[row : row + 1], **EXACT
        )
    order = [3, 0, 4, 1, 2]
    moved = Draw({name: weights[order] for name, weights in draw.rows.items()})
    torch.testing.assert_close(scores(adapter, rows.batch(order), moved), together[order], **EXACT)
    assert (scores(adapter, rows.batch(order), draw) - together[order]).abs().max() > 1e-3  # without their weights


# ------------------------------------------------------------------------------------------------ 7: attention


def hand_written_bert(model, ids, mask, prefix, offset):
    """Last hidden states (B, S, D) of BERT by its formulas, with prefixes (L, B, 2, H, P, d) in front."""
    embeddings = model.embeddings
    hidden = embeddings.word_embeddings.weight[ids] + embeddings.token_type_embeddings.weight[0]
    hidden = embeddings.LayerNorm(hidden + embeddings.position_embeddings.weight[offset : offset + ids.shape[1]])
    for layer, keys_values in zip(model.encoder.layer, prefix, strict=True):
        own = layer.attention.self
        query, key, value = (f(hidden).unflatten(-1, (4, 16)).transpose(1, 2) for f in (own.query, own.key, own.value))
        key, value = (torch.cat((keys_values[:, i], t), 2) for i, t in enumerate((key, value)))
        attendable = F.pad(mask.bool(), (prefix.shape[4], 0), value=True)[:, None, None]
        logits = (query @ key.transpose(2, 3) / 16**0.5).masked_fill(~attendable, -torch.inf)
        context = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
        middle = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + hidden)
        inner = F.gelu(layer.intermediate.dense(middle))
        hidden = layer.output.LayerNorm(layer.output.dense(inner) + middle)
    return hidden


@pytest.mark.parametrize("loaded_as", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["shifted", "kept"])
def test_check_07_injected_attention_is_the_hand_written_one(positions, loaded_as):
    backbone = tiny_backbone("bert")
    backbone.model.set_attn_implementation(loaded_as)
    adapter = attach(subspace(positions=positions), backbone, dtype=torch.float64)
    batch = batch_of(adapter)
    mask = batch.inputs["attention_mask"]
    assert not mask.all()  # there is padding
    prefix = adapter.mixed(adapter.draw(batch, generator(5)).rows["prefix"])
    with torch.no_grad():
        inject(backbone, adapter.sites, prefix, adapter.shift)
        found = backbone.model(**batch.inputs).last_hidden_state
        offset = LENGTH if positions == "shifted" else 0
        expected = hand_written_bert(backbone.model, batch.inputs["input_ids"], mask, prefix, offset)
        wrong = hand_written_bert(backbone.model, batch.inputs["input_ids"], mask, prefix, LENGTH - offset)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **EXACT)
    assert (found - wrong)[mask.bool()].abs().max() > 1e-2


def test_check_07_without_slots_the_model_is_the_plain_one_and_a_zero_prefix_is_not():
    backbone = tiny_backbone("bert")
    batch = rows_of(backbone).batch(range(5))
    with torch.no_grad():
        plain = backbone.features(batch.inputs)
        adapter = attach(subspace(positions="kept"), backbone)
        scores(adapter, batch)
        backbone.injection.set([(None, None)] * LAYERS)
        assert torch.equal(backbone.features(batch.inputs), plain)
        inject(backbone, adapter.sites, torch.zeros_like(adapter.mixed(adapter.at().rows["prefix"])), shift=False)
        assert (backbone.features(batch.inputs) - plain).abs().max() > 1e-3  # its slots take softmax mass


# ------------------------------------------------------------------------------------------------ 8: frozen base


@pytest.mark.parametrize(("vertices", "form"), [(1, "flat"), (3, "flat"), (2, "mlp")])
def test_check_08_the_base_stays_frozen_and_the_counts_are_the_formulas(vertices, form):
    before = {name: t.clone() for name, t in tiny_backbone("bert", pooling="family").model.state_dict().items()}
    adapter, _ = train(subspace(num_vertices=vertices, form=form), learning_rate=0.1)
    after = adapter.backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    one = 2 * LAYERS * LENGTH * WIDTH
    if form == "mlp":
        one = LENGTH * WIDTH + WIDTH * 512 + 512 + 512 * 2 * LAYERS * WIDTH + 2 * LAYERS * WIDTH
    classes = len(TASK.labels)
    assert sum(p.numel() for p in adapter.parameters()) == vertices * one + vertices * (classes * WIDTH + classes)


def test_check_08_counts_of_bert_base_as_by_the_formula():
    """Section 1.1: 184,320 flat and 9,857,024 MLP numbers a vertex at P = 10, L = 12, D = 768."""
    layers, width, length = 12, 768, 10
    assert 2 * layers * length * width == 184_320
    mlp = length * width + width * 512 + 512 + 512 * 2 * layers * width + 2 * layers * width
    assert mlp == 9_857_024


# ------------------------------------------------------------------------------------------------ 9: curvature


def test_check_09_on_a_quadratic_the_mean_loss_is_the_closed_form():
    """E[loss] = loss(θ̄) + Σᵢ (θᵢ − θ̄)ᵀ Hess (θᵢ − θ̄) / (2·m·(m + 1)); draws per layer drop the blocks between them."""
    vertices, layers, size, samples = 3, 2, 4, 1_000_000
    theta = torch.randn(vertices, layers, size, generator=generator(), dtype=torch.float64)
    root = torch.randn(layers * size, layers * size, generator=generator(1), dtype=torch.float64)
    hessian = root @ root.T

    def quadratic(points):
        return 0.5 * ((points @ hessian) * points).sum(-1)

    away = (theta - theta.mean(0)).flatten(1)
    blocks = torch.block_diag(*[torch.ones(size, size)] * layers)
    for per_layer, used in ((False, hessian), (True, hessian * blocks)):
        weights = Simplex(vertices).draw((samples, layers if per_layer else 1), generator(2))
        points = mix_layers(weights.expand(samples, layers, vertices), theta)  # (L, N, size)
        losses = quadratic(points.transpose(0, 1).flatten(1))
        penalty = ((away @ used) * away).sum() / (2 * vertices * (vertices + 1))
        expected = quadratic(theta.mean(0).flatten()) + penalty
        error = losses.std() / samples**0.5
        assert abs(losses.mean() - expected) < 4 * error
        assert 4 * error < 0.05 * penalty  # so that the penalty is really tested
        assert abs(losses.mean() / expected - 1) < 4e-3


# ------------------------------------------------------------------------------------------------ 10: validation


def evaluate(adapter, draws_seed=0, metric="accuracy", repeats=1, **settings):
    selector = Selector(TrainingConfig(**settings), TASK.kind, metric, draws_seed)
    rows = encode(TASK.pool[:8], adapter.backbone.tokenizer, 64, kind=TASK.kind)
    return [selector.evaluate(adapter, rows) for _ in range(repeats)]


def test_check_10_one_draw_at_the_midpoint_is_the_deterministic_score(monkeypatch):
    adapter = attach(subspace())
    (expected,) = evaluate(adapter, metric="nll")
    assert expected.deviation == 0
    middle = Draw({"prefix": torch.full((1, LAYERS, 3), 1 / 3), "head": torch.full((1, 3), 1 / 3)})
    monkeypatch.setattr(adapter, "draw", lambda batch, generator: middle)
    for validation in ("pooled", "averaged"):
        (found,) = evaluate(adapter, metric="nll", validation=validation, validation_draws=1)
        assert found.score == pytest.approx(expected.score, rel=1e-6) and found.deviation == 0


def test_check_10_pooled_is_averaged_for_accuracy_and_not_for_f1_and_matthews():
    adapter = attach(subspace())
    pooled, averaged = (
        evaluate(adapter, validation=validation, validation_draws=7)[0] for validation in ("pooled", "averaged")
    )
    assert pooled.score == pytest.approx(averaged.score, abs=1e-12) and pooled.deviation == averaged.deviation > 0

    targets = np.array([1, 1, 0, 0])
    passes = np.array([[1, 1, 1, 1], [1, 0, 0, 0]])  # F1 2/3 and 2/3 a pass; of all eight: tp 3, fp 2, fn 1
    crafted = Predictions(np.stack((1 - passes, passes), -1).astype(float), "classification")
    for metric, pooled_value, averaged_value in (
        ("accuracy", 5 / 8, 5 / 8),
        ("f1", 6 / 9, 2 / 3),
        ("matthews", (3 * 2 - 2 * 1) / (5 * 4 * 4 * 3) ** 0.5, (0 + 1 / 3**0.5) / 2),
    ):
        assert combine(crafted, targets, metric, "pooled").score == pytest.approx(pooled_value)
        assert combine(crafted, targets, metric, "averaged").score == pytest.approx(averaged_value)
    passes = np.array([[1, 1, 1, 1], [0, 0, 0, 1]])
    crafted = Predictions(np.stack((1 - passes, passes), -1).astype(float), "classification")
    assert combine(crafted, targets, "f1", "pooled").score == pytest.approx(4 / 9)  # tp 2, fp 3, fn 2
    assert combine(crafted, targets, "f1", "averaged").score == pytest.approx((2 / 3 + 0) / 2)


def test_check_10_the_same_seed_gives_the_same_score_and_common_draws_repeat():
    adapter = attach(subspace())
    settings = {"metric": "nll", "validation": "pooled", "validation_draws": 3, "repeats": 2}
    first, second = evaluate(adapter, **settings)
    assert first == second == evaluate(adapter, **settings)[0]  # common random numbers
    assert first != evaluate(adapter, draws_seed=99, **settings)[0]
    fresh = evaluate(adapter, fresh_draws=True, **settings)
    assert fresh[0] != fresh[1] and fresh == evaluate(adapter, fresh_draws=True, **settings)


def test_check_10_the_score_varies_less_with_more_draws():
    adapter = attach(subspace())
    few, many = (
        np.std(
            [
                score.score
                for score in evaluate(
                    adapter, metric="nll", validation="averaged", validation_draws=draws, fresh_draws=True, repeats=40
                )
            ]
        )
        for draws in (1, 9)
    )
    assert 2 < few / many < 4.5  # √9 = 3


def test_check_10_one_vertex_has_no_deviation():
    adapter = attach(subspace(num_vertices=1))
    (deterministic,) = evaluate(adapter, metric="nll")
    for validation in ("pooled", "averaged"):
        (found,) = evaluate(adapter, metric="nll", validation=validation)
        assert found == deterministic and found.deviation == 0


# ------------------------------------------------------------------------------------------------ 11: start


@pytest.mark.parametrize(("init", "form"), [("normal", "flat"), ("normal", "mlp"), ("activations", "flat")])
def test_check_11_random_vertices_start_apart(init, form):
    adapter = attach(PrefixSubspace(prefix_length=LENGTH, init=init, form=form))
    adapter.warm_start(rows_of(adapter.backbone), generator(1))
    assert adapter.diagnostics()["spread"] > 0.3
    assert 0 <= adapter.diagnostics()["squared_cosine"] < 0.95
    assert spread([adapter.head.weight]) > 0.1  # probes under their own bootstrap


def test_check_11_an_identical_start_warns():
    adapter = attach(subspace())
    with torch.no_grad():
        adapter.prefix.keys_values[2].copy_(adapter.prefix.keys_values[0])
    with pytest.warns(UserWarning, match="two vertices of the simplex are identical"):
        adapter.warm_start(rows_of(adapter.backbone), generator(1))


def test_check_11_matching_the_sampled_scale_undoes_the_shrinking_of_mixtures():
    """Section 1.4: drawn prefixes of standard vertices have rms √(2/(m+1)), the midpoint 1/√m."""
    for match, rms in ((False, (2 / 7) ** 0.5), (True, 1.0)):
        adapter = attach(PrefixSubspace(num_vertices=6, prefix_length=100, match_sampled=match))
        mixed = adapter.mixed(adapter.draw(batch_of(adapter), generator(1)).rows["prefix"]).detach()
        assert mixed.square().mean().sqrt() == pytest.approx(rms, rel=0.05)


# ------------------------------------------------------------------------------------------------ 12: splits


def test_check_12_rows_are_disjoint_exactly_k_and_the_same_for_every_method():
    pool = tuple(Example(f"text number {i}", None, i % 3, f"pool:{i}") for i in range(200))
    closed = TestRows([Example(f"text number {i}", None, i % 3, f"test:{i}") for i in range(150, 260)])
    task = Task("numbers", "classification", ("a", "b", "c"), "accuracy", pool, closed)
    chosen = set()
    for name in method_names():
        split = make_split(task, resolve(name, overrides={"shots": 30, "seed": 5}))
        train, dev = ({row.text for row in part} for part in (split.train, split.dev))
        assert len(split.train) + len(split.dev) == len(train | dev) == 30
        assert not {row.text for row in closed._examples} & (train | dev)
        chosen.add(frozenset(train | dev))
    assert len(chosen) == 1
    carved = Split(task, 30, 5, dev="carved")
    assert carved.fingerprint == Split(task, 30, 5, dev="carved").fingerprint != Split(task, 30, 6).fingerprint


# ------------------------------------------------------------------------------------------------ ours


def test_predictors_are_the_four_of_the_page():
    adapter = attach(subspace())
    rows = rows_of(adapter.backbone)

    def predict(predictor, **options):
        return predict_rows(adapter, rows, TASK.kind, predictor=predictor, **options)

    midpoint = predict("midpoint")
    ensemble = predict("ensemble", draws=6, generator=generator())
    assert midpoint.scores.shape == (1, 24, 2) and ensemble.scores.shape == (6, 24, 2)
    assert not midpoint.disagreement.any() and (ensemble.disagreement > 0).all()
    assert np.array_equal(predict("draw", generator=generator()).scores, ensemble.scores[:1])
    vertices = [predict(f"vertex:{index}").scores for index in range(3)]
    assert not np.allclose(vertices[0], vertices[1])
    with torch.no_grad():
        torch.testing.assert_close(adapter.mixed(adapter.at(vertex=2).rows["prefix"])[:, 0], adapter.prefix()[2])
    with pytest.raises(ConfigError, match="expected a vertex from 0 to 2"):
        predict("vertex:3")
    with pytest.raises(ConfigError, match="unknown predictor 'midpiont'"):
        predict("midpiont")
    with pytest.raises(ConfigError, match="needs a generator"):
        predict("ensemble")


def test_the_head_can_stay_a_single_one():
    adapter = attach(subspace(head_subspace=False))
    assert adapter.head.weight.shape == (1, 2, WIDTH) and adapter.num_vertices == 3
    batch = batch_of(adapter)
    for vertex in range(3):
        assert scores(adapter, batch, adapter.at(vertex=vertex)).isfinite().all()


def test_the_cosine_term_pushes_vertices_apart_and_is_there_in_training_only():
    adapter = attach(subspace(cosine_weight=2.0))
    batch = batch_of(adapter)
    assert adapter.penalty(adapter.draw(batch, generator())) is None
    draw = adapter.train().draw(batch, generator())
    first, second = (adapter.prefix()[i].flatten() for i in draw.shared["pair"])
    torch.testing.assert_close(adapter.penalty(draw), 2 * torch.cosine_similarity(first, second, 0) ** 2)
    with torch.no_grad():
        adapter.prefix.keys_values[1:] = adapter.prefix.keys_values[:1]
    adapter.prefix.keys_values.data += 0.1 * torch.randn(adapter.prefix.keys_values.shape, generator=generator())
    optimizer = torch.optim.Adam(adapter.parameters(), 0.05)
    for step in range(60):
        optimizer.zero_grad()
        adapter.penalty(adapter.draw(batch, generator(step))).backward()
        optimizer.step()
    assert adapter.diagnostics()["squared_cosine"] < 0.1
    plain = attach(subspace()).train()
    assert plain.penalty(plain.draw(batch, generator())) is None


def test_layers_outside_the_range_stay_plain_and_the_lowest_is_known():
    adapter = attach(subspace(layers=(1, 2)))
    assert adapter.lowest_layer == 1 and adapter.prefix().shape == (3, 1, 2, 4, LENGTH, 16)
    scores(adapter, batch_of(adapter))
    assert [prefix is not None for prefix in adapter.backbone.injection.prefixes] == [False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"geometry": "line"}, "a line has 2 vertices, found num_vertices = 3"),
        ({"geometry": "curve", "num_vertices": 2}, "a curve has 3 vertices"),
        ({"form": "mlp", "init": "activations"}, "init = 'activations' needs form = 'flat', found 'mlp'"),
        ({"num_vertices": 0}, "num_vertices"),
        ({"concentration": 0}, "concentration"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PrefixSubspace(**settings)


def test_what_a_backbone_cannot_do_is_said_before_training():
    backbone = tiny_backbone("distilbert")
    (reason,) = PrefixSubspace(positions="shifted").check(backbone, TASK)
    assert reason == "positions: distilbert cannot shift positions; use 'kept'"
    (reason,) = PrefixSubspace(layers=(2, 9)).check(backbone, TASK)
    assert reason == "layers: expected 0 <= first < stop <= 3, found [2, 9]"
    assert not PrefixSubspace().check(backbone, TASK)
