"""METEOR 1.5 and CIDEr of runs that generate, as the official scripts run them: for comparison with published figures.

    pip install pycocoevalcap
    python benchmarks/java_scores.py RUN ...

They are programs of Java and no part of handful, which computes every metric itself (`--metric chrf++`, `rouge-l`, …).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from handful.data.task import Example
from handful.errors import ConfigError
from handful.evaluation.text.overlap_scores import combine_mean
from handful.runs.store import PREDICTIONS, read_run

_DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What coco-caption takes out after tokenising. Brackets stay: by then they are in lower case."""


def require_java() -> Path:
    """The folder of pycocoevalcap. Raises: ConfigError where it or Java is missing."""
    if shutil.which("java") is None:
        raise ConfigError(
            "METEOR and CIDEr of the official scripts need Java, and there is no program 'java'",
            "install a Java runtime",
        )
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "METEOR and CIDEr need the package 'pycocoevalcap', which is not installed", "pip install pycocoevalcap"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _java(arguments: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    """The lines a program of Java answers with."""
    done = subprocess.run(
        ["java", *arguments], cwd=folder, input="".join(f"{line}\n" for line in lines), encoding="utf-8",
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ConfigError(f"java {' '.join(arguments)} failed: {done.stderr.strip()[-300:]}", "check the Java runtime")
    return done.stdout.splitlines()


def stanford_tokens(texts: Sequence[str]) -> list[str]:
    """Texts as coco-caption has them: Penn Treebank tokens in lower case between spaces, without punctuation."""
    folder = require_java() / "tokenizer"
    program = ["-Dfile.encoding=UTF-8", "-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"]
    lines = _java([*program, "-preserveLines", "-lowerCase"], folder, [" ".join(text.split()) for text in texts])
    return [" ".join(token for token in line.split() if token not in _DROPPED) for line in lines]


def _tokenised(texts: Sequence[str], records: Sequence[Example]) -> tuple[list[str], list[list[str]]]:
    """Texts and references tokenised in one go."""
    tokens = iter(stanford_tokens([*texts, *(text for record in records for text in record.references)]))
    written = [next(tokens) for _ in texts]
    return written, [[next(tokens) for _ in record.references] for record in records]


def measure_meteor(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """METEOR 1.5 (Denkowski and Lavie 2014), English, `-norm`, on the texts as they are.

    WebNLG's script tokenises with NLTK first, which changes it by about .001.

    `texts` (N,), `records` (N,). Returns (N, F), METEOR's own statistics.
    """
    return _meteor_statistics(texts, [record.references for record in records])


def measure_meteor_e2e(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """METEOR 1.5 on `stanford_tokens`, as e2e-metrics runs it.

    `texts` (N,), `records` (N,). Returns (N, F), METEOR's own statistics.
    """
    return _meteor_statistics(*_tokenised(texts, records))


def _meteor_statistics(texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    rows = [[*expected, text] for text, expected in zip(texts, references, strict=True)]
    lines = [" ||| ".join(" ".join(text.replace("|||", " ").split()) for text in row) for row in rows]
    statistics = np.array([line.split() for line in _meteor([f"SCORE ||| {line}" for line in lines])], float)
    length, expected, matched, chunks = statistics[:, 0], statistics[:, 1], statistics[:, 4:20], statistics[:, 20]
    perfect = (matched[:, 0::2].sum(1) == length) & (matched[:, 1::2].sum(1) == expected) & (chunks == 1)
    statistics[perfect, 20] = 0  # as METEOR adds them up: a text equal to a reference is not broken into chunks
    return statistics


def combine_meteor(sums: np.ndarray) -> np.ndarray:
    """`sums` (R, F) over rows. Returns (R,), 0 to 1; METEOR's program makes the score of the sums."""
    statistics = [" ".join(f"{value:.12g}" for value in row) for row in sums.tolist()]
    return np.array([float(line) for line in _meteor([" ||| ".join(["EVAL", *statistics])])[: len(sums)]])


def _meteor(lines: Sequence[str]) -> list[str]:
    folder = require_java() / "meteor"
    return _java(
        ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"],
        folder,
        lines,
    )


def measure_cider(texts: Sequence[str], records: Sequence[Example]) -> np.ndarray:
    """CIDEr-D (Vedantam et al. 2015) on `stanford_tokens`, as e2e-metrics runs it; document frequencies are those of
    the references of the rows at hand, so compare it only on the same rows.

    `texts` (N,), `records` (N,). Returns (N, 2): scores and 1.
    """
    written, references = _tokenised(texts, records)
    scorer = import_module("pycocoevalcap.cider.cider_scorer").CiderScorer(n=4, sigma=6.0)
    for text, expected in zip(written, references, strict=True):
        scorer += (text, expected)
    _, scores = scorer.compute_score()
    return np.stack([scores, np.ones(len(scores))], axis=1)


SCORES = {
    "METEOR": (measure_meteor, combine_meteor), "METEOR, tokens of E2E": (measure_meteor_e2e, combine_meteor),
    "CIDEr, as E2E": (measure_cider, combine_mean),
}  # fmt: skip


def score(name: str, texts: Sequence[str], records: Sequence[Example]) -> float:
    """One of `SCORES` of written texts (N,) and their records (N,)."""
    measure, combine = SCORES[name]
    return float(combine(measure(texts, records).sum(0, keepdims=True))[0])


def main() -> None:
    """A line per run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | rows | " + " | ".join(SCORES) + " |\n|---|---:|" + "---:|" * len(SCORES))
    for folder in parser.parse_args().runs:
        rows = read_run(folder).lines(PREDICTIONS)
        texts = [str(row["written"]) for row in rows]
        records = [Example(str(row["text"]), references=tuple(row["references"])) for row in rows]
        scores = (score(name, texts, records) for name in SCORES)
        print(f"| {folder.name} | {len(rows):,} | " + " | ".join(f"{value:.4f}" for value in scores) + " |")


if __name__ == "__main__":
    main()
