"""The fields at the top of a card that the Hugging Face Hub reads, written by its own library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from handful.evaluation.estimate import Estimate


def front_matter(fields: Mapping[str, Any]) -> str:
    """YAML between two rules; fields that are None or empty are left out. A licence is never made up."""
    given = {name: value for name, value in fields.items() if value}
    return f"---\n{ModelCardData(**given).to_yaml()}\n---\n\n"


def scored(
    task: Mapping[str, Any], scores: Mapping[str, Any], name: str, pipeline: str, dataset: str | None
) -> dict[str, Any]:
    """The fields `model_name` and `eval_results` (the hub's model-index) of the scores of a run; {} without scores.

    Each score has its interval in its name, since the hub has no field for one. `dataset` is the data's name on the
    hub, where it comes from there.
    """
    results = []
    for metric, value in scores.items():
        score = Estimate.from_dict(value)
        if score.mean != score.mean:  # not a number: the hub would refuse the card
            continue
        interval = "" if score.low is None else f", 95 % interval {score.low:z.3f} to {score.high:z.3f}"
        results.append(
            EvalResult(
                task_type=pipeline,
                dataset_type=dataset or "private",
                dataset_name=f"{task['name']} (test rows)",
                metric_type=metric,
                metric_value=round(score.mean, 6),
                metric_name=f"{metric}{interval} over {score.n:,} test rows",
            )
        )
    return {"model_name": name, "eval_results": results} if results else {}
