"""Commands about rendered footage: render, demo, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, ProfileName, settings_of
from pipeline.console import print_json, print_line, progress
from pipeline.demo.render import render as render_footage

__all__ = ["app", "demo", "evaluate", "render"]

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


@app.command("evaluate")
def evaluate(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Folder for footage and stores; a later run uses them again.")],
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A seed of footage, repeatable; default: 101, 102 and 103.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Length of each stream.")] = 20.0,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the result; a Markdown table is written beside it.")
    ] = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a profile on rendered footage.

    The seeds of the footage were not used in training.
    """
    from pipeline.evaluation import rendered, table  # loads torch

    settings = settings_of(context, profile=profile)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("evaluating", total=None, detail="")
        result = rendered.evaluate(
            work,
            profile=settings.profile,
            seeds=seeds or (101, 102, 103),
            minutes=minutes,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    text = table.table(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.model_dump_json(indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    if as_json:
        print_json(result)
    else:
        print_line(text)
