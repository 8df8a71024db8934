"""Checks 1 to 7 of docs/methods/scaled-prompt.md: identities, gradients, transfer, shapes; and prompts as simplices."""

from dataclasses import replace

import pytest
import torch

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode_generation
from handful.data.task import Example, Task
from handful.errors import ConfigError, ModelError
from handful.evaluation.text.generate import GenerationOptions, token_nll, write
from handful.methods.prompt import Prompt, frequent_pieces
from handful.methods.scaled_prompt import ScaledPrompt
from handful.objectives.generation import token_targets
from handful.testing import toy_task
from handful.training.config import TrainingConfig
from handful.training.fit import fit
from handful.training.optim import make_optimizer

FAMILIES = ("t5", "bart", "llama", "gpt2")
FORMS = [
    {"scale_shape": shape, "scale_target": target}
    for target, shapes in (("prompt", ("scalar", "token", "dim", "full")), ("sequence", ("scalar", "dim")))
    for shape in shapes
]
RECORDS = tuple(
    Example(source, source=f"memory:{i}", references=references)
    for i, (source, references) in enumerate(
        [("name = A", ("it is A.", "A it is.")), ("name = B, kind = pub", ("B is a pub.",)), ("x", ("an x, no more.",))]
    )
)
TASK = Task("records", "generation", (), "bleu", pool=RECORDS)


def attach(method, family="t5", seed=0):
    backbone = tiny_backbone(family, purpose="lm")
    return method.attach(backbone, TASK, generator=torch.Generator().manual_seed(seed))


def rows_of(adapter, records=RECORDS, **options):
    whole = adapter.backbone.kind == "encoder-decoder"
    return encode_generation(
        records, adapter.backbone.tokenizer, 40, encoder_decoder=whole, **({"target_length": 20} | options)
    )


def scores(adapter, rows):
    with torch.no_grad():
        return adapter(rows.batch(range(len(rows))))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_of_one_is_plain_prompt_tuning(family, form):
    plain, scaled = attach(Prompt(prompt_length=4), family), attach(ScaledPrompt(prompt_length=4, **form), family)
    assert torch.equal(plain.prompt.vectors, scaled.prompt.vectors)
    rows = rows_of(plain)
    expected = scores(plain, rows)
    assert torch.equal(scores(scaled, rows), expected)
    assert len(expected) == len(token_targets(rows.batch(range(len(rows))).labels))
    asked = rows_of(plain, target_length=None)
    options = GenerationOptions(beams=3, max_new_tokens=6)
    assert write(plain, asked, options) == write(scaled, asked, options)


@pytest.mark.parametrize("form", FORMS[:4], ids=str)
def test_gradients_are_those_worked_out_by_hand(form):
    adapter = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.2, **form))
    prompt = adapter.prompt
    vectors, scale = prompt.vectors.detach()[0], prompt.scale.detach()[0]
    whole = (vectors * scale)[None].requires_grad_(True)
    prompt.forward = lambda: whole
    batch = rows_of(adapter).batch(range(4))
    loss = torch.nn.functional.cross_entropy(adapter(batch), token_targets(batch.labels))
    (gradient,) = torch.autograd.grad(loss, whole)
    del prompt.forward
    loss = torch.nn.functional.cross_entropy(adapter(batch), token_targets(batch.labels))
    of_vectors, of_scale = torch.autograd.grad(loss, [prompt.vectors, prompt.scale])
    torch.testing.assert_close(of_vectors[0], gradient[0] * scale, rtol=1e-5, atol=1e-8)
    both = gradient[0] * vectors
    expected = {
        "scalar": both.sum().view(1, 1), "token": both.sum(1, keepdim=True), "dim": both.sum(0, keepdim=True),
        "full": both,
    }[form["scale_shape"]]  # fmt: skip
    torch.testing.assert_close(of_scale[0], expected, rtol=1e-5, atol=1e-7)


def train(adapter, **settings):
    config = TrainingConfig(**({"epochs": 3, "learning_rate": 0.1, "batch_size": 2} | settings))
    return fit(
        adapter, rows_of(adapter), None, config, kind="generation", metric="bleu",
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_only_prompt_and_scale_are_trained(form):
    adapter = attach(ScaledPrompt(prompt_length=4, **form))
    model = adapter.backbone.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = token_nll(adapter, rows_of(adapter))
    result = train(adapter)
    assert token_nll(adapter, rows_of(adapter)) < first
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    sizes = {"scalar": 1, "token": 4, "dim": 64, "full": 4 * 64}
    assert result.parameters == 4 * 64 + sizes[form["scale_shape"]]
    assert adapter.diagnostics()["scale_off_one"] > 0


def test_squares_of_scale_and_vectors_stay_apart_the_same_under_small_steps():
    drifts = []
    for rate, steps in ((1e-2, 50), (5e-3, 100)):
        adapter = attach(ScaledPrompt(prompt_length=4)).double()
        adapter.backbone.model.double()
        prompt, rows = adapter.prompt, rows_of(adapter)
        optimizer = torch.optim.SGD(prompt.parameters(), lr=rate)
        conserved = lambda: (prompt.scale[0, 0] ** 2 - (prompt.vectors[0] ** 2).sum(0)).detach()  # noqa: E731, B023
        batch, start = rows.batch(range(4)), conserved()
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(adapter(batch), token_targets(batch.labels)).backward()
            optimizer.step()
        assert (prompt.scale - 1).abs().max() > 1e-4  # otherwise nothing would be conserved
        drifts.append(float((conserved() - start).abs().max()))
    assert drifts[1] == pytest.approx(drifts[0] / 2, rel=0.15)


@pytest.mark.parametrize("target", ["prompt", "sequence"])
def test_a_factor_can_move_between_scale_and_vectors_of_a_prompt_only(target):
    adapter = attach(ScaledPrompt(prompt_length=4, scale_target=target))
    rows = rows_of(adapter)
    expected, folded = scores(adapter, rows), adapter.folded_prompt()
    with torch.no_grad():
        adapter.prompt.vectors.mul_(3)
        adapter.prompt.scale.div_(3)
    found = scores(adapter, rows)
    if target == "prompt":
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(adapter.folded_prompt(), folded)
    else:
        assert (found - expected).abs().max() > 1e-2


def test_a_scaled_sequence_is_a_folded_prompt_and_a_scaled_table_of_words():
    adapter = attach(ScaledPrompt(prompt_length=4, scale_target="sequence", scale_init_std=0.3))
    rows = rows_of(adapter)
    expected = scores(adapter, rows)
    scale = adapter.prompt.scale[0, 0].detach()
    plain = attach(Prompt(prompt_length=4))
    with torch.no_grad():
        plain.prompt.vectors.copy_(adapter.prompt.vectors * scale)
    assert (scores(plain, rows) - expected).abs().max() > 1e-2  # the words are scaled too
    model = plain.backbone.model
    table = torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach() * scale)
    model.encoder.embed_tokens, words = table, model.get_input_embeddings
    model.get_input_embeddings = lambda: table
    assert torch.equal(scores(plain, rows), expected)
    model.get_input_embeddings = words


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_and_no_padding_is_learned(family):
    adapter = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.2), family)
    rows = rows_of(adapter)
    together = scores(adapter, rows)
    alone = torch.cat([adapter(rows.batch([row])) for row in range(len(rows))]).detach()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    batch = rows.batch(range(len(rows)))
    longer = adapter.soft_prompt().before(adapter.backbone.model, batch.inputs)
    assert longer["inputs_embeds"].shape[1] == 4 + batch.inputs["input_ids"].shape[1]
    assert (longer["attention_mask"][:, :4] == 1).all()
    assert torch.equal(longer["attention_mask"][:, 4:], batch.inputs["attention_mask"])
    assert torch.equal(longer["labels"], batch.labels)  # a decoder's labels are moved by the backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_of_a_padded_batch_are_those_of_each_row(family):
    adapter = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.2), family)
    options = GenerationOptions(beams=3, max_new_tokens=6)
    asked = rows_of(adapter, target_length=None)
    together = write(adapter, asked, options)
    for index, record in enumerate(RECORDS):
        assert write(adapter, rows_of(adapter, [record], target_length=None), options) == [together[index]]


def test_greedy_writing_follows_the_scores():
    adapter = attach(Prompt(prompt_length=4), "llama")
    asked = rows_of(adapter, RECORDS[:1], target_length=None)
    (written,) = adapter.generate(asked.batch([0]), num_beams=1, max_new_tokens=5, do_sample=False)
    ids = asked.batch([0]).inputs["input_ids"]
    for token in written.tolist():
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        longer = adapter.soft_prompt().before(adapter.backbone.model, inputs)
        assert int(adapter.backbone.model(**longer).logits[0, -1].argmax()) == token
        ids = torch.cat((ids, torch.tensor([[token]])), 1)
        if token == adapter.backbone.tokenizer.eos_token_id:
            break


@pytest.mark.parametrize("own_noise", [0.0, 0.2])
@pytest.mark.parametrize("carry", ["both", "prompt", "scale", "folded"])
def test_what_is_carried_over(carry, own_noise):
    source = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.3))
    target = attach(ScaledPrompt(prompt_length=4, carry=carry, scale_init_std=own_noise), seed=5)
    fresh = target.prompt.vectors.detach().clone()
    carried = target.carry(source.state_dict(), {})
    with torch.no_grad():
        for name, value in carried.items():
            target.get_parameter(name).copy_(value)
    vectors, scale = source.prompt.vectors, source.prompt.scale
    assert torch.equal(target.prompt.scale, scale if carry in ("both", "scale") else torch.ones_like(scale))
    expected = {"both": vectors, "prompt": vectors, "scale": fresh, "folded": vectors * scale}[carry]
    assert torch.equal(target.prompt.vectors, expected)
    rows = rows_of(source)
    same = torch.allclose(scores(source, rows), scores(target, rows), rtol=1e-6, atol=1e-6)
    assert same == (carry in ("both", "folded"))


@pytest.mark.parametrize("carry", ["both", "prompt", "folded"])
def test_of_a_plain_prompt_the_scale_is_one(carry):
    source = attach(Prompt(prompt_length=4))
    target = attach(ScaledPrompt(prompt_length=4, carry=carry, scale_init_std=0.2), seed=5)
    target.load_state_dict(target.state_dict() | dict(target.carry(source.state_dict(), {})))
    assert torch.equal(scores(target, rows_of(source)), scores(source, rows_of(source)))


def test_a_plain_prompt_has_no_scale_to_carry():
    with pytest.raises(ConfigError, match="carry: 'scale', but the run to start from has none"):
        attach(ScaledPrompt(prompt_length=4, carry="scale")).carry(attach(Prompt(prompt_length=4)).state_dict(), {})


def test_both_and_folded_start_as_the_same_function_and_part():
    source, losses = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.3)), []
    for carry in ("both", "folded"):
        target = attach(ScaledPrompt(prompt_length=4, carry=carry), seed=5)
        target.load_state_dict(target.state_dict() | dict(target.carry(source.state_dict(), {})))
        before = token_nll(target, rows_of(target))
        train(target, epochs=1)
        losses.append((before, token_nll(target, rows_of(target))))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][1] != pytest.approx(losses[1][1], rel=1e-4)


def test_a_scale_on_the_words_is_no_scale_on_the_prompt():
    """What was `prompt.scale` there would be another function here, and folds into no prompt."""
    source = attach(ScaledPrompt(prompt_length=4, scale_target="sequence", scale_init_std=0.3))
    record = {"spec": {"method": {"scale_target": "sequence"}}}
    for method in (
        Prompt(prompt_length=4),
        ScaledPrompt(prompt_length=4),
        ScaledPrompt(prompt_length=4, carry="folded"),
    ):
        with pytest.raises(ConfigError, match="scale_target: the run to start from scales the sequence"):
            attach(method).carry(source.state_dict(), record)
    same = ScaledPrompt(prompt_length=4, scale_target="sequence")
    assert torch.equal(attach(same).carry(source.state_dict(), record)["prompt.scale"], source.prompt.scale)
    with pytest.raises(ConfigError, match="folds into no prompt"):
        attach(replace(same, carry="folded")).carry(source.state_dict(), record)


def test_a_plain_prompt_takes_a_scaled_one_folded():
    source, plain = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.3)), attach(Prompt(prompt_length=4), seed=5)
    plain.load_state_dict(
        plain.state_dict() | {"prompt.vectors": plain.carry(source.state_dict(), {})["prompt.vectors"]}
    )
    assert torch.equal(scores(plain, rows_of(plain)), scores(source, rows_of(plain)))


def test_the_scale_has_a_rate_of_its_own_and_no_decay():
    adapter = attach(ScaledPrompt(prompt_length=4, scale_rate=0.5, rate_unit="one"))
    optimizer = make_optimizer(adapter, TrainingConfig(learning_rate=0.2, weight_decay=0.1))
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert groups[id(adapter.prompt.vectors)] == (0.2, 0.1)
    assert groups[id(adapter.prompt.scale)] == (0.1, 0.0)


def test_vectors_move_by_the_rate_times_the_size_of_word_embeddings():
    """Adam's first step moves every number by the rate; decay shrinks it by the rate, whatever the unit is."""
    adapter = attach(ScaledPrompt(prompt_length=4))
    table, vectors = adapter.backbone.model.get_input_embeddings().weight, adapter.prompt.vectors
    table.data *= 100 / table.square().mean().sqrt()
    optimizer = make_optimizer(adapter, TrainingConfig(learning_rate=0.2, weight_decay=0.1))
    before = vectors.detach().clone()
    vectors.grad = torch.ones_like(vectors)
    optimizer.step()
    special = torch.tensor(adapter.backbone.tokenizer.all_special_ids)
    words = torch.ones(len(table), dtype=torch.bool).index_fill(0, special[special < len(table)], False)
    size = table[words].square().mean().sqrt()
    torch.testing.assert_close(vectors.detach(), before * (1 - 0.2 * 0.1) - 0.2 * size, rtol=1e-4, atol=1e-4)


def test_places_for_new_words_are_no_words(monkeypatch):
    backbone = tiny_backbone("t5", purpose="lm")
    before, pieces = frequent_pieces(backbone), backbone.tokenizer.convert_ids_to_tokens
    named = {int(before[0]): "[unused0]", int(before[3]): "[unused1]"}
    monkeypatch.setattr(
        backbone.tokenizer, "convert_ids_to_tokens", lambda ids: [named.get(i, pieces(i)) for i in ids], raising=False
    )
    assert frequent_pieces(backbone).tolist() == [i for i in before.tolist() if i not in named]


@pytest.mark.parametrize("family", ["gemma3", "bart", "t5", "opt"])
def test_a_prompt_of_words_is_those_words(family):
    """Gemma multiplies its table on the way to the layers: a prompt must start behind that."""
    adapter = attach(Prompt(prompt_length=2, init="text", init_text="is A"), family)
    ids = adapter.backbone.tokenizer("is A", add_special_tokens=False)["input_ids"]
    assert len(ids) >= 2
    words = adapter.backbone.model.get_input_embeddings()(torch.tensor(ids[:2]))
    assert torch.equal(adapter.prompt.vectors[0], words)


def test_points_of_a_simplex_are_mixed_as_folded_prompts():
    adapter = attach(ScaledPrompt(prompt_length=4, scale_init_std=0.3, num_vertices=3))
    folded = adapter.prompt.vectors * adapter.prompt.scale
    torch.testing.assert_close(adapter.folded_prompt(), folded.mean(0).detach())
    rows = rows_of(adapter)
    batch = rows.batch(range(len(rows)))
    draw = adapter.draw(batch, torch.Generator().manual_seed(0))
    assert adapter.soft_prompt(draw).vectors.shape == (len(rows), 4, 64)
    drawn = adapter(batch, draw)
    assert not torch.allclose(drawn, adapter(batch))
    first = token_nll(adapter, rows)
    train(adapter)
    assert token_nll(adapter, rows) < first


def test_starts():
    vocabulary = attach(Prompt(prompt_length=4))
    table = vocabulary.backbone.model.get_input_embeddings().weight
    for vector in vocabulary.prompt.vectors[0]:
        assert (table == vector).all(1).any()
    text = attach(Prompt(prompt_length=5, init="text", init_text="abc"))
    ids = text.backbone.tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert torch.equal(text.prompt.vectors[0], text.backbone.model.get_input_embeddings().weight[[*ids, *ids[:2]]])
    uniform = attach(Prompt(prompt_length=50, init="uniform")).prompt.vectors.detach()
    assert uniform.min() >= -0.5 and uniform.max() <= 0.5 and uniform.std() == pytest.approx(0.2887, abs=0.01)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="scale_shape: 'token'"):
        ScaledPrompt(scale_shape="token", scale_target="sequence")
    with pytest.raises(ConfigError, match="num_vertices"):
        ScaledPrompt(scale_target="sequence", num_vertices=2)
    with pytest.raises(ConfigError, match="init_text"):
        Prompt(init="text")
    with pytest.raises(ConfigError, match="init_text"):
        Prompt(init_text="but init is vocabulary")
    with pytest.raises(ModelError, match="leave no room for text in the model's 256 positions"):
        attach(Prompt(prompt_length=250))


@pytest.mark.parametrize("method", [Prompt, ScaledPrompt])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_prompts_serve_labels_too(method, family):
    backbone, task = tiny_backbone(family), toy_task()
    adapter = method(prompt_length=3).attach(backbone, task, generator=torch.Generator().manual_seed(0))
    inputs = adapter.backbone.tokenizer(["a text", "another, longer"], padding=True, return_tensors="pt")
    features = adapter.backbone.features(inputs, adapter.soft_prompt())
    assert features.shape == (2, 64)
    assert not torch.allclose(features, adapter.backbone.features(inputs))
