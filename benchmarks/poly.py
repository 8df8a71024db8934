"""What routed skills cost beside one LoRA and beside PEFT's Poly: a training step, what it keeps, and decoding.

    python benchmarks/poly.py [--data ../shared/data] [--rounds 40] [--write-rounds 10] [--output FILE.jsonl]

Table 1, step: forward, backward, clipping and AdamW on the same mixed batch of six GLUE tasks, on MiniLM, with rank-8
updates of query, key, value and output of every layer, mean pooling, no dropout and the same head of label texts.
PEFT's adapters are put on the same model and trained with the same loss. "kept KB" are the bytes that autograd keeps
from forward to backward for the adapter, a layer: all storages that are no parameter, less those that the frozen model
keeps for the gradient of its own embeddings.
Table 2, write: 8 rows of 8 tasks, one each, on SmolLM2-135M with 8 skills, greedily, always as many tokens. Ours and
PEFT's Poly have the same parameters and must write the same tokens; a LoRA has nothing to mix; the model without an
adapter is the most that there is to be had.

One process, one thread, variants interleaved in random order; CPU seconds, ratios within each round, percentile
bootstrap of the median over rounds. Ratios of time are inverse ratios of tokens per second.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PolyConfig, get_peft_model
from step import MODEL, Step, cpu_seconds, interleaved, setting, show, summarise, training_step

from handful.backbone.load import Backbone, load_backbone
from handful.data.batching import Batch, encode_generation, encode_mixed
from handful.data.files import read_folder
from handful.data.mixture import mix_tasks
from handful.data.task import Example, Task
from handful.methods.label_text import LabelTextHead
from handful.methods.poly.adapter import PolyAdapter
from handful.methods.poly.method import Poly
from handful.randomness import stream
from handful.training.fit import batch_loss

GLUE = ("cola", "sst2", "mrpc", "qnli", "qqp", "rte")
SKILLS, RANK, ALPHA, MAX_LENGTH = 8, 8, 1, 128
ENCODER_TARGETS = ["query", "key", "value", "attention.output.dense"]
WRITER, WRITER_TARGETS = "smollm2-135m", ["q_proj", "k_proj", "v_proj", "o_proj"]
POLY, GUMBEL, SHARED, PEFT_LORA, PEFT_POLY = "poly", "poly, gumbel", "shared (ours)", "PEFT LoRA", "PEFT Poly"
PLAIN = "no adapter"
SETTINGS: dict[str, dict[str, Any]] = {POLY: {}, GUMBEL: {"gate": "gumbel"}, SHARED: {"routing": "shared"}}


def adapter_of(label: str, backbone: Backbone, task: Task) -> PolyAdapter:
    """Ours, by its name in the tables."""
    method = Poly(num_skills=SKILLS, rank=RANK, alpha=ALPHA, **SETTINGS[label])
    return method.attach(backbone, task, generator=stream(0, "init"))


def peft_config(label: str, tasks: int, targets: list[str]) -> LoraConfig | PolyConfig:
    if label == PEFT_POLY:
        return PolyConfig(r=RANK, n_tasks=tasks, n_skills=SKILLS, n_splits=1, target_modules=targets)
    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)


def routed(peft: Any, ids: torch.Tensor) -> Any:
    """The context in which PEFT's Poly knows the rows' tasks."""
    model = peft.base_model
    return model._manage_pre_hooks(ids) if hasattr(model, "_manage_pre_hooks") else nullcontext()


def mixed_batch(arguments: argparse.Namespace, backbone: Backbone) -> tuple[Task, Batch]:
    """The tasks, and a batch with as many rows of each as possible."""
    tasks = [read_folder(arguments.data / "glue" / name) for name in GLUE]
    each = -(-arguments.batch_size // len(tasks))
    task = mix_tasks("glue", [replace(task, pool=task.pool[:each], test=None, dev=None) for task in tasks])
    rows = encode_mixed(task.pool, backbone.tokenizer, MAX_LENGTH)
    return task, rows.batch(range(len(rows) - arguments.batch_size, len(rows)))


def make_loss(label: str, arguments: argparse.Namespace) -> tuple[Callable[[], torch.Tensor], Any, Backbone]:
    """The loss of a variant, what it trains, and its model."""
    backbone = load_backbone(MODEL)
    task, batch = mixed_batch(arguments, backbone)
    if label in SETTINGS:
        adapter, draws = adapter_of(label, backbone, task).train(), stream(0, "draws")

        def ours() -> torch.Tensor:
            return batch_loss(adapter(batch, adapter.draw(batch, draws)), batch, adapter, task.kind)

        return ours, list(adapter.parameters()), backbone
    head = LabelTextHead(backbone, task)
    ids = torch.tensor([GLUE.index(name) for name in batch.tasks])
    peft = get_peft_model(backbone.model, peft_config(label, len(GLUE), ENCODER_TARGETS)).train()
    backbone.model.eval()  # no dropout; training mode is for PEFT's noise alone
    for module in peft.modules():
        if hasattr(module, "module_logits"):
            module.train()

    def theirs() -> torch.Tensor:
        with routed(peft, ids):
            features = backbone.features(batch.inputs)
        return torch.nn.functional.cross_entropy(head(features, batch.tasks), batch.labels)  # type: ignore[arg-type]

    return theirs, [*(p for p in peft.parameters() if p.requires_grad), *head.parameters()], backbone


def kept_bytes(backbone: Backbone, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of all storages, parameters apart, that a forward keeps; gradients are asked for from the embeddings on."""
    known = {p.untyped_storage().data_ptr() for p in backbone.model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and not isinstance(tensor, torch.nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, lest another takes its place
        return tensor

    words = backbone.model.get_input_embeddings()
    handle = words.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    handle.remove()
    return sum(size for size, _ in kept.values())


def frozen_loss(arguments: argparse.Namespace) -> tuple[Callable[[], torch.Tensor], Backbone]:
    backbone = load_backbone(MODEL)
    task, batch = mixed_batch(arguments, backbone)
    head = LabelTextHead(backbone, task)
    features = lambda: head(backbone.features(batch.inputs), batch.tasks)  # noqa: E731
    return lambda: torch.nn.functional.cross_entropy(features(), batch.labels), backbone  # type: ignore[arg-type]


def step_records(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print table 1, beside each peer."""
    steps: dict[str, Step] = {}
    forward, backbone = frozen_loss(arguments)
    base, kept = kept_bytes(backbone, forward), {}
    for label in (*SETTINGS, PEFT_LORA, PEFT_POLY):
        loss, parameters, backbone = make_loss(label, arguments)
        kept[label] = (kept_bytes(backbone, loss) - base) / backbone.num_layers / 1024
        steps[label] = training_step(loss, parameters)
    for step in [*steps.values()] * 2:  # warm up
        step()
    seconds = interleaved({k: partial(cpu_seconds, v) for k, v in steps.items()}, arguments.rounds, arguments.seed)
    lines = []
    for peer in (SHARED, PEFT_LORA, PEFT_POLY):
        records = summarise(seconds, peer, arguments.seed)
        for label, record in records.items():
            record["kept_kb"] = kept[label]
            record["kept_ratio"] = kept[label] / kept[peer]
            lines.append({"table": "step", "peer": peer, "variant": label, **record})
        show(f"Step, beside {peer}", records, {"kept_kb": "kept KB a layer"})
        print("kept, as a multiple: " + ", ".join(f"{k} {r['kept_ratio']:.2f}" for k, r in records.items()))
    return lines


def writers(arguments: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """What writes the same rows: ours, PEFT's Poly with the same parameters, and LoRAs."""
    names = [f"task-{index}" for index in range(8)]
    texts = ("The cat sat on the", "Once upon a time", "Water boils at", "The capital of France is",
             "To make bread you", "In the year 1900", "My favourite book", "Two plus two is")  # fmt: skip
    members = [
        Task(name, "generation", (), "rouge-l", (Example(text, references=(text,), source=name),))
        for name, text in zip(names, texts, strict=True)
    ]
    task, options = (
        mix_tasks("write", members),
        {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens},
    )
    found: dict[str, Callable[[], torch.Tensor]] = {}

    def batch_for(backbone: Backbone) -> Batch:
        return encode_generation(task.pool, backbone.tokenizer, 64, encoder_decoder=False).batch(range(8))

    models = {label: load_backbone(WRITER, purpose="lm") for label in (POLY, SHARED, PEFT_LORA, PEFT_POLY, PLAIN)}
    found[PLAIN] = partial(models[PLAIN].generate, batch_for(models[PLAIN]).inputs, **options)
    ours = {label: adapter_of(label, models[label], task).eval() for label in (POLY, SHARED)}
    for label, adapter in ours.items():
        found[label] = partial(adapter.generate, batch_for(models[label]), **options)
    for label in (PEFT_LORA, PEFT_POLY):
        backbone = models[label]
        peft = get_peft_model(backbone.model, peft_config(label, 8, WRITER_TARGETS)).eval()
        if label == PEFT_POLY:
            give_same(ours[POLY], peft)
        found[label] = partial(theirs_write, peft, backbone, batch_for(backbone), options)
    return found


def theirs_write(peft: Any, backbone: Backbone, batch: Batch, options: dict[str, Any]) -> torch.Tensor:
    with routed(peft, torch.arange(len(batch))):
        return backbone.generate(batch.inputs, **options)


@torch.no_grad()
def give_same(adapter: PolyAdapter, peft: Any) -> None:
    """The same random skills and routing in both."""
    draws, modules = stream(0, "draws"), dict(peft.base_model.model.named_modules())
    logits: torch.Tensor = adapter.routing.logits  # type: ignore[assignment]
    logits.copy_(2 * torch.randn(logits.shape, generator=draws))
    for router, name in enumerate(adapter.skills.updating.modules):  # type: ignore[union-attr]
        down, up = (adapter.skills.part(name, kind) for kind in ("down", "up"))  # type: ignore[operator]
        up.copy_(0.1 * torch.randn(up.shape, generator=draws))
        modules[name].poly_lora_A["default"].copy_(down)
        modules[name].poly_lora_B["default"].copy_(up)
        modules[name].poly_router["default"].module_logits.copy_(logits[router].flatten(1))


def write_records(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print table 2, beside each peer."""
    actions = writers(arguments)
    written = {label: action() for label, action in actions.items()}  # warms up too
    same = int((written[POLY] == written[PEFT_POLY]).all(1).sum())
    print(f"\n{same} of 8 rows are the same in {POLY} and {PEFT_POLY}")
    seconds = interleaved(
        {k: partial(cpu_seconds, v) for k, v in actions.items()}, arguments.write_rounds, arguments.seed
    )
    lines = []
    for peer in (PEFT_POLY, PEFT_LORA):
        records = summarise(seconds, peer, arguments.seed)
        for label, record in records.items():
            record["tokens_per_second"] = written[label].numel() / record["median_ms"] * 1e3
            lines.append({"table": "write", "peer": peer, "variant": label, "same_rows": same, **record})
        show(f"Write, beside {peer}", records, {"tokens_per_second": "tokens/s"})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=40, help="of table 1; 0 leaves it out")
    parser.add_argument("--write-rounds", type=int, default=10, help="of table 2; 0 leaves it out")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that are written a row")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSONL, one line a variant and peer")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where, lines = setting(arguments), []
    print(" · ".join(f"{name} {value}" for name, value in where.items()))
    for rounds, measure in ((arguments.rounds, step_records), (arguments.write_rounds, write_records)):
        lines += [{**line, **where} for line in measure(arguments)] if rounds else []
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
