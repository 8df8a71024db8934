"""Tasks and examples: what is to be predicted, from which rows, and where each row came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, final

from handful.data.columns import Columns
from handful.data.distinct import Distinct, contradiction_notes, once
from handful.objectives import TaskKind as TaskKind
from handful.objectives import objective_of

if TYPE_CHECKING:
    from handful.objectives.base import Objective

DevRows = Literal["carved", "separate", "none"]
"""Where development rows come from; see `Split`."""

Label = Any
"""What `Task.objective` says: the index of a class, a number, 0 or 1 for every class; None where there is none."""

LONG_REFERENCE = 6
"""Words from which on a reference that stands in two places is taken for the same row. Shorter ones, such as the
answers "yes" or "in Paris", repeat by chance."""


@final
@dataclass(frozen=True, slots=True)
class Example:
    """One row.

    `label` is the index of the class in `Task.labels`, the target number for regression, 0 or 1 for each of
    `Task.labels` where a text may have several, or None where there is none. `source` is "file:line", so that an error
    can say where. A row of generation is one record: its input is `text`, the texts that may be written for it are
    `references`, and it has no label. `task` names the member that a row of a task of tasks belongs to. `instruction`
    is put before the text for a model that writes; it is no part of what makes two rows the same. `weight` is how much
    the row counts in training beside others.
    """

    text: str
    text_pair: str | None = None
    label: Label = None
    source: str = "memory"
    references: tuple[str, ...] = ()
    task: str = ""
    instruction: str = ""
    weight: float = 1.0


@final
class TestRows:
    """Rows kept for the final score, each text once: a text that repeats says nothing new about a model.

    Of a text with several labels the one of most rows is kept, and none without such a one; several numbers of a text
    are averaged, and the references of a record joined (`distinct.once`).

    Deliberately not a sequence: it cannot be indexed, iterated or batched, so selection and training cannot
    use it by accident. Only `handful.evaluation.evaluate` opens it.
    """

    __test__ = False  # pytest would otherwise take the name for a test class
    __slots__ = ("_examples", "_found")

    def __init__(self, examples: Sequence[Example]):
        self._found: Distinct = once(examples, [text_key(row) for row in examples])
        self._examples = self._found.rows

    def __len__(self) -> int:
        return len(self._examples)

    def fingerprint(self) -> str:
        return fingerprint_rows(self._examples)

    def repeat_notes(self) -> list[str]:
        """A sentence on the rows that repeat; none where none do."""
        repeated = self._found.repeated
        left_out = f"{repeated:,} {'repeat was' if repeated == 1 else 'repeats were'} left out"
        found = f"n = {len(self):,} distinct test texts: {left_out}, since a text counts once"
        return [found] if repeated else []

    def notes(self, labels: Sequence[str]) -> list[str]:
        """Sentences on the texts that repeat, and on those that have several of these `labels`."""
        return self.repeat_notes() + contradiction_notes(self._found, labels, "test rows")

    def sample(self, rows: int) -> TestRows:
        """At most so many of the rows, chosen by the digests of their texts: always the same; as closed as these."""
        return TestRows(sorted(self._examples, key=text_key)[:rows])

    def of_member(self, name: str, offset: int) -> TestRows:
        """These rows as those of a member of a task of tasks, whose labels begin at `offset`; as closed as these."""
        return TestRows([as_member(row, name, offset) for row in self._examples])

    def as_texts(self, labels: Sequence[str]) -> TestRows:
        """These rows with their labels to be written; as closed as these."""
        return TestRows([as_text(row, labels) for row in self._examples])

    def text_keys(self) -> frozenset[bytes]:
        """Digests of the texts, to find training rows that also stand here without opening the rows."""
        return frozenset(map(text_key, self._examples))

    def overlap_keys(self) -> frozenset[bytes]:
        """What no training row may share with these rows."""
        return frozenset(key for row in self._examples for key in overlap_keys(row))

    def count_alike(self, rows: Sequence[Example]) -> int:
        """How many of the rows have the words of one of these, and differ from it in punctuation or signs alone."""
        keys = {key for row in rows if (key := words_key(row))}
        texts = set(map(text_key, rows))
        return sum(words_key(row) in keys and text_key(row) not in texts for row in self._examples)

    def count_overlap(self, keys: Collection[bytes]) -> int:
        """How many of the rows share one of these keys."""
        return sum(any(key in keys for key in overlap_keys(row)) for row in self._examples)

    def count_unfit(self, unfit: Callable[[str], object]) -> int:
        """How many of the rows have a text that a check, which keeps nothing of it, finds unfit."""
        return sum(bool(unfit(row.text)) for row in self._examples)


@final
@dataclass(frozen=True, slots=True)
class Task:
    """What is to be predicted, and the labelled rows there are.

    `labels` are the class names in the order of the class indices (empty for regression and generation). `pool` is
    where few-shot rows are drawn from, `dev` a separate development set where the data brings one. `origin` is a
    path, a hub name with its revision, or a package with its version. `notes` say what was chosen for the user
    while reading, one sentence each with its reason. `instruction` is put before every text, where labels are written.

    `held_out` says that the test rows are from the pool's own file (`holdout.with_held_out_test`), in which rows of
    other texts are other rows, whatever answers they share.

    `columns` are those that its rows were read from, so that later files need not name them again; None where rows
    did not come from a table. `label_separator` stands between the labels in a cell, and `label_flags` says whether
    lists of labels were zeros and ones, one per class; None where that is not known.

    A task of tasks (`mixture.mix_tasks`) has `members`. Its labels are theirs in order, each as "member: label", and
    its rows are theirs with the index of the label among those; each member keeps its own test rows.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...]
    metric: str
    pool: tuple[Example, ...]
    test: TestRows | None = None
    dev: tuple[Example, ...] | None = None
    origin: str = "memory"
    notes: tuple[str, ...] = ()
    instruction: str = ""
    members: tuple[Task, ...] = ()
    held_out: bool = False
    columns: Columns | None = None
    label_separator: str | None = None
    label_flags: bool | None = None

    @property
    def objective(self) -> Objective:
        """What the kind of the task answers: its loss, predictions, usual metrics and the rest."""
        return objective_of(self.kind)

    @property
    def num_outputs(self) -> int:
        """Width C of the head: one score per class, one number for regression; 0 for generation, which has no head."""
        return self.objective.num_outputs(len(self.labels))

    @property
    def label_ranges(self) -> dict[str, range]:
        """Where the labels of each member stand among `labels`."""
        sizes = [len(member.labels) for member in self.members]
        ends = zip(self.members, sizes, accumulate(sizes), strict=True)
        return {member.name: range(end - size, end) for member, size, end in ends}

    def fingerprint(self) -> str:
        """Identity of the content (not of the path it came from)."""
        parts = [self.kind, *self.labels, fingerprint_rows(self.pool)]
        parts += [self.test.fingerprint() if self.test else "", fingerprint_rows(self.dev or ())]
        parts += [member.fingerprint() for member in self.members]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def as_member(row: Example, name: str, offset: int) -> Example:
    """The row as one of a member of a task of tasks, whose labels begin at `offset`."""
    return replace(row, task=name, label=None if row.label is None else int(row.label) + offset)


def reading(label: str) -> str:
    """A label as words: "not_equivalent" is "not equivalent", and "-1" stays what it is."""
    return re.sub(r"_|(?<=\w)-(?=\w)", " ", label).strip() or label


def same_readings(labels: Sequence[str]) -> list[list[str]]:
    """Labels that read the same, whatever their case and white space, group by group."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(" ".join(reading(label).lower().split()), []).append(label)
    return [same for same in alike.values() if len(same) > 1]


def as_text(row: Example, labels: Sequence[str]) -> Example:
    """A row of classes with its label as the text to be written, among choices that the instruction names."""
    text = row.text if row.text_pair is None else f"{row.text} / {row.text_pair}"
    references = () if row.label is None else (labels[int(row.label)],)
    told = instruction(labels)
    return replace(row, text=text, text_pair=None, label=None, references=references, instruction=told)


def instruction(labels: Sequence[str]) -> str:
    """What stands before a text whose label is to be written."""
    return f"choices: {', '.join(labels)}. text: "


def fingerprint_rows(rows: Sequence[Example]) -> str:
    """SHA-256 over texts, labels, references, the names of members and weights other than 1, in order."""
    digest = hashlib.sha256()
    for row in rows:
        content = (row.text, row.text_pair, row.label, *row.references)
        for more in filter(None, (row.task, row.instruction)):
            content = (more, content)
        if row.weight != 1:
            content = (("weight", row.weight), content)
        digest.update(repr(content).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def text_key(row: Example) -> bytes:
    """Digest of the text (and pair) in lower case with white space collapsed: equal for exact duplicates."""
    texts = [" ".join(text.lower().split()) for text in (row.text, row.text_pair or "")]
    return _digest(*texts)


def overlap_keys(row: Example) -> frozenset[bytes]:
    """Digests of what must not stand in two sets of rows at once.

    That is `text_key`; for a row of generation also the words of its source and of each long reference, in lower case
    and without punctuation, so that the same record is found in another data set that writes its input otherwise.
    """
    keys = {text_key(row)}
    if row.references:
        keys.update(_digest("source", *words) for words in [_words(row.text)] if words)
        references = map(_words, row.references)
        keys.update(_digest("reference", *words) for words in references if len(words) >= LONG_REFERENCE)
    return frozenset(keys)


def words_key(row: Example) -> bytes | None:
    """Digest of the words of the text (and pair) in lower case, without punctuation; None where there is no word."""
    words = [_words(text) for text in (row.text, row.text_pair or "")]
    return _digest(*(" ".join(part) for part in words)) if any(words) else None


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\x1f".join(texts).encode("utf-8", "surrogatepass")).digest()
