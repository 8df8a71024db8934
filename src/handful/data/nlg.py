"""E2E, WebNLG 3.0 and DART 1.1.1 from the files of their releases.

Their texts have licences of their own and are not shipped: `read_nlg` takes the folder they were downloaded to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final
from xml.etree import ElementTree

from handful.data.columns import Columns
from handful.data.linearise import Triple, linearisation, meaning_text
from handful.data.references import records
from handful.data.tables import read_table
from handful.data.task import Example, Task, TestRows
from handful.errors import ConfigError, DataError, nearest

_MANUAL = ("WikiTableQuestions_lily", "WikiSQL_lily", "WikiTableQuestions_mturk")
_MANUAL_AND_AUTO = (*_MANUAL, "WikiSQL_decl_sents")
DART_PARTITIONS: dict[str, tuple[str, ...] | None] = {
    "full": None,
    "manual": _MANUAL,
    "manual_and_auto": _MANUAL_AND_AUTO,
    "no_overlap": _MANUAL_AND_AUTO,
}
"""Sources of DART's texts by name of the partition. "full" holds nearly all of E2E and WebNLG; "no_overlap" leaves both
out, for runs whose result goes on to them."""


@final
@dataclass(frozen=True, slots=True)
class Release:
    """A data set: where its files are, how many records and references each part has, and its own variant of BLEU.

    `files` are patterns by part, of which the first one that finds files is read; `counts` (records, references) of the
    whole parts as measured on the official release, where it is known.
    """

    title: str
    metric: str
    files: dict[str, tuple[str, ...]]
    counts: dict[str, tuple[int, int]]


RELEASES: dict[str, Release] = {
    "e2e": Release(
        "E2E NLG challenge",
        "bleu-e2e",
        {"pool": ("trainset.csv",), "dev": ("devset.csv",), "test": ("testset_w_refs.csv",)},
        {"pool": (4862, 42061), "dev": (547, 4672), "test": (630, 4693)},
    ),
    "webnlg": Release(
        "WebNLG 3.0 (English)",
        "bleu-webnlg20",
        {"pool": ("train/**/*.xml",), "dev": ("dev/**/*.xml",), "test": ("test/rdf-to-text-*-with-refs-en.xml",)},
        {"pool": (13211, 35426), "dev": (1667, 4464), "test": (1779, 5150)},
    ),
    "dart": Release(
        "DART 1.1.1",
        "bleu-dart",
        {
            part: tuple(f"dart-v1.1.1-full-{name}.{suffix}" for suffix in ("json", "xml"))
            for part, name in {"pool": "train", "dev": "dev", "test": "test"}.items()
        },
        {"dev": (2768, 6980), "test": (5097, 12552)},
    ),
}


def read_nlg(
    dataset: str,
    folder: str | Path,
    *,
    linearisation: str = "pipes",
    partition: str = "full",
    metric: str | None = None,
    complete: bool = True,
) -> Task:
    """The task in the files of a release; its metric is the data set's own variant of BLEU, if no other is named.

    `linearisation` is a form of `linearise` ("raw" and "slots" for E2E only), `partition` one of `DART_PARTITIONS`.
    Each part is counted and refused where it is cut, unless `complete` is False. DART's training file is not always to
    be had: without it the pool is its development file, and a note says so.

    Raises: DataError for missing or cut files; ConfigError for an unknown data set, form or partition.
    """
    if dataset not in RELEASES:
        raise ConfigError(f"data set: {dataset!r} is not known", nearest(dataset, RELEASES))
    if partition not in DART_PARTITIONS:
        raise ConfigError(f"partition: {partition!r} is not known", nearest(partition, DART_PARTITIONS))
    if partition != "full" and dataset != "dart":
        raise ConfigError(f"partition: {dataset} has none, found {partition!r}", "partitions are DART's")
    release, folder = RELEASES[dataset], Path(folder)
    notes = [f"linearisation {linearisation}"]
    if metric is None:
        metric = release.metric
        notes.append(f"metric {metric}: the variant of {release.title}")
    sources = DART_PARTITIONS[partition]
    if sources is not None:
        notes.append(f"partition {partition}: {', '.join(sources)}")
    read = _reader(dataset, linearisation, sources)
    rows = {part: read(_files(folder, release, part)) for part in release.files}
    if complete and sources is None:
        for part, found in rows.items():
            _check_counts(folder, release, part, found)
    if not rows["pool"] and dataset == "dart":
        rows["pool"], rows["dev"] = rows["dev"], ()
        notes.append("the pool is DART's development file, as there is no training file")
    for part in ("pool", "test"):
        if not rows[part]:
            raise DataError(
                f"{folder}: expected {' or '.join(release.files[part])}, found none",
                f"the folder holds the files of {release.title} as they were released",
            )
    return Task(
        name=dataset, kind="generation", labels=(), metric=metric, pool=rows["pool"],
        test=TestRows(rows["test"]), dev=rows["dev"] or None, origin=str(folder), notes=tuple(notes),
    )  # fmt: skip


def _files(folder: Path, release: Release, part: str) -> list[Path]:
    return next((found for pattern in release.files[part] if (found := sorted(folder.glob(pattern)))), [])


def _check_counts(folder: Path, release: Release, part: str, rows: Sequence[Example]) -> None:
    found = (len(rows), sum(len(row.references) for row in rows))
    expected = release.counts.get(part, found)
    if rows and found != expected:
        raise DataError(
            f"{folder}: expected {expected[0]:,} records with {expected[1]:,} references in the {part} part of "
            f"{release.title}, found {found[0]:,} with {found[1]:,}",
            "the copy is cut or of another version: take the official release, or say complete=False",
        )


def _reader(dataset: str, form: str, sources: Sequence[str] | None) -> Callable[[Sequence[Path]], tuple[Example, ...]]:
    if dataset == "e2e":
        return lambda files: tuple(row for file in files for row in e2e_records(file, form))
    text = linearisation(form)

    def read(files: Sequence[Path]) -> tuple[Example, ...]:
        found = []
        for file in files:
            entries = _json_entries(file) if file.suffix == ".json" else _xml_entries(file)
            for number, (triples, texts) in enumerate(entries, 1):
                references = tuple(text for source, text in texts if sources is None or source in sources)
                if triples and references:
                    found.append(Example(text(triples), source=f"{file.name}:entry {number}", references=references))
        return tuple(found)

    return read


def e2e_records(path: Path, form: str) -> tuple[Example, ...]:
    """The records of a file of E2E, columns `mr` and `ref`; rows of one meaning are one record, wherever they stand."""
    rows = records(read_table(path), Columns("mr", None, "ref"))
    return tuple(replace(row, text=meaning_text(row.text, form)) for row in rows)


_Entry = tuple[list[Triple], list[tuple[str, str]]]


def _xml_entries(path: Path) -> Iterable[_Entry]:
    """Modified triples, and texts with their comment, of each entry of a WebNLG or DART file."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected XML, found {error}", "download the file again") from None
    for number, entry in enumerate(root.iter("entry"), 1):
        found = [(node.text or "").split(" | ") for node in entry.iterfind("modifiedtripleset/mtriple")]
        triples = [_triple(parts, path, number) for parts in found]
        texts = [(node.get("comment") or "", (node.text or "").strip()) for node in entry.iterfind("lex")]
        yield triples, [(source, text) for source, text in texts if text]


def _json_entries(path: Path) -> Iterable[_Entry]:
    """Triples, and texts with their source, of each entry of a DART file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for number, entry in enumerate(entries, 1):
            triples = [_triple(triple, path, number) for triple in entry["tripleset"]]
            yield triples, [(note["source"], note["text"].strip()) for note in entry["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: expected a list of entries with 'tripleset' and 'annotations', found {error!r}",
            "download the file again",
        ) from None


def _triple(parts: Sequence[Any], path: Path, number: int) -> Triple:
    if len(parts) != 3:
        raise DataError(
            f"{path}, entry {number}: expected a triple of subject, relation and object, found {list(parts)!r}",
            "correct the entry",
        )
    subject, relation, object_ = (str(part).strip() for part in parts)
    return subject, relation, object_
