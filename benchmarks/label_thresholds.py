"""At what probability to predict a label: `python benchmarks/label_thresholds.py FOLDER ... --shots 100 300`.

A folder holds `task.json` with the names of the "labels", and `pool.jsonl` and `test.jsonl` of rows with "text" and
"labels". K rows of the pool, stratified (`label_set_split`), train one logistic regression per label on TF-IDF of words
and pairs of words, of which 200 directions are learned from the texts of the whole pool. Thresholds are chosen on
out-of-fold probabilities of five folds of the K rows, the model that is scored is trained on all of them. "own" are
thresholds per label that are not drawn towards the shared one, "one fold" is the shared threshold by one fold of five,
and "best" the shared threshold that is best on the test rows, which nobody may use.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from handful.data.label_sets import indicators
from handful.evaluation.label_set_metrics import score_label_sets
from handful.evaluation.thresholds import apply_thresholds, best_threshold, choose_thresholds
from handful.objectives.label_set_split import draw_label_sets
from handful.randomness import stream

METRICS = ("micro_f1", "macro_f1", "samples_f1", "subset_accuracy")
FOLDS = 5


def read(folder: Path, part: str, labels: list[str]) -> tuple[list[str], np.ndarray]:
    """Texts, and targets (N, C)."""
    rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], indicators([map(labels.index, row["labels"]) for row in rows], len(labels))


def probabilities(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Those of every label (N, C) by its own regression, or its share where all rows or none have it."""
    found = []
    for label in targets.T:
        if label.min() == label.max():
            found.append(np.full(len(test), (label.sum() + 0.5) / (len(label) + 1)))
        else:
            model = LogisticRegression(C=10.0, solver="liblinear").fit(train, label)
            found.append(model.predict_proba(test)[:, 1])
    return np.stack(found, axis=1)


def ways(out_of_fold: np.ndarray, targets: np.ndarray, fold: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Thresholds (C,) by the way in which they are chosen."""
    found = {how: choose_thresholds(out_of_fold, targets, names, how) for how in ("half", "shared", "per-label")}
    found["one fold"] = choose_thresholds(out_of_fold[fold == 0], targets[fold == 0], names)
    thresholds = {how: np.array(one.values) for how, one in found.items()}
    own = thresholds["shared"].copy()
    for label in np.flatnonzero(targets.any(0)):
        own[label] = best_threshold(out_of_fold[:, label], targets[:, label])[0]
    return {**thresholds, "own": own}


def run(folder: Path, shots: int, seeds: int) -> dict[str, np.ndarray]:
    """Scores (seeds, metrics) on the test rows, by way."""
    names = json.loads((folder / "task.json").read_text(encoding="utf-8"))["labels"]
    (texts, pool), (test_texts, test) = read(folder, "pool", names), read(folder, "test", names)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    encoder = make_pipeline(words, TruncatedSVD(200, random_state=0), Normalizer())
    features, test_features = encoder.fit_transform(texts), encoder.transform(test_texts)
    sets, scores = [np.flatnonzero(row).tolist() for row in pool], {}
    for seed in range(seeds):
        rows = [*draw_label_sets(sets, names, shots, generator=stream(seed, "split")).rows]
        own, targets, fold = features[rows], pool[rows], np.arange(shots) % FOLDS
        out_of_fold = np.zeros(targets.shape)
        for part in range(FOLDS):
            out_of_fold[fold == part] = probabilities(own[fold != part], targets[fold != part], own[fold == part])
        found = probabilities(own, targets, test_features)
        best = np.full(len(names), best_threshold(found.ravel(), test.ravel())[0])
        for way, thresholds in {**ways(out_of_fold, targets, fold, names), "best": best}.items():
            predicted = apply_thresholds(found, thresholds)
            scores.setdefault(way, []).append([score_label_sets(metric, predicted, test) for metric in METRICS])
    return {way: np.array(values) for way, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--shots", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print(
        f"| task | K | thresholds | {' | '.join(METRICS)} | micro_f1 better than half | macro_f1 better than shared |"
    )
    print("|---|---:|---|" + "---:|" * (len(METRICS) + 2))
    for folder in options.folder:
        for shots in options.shots:
            scores = run(folder, shots, options.seeds)
            for way, values in scores.items():
                means = " | ".join(f"{mean:.3f}" for mean in values.mean(0))
                micro = (values[:, 0] > scores["half"][:, 0]).sum()
                macro = (values[:, 1] > scores["shared"][:, 1]).sum()
                print(f"| {folder.name} | {shots} | {way} | {means} | {micro} | {macro} |", flush=True)


if __name__ == "__main__":
    main()
