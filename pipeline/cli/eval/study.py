"""The commands `sightline eval study …`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from index.errors import UsageError
from pipeline.cli.options import Json, ProfileName, Quiet, StoreUrl, settings_of
from pipeline.console import print_json, print_line, print_note, progress

__all__ = ["app"]

app = typer.Typer(name="study", help="Look at what a language model attends to.", rich_markup_mode=None)

_ENTRY, _REPORT = "pipeline.evaluation.studies.entry", "pipeline.evaluation.studies.report"  # load torch


@app.callback()
def study() -> None:
    """Look at what a language model attends to."""


@app.command("attention")
def attention(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Folder for the report, its plots and study.json; a study that is there goes on.")
    ],
    work: Annotated[
        Path | None, typer.Option(help="Folder for rendered footage and its store; a later run uses them again.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of a benchmark's data set, in place of rendered footage.")
    ] = None,
    rows: Annotated[str, typer.Option(help="The benchmark of --data.")] = "videomme",
    limit: Annotated[int, typer.Option(min=1, help="Most questions of --data.")] = 100,
    store: StoreUrl = None,
    profile: ProfileName = None,
    frames: Annotated[int, typer.Option(min=20, help="Most frames of a video; all their tokens are read.")] = 128,
    streams: Annotated[int, typer.Option(min=1, help="Rendered streams.")] = 8,
    seconds: Annotated[int, typer.Option(min=60, help="Length of a rendered stream.")] = 300,
    each: Annotated[int, typer.Option(min=1, help="Questions of every kind and rendered stream.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of rendered streams, shuffled orders and random weights.")] = 401,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure which frames and patches the tokens of a question attend to (ViLAMP, section 3).

    Nothing is selected or merged: every frame has all of its tokens. Shuffled frames and random weights stand beside
    the result as null tests. OUT/report.html shows it. A study that was stopped
    goes on with its next video.
    """
    if (data is None) == (work is None):
        raise UsageError("give either --work, for rendered footage, or --data with --store")
    settings = settings_of(context, store=store, profile=profile)
    entry, left_out = import_module(_ENTRY), list[str]()
    with progress(quiet=quiet or as_json) as bar:
        task = bar.add_task("footage", total=None, detail="")
        common: dict[str, Any] = {
            "profile": settings.profile,
            "device": settings.device,
            "frames": frames,
            "seed": seed,
            "lines": out / "videos.jsonl",
            "on_progress": lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        }
        if data is None:
            result = entry.rendered_study(work, streams=streams, seconds=seconds, each=each, **common)
        else:
            result, left_out = entry.benchmark_study(
                data, rows, settings.store, limit=limit, limits=settings.decode_limits, **common
            )
    report = import_module(_REPORT)
    path = report.write_study(result, out)
    for problem in left_out:
        print_note(f"left out: {problem}")
    if as_json:
        print_json(result)
        return
    print_line(report.study_text(result))
    print_note(f"report: {path}")


@app.command("memory")
def memory(
    context: typer.Context,
    profile: ProfileName = None,
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", help="Tokens of a prompt, repeatable; default: 4096, 16384, 65536.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure the memory that reading attention takes over long prompts, with random weights.

    The model has the sizes of the profile. Linux only. The result is JSON.
    """
    settings = settings_of(context, profile=profile)
    with progress(quiet=quiet) as bar:
        task = bar.add_task("lengths", total=None, detail="")
        result = import_module(_ENTRY).study_memory(
            settings.profile,
            sorted(set(tokens or (4096, 16_384, 65_536))),
            device=settings.device,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_json(result)
