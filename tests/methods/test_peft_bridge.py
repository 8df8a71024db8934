"""PEFT's methods under our loop: equal to stock PEFT, random only through our generator, gone without a trace."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model, set_peft_model_state_dict

from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone
from handful.backbone.trunk import trunk_cache
from handful.data.batching import encode
from handful.errors import ConfigError
from handful.methods import method_class
from handful.methods.peft_bridge import IA3, LoRA, Peft, PromptTuning
from handful.testing import toy_task
from handful.training.fit import batch_loss

TASK = toy_task()
METHODS = [LoRA(), IA3(), PromptTuning(prompt_length=4)]
HEAD = 2 * (64 + 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_rows(backbone):
    return encode(TASK.pool, backbone.tokenizer, 32, kind=TASK.kind)


def make_batch(backbone):
    return make_rows(backbone).batch(range(6))


def attach(method, backbone, seed=0):
    return method.attach(backbone, TASK, generator=generator(seed)).eval()


def disturb(adapter):
    """Trained weights, in effect: no longer those that leave the model as it was."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(9)) * 0.1)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "distilbert"])
def test_lora_computes_what_stock_peft_computes(family):
    ours, stock = tiny_backbone(family), tiny_backbone(family)
    adapter = attach(LoRA(rank=4, alpha=6), ours)
    disturb(adapter)
    settings, tensors = adapter.peft_state()
    names = settings["target_modules"]
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION", r=4, lora_alpha=6, target_modules=names, fan_in_fan_out=family == "gpt2"
    )
    peft_model = get_peft_model(stock.model, config).eval()
    set_peft_model_state_dict(peft_model, tensors)
    inputs = make_batch(ours).inputs
    with torch.no_grad():
        expected = peft_model(**stock.accepted(inputs)).last_hidden_state
        found = ours.model(**ours.accepted(inputs)).last_hidden_state
    assert torch.equal(found, expected)
    assert not torch.equal(found, tiny_backbone(family).model(**ours.accepted(inputs)).last_hidden_state)


@pytest.mark.parametrize("family", ["roberta", "llama", "electra", "gpt2"])
def test_prompt_tuning_computes_what_stock_peft_computes_behind_the_prompt(family):
    ours, stock = tiny_backbone(family), tiny_backbone(family)
    adapter = attach(PromptTuning(prompt_length=4), ours)
    disturb(adapter)
    width = ours.model.get_input_embeddings().embedding_dim
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4, token_dim=width)
    peft_model = get_peft_model(stock.model, config).eval()
    set_peft_model_state_dict(peft_model, adapter.peft_state()[1])
    batch = make_batch(ours)
    mask = batch.inputs["attention_mask"]
    with torch.no_grad():
        hidden = peft_model(input_ids=batch.inputs["input_ids"], attention_mask=mask).last_hidden_state[:, 4:]
        if ours.pooling == "mean":
            features = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            features = hidden[torch.arange(len(mask)), mask.sum(1) - 1]
        assert torch.equal(adapter(batch), adapter.head(features))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_prompt_is_seen_by_every_token_but_never_pooled_nor_is_padding(family):
    backbone = tiny_backbone(family)
    adapter = attach(PromptTuning(prompt_length=4), backbone)
    rows = make_rows(backbone)
    together = adapter(rows.batch(range(6)))
    alone = torch.cat([adapter(rows.batch([row])) for row in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together, adapter.head(backbone.features(rows.batch(range(6)).inputs)), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "family", "expected"),
    [
        (LoRA(rank=4), "bert", 3 * 2 * 4 * (64 + 64)),
        (LoRA(rank=4), "llama", 3 * 4 * ((64 + 64) + (64 + 32))),  # two of four heads for the values
        (IA3(), "llama", 3 * (32 + 32 + 128)),
        (IA3(), "electra", 3 * (64 + 64 + 128)),
        (PromptTuning(prompt_length=5), "bert", 5 * 64),
        (PromptTuning(prompt_length=5), "electra", 5 * 32),  # its embeddings are narrower than its layers
        (Peft(config={"peft_type": "p_tuning", "num_virtual_tokens": 3}), "bert", 3 * 64 + 3 * (64 * 64 + 64)),
    ],
)
def test_trained_numbers(method, family, expected):
    adapter = attach(method, tiny_backbone(family))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected + HEAD
    assert all(parameter.requires_grad for parameter in adapter.parameters())


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_gradients_reach_everything_and_detach_restores_the_model_bit_for_bit(method, family):
    backbone = tiny_backbone(family)
    model = backbone.model
    modules = [(name, id(module)) for name, module in model.named_modules()]
    before, attributes = {name: tensor.clone() for name, tensor in model.state_dict().items()}, set(vars(model))
    batch = make_batch(backbone)
    with torch.no_grad():
        features = backbone.features(batch.inputs)
    adapter = attach(method, backbone)
    disturb(adapter)
    batch_loss(adapter(batch), batch, adapter, TASK.kind).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    adapter.detach()
    adapter.detach()
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert set(vars(model)) == attributes
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(backbone.features(batch.inputs), features)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_start_comes_from_the_generator_and_the_global_stream_is_untouched(method):
    state = torch.get_rng_state()
    states = []
    for seed in (0, 0, 1):
        adapter = attach(method, tiny_backbone("bert"), seed)
        torch.default_generator.manual_seed(7)  # what PEFT drew must not depend on it
        states.append(adapter.state_dict())
    torch.set_rng_state(state)
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    attach(method, tiny_backbone("bert"))
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_leaves_the_model_as_it_was_until_it_is_trained():
    backbone = tiny_backbone("bert")
    batch = make_batch(backbone)
    features = backbone.features(batch.inputs)
    attach(LoRA(), backbone)
    assert torch.equal(backbone.features(batch.inputs), features)


def test_loras_dropout_follows_the_adapter_and_not_the_frozen_model():
    backbone = tiny_backbone("bert")
    adapter = attach(LoRA(dropout=0.5), backbone)
    disturb(adapter)
    batch = make_batch(backbone)
    assert torch.equal(adapter(batch), adapter(batch))
    adapter.train()
    backbone.model.eval()  # as fit() does without dropout in the trunk
    assert not torch.equal(adapter(batch), adapter(batch))
    adapter.eval()
    backbone.model.train()
    dropouts = [module for module in backbone.model.modules() if isinstance(module, torch.nn.Dropout)]
    adapter(batch)
    assert any(module.training for module in dropouts)
    assert sum(not module.training for module in dropouts) == 6  # two targets a layer


@pytest.mark.parametrize(
    ("family", "targets", "lowest"),
    [
        ("bert", r".*\.[12]\..*query", 1),
        ("llama", r"layers\.2\..*q_proj", 2),
        ("bert", ".*query", 0),
        ("bert", ".*(query|word_embeddings)", None),
        ("albert", ".*query", None),
    ],
)
def test_lowest_layer_is_where_the_layers_begin_and_the_cached_trunk_gives_the_same_numbers(family, targets, lowest):
    backbone = tiny_backbone(family)
    config = {"peft_type": "LORA", "target_modules": targets}
    adapter = attach(Peft(config=config), backbone)
    disturb(adapter)
    assert adapter.lowest_layer == lowest
    rows = make_rows(backbone)
    cache = trunk_cache(backbone, rows, adapter.lowest_layer, adapter)
    assert (cache is not None) == bool(lowest)
    if cache is not None:
        batch = rows.batch(range(6))
        expected = adapter(batch)
        cache.choose(batch)
        with cache:
            assert torch.allclose(adapter(batch), expected, atol=1e-6)


def test_the_choice_of_layers_is_said():
    assert attach(LoRA(), tiny_backbone("bert")).notes == ("target_modules = query, value: PEFT's own choice for bert",)
    (note,) = attach(IA3(), tiny_backbone("distilbert")).notes
    assert "transformer.layer.*.attention.k_lin" in note
    assert "feed-forward transformer.layer.*.ffn.lin2" in note
    assert "PEFT has no choice for distilbert" in note
    (note,) = attach(LoRA(target_modules=("key",)), tiny_backbone("bert")).notes
    assert note == "target_modules = key: as given"


GENERIC = [
    {"peft_type": "LOHA", "r": 2},
    {"peft_type": "VERA", "r": 4, "init_weights": False},
    {"peft_type": "OFT"},
    {"peft_type": "ROAD"},
    {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]},
    {"peft_type": "LORA", "bias": "all", "use_dora": True},
    {"peft_type": "P_TUNING", "num_virtual_tokens": 3},
]


@pytest.mark.parametrize("config", GENERIC, ids=lambda config: config["peft_type"])
def test_any_peft_method_trains_saves_and_comes_off_again(config):
    backbone = tiny_backbone("bert")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    batch = make_batch(backbone)
    adapter = attach(Peft(config=config), backbone)
    first = adapter(batch).detach()
    disturb(adapter)
    trained = adapter(batch).detach()
    assert not torch.equal(first, trained)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    adapter.detach()
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = attach(Peft(config=config), backbone, seed=1)  # what is random and frozen is saved too
    again.load_state_dict(state)
    assert torch.equal(again(batch), trained)


def test_a_wrong_config_is_refused_at_once_with_the_nearest_names():
    with pytest.raises(ConfigError, match="did you mean 'LORA'"):
        Peft(config={"peft_type": "LOAR"})
    with pytest.raises(ConfigError) as error:
        Peft(config={"peft_type": "LORA", "lora_alhpa": 3, "rank": 2})
    assert "2 wrong key(s)" in str(error.value)
    assert "did you mean 'lora_alpha'" in str(error.value)
    with pytest.raises(ConfigError, match="'pissa' would change the frozen weights"):
        Peft(config={"peft_type": "LORA", "init_lora_weights": "pissa"})
    with pytest.raises(ConfigError, match="PEFT refuses it"):
        Peft(config={"peft_type": "IA3", "target_modules": ["key"], "feedforward_modules": ["output.dense"]})


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "POLY", "ADALORA", "XLORA"])
def test_types_that_cannot_work_here_say_why(kind):
    with pytest.raises(ConfigError, match=f"{kind} cannot be used here: "):
        Peft(config={"peft_type": kind})


def test_a_config_saved_by_peft_can_be_given_as_it_is():
    saved = LoraConfig(target_modules=["query"], r=3, task_type="SEQ_CLS").to_dict()
    config = json.loads(json.dumps(saved, default=sorted))
    adapter = attach(Peft(config=config), tiny_backbone("bert"))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 3 * 3 * 128 + HEAD


def test_check_names_the_nearest_layer_and_what_there_is():
    backbone = tiny_backbone("bert")
    (reason,) = LoRA(target_modules=("querry",)).check(backbone, TASK)
    assert reason == "target_modules: bert has no module called 'querry'; did you mean 'query'?"
    (reason,) = IA3(target_modules=("key",), feedforward_modules=("lin2",)).check(backbone, TASK)
    assert reason.startswith("feedforward_modules: bert has no module called 'lin2'")
    (reason,) = Peft().check(tiny_backbone("modernbert"), TASK)
    assert reason == "config.target_modules: PEFT has no choice for modernbert; give some of Wi, Wo, Wqkv"


@pytest.mark.parametrize(("family", "refused"), [("bert", False), ("roberta", False), ("llama", True), ("t5", True)])
def test_check_says_where_a_prompt_would_hide_the_last_token_from_the_pooler(family, refused):
    reasons = PromptTuning().check(tiny_backbone(family, pooling="family"), TASK)
    assert bool(reasons) == refused
    assert all("use pooling 'last'" in reason for reason in reasons)
    assert PromptTuning().check(tiny_backbone(family), TASK) == []


def test_layers_that_the_head_trains_cannot_be_targets_and_nothing_is_left_behind():
    backbone = tiny_backbone("roberta", pooling="family")
    before = list(backbone.model.state_dict())
    with pytest.raises(ConfigError, match=r"classifier\.dense, which is trained with the head anyway"):
        attach(LoRA(target_modules=("dense",)), backbone)
    assert list(backbone.model.state_dict()) == before
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_what_peft_refuses_is_said_and_nothing_is_left_behind():
    backbone = tiny_backbone("bert")
    with pytest.raises(ConfigError, match=r"PEFT cannot put VBLORA on bert: .*vector_length"):
        attach(Peft(config={"peft_type": "VBLORA"}), backbone)
    attach(LoRA(), backbone)


def test_a_second_adapter_has_to_wait_until_the_first_is_off():
    backbone = tiny_backbone("bert")
    first = attach(LoRA(), backbone)
    with pytest.raises(ConfigError, match="carries an adapter already that changes the model itself"):
        attach(IA3(), backbone)
    first(make_batch(backbone))
    first.detach()
    attach(IA3(), backbone)


@pytest.mark.parametrize("name", ["lora", "ia3", "prompt-tuning"])
def test_without_peft_the_error_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'handful\[peft\]'"):
        method_class(name)().check(tiny_backbone("bert"), TASK)


def test_merging_gives_the_same_numbers_and_leaves_the_adapter_alone():
    backbone = tiny_backbone("bert")
    adapter = attach(LoRA(), backbone)
    disturb(adapter)
    batch = make_batch(backbone)
    with torch.no_grad():
        expected = adapter(batch)
        hidden = adapter.merged_model()(**batch.inputs).last_hidden_state
        mask = batch.inputs["attention_mask"]
        found = adapter.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.equal(adapter(batch), expected)
    with pytest.raises(ConfigError, match="cannot be folded"):
        attach(PromptTuning(), tiny_backbone("bert")).merged_model()
