"""Tokenise once, batch rows of like length, pad each batch only to its own longest row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch

from handful.data.task import Example, TaskKind, TestRows
from handful.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_BATCHES = 4
"""Batches whose rows are sorted by length together. More saves padding; fewer leaves the make-up of the batches
more random, which counts when an epoch is only a handful of batches."""


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length S.

    `inputs` are the model's arguments (B, S), int64. `labels` (B,) are int64 classes or float32 targets. `rows` (B,)
    are the positions in the `EncodedRows` the batch was cut from.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, None if self.labels is None else self.labels.to(device), self.rows.to(device))


@final
@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Tokenised rows, unpadded. `truncated` counts the rows that were longer than the maximum length."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: torch.Tensor | None
    truncated: int
    pad_token_id: int
    pad_token_type_id: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row, special tokens included."""
        return [len(ids) for ids in self.input_ids]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows at these positions, padded to the longest of them."""
        rows = torch.tensor(indices, dtype=torch.int64)
        ids = [self.input_ids[index] for index in indices]
        inputs = {
            "input_ids": _pad_right(ids, self.pad_token_id),
            "attention_mask": _pad_right([[1] * len(row) for row in ids], 0),
        }
        if self.token_type_ids is not None:
            types = [self.token_type_ids[index] for index in indices]
            inputs["token_type_ids"] = _pad_right(types, self.pad_token_type_id)
        return Batch(inputs, None if self.labels is None else self.labels[rows], rows)


def _pad_right(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.int64)


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, *, kind: TaskKind
) -> EncodedRows:
    """Tokenise rows, with or without labels, cut to `max_length` tokens; of a pair the longer text is cut first.

    Raises: DataError for test rows, rows of mixed shape, or a text that gives no token; ConfigError if no token of
    the text would fit; ModelError for a tokenizer that cannot pad.
    """
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
    _check_pairs(examples, kind)
    pair = any(row.text_pair is not None for row in examples)
    if max_length <= (marks := tokenizer.num_special_tokens_to_add(pair)):
        raise ConfigError(
            f"max_length: {max_length} leaves no room for text beside {marks} special tokens",
            f"use at least {marks + 1}, better as many as most texts have",
        )
    encoded, truncated = _tokenise(examples, tokenizer, max_length)
    for row, ids in zip(examples, encoded["input_ids"], strict=True):
        if not ids:
            raise DataError(f"{row.source}: the text {row.text!r} gives no token", "remove the row or give it a text")
    return EncodedRows(
        input_ids=encoded["input_ids"],
        token_type_ids=encoded.get("token_type_ids"),
        labels=_labels(examples, kind),
        truncated=truncated,
        pad_token_id=tokenizer.pad_token_id,
        pad_token_type_id=tokenizer.pad_token_type_id,
    )


def _tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Mapping[str, Any], int]:
    """Columns of token lists, and how many rows were cut."""
    if not examples:
        return {"input_ids": []}, 0
    texts = [row.text for row in examples]
    pairs = None
    if examples[0].text_pair is not None:
        texts = _shortened(texts, tokenizer, max_length)
        pairs = _shortened([row.text_pair or "" for row in examples], tokenizer, max_length)
    encoded = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, return_attention_mask=False)
    if encoded.encodings is not None:
        return encoded, sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    full = tokenizer(texts, pairs, return_attention_mask=False, verbose=False)  # a Python tokenizer does not say
    return encoded, sum(len(ids) > max_length for ids in full["input_ids"])


def _shortened(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """One side of pairs, with every text far beyond `max_length` tokens cut to about twice as many.

    A fast tokenizer keeps whatever it cuts off, of a pair every piece of one text with every piece of the other: two
    texts of 16,000 tokens would take 15 GB. What is cut here would be cut then. A text that was cut keeps one token more
    than twice as many, so that it stays the longer one beside a text of just that length.
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
    expected = kind == "pair-classification" or any(row.text_pair is not None for row in examples)
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
    return torch.tensor(known, dtype=torch.float32 if kind == "regression" else torch.int64)


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
