"""Tokenise once, batch rows of like length, pad each batch only to its own longest row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, final

import torch

from handful.data.coverage import NO_TEXTS, Coverage, count_known
from handful.data.task import Example, TaskKind, TestRows
from handful.errors import ConfigError, DataError, ModelError
from handful.objectives import objective_of
from handful.objectives.generation import NO_LOSS as NO_LOSS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_BATCHES = 4
"""Batches whose rows are sorted by length together. More saves padding; fewer leaves the make-up of the batches
more random, which counts when an epoch is only a handful of batches."""


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length S.

    `inputs` are the model's arguments (B, S), int64. `labels` (B,) are int64 classes or float32 targets; for generation
    the tokens to write (B, T), int64, with -100 where there is none, which stand among the inputs too. `rows` (B,) are
    the positions in the `EncodedRows` the batch was cut from; `tasks` the names of the members in a task of tasks.
    `loss_weights` (B,) are what each row's loss counts, None where all count the same.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    rows: torch.Tensor
    tasks: tuple[str, ...] = ()
    loss_weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        labels = None if self.labels is None else self.labels.to(device)
        weights = None if self.loss_weights is None else self.loss_weights.to(device)
        return replace(self, inputs=inputs, labels=labels, rows=self.rows.to(device), loss_weights=weights)


@final
@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Tokenised rows, unpadded. `truncated` counts the rows that were longer than the maximum length, `longest` is the
    length of the longest before that, and `coverage` says how many of their tokens the model knows.

    For generation, `target_ids` are the labels of each row and `truncated_targets` counts references that were cut;
    `pad_left` is for decoders that go on where their row ends.

    Of a task of tasks, `tasks` has the name of each row's member. `weights` say how often each row is drawn in an epoch
    on average, and sum to the number of rows; without them every row is taken once. `loss_weights` (N,), of mean 1, are
    what each row's loss counts; None where all count the same.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: torch.Tensor | None
    truncated: int
    pad_token_id: int
    pad_token_type_id: int = 0
    target_ids: list[list[int]] | None = None
    truncated_targets: int = 0
    pad_left: bool = False
    tasks: tuple[str, ...] | None = None
    weights: torch.Tensor | None = None
    longest: int = 0
    coverage: Coverage = NO_TEXTS
    loss_weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row, special tokens included."""
        return [len(ids) for ids in self.input_ids]

    def subset(self, indices: Sequence[int]) -> EncodedRows:
        """The rows at these positions, in this order; counts stay those of all rows."""

        def chosen(column: list[list[int]] | None) -> list[list[int]] | None:
            return column and [column[index] for index in indices]

        places = torch.tensor(indices, dtype=torch.int64)
        return replace(
            self,
            input_ids=[self.input_ids[index] for index in indices],
            token_type_ids=chosen(self.token_type_ids),
            labels=None if self.labels is None else self.labels[places],
            target_ids=chosen(self.target_ids),
            tasks=self.tasks and tuple(self.tasks[index] for index in indices),
            weights=None if self.weights is None else self.weights[places],
            loss_weights=None if self.loss_weights is None else self.loss_weights[places],
        )

    def with_balanced_classes(self) -> EncodedRows:
        """These rows with the loss of every class counting the same: rows of class c weigh N / (C · N_c) more.

        N_c is the weight of the class's rows, N that of all rows and C the number of classes that have rows, as
        `class_weight="balanced"` of scikit-learn has it.
        """
        assert self.labels is not None
        weights = torch.ones(len(self)) if self.loss_weights is None else self.loss_weights
        totals = torch.bincount(self.labels, weights)
        return replace(self, loss_weights=weights * weights.sum() / (torch.count_nonzero(totals) * totals[self.labels]))

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows at these positions, padded to the longest of them."""
        rows = torch.tensor(indices, dtype=torch.int64)
        tasks = tuple(self.tasks[index] for index in indices) if self.tasks else ()
        ids = [self.input_ids[index] for index in indices]
        inputs = {
            "input_ids": _pad(ids, self.pad_token_id, self.pad_left),
            "attention_mask": _pad([[1] * len(row) for row in ids], 0, self.pad_left),
        }
        if self.token_type_ids is not None:
            types = [self.token_type_ids[index] for index in indices]
            inputs["token_type_ids"] = _pad(types, self.pad_token_type_id)
        if self.target_ids is not None:
            inputs["labels"] = _pad([self.target_ids[index] for index in indices], NO_LOSS)
            return Batch(inputs, inputs["labels"], rows, tasks)
        labels = None if self.labels is None else self.labels[rows]
        weights = None if self.loss_weights is None else self.loss_weights[rows]
        return Batch(inputs, labels, rows, tasks, weights)


def _pad(rows: Sequence[list[int]], value: int, left: bool = False) -> torch.Tensor:
    width = max(map(len, rows))
    padding = [[value] * (width - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for pad, row in zip(padding, rows, strict=True)]
    return torch.tensor(padded, dtype=torch.int64)


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, *, kind: TaskKind
) -> EncodedRows:
    """Tokenise rows, with or without labels, cut to `max_length` tokens; of a pair the longer text is cut first.

    Raises: DataError for test rows, rows of mixed shape, or a text that gives no token; ConfigError if no token of
    the text would fit; ModelError for a tokenizer that cannot pad.
    """
    pad_token_id = _check_readable(examples, tokenizer)
    _check_pairs(examples, kind)
    pair = any(row.text_pair is not None for row in examples)
    _check_room(max_length, tokenizer.num_special_tokens_to_add(pair))
    encoded, truncated, longest = _tokenise(examples, tokenizer, max_length)
    _check_tokens(examples, encoded["input_ids"])
    return EncodedRows(
        input_ids=encoded["input_ids"],
        token_type_ids=encoded.get("token_type_ids"),
        labels=_labels(examples, kind),
        truncated=truncated,
        pad_token_id=pad_token_id,
        pad_token_type_id=tokenizer.pad_token_type_id,
        tasks=_tasks(examples),
        longest=longest,
        coverage=count_known(encoded["input_ids"], tokenizer),
        loss_weights=_loss_weights(examples),
    )


def encode_mixed(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRows:
    """Tokenise rows of classes of which some are single texts and some pairs, in their order; see `encode`."""
    order = sorted(range(len(examples)), key=lambda index: examples[index].text_pair is not None)
    first_pair = sum(row.text_pair is None for row in examples)
    if first_pair in (0, len(examples)):
        return encode(examples, tokenizer, max_length, kind="classification")
    singles, pairs = (
        encode([examples[index] for index in part], tokenizer, max_length, kind="classification")
        for part in (order[:first_pair], order[first_pair:])
    )
    places = sorted(range(len(order)), key=order.__getitem__)
    ids, types = singles.input_ids + pairs.input_ids, None
    if singles.token_type_ids is not None and pairs.token_type_ids is not None:
        types = singles.token_type_ids + pairs.token_type_ids
    return replace(
        singles,
        input_ids=[ids[place] for place in places],
        token_type_ids=types and [types[place] for place in places],
        labels=_labels(examples, "classification"),
        truncated=singles.truncated + pairs.truncated,
        tasks=_tasks(examples),
        longest=max(singles.longest, pairs.longest),
        coverage=singles.coverage + pairs.coverage,
        loss_weights=_loss_weights(examples),
    )


def encode_generation(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    encoder_decoder: bool,
    target_length: int | None = None,
    prefix: str = "",
    separator: str = "\n",
) -> EncodedRows:
    """Tokenise records to be written: with a `target_length` to train on, one row a reference; else to write for, one
    row a record.

    Sources, behind the `prefix`, are cut to `max_length` tokens, references to `target_length`, the end token included;
    a reference that was cut has none, lest the model learns to stop in mid-sentence. For an encoder-decoder a row is
    the source and its labels are the reference. For a decoder it is source, `separator` (never cut) and reference in
    one sequence, with loss on the reference alone; rows to write for are then padded on the left, so that all of them
    end where the text begins.

    Raises: DataError for test rows, a record without a reference to train on or a source without tokens; ConfigError if
    no token would fit; ModelError for a tokenizer without a padding or end token.
    """
    pad_token_id = _check_readable(examples, tokenizer)
    if not isinstance(tokenizer.eos_token_id, int):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end token, so that no text would end",
            "set tokenizer.eos_token, or take a model that was made to write",
        )
    texts = [prefix + row.instruction + row.text for row in examples]
    sources, truncated, longest = _sources(texts, tokenizer, max_length, None if encoder_decoder else separator)
    coverage = count_known(sources, tokenizer)
    _check_tokens(examples, sources)
    if target_length is None:
        left = not encoder_decoder
        return EncodedRows(
            sources, None, None, truncated, pad_token_id, pad_left=left, tasks=_tasks(examples), longest=longest,
            coverage=coverage,
        )  # fmt: skip
    if target_length < 1:
        raise ConfigError(f"target_length: expected at least 1 token, found {target_length}")
    pairs = [(ids, text) for row, ids in zip(examples, sources, strict=True) for text in _references(row)]
    tasks = _tasks([row for row in examples for _ in row.references])
    whole = [_target(text, tokenizer, encoder_decoder) for _, text in pairs]
    inputs, targets = [ids for ids, _ in pairs], [ids[:target_length] for ids in whole]
    if not encoder_decoder:
        unlearned = [[NO_LOSS] * len(ids) for ids in inputs]
        inputs = [ids + target for ids, target in zip(inputs, targets, strict=True)]
        targets = [ids + target for ids, target in zip(unlearned, targets, strict=True)]
    cut = sum(len(ids) > target_length for ids in whole)
    return EncodedRows(
        inputs, None, None, truncated, pad_token_id, target_ids=targets, truncated_targets=cut, tasks=tasks,
        longest=longest, coverage=coverage + count_known(whole, tokenizer),
    )  # fmt: skip


def _sources(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, separator: str | None
) -> tuple[list[list[int]], int, int]:
    """Tokens of sources, each cut before its end mark or, for decoders, before the separator; how many were cut, and
    how many tokens the longest had.
    """
    ending = separator or ""
    kept = len(tokenizer(ending, add_special_tokens=False)["input_ids"]) if ending else 0
    _check_room(max_length, tokenizer.num_special_tokens_to_add() + kept)
    rows = [tokenizer(text + ending, verbose=False)["input_ids"] for text in texts]
    marked = any(ids[-1:] == [tokenizer.eos_token_id] for ids in rows)
    if marked and separator is not None:  # the reference goes on where the source ends
        rows = [ids[:-1] for ids in rows]
    elif marked:
        kept = 1
    cut = [ids if len(ids) <= max_length else ids[: max_length - kept] + ids[len(ids) - kept :] for ids in rows]
    lengths = list(map(len, rows))
    return cut, sum(length > max_length for length in lengths), max(lengths, default=0)


def _target(text: str, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> list[int]:
    """The tokens of a reference and the end token."""
    encoded: Mapping[str, Any]
    if encoder_decoder:
        encoded = tokenizer(text_target=text, verbose=False)
    else:
        encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    end, ids = cast(int, tokenizer.eos_token_id), cast(list[int], encoded["input_ids"])
    return ids if ids[-1:] == [end] else [*ids, end]


def _references(row: Example) -> tuple[str, ...]:
    if not row.references:
        raise DataError(f"{row.source}: expected a reference to train on, found none", "give every record a text")
    return row.references


def _check_readable(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token of a tokenizer, where the rows may be opened."""
    if isinstance(examples, TestRows):
        raise DataError(
            "encode() expects training, development or unlabelled rows, found TestRows",
            "test rows are opened by handful.evaluation.evaluate alone, so that nothing is selected on them",
        )
    if not isinstance(tokenizer.pad_token_id, int):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no padding token",
            "set tokenizer.pad_token, for instance to tokenizer.eos_token",
        )
    return tokenizer.pad_token_id


def _check_room(max_length: int, marks: int) -> None:
    if max_length <= marks:
        raise ConfigError(
            f"max_length: {max_length} leaves no room for text beside {marks} special tokens",
            f"use at least {marks + 1}, better as many as most texts have",
        )


def _check_tokens(examples: Sequence[Example], encoded: Sequence[Sequence[int]]) -> None:
    for row, ids in zip(examples, encoded, strict=True):
        if not ids:
            raise DataError(f"{row.source}: the text {row.text!r} gives no token", "remove the row or give it a text")


def _tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Mapping[str, Any], int, int]:
    """Columns of token lists, how many rows were cut, and how many tokens the longest had before."""
    if not examples:
        return {"input_ids": []}, 0, 0
    texts = [row.text for row in examples]
    pairs = None
    if examples[0].text_pair is not None:
        texts = _shortened(texts, tokenizer, max_length)
        pairs = _shortened([row.text_pair or "" for row in examples], tokenizer, max_length)
    encoded = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, return_attention_mask=False)
    cut = list(range(len(examples)))  # a Python tokenizer does not say which were cut
    if encoded.encodings is not None:
        cut = [index for index, encoding in enumerate(encoded.encodings) if encoding.overflowing]
    longest = max(map(len, encoded["input_ids"]))
    if not cut:
        return encoded, 0, longest
    whole = tokenizer(
        [examples[index].text for index in cut],
        None if pairs is None else [examples[index].text_pair or "" for index in cut],
        return_attention_mask=False,
        verbose=False,
    )
    lengths = list(map(len, whole["input_ids"]))
    return encoded, sum(length > max_length for length in lengths), max(longest, *lengths)


def _shortened(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """One side of pairs, with every text far beyond `max_length` tokens cut to about twice as many.

    A fast tokenizer keeps whatever it cuts off, of a pair every piece of one text with every piece of the other: two
    texts of 16,000 tokens would take 15 GB. What is cut here would be cut then: a text that was cut keeps one token
    more than twice as many, so that it stays the longer one beside a text of just that length.
    """
    far = [index for index, text in enumerate(texts) if len(text) > 4 * max_length]
    if not far or not tokenizer.is_fast:
        return texts
    encoded = tokenizer(
        [texts[index] for index in far],
        add_special_tokens=False,
        truncation=True,
        max_length=2 * max_length + 1,
        return_offsets_mapping=True,
    )
    shortened = list(texts)
    for index, spans in zip(far, encoded["offset_mapping"], strict=True):
        if spans:
            shortened[index] = texts[index][spans[0][0] : spans[-1][1]]
    return shortened


def _check_pairs(examples: Sequence[Example], kind: TaskKind) -> None:
    expected = objective_of(kind).pairs or any(row.text_pair is not None for row in examples)
    for row in examples:
        if expected and row.text_pair is None:
            raise DataError(f"{row.source}: expected a pair of texts, found one", "give every row a second text")


def _labels(examples: Sequence[Example], kind: TaskKind) -> torch.Tensor | None:
    labels = [row.label for row in examples]
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if len(known) < len(labels):
        row = next(row for row in examples if row.label is None)
        raise DataError(f"{row.source}: expected a label, found none", "label all rows or none")
    return objective_of(kind).tensor(known)


def _loss_weights(examples: Sequence[Example]) -> torch.Tensor | None:
    """The rows' weights with a mean of 1, so that the learning rate keeps its meaning; None where all are the same."""
    weights = torch.tensor([row.weight for row in examples])
    return None if len(weights.unique()) < 2 else weights / weights.mean()


def _tasks(examples: Sequence[Example]) -> tuple[str, ...] | None:
    return tuple(row.task for row in examples) if any(row.task for row in examples) else None


def plan_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Row positions by batch, every row once, rows of like length together.

    Without a generator: sorted by length, always the same. With one: the rows are shuffled, sorted by length only
    within chunks of `CHUNK_BATCHES` batches, and the batches shuffled. An incomplete batch then holds random
    rows, so that no length counts for more in the mean of a batch.
    """
    if generator is None:
        return _cut(sorted(range(len(lengths)), key=lambda row: lengths[row]), batch_size)
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    complete = len(order) - len(order) % batch_size
    batches = [order[complete:]] if complete < len(order) else []
    for chunk in _cut(order[:complete], CHUNK_BATCHES * batch_size):
        batches += _cut(sorted(chunk, key=lambda row: lengths[row]), batch_size)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
