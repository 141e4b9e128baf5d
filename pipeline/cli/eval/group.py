"""The group `sightline eval`. Each module of this package defines commands; this one puts them together."""

from __future__ import annotations

import typer

from pipeline.cli.eval import needles, study
from pipeline.cli.eval.ablate import ablate
from pipeline.cli.eval.rendered import rendered
from pipeline.cli.eval.runs import compare, export, report, run
from pipeline.cli.eval.search import search

__all__ = ["app"]

app = typer.Typer(
    name="eval", help="Measure answers on benchmarks, on rendered footage and on needles.", rich_markup_mode=None
)
app.command("run")(run)
app.command("report")(report)
app.command("compare")(compare)
app.command("export")(export)
app.command("search")(search)
app.command("rendered")(rendered)
app.command("ablate")(ablate)
app.add_typer(needles.app)
app.add_typer(study.app)
