"""The verbs of the command line, put together. Importing this imports no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from handful import __version__
from handful.cli.check import check
from handful.cli.compare import compare
from handful.cli.demo import demo
from handful.cli.doctor import doctor
from handful.cli.evaluate import evaluate
from handful.cli.export import export
from handful.cli.fit import fit
from handful.cli.inventory import inventory
from handful.cli.methods import methods
from handful.cli.models import models
from handful.cli.predict import predict
from handful.cli.pretrain import pretrain
from handful.cli.report import report
from handful.cli.study import study
from handful.cli.tasks import tasks

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version of handful and exit.")] = False,
) -> None:
    """Fine-tune a language model on a handful of examples, know how good it really is, and take it anywhere.

    Start with 'handful demo', or with texts and labels of your own: 'handful check FILE', then 'handful fit FILE'.
    """
    if version:
        print(__version__)
        raise typer.Exit


for verb in (demo, check, fit, pretrain, predict, evaluate, export):
    app.command(rich_help_panel="Train and use")(verb)
for verb in (study, compare, report):
    app.command(rich_help_panel="Compare")(verb)
for verb in (methods, models, tasks, doctor):
    app.command(rich_help_panel="See what there is")(verb)
app.add_typer(inventory, name="inventory", rich_help_panel="Train and use")
