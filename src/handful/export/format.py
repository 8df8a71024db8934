"""What an export format is: one object a file, which says what it is made of, what stands in its way, and writes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from handful.backbone.classifier import output_layer
from handful.backbone.load import Backbone
from handful.data.task import Task
from handful.methods.base import AbstractMethod
from handful.methods.exports import Exports, Product

if TYPE_CHECKING:
    from handful.export.folder import ExportJob, ExportReport
    from handful.export.loaders import Loader

Form = Literal["classifier", "features", "language-model"]
BODY, HEAD = "0_Transformer", "2_Dense"
"""Folders of the bare model and of the head in an export that has them apart, as sentence-transformers calls them."""


@final
@dataclass(frozen=True)
class ExportPlan:
    """What an export gives, in one sentence; or, where `form` is None, why it is impossible.

    `form` "classifier": a stock classification class computes the scores. "features": a bare stock model computes
    hidden states, and the head beside it, with a short loader in the README, makes scores of them; stock calls for a
    classification class refuse such a folder. "language-model": a stock language model writes, by the run's decoding.
    """

    form: Form | None
    summary: str

    @property
    def possible(self) -> bool:
        return self.form is not None


class AbstractFormat(ABC):
    """A format. Its attributes are for users (`name`, `summary`, `article`), and for the README of its folders."""

    name: ClassVar[str]
    summary: ClassVar[str]
    article: ClassVar[str]
    """In a sentence: "a dense model"."""
    products: ClassVar[tuple[Product, ...]]
    """What it can be made of; the first that a method has."""
    instead: ClassVar[tuple[str, ...]] = ()
    """Formats to propose where it is impossible, the best first."""
    writes_texts: ClassVar[bool] = False
    """Whether it can hold a language model."""
    requires: ClassVar[tuple[str, str] | None] = None
    """A package without which it cannot be written, and how to install it."""

    library: ClassVar[str] = "transformers"
    """The library's name on the hub."""
    libraries: ClassVar[str] = "stock transformers"
    """Who computes the scores."""
    package: ClassVar[str | None] = None
    """What has to be installed beside transformers to load it."""
    needs: ClassVar[str] = "needs no handful"
    """In words for the README: what the folder needs."""
    head_beside: ClassVar[bool] = False
    """Whether the head of form "features" lies in `head.safetensors`."""
    stock_model: ClassVar[bool] = True
    """Whether transformers itself loads the model from the folder, and may report a pooler as missing."""

    @abstractmethod
    def lacking(self, method: AbstractMethod, exports: Exports) -> str:
        """Why it cannot be made of any of these products."""

    def describe(self, backbone: Backbone | str, pooling: str, task: Task | None) -> ExportPlan:
        """The plan for labels or numbers, where nothing stands in its way; as a rule with the head beside."""
        if pooling == "family":
            return ExportPlan("classifier", classifier_words(self.article, backbone, task))
        where = f"the bare {family_of(backbone)}, with head.safetensors and a loader in its README"
        return ExportPlan("features", f"{self.article} for {where}")

    @abstractmethod
    def write(self, job: ExportJob, plan: ExportPlan) -> ExportReport:
        """Write the job's folder, compared with our scores before it gets its name. Raises: ConfigError, RunError."""

    def obstacle(self, method: AbstractMethod, backbone: Backbone | str) -> str | None:
        """Why it cannot be made of what this method trains on this backbone or family; None where it can."""
        exports = method.exports(backbone)
        product = self.product_of(exports)
        if product is not None:
            return exports[product]
        if not exports:
            return f"method {method.name!r} does not say that it can be exported"
        return self.lacking(method, exports)

    def product_of(self, exports: Exports) -> Product | None:
        """The product that it is made of."""
        return next((product for product in self.products if product in exports), None)

    def pooling_obstacle(self, backbone: Backbone | str, pooling: str) -> str | None:
        """Why it cannot hold features that are pooled so."""
        if pooling != "family":
            return None
        layer = output_layer(backbone if isinstance(backbone, str) else backbone.config)
        if layer is None:
            return f"{family_of(backbone)} has no stock classification class; train with pooling 'mean'"
        return None if layer.has_bias else self.missing_bias(family_of(backbone))

    def missing_bias(self, family: str) -> str | None:
        """Why it cannot hold the head where the stock output layer has no bias."""
        return (
            f"the stock output layer of {family} has no bias; train with pooling 'last', which computes the same, or "
            "use the format 'onnx'"
        )

    def code(self, loader: Loader) -> str:
        """The README's code; see `Loader.code`."""
        return loader.stock_code()

    def stock_calls(self, loader: Loader, task: Task) -> list[str]:
        """In sentences, what the usual stock calls make of the folder."""
        del task
        if loader.form == "language-model":
            return []
        return [f"{REFUSED}: it holds no model for them, and a head made by them would be random."]


REFUSED = '`pipeline("text-classification", …)` and `AutoModelForSequenceClassification` refuse this folder'


def family_of(backbone: Backbone | str) -> str:
    """A backbone's family, or the family itself."""
    return backbone if isinstance(backbone, str) else backbone.family


def folds_not(method: AbstractMethod) -> str:
    """Why there is no whole model."""
    return f"what {method.name!r} trains cannot be folded into the model's weights"


def classifier_words(article: str, backbone: Backbone | str, task: Task | None) -> str:
    """An export for the stock classification class, in words."""
    outputs = "" if task is None else f" with num_labels={task.num_outputs}"
    return f"{article} for {family_of(backbone)}'s stock classification class{outputs}"


def plain(name: str) -> str:
    """A name from outside as part of one line of Markdown."""
    return " ".join(name.replace("`", "'").split())
