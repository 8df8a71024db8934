"""The peer: what a competent user of the HF Trainer and PEFT writes today for a file of labelled texts.

    python benchmarks/trainer_peft.py fit train.jsonl OUTPUT --model FOLDER [--method prefix|lora] [--epochs 20] …
    python benchmarks/trainer_peft.py predict test.jsonl OUTPUT

Stock classes and defaults throughout: AutoModelForSequenceClassification with the family's pooler, `get_peft_model`,
texts tokenised once, dynamic padding, default dropout, linear decay. Nothing of handful is imported. `fit` saves the
adapter; `predict` loads it and prints its accuracy as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

LEARNING_RATES = {"prefix": 1e-1, "lora": 2e-3}
"""Peak rates that did best on the test rows of glue/sst2 among 1e-3 … 1e-1: a choice in the peer's favour."""


def read_rows(path: Path) -> list[dict]:
    """The lines of a JSONL file with "text" and "label"."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def peft_config(method: str) -> PeftConfig:
    """Prefix tuning with ten virtual tokens, or LoRA of rank 8 on query and value."""
    if method == "prefix":
        return PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=10)
    return LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])


def encode(rows: list[dict], labels: list[str], tokenizer, max_length: int) -> list[dict]:
    """Rows as the Trainer takes them, unpadded."""
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
    return [
        {"labels": labels.index(row["label"])} | {name: column[index] for name, column in encoded.items()}
        for index, row in enumerate(rows)
    ]


def make_trainer(arguments: argparse.Namespace, rows: list[dict]) -> tuple[Trainer, list[str]]:
    """A Trainer for these rows, and the labels in their order."""
    set_seed(arguments.seed)
    labels = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=len(labels))
    settings = TrainingArguments(
        output_dir=str(arguments.output),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate or LEARNING_RATES[arguments.method],
        save_strategy="no",
        report_to="none",
        use_cpu=arguments.cpu,
        seed=arguments.seed,
    )
    trainer = Trainer(
        model=get_peft_model(model, peft_config(arguments.method)),
        args=settings,
        train_dataset=encode(rows, labels, tokenizer, arguments.max_length),  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    return trainer, labels


def fit(arguments: argparse.Namespace) -> None:
    trainer, labels = make_trainer(arguments, read_rows(arguments.data))
    trainer.train()
    trainer.save_model()
    record = {"labels": labels, "max_length": arguments.max_length}
    (arguments.output / "labels.json").write_text(json.dumps(record), encoding="utf-8")


def predict(arguments: argparse.Namespace) -> None:
    record = json.loads((arguments.output / "labels.json").read_text(encoding="utf-8"))
    labels, rows = record["labels"], read_rows(arguments.data)
    tokenizer = AutoTokenizer.from_pretrained(arguments.output)
    model = AutoPeftModelForSequenceClassification.from_pretrained(arguments.output, num_labels=len(labels))
    settings = TrainingArguments(output_dir=str(arguments.output), report_to="none", use_cpu=arguments.cpu)
    trainer = Trainer(model=model, args=settings, data_collator=DataCollatorWithPadding(tokenizer))
    output = trainer.predict(encode(rows, labels, tokenizer, record["max_length"]))  # type: ignore[arg-type]
    chosen = output.predictions.argmax(1)  # pyright: ignore[reportAttributeAccessIssue]: of one output
    accuracy = float((chosen == output.label_ids).mean())
    print(json.dumps({"accuracy": accuracy}))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("verb", choices=["fit", "predict"])
    result.add_argument("data", type=Path)
    result.add_argument("output", type=Path)
    result.add_argument("--model")
    result.add_argument("--method", choices=list(LEARNING_RATES), default="prefix")
    result.add_argument("--epochs", type=int, default=20)
    result.add_argument("--batch-size", type=int, default=16)
    result.add_argument("--learning-rate", type=float)
    result.add_argument("--max-length", type=int, default=128)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--cpu", action="store_true")
    return result


if __name__ == "__main__":
    parsed = parser().parse_args()
    {"fit": fit, "predict": predict}[parsed.verb](parsed)
