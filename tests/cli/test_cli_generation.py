"""A file of sources and references on the command line: as little to say as for labels, on a tiny T5."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from handful.backbone.tiny import tiny_model, tiny_tokenizer
from handful.cli.main import run
from handful.runs.store import read_run

QUICK = (
    "--shots", "6", "--set", "epochs=1", "--set", "rank=2", "--set", "max_length=24", "--set", "beams=1",
    "--set", "max_new_tokens=3", "--set", "target_length=300",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny T5."""
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tiny_model("t5", purpose="lm").save_pretrained(folder)
    tiny_tokenizer("t5").save_pretrained(folder)
    return folder


@pytest.fixture
def by_default(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny T5 takes the place of the model that a run takes where none is named."""
    monkeypatch.setattr("handful.runs.spec.WRITING_MODEL", str(model))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten records; every reference is longer than the decoder of a tiny T5, which has 256 positions."""
    path = tmp_path_factory.mktemp("data") / "places.csv"
    rows = "".join(f"name = {i},{'ab ' * 90}{i}\n" for i in range(10))
    path.write_text(f"source,reference\n{rows}")
    return path


@pytest.fixture(scope="module")
def written(places: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that writes."""
    root = tmp_path_factory.mktemp("written")
    assert run(["fit", str(places), "--model", str(model), "--output", str(root), *QUICK]) == 0
    return next(root.glob("*/run.json")).parent


@pytest.mark.usefixtures("by_default")
def test_a_file_of_references_needs_neither_model_nor_method(command: Any, places: Path, tmp_path: Path) -> None:
    done = command("fit", places, *QUICK, "--output", tmp_path, "--set", "selection=best", "--dev", "carved")
    assert done.code == 0, done.err
    for said in (
        "method = lora, model = ",
        "(none was named; the default for texts to write)",
        "generation.beams = 1, generation.max_new_tokens = 3, generation.target_length = 300, "
        "generation.references = all",
        "development rows are judged by the NLL of a reference's tokens",
        "6 references are longer than 256 tokens, and cut",
    ):
        assert said in done.err, said
    headline, *scores = done.out.splitlines()[:4]
    assert headline.startswith("bleu ")
    assert [line.split()[0] for line in scores] == ["bleu", "chrf++", "rouge-l"]
    assert all("[" in line for line in scores)
    assert "|eff:no|tok:13a|" in scores[0]


@pytest.mark.usefixtures("by_default")
def test_check_says_what_fit_will_do(command: Any, places: Path, tmp_path: Path) -> None:
    done = command("check", places, *QUICK, "--output", tmp_path / "runs")
    assert done.code == 0, done.err
    assert "method = lora, model = " in done.err
    assert "texts     6 references are longer than 256 tokens, and cut" in done.out
    assert "tiny-t5: t5 (encoder-decoder), 3 layers\n" in done.out
    assert "disagreement" not in done.out


def test_check_says_what_a_simplex_is_not_asked_for_where_texts_are_generated(
    command: Any, places: Path, model: Path, tmp_path: Path
) -> None:
    options = (places, "--model", model, "--shots", "6", "--output", tmp_path / "runs")
    done = command("check", *options, "--method", "prefix-subspace")
    assert done.code == 0, done.err
    assert "stochastic validation, the predictors 'ensemble' and 'draw', and disagreement are for labels" in done.out
    assert "disagreement" not in command("check", *options, "--method", "prefix").out
    refused = command("check", *options, "--method", "prefix-subspace", "--set", "validation=pooled")
    assert refused.code == 2
    assert "training.validation: texts are judged at the midpoint, found 'pooled'" in refused.err


def test_a_run_that_writes_is_used_and_exported(command: Any, places: Path, written: Path, tmp_path: Path) -> None:
    done = command("predict", written, "--input", places, "--text", "source")
    assert done.code == 0, done.err
    assert list(csv.DictReader(io.StringIO(done.out)).fieldnames or ())[-2:] == ["reference", "written"]
    assert len(done.out.splitlines()) == 11
    assert "were cut" not in done.err
    (tmp_path / "long.csv").write_text(f"source\n{'ab ' * 20}\nshort\n")
    cut = command("predict", written, "--input", tmp_path / "long.csv", "--text", "source")
    assert "1 of 2 texts were cut to 24 tokens" in cut.err
    report = command("export", written, "--output", tmp_path / "out", "--json")
    assert report.code == 0, report.err
    assert (tmp_path / "out" / "generation_config.json").is_file()
    card = (written / "README.md").read_text()
    assert "pooling" not in card.partition("All settings")[0]
    assert "longer than 256 tokens, and cut." in card


def test_other_weights_are_no_start(command: Any, places: Path, written: Path, tmp_path: Path) -> None:
    tiny_model("t5", purpose="lm", seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer("t5").save_pretrained(tmp_path / "other")
    options = ("--model", tmp_path / "other", "--output", tmp_path / "runs", *QUICK, "--seed", 0)
    refused = command("fit", places, *options, "--init-from", written)
    assert refused.code == 1
    assert "trained on other weights of" in refused.err and "give the model it was trained on" in refused.err
    assert list((tmp_path / "runs").glob("*/run.json")) == []


def test_python_says_what_a_run_that_writes_cannot_do(written: Path) -> None:
    import handful
    from handful.errors import ConfigError

    fitted = handful.load(written)
    assert fitted.run is not None and fitted.run.key == read_run(written).key
    texts = fitted.write(["name = 1", "name = 2"], beams=2, max_new_tokens=2)
    assert len(texts) == 2
    assert fitted.predict(["name = 1"]) == fitted.write(["name = 1"])
    for call in (fitted.predictions, fitted.disagreement, fitted.predict_proba):
        with pytest.raises(ConfigError, match="this run generates texts and predicts no labels"):
            call(["name = 1"])
    with pytest.raises(ConfigError, match=r"did you mean 'beams'\?"):
        fitted.write(["name = 1"], beam=2)


def test_python_finds_what_cannot_be_scored_before_it_trains(
    places: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import handful
    from handful.errors import DataError

    monkeypatch.setattr("handful.api.train", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(DataError, match="metric 'slot-error'"):
        handful.fit(places, model=str(model), columns={"metric": "slot-error"})
