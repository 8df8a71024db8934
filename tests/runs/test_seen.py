"""A run that starts from another must not be tested on what that one has seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handful.backbone.tiny import tiny_backbone
from handful.data.task import Example, Task, TaskKind, TestRows, overlap_keys
from handful.errors import DataError, RunError
from handful.runs.experiment import run
from handful.runs.spec import resolve
from handful.runs.store import SEEN, Run, read_run

SETTINGS = {"training.epochs": 1, "training.learning_rate": 1e-3, "run.shots": 8, "run.max_length": 32}
WRITING = {"generation.beams": 1, "generation.max_new_tokens": 2, "method.prompt_length": 2}


def rows(kind: TaskKind, numbers: range, spelling: str = "name = {}") -> tuple[Example, ...]:
    """Rows of these numbers; of generation the texts agree where the numbers do, however the source is spelt."""
    if kind == "generation":
        texts = ("Number {0} is by the river, {0} of them.", "By the river is number {0}, and so on.")
        return tuple(
            Example(spelling.format(i), source=f"m:{i}", references=tuple(text.format(i) for text in texts))
            for i in numbers
        )
    return tuple(Example(f"text {'a' if i % 2 else 'b'} {i}", label=i % 2, source=f"m:{i}") for i in numbers)


def task(kind: TaskKind, pool: range, test: range, spelling: str, name: str) -> Task:
    labels, metric = ((), "rouge-l") if kind == "generation" else (("b", "a"), "accuracy")
    return Task(name, kind, labels, metric, pool=rows(kind, pool), test=TestRows(rows(kind, test, spelling)))


Fit = Callable[..., Run]


@pytest.fixture(scope="module", params=["generation", "classification"])
def kind(request: pytest.FixtureRequest) -> TaskKind:
    return request.param


@pytest.fixture(scope="module")
def fit(kind: TaskKind, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """`fit(pool, test, start=None, **settings)`: a run on a tiny model, below a folder of this module."""
    writes = kind == "generation"
    backbone = tiny_backbone("t5", purpose="lm") if writes else tiny_backbone("bert")
    root = tmp_path_factory.mktemp(f"runs-{kind}")

    def call(
        pool: range,
        test: range,
        start: Run | None = None,
        spelling: str = "name = {}",
        name: str = "made",
        **settings: object,
    ) -> Run:
        given = SETTINGS | (WRITING if writes else {}) | settings
        spec = resolve("scaled-prompt" if writes else "bias", model="tiny", overrides=given)
        saved, trained = run(task(kind, pool, test, spelling, name), spec, root, backbone=backbone, start=start)
        trained.adapter.detach()
        return saved

    return call


def test_a_run_keeps_digests_of_what_it_was_trained_and_selected_on(fit: Fit, kind: TaskKind) -> None:
    saved = fit(range(8), range(8, 12), **{"run.dev": "carved"})
    seen, keys = saved.seen(), {key for row in rows(kind, range(8)) for key in overlap_keys(row)}
    assert seen is not None and len(seen) == len(keys) and all(key in seen for key in keys)
    assert not any(key in seen for row in rows(kind, range(8, 12)) for key in overlap_keys(row))
    assert "river" not in (saved.folder / SEEN).read_text()


def test_scores_of_texts_say_which_variant_they_are(fit: Fit, kind: TaskKind) -> None:
    saved = fit(range(8), range(8, 12))
    assert set(saved.record.get("signatures", ())) == (set(saved.record["scores"]) if kind == "generation" else set())
    card = (saved.folder / "README.md").read_text()
    assert ("`chrf++`: `" in card and "nc:6" in card and "text-generation" in card) == (kind == "generation")


def test_a_start_that_has_seen_test_rows_is_refused(fit: Fit, kind: TaskKind) -> None:
    first = fit(range(8), range(8, 12))
    with pytest.raises(DataError, match=r"has seen test rows: .* 2 of its 4 test rows"):
        fit(range(20, 30), range(6, 10), first, spelling="otherwise {}")
    assert fit(range(20, 30), range(8, 12), first).record["notes"] == []
    behind = fit(range(20, 30), range(8, 12), first)
    with pytest.raises(DataError, match=r"has seen test rows"):  # seen not by the start, but by what that started from
        fit(range(40, 50), range(2), behind)


def test_few_rows_in_common_are_tolerated(fit: Fit) -> None:
    first = fit(range(8), range(8, 12))
    assert fit(range(200, 210), range(7, 107), first).record["spec"]["start"] == first.key
    with pytest.raises(DataError, match="2 of its 100 test rows"):
        fit(range(200, 210), range(6, 106), first)


def test_a_start_from_another_task_must_not_bring_this_ones_rows(fit: Fit) -> None:
    first = fit(range(8), range(8, 12), name="other")
    with pytest.raises(DataError, match=r"another task must not have seen .* holds 4 of the 12 training rows"):
        fit(range(4, 16), range(20, 24), first)
    assert fit(range(20, 32), range(40, 44), first).record["notes"] == []


def test_more_shots_through_the_start_are_noted(fit: Fit) -> None:
    first = fit(range(30), range(30, 34), **{"run.shots": 30})
    (note,) = fit(range(30), range(30, 34), first).record["notes"]
    assert note.startswith("not only its own shots") and note.endswith("has seen 22 more rows of the pool")
    assert fit(range(30), range(30, 34), fit(range(30), range(30, 34))).record["notes"] == []


def test_a_run_without_digests_is_noted_and_a_damaged_file_refused(fit: Fit, reseal) -> None:
    first = fit(range(8), range(8, 12), **{"run.seed": 3})
    (first.folder / SEEN).write_text("no digest\n")
    with pytest.raises(RunError, match=r"rows\.sha256: the content is not what was saved"):
        fit(range(8), range(8, 12), first)
    reseal(first.folder)
    with pytest.raises(RunError, match=r"rows\.sha256: damaged"):
        fit(range(8), range(8, 12), read_run(first.folder))
    (first.folder / SEEN).unlink()
    (note,) = fit(range(8), range(8, 12), first).record["notes"]
    assert "has kept no digests of its rows" in note
