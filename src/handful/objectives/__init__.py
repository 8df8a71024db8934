"""Kinds of task, one frozen object per kind: what labels are, how they are learned, predicted, scored and shown.

`Task.kind` is the string on disk; `objective_of` finds the object. Objectives take labels, numbers of classes, arrays
and tensors, and know no task: this package stands below `data`. They import torch and scikit-learn where they use them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

from handful.errors import ConfigError, nearest

if TYPE_CHECKING:
    from handful.objectives.base import Objective

TaskKind = Literal["classification", "pair-classification", "multilabel", "regression", "generation"]

KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

_MODULES: dict[str, str] = {"pair-classification": "classification"}
"""Modules of objectives that are not named after their kind."""


@cache
def objective_of(kind: str) -> Objective:
    """The objective of a kind of task. Raises: ConfigError naming the nearest kind."""
    if kind not in KINDS:
        raise ConfigError(f"kind: {kind!r} is not known", nearest(kind, KINDS))
    return import_module(f"{__name__}.{_MODULES.get(kind, kind)}").OBJECTIVES[kind]
