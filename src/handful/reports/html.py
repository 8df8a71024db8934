"""A report as one page that needs nothing else: style, script, drawings and CSV files are all inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from handful import __version__
from handful.evaluation.estimate import Estimate
from handful.reports.figure import OPENNESS, SHARES, Figure
from handful.reports.report import Report
from handful.reports.table import Table, Value, shown_interval, shown_number, sort_key

_TEMPLATES = files("handful.reports") / "templates"


def render_page(report: Report) -> str:
    """The page. Every text of the data is escaped; a policy in the page itself forbids what it does not bring along.

    Raises: ConfigError where matplotlib is missing.
    """
    from handful.reports import plots

    def swatches(figure: Figure) -> Callable[[int], str]:
        return {OPENNESS: plots.openness_swatch, SHARES: plots.share_swatch}.get(figure.palette, plots.swatch)

    style, script = (_TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "interval": _interval, "sort_key": sort_key, "csv_link": _csv_link}
    environment.globals |= {
        "draw": lambda panel, figure, name: Markup(plots.draw(panel.drawing, figure.palette or report.labels, name)),
        "swatch": lambda name, figure: Markup(swatches(figure)((figure.palette or report.labels).index(name))),
    }
    template = environment.from_string(_TEMPLATES.joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _csv_link(table: Table) -> str:
    """The table's CSV as an address that holds the file itself."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(table.csv().encode()).decode()


def _number(value: Value, is_score: bool = False) -> str:
    text = shown_number(value, is_score)
    return text if isinstance(value, str) else text.replace("-", "−")


def _interval(value: Estimate) -> str:
    """The interval with proper minus signs, which are as wide as a digit; or in words why there is none."""
    return shown_interval(value) if value.low is None else shown_interval(value).replace("-", "−")
