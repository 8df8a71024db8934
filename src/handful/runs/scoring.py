"""The scores of a trained adapter on the test rows of its task, or of every member of a task of tasks, as records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from handful.data.coverage import NO_TEXTS, Coverage
from handful.data.task import Example, Task, TestRows
from handful.evaluation.baseline import Baseline, mean_baseline
from handful.evaluation.estimate import Estimate, mean_of
from handful.evaluation.evaluate import Scores, Written, evaluate, evaluate_writing
from handful.evaluation.metrics import get_metric
from handful.methods.base import AbstractAdapter
from handful.methods.head import AbstractHeadedAdapter
from handful.randomness import stream
from handful.runs.spec import RunSpec


@final
@dataclass(frozen=True)
class MemberScores:
    """What the members of a task of tasks scored, each on its own test rows."""

    members: dict[str, Scores | Written]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The mean over members of every metric that all have."""
        return mean_estimates([scores.estimates for scores in self.members.values()])

    @property
    def truncated(self) -> int:
        """Rows that were cut."""
        return sum(scores.truncated for scores in self.members.values())

    @property
    def longest(self) -> int:
        """Tokens of the longest row before it was cut."""
        return max(scores.longest for scores in self.members.values())

    @property
    def coverage(self) -> Coverage:
        """How many tokens the model knows."""
        return sum((scores.coverage for scores in self.members.values()), NO_TEXTS)

    @property
    def baselines(self) -> dict[str, Baseline]:
        """That of each member, where it has one."""
        return {name: one.baseline for name, one in self.members.items() if isinstance(one, Scores) and one.baseline}

    @property
    def baseline(self) -> Baseline | None:
        """The mean over members; None unless all have one."""
        found = self.baselines
        return mean_baseline([*found.values()]) if len(found) == len(self.members) else None

    @property
    def untested(self) -> tuple[str, ...]:
        """Classes of members without a test row, as "member: label"."""
        found = ((name, one.untested) for name, one in self.members.items() if isinstance(one, Scores))
        return tuple(f"{name}: {label}" for name, labels in found for label in labels)


AnyScores = Scores | Written | MemberScores


def mean_estimates(members: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """The mean over members of every metric that all have."""
    shared = [name for name in members[0] if all(name in member for member in members)]
    return {name: mean_of([member[name] for member in members]) for name in shared}


OnWritten = Callable[[int, int], None]
"""Hears how many texts are written of how many."""


def score_task(
    adapter: AbstractAdapter,
    task: Task,
    spec: RunSpec,
    on_written: OnWritten = lambda done, total: None,
    train: Sequence[Example] = (),
) -> AnyScores | None:
    """The scores on the task's test rows, or on its members', or None where there are none.

    `train` are the training rows, for the baseline.
    """
    if not task.members:
        return score_rows(adapter, task.test, task, spec, None, on_written, train) if task.test else None
    found = {}
    for member in task.members:
        if member.test:
            rows = member.test.of_member(member.name, task.label_ranges[member.name].start)
            found[member.name] = score_rows(adapter, rows, task, spec, member, on_written, train)
    return MemberScores(found) if found else None


def score_rows(
    adapter: AbstractAdapter,
    rows: TestRows | Sequence[Example],
    task: Task,
    spec: RunSpec,
    member: Task | None = None,
    on_written: OnWritten = lambda done, total: None,
    train: Sequence[Example] = (),
) -> Scores | Written:
    """The scores on these rows, those of the `member` of a multi-task dataset that all of them belong to."""
    options, generator = spec.options, stream(spec.options.seed, "evaluate")
    if spec.generation:
        assert isinstance(adapter, AbstractHeadedAdapter)
        return evaluate_writing(
            adapter, rows, member or task, spec.generation, max_length=options.max_length,
            predictor=options.predictor, generator=generator, on_progress=lambda done: on_written(done, len(rows)),
        )  # fmt: skip
    return evaluate(
        adapter, rows, task, max_length=options.max_length, predictor=options.predictor, draws=options.draws,
        generator=generator, member=member, train=train,
    )  # fmt: skip


def describe_scores(scores: AnyScores | None) -> dict[str, Any]:
    """The "scores" of `run.json`, with those of "members" where they are means over these.

    "signatures" say which variant each metric of written texts is. "baseline" is the score of always giving the most
    usual answer of the training rows, for classes and numbers.
    """
    if scores is None:
        return {"scores": {}}
    record: dict[str, Any] = {"scores": _as_record(scores.estimates)}
    said = {name: signature() for name in scores.estimates if (signature := get_metric(name).signature)}
    record |= {"signatures": said} if said else {}
    if not isinstance(scores, Written) and scores.baseline:
        record["baseline"] = scores.baseline.to_dict()
    if isinstance(scores, MemberScores):
        record["members"] = {name: _as_record(own.estimates) for name, own in scores.members.items()}
        if scores.baseline:
            record["baseline"]["members"] = {name: one.to_dict() for name, one in scores.baselines.items()}
    return record


def untested_in(scores: AnyScores | None) -> list[str]:
    """Classes that no test row belongs to; empty where nothing is scored."""
    return [] if scores is None or isinstance(scores, Written) else list(scores.untested)


def _as_record(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in estimates.items()}


def prediction_records(scores: AnyScores, task: Task) -> list[dict[str, Any]]:
    """One record a test row: where it came from, its target, the prediction and the disagreement.

    Of generation: the input, its references and what was written. Of a task of tasks also the row's task.
    """
    if isinstance(scores, MemberScores):
        return [
            {"task": name, **record}
            for name, own in scores.members.items()
            for record in _records(own, task, task.label_ranges[name])
        ]
    return _records(scores, task, range(len(task.labels)))


def _records(scores: Scores | Written, task: Task, labels: range) -> list[dict[str, Any]]:
    """Records of rows that are scored among these of the task's labels."""
    if isinstance(scores, Written):
        return [
            {"source": row.source, "text": row.text, "references": list(row.references), "written": text}
            for row, text in zip(scores.records, scores.texts, strict=True)
        ]
    predictions = scores.predictions
    records = []
    disagreement = predictions.disagreement
    names = task.labels[labels.start : labels.stop]
    before, behind = [0.0] * labels.start, [0.0] * (len(task.labels) - labels.stop)
    for index, (source, target) in enumerate(zip(scores.sources, scores.targets.tolist(), strict=True)):
        record: dict[str, Any] = {"source": source, "disagreement": round(float(disagreement[index]), 6)}
        record |= task.objective.record(index, target, predictions, names)
        if "probabilities" in record:
            record["probabilities"] = [*before, *record["probabilities"], *behind]
        records.append(record)
    return records
