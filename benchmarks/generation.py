"""What a scale on a prompt costs in training, and how fast we write beside a plain loop of transformers.

    python benchmarks/generation.py [--data ../shared/data] [--rounds 20] [--output FILE.jsonl]

Table 1, step: forward, backward, clipping and AdamW on the same batch of real records, plain prompt beside scaled ones.
Table 2, write: `handful.evaluation.text.generate.write` on an unchanged model, beside `generate` of transformers over
batches of the same size in the order of the file, padded on the right, as its documentation shows it. Both write
greedily and must write the same texts; ratios of time are then inverse ratios of tokens per second, which are printed
too.

One process, one thread, variants interleaved in random order; CPU seconds, ratios within each round, percentile
bootstrap of the median over rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from step import Step, cpu_seconds, interleaved, setting, show, summarise, training_step

from handful.backbone.load import Backbone, load_backbone
from handful.data.files import read_folder
from handful.data.task import Task
from handful.evaluation.evaluate import encode_for
from handful.evaluation.text.generate import GenerationOptions, write
from handful.methods import method_class
from handful.methods.head import AbstractHeadedAdapter
from handful.randomness import stream
from handful.training.fit import batch_loss

MODEL, MAX_LENGTH, PEER, LOOP = "flan-t5-small", 96, "prompt", "transformers, batched"
OPTIONS = GenerationOptions(beams=1, max_new_tokens=40, target_length=64, references="one")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    PEER: ("prompt", {}),
    **{f"scaled-prompt, {shape}": ("scaled-prompt", {"scale_shape": shape}) for shape in ("scalar", "dim", "full")},
}


def prompt_step(label: str, task: Task, backbone: Backbone, batch_size: int) -> Step:
    """One training step of a prompt method on the first records."""
    name, settings = METHODS[label]
    adapter = method_class(name)(**settings).attach(backbone, task, generator=stream(0, "init")).train()
    rows = encode_for(adapter, task.pool[:batch_size], task, MAX_LENGTH, OPTIONS)
    batch = rows.batch(range(batch_size))

    def loss() -> torch.Tensor:
        return batch_loss(adapter(batch), batch, adapter, task.kind)

    return training_step(loss, list(adapter.parameters()))


def writers(task: Task, backbone: Backbone, records: int, batch_size: int) -> dict[str, Callable[[], list[str]]]:
    """What writes the same records: we, and a plain loop."""
    rows = task.pool[:records]
    adapter = method_class("full")().attach(backbone, task, generator=stream(0, "init"))
    assert isinstance(adapter, AbstractHeadedAdapter)
    encoded = encode_for(adapter, rows, task, MAX_LENGTH, OPTIONS, to_write=True)
    tokenizer, model = backbone.tokenizer, cast(Any, backbone.model)

    def plain() -> list[str]:
        texts = []
        for start in range(0, len(rows), batch_size):
            inputs = tokenizer(
                [row.text for row in rows[start : start + batch_size]],
                padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt",
            )  # fmt: skip
            with torch.no_grad():
                written = model.generate(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **OPTIONS.decoding()
                )
            texts += [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
        return texts

    return {LOOP: plain, "handful": lambda: write(adapter, encoded, OPTIONS, batch_size=batch_size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--write-rounds", type=int, default=6)
    parser.add_argument("--records", type=int, default=64, help="records of WebNLG that are written")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSONL, one line a variant")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task, backbone = read_folder(arguments.data / "nlg" / "webnlg"), load_backbone(MODEL, purpose="lm")
    where, lines = setting(arguments), []
    print(" · ".join(f"{name} {value}" for name, value in where.items()))
    if arguments.rounds:
        steps = {label: prompt_step(label, task, backbone, arguments.batch_size) for label in METHODS}
        for step in [*steps.values()] * 2:  # warm up
            step()
        seconds = interleaved({k: partial(cpu_seconds, v) for k, v in steps.items()}, arguments.rounds, arguments.seed)
        records = summarise(seconds, PEER, arguments.seed)
        show(f"Step, beside {PEER}", records, {})
        lines += [{"table": "step", "variant": name, **record, **where} for name, record in records.items()]
    if arguments.write_rounds:
        actions = writers(task, backbone, arguments.records, arguments.batch_size)
        texts = {label: action() for label, action in actions.items()}  # warms up too
        same = sum(ours == theirs for ours, theirs in zip(*texts.values(), strict=True))
        print(f"\n{same} of {arguments.records} texts are the same")
        if same < arguments.records:
            raise SystemExit("the two must write the same texts: what is timed would not be the same work")
        tokens = sum(map(len, backbone.tokenizer(texts["handful"])["input_ids"]))
        seconds = interleaved(
            {k: partial(cpu_seconds, v) for k, v in actions.items()}, arguments.write_rounds, arguments.seed
        )
        records = summarise(seconds, LOOP, arguments.seed)
        for record in records.values():
            record["tokens_per_second"] = tokens / record["median_ms"] * 1e3
        show(f"Write, beside {LOOP}", records, {"tokens_per_second": "tokens/s"})
        lines += [
            {"table": "write", "variant": n, "same_texts": same, **record, **where} for n, record in records.items()
        ]
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
