"""The metrics of written texts, by name, each with a signature that says which variant it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import inf
from typing import NoReturn

from handful.data.task import Example, Task, TaskKind
from handful.errors import ConfigError, DataError
from handful.evaluation.metric import Metric
from handful.evaluation.text import content_scores, overlap_scores
from handful.evaluation.text.overlap_scores import Bleu, combine_mean, require_sacrebleu

_TEXTS: frozenset[TaskKind] = frozenset({"generation"})


def _bleu(name: str, summary: str, variant: Bleu) -> Metric:
    return Metric(
        name, summary, _TEXTS, "texts", True, (0, 100), variant.measure,
        combine=variant.combine, signature=variant.signature, ready=_sacrebleu_ready,
    )  # fmt: skip


def _sacrebleu_ready() -> None:
    require_sacrebleu()


def _ours(rules: str) -> Callable[[], str]:
    def signature() -> str:
        try:
            return f"{rules}|version:handful-{version('handful')}"
        except PackageNotFoundError:
            return f"{rules}|version:handful"

    return signature


GENERATION_METRICS = (
    _bleu("bleu", "BLEU, 13a tokens, case-sensitive", overlap_scores.BLEU),
    _bleu("bleu-e2e", "BLEU of the E2E challenge: 13a tokens, lower case", overlap_scores.BLEU_E2E),
    _bleu("bleu-webnlg20", "BLEU of WebNLG 2020: cased, blank references kept", overlap_scores.BLEU_WEBNLG20),
    _bleu("bleu-dart", "BLEU of DART: split, lower case, 3 references, blanks kept", overlap_scores.BLEU_DART),
    _bleu("bleu-dart-no-blanks", "bleu-dart without blank references", overlap_scores.BLEU_DART_NO_BLANKS),
    Metric(
        "chrf++", "F2 of character 1-6-grams and word 1-2-grams", _TEXTS, "texts", True, (0, 100),
        overlap_scores.measure_chrf, combine=overlap_scores.combine_chrf, signature=overlap_scores.chrf_signature,
        ready=_sacrebleu_ready,
    ),
    Metric(
        "rouge-l", "ROUGE-L of the E2E challenge", _TEXTS, "texts", True, (0, 1),
        overlap_scores.measure_rouge, combine=combine_mean,
        signature=_ours("nrefs:all|beta:1.2|max:each|case:lc|tok:penn"),
    ),
    Metric(
        "exact-match", "share of texts that are a reference, whatever the case and white space", _TEXTS, "texts", True,
        (0, 1), overlap_scores.measure_exact, combine=combine_mean, signature=_ours("case:lc|space:collapsed"),
    ),
    Metric(
        "slot-error", "missing, wrong and added slots by slots asked for (E2E)", _TEXTS, "texts", False, (0, inf),
        content_scores.measure_slots, combine=combine_mean, signature=_ours("slots:E2E|said:patterns"),
    ),
    Metric(
        "entity-coverage", "share of subjects and objects that are named", _TEXTS, "texts", True, (0, 1),
        content_scores.measure_entities, combine=combine_mean, signature=_ours("entities:subject,object|match:words"),
    ),
)  # fmt: skip
"""BLEU, chrF++ are percentages, as in the literature; all others run from 0 to 1."""


def _retired(name: str, summary: str, most: float) -> Metric:
    def refuse(*rows: object) -> NoReturn:
        raise ConfigError(
            f"metric {name!r} is no longer computed: it ran programs of Java; scores on record are still read",
            "score with chrf++, rouge-l or bleu",
        )

    return Metric(name, summary, _TEXTS, "texts", True, (0, most), refuse, combine=combine_mean, ready=refuse)


RETIRED = (
    _retired("meteor", "METEOR 1.5 on texts as they are", 1),
    _retired("meteor-e2e", "METEOR 1.5 of the E2E challenge", 1),
    _retired("cider-e2e", "CIDEr of the E2E challenge", 10),
)
"""Metrics that run folders of older versions may hold: these are read, compared and shown."""


def usual_metrics(metric: str, records: Sequence[Example]) -> tuple[str, ...]:
    """A task's own metric, two that suit every task, and what the sources of all these records allow to be checked."""
    if metric == "exact-match":  # of labels; ROUGE-L is what tasks of all kinds have
        return (metric, "rouge-l")
    names = [metric, "chrf++", "rouge-l"]
    names += [name for name in _OF_SOURCES if not _unfit(name, records)][:1]
    return tuple(dict.fromkeys(names))


def check_writing(task: Task) -> None:
    """Whether what will be written can be scored, before anything is trained.

    Raises: ConfigError where a package is missing, DataError for a source that the task's metric cannot read.
    """
    for name in usual_metrics(task.metric, task.pool):
        ready = _BY_NAME[name].ready
        if ready:
            ready()
    unfit, closed = _unfit(task.metric, task.pool), task.test
    if closed and (count := closed.count_unfit(lambda text: _refused(task.metric, text))):
        unfit = unfit or f"it cannot read the sources of {count:,} of the {len(closed):,} test rows"
    if unfit:
        raise DataError(f"metric {task.metric!r}: {unfit}", "take another metric for this file, such as 'bleu'")


_BY_NAME = {metric.name: metric for metric in (*GENERATION_METRICS, *RETIRED)}
_OF_SOURCES = {"slot-error": content_scores.slot_errors, "entity-coverage": content_scores.missing_entities}
"""Metrics that ask the source, by what reads it; the first that can read all sources is a usual one."""


def _unfit(metric: str, records: Sequence[Example]) -> str:
    """What a metric of sources cannot read, with its place; nothing where it can, or reads no sources."""
    found = ((record, _refused(metric, record.text)) for record in records if metric in _OF_SOURCES)
    return next((f"{record.source}: {message}" for record, message in found if message), "")


def _refused(metric: str, source: str) -> str:
    """Why a metric cannot read a source; nothing where it can, or reads none."""
    try:
        if read := _OF_SOURCES.get(metric):
            read("", source)
    except DataError as error:
        return error.message
    return ""
