"""The public conformance suite over every method and family, and over methods that are broken on purpose."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

import pytest
import torch
from torch import nn

from handful.backbone.tiny import TINY_FAMILIES, tiny_backbone
from handful.errors import ConfigError
from handful.methods import method_class, method_names
from handful.methods.base import AbstractMethod, Draw, Preset, setting
from handful.methods.head import AbstractHeadedAdapter
from handful.methods.simplex import Simplex
from handful.testing import METHOD_CHECKS, Case, check_method, toy_task

QUICK_FAMILIES = ("bert", "llama", "t5")
QUICK_SETTINGS = {"setfit": {"num_iterations": 1}}  # by default it trains on every pair of rows


@cache
def shared_backbone(family, pooling="auto"):
    """One backbone for all methods: what one leaves behind, the next would trip over."""
    return tiny_backbone(family, pooling=pooling)


def check(name, family, pooling="auto", kind="classification", learning_rate=None, **settings):
    try:
        method = method_class(name).from_settings({**QUICK_SETTINGS.get(name, {}), **settings})
    except ConfigError as error:
        pytest.skip(f"{name}: {error.message}")  # PEFT is not installed
    backbone, task = shared_backbone(family, pooling), toy_task(kind)
    reasons = method.check(backbone, task)
    if reasons:
        pytest.skip(f"{name} says that it cannot work on {family}: {reasons[0]}")
    for check_one in METHOD_CHECKS:
        check_one(Case(method, backbone, task, learning_rate))


@pytest.mark.parametrize("family", QUICK_FAMILIES)
@pytest.mark.parametrize("name", method_names())
def test_every_method_keeps_the_contract(name, family):
    check(name, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in TINY_FAMILIES if family not in QUICK_FAMILIES])
@pytest.mark.parametrize("name", method_names())
def test_every_method_keeps_the_contract_on_every_family(name, family):
    check(name, family)


@pytest.mark.parametrize(
    "options",
    [
        {"geometry": "curve", "draw_per": "batch", "draw_layers": "shared"},
        {"geometry": "line", "num_vertices": 2, "form": "mlp", "cosine_weight": 1.0, "learning_rate": 1e-3},
        {"head_subspace": False, "layers": (1, 3), "concentration": 0.5, "init": "activations"},
        {"num_vertices": 1, "head_init": "probe"},
    ],
    ids=lambda options: "-".join(options),
)
def test_prefix_subspaces_of_every_shape_keep_the_contract(options):
    check("prefix-subspace", "bert", **options)


@pytest.mark.parametrize("family", QUICK_FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_mean": 0.0, "num_vertices": 3, "lora_rank": 2, "penalty_weight": 5.0},
        {"init_mean": 0.0, "squash": "shift", "train_biases": False, "match_features": 0.1, "penalty_start": 0.5},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_published_gates_of_every_kind_keep_the_contract(options, family):
    check("fine-gates", family, **options)


@pytest.mark.parametrize("name", ["head", "prefix-subspace", "full", "lora"])
def test_a_pooler_that_no_checkpoint_holds_is_part_of_the_contract(name):
    check(name, "roberta", "family")


@pytest.mark.parametrize("kind", ["pair-classification", "regression"])
def test_pairs_and_numbers_keep_the_contract(kind):
    check("prefix-subspace", "bert", kind=kind)


# ------------------------------------------------------------------------------------------------ broken methods


@dataclass(frozen=True)
class Shift(AbstractMethod):
    """A third party's method: a trained vector, drawn between two vertices, is added to the features."""

    name: ClassVar[str] = "shift"
    summary: ClassVar[str] = "a trained vector in front of the head"
    source: ClassVar[str] = "this test"
    presets: ClassVar[Mapping[str, Preset]] = {"default": Preset("works", training={"learning_rate": 0.05})}

    fault: Annotated[str, setting("what is broken")] = ""

    def attach(self, backbone, task, *, generator):
        return ShiftAdapter(backbone, task, self.fault, generator)


class ShiftAdapter(AbstractHeadedAdapter):
    def __init__(self, backbone, task, fault, generator):
        super().__init__(backbone, task, generator=generator)
        self.fault, self.simplex, self.lowest_layer = fault, Simplex(2), backbone.num_layers
        noise = torch.randn(2, backbone.hidden_size) if fault == "attach" else torch.zeros(2, backbone.hidden_size)
        self.shift = nn.Parameter(
            noise + torch.randn(noise.shape, generator=generator), requires_grad=fault != "frozen"
        )
        self.unsaved = torch.zeros(())
        self.hook = backbone.model.register_forward_hook(lambda *_: None)
        if fault == "unused":
            self.unused = nn.Parameter(torch.zeros(2))
        if fault == "stray":
            next(backbone.model.parameters()).requires_grad_(True)

    def draw(self, batch, generator):
        points = self.simplex.draw((len(batch),), generator)
        if self.fault == "draws":
            points = torch.rand(len(batch), 2)
        if self.fault == "constant":
            points = torch.ones(1, 2) / 2
        self.drawn = Draw(shared={"point": points}) if self.fault == "part" else Draw({"point": points})
        return self.drawn

    def at(self, *, vertex=None, weights=None):
        weights = None if self.fault == "weights" else weights
        return Draw({"point": self.simplex.point(vertex, weights)[None]})

    def forward(self, batch, draw=None):
        draw = draw or self.at()
        if self.fault == "remembers" or (self.fault == "state" and any(len(t) > 1 for t in draw.rows.values())):
            draw = getattr(self, "drawn", draw)
        point = (draw.rows or draw.shared)["point"]
        features = self.backbone.features(batch.inputs) + point @ self.shift + self.unsaved
        if self.fault == "batch":
            features = features - features.mean(0)
        if self.fault == "room" and batch.inputs["input_ids"].shape[1] > 250:
            features = features * torch.nan
        scores = self.head(features)
        return {"shape": scores[:, 0], "finite": scores / 0}.get(self.fault, scores)

    def target_scores(self, batch, draw=None):
        return self(batch, draw) if self.fault == self.objective.kind else super().target_scores(batch, draw)

    def penalty(self, draw=None):
        return self.shift.sum() * torch.inf if self.fault == "gradient" else None

    def after_step(self, step):
        with torch.no_grad():
            if self.fault == "base":
                next(self.backbone.model.parameters()).add_(1e-3)
            if self.fault == "unsaved":
                self.unsaved += 0.1
            if self.fault == "worse":
                self.head.weight.add_(torch.ones(1) * torch.tensor([[-1.0], [1.0]]))

    def detach(self):
        super().detach()
        self.hook.remove()
        if self.fault == "hook":
            self.backbone.model.embeddings.register_forward_hook(lambda _, inputs, output: output + 1)
        if self.fault == "module":
            self.backbone.model.add_module("left_behind", nn.Identity())
        if self.fault == "mode":
            self.backbone.model.train()


def test_a_third_partys_method_passes():
    for check_one in METHOD_CHECKS:  # its whole life is in tests/methods/test_other_packages.py
        check_one(Case(Shift(), tiny_backbone("bert"), toy_task()))


FAULTS = {
    "attach": r"attach\(\) drew from torch's global random state",
    "frozen": r"should all be trainable, found frozen \['shift'\]",
    "stray": r"trainable parameters of the model that the adapter does not list: \['embeddings",
    "shape": r"scores should be \(5, 2\), found \(5,\)",
    "finite": "scores should be finite at the start",
    "remembers": r"forward\(\) without a draw should give the same scores",
    "draws": "equal generators gave different scores",
    "constant": "two generators gave the same point of the simplex",
    "unused": r"no gradient reaches \['unused'\]",
    "gradient": r"the gradient of \['shift'\] is not finite",
    "worse": "the loss should fall in training",
    "base": r"training changed frozen tensors of the model: \['embeddings",
    "batch": "a row's prediction should not depend on its batch",
    "unsaved": r"the state_dict\(\) predicts otherwise",
    "state": "a draw should give the same scores again",
    "part": r"draw\[rows\] should keep what was drawn for those rows",
    "weights": r"at\(weights=…\) of vertex 0 should be that vertex",
    "hook": r"detach\(\) did not restore features: \['of a batch",
    "module": r"detach\(\) did not restore modules: \['left_behind'",
    "mode": r"detach\(\) did not restore modes",
    "classification": r"calibrate\(2.0\) should halve the logits",
    "regression": r"standardise\(\) should undo what target_scores\(\) does",
    "room": r"a row of 256 tokens should leave room for the adapter",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_kind_of_fault_is_found_and_named(fault):
    with pytest.raises(AssertionError, match=rf"^shift on tiny-bert: .*{FAULTS[fault]}"):
        check_method(Shift(fault))


def test_a_method_that_does_not_describe_itself_is_told_so():
    @dataclass(frozen=True)
    class Silent(AbstractMethod):
        name: ClassVar[str] = "silent"
        summary: ClassVar[str] = ""
        source: ClassVar[str] = "this test"
        presets: ClassVar[Mapping[str, Preset]] = {}
        rate: float = 1.0

        def attach(self, backbone, task, *, generator):
            raise AssertionError

    describe = METHOD_CHECKS[0]
    with pytest.raises(AssertionError, match="class attribute 'summary' should be a text, found ''"):
        describe(Case(Silent(), shared_backbone("bert"), toy_task()))
    Silent.summary = "says it"
    with pytest.raises(AssertionError, match="there should be a preset 'default'"):
        describe(Case(Silent(), shared_backbone("bert"), toy_task()))
    Silent.presets = {"default": Preset("ours")}
    with pytest.raises(AssertionError, match=r"every field needs setting\('what it does'\), found none for \['rate'\]"):
        describe(Case(Silent(), shared_backbone("bert"), toy_task()))


def test_a_method_that_refuses_is_not_checked_silently():
    with pytest.raises(AssertionError, match=r"check\(\) refuses this backbone and task: .*llama has no biases"):
        check_method(method_class("bias")(), shared_backbone("llama"))
