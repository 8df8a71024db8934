"""The card of a run: its README.md, whose numbers all come from `run.json`.

The front matter is what the Hugging Face Hub reads. Texts that come from data (labels, names, notes) are escaped, so
that no Markdown or HTML in them takes effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from handful.evaluation.baseline import Baseline, beside
from handful.evaluation.estimate import Estimate
from handful.evaluation.metrics import get_metric
from handful.objectives import objective_of
from handful.runs.metadata import (
    front_matter,
    hub_dataset,
    public_model,
    public_origin,
    score_fields,
    task_fields,
    without_paths,
)
from handful.runs.reading import cut_sentences, dropped_sentences, unknown_sentences

_SHOWN_LABELS = 20
_LONGEST_TEXT = 200


def run_card(record: Mapping[str, Any]) -> str:
    """Markdown for `README.md`."""
    sections = (_front_matter, _about, _scores, _usage, _training, _limits)
    return "\n\n".join(section(record) for section in sections) + "\n"


def headline(record: Mapping[str, Any], name: Callable[[str], str] = repr) -> str:
    """The score that counts in one line, such as "accuracy 0.812 [0.770, 0.850] on 500 test rows", and the baseline.

    `name` shows a label.
    """
    metric = record["task"]["metric"]
    if metric not in record["scores"]:
        return "not scored: there were no test rows"
    score = Estimate.from_dict(record["scores"][metric])
    more = beside(metric, score, recorded_baseline(record), name)
    return f"{metric} {score} on {record['rows']['test']:,} test rows{more}"


def recorded_baseline(record: Mapping[str, Any]) -> Baseline | None:
    """The baseline of a run's record; None where it has none, as of generation and in records of older versions."""
    found = record.get("baseline")
    return None if found is None else Baseline.from_dict(found)


def untested_sentences(
    rows: Mapping[str, Any], classes: int, metrics: Collection[str] = (), name: Callable[[str], str] = repr
) -> list[str]:
    """A sentence on classes without a test row, by the "rows" of a record; none where every class has one.

    `classes` is how many there are in all, `metrics` are those of the scores that it is said beside.
    """
    untested = rows.get("untested_classes") or ()
    if not untested:
        return []
    more = f" and {len(untested) - _SHOWN_LABELS} more" if len(untested) > _SHOWN_LABELS else ""
    names = ", ".join(map(name, untested[:_SHOWN_LABELS])) + more
    one = len(untested) == 1
    verbs, it, its = (
        ("has no test row and is", "it", "it is") if one else ("have no test row and are", "them", "they are")
    )
    effect = f"; macro_f1 leaves {it} out where {its} never predicted, and counts {it} as 0 where {its}"
    return [f"{len(untested)} of {classes} classes {verbs} not scored: {names}{effect * ('macro_f1' in metrics)}"]


def left_out(record: Mapping[str, Any]) -> str | None:
    """In one sentence, how much of the model the gates of a run, or its pruning, let an export leave out."""
    adapter = record["adapter"]
    if "removable" not in adapter:
        return None
    compact = adapter.get("removable_compact", 0)
    more = f", and 'compact' {compact:.1%}" if compact > adapter["removable"] else ""
    return (
        f"closed {adapter['removed']:.1%} of the parameters in attention and feed-forward matrices; an export as "
        f"'dense' leaves out {adapter['removable']:.1%}{more}"
    )


def cut_references(rows: Mapping[str, Any]) -> list[str]:
    """A sentence on references that are too long to be learnt whole, by the "rows" of a record; none where none are."""
    count, most = rows.get("truncated_references"), rows.get("target_length")
    return [f"{count:,} references are longer than {most} tokens, and cut"] if count and most else []


def escaped_label(label: str) -> str:
    """A label in quotes, for Markdown."""
    return f"'{escape(label)}'"


def escape(text: object, longest: int = _LONGEST_TEXT) -> str:
    """A text of the data as it is, on one line, in Markdown: nothing in it is mark-up any more."""
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    line = "".join(letter for letter in line if letter.isprintable())
    line = re.sub(r"([\\`*_\[\]#|~$@]|:(?=//)|(?<=[wW]{3})\.)", r"\\\1", line)  # the last two: links without brackets
    line = re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line)  # a list or a rule
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _front_matter(record: Mapping[str, Any]) -> str:
    task, hub, method = record["task"], record["backbone"].get("hub_name"), record["spec"]["method"]["name"]
    dataset = hub_dataset(task["origin"])
    scores = {name: Estimate.from_dict(value) for name, value in record["scores"].items()}
    model = f"{task['name']}: {method} on {_model(record)}"
    return front_matter(
        {
            "library_name": "handful",
            **task_fields(task["kind"], method),
            "metrics": [task["metric"]],
            "base_model": hub,
            "base_model_relation": hub and "adapter",
            "datasets": [dataset] if dataset else None,
            **score_fields(model, task["name"], task["kind"], scores, dataset),
        }
    )


def _model(record: Mapping[str, Any]) -> str:
    """The pretrained model's name without the folder it is in here."""
    return public_model(record["backbone"]["name"], record["backbone"].get("hub_name"))


def _rows(record: Mapping[str, Any]) -> str:
    return objective_of(record["task"]["kind"]).rows_name


def _about(record: Mapping[str, Any]) -> str:
    task, rows = record["task"], record["rows"]
    method = record["spec"]["method"]["name"]
    labels = [escape(label) for label in task["labels"]]
    more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
    gives = objective_of(task["kind"]).gives(f"{', '.join(labels[:_SHOWN_LABELS])}{more}", len(labels))
    if task.get("members"):
        gives = f"an answer for any of {len(task['members'])} tasks that it is told, one inventory of skills for all"
    return "\n".join(
        (
            f"# {escape(task['name'])}: {method} on {escape(_model(record))}",
            "",
            f"A {task['kind']} model, trained on {rows['train']:,} {_rows(record)}. It gives {gives}.",
            "",
            f"**{headline(record, escaped_label)}** (95 % interval over test rows)",
        )
    )


def _scores(record: Mapping[str, Any]) -> str:
    if not record["scores"]:
        return "## Scores\n\nNone: no test rows were given or set apart."
    baseline = recorded_baseline(record)
    columns = ["metric", "score", "95 % interval", *(["baseline"] if baseline else []), "over", "interval by"]
    lines = ["## Scores", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, value in record["scores"].items():
        score = Estimate.from_dict(value)
        interval = "none" if score.low is None else f"{score.low:z.3f} to {score.high:z.3f}"
        constant = [f"{baseline.scores[name]:z.3f}" if name in baseline.scores else "none"] if baseline else []
        cells = [name, f"{score.mean:z.3f}", interval, *constant, f"{score.n:,} rows", score.method]
        lines.append(f"| {' | '.join(cells)} |")
    if baseline:
        lines += ["", f"Baseline: {baseline.describe(escaped_label)}.{_shares_note(baseline)}"]
    labels = len(record["task"]["labels"])
    lines += [
        f"\n{s[0].upper()}{s[1:]}." for s in untested_sentences(record["rows"], labels, record["scores"], escaped_label)
    ]
    if signatures := record.get("signatures"):
        lines += ["", *(f"- `{name}`: `{signature}`" for name, signature in signatures.items())]
    predictor, temperature = record["spec"]["run"]["predictor"], record["temperature"]
    origin = "fitted on the development rows" if temperature != 1 else "not fitted"
    probabilities = f" Temperature of the probabilities: {temperature:.3g} ({origin})."
    if threshold := record.get("threshold"):
        probabilities += f" {threshold_sentence(threshold['value'], threshold['reason'])}"
    lines += ["", f"Predictor: {predictor}.{probabilities if record['task']['labels'] else ''}"]
    return "\n".join([*lines, *_members(record)])


def threshold_sentence(value: float, reason: str) -> str:
    """When a label is predicted, and why then."""
    return f"A label is predicted where its probability is above {value:.3g}: {reason}."


def _shares_note(baseline: Baseline) -> str:
    """What a baseline of classes is where probabilities are scored."""
    probabilities = [name for name in baseline.scores if get_metric(name).needs == "probabilities"]
    return (
        f" For {', '.join(probabilities)} the shares of the classes among the training rows." if probabilities else ""
    )


def _members(record: Mapping[str, Any]) -> list[str]:
    """The tasks of an inventory, each with its score by its own metric."""
    members, scores = record["task"].get("members", ()), record.get("members", {})
    baselines = (record.get("baseline") or {}).get("members", {})
    lines = ["", "| task | metric | score | 95 % interval | baseline |", "|---|---|---|---|---|"] if members else []
    for member in members:
        name, metric = escape(member["name"]), member["metric"]
        constant = baselines.get(member["name"], {}).get("scores", {}).get(metric)
        shown = "" if constant is None else f"{constant:z.3f}"
        if found := scores.get(member["name"], {}).get(metric):
            score = Estimate.from_dict(found)
            interval = "none" if score.low is None else f"{score.low:z.3f} to {score.high:z.3f}"
            lines.append(f"| {name} | {metric} | {score.mean:z.3f} | {interval} | {shown} |")
        else:
            lines.append(f"| {name} | {metric} | not scored | | |")
    return lines


def _usage(record: Mapping[str, Any]) -> str:
    if members := record["task"].get("members"):
        name = escape(members[0]["name"])
        return f"""## Use

```sh
handful fit new.csv --init-from FOLDER --adapt mu                    # the next task, from a handful of rows
handful predict FOLDER --task NAME --input new.csv                   # NAME such as {name}
handful export FOLDER --task NAME --format peft --output out         # one task as an ordinary adapter
handful inventory list FOLDER
```

{_where_the_model_is(record)}"""
    text = '("a text", "its second text")' if objective_of(record["task"]["kind"]).pairs else '"a text"'
    probabilities = f"\nmodel.predict_proba([{text}])" if record["task"]["labels"] else ""
    return f"""## Use

```python
import handful

model = handful.load("path/to/this/folder")
model.predict([{text}]){probabilities}
model.export("out")  # for other libraries, in the format that suits it; `handful check` says which there are
```

or `handful predict FOLDER --input new.csv`, `handful export FOLDER --output out`.
{_where_the_model_is(record)}"""


def described_model(backbone: Mapping[str, Any]) -> str:
    """The family of a model, its kind, and how it pools where it does."""
    pooling = f", pooling {backbone['pooling']}" if backbone["pooling"] else ""
    return f"{backbone['family']} ({backbone['kind']}){pooling}"


def _where_the_model_is(record: Mapping[str, Any]) -> str:
    backbone = record["backbone"]
    return (
        f"The pretrained model ({escape(_model(record))}, {backbone['parameters']:,} parameters) is not in this "
        f"folder:\nit is loaded by its name, and its weights have to have the SHA-256 {backbone['fingerprint'][:12]}…"
    )


def _training(record: Mapping[str, Any]) -> str:
    fit, rows, backbone = record["fit"], record["rows"], record["backbone"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    facts = {
        "trained parameters": f"{fit['parameters']:,} ({fit['parameters'] / backbone['parameters']:.2%} of the model)",
        "steps": f"{fit['steps']:,}, weights of step {fit['chosen_step']:,}",
        "time": f"{fit['seconds']:.1f} s of training, {fit['scoring_seconds']:.1f} s of scoring",
        "rows": f"{rows['train']:,} to train, {rows['dev']:,} to select, {rows['test']:,} to test",
        "model": described_model(backbone),
        "data": escape(public_origin(record["task"]["origin"])),
        "date": record["created"],
        "versions": versions,
    }
    lines = ["## Training", "", *(f"- {name}: {fact}" for name, fact in facts.items())]
    notes = [*record["task"]["notes"], *record.get("notes", ())]
    notes += [f"{c['name']} = {json.dumps(c['value'])}: {c['reason']}" for c in record["choices"]]
    if notes:
        lines += ["", "Chosen for the user:", "", *(f"- {escape(without_paths(note))}" for note in notes)]
    spec = record["spec"] | {"model": public_model(record["spec"]["model"], record["backbone"].get("hub_name"))}
    settings = without_paths(json.dumps(spec, indent=1)).replace("`", "\\u0060")  # nothing may end the code block
    return "\n".join([*lines, "", f"All settings (preset {escape(record['preset'])}):", "", "```json", settings, "```"])


def _limits(record: Mapping[str, Any]) -> str:
    rows, fit = record["rows"], record["fit"]
    limits = [
        f"It has seen {rows['train']:,} {_rows(record)}. The interval says how the score of this very model may differ "
        "on other test rows; other training rows or another seed may move it further.",
    ]
    if not record["scores"]:
        limits.append("Nothing is known about how good it is.")
    if record["spec"]["training"]["selection"] == "best" and rows["dev"]:
        by = ", by the NLL of a reference's tokens" if objective_of(record["task"]["kind"]).generates else ""
        limits.append(
            f"The {rows['dev']:,} development rows chose the weights{by}, so scores on them are too good and left out."
        )
    found = (*cut_sentences(rows), *unknown_sentences(rows), *cut_references(rows), *dropped_sentences(rows))
    limits += [f"{sentence}." for sentence in found]
    if fit["stopped"]:
        limits.append(f"Training ended early: {escape(fit['stopped'])}")
    if record["task"]["labels"]:
        which = "its task's classes" if record["task"].get("members") else "the classes above"
        limits.append(f"Every text gets one of {which}, also a text that belongs to none of them.")
    limits.append("What is wrong or one-sided in the pretrained model or in the labelled rows is in here too.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])
