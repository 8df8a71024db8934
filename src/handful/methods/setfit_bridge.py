"""SetFit, the baseline that many would pick for few labels, under our rows, tokens, scoring and record.

Idea: fine-tune a sentence encoder so that rows of one class lie close together and others apart, on pairs of training
rows; then fit a logistic regression on its features. Formula: min over θ of Σ (cos(f(xᵢ; θ), f(xⱼ; θ)) − [yᵢ = yⱼ])²;
then scores = W f(x; θ) + c. Of several labels per text, rows that share one are those that lie close together, and each
label has a logistic regression of its own (SetFit's strategy "one-vs-rest").
Trained: every number of the model below the features, plus C·(D + 1). Inference: that of the model.
Source: Tunstall et al. 2022; both steps are done by the SetFit library with its defaults.
Deviations: seeds come from our generator (but SetFit draws its pairs in one fixed order); features are those of our
backbone, mean over tokens by default and not normalised; the texts of a pair are read together, as everywhere here.
"""

from __future__ import annotations

import gc
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import nn

from handful.backbone.device import has_mps, num_gpus
from handful.backbone.load import Backbone
from handful.backbone.sharing import lent_seed
from handful.data.batching import EncodedRows
from handful.data.task import Task
from handful.errors import ConfigError
from handful.methods.base import AbstractMethod, BorrowedParameters, Preset, setting
from handful.methods.exports import Exports
from handful.methods.full import feeding_parameters
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.search_space import Interval, SearchSpace
from handful.objectives.classification import class_weights

INSTALL = "pip install 'handful[setfit]'"


@final
@dataclass(frozen=True)
class SetFit(AbstractMethod):
    """Contrastive fine-tuning and a logistic regression."""

    name: ClassVar[str] = "setfit"
    summary: ClassVar[str] = "SetFit: contrastive fine-tuning, then logistic regression (through the library)"
    source: ClassVar[str] = "Tunstall et al. 2022"
    export_format: ClassVar[str] = "dense"
    writes: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": Preset(
            "SetFit's own defaults; it trains while it warms up, so that no epochs of ours follow",
            training={"epochs": 0, "learning_rate": 1e-4, "head_learning_rate": 1e-3},
            run={"dev": "none"},
        ),
        "fixed-pairs": Preset(
            "SetFit's default before version 1.0: 40 pairs a row, so that time grows with the rows, not their square",
            settings={"num_iterations": 20},
            training={"epochs": 0, "learning_rate": 1e-4, "head_learning_rate": 1e-3},
            run={"dev": "none"},
        ),
    }
    search_space: ClassVar[SearchSpace] = {
        "method.body_learning_rate": Interval(5e-6, 2e-4, log=True, reason="ours: a factor of ten around the default"),
    }

    num_iterations: Annotated[
        int | None,
        setting(
            "pairs: twice so many a row; none: every pair, the rarer kind repeated", source="SetFit's default", ge=1
        ),
    ] = None
    num_epochs: Annotated[int, setting("passes over the pairs", source="SetFit's default", ge=1, le=100)] = 1
    pair_batch_size: Annotated[int, setting("pairs a step", source="SetFit's default", unit="pairs", ge=1, le=4096)] = (
        16
    )
    body_learning_rate: Annotated[
        float, setting("peak rate of AdamW in contrastive training", source="SetFit's default", gt=0, le=1)
    ] = 2e-5

    def check(self, backbone: Backbone, task: Task) -> list[str]:
        missing = [] if find_spec("setfit") else [f"SetFit is not installed: {INSTALL}"]
        return missing + (["SetFit is for classes and labels"] if not task.objective.has_labels else [])

    def exports(self, backbone: Backbone | str) -> Exports:
        return {"merged weights": None}

    def attach(self, backbone: Backbone, task: Task, *, generator: torch.Generator) -> SetFitAdapter:
        return SetFitAdapter(backbone, task, self, generator=generator)


@final
class SetFitAdapter(AbstractHeadedAdapter):
    """scores = head(features(x; θ)), with θ and head trained by SetFit's trainer before our first step."""

    def __init__(self, backbone: Backbone, task: Task, method: SetFit, *, generator: torch.Generator):
        _ = backbone.fingerprint  # of the pretrained weights: taken before they change
        super().__init__(backbone, task, generator=generator)
        backbone.sharing.claim(self)
        self.method = method
        feeding = feeding_parameters(backbone) - set(backbone.fresh)
        self.trunk = BorrowedParameters(backbone.model, lambda name, _: name in feeding)

    def warm_start(self, rows: EncodedRows, generator: torch.Generator) -> None:
        assert rows.labels is not None
        seed = int(torch.randint(2**31, (), generator=generator))
        several = rows.labels.dim() == 2
        labels = rows.labels.long().tolist()
        if several:
            _check_pairs(rows.labels)
        model = train_setfit(RowEncoder(self.backbone, rows), labels, self.method, seed)
        weight, bias = (
            label_weights(model.model_head, rows.labels.numpy()) if several else class_weights(model.model_head)
        )
        with torch.no_grad():
            self.head.weight[0].copy_(torch.from_numpy(weight).float())
            self.head.bias[0].copy_(torch.from_numpy(bias).float())
        del model
        gc.collect()  # trainer, callbacks and optimiser refer to each other, and hold three times the model's memory

    def detach(self) -> None:
        self.trunk.restore()
        super().detach()


@final
class RowEncoder(nn.Module):
    """The backbone as the one module of a sentence-transformers model.

    It reads the numbers of rows that are tokenised already ("0", "1", …) where others read texts, so that SetFit sees
    the very tokens that every other method sees.
    """

    def __init__(self, backbone: Backbone, rows: EncodedRows):
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        self.model = backbone.model
        self.rows, self.tokenizer, self.max_seq_length = rows, backbone.tokenizer, max(rows.lengths)

    backbone: Backbone

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        """The model's arguments for these rows."""
        del prompt, options
        return self.rows.batch([int(number) for number in inputs]).inputs

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The name of `preprocess` in older versions of sentence-transformers."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
        del options
        features["sentence_embedding"] = self.backbone.features(features)
        return features


def _check_pairs(labels: torch.Tensor) -> None:
    """Raises: ConfigError where any two rows (N, C) share a label: there is then nothing to tell apart."""
    if bool((labels @ labels.T > 0).all()):
        raise ConfigError(
            "method 'setfit' learns from pairs of rows without a label in common, found none",
            "leave out the label that every row has, or use another method",
        )


def label_weights(head: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, D) and bias (C,) of a fitted one-vs-rest classifier, trained on targets (N, C) of zeros and ones.

    For a label that all rows or none have, which has no regression, its smoothed share alone.
    """
    found = [getattr(label, "coef_", None) for label in head.estimators_]
    width = next(coefficients.shape[1] for coefficients in found if coefficients is not None)
    weight, bias = np.zeros((len(found), width)), np.zeros(len(found))
    for index, (coefficients, column) in enumerate(zip(found, targets.T, strict=True)):
        if coefficients is None:
            bias[index] = np.log((column.sum() + 1) / (len(column) - column.sum() + 1))
        else:
            weight[index], bias[index] = coefficients[0], head.estimators_[index].intercept_[0]
    return weight, bias


def train_setfit(encoder: RowEncoder, labels: list[Any], method: SetFit, seed: int) -> Any:
    """A `SetFitModel` around the encoder, whose weights SetFit's trainer has changed in place.

    `labels` are classes, or of several labels per text a list of zeros and ones each.

    The global random streams are as they were afterwards. Raises: ConfigError where SetFit cannot be imported.
    """
    setfit, sentence_transformers = import_setfit()
    names = [str(number) for number in range(len(labels))]
    device = encoder.backbone.device
    check_device(device)
    with lent_streams(seed, device), quiet(setfit), tempfile.TemporaryDirectory() as folder:
        body = sentence_transformers.SentenceTransformer(modules=[encoder], device=str(device))
        head = {"model_head": LogisticRegression()}
        if isinstance(labels[0], list):  # what SetFit makes of multi_target_strategy, where it loads a model by name
            head = {"model_head": OneVsRestClassifier(LogisticRegression()), "multi_target_strategy": "one-vs-rest"}
        model = setfit.SetFitModel(model_body=body, **head)
        arguments = setfit.TrainingArguments(
            output_dir=folder,
            batch_size=method.pair_batch_size,
            num_epochs=method.num_epochs,
            num_iterations=method.num_iterations,
            body_learning_rate=method.body_learning_rate,
            seed=seed,
            save_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        trainer = setfit.Trainer(model=model, args=arguments)  # without rows, of which it would write a model card
        for callback in list(trainer.st_trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("ProgressCallback", "PrinterCallback"):
                trainer.st_trainer.remove_callback(callback)
        try:
            trainer.train_embeddings(names, labels, args=arguments)
            trainer.train_classifier(names, labels, args=arguments)
        finally:
            encoder.backbone.model.eval()
    return model


def check_device(device: torch.device) -> None:
    """Raises: ConfigError for another device than SetFit's trainer takes, which asks nobody."""
    gpus = num_gpus()
    its = "mps" if has_mps() else "cpu"
    if device.type != ("cuda" if gpus else its) or gpus > 1:
        found = f"{gpus} CUDA device{'s' * (gpus > 1)}" if gpus else its
        raise ConfigError(
            f"method 'setfit': its library trains on all that it finds, here {found}, and not on {device}",
            "CUDA_VISIBLE_DEVICES=0 shows it one GPU (with --device cuda), an empty one none (with --device cpu)"
            if gpus
            else f"use --device {its}",
        )


@contextmanager
def lent_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Lends the global random streams of Python, numpy and torch to a library that seeds them."""
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with lent_seed(seed, device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


@contextmanager
def quiet(setfit: Any) -> Iterator[None]:
    """Without SetFit's lines of progress, and torch's about memory that only accelerators have."""
    before = setfit.logging.get_verbosity()
    setfit.logging.set_verbosity_warning()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory", category=UserWarning)
            yield
    finally:
        setfit.logging.set_verbosity(before)


def import_setfit() -> tuple[Any, Any]:
    """The packages setfit and sentence_transformers. Raises: ConfigError where they cannot be imported."""
    try:
        with warnings.catch_warnings():  # it changes the filters for everybody
            import sentence_transformers
            import setfit
    except ImportError as error:
        raise ConfigError(f"method 'setfit' needs SetFit, which cannot be imported: {error}", INSTALL) from None
    return setfit, sentence_transformers
