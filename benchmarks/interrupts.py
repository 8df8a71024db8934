"""Ctrl-C at random moments of `fit`, `predict`, `export` and `study`: how each process ends, and what it leaves.

    python benchmarks/interrupts.py [--trials 48] [--seed 0] [--keep FOLDER]

Each verb first runs undisturbed, which says how long it takes. Then processes of it are interrupted after a random
share of that time, a third of them once more within half a second, as people do who press twice. Counted as a fault:

- an exit code that is not 130 (128 + SIGINT), a traceback, or a process that has not ended after a minute;
- a run folder, export or file of predictions that is there and not whole;
- the same command, started undisturbed, that does not end with 0 or leaves temporary files behind. Each trial starts on
  what the one before it left; an undisturbed start comes after a few trials of a verb (--undisturbed), and the results
  are then removed.

A process whose signal comes after its work was done, or before Python has come to our first line (tens of milliseconds,
where it dies of the signal, as shells show by the same 130), is counted apart. The signal goes to the whole group of
processes, as a terminal sends it. The model is a tiny random BERT. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.errors import HandfulError
from handful.runs.store import read_run

WITHIN = 0.5
"""Seconds after the first Ctrl-C within which the second comes."""

PATIENCE = 60.0
"""Seconds after which a process that was interrupted should have ended."""

RECIPE = """
name = "s"
model = "{model}"
tasks = [{{ name = "t", path = "{data}" }}]
shots = [16]
seeds = 2
test_rows = 10
methods = ["head", "prefix-subspace"]
set = {{ training.epochs = 20, run.max_length = 32 }}
"""


@dataclass(frozen=True)
class Subject:
    """A command, the file or folder in which its results appear, and what is wrong with what is there."""

    command: list[str]
    results: Path
    wrong: Callable[[Path], str | None]


def main() -> None:
    """The campaign; exits with 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", default=["fit", "predict", "export", "study"])
    parser.add_argument("--undisturbed", type=int, default=4, help="Trials of a verb between undisturbed starts.")
    parser.add_argument("--keep", type=Path, help="Folder for what was made, which is kept.")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored, also for our children
    with tempfile.TemporaryDirectory() as name:
        folder = (arguments.keep or Path(name)).resolve()
        folder.mkdir(exist_ok=True)
        subjects = {verb: subject for verb, subject in make_subjects(folder).items() if verb in arguments.verbs}
        faults = campaign(subjects, arguments.trials, arguments.undisturbed, random.Random(arguments.seed))
    sys.exit(1 if faults else 0)


def campaign(subjects: dict[str, Subject], trials: int, every: int, draw: random.Random) -> int:
    """Interrupt the subjects in turn; prints each trial and a table, and returns the number of faults."""
    lengths = {verb: undisturbed(subject) for verb, subject in subjects.items()}
    for subject in subjects.values():
        clear(subject.results)
    print("seconds undisturbed: " + ", ".join(f"{verb} {seconds:.1f}" for verb, seconds in lengths.items()), flush=True)
    counts: dict[str, Counter[str]] = {verb: Counter() for verb in subjects}
    for trial in range(trials):
        verb = list(subjects)[trial % len(subjects)]
        subject, number = subjects[verb], trial // len(subjects)
        moment = draw.uniform(0, lengths[verb])
        second = draw.uniform(0, WITHIN) if draw.random() < 1 / 3 else None
        ended, problems = interrupt(subject, moment, second)
        if number % every == every - 1:
            problems += restart(subject)
        if ended == "done before":
            lengths[verb] *= 0.7  # the machine has less to do than before
        if ended == "done before" or number % every == every - 1:
            clear(subject.results)
        counts[verb].update([ended, *(["twice"] if second is not None else []), *(["fault"] if problems else [])])
        twice = "" if second is None else f" and {second:.2f} s later"
        print(f"{verb} at {moment:.2f} s{twice}: {ended} {'; '.join(problems)}", flush=True)
    kinds = ["interrupted", "twice", "before Python was up", "done before", "fault"]
    print(f"\n| verb | seconds, lately | {' | '.join(kinds)} |\n|---|{'---:|' * (len(kinds) + 1)}")
    for verb, found in counts.items():
        print(f"| {verb} | {lengths[verb]:.1f} | {' | '.join(str(found[kind]) for kind in kinds)} |")
    return sum(found["fault"] for found in counts.values())


def interrupt(subject: Subject, moment: float, second: float | None) -> tuple[str, list[str]]:
    """Run it and send SIGINT after `moment` seconds, perhaps once more; returns how it ended and what was wrong."""
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            subject.command, stdout=subprocess.DEVNULL, stderr=talk, env=environment(), start_new_session=True
        )
        time.sleep(moment)
        was_done = process.poll() is not None
        for pause in (0.0, second):
            if pause is not None:
                time.sleep(pause)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return "hangs", [f"has not ended {PATIENCE:.0f} s after Ctrl-C"]
        talk.seek(0)
        said = talk.read().decode(errors="replace")
    problems = []
    if found := subject.wrong(subject.results):
        problems.append(found)
    if was_done or code == 0:
        return "done before", problems
    if code == -signal.SIGINT:
        return "before Python was up", problems
    if "Traceback" in said:
        problems.append("a traceback")
    if code != 128 + signal.SIGINT:
        problems.append(f"exit code {code}")
    return "interrupted", [*problems, said[-2000:]] if problems else []


def restart(subject: Subject) -> list[str]:
    """What is wrong with the same command, started once more."""
    done = subprocess.run(
        subject.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), text=True, check=False
    )
    problems = [f"started again: exit code {done.returncode}: {done.stderr[-1000:]}"] if done.returncode else []
    if found := subject.wrong(subject.results):
        problems.append(f"started again: {found}")
    left = [path.name for path in subject.results.parent.rglob(".*") if path.name != ".lock"]
    return [*problems, f"started again: left {', '.join(left)}"] if left else problems


def undisturbed(subject: Subject) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    if problems := restart(subject):
        sys.exit("; ".join(problems))
    return time.perf_counter() - started


def clear(results: Path) -> None:
    """Nothing there, for the next trial."""
    if results.is_dir():
        shutil.rmtree(results)
    results.unlink(missing_ok=True)


def make_subjects(folder: Path) -> dict[str, Subject]:
    """The commands, on files in this folder. Each has a folder of its own for results."""
    model, data, new = folder / "tiny", folder / "data.csv", folder / "new.csv"
    tiny_model("bert").save_pretrained(model)
    tiny_tokenizer("bert").save_pretrained(model)
    rows = [(f"{'good nice fast' if i % 2 else 'bad late broken'} {i}", "p" if i % 2 else "n") for i in range(60)]
    data.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    new.write_text("text\n" + "".join(f"a text of number {i}\n" for i in range(5000)), encoding="utf-8")
    recipe = folder / "r.toml"
    recipe.write_text(RECIPE.format(model=model, data=data), encoding="utf-8")
    fit = ["fit", data, "--model", model, "--set", "training.epochs=60", "--set", "run.max_length=32"]
    subprocess.run(handful(*fit, "--output", folder / "trained"), check=True, capture_output=True, env=environment())
    run = next((folder / "trained").glob("*/run.json")).parent
    places = {verb: folder / verb for verb in ("fit", "predict", "export", "study")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    runs, exported, out = places["fit"] / "runs", places["export"] / "out", places["predict"] / "out.csv"
    study = places["study"] / "out"
    return {
        "fit": Subject(handful(*fit, "--output", runs), runs, wrong_runs),
        "predict": Subject(handful("predict", run, "--input", new, "--output", out), out, wrong_predictions),
        "export": Subject(handful("export", run, "--output", exported, "--overwrite"), exported, wrong_export),
        "study": Subject(
            handful("study", recipe, "--engine", "processes", "--workers", "1", "--output", study), study, wrong_runs
        ),
    }


def wrong_runs(root: Path) -> str | None:
    """Folders of runs that cannot be read, or are not whole."""
    for path in [*root.glob("*"), *root.glob("runs/*")]:
        if path.is_dir() and not path.name.startswith(".") and path.name not in ("runs", "trials", "failed"):
            try:
                read_run(path).check()
            except HandfulError as error:
                return f"a run folder that is not whole: {error}"
    return None


def wrong_predictions(path: Path) -> str | None:
    """A file of predictions that lacks rows."""
    if path.exists() and (count := len(path.read_text(encoding="utf-8").splitlines())) != 5001:
        return f"{count} lines of predictions"
    return None


def wrong_export(folder: Path) -> str | None:
    """An export that lacks a file."""
    if not folder.exists():
        return None
    try:
        json.loads((folder / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"an export that is not whole: {error}"
    return None


def handful(*arguments: object) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "handful", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, nothing from the network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    main()
