"""What `predict` and `evaluate` share: a finished run, the file of rows that came later, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

import typer

from handful.errors import EMPTY_NAME, ConfigError

if TYPE_CHECKING:
    from handful.api import FittedModel

_FOUND = "as in training, or found"
RunFolder = Annotated[Path, typer.Argument(help="The folder that 'handful fit' made.")]


Text = Annotated[str | None, typer.Option(help="Column of the text.", show_default=_FOUND)]
TextPair = Annotated[str | None, typer.Option(help="Column of a pair's second text.", show_default=_FOUND)]
Label = Annotated[str | None, typer.Option(help="Column of the label.", show_default=_FOUND)]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the file.", show_default="utf-8")]
Delimiter = Annotated[
    str | None, typer.Option(help="Delimiter of the file's cells, e.g. ';'.", show_default="found", metavar="CHAR")
]
Member = Annotated[str | None, typer.Option(help="Of a multi-task run: the task.")]
Pretrained = Annotated[
    str | None, typer.Option(help="Where the pretrained model is now.", show_default="where it was in training")
]


@final
@dataclass(frozen=True)
class ColumnOptions:
    """How to read the file, where that is said. `label` is for rows that are scored."""

    text: str | None = None
    text_pair: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        for name in ("text", "label", "encoding"):  # a pair of "" is none
            if (value := getattr(self, name)) is not None and not value.strip():
                raise ConfigError(f"--{name}: {EMPTY_NAME}", "leave it out, or is a shell variable not set?")


def open_model(run: Path, model: str | None, task: str | None = None, device: str = "cpu") -> FittedModel:
    """The trained model of a run, or of a task of an inventory, on the pretrained model it was trained on or the same
    one elsewhere; on this device.
    """
    from handful.api import load
    from handful.backbone.load import load_backbone
    from handful.objectives import objective_of
    from handful.runs.store import read_run

    if model is None:
        return load(run, task=task, device=device)
    if not model.strip():
        raise ConfigError(f"--model: {EMPTY_NAME}", "leave it out, or is a shell variable not set?")
    record = read_run(run).record
    purpose = objective_of(record["task"]["kind"]).purpose
    pooling = record["spec"]["run"]["pooling"]
    return load(run, task=task, backbone=load_backbone(model, pooling=pooling, purpose=purpose, device=device))
