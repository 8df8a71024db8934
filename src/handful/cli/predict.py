"""`handful predict`: labels, probabilities and disagreement of new texts under a trained run."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.console import FitProgress, say
from handful.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from handful.api import FittedModel
    from handful.data.task import Example

FORMATS = (".csv", ".tsv", ".jsonl")


def predict(
    run: Annotated[Path, typer.Argument(help="The folder that 'handful fit' made.")],
    source: Annotated[str, typer.Option("--input", help="CSV, TSV or JSONL; '-' takes one text a line from stdin.")],
    output: Annotated[Path | None, typer.Option(help="CSV, TSV or JSONL.", show_default="stdout, as CSV")] = None,
    predictor: Annotated[
        str | None, typer.Option(help="midpoint, ensemble, draw or vertex:N.", show_default="the run's")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column of a pair's second text.", show_default="found")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the input.", show_default="utf-8")] = None,
    task: Annotated[str | None, typer.Option(help="Of an inventory of many tasks: this one.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the pretrained model is now.", show_default="where it was in training")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
) -> None:
    """Predict texts: label, probability of every class and how far the simplex disagrees; or write for them."""
    check_output(output, source)
    from handful.runs.inventory import member_record
    from handful.runs.store import read_run

    saved = read_run(run)
    kind = member_record(saved, task)["kind"]
    rows = read_input(source, kind=kind, text=text, text_pair=text_pair, encoding=encoding)
    fitted = open_model(run, model, task)
    if cut := fitted.count_cut(rows):
        say(f"{cut:,} of {len(rows):,} texts were cut to {fitted.max_length} tokens")
    records = prediction_records(fitted, rows, predictor)
    if output is None:
        write_records(sys.stdout, records, ".jsonl" if as_json else ".csv")
    else:
        write_file(output, records)
        say(f"{len(rows):,} predictions written to {output}")


def open_model(run: Path, model: str | None, task: str | None = None) -> FittedModel:
    """The trained model of a run, or of a task of an inventory, on the pretrained model it was trained on or the same
    one elsewhere.
    """
    from handful.api import load
    from handful.backbone.load import load_backbone
    from handful.runs.store import read_run

    if model is None:
        return load(run, task=task)
    record = read_run(run).record
    purpose = "lm" if record["task"]["kind"] == "generation" else "features"
    return load(
        run, task=task, backbone=load_backbone(model, pooling=record["spec"]["run"]["pooling"], purpose=purpose)
    )


def check_output(output: Path | None, source: str) -> None:
    """Raises: ConfigError for a format we cannot write or the input's own name, RunError for a missing folder."""
    if output is None:
        return
    if output.suffix.lower() not in FORMATS:
        found = output.suffix or "no ending"
        raise ConfigError(f"--output {output}: expected a file ending in {', '.join(FORMATS)}, found {found}")
    if source != "-" and output.exists() and Path(source).exists() and output.samefile(source):
        raise ConfigError(f"--output {output}: expected another file than the input", "give another name")
    if not output.parent.is_dir():
        raise RunError(f"--output {output}: there is no folder {output.parent}", "make it first")


def read_input(source: str, *, kind: str, text: str, text_pair: str | None, encoding: str | None) -> list[Example]:
    """The rows to predict. Raises: DataError for an unreadable file, empty texts, or pairs from stdin."""
    from handful.data.files import read_rows
    from handful.data.task import Example

    if source != "-":
        single = kind == "classification"
        return read_rows(source, text=text, text_pair="" if single else text_pair, encoding=encoding)
    if kind == "pair-classification":
        raise DataError("stdin gives one text a line, but the run predicts pairs", "give a file: --input pairs.csv")
    try:
        lines = sys.stdin.buffer.read().decode(encoding or "utf-8-sig").split("\n")
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(f"stdin: {error}", "give the encoding: --encoding cp1252") from None
    rows = [Example(line.strip(), source=f"stdin:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(
            "stdin: expected texts, one a line, found none", "for instance: echo 'a text' | handful predict …"
        )
    return rows


def prediction_records(fitted: FittedModel, rows: list[Example], predictor: str | None) -> Iterable[dict[str, Any]]:
    """One record a row: its text, the prediction, the probability of every class, the simplex's disagreement.

    Of generation: its text and what is written.
    """
    if fitted.spec.generation is not None:
        with FitProgress() as progress:
            texts = fitted.write(rows, predictor, on_progress=lambda done: progress.written(done, len(rows)))
        for row, text in zip(rows, texts, strict=True):
            yield {"text": row.text, "written": text}
        return
    predictions = fitted.predictions(rows, predictor)
    disagreement = fitted.disagreement(rows) if fitted.num_vertices > 1 else None
    for index, row in enumerate(rows):
        record: dict[str, Any] = {"text": row.text}
        if row.text_pair is not None:
            record["text_pair"] = row.text_pair
        if fitted.labels:
            probabilities = predictions.probabilities[index]
            record["label"] = fitted.labels[predictions.labels[index]]
            record["probability"] = round(float(probabilities.max()), 6)
            for label, probability in zip(fitted.labels, probabilities, strict=True):
                record[f"probability of {label}"] = round(float(probability), 6)
        else:
            record["value"] = float(predictions.values[index])
        if disagreement is not None:
            record["disagreement"] = round(float(disagreement[index]), 6)
        yield record


def write_records(file: IO[str], records: Iterable[dict[str, Any]], suffix: str) -> None:
    """Records as JSON lines, or as a table with a header."""
    if suffix == ".jsonl":
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return
    writer: csv.DictWriter[str] | None = None
    for record in records:
        if writer is None:
            delimiter = "\t" if suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(record), delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
        writer.writerow(record)


def write_file(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A file that appears complete or not at all. Raises: RunError when it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            write_records(file, records, path.suffix.lower())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written ({error.strerror})", "give another --output") from None
