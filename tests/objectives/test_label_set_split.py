"""Label sets are drawn so that every label keeps its share, nested in K and the same for the same generator.

How far the shares of labels in K rows are from those of the 2,000 rows of the pool, in points: the mean over labels
(none of them counted as one), then that over pairs of labels, of which the share of rows that have both is compared.
Means over 5 seeds (random: 40). "Halving" is the algorithm of Sechidis et al. (2011), applied to halves of halves until
rows stand in an order; ours is without development rows.

| | K | random | halving | ours | pairs: random | halving | ours |
|---|---:|---:|---:|---:|---:|---:|---:|
| goemotions (28 labels) | 100 | 1.29 | 0.50 | 0.53 | 0.082 | 0.080 | 0.054 |
| | 300 | 0.73 | 0.17 | 0.17 | 0.059 | 0.059 | 0.036 |
| goemotions_ekman (6) | 100 | 2.20 | 0.46 | 0.34 | 0.307 | 0.307 | 0.148 |
| | 300 | 1.33 | 0.24 | 0.08 | 0.189 | 0.181 | 0.059 |
| semeval_emotions (11) | 100 | 2.61 | 0.69 | 0.63 | 0.981 | 0.830 | 0.660 |
| | 300 | 1.45 | 0.42 | 0.16 | 0.551 | 0.466 | 0.342 |
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful.data.label_sets import indicators
from handful.errors import DataError
from handful.objectives.label_set_split import LabelSetOrder, draw_label_sets

TASKS = ("goemotions", "goemotions_ekman", "semeval_emotions")


def draw(sets, num_labels: int, shots: int, seed: int = 0, dev_fraction: float | None = None) -> LabelSetOrder:
    names = [f"class-{index}" for index in range(num_labels)]
    generator = torch.Generator().manual_seed(seed)
    return draw_label_sets(sets, names, shots, generator=generator, dev_fraction=dev_fraction)


@st.composite
def pools(draw):
    """Sets of 3 to 5 labels, each of them in at least six rows."""
    labels, rows = draw(st.integers(3, 5)), draw(st.integers(20, 80))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    matrix = random.random((rows, labels)) < random.random(labels) * draw(st.sampled_from([0.3, 0.9]))
    for label in range(labels):
        matrix[random.permutation(rows)[:6], label] = True
    return [tuple(map(int, np.flatnonzero(row))) for row in matrix], labels


seeds = st.integers(0, 2**32)
fractions = st.sampled_from([None, 0.2, 0.5])


@given(pools(), seeds, fractions, st.data())
def test_fewer_shots_are_contained_in_more(pool, seed, fraction, data):
    sets, labels = pool
    least = min(len(sets), 2 * labels)
    few, many = sorted(data.draw(st.integers(least, len(sets))) for _ in range(2))
    small, large = (draw(sets, labels, shots, seed, fraction) for shots in (few, many))
    assert large.rows[:few] == small.rows
    assert large.selects[:few] == small.selects
    assert large.train[: len(small.train)] == small.train
    assert len({*large.rows}) == many == len(large.train) + len(large.dev)
    assert draw(sets, labels, many, seed, fraction) == large


@given(pools(), seeds, st.sampled_from([0.2, 0.5]))
def test_every_label_trains_and_selects(pool, seed, fraction):
    sets, labels = pool
    found = draw(sets, labels, min(len(sets), 2 * labels), seed, fraction)
    for rows in (found.train, found.dev):
        assert {index for row in rows for index in sets[row]} == set(range(labels))
    assert found.without_dev == ()
    whole = draw(sets, labels, len(sets), seed, fraction)
    assert abs(len(whole.dev) - fraction * len(sets)) <= 0.1 * len(sets) + labels
    assert draw(sets, labels, len(sets), seed).dev == ()


@given(pools(), seeds)
def test_labels_are_near_their_shares(pool, seed):
    sets, labels = pool
    matrix = indicators(sets, labels)
    order = draw(sets, labels, len(sets), seed).rows
    off = np.abs(np.cumsum(matrix[[*order]], axis=0) - np.arange(1, len(sets) + 1)[:, None] * matrix.mean(0))
    assert off[2 * labels :].max(initial=0) < 2  # rows in random order: 1.9 to 7.6, in half of such pools above 3.3


def test_seeds_differ():
    sets = [(row % 3,) for row in range(60)]
    assert {*draw(sets, 3, 20, 0).rows} != {*draw(sets, 3, 20, 1).rows}


@pytest.mark.parametrize("name", TASKS)
def test_shares_of_a_real_pool_are_nearer_than_random_ones(shared_data, name):
    folder = shared_data / "multilabel" / name
    labels = json.loads((folder / "task.json").read_text())["labels"]
    rows = [json.loads(line)["labels"] for line in (folder / "pool.jsonl").read_text().splitlines()]
    sets = [tuple(labels.index(label) for label in row) for row in rows]
    matrix = indicators(sets, len(labels))
    matrix = np.hstack([matrix, matrix.sum(1, keepdims=True) == 0])
    pairs = matrix.T @ matrix / len(matrix)

    def off(rows):
        part = matrix[[*rows]]
        return abs(part.mean(0) - matrix.mean(0)).mean(), abs(part.T @ part / len(part) - pairs).mean()

    random = np.mean([off(np.random.default_rng(seed).permutation(len(sets))[:100]) for seed in range(20)], axis=0)
    ours = np.mean([off(draw(sets, len(labels), 100, seed).rows) for seed in range(3)], axis=0)
    carved = np.mean([off(draw(sets, len(labels), 100, seed, 0.2).rows) for seed in range(3)], axis=0)
    assert ours[0] < 0.45 * random[0] and carved[0] < 0.65 * random[0]
    assert ours[1] < 0.75 * random[1] and carved[1] < 0.85 * random[1]


def test_a_label_whose_rows_are_all_needed_for_training_is_named():
    sets = [(0, 1), (0, 2), *[(1,)] * 4, *[(2,)] * 4]
    assert draw(sets, 3, 8, 0, 0.2).without_dev == ()
    tangled = [(0, 1), (0, 2), (1, 2)]  # two of the rows are needed to train all three labels
    found = draw(tangled, 3, 3, 0, 0.5)
    assert len(found.train) == 2
    (missing,) = found.without_dev
    assert missing not in tangled[found.dev[0]]


@pytest.mark.parametrize(
    ("sets", "shots", "fraction", "message"),
    [
        ([(0,), (1,)] * 5, 11, None, r"task 'made': expected at least 11 distinct labelled rows, found 10 \(of 12\)"),
        ([()] * 10, 4, None, r"task 'made': none of the 10 rows has a label \(of 12\)\n\nhint: label some"),
        ([(0,), (1,), (0,)], 3, 0.2, r"class 'b' has 1 row\(s\), needed 2 .* \(of 12\)\n\nhint: label more"),
        ([(0,), (0, 1), ()], 3, 0.2, r"class 'b' has 1 row\(s\), needed 2 for training and development"),
        ([(0, 1), (), ()], 3, 0.2, r"class 'a' has 1 .*, and 1 more classes have too few"),
        ([(0,), (1,)] * 5, 3, 0.2, r"3 shots are too few for 2 classes .* training and development\n\n.* --shots 4"),
        (
            [(0,), (1,)] * 5,
            1,
            None,
            r"1 shots are too few for 2 classes with one row each for training\n\n.* --shots 2",
        ),
    ],
)
def test_what_cannot_be_drawn_is_an_error(sets, shots, fraction, message):
    with pytest.raises(DataError, match=message):
        draw_label_sets(
            sets, ["a", "b"], shots, generator=torch.Generator(), dev_fraction=fraction, task="made", dropped=" (of 12)"
        )


def test_one_row_may_serve_several_labels():
    assert len(draw([(0, 1)] * 4, 2, 2, 0, 0.2).rows) == 2


@pytest.mark.parametrize("fraction", [None, 0.2])
def test_a_label_without_any_row_is_no_error(fraction):
    found = draw([(0,), (2,), (), (0, 2)] * 5, 3, 12, 0, fraction)
    assert len(found.rows) == 12
    assert found.without_dev == ()
