"""The simplex of any set of tensors: points, draws, spread, and the limits of its geometries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from handful.methods.simplex import (
    Simplex,
    curve_weights,
    draw_pair,
    draw_weights,
    midpoint_weights,
    mix,
    mix_layers,
    spread,
    squared_cosine,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def low_rank_factors(vertices=3):
    """The two factors of a LoRA layer under dotted names, and a scalar gate."""
    shapes = {"layer.0.lora_A": (4, 16), "layer.0.lora_B": (16, 4), "gate": ()}
    draws = generator()
    return {name: torch.randn(vertices, *shape, generator=draws) for name, shape in shapes.items()}


@given(
    vertices=st.integers(1, 5),
    rows=st.lists(st.integers(1, 3), max_size=2),
    shape=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 100),
)
def test_mix_is_the_weighted_sum_of_the_vertices_whatever_the_shapes(vertices, rows, shape, seed):
    draws = generator(seed)
    tensor = torch.randn(vertices, *shape, generator=draws, dtype=torch.float64)
    weights = draw_weights(tuple(rows), vertices, draws)
    point = mix(weights, tensor)
    assert point.shape == (*rows, *shape) and point.dtype == torch.float64
    flat = weights.reshape(-1, vertices).double()
    expected = torch.stack([sum(w * v for w, v in zip(row, tensor, strict=True)) for row in flat])  # pyright: ignore
    torch.testing.assert_close(point, expected.view_as(point))


@given(
    vertices=st.integers(1, 4),
    rows=st.integers(1, 4),
    layers=st.integers(1, 3),
    shape=st.lists(st.integers(1, 3), max_size=3),
)
def test_mix_layers_is_mix_row_by_row_and_layer_by_layer(vertices, rows, layers, shape):
    tensor = torch.randn(vertices, layers, *shape, generator=generator())
    weights = draw_weights((rows, layers), vertices, generator(1))
    points = mix_layers(weights, tensor)
    assert points.shape == (layers, rows, *shape)
    for row in range(rows):
        for layer in range(layers):
            torch.testing.assert_close(points[layer, row], mix(weights[row, layer], tensor[:, layer]))


def test_one_vertex_at_weight_one_is_that_vertex_to_the_bit():
    tensor = torch.randn(1, 7, 3, generator=generator())
    assert torch.equal(mix(torch.ones(5, 1), tensor), tensor.expand(5, 7, 3))


@pytest.mark.parametrize("mixing", [mix, mix_layers])
def test_mixing_stays_in_full_precision_under_autocast(mixing):
    vertices = torch.randn(3, 2, 50, generator=generator())
    weights = draw_weights((4, 2) if mixing is mix_layers else (4,), 3, generator(1))
    expected = mixing(weights, vertices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixing(weights, vertices), expected)
    half = mixing(weights, vertices.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, mixing(weights, vertices.bfloat16().float()).bfloat16())  # rounded once, at the end


def test_a_simplex_of_any_tensors_gives_points_midpoint_and_vertices_under_their_own_names():
    tensors = low_rank_factors()
    simplex = Simplex(tensors)
    weights = simplex.draw((5,), generator(1))
    assert {name: tuple(point.shape) for name, point in simplex.mix(weights).items()} == {
        "layer.0.lora_A": (5, 4, 16),
        "layer.0.lora_B": (5, 16, 4),
        "gate": (5,),
    }
    for name, tensor in tensors.items():
        torch.testing.assert_close(simplex.midpoint()[name], tensor.mean(0))
        assert torch.equal(simplex.vertex(1)[name], tensor[1])
    corner = simplex.mix(torch.tensor([0.0, 1.0, 0.0]))
    assert all(torch.equal(corner[name], tensors[name][1]) for name in tensors)


def test_mixing_low_rank_factors_is_not_mixing_their_products():
    """Which of the two is wanted is a decision (sheet 7.1); a simplex of factors mixes factors."""
    tensors = low_rank_factors()
    midpoint = Simplex(tensors).midpoint()
    products = tensors["layer.0.lora_B"] @ tensors["layer.0.lora_A"]
    assert not torch.allclose(midpoint["layer.0.lora_B"] @ midpoint["layer.0.lora_A"], products.mean(0), atol=0.1)


def test_the_vertices_are_the_parameters_copied_and_reached_by_the_gradient():
    tensors = low_rank_factors()
    simplex = Simplex(tensors)
    assert sum(p.numel() for p in simplex.parameters()) == 3 * (4 * 16 + 16 * 4 + 1)
    assert all(isinstance(p, nn.Parameter) for p in simplex.vertices.values())
    weights = torch.tensor([0.2, 0.8, 0.0])
    sum(point.sum() for point in simplex.mix(weights).values()).backward()  # pyright: ignore
    for parameter in simplex.vertices.values():
        expected = weights.view(3, *[1] * (parameter.dim() - 1)).expand_as(parameter)
        torch.testing.assert_close(parameter.grad, expected)
    with torch.no_grad():
        next(iter(simplex.vertices.values())).zero_()
    assert tensors["layer.0.lora_A"].abs().sum() > 0


def test_a_simplex_survives_its_state_dict():
    simplex, other = (
        Simplex(low_rank_factors()),
        Simplex({n: torch.zeros_like(t) for n, t in low_rank_factors().items()}),
    )
    other.load_state_dict(simplex.state_dict())
    weights = simplex.draw((2,), generator())
    first, second = simplex.mix(weights), other.mix(weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_line_and_curve_pass_through_their_ends_and_the_curve_not_through_its_control_point():
    ends = curve_weights(torch.tensor([0.0, 0.5, 1.0]), "line")
    assert ends.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    bezier = curve_weights(torch.tensor([0.0, 0.5, 1.0]), "curve")  # on (start, control, end)
    assert bezier.tolist() == [[1, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1]]
    assert midpoint_weights(2, "line").tolist() == [0.5, 0.5]
    assert midpoint_weights(3, "curve").tolist() == [0.25, 0.5, 0.25]
    assert torch.equal(midpoint_weights(5), torch.full((5,), 0.2))


@pytest.mark.parametrize(("geometry", "vertices"), [("simplex", 4), ("line", 2), ("curve", 3)])
@pytest.mark.parametrize("concentration", [1.0, 0.3, 5.0])
def test_drawn_weights_are_points_of_the_simplex(geometry, vertices, concentration):
    weights = draw_weights((500, 3), vertices, generator(), geometry=geometry, concentration=concentration)
    assert weights.shape == (500, 3, vertices) and weights.dtype == torch.float32
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(500, 3))
    again = draw_weights((500, 3), vertices, generator(), geometry=geometry, concentration=concentration)
    assert torch.equal(weights, again)
    if geometry == "curve":  # the weights of one t, not any point of the triangle
        torch.testing.assert_close(weights[..., 1] ** 2, 4 * weights[..., 0] * weights[..., 2])


@pytest.mark.parametrize("concentration", [0.2, 0.5, 1.0, 2.0, 10.0])
def test_concentration_gives_the_moments_of_the_dirichlet_law(concentration):
    count, draws = 3, 100_000
    weights = draw_weights((draws,), count, generator(), concentration=concentration).double()
    variance = (count - 1) / (count**2 * (count * concentration + 1))
    assert (weights.mean(0) - 1 / count).abs().max() < 5 * (variance / draws) ** 0.5
    torch.testing.assert_close(weights.var(0), torch.full((count,), variance, dtype=torch.float64), rtol=0.02, atol=0)


def test_concentration_has_the_vertices_and_the_midpoint_as_its_limits():
    corners = draw_weights((3000,), 3, generator(), concentration=1e-4)
    assert (corners.max(-1).values > 0.999).float().mean() > 0.99
    chosen = torch.bincount(corners.argmax(-1), minlength=3) / 3000
    assert (chosen - 1 / 3).abs().max() < 0.05  # each as often
    centre = draw_weights((1000,), 3, generator(), concentration=1e8)
    assert (centre - 1 / 3).abs().max() < 1e-3


def test_one_vertex_draws_nothing():
    draws = generator(3)
    before = draws.get_state()
    assert torch.equal(draw_weights((2, 5), 1, draws), torch.ones(2, 5, 1))
    assert torch.equal(draws.get_state(), before)


def test_spread_is_zero_for_a_point_and_scales_with_nothing():
    tensors = list(low_rank_factors().values())
    assert spread([t[:1] for t in tensors]) == 0
    assert spread([t[:1].expand(3, *t.shape[1:]) for t in tensors]) == 0
    assert spread(tensors) == pytest.approx(2**0.5, rel=0.15)  # independent vertices of one size: √2 apart
    assert spread([10 * t for t in tensors]) == pytest.approx(spread(tensors))
    assert Simplex(low_rank_factors()).spread() == pytest.approx(spread(tensors))
    unit = torch.eye(2)
    assert spread([unit]) == pytest.approx(2**0.5)


def test_squared_cosine_is_over_all_tensors_together():
    first, second = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0], [1.0]])
    assert squared_cosine([first], (0, 1)) == pytest.approx(1.0)
    assert squared_cosine([first, second], (0, 1)) == pytest.approx(0.5)


def test_pairs_are_of_two_different_vertices_and_all_equally_likely():
    draws = generator()
    pairs = [draw_pair(3, draws) for _ in range(1200)]
    assert all(first != second for first, second in pairs)
    counts = [pairs.count((i, j)) for i in range(3) for j in range(3) if i != j]
    assert all(150 < count < 250 for count in counts)


def test_impossible_simplexes_are_refused():
    with pytest.raises(ValueError, match=r"same number of vertices, found \{'a': 2, 'b': 3\}"):
        Simplex({"a": torch.zeros(2, 4), "b": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="a line has 2 vertices, found num_vertices = 3"):
        Simplex({"a": torch.zeros(3, 4)}, "line")
    with pytest.raises(ValueError, match="a curve has 3 vertices"):
        draw_weights((1,), 2, generator(), geometry="curve")
    with pytest.raises(ValueError, match="same number of vertices"):
        Simplex({})
