"""Fixtures of the export tests."""

import pytest

from handful.backbone.load import load_backbone
from handful.backbone.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def stored(tmp_path):
    """Makes a backbone of a tiny family from a folder that stays."""

    def make(family, pooling="auto", purpose="features"):
        folder = tmp_path / family
        tiny_model(family, head="lm" if purpose == "lm" else "none").save_pretrained(folder)
        tiny_tokenizer(family).save_pretrained(folder)
        return load_backbone(str(folder), pooling=pooling, purpose=purpose)

    return make


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """How fast an export is gets a tenth of the time that it has for users."""
    monkeypatch.setattr("handful.export.size.BUDGET", 0.2)


@pytest.fixture(autouse=True)
def torchscript(monkeypatch):
    """ONNX files are written by the exporter that needs a second and not ten, unless a test takes `by_export`."""
    monkeypatch.setattr("handful.export.onnx.exporter", lambda: "TorchScript")


@pytest.fixture
def by_export(monkeypatch):
    """ONNX files are written by the exporter that is the default where onnxscript is installed."""
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("handful.export.onnx.exporter", lambda: "torch.export")


@pytest.fixture
def in_process(monkeypatch):
    """Runs the README's code here instead of in a fresh process: fast, and with the same code."""
    code_seen = []

    def run(folder, code, inputs, function="scores"):
        monkeypatch.chdir(folder)
        loader = {}
        exec(code, loader)
        code_seen.append(code)
        return loader[function](inputs)

    monkeypatch.setattr("handful.export.folder.stock_scores", run)
    return code_seen
