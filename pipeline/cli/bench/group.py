"""The group `sightline bench`, whose commands print their figures as JSON on standard output.

What all of its modules share: the group, and options. `pipeline.cli.bench.commands` adds the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["RandomWeights", "Repeats", "app"]

app = typer.Typer(name="bench", help="Run benchmarks; they print JSON.", rich_markup_mode=None)

RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Use random weights of the profile's sizes; needs no files.")
]
"""Whether a benchmark builds its models without their files."""
Repeats = Annotated[int, typer.Option(min=1, help="Number of measured runs.")]
"""How often a benchmark repeats a measurement."""
