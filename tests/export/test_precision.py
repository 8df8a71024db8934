"""Float64 all the way: what comparisons of exports rest on."""

import copy

import pytest
import torch

from handful.backbone.tiny import tiny_model
from handful.errors import RunError
from handful.export.precision import KeepFloat64
from handful.export.shrink import compare_outputs, sample_inputs


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "t5", "bert", "deberta-v2", "gpt2"])
def test_outputs_follow_changes_that_float32_rounds_away(family):
    model = tiny_model(family).double()
    inputs = sample_inputs(model, rows=2, length=9, padded=True)
    embeddings = model.get_input_embeddings().weight
    before = embeddings.detach().clone()
    direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slope(step):
        found = []
        for factor in (0.0, step):
            with torch.no_grad(), KeepFloat64():
                embeddings.copy_(before + factor * direction)
                found.append(model(**inputs)[0])
        assert found[0].dtype == torch.float64
        return (found[1] - found[0]) / step

    expected = slope(1e-11)
    assert 1 < expected.abs().max() < 1e6
    assert (slope(1e-10) - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_float32_stays_float32():
    with KeepFloat64():
        assert torch.ones(2).to(torch.float32).dtype == torch.ones(2).float().dtype == torch.float32
        assert torch.ones(2, dtype=torch.int64).to(torch.float32).dtype == torch.float32
        assert torch.ones(2, dtype=torch.float64).softmax(0, dtype=torch.float32).dtype == torch.float64


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_difference_far_below_float32_is_found(family):
    model = tiny_model(family)
    other = copy.deepcopy(model).double()
    compare_outputs(model, other)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1 + 1e-7 * torch.arange(64))
    with pytest.raises(RunError, match="the smaller model gives other outputs"):
        compare_outputs(model, other)
