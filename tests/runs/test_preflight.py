"""Preflight: what it says of a run is what the run then is, and no weights are read for it."""

from __future__ import annotations

import pytest

from handful.backbone.load import load_backbone
from handful.backbone.skeleton import load_skeleton
from handful.backbone.tiny import TINY_FAMILIES, tiny_model, tiny_tokenizer
from handful.data.task import Example, Task
from handful.errors import ConfigError, DataError, ModelError
from handful.methods import METHODS
from handful.runs.experiment import make_split, train
from handful.runs.preflight import preflight
from handful.runs.spec import resolve

ROWS = tuple(Example("ab" * (i % 7 + 1), label=i % 2, source=f"data.csv:{i}") for i in range(7))
TASK = Task("task", "classification", ("a", "b"), "accuracy", ROWS)


@pytest.mark.parametrize("method", METHODS)
def test_it_says_what_training_then_does(tiny_folder, method):
    overrides = {"dev": "carved", "max_length": 9, "training.epochs": 1, "batch_size": 2}
    spec = resolve(method, model=str(tiny_folder), overrides=overrides)
    told = preflight(TASK, spec)
    done = train(TASK, spec)
    assert told.steps == done.result.steps
    assert told.truncated == done.truncated
    assert told.truncated["train"] + told.truncated["dev"] > 0
    assert told.parameters in (done.result.parameters, None)
    assert told.parameters is not None or method == "prompt-tuning"  # torch's fake tensors cannot make its prompt
    notes = [note for note in done.trained.adapter.notes if "have not closed" not in note]  # which training alone knows
    assert told.notes == tuple(notes)
    assert told.split.fingerprint == make_split(TASK, spec).fingerprint
    assert sum(told.classes.values()) == len(told.split.train)
    assert told.longest == 16  # [CLS] + 14 letters + [SEP]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_it_counts_references_where_texts_are_written(tmp_path, family):
    tiny_model(family, head="lm").save_pretrained(tmp_path)
    tiny_tokenizer(family).save_pretrained(tmp_path)
    texts = [("short", "a text that is cut", "b" * n) for n in range(3, 10)]
    rows = tuple(Example("ab" * n, source=f"data.csv:{n}", references=text) for n, text in enumerate(texts, 1))
    task = Task("task", "generation", (), "rouge-l", rows)
    overrides = {"dev": "carved", "dev_fraction": 0.4, "max_length": 9, "target_length": 9, "max_new_tokens": 4}
    spec = resolve("prompt", model=str(tmp_path), overrides={**overrides, "training.epochs": 1, "batch_size": 2})
    told, done = preflight(task, spec), train(task, spec)
    assert told.steps == done.result.steps > len(told.split.train)
    assert told.truncated == done.truncated and told.truncated["train"] > 0
    assert told.truncated_references == done.truncated_references >= len(rows)  # of every record the longest at least
    assert told.target_length == 9
    assert told.longest >= 14


@pytest.mark.parametrize("pooling", ["auto", "family"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_skeleton_is_the_backbone_without_content(tmp_path, family, pooling):
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer(family).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), pooling=pooling)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    skeleton = load_skeleton(str(tmp_path), pooling=pooling)
    for name in ("name", "kind", "family", "pooling", "num_layers", "hidden_size", "max_length"):
        assert getattr(skeleton, name) == getattr(backbone, name), name
    shapes = [{name: tuple(p.shape) for name, p in b.model.named_parameters()} for b in (skeleton, backbone)]
    assert shapes[0] == shapes[1]
    if pooling == "family" and skeleton.kind == "encoder-decoder":  # their poolers look for the end token's place
        with pytest.raises(RuntimeError):
            _ = skeleton.injection
        return
    if pooling == "family" and backbone.kind == "encoder-decoder":
        return  # their pooler looks for the end token, which needs content; `preflight` then does without the sites
    outlines = [[(s.index, s.layer, s.heads, s.width, s.kind) for s in b.injection.sites] for b in (skeleton, backbone)]
    assert outlines[0] == outlines[1]


@pytest.mark.parametrize(
    ("method", "overrides", "error", "said"),
    [
        ("prefix", {"layers": [0, 4]}, ConfigError, "layers: expected 0 <= first < stop <= 3"),
        ("lora", {"target_modules": ["qurey"]}, ConfigError, "did you mean 'query'?"),
        ("head", {"shots": 50}, DataError, "expected at least 50 distinct labelled rows"),
        ("prefix", {"positions": "shifted", "prefix_length": 255}, ConfigError, "expected at least 8"),
    ],
)
def test_it_refuses_what_the_run_would(tiny_folder, method, overrides, error, said):
    spec = resolve(method, model=str(tiny_folder), overrides=overrides)
    for attempt in (preflight, train):
        with pytest.raises(error, match=said):
            attempt(TASK, spec)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'minilm'"):
        preflight(TASK, resolve("head", model="minlm"))
