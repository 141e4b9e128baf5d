"""All commands of `sightline bench`, added to its group by importing the modules that define them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.bench import footage, questions, stores
from pipeline.cli.bench.group import app
from pipeline.console import print_line
from pipeline.figures import figures_page
from pipeline.pages import write_page

__all__ = ["app", "footage", "questions", "stores"]


@app.command("page")
def bench_page(
    figures: Annotated[Path, typer.Option(help="Folder with the output of the benchmarks.")] = Path("benchmarks"),
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("figures.html"),
) -> None:
    """Write an HTML page that shows the figures of a folder."""
    print_line(f"figures in {write_page(out, figures_page(figures))}")
