"""Updates of matrices: kernel, what it keeps, what it is folded into (checks 7 and 9 of docs/methods/poly.md)."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from handful.backbone.low_rank import LowRank, Rescale, Updating, fold_updates, mix_factors

SPLITS, SKILLS, RANK, WIDTH, OUT = 2, 3, 2, 8, 12


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inventory(tasks, dtype=torch.float64, rank=RANK, width=WIDTH, out=OUT, splits=SPLITS, skills=SKILLS):
    """Skills and weights (U, q, S) of so many tasks, that want gradients."""
    down = draw(splits, skills, width // splits, rank, seed=1, dtype=dtype)
    up = draw(splits, skills, rank, out // splits, seed=2, dtype=dtype)
    weights = draw(tasks, splits, skills, seed=3, dtype=dtype).softmax(-1)
    return [tensor.requires_grad_() for tensor in (down, up, weights)]


def by_row(x, down, up, weights, groups, scale):
    """The update of every row on its own, through autograd alone, split by split."""
    rows = []
    for row, group in zip(x, [0] * len(x) if groups is None else groups.tolist(), strict=True):
        splits, skills = range(len(down)), range(down.shape[1])
        a = torch.cat([sum(weights[group, h, s] * down[h, s] for s in skills) for h in splits])
        b = torch.cat([sum(weights[group, h, s] * up[h, s] for s in skills) for h in splits], 1)
        rows.append(scale * row @ a @ b)
    return torch.stack(rows)


@pytest.mark.parametrize("groups", [None, torch.tensor([1, 0, 1, 2])])
@pytest.mark.parametrize("shape", [(4, 5, WIDTH), (4, WIDTH)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_check_9_outputs_and_gradients_are_those_of_autograd(groups, shape, dtype, tolerance):
    own = inventory(1 if groups is None else 3, dtype)
    x = draw(*shape, dtype=dtype).requires_grad_()
    y, gradient = draw(*shape[:-1], OUT, seed=5, dtype=dtype), draw(*shape[:-1], OUT, seed=6, dtype=dtype)
    expected = y + by_row(x, *own, groups, 0.5)
    found = LowRank(*own, groups, 0.5)(x, y)
    for a, b in zip(
        (found, *torch.autograd.grad(found, (x, *own), gradient)),
        (expected, *torch.autograd.grad(expected, (x, *own), gradient)),
        strict=True,
    ):
        assert (a - b).abs().max() <= tolerance * b.abs().max()
    with torch.no_grad():
        torch.testing.assert_close(LowRank(*own, groups, 0.5)(x, y), found)


@pytest.mark.parametrize("groups", [None, torch.tensor([1, 0, 1])])
def test_check_9_gradcheck(groups):
    own, x = inventory(1 if groups is None else 2), draw(3, 4, WIDTH).requires_grad_()
    y = draw(3, 4, OUT, seed=5)
    assert torch.autograd.gradcheck(lambda x, *own: LowRank(*own, groups, 0.5)(x, y), (x, *own))


def saved_bytes(forward, ignored):
    """Bytes of all storages that a forward keeps for its backward, but for these tensors'."""
    known = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, lest its place is taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("rank", [2, 16])
@pytest.mark.parametrize("tasks", [1, 16])
def test_check_9_what_is_kept_does_not_grow_with_rows_times_factors(rank, tasks):
    rows, tokens, width, out = 16, 4, 64, 96
    down, up, weights = inventory(tasks, torch.float32, rank, width, out)
    x = draw(rows, tokens, width, dtype=torch.float32).requires_grad_()
    y = draw(rows, tokens, out, dtype=torch.float32)
    groups = None if tasks == 1 else torch.arange(rows)
    found = saved_bytes(lambda: LowRank(down, up, weights, groups)(x, y), (x, down, up, weights))
    hidden, numbers = 4 * rows * tokens * rank, 0 if groups is None else groups.nbytes
    assert found == hidden + numbers
    if groups is not None:  # the plain way keeps every row's factors
        a, b = mix_factors(down, up, weights)
        plain = saved_bytes(lambda: torch.bmm(torch.bmm(x, a[groups]), b[groups]), (x, down, up, weights, a, b))
        assert plain > 4 * rows * rank * (width + out) > found


def test_check_7_factors_are_averaged_and_not_their_products():
    down, up, weights = inventory(2, splits=1)
    a, b = mix_factors(down, up, weights)
    for task in range(2):
        found = a[task] @ b[task]
        products = sum(weights[task, 0, s] * down[0, s] @ up[0, s] for s in range(SKILLS))
        assert torch.linalg.matrix_rank(found) == RANK < torch.linalg.matrix_rank(products)
        assert (found - products).norm() > 0.3 * products.norm()


def test_rows_of_several_beams_stand_side_by_side():
    own, groups = inventory(3), torch.tensor([2, 0])
    x, y = draw(6, 1, WIDTH), draw(6, 1, OUT, seed=5)
    with torch.no_grad():
        found = LowRank(*own, groups)(x, y)
        expected = LowRank(*own, torch.tensor([2, 2, 2, 0, 0, 0]))(x, y)
    assert torch.equal(found, expected)


def test_without_gradients_factors_are_mixed_once(monkeypatch):
    own, calls = inventory(1), []
    update = LowRank(*own)
    mix = update.mix
    monkeypatch.setattr(update, "mix", lambda: calls.append(None) or mix())
    x, y = draw(2, 3, WIDTH), draw(2, 3, OUT)
    with torch.no_grad():
        first, second = update(x, y), update(x, y)
    assert torch.equal(first, second) and len(calls) == 1
    update(x, y).sum().backward()  # with them, never a stale one
    assert own[0].grad is not None


def test_a_half_precision_base_keeps_its_type_and_skills_theirs():
    down, up, weights = inventory(2, torch.float32)
    x, y = draw(2, 3, WIDTH).bfloat16().requires_grad_(), draw(2, 3, OUT).bfloat16()
    groups = torch.tensor([1, 0])
    found = LowRank(down, up, weights, groups)(x, y)
    found.float().sum().backward()
    assert found.dtype == x.grad.dtype == torch.bfloat16
    assert all(t.grad.dtype == torch.float32 for t in (down, up, weights))
    exact = y.double() + by_row(x.double(), down.double(), up.double(), weights.double(), groups, 1.0)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.05)
    scales = draw(1, 2, OUT, dtype=torch.float32)
    assert Rescale(scales, torch.full((2, 1, 2), 0.5), groups)(x, y).dtype == torch.bfloat16


@pytest.mark.parametrize("groups", [None, torch.tensor([1, 0, 1])])
@pytest.mark.parametrize("shape", [(3, 5, OUT), (3, OUT)])
def test_rescaling_is_the_formula(groups, shape):
    scales, weights = draw(2, 3, OUT // 2), draw(2, 2, 3, seed=1).softmax(-1)
    y = draw(*shape, seed=2)
    found = Rescale(scales, weights, groups)(y, y)
    for row, group in enumerate([0] * 3 if groups is None else groups.tolist()):
        mixed = torch.cat([sum(weights[group, h, s] * scales[h, s] for s in range(3)) for h in range(2)])
        torch.testing.assert_close(found[row], y[row] * mixed)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_folded_matrix_computes_what_the_updated_one_does(bias, transposed):
    layer = (Conv1D(OUT, WIDTH) if transposed else nn.Linear(WIDTH, OUT, bias=bias)).double().requires_grad_(False)
    model = nn.Sequential(layer)
    x, (down, up, weights) = draw(2, 5, WIDTH), inventory(1)
    for update in (LowRank(down, up, weights, scale=0.5), Rescale(draw(SPLITS, SKILLS, OUT // SPLITS), weights)):
        updating = Updating(model, ["0"])
        updating.updates = {"0": update}
        with torch.no_grad():
            expected = model(x)
            updating.remove()
            updating.remove()
            plain = model(x)
            fold_updates(model, {"0": update})
            torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(plain, expected)


def test_a_matrix_without_an_update_computes_what_it_always_did():
    model = nn.Sequential(nn.Linear(WIDTH, OUT)).double()
    x = draw(2, WIDTH)
    expected = model(x)
    updating = Updating(model, ["0"])
    assert torch.equal(model(x), expected)
    updating.remove()
    assert "forward" not in vars(model[0])
