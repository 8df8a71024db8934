"""Every method that can write: it learns on a language model, writes with beams, and the options do what they say."""

import pytest
import torch

from handful.backbone.load import load_backbone
from handful.backbone.skeleton import load_skeleton
from handful.backbone.tiny import tiny_backbone, tiny_model, tiny_tokenizer
from handful.data.batching import NO_LOSS, Batch, encode_generation
from handful.data.task import Example, Task
from handful.errors import ConfigError, ModelError
from handful.evaluation.evaluate import encode_for
from handful.evaluation.text.generate import GenerationOptions, token_nll, write
from handful.methods import method_class, method_names
from handful.runs.spec import resolve
from handful.training.config import TrainingConfig
from handful.training.fit import fit

RECORDS = tuple(
    Example(source, source=f"memory:{i}", references=(reference,))
    for i, (source, reference) in enumerate(
        [("name = A", "it is A."), ("name = B, kind = pub", "B is a pub."), ("x", "x.")]
    )
)
TASK = Task("records", "generation", (), "bleu", pool=RECORDS)
WRITERS = [name for name in method_names() if method_class(name).writes and name != "peft"]
SETTINGS = {name: {"lora_rank": 2} for name in ("prune", "fine-gates")}  # there are no biases and no head


def attach(name, family):
    backbone = tiny_backbone(family, purpose="lm")
    method = method_class(name)(**SETTINGS.get(name, {}))
    if reasons := method.check(backbone, TASK):
        pytest.skip(f"{name} says that it cannot work on {family}: {reasons[0]}")
    return method.attach(backbone, TASK, generator=torch.Generator().manual_seed(0))


def rows_of(adapter, records=RECORDS, **options):
    whole = adapter.backbone.kind == "encoder-decoder"
    return encode_generation(
        records, adapter.backbone.tokenizer, 40, encoder_decoder=whole, **({"target_length": 20} | options)
    )


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_method_learns_to_write_and_writes_with_beams(name, family):
    adapter = attach(name, family)
    rows, asked = rows_of(adapter), rows_of(adapter, target_length=None)
    losses = []
    for epochs in (0, 8):
        config = TrainingConfig(epochs=epochs, learning_rate=resolve(name).training.learning_rate, batch_size=2)
        generator = torch.Generator().manual_seed(1)
        fit(adapter, rows, rows, config, kind="generation", metric="bleu", generator=generator)
        losses.append(token_nll(adapter, rows))
    assert losses[1] < losses[0]
    options = GenerationOptions(beams=3, max_new_tokens=6)
    texts = write(adapter, asked, options)
    for index, record in enumerate(RECORDS):  # alone as in the padded batch
        assert write(adapter, rows_of(adapter, [record], target_length=None), options) == [texts[index]]
    assert_greedy_follows_the_scores(adapter)
    adapter.detach()


@torch.no_grad()
def assert_greedy_follows_the_scores(adapter):
    """What is written is what the adapter's own forward finds most probable, token by token."""
    tokenizer = adapter.backbone.tokenizer
    batch = rows_of(adapter, RECORDS[:1], target_length=None).batch([0])
    (written,) = adapter.generate(batch, num_beams=1, max_new_tokens=5, do_sample=False)
    ids, labels = batch.inputs["input_ids"], written[None]
    if adapter.backbone.kind == "decoder":
        ids, labels = torch.cat((ids, labels), 1), torch.cat((torch.full_like(ids, NO_LOSS), labels), 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    predicted = adapter(Batch(inputs, labels, torch.zeros(1, dtype=torch.int64))).argmax(1)
    end = (written == tokenizer.eos_token_id).nonzero()
    upto = int(end[0]) + 1 if len(end) else len(written)
    assert predicted[:upto].tolist() == written[:upto].tolist()


def test_options_of_decoding_are_those_of_transformers():
    adapter = attach("prompt", "t5")
    asked = rows_of(adapter, target_length=None)
    short = write(adapter, asked, GenerationOptions(beams=1, max_new_tokens=2))
    longer = write(adapter, asked, GenerationOptions(beams=1, max_new_tokens=8))
    assert all(len(text) <= 2 for text in short)
    assert all(text.startswith(start) for text, start in zip(longer, short, strict=True))
    heard = []
    write(adapter, asked, GenerationOptions(max_new_tokens=1), batch_size=2, on_progress=heard.append)
    assert heard == [2, 3]


def test_a_checkpoints_own_decoding_changes_nothing_but_its_tokens():
    adapter = attach("prompt", "t5")
    asked, options = rows_of(adapter, target_length=None), GenerationOptions(beams=2, max_new_tokens=12)
    texts = write(adapter, asked, options)
    own = adapter.backbone.model.generation_config
    own.update(
        repetition_penalty=50.0, min_length=11, encoder_no_repeat_ngram_size=1, early_stopping=True, num_beams=4,
        length_penalty=9.0, no_repeat_ngram_size=1, encoder_repetition_penalty=3.0,
    )  # fmt: skip
    assert write(adapter, asked, options) == texts


def test_a_text_ends_where_training_ends_it():
    """Also where a checkpoint's own list of end tokens lacks the tokenizer's."""
    adapter = attach("prompt", "llama")
    own, end = adapter.backbone.model.generation_config, adapter.backbone.tokenizer.eos_token_id
    for found, expected in ((None, end), (end, end), ([end, 7], [end, 7]), (7, [end, 7])):
        own.eos_token_id = found
        assert adapter.backbone.decoding().eos_token_id == expected


def test_what_no_decoder_has_room_for_is_refused_or_counted():
    adapter = attach("lora", "bart")  # 256 positions in encoder and decoder
    long = Example("x", source="memory:9", references=("so " * 300,))
    rows = encode_for(adapter, [long], TASK, 40, GenerationOptions(target_length=600))
    assert (len(rows.target_ids[0]), rows.truncated_targets) == (256, 1)
    token_nll(adapter, rows)
    with pytest.raises(ConfigError, match=r"max_new_tokens: 600, but the model can write 256 tokens"):
        encode_for(adapter, [long], TASK, 40, GenerationOptions(max_new_tokens=600))
    write(adapter, encode_for(adapter, [long], TASK, 40, GenerationOptions(), to_write=True), GenerationOptions(
        beams=1, max_new_tokens=256))  # fmt: skip
    with pytest.raises(ConfigError, match=r"separator: found ' = '.*encoder-decoder"):
        encode_for(adapter, [long], TASK, 40, GenerationOptions(separator=" = "))
    decoder = method_class("prompt")(prompt_length=130).attach(
        tiny_backbone("llama", purpose="lm"), TASK, generator=torch.Generator().manual_seed(0)
    )
    with pytest.raises(ConfigError, match=r"leaves 0 of the model's 256 positions for its source behind 130"):
        encode_for(decoder, [long], TASK, 40, GenerationOptions())
    assert encode_for(decoder, [long], TASK, 40, GenerationOptions(target_length=32, max_new_tokens=90)).truncated == 0


def test_what_writing_has_no_use_for_is_refused():
    for settings, said in (({"predictor": "draw"}, "run.predictor: .*'draw'"), ({"pooling": "mean"}, "run.pooling")):
        with pytest.raises(ConfigError, match=said):
            resolve("scaled-prompt", overrides={"num_vertices": 2, **settings}).suited("generation")


def test_settings_of_generation_are_checked_with_all_others():
    spec = resolve("scaled-prompt", overrides={"generation.beams": 2, "target_length": 30})
    assert (spec.generation.beams, spec.generation.target_length) == (2, 30)
    assert resolve("scaled-prompt").generation is None
    assert resolve("scaled-prompt").suited("generation").generation == GenerationOptions()
    with pytest.raises(ConfigError, match=r"training\.epochs: .*\n.*generation\.beams"):
        resolve("scaled-prompt", overrides={"generation.beams": 0, "training.epochs": -1})


def test_pruning_with_nothing_to_recover_is_refused():
    (reason,) = method_class("prune")().check(tiny_backbone("t5", purpose="lm"), TASK)
    assert "nothing would be left to train" in reason


@pytest.mark.parametrize("load", [load_backbone, load_skeleton])
def test_an_encoder_cannot_write(load, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder, which reads and cannot write"):
        load(str(tmp_path), purpose="lm")


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="nothing is written in a task of kind 'classification'"):
        resolve("lora", overrides={"beams": 2}).suited("classification")
    with pytest.raises(ConfigError, match="'head' writes nothing"):
        resolve("head").suited("generation")
    with pytest.raises(ConfigError, match="texts are written at one point"):
        resolve("prefix-subspace", overrides={"predictor": "ensemble"}).suited("generation")
