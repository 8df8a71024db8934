"""The page, in headless Chromium: it opens without complaint and without network, sorts, and fits a phone."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from handful.evaluation.estimate import Estimate
from handful.reports.html import render_page
from handful.reports.report import Report, read_report
from handful.reports.table import Table
from handful.reports.text import to_markdown

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,900",
)  # fmt: skip
LIGHT, DARK = "light", "dark"


def report_of(folder: Path) -> Report:
    return read_report([folder])


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium. Where it is missing the test is skipped, or fails where nothing may be skipped."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        reason = "needs chromium and chromedriver (apt-get install chromium chromium-driver)"
        if os.environ.get("HANDFUL_REQUIRE_SHARED") == "1":
            pytest.fail(f"{reason}, and HANDFUL_REQUIRE_SHARED=1 is set")
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture(scope="session")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the study."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(report_of(study)), encoding="utf-8")
    return path


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Open:
    """`open_page(path, width=1200, scheme="light")`: the browser on that page, of which nothing was complained."""

    def open_(path: Path, width: int = 1200, scheme: str = LIGHT) -> Any:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        return browser

    return open_


def test_it_opens_with_everything_in_it(open_page, page, study):
    browser, report = open_page(page), report_of(study)
    assert browser.title == "few-shot trial"
    requests = re.findall(r'"Network.requestWillBeSent".*?"url":"([^"]+)"', str_of(browser.get_log("performance")))
    assert requests
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data"}
    assert [url for url in requests if url.startswith("file:")] == [page.as_uri()]
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.panel svg')].map(s => [s.getBoundingClientRect().width,"
        " s.getBoundingClientRect().height, s.querySelectorAll('path').length])"
    )
    assert len(drawn) == sum(len(figure.panels) for figure in report.figures)
    assert all(width > 200 and height > 60 and paths > 3 for width, height, paths in drawn)
    text = browser.execute_script("return document.body.innerText")
    for line in (*report.headline, *report.reservations, "out of memory in step 3", "damaged"):
        assert line in text, line


def str_of(log: list[dict[str, Any]]) -> str:
    return "\n".join(entry["message"] for entry in log)


def test_tables_sort_by_a_click(open_page, page):
    browser = open_page(page)

    def click(table: str, column: int) -> tuple[list[str], str]:
        return browser.execute_script(
            f"const t = document.getElementById('table-{table}');"
            f"t.tHead.rows[0].cells[{column}].querySelector('button').click();"
            f"return [[...t.tBodies[0].rows].map(r => r.cells[{column}].dataset.key),"
            f" t.tHead.rows[0].cells[{column}].getAttribute('aria-sort')]"
        )

    for table, column in (("runs", 9), ("scores-100-shots", 1), ("ranks", 1)):
        keys, order = click(table, column)
        assert order == "ascending"
        assert [float(key) for key in keys] == sorted(map(float, keys))
        again, order = click(table, column)
        assert (again, order) == (keys[::-1], "descending")
    assert click("runs", 3)[0] == ["head"] * 8 + ["lora"] * 8 + ["prefix-subspace"] * 8
    assert browser.execute_script("return document.querySelectorAll('#table-runs [aria-sort]').length") == 1


def test_rows_stay_whole_when_sorted_and_empty_cells_stay_last(open_page, fakes, tmp_path):
    fakes.run("lora"), fakes.run("head", changes={"scores": {}}), fakes.run("prefix")
    path = tmp_path / "r.html"
    path.write_text(render_page(report_of(fakes.root)), encoding="utf-8")
    rows = "[...document.getElementById('table-runs').tBodies[0].rows].map(r => r.textContent)"
    browser = open_page(path)
    before = browser.execute_script(f"return {rows}")
    click = "document.querySelectorAll('#table-runs thead button')[5].click();"
    for _ in range(2):
        after = browser.execute_script(f"{click} return {rows}")
        assert sorted(after) == sorted(before)
        assert "head" in after[-1]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_it_fits_a_phone_and_only_tables_scroll(open_page, page, scheme):
    browser = open_page(page, 390, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    )
    assert wide > 3
    moved = browser.execute_script(
        "const s = document.getElementById('table-runs').parentElement; s.scrollLeft = 300;"
        "const c = s.querySelector('tbody td'); return c.getBoundingClientRect().left - s.getBoundingClientRect().left"
    )
    assert moved == 0  # the first column stays
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('.panel svg text')].map(t =>"
        " t.getBoundingClientRect().height))"
    )
    assert smallest > 9


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_everything_can_be_seen_in_the_light_and_in_the_dark(open_page, page, scheme):
    browser = open_page(page, 1200, scheme)
    names = ("--paper", "--ink", "--muted", "--accent", "--caution", *(f"--series-{index}" for index in range(8)))
    colours = {
        name: browser.execute_script(f"return getComputedStyle(document.documentElement).getPropertyValue('{name}')")
        for name in names
    }
    paper = luminance(colours.pop("--paper"))
    assert (paper > 0.5) == (scheme == LIGHT)
    for name, colour in colours.items():
        needed = 2.7 if name.startswith("--series") else 4.5  # WCAG's 4.5 for text; marks also differ in shape
        assert contrast(paper, luminance(colour)) > needed, name
    label = browser.execute_script("return getComputedStyle(document.querySelector('.panel svg text')).fill")
    expected = colours["--muted"], colours["--ink"]
    assert "#{:02x}{:02x}{:02x}".format(*map(int, re.findall(r"\d+", label)[:3])) in expected


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour.strip()[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_every_figure_and_table_can_be_had_as_csv(open_page, page, study):
    browser, report = open_page(page), report_of(study)
    links = browser.execute_script(
        "return [...document.querySelectorAll('a[download]')].map(a => [a.getAttribute('download'), a.href])"
    )
    contents = {name: base64.b64decode(link.partition("base64,")[2]).decode() for name, link in links}
    tables = [*(figure.numbers for figure in report.figures), *report.tables]
    assert contents == {f"{table.name}.csv": table.csv() for table in tables}


@pytest.mark.parametrize(("width", "scheme"), [(1200, LIGHT), (390, DARK)])
def test_gates_are_drawn_and_fit(open_page, fakes, tmp_path, width, scheme):
    for seed in range(2):
        fakes.run("whole", seed=seed)
        for label, target in (("gates, 20 %", 0.2), ("gates, 40 %", 0.4)):
            fakes.run(label, seed=seed, gates=target)
    fakes.run("published", gates=0.3, published=True)
    path = tmp_path / "r.html"
    path.write_text(render_page(report_of(fakes.root)), encoding="utf-8")
    browser = open_page(path, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#gates .panel svg')].map(s => [s.getBoundingClientRect().width,"
        " s.getBoundingClientRect().height, Math.min(...[...s.querySelectorAll('text')].map(t =>"
        " t.getBoundingClientRect().height))])"
    )
    assert len(drawn) == 1 + 5 + 3
    assert all(wide > 200 and high > 60 and text > 8 for wide, high, text in drawn)
    legend = "[...document.querySelectorAll('#figure-gate-map .legend li')]"
    assert browser.execute_script(f"return {legend}.map(l => l.innerText.trim())") == ["open", "soft", "closed"]
    fills = browser.execute_script(
        f"return {legend}.map(l => [...l.querySelectorAll('path')].map(p => getComputedStyle(p)).map(s =>"
        " s.fill + s.opacity).join())"
    )
    assert len(set(fills)) == 3


@pytest.mark.parametrize(("width", "scheme"), [(1200, LIGHT), (390, DARK)])
def test_what_was_written_is_drawn_and_can_be_read(open_page, fakes, tmp_path, width, scheme):
    forms = {"prompt": "{} is a cheap pub.", "lora": "{} is a pub by the river.", "full": "{} is a coffee shop."}
    for label, form in forms.items():
        fakes.writing(label, written=form)
    path = tmp_path / "r.html"
    path.write_text(render_page(report_of(fakes.root)), encoding="utf-8")
    browser = open_page(path, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#figure-slot-errors .panel')].map(p => [p.getBoundingClientRect().top,"
        " p.innerText, Math.min(...[...p.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))])"
    )
    assert [text.split()[1] for _, text, _ in drawn] == ["kind", "slot"]
    assert (drawn[0][0] == drawn[1][0]) == (width > 600)  # beside each other, from the top
    assert all(height > 8 for _, _, height in drawn)
    for slot in ("area", "eatType", "priceRange"):
        assert slot in drawn[1][1]
    legend = "return [...document.querySelectorAll('#figure-slot-errors .legend li')].map(l => l.innerText.trim())"
    assert browser.execute_script(legend) == sorted(forms)
    cells, widths = browser.execute_script(
        "const c = [...document.querySelectorAll('#table-examples-e2e tbody td:not(:first-child)')];"
        "return [c.map(c => c.innerText), c.map(c => c.getBoundingClientRect().width)]"
    )
    assert min(widths) > 200  # not a word a line
    assert {text.partition(" is ")[2] for text in cells[-9:]} == {form[6:] for form in forms.values()}


@pytest.mark.parametrize(("width", "scheme"), [(1200, LIGHT), (390, DARK)])
def test_24_tasks_by_24_routers_by_8_skills_can_be_read(open_page, fakes, tmp_path, width, scheme):
    fakes.run("poly", "many", routing={})
    path = tmp_path / "r.html"
    path.write_text(render_page(report_of(fakes.root)), encoding="utf-8")
    browser = open_page(path, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#figure-routing-map-1 .panel svg')].map(s =>"
        " [s.getBoundingClientRect().width, [...s.querySelectorAll('text')].map(t => t.getBoundingClientRect())"
        ".map(r => [r.top, r.bottom, r.left, r.right])])"
    )
    assert len(drawn) == 4
    for panel, texts in drawn:
        assert panel > 300
        assert len(texts) == 24 + 6 + 1
        assert min(bottom - top for top, bottom, *_ in texts) > 8
        rows = sorted(texts, key=lambda text: text[0])[:24]
        assert all(low[0] >= high[1] - 1.5 for high, low in pairwise(rows))  # none on another
        assert max(right for *_, right in rows) < panel / 3 + min(left for *_, left, _ in rows) + 20
    marks = browser.execute_script(
        "return [...document.querySelectorAll('#figure-routing-map-1 .legend path')].map(p =>"
        " getComputedStyle(p).opacity)"
    )
    assert len(set(marks)) == 6


HOSTILE = (
    "<script>alert(1)</script>", "</style><h1>x", "</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}",
    "$\\alpha$", "<!--", "' onmouseover='alert(1)", "&lt;b&gt;", "javascript:alert(1)",
)  # fmt: skip


def test_texts_of_the_data_stay_texts(open_page, fakes, tmp_path):
    for label, task in zip(HOSTILE, reversed(HOSTILE), strict=True):
        for name in (label, HOSTILE[0]):
            fakes.run(name, task, labels=(label, "no"), study=label, landscape=True, changes={
                "task__origin": label, "backbone__name": label, "fit__stopped": label, "versions__torch": label,
            })  # fmt: skip
    fakes.fail("job", HOSTILE[0])
    path = tmp_path / "r.html"
    path.write_text(render_page(report_of(fakes.root)), encoding="utf-8")
    browser = open_page(path)
    counts = browser.execute_script(
        "return ['script', 'style', 'img', 'h1', 'iframe', '[onmouseover]', '[onerror]'].map(s =>"
        " document.querySelectorAll(s).length)"
    )
    assert counts == [1, 1, 0, 1, 0, 0, 0]
    assert (
        browser.execute_script("return document.querySelectorAll('a:not([download]):not([href^=\"#\"])').length") == 0
    )
    text = browser.execute_script("return document.body.textContent")
    for hostile in HOSTILE:
        assert hostile in text, hostile
    assert "49" not in browser.title


def test_the_page_forbids_what_it_does_not_bring(page):
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "script-src 'sha256-" in policy[1]
    assert not re.findall(r"""(?:src|href)=(?!["']?(?:data:|#))""", text)
    assert "url(" not in text.replace("url(#", "")


def test_a_page_names_no_folders_of_this_machine_and_scores_have_three_decimals(fakes):
    origin, model = "/home/me/data/a.csv, /home/me/data/b.csv", "/home/me/models/tiny"
    changes = {"task__origin": origin, "backbone__name": model, "backbone__hub_name": None}
    for seed in range(2):
        fakes.run("lora", seed=seed, changes=changes)
    report = read_report([fakes.root])
    page = render_page(report)
    assert "/home/me" not in page and "/home/me" not in to_markdown(report)
    assert "a.csv, b.csv" in page and ">tiny<" in page
    table = Table("t", "T", ("a", "b"), ((Estimate(0.5, 0.4, 0.6, 9, 0.95, "x"), 0.5), (0.25, 0.25)))
    assert table.markdown().splitlines()[2:] == ["| 0.500 [0.400, 0.600] | 0.5 |", "| 0.250 | 0.25 |"]
