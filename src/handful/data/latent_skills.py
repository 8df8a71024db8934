"""Tasks made of latent skills that are known, to find out what a method that routes tasks to skills recovers.

Each skill reads one sign in a text and votes. A task is a few of the skills, and a row's label is what most of them
vote for, so two tasks differ in what they look at and in nothing else: all texts are of one kind, and all tasks have
the same labels. Held-out tasks are new combinations of the same skills. It has the role that BabyAI's levels have in
Ponti et al. 2022.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np

from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError

LABELS = ("no", "yes")

SIGNS = tuple(zip(string.ascii_lowercase[::2], string.ascii_lowercase[1::2], strict=True))
"""The signs of each skill: its first letter is a vote for "no", its second one for "yes"."""

FILLERS = 4
"""Digits in each text, which say nothing."""


@final
@dataclass(frozen=True, slots=True)
class LatentSkills:
    """Tasks to train on, and held-out ones of other combinations of the same skills.

    `truth` (T, K) has a 1 where a training task has a skill, `held_out_truth` the same of held-out tasks.
    """

    tasks: tuple[Task, ...]
    truth: np.ndarray
    held_out: tuple[Task, ...]
    held_out_truth: np.ndarray


def latent_skills(
    generator: np.random.Generator,
    *,
    num_skills: int = 6,
    num_active: int = 3,
    num_tasks: int = 10,
    num_held_out: int = 4,
    rows: int = 64,
    test_rows: int = 64,
) -> LatentSkills:
    """Tasks of `num_active` of `num_skills` skills each; no two have the same, and training tasks have all of them.

    Every task has `rows` rows to draw from and `test_rows` for the test, of which half have each label. No text stands
    in two rows of the suite. Raises: ConfigError where there are no such tasks.
    """
    _check(num_skills, num_active, num_tasks, num_held_out)
    truth = _combinations(generator, num_skills, num_active, num_tasks, num_held_out)
    writer = _Writer(generator)
    made = [_task(skills, rows, test_rows, writer) for skills in truth]
    return LatentSkills(tuple(made[:num_tasks]), truth[:num_tasks], tuple(made[num_tasks:]), truth[num_tasks:])


def _check(num_skills: int, num_active: int, num_tasks: int, num_held_out: int) -> None:
    if not 1 <= num_active <= num_skills <= len(SIGNS) or num_active % 2 == 0:
        raise ConfigError(
            f"expected an odd number of active skills among at most {len(SIGNS)}, found {num_active} of {num_skills}",
            "with an odd number no vote is a tie",
        )
    there_are = sum(1 for _ in combinations(range(num_skills), num_active))
    if num_tasks + num_held_out > there_are:
        raise ConfigError(
            f"expected at most {there_are} tasks of {num_active} of {num_skills} skills, "
            f"found {num_tasks} and {num_held_out} held out",
            "give more skills, or fewer tasks",
        )
    if num_tasks * num_active < num_skills:
        raise ConfigError(
            f"expected training tasks that have all {num_skills} skills, found {num_tasks} of {num_active} each",
            f"give {-(-num_skills // num_active)} or more",
        )


def _combinations(
    generator: np.random.Generator, num_skills: int, num_active: int, num_tasks: int, num_held_out: int
) -> np.ndarray:
    """Different rows (T, K) of 0 and 1, the first `num_tasks` of which have every skill."""
    order = generator.permutation(num_skills).tolist()
    parts = [order[start : start + num_active] for start in range(0, num_skills - num_active + 1, num_active)]
    parts += [order[-num_active:]] if num_skills % num_active else []
    covering = [frozenset(part) for part in parts]
    every = [frozenset(found) for found in combinations(range(num_skills), num_active)]
    others = [every[index] for index in generator.permutation(len(every)) if every[index] not in covering]
    tasks = (covering + others)[: num_tasks + num_held_out]
    return np.array([[int(skill in skills) for skill in range(num_skills)] for skills in tasks])


def _task(skills: np.ndarray, rows: int, test_rows: int, writer: _Writer) -> Task:
    """The task of these skills (K,)."""
    name = "skills-" + "-".join(str(skill) for skill in skills.nonzero()[0])
    examples = []
    for index in range(rows + test_rows):
        label = index % 2
        votes = writer.generator.choice((-1, 1), size=len(skills))
        if int(votes @ skills > 0) != label:
            votes = -votes  # as likely as the votes it replaces, so that only the labels are balanced
        examples.append(Example(writer.write(votes), label=label, source=f"{name}:{index + 1}"))
    test = TestRows(examples[rows:]) if test_rows else None
    return Task(name, "classification", LABELS, "accuracy", tuple(examples[:rows]), test, origin="latent skills")


@final
class _Writer:
    """Writes texts, none of them twice."""

    def __init__(self, generator: np.random.Generator):
        self.generator = generator
        self._written: set[str] = set()

    def write(self, votes: np.ndarray) -> str:
        """A text with these votes (K,) of ±1: the sign of each skill once or twice, and digits, in any order."""
        while True:
            letters = [sign[int(vote > 0)] for sign, vote in zip(SIGNS, votes, strict=False)]
            signs = [letter * int(self.generator.integers(1, 3)) for letter in letters]
            characters = [*"".join(signs), *map(str, self.generator.integers(10, size=FILLERS))]
            text = "".join(characters[place] for place in self.generator.permutation(len(characters)))
            if text not in self._written:
                break
        self._written.add(text)
        return text
