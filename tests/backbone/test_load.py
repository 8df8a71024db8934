"""Models that cannot be loaded say why."""

import json
from importlib.util import find_spec

import pytest

from handful.backbone.load import load_backbone
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
