"""Checks 1, 4, 5 and 9 of docs/methods/fine-gates.md: the gated matrix, its gradients, and folding."""

import copy

import pytest
import torch

from handful.backbone.blocks import FAMILIES, find_blocks, inputs, matrix, outputs
from handful.backbone.gating import Gates, Gating, fold
from handful.backbone.tiny import TINY_FAMILIES, tiny_config, tiny_model
from handful.errors import ModelError

GATED = [family for family in TINY_FAMILIES if family in FAMILIES]


def random_gates(model, generator, dtype=torch.float32):
    """For every matrix: 40 % of rows and columns closed, the rest soft."""
    found = {}
    for name in find_blocks(model).matrices:
        module = model.get_submodule(name)
        rows, columns = (
            torch.rand(n, generator=generator, dtype=dtype) * (torch.rand(n, generator=generator) > 0.4)
            for n in (outputs(module), inputs(module))
        )
        found[name] = Gates(rows, columns)
    return found


def batch_of(family):
    ids = torch.randint(10, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    return found | {"decoder_input_ids": ids[:, :4]} if family == "t5" else found


def logits(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("family", GATED)
def test_open_gates_change_nothing(family):
    model = tiny_model(family, head="lm")
    expected = logits(model, batch_of(family))
    gating = Gating(model, find_blocks(model).matrices)
    assert torch.equal(logits(model, batch_of(family)), expected)
    gating.gates = {
        name: Gates(torch.ones(outputs(module)), torch.ones(inputs(module))) for name, module in gating.modules.items()
    }
    assert torch.equal(logits(model, batch_of(family)), expected)  # with biases and without
    gating.remove()
    assert torch.equal(logits(model, batch_of(family)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", GATED)
def test_folded_weights_compute_what_the_gates_do(family, dtype):
    model = tiny_model(family, head="lm").to(dtype)
    folded = copy.deepcopy(model)
    gates = random_gates(model, torch.Generator().manual_seed(2), dtype)
    plain = logits(model, batch_of(family))
    gating = Gating(model, gates)
    gating.gates = gates
    gated = logits(model, batch_of(family))
    assert (gated - plain).abs().max() > 0.01
    fold(folded, gates)
    assert (logits(folded, batch_of(family)) - gated).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-10)


def gated_linear(low_rank=None, rows=None, columns=None, bias=True):
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(5, 7, bias=bias, dtype=torch.float64).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    gating = Gating(torch.nn.ModuleDict({"layer": layer}), ["layer"])
    gating.gates = {"layer": Gates(rows, columns, low_rank)}
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(bias):
    generator = torch.Generator().manual_seed(4)
    x, rows, columns = (
        torch.rand(*shape, generator=generator, dtype=torch.float64).add(0.1).requires_grad_(True)
        for shape in ((2, 3, 5), (7,), (5,))
    )
    offset = [torch.rand(7, generator=generator, dtype=torch.float64).requires_grad_(True)] if bias else []

    def run(x, rows, columns, *offset):
        layer = gated_linear(rows=rows, columns=columns, bias=False)
        layer._parameters.update(bias=offset[0] if offset else None)
        return layer(x)

    assert torch.autograd.gradcheck(run, (x, rows, columns, *offset), rtol=1e-6, atol=1e-9)


def test_the_gradient_of_a_gate_is_that_of_the_plain_formula_also_where_others_are_closed():
    rows, columns = torch.tensor([0, 0.2, 1, 0.7, 0, 1, 0.5]).double(), torch.tensor([0.3, 0, 1, 0.9, 0]).double()
    found = [tensor.clone().requires_grad_(True) for tensor in (rows, columns)]
    plain = [tensor.clone().requires_grad_(True) for tensor in (rows, columns)]
    layer = gated_linear(rows=found[0], columns=found[1])
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    layer(x).square().sum().backward()
    (plain[0] * ((x * plain[1]) @ layer.weight.t() + layer.bias)).square().sum().backward()
    for ours, theirs, values in zip(found, plain, (rows, columns), strict=True):
        torch.testing.assert_close(ours.grad[values > 0], theirs.grad[values > 0], rtol=1e-10, atol=1e-12)
        assert (ours.grad[values == 0] == 0).all()


def test_a_closed_row_is_zero_with_its_bias():
    layer = gated_linear(rows=torch.tensor([0.0, 1, 1, 1, 1, 1, 1]).double())
    assert layer.bias[0] != 0
    assert (layer(torch.ones(2, 5).double())[:, 0] == 0).all()


def test_lora_stands_inside_the_gates():
    generator = torch.Generator().manual_seed(6)
    rows, columns = torch.tensor([0, 0.2, 1, 0.7, 0, 1, 0.5]).double(), torch.tensor([0.3, 0, 1, 0.9, 0]).double()
    down, up = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((2, 5), (7, 2)))
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    layer = gated_linear((down, up), rows, columns)
    found = layer(x)
    assert (found[:, rows == 0] == 0).all()
    moved = x.clone()
    moved[:, columns == 0] += 1
    assert torch.equal(layer(moved), found)
    assert not torch.allclose(gated_linear((down, 0 * up), rows, columns)(x), found)
    torch.testing.assert_close(gated_linear((down, 0 * up), rows, columns)(x), gated_linear(None, rows, columns)(x))
    holder = torch.nn.ModuleDict({"layer": gated_linear()})
    del holder["layer"].forward
    fold(holder, {"layer": Gates(rows, columns, (down, up))})
    torch.testing.assert_close(holder["layer"](x), found, rtol=1e-10, atol=1e-12)


def test_blocks_of_roberta_base_have_as_many_gates_as_counted_by_hand():
    """Check 7: 165 888 gates in RoBERTa-base, 442 368 in the large one; embeddings, pooler and output have none."""
    for layers, width, count in ((12, 768, 165_888), (24, 1024, 442_368)):
        with torch.device("meta"):
            config = tiny_config(
                "roberta", num_hidden_layers=layers, hidden_size=width, num_attention_heads=12 if width == 768 else 16,
                intermediate_size=4 * width,
            )  # fmt: skip
            from transformers import AutoModelForMaskedLM

            model = AutoModelForMaskedLM.from_config(config)
        blocks = find_blocks(model)
        assert sum(outputs(m) + inputs(m) for m in map(model.get_submodule, blocks.matrices)) == count


@pytest.mark.parametrize("family", GATED)
def test_blocks_cover_every_matrix_of_every_layer_and_no_output_layer(family):
    model = tiny_model(family, head="lm")
    blocks = find_blocks(model)
    stacks = 2 if family == "t5" else 1
    assert len(blocks.attention) == 3 * stacks + (3 if family == "t5" else 0)
    assert len(blocks.feed_forward) == 3 * stacks
    assert len(set(blocks.matrices)) == len(blocks.matrices)
    assert not any("lm_head" in name or "cls" in name for name in blocks.matrices)
    for block in blocks.attention:
        assert (block.heads, block.head_width, block.heads * block.head_width) == (4, 16, 64)
        assert matrix(model.get_submodule(block.output)).shape[1] == 64


@pytest.mark.parametrize("family", [family for family in TINY_FAMILIES if family not in FAMILIES])
def test_families_without_a_known_export_are_refused(family):
    with pytest.raises(ModelError, match="no exact export"):
        find_blocks(tiny_model(family))


def test_tied_weights_quantised_models_and_activations_with_a_constant_are_refused():
    model = tiny_model("bert")
    first, second = model.encoder.layer[:2]
    second.output.dense.weight = first.output.dense.weight
    with pytest.raises(ModelError, match="tied weights"):
        find_blocks(model)
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ModelError, match="quantised"):
        find_blocks(model)
    with pytest.raises(ModelError, match="not 0 at 0"):
        find_blocks(tiny_model("bert", hidden_act="sigmoid"))
