"""Tasks from the Hugging Face Hub, read through `datasets` (extra `hub`) at one recorded revision."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from handful.data.cells import check_row
from handful.data.columns import Columns
from handful.data.derived import with_derived
from handful.data.frames import plain_rows
from handful.data.interpret import build_task, choose_columns
from handful.data.references import generation_columns
from handful.data.tables import Table
from handful.data.task import Task, TaskKind
from handful.errors import DataError, nearest


def hub_task(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    pool: str = "train",
    test: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str = "label",
    kind: TaskKind | None = None,
    metric: str | None = None,
) -> Task:
    """A task from a dataset of the hub; `Task.origin` names the commit that `revision` was resolved to.

    `pool` and `test` are splits, also slices such as "train[:10000]". Without `test`, that is "test" if its rows are
    labelled, else a validation split; a validation split that is left over becomes `Task.dev`.

    Raises: DataError if the dataset, configuration or split is not to be had, or its rows cannot be used.
    """
    builder = _builder(name, config, revision)
    splits = list(builder.info.splits)
    origin = f"hub:{name}{f'/{config}' if config else ''}@{builder.hash}"

    @cache
    def table(split: str) -> Table:
        if split.split("[")[0] not in splits:
            raise DataError(f"{origin}: there is no split {split!r}", nearest(split, splits))
        rows = plain_rows(builder.as_dataset(split=split))
        if not rows:
            raise DataError(f"{origin}: the split {split!r} has no rows", f"it has the splits {', '.join(splits)}")
        for number, row in enumerate(rows, 1):
            check_row(row, f"{origin} {split}:{number}")
        return Table(f"{origin} {split}", f"{name} {split}", tuple(rows[0]), rows, list(range(1, len(rows) + 1)))

    wanted, notes = Columns(text or "", text_pair, label), []
    derived, _ = with_derived(table(pool))
    columns, _ = generation_columns(derived, wanted, kind) or choose_columns(derived, wanted)
    label_column = columns.label or label
    validation = next((split for split in splits if split.startswith("validation")), None)
    if test is None:
        held_out = [split for split in ("test", validation or "") if split in splits]
        test = next((s for s in held_out if any(row.get(label_column) is not None for row in table(s).rows)), None)
        found = f"the test is the split {test!r}" if test else "there is no test"
        notes.append(f"{found}: splits that may have labels: {', '.join(held_out) or 'none'}")
    dev = table(validation) if validation and validation != test else None
    task = build_task(table(pool), table(test) if test else None, dev, wanted=wanted, kind=kind, metric=metric)
    return replace(task, name=name.split("/")[-1], origin=origin, notes=(*task.notes, *notes))


def _builder(name: str, config: str | None, revision: str | None) -> Any:
    """The dataset, downloaded; `.hash` is its commit."""
    try:
        datasets: Any = import_module("datasets")  # an extra
    except ImportError:
        raise DataError(
            f"hub:{name} is read through the package 'datasets', which is not installed", "pip install 'handful[hub]'"
        ) from None
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        builder.download_and_prepare()
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"hub:{name} cannot be loaded: {error}",
            "check the name, configuration and revision, the network, and `hf auth login` for a closed dataset",
        ) from None
    return builder
