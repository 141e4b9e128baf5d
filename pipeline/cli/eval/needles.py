"""The commands `sightline eval needles …`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from index.errors import UsageError
from pipeline.cli.options import Json, ProfileName, Quiet, settings_of
from pipeline.console import interruptible, print_json, print_line, print_note, progress
from pipeline.evaluation.needles.cases import Draw

__all__ = ["app"]

app = typer.Typer(name="needles", help="Hide short videos or pictures in long haystacks.", rich_markup_mode=None)

_ENTRY = "pipeline.evaluation.needles.entry"  # loads torch
_STOPPED = "what is answered is written; the same command goes on"
Out = Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")]
Work = Annotated[Path, typer.Option(help="Folder for footage and its store; a later run uses them again.")]
Lengths = Annotated[
    list[int] | None,
    typer.Option("--length", help="Frames of a haystack, repeatable; default: 2000, 4000, 6000, 8000 and 10000."),
]
Seed = Annotated[int, typer.Option(help="Seed of haystacks, depths and the order of needles.")]


@app.callback()
def needles() -> None:
    """Hide short videos or pictures in long haystacks."""


@app.command("video")
def video(
    context: typer.Context,
    work: Work,
    out: Out,
    profile: ProfileName = None,
    length: Lengths = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases of each length.")] = 60,
    seed: Seed = 0,
    only_spliced: Annotated[
        bool, typer.Option("--only-spliced", help="Leave out needle alone, haystack alone and blind.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hide short videos in long ones (VideoNIAH) and measure accuracy by length and depth.

    Footage is rendered, so no data set is needed. Every case is also asked with the needle alone, with the haystack
    alone and with nothing. OUT/heatmap.png shows the result.
    """
    settings = settings_of(context, profile=profile)
    lengths = tuple(sorted(set(length or Draw().lengths)))
    if min(lengths) < 200:
        raise UsageError(f"--length must be at least 200, got {min(lengths)}")
    entry = import_module(_ENTRY)
    with progress(quiet=quiet or as_json) as bar, interruptible(_STOPPED):
        task = bar.add_task("footage", total=None, detail="")
        summary = entry.rendered_video(
            work,
            out,
            profile=settings.profile,
            device=settings.device,
            draw=Draw(lengths=lengths, per_length=cases, seed=seed),
            settings=("spliced",) if only_spliced else ("spliced", "needle alone", "haystack alone", "blind"),
            on_progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        )
    if as_json:
        print_json(summary)
        return
    print_line((out / "report.md").read_text())
    print_note(f"heat map: {out / 'heatmap.png'}")
