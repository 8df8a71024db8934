"""Models that cannot be loaded say why."""

import json
from importlib.util import find_spec

import pytest

from handful.backbone.load import load_backbone
from handful.backbone.skeleton import load_skeleton
from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.errors import ModelError


@pytest.mark.parametrize(
    ("quantization", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
    ],
)
def test_quantised_weights_name_the_package_they_need(quantization, package, tmp_path):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    tiny_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    with pytest.raises(ModelError, match=f"without another package: .*{package}") as refused:
        load_backbone(str(tmp_path))
    assert "in full precision" in refused.value.hint


EVIL = """from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import BertConfig as EvilConfig, BertModel as EvilModel, BertTokenizer as EvilTokenizer
"""


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT that tests may break."""
    tiny_model("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path, **change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("kind", ["evil", "bert"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_never_run_nor_asked_about(folder, tmp_path, monkeypatch, file, kind):
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    auto = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModel": "evil.EvilModel",
        "AutoTokenizer": ["evil.EvilTokenizer", None],
    }
    edit(folder / file, auto_map=auto)
    if kind == "evil":
        edit(folder / "config.json", model_type="evil")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked"))
    for load in (load_backbone, load_skeleton):
        with pytest.raises(ModelError, match=f"{file} names code to run with the model") as refused:
            load(str(folder))
        assert "take auto_map out" in refused.value.hint
    assert not mark.exists()
    edit(folder / file, auto_map={})
    if kind == "evil":
        edit(folder / "config.json", model_type="bert")
    assert load_backbone(str(folder)).family == "bert"


WRONG = {
    "num_attention_heads": (0, -1, "x", None, [], 10**30, 1.5, True, 7), "intermediate_size": (-1, 0, {}, 10**12),
    "hidden_dropout_prob": ([], "x"), "num_hidden_layers": ("x", 0, -3, 10**9, {}), "vocab_size": (10**12, 0, "x", 3),
    "hidden_size": (10**9, 0, [], 63), "model_type": (3, "nothing", [], None, {}), "max_position_embeddings": (0, "x"),
    "hidden_act": (3, "nothing", None), "layer_norm_eps": ("x", None),
    "quantization_config": (3, {}), "dtype": (3, "nothing"), "pad_token_id": (10**9, "x"), "id2label": (3, [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_senseless_values_of_a_configuration_are_refused_before_memory_is_taken(folder, name):
    before = (folder / "config.json").read_text()
    refused = 0
    for value in WRONG[name]:
        (folder / "config.json").write_text(json.dumps(json.loads(before) | {name: value}))
        for load in (load_skeleton, load_backbone):
            try:
                load(str(folder))
            except ModelError as error:
                refused += 1
                said = error
    assert refused
    assert str(folder) in said.message


TOKENIZER = {
    "tokenizer_config.json": ({"cls_token": 1.0}, {"model_max_length": "x"}, {"tokenizer_class": 3}, {"pad_token": []}),
    "tokenizer.json": ({"model": 3}, {"added_tokens": "x"}, {"version": []}, {"model": {"type": "WordPiece"}}),
}


@pytest.mark.parametrize("file", TOKENIZER)
def test_damaged_tokenizer_files_are_refused(folder, file):
    path = folder / file
    before, refused = path.read_text(), 0
    contents = [before[: len(before) * part // 7] for part in range(7)] + ["[]", "3", "null", "[" * 100_000]
    for content in contents + [json.dumps(json.loads(before) | change) for change in TOKENIZER[file]]:
        path.write_text(content)
        try:
            load_skeleton(str(folder))
        except ModelError:
            refused += 1
    assert refused > 8


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a/" + "b" * 5000, "\0", "a\0/b", "", "~nobody-of-that-name", "a/b/c", "a b/c"]
)
def test_what_can_be_no_name_is_refused(name):
    with pytest.raises(ModelError, match="no model is called") as refused:
        load_backbone(name)
    assert len(refused.value.message) < 400
