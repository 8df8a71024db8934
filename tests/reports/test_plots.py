"""Drawings: whole SVG elements without colours of their own, ids that do not clash, texts that stay texts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from handful.evaluation.estimate import Estimate
from handful.reports.figure import (
    Curves,
    Dendrogram,
    Dots,
    GateMap,
    Intervals,
    Reliability,
    RoutingMap,
    Scores,
    Strips,
    Tradeoff,
    Triangle,
)
from handful.reports.plots import draw, short, swatch

LABELS = ("lora", "prefix")
HALF = Estimate(0.5, 0.4, 0.7, 5)
DRAWINGS = {
    "scores": Scores({"lora": [(50, HALF), (100, HALF)], "prefix": [(50, Estimate(0.5, None, None, 1))]}, "accuracy"),
    "intervals": Intervals([("lora", HALF), ("prefix", Estimate(-0.2, None, None, 1))], "advantage", 0.0),
    "curves": Curves([("lora", [(1, 0.5), (2, 0.6)]), ("lora", [(1, 0.4)]), ("prefix", [(1, 0.3)])], "dev accuracy"),
    "reliability": Reliability("lora", [(0.95, Estimate(1.0, 0.9, 1.0, 20), 0.9), (0.3, HALF, 0.1)], 0.2),
    "strips": Strips([("lora", [0.0, 4.0]), ("prefix", [3.0])], "seconds"),
    "dots": Dots([("area", {"lora": 3.0, "prefix": 0.0}), ("food", {"lora": 0.0, "prefix": 1.0})], "errors"),
    "logarithmic": Strips([("lora", [0.2, 4.0]), ("prefix", [3000.0])], "seconds"),
    "equal": Strips([("lora", [2.0, 2.0])], "seconds"),
    "triangle": Triangle([(1, 0, 0, 0.5), (0, 1, 0, 0.7), (0, 0, 1, 0.9)], "nll", True),
    "gate map": GateMap([("heads", {0: (0.5, 0.5, 0.0), 1: (0.0, 0.0, 1.0)}), ("units", {1: (1.0, 0.0, 0.0)})]),
    "tradeoff": Tradeoff({"lora": [(20.0, HALF), (0.0, HALF)]}, [("prefix", HALF)], 0.0, "removed, %", "f1", "left, %"),
    "lonely": Tradeoff({"lora": [(0.0, HALF)]}, [], 0.0, "removed, %", "f1"),
    "routing map": RoutingMap(["a", "b"], [("0", [[0.0, 2.0], [1.0, 1.0]]), ("1", [[4.1, 0.3], [2.0, 0.0]])], "layer"),
    "coarse routing": RoutingMap(["a"], [("model", [[1.0, 1.0]])], ""),
    "dendrogram": Dendrogram(["a", "b", "c"], [(0, 1, 0, 0.2, 0), (0.5, 2, 0.2, 1.1, 0)], "1 − cosine"),
    "alike": Dendrogram(["a", "b", "c"], [(0, 1, 0, 0, 0), (0.5, 2, 0, 0, 0)], "1 − cosine"),
    "flat": Triangle([(1, 0, 0, 0.5), (0, 1, 0, 0.5), (0, 0, 1, 0.5)], "nll", False),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_an_svg_element_in_colours_of_the_page(name):
    svg = draw(DRAWINGS[name], LABELS, "f-1")
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert "var(--ink)" in svg or "var(--muted)" in svg
    if name not in ("triangle", "flat"):  # the scale of losses is the same on any page
        assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= {"#000000"}
        assert "var(--series-0)" in svg
    assert not {element.tag for element in root.iter()} & {"style", "metadata", "script", "image"}
    assert {ElementTree.fromstring(svg).attrib["viewBox"].split()[0]} == {"0"}


@pytest.mark.parametrize("name", DRAWINGS)
def test_ids_begin_with_the_panels_name_and_references_find_them(name):
    root = ElementTree.fromstring(draw(DRAWINGS[name], LABELS, "f-1"))
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    assert ids
    assert all(one.startswith("f-1-") for one in ids)
    values = [value for element in root.iter() for key, value in element.items() if key != "id"]
    references = {found for value in values for found in re.findall(r"^#([\w-]+)$|url\(#([\w-]+)\)", value)}
    assert {a or b for a, b in references} <= ids


def test_the_same_drawing_is_the_same_text():
    assert draw(DRAWINGS["scores"], LABELS, "x") == draw(DRAWINGS["scores"], LABELS, "x")


def test_nothing_of_matplotlib_is_changed():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(DRAWINGS["scores"], LABELS, "x")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "label",
    [
        "<script>alert(1)</script>", "</style>", "a & b", "$x^2$", r"$\undefined$", "\x00\x1b[31m", "日本語", "#050000",
        "x" * 99,
    ],
)  # fmt: skip
def test_labels_stay_texts(label, recwarn):
    svg = draw(Intervals([(label, HALF)], f"advantage of {label}", 0.0), (label,), "f")
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()).strip() for element in root.iter("text")]
    assert short(label) in texts
    assert not {element.tag for element in root.iter()} & {"style", "script"}
    assert not recwarn.list


def test_every_one_of_many_labels_has_a_mark_of_its_own():
    marks = [re.sub(r"mark-\d+", "mark", swatch(index)) for index in range(40)]
    shapes = [re.sub(r'(id="|href="#)[^"]*"', "", mark) for mark in marks]
    assert len(set(shapes)) == 40


def test_an_interval_is_drawn_where_it_lies():
    """Ends of the line in the drawing against the ticks of the axis."""
    root = ElementTree.fromstring(draw(Intervals([("lora", Estimate(0.5, 0.2, 0.9, 5))], "x", 0.0), ("lora",), "f"))
    lines = [e.attrib["d"] for e in root.iter("path") if "var(--series-0)" in e.attrib.get("style", "")]
    ends = next([float(x) for x in re.findall(r"[ML] ([\d.]+)", d)] for d in lines if d.count("L") == 1)
    ticks = {}
    for group in root.iter("g"):
        if re.match(r"f-xtick_\d+$", group.attrib.get("id", "")):
            (use,), (text,) = list(group.iter("use")), list(group.iter("text"))
            ticks["".join(text.itertext())] = float(use.attrib["x"])
    scale = (ticks["0.8"] - ticks["0.0"]) / 0.8
    assert [(end - ticks["0.0"]) / scale for end in ends] == pytest.approx([0.2, 0.9], abs=1e-3)
