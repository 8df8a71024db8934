"""What a card says to others: fields for the Hugging Face Hub, written by its own library, and no local paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handful.evaluation.estimate import Estimate
from handful.objectives import objective_of

_PART = r"[/\\]+([^\s/\\:,;'\"()\[\]]+)"
_PATH = re.compile(rf"(?<![\w:/\\.<])(?:~|[A-Za-z]:(?=[/\\]))?(?:{_PART})+{_PART}")
"""An absolute path in a sentence, of two parts or more; its last part."""


def front_matter(fields: Mapping[str, Any]) -> str:
    """YAML between two rules. Fields that are None or empty are left out, and a licence is never made up."""
    from huggingface_hub import ModelCardData

    given = {name: value for name, value in fields.items() if value}
    return f"---\n{ModelCardData(**given).to_yaml()}\n---"


def task_fields(kind: str, method: str) -> dict[str, Any]:
    """The fields that follow from the kind of task and the method."""
    objective = objective_of(kind)
    return {"pipeline_tag": objective.pipeline_tag, "tags": ["handful", "few-shot", method, objective.tag]}


def score_fields(
    model: str, task: str, kind: str, scores: Mapping[str, Estimate], dataset: str | None = None
) -> dict[str, Any]:
    """The fields `model_name` and `eval_results` (the hub's model-index) of scores on test rows; {} without scores.

    Each score has its interval in its name, since the hub has no field for one. `dataset` is the data's name on the
    hub, where it comes from there.
    """
    from huggingface_hub import EvalResult

    results = []
    for metric, score in scores.items():
        if score.mean != score.mean:  # not a number, which the hub refuses
            continue
        interval = "" if score.low is None else f", 95 % interval {score.low:z.3f} to {score.high:z.3f}"
        results.append(
            EvalResult(
                task_type=str(task_fields(kind, "")["pipeline_tag"]),
                dataset_type=dataset or "private",
                dataset_name=f"{_line(task)}, test rows",
                metric_type=metric,
                metric_value=round(score.mean, 6),
                metric_name=f"{metric}{interval}, {score.n:,} test rows",
            )
        )
    return {"model_name": _line(model), "eval_results": results} if results else {}


def hub_dataset(origin: str) -> str | None:
    """The name of a dataset on the hub by a task's origin ("hub:owner/name/config@hash"); None of other data."""
    if not origin.startswith("hub:"):
        return None
    return "/".join(origin.removeprefix("hub:").partition("@")[0].split("/")[:2])


def public_origin(origin: str) -> str:
    """Where data came from, of files without the folders they are in."""
    parts = origin.split(", ")
    return ", ".join(part if part.startswith("hub:") else re.split(r"[/\\]", part)[-1] for part in parts)


def public_model(name: str, hub: str | None) -> str:
    """A pretrained model's name; of a folder its last part. `hub` is its name on the hub, where it has one."""
    return name if hub else Path(name).name or name


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last parts."""
    return _PATH.sub(r"\2", text)


def _line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
