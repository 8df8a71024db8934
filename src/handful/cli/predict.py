"""`handful predict`: labels, probabilities and disagreement of new texts under a trained run."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast, final

import typer

from handful.cli.arguments import Device, chosen_device
from handful.cli.console import FitProgress, say
from handful.cli.new_rows import (
    ColumnOptions,
    Delimiter,
    Encoding,
    Member,
    Pretrained,
    RunFolder,
    Text,
    TextPair,
    open_model,
)
from handful.data.coverage import NO_TEXTS, Coverage, coverage_sentences
from handful.data.delimited import DELIMITERS
from handful.data.names import clean_name, is_header
from handful.errors import ConfigError, DataError, HandfulError, RunError
from handful.neutral import cell, printable
from handful.storage import new_file

if TYPE_CHECKING:
    from handful.api import FittedModel
    from handful.data.task import Example, Task

    Rows = Iterable[tuple[Example, Mapping[str, Any]]]

FORMATS = (".csv", ".tsv", ".jsonl")


def predict(
    run: RunFolder,
    source: Annotated[
        str, typer.Option("--input", help="File of texts, as for 'fit'; '-' takes one text per line from stdin.")
    ],
    output: Annotated[Path | None, typer.Option(help="CSV, TSV or JSONL.", show_default="stdout, as CSV")] = None,
    predictor: Annotated[
        str | None, typer.Option(help="midpoint, ensemble, draw or vertex:N.", show_default="the run's")
    ] = None,
    disagreement: Annotated[
        bool,
        typer.Option("--disagreement", help="Also how far random points of the simplex disagree; ten times the work."),
    ] = False,
    text: Text = None,
    text_pair: TextPair = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    task: Member = None,
    model: Pretrained = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
) -> None:
    """Predict texts: the label, the probability of every class; or the generated text.

    All other columns of the input are passed through. An empty text gets an empty prediction.
    """
    from handful.runs.inventory import member_record
    from handful.runs.members import recorded_task
    from handful.runs.store import read_run

    check_output(output, source)
    saved = read_run(run)
    described = recorded_task(member_record(saved, task))
    rows = read_input(source, ColumnOptions(text, text_pair, encoding, delimiter), described)
    fitted = open_model(run, model, task, chosen_device(device))
    if disagreement and fitted.num_vertices == 1:
        raise ConfigError(
            f"--disagreement: expected a method with a simplex, found {fitted.spec.method.name!r}",
            "leave it out, or train a method such as prefix-subspace",
        )
    counts = Counts()
    records = prediction_records(fitted, rows, predictor, counts, disagreement=disagreement)
    if output is None:
        to = cast(IO[str], _Terminal()) if sys.stdout.isatty() else sys.stdout
        write_records(to, records, ".jsonl" if as_json else ".csv")
    else:
        write_file(output, records)
        say(f"{counts.rows:,} predictions written to {output}")
    for sentence in counts.sentences(fitted.max_length):
        say(sentence)


@final
@dataclass
class Counts:
    """What is to be said of the rows once all are predicted."""

    rows: int = 0
    truncated: int = 0
    blank: int = 0
    blank_sources: list[str] = field(default_factory=list)
    coverage: Coverage = NO_TEXTS

    def add(self, rows: Iterable[Example], blank: Iterable[bool], truncated: int, coverage: Coverage) -> None:
        """A chunk of rows: which of them are without tokens, how many were cut, and how much the model knows."""
        for row, is_blank in zip(rows, blank, strict=True):
            self.rows += 1
            self.blank += bool(is_blank)
            if is_blank and len(self.blank_sources) < 3:
                self.blank_sources.append(row.source)
        self.truncated += truncated
        self.coverage += coverage

    def sentences(self, max_length: int) -> Iterator[str]:
        """One sentence for each thing that lessens the predictions."""
        if self.truncated:
            yield f"{self.truncated:,} of {self.rows:,} texts were cut to {max_length} tokens"
        if self.blank:
            more = ", …" if self.blank > len(self.blank_sources) else ""
            where = ", ".join(self.blank_sources) + more
            yield f"{self.blank:,} of {self.rows:,} texts have no tokens and an empty prediction ({where})"
        yield from coverage_sentences(replace(self.coverage, without_token=0))  # that has been said


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


def read_input(source: str, asked: ColumnOptions, task: Task) -> Rows:
    """The rows to predict, read as they are asked for. Raises: DataError for an unreadable file or pairs from stdin."""
    from handful.data.columns import Columns
    from handful.data.new_rows import unlabelled_rows

    if source == "-":
        if task.objective.pairs:
            raise DataError(
                "stdin gives one text per line, but the run predicts pairs", "give a file: --input pairs.csv"
            )
        lines = iter(_lines_of_stdin(asked.encoding))
        first = next(lines)  # a table is refused before the model is loaded
        _check_is_text(first[0].text, task)
        return chain([first], lines)
    rows = unlabelled_rows(
        source, kind=task.kind, wanted=Columns(asked.text or "", asked.text_pair, None), trained_on=task.columns,
        encoding=asked.encoding, delimiter=asked.delimiter,
    )  # fmt: skip
    for note in rows.notes:
        say(note)
    for _ in rows:  # reading twice costs little, and what is wrong with a row is said before the model is loaded
        pass
    return rows


def _check_is_text(line: str, task: Task) -> None:
    """Raises: DataError where the first line of stdin begins a table: a header or a JSON object."""
    named = {"text", *filter(None, (task.columns.text, task.columns.text_pair) if task.columns else ())}
    for delimiter in DELIMITERS:
        titles = [clean_name(title.strip().strip('"')) for title in line.split(delimiter)]
        names = all(title in named or len(title.split()) == 1 for title in titles)
        if names and (not named.isdisjoint(titles) or is_header(titles)):
            ending = ".tsv" if delimiter == "\t" else ".csv"
            raise DataError(
                f"stdin gives one text per line, found the header of a table in its first line ({line!r:.80})",
                f"save it as a file: --input FILE{ending}; for texts alone, leave the first line out",
            )
    if line.startswith("{") and line.endswith("}"):
        row = None
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
        if isinstance(row, dict):
            raise DataError(
                f"stdin gives one text per line, found a JSON object in its first line ({line!r:.80})",
                "save it as a file: --input FILE.jsonl",
            )


def _lines_of_stdin(encoding: str | None) -> Rows:
    """One text per line that is not blank. Raises: DataError for bytes of another encoding, or no text at all."""
    from handful.data.task import Example

    blank = number = 0
    try:
        sys.stdin.reconfigure(encoding=encoding or "utf-8-sig", errors="strict", newline="\n")  # type: ignore[union-attr]
        for number, line in enumerate(sys.stdin, 1):
            if line.strip():
                yield Example(line.strip(), source=f"stdin:{number}"), {"text": line.strip()}
            else:
                blank += 1
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(f"stdin: {error}", "give the encoding: --encoding cp1252") from None
    if blank == number:
        raise DataError(
            "stdin: expected texts, one per line, found none", "for instance: echo 'a text' | handful predict …"
        )
    if blank:
        say(f"{blank:,} of {number:,} lines of stdin are blank and were skipped")


def prediction_records(
    fitted: FittedModel, rows: Rows, predictor: str | None, counts: Counts, *, disagreement: bool = False
) -> Iterator[dict[str, Any]]:
    """One record per row: the cells of its input, then the prediction, the probability of every class and, where it is
    asked for, the disagreement of the simplex; for generation the generated text.

    A cell of the input whose name a prediction takes is renamed to "input NAME". `counts` hears of every chunk.
    """
    waiting: deque[Mapping[str, Any]] = deque()  # the cells of rows that were read and are not predicted yet

    def examples() -> Iterator[Example]:
        for row, cells in rows:
            waiting.append(cells)
            yield row

    renamed: set[str] = set()
    predicted = _generated if fitted.spec.generation is not None else _labelled
    with FitProgress("predicting") as progress:
        for prediction in predicted(fitted, examples(), predictor, counts, disagreement, progress):
            cells = waiting.popleft()
            for name in sorted((cells.keys() & prediction.keys()) - renamed):
                renamed.add(name)
                progress.say(f"the input's column {name!r} is passed through as 'input {name}'")
            yield {f"input {name}" if name in prediction else name: cell for name, cell in cells.items()} | prediction
    if not counts.rows:
        raise DataError("expected rows to predict, found none")


def _labelled(
    fitted: FittedModel,
    rows: Iterator[Example],
    predictor: str | None,
    counts: Counts,
    disagreement: bool,
    progress: FitProgress,
) -> Iterator[dict[str, Any]]:
    for part in fitted.stream(rows, predictor, disagreement=disagreement):
        predictions = part.predictions
        counts.add(part.rows, predictions.blank, part.truncated, part.coverage)
        progress.predicted(counts.rows)
        for index, is_blank in enumerate(predictions.blank.tolist()):
            record: dict[str, Any] = {}
            if fitted.labels:
                probabilities = predictions.probabilities[index].tolist()
                objective = predictions.objective
                record["label"] = None if is_blank else objective.shown(predictions.labels[index], fitted.labels)
                if objective.has_classes:
                    record["probability"] = _rounded(max(probabilities), is_blank)
                for label, probability in zip(fitted.labels, probabilities, strict=True):
                    record[f"probability of {label}"] = _rounded(probability, is_blank)
            else:
                record["value"] = None if is_blank else float(predictions.values[index])
            if part.disagreement is not None:
                record["disagreement"] = _rounded(float(part.disagreement[index]), is_blank)
            yield record


def _rounded(number: float, is_blank: bool) -> float | None:
    return None if is_blank else round(number, 6)


def _generated(
    fitted: FittedModel,
    rows: Iterator[Example],
    predictor: str | None,
    counts: Counts,
    disagreement: bool,
    progress: FitProgress,
) -> Iterator[dict[str, Any]]:
    for part in fitted.stream_texts(rows, predictor, on_progress=progress.predicted):
        counts.add(part.rows, [text is None for text in part.texts], part.truncated, part.coverage)
        yield from ({"written": text} for text in part.texts)


class _LinesOfCsv:
    """A file for `csv.writer` rows that end in CRLF, written with the LF that every tool reads.

    Only with CRLF as its line end does the writer quote a cell that holds a lone carriage return (Python before 3.13),
    which readers take for the end of a row.
    """

    def __init__(self, file: IO[str]):
        self.file = file

    def write(self, row: str) -> None:
        self.file.write(row.removesuffix("\r\n") + "\n")


def write_records(file: IO[str], records: Iterable[dict[str, Any]], suffix: str) -> None:
    """Records as JSON lines, or as a table whose header are the names of the first record.

    In a table, texts that a spreadsheet would take for formulas get an apostrophe in front, which is said.
    """
    if suffix == ".jsonl":
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return
    writer, names, left_out, formulas = csv.writer(file), [], set(), 0
    for record in records:
        if not names:
            names = list(record)
            delimiter = "\t" if suffix == ".tsv" else ","
            writer = csv.writer(_LinesOfCsv(file), delimiter=delimiter, lineterminator="\r\n")
            writer.writerow(map(cell, names))
        left_out.update(record.keys() - names)
        values = [_value(record.get(name)) for name in names]
        row = [cell(value) for value in values]
        formulas += sum(mine is not theirs for mine, theirs in zip(row, values, strict=True))
        writer.writerow(row)
    if left_out:
        say(f"keys that the first row lacks were left out: {', '.join(map(repr, sorted(left_out)))}; JSONL keeps them")
    if formulas:
        say(f"{formulas:,} cells that a spreadsheet takes for formulas got an apostrophe in front; JSONL keeps them")


def _value(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def write_file(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A file that appears complete or not at all. Raises: RunError when it cannot be written."""
    try:
        with new_file(path) as file:
            texts = io.TextIOWrapper(file, encoding="utf-8", newline="")
            write_records(texts, records, path.suffix.lower())
            texts.detach()  # flushed; closing, and the name, are for `new_file`
    except OSError as error:
        if isinstance(error, HandfulError):
            raise
        raise RunError(f"{path}: cannot be written ({error.strerror})", "give another --output") from None


class _Terminal:
    """stdout where a person reads it: control characters in texts are shown, not obeyed."""

    def write(self, text: str) -> None:
        sys.stdout.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)
