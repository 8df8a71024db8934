"""The simplex of any set of tensors: points, draws, spread, and the limits of its geometries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful.errors import ConfigError
from handful.methods.simplex import Simplex, curve_weights, mix, mix_layers, spread, squared_cosine


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
    weights = Simplex(vertices).draw(tuple(rows), draws)
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
    weights = Simplex(vertices).draw((rows, layers), generator(1))
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
    weights = Simplex(3).draw((4, 2) if mixing is mix_layers else (4,), generator(1))
    expected = mixing(weights, vertices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixing(weights, vertices), expected)
    half = mixing(weights, vertices.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, mixing(weights, vertices.bfloat16().float()).bfloat16())  # rounded once, at the end


def test_line_and_curve_pass_through_their_ends_and_the_curve_not_through_its_control_point():
    ends = curve_weights(torch.tensor([0.0, 0.5, 1.0]), "line")
    assert ends.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    bezier = curve_weights(torch.tensor([0.0, 0.5, 1.0]), "curve")  # on (start, control, end)
    assert bezier.tolist() == [[1, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1]]
    assert Simplex(2, "line").midpoint.tolist() == [0.5, 0.5]
    assert Simplex(3, "curve").midpoint.tolist() == [0.25, 0.5, 0.25]
    assert torch.equal(Simplex(5).midpoint, torch.full((5,), 0.2))


@pytest.mark.parametrize(("geometry", "vertices"), [("simplex", 4), ("line", 2), ("curve", 3)])
@pytest.mark.parametrize("concentration", [1.0, 0.3, 5.0])
def test_drawn_weights_are_points_of_the_simplex(geometry, vertices, concentration):
    weights = Simplex(vertices, geometry, concentration).draw((500, 3), generator())
    assert weights.shape == (500, 3, vertices) and weights.dtype == torch.float32
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(500, 3))
    again = Simplex(vertices, geometry, concentration).draw((500, 3), generator())
    assert torch.equal(weights, again)
    if geometry == "curve":  # the weights of one t, not any point of the triangle
        torch.testing.assert_close(weights[..., 1] ** 2, 4 * weights[..., 0] * weights[..., 2])


@pytest.mark.parametrize("concentration", [0.2, 0.5, 1.0, 2.0, 10.0])
def test_concentration_gives_the_moments_of_the_dirichlet_law(concentration):
    count, draws = 3, 100_000
    weights = Simplex(count, concentration=concentration).draw((draws,), generator()).double()
    variance = (count - 1) / (count**2 * (count * concentration + 1))
    assert (weights.mean(0) - 1 / count).abs().max() < 5 * (variance / draws) ** 0.5
    torch.testing.assert_close(weights.var(0), torch.full((count,), variance, dtype=torch.float64), rtol=0.02, atol=0)


def test_concentration_has_the_vertices_and_the_midpoint_as_its_limits():
    corners = Simplex(3, concentration=1e-4).draw((3000,), generator())
    assert (corners.max(-1).values > 0.999).float().mean() > 0.99
    chosen = torch.bincount(corners.argmax(-1), minlength=3) / 3000
    assert (chosen - 1 / 3).abs().max() < 0.05  # each as often
    centre = Simplex(3, concentration=1e8).draw((1000,), generator())
    assert (centre - 1 / 3).abs().max() < 1e-3


def test_one_vertex_draws_nothing():
    draws = generator(3)
    before = draws.get_state()
    assert torch.equal(Simplex(1).draw((2, 5), draws), torch.ones(2, 5, 1))
    assert torch.equal(draws.get_state(), before)


def test_spread_is_zero_for_a_point_and_scales_with_nothing():
    tensors = list(low_rank_factors().values())
    assert spread([t[:1] for t in tensors]) == 0
    assert spread([t[:1].expand(3, *t.shape[1:]) for t in tensors]) == 0
    assert spread(tensors) == pytest.approx(2**0.5, rel=0.15)  # independent vertices of one size: √2 apart
    assert spread([10 * t for t in tensors]) == pytest.approx(spread(tensors))
    unit = torch.eye(2)
    assert spread([unit]) == pytest.approx(2**0.5)


def test_squared_cosine_is_over_all_tensors_together():
    first, second = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0], [1.0]])
    assert squared_cosine([first], (0, 1)) == pytest.approx(1.0)
    assert squared_cosine([first, second], (0, 1)) == pytest.approx(0.5)


def test_pairs_are_of_two_different_vertices_and_all_equally_likely():
    draws = generator()
    pairs = [Simplex(3).draw_pair(draws) for _ in range(1200)]
    assert all(first != second for first, second in pairs)
    counts = [pairs.count((i, j)) for i in range(3) for j in range(3) if i != j]
    assert all(150 < count < 250 for count in counts)


def test_a_place_is_a_vertex_a_point_or_the_midpoint():
    simplex, weights = Simplex(3), torch.tensor([0.2, 0.3, 0.5])
    assert simplex.point(vertex=1).tolist() == [0, 1, 0]
    assert torch.equal(simplex.point(weights=weights), weights)
    assert torch.equal(simplex.point(), simplex.midpoint)
    assert Simplex(3, "curve").point().tolist() == [0.25, 0.5, 0.25]


def test_impossible_simplexes_are_refused():
    with pytest.raises(ConfigError, match="a line has 2 vertices, found num_vertices = 3"):
        Simplex(3, "line")
    with pytest.raises(ConfigError, match="a curve has 3 vertices") as refused:
        Simplex(2, "curve")
    assert refused.value.hint == "set num_vertices to match the geometry"
