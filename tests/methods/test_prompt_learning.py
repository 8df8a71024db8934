"""Check 8 of docs/methods/scaled-prompt.md: prompts learn from 16 records, on a tiny T5 that can already write."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode_generation
from handful.data.task import Example, Task
from handful.evaluation.text.generate import GenerationOptions, token_nll, write
from handful.methods.prompt import Prompt
from handful.methods.scaled_prompt import ScaledPrompt
from handful.objectives.generation import token_targets
from handful.training.config import TrainingConfig
from handful.training.fit import fit

pytestmark = pytest.mark.slow

MEANINGS = list(product("abcdefgh", "ijklmnop", "qrstuvwx"))
STYLES = (
    "{0} is {2}, {1}.", "{1} at {0} ({2})", "{2} {1}: {0}!", "try {0}; {1}, {2}", "{1}, {2} = {0}", "go {2}? {0} {1}",
)  # fmt: skip
ASKED = 3
"""The style of the few records; none says so."""
SHOTS, TEST = 16, 200
SEEDS = range(5)
RATES = (1e-3, 1e-2, 1e-1, 1.0)


def record(meaning, style, mark=""):
    source = "{}n{} f{} p{}".format(mark, *meaning)
    return Example(source, source=f"memory:{source}", references=(STYLES[style].format(*meaning),))


def encoded(backbone, records, target_length=32):
    return encode_generation(records, backbone.tokenizer, 32, encoder_decoder=True, target_length=target_length)


def plain_loss(backbone, rows, indices):
    """Mean loss of a reference's token without any prompt."""
    batch = rows.batch(indices)
    return F.cross_entropy(backbone.features(batch.inputs), token_targets(batch.labels))


@pytest.fixture(scope="module")
def backbone():
    """A tiny T5 that writes a meaning in six styles: the one whose number stands in front, or else any of them."""
    backbone = tiny_backbone("t5", purpose="lm")
    marks = [(style, mark) for style in range(len(STYLES)) for mark in ("", f"{style} ")]
    rows = encoded(backbone, [record(meaning, *how) for meaning in MEANINGS for how in marks])
    steps, parameters = 400, list(backbone.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        plain_loss(backbone, rows, torch.randint(len(rows), (32,), generator=generator).tolist()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return backbone


def drawn(seed):
    """16 records to learn from, 16 to choose a rate by, and those of the test."""
    order = torch.randperm(len(MEANINGS), generator=torch.Generator().manual_seed(seed)).tolist()
    records = [record(MEANINGS[index], ASKED) for index in order]
    return records[:SHOTS], records[SHOTS : 2 * SHOTS], records[2 * SHOTS :][:TEST]


def trained(backbone, method, seed, rate):
    train, _, _ = drawn(seed)
    task = Task("slots", "generation", (), "bleu", pool=tuple(train))
    adapter = method.attach(backbone, task, generator=torch.Generator().manual_seed(seed))
    fit(
        adapter, encoded(backbone, train), None, TrainingConfig(epochs=20, batch_size=8, learning_rate=rate),
        kind="generation", metric="bleu", generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return adapter


def at_best_rate(backbone, method):
    """For each seed the test loss and the share of texts written to the letter, at the rate that is best on dev."""

    def dev_loss(rate):
        return sum(
            token_nll(trained(backbone, method, seed, rate), encoded(backbone, drawn(seed)[1])) for seed in SEEDS
        )

    rate, found = min(RATES, key=dev_loss), []
    for seed in SEEDS:
        adapter, (_, _, test) = trained(backbone, method, seed, rate), drawn(seed)
        written = write(adapter, encoded(backbone, test, None), GenerationOptions(beams=1, max_new_tokens=32))
        right = sum(text == row.references[0] for text, row in zip(written, test, strict=True))
        found.append((token_nll(adapter, encoded(backbone, test)), right / len(test)))
    return rate, found


@pytest.mark.parametrize("method", [Prompt(prompt_length=4), ScaledPrompt(prompt_length=4)], ids=lambda m: m.name)
def test_sixteen_records_teach_a_prompt_how_to_write(backbone, method):
    """By a margin set before it was run: each seed beats the model alone, and their mean halves its loss."""
    with torch.no_grad():
        alone = [
            float(plain_loss(backbone, encoded(backbone, test), range(len(test)))) for _, _, test in map(drawn, SEEDS)
        ]
    rate, found = at_best_rate(backbone, method)
    report = f"{method.name} at {rate}: (loss, written right) {found}, without a prompt {alone}"
    assert all(loss < without for (loss, _), without in zip(found, alone, strict=True)), report
    assert sum(loss for loss, _ in found) < sum(alone) / 2, report
    assert sum(right for _, right in found) > len(SEEDS) / 2, report
