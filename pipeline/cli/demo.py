"""Commands about rendered footage: render, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, ProfileName, settings_of
from pipeline.console import print_json, print_line, progress
from pipeline.demo.render import render as render_footage

__all__ = ["app", "demo", "render"]

app = typer.Typer(rich_markup_mode=None)


@app.command("render")
def render(
    seed: Annotated[int, typer.Option(help="The same seed renders the same footage.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    minutes: Annotated[float, typer.Option(help="Length of each camera's file.")] = 20.0,
    cameras: Annotated[int, typer.Option(help="Number of cameras.")] = 2,
    as_json: Json = False,
) -> None:
    """Render footage of which every event is known.

    Writes CAMERA.mp4 files, and truth.json with what they show.
    """
    with progress(quiet=as_json) as bar:
        task = bar.add_task("rendering", total=cameras, detail=f"{cameras} × {minutes:g} min")
        truth = render_footage(seed, minutes, cameras, out, lambda done, _: bar.update(task, completed=done))
    if as_json:
        print_json({"truth": str(truth), "files": sorted(str(path) for path in out.glob("camera-*.mp4"))})
    else:
        print_line(f"{cameras} × {minutes:g} minutes in {out}; what they show is in {truth}")


@app.command("demo")
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for footage, store and report.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same footage and questions.")] = 7,
    minutes: Annotated[float, typer.Option(help="Length of each of the two cameras' files.")] = 20.0,
    profile: ProfileName = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the desk over the demo's store at the end.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of --serve; 0 picks a free one.")] = 8080,
    as_json: Json = False,
) -> None:
    """Try Sightline on rendered footage, and write a report.

    Renders two cameras, indexes them, asks questions, and compares each answer with what was rendered.
    """
    from pipeline.demo import walkthrough  # loads torch

    result = walkthrough.demo(out, seed=seed, minutes=minutes, profile=settings_of(context, profile=profile).profile)
    if as_json:
        print_json(result)
    else:
        walkthrough.show(result)
        print_line(f"Look for yourself: sightline serve --store {out / 'store'}")
    if serve:
        from pipeline.cli.web import serve as desk  # loads the client of the model service

        desk.serve(context, store=str(out / "store"), port=port, profile=profile)
