"""The commands `sightline eval needles …`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from index.errors import UsageError
from pipeline.cli.options import Json, ProfileName, Quiet, StoreUrl, settings_of
from pipeline.console import interruptible, print_json, print_line, print_note, progress
from pipeline.evaluation.needles.cases import Draw

__all__ = ["app"]

app = typer.Typer(name="needles", help="Hide short videos or pictures in long haystacks.", rich_markup_mode=None)

_ENTRY = "pipeline.evaluation.needles.entry"  # loads torch
_STOPPED = "what is answered is written; the same command goes on"
Out = Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")]
_WORK = typer.Option(help="Folder for rendered footage and its store; a later run uses them again.")
Work = Annotated[Path, _WORK]
Pictures = Annotated[Path | None, typer.Option(help="File of captioned pictures, or of released rows.")]
Films = Annotated[Path | None, typer.Option(help="Folder of videos that haystacks are made of.")]
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
    out: Out,
    work: Annotated[Path | None, _WORK] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of videos with questions, in place of rendered footage.")
    ] = None,
    rows: Annotated[
        str, typer.Option(help="Rows of --data: questions for its file questions.*, or a benchmark such as videomme.")
    ] = "questions",
    store: StoreUrl = None,
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

    Without --data, footage is rendered into --work. Every case is also asked with the needle alone, with the haystack
    alone and with nothing. OUT/heatmap.png shows the result.
    """
    if (data is None) == (work is None):
        raise UsageError("give either --work, for rendered footage, or --data with --store")
    settings = settings_of(context, store=store, profile=profile)
    lengths = _lengths(length, least=200)
    entry = import_module(_ENTRY)
    with _stages(quiet=quiet or as_json) as advance:
        common: dict[str, Any] = {
            "profile": settings.profile,
            "device": settings.device,
            "draw": Draw(lengths=lengths, per_length=cases, seed=seed),
            "settings": ("spliced",) if only_spliced else ("spliced", "needle alone", "haystack alone", "blind"),
            "on_progress": advance,
        }
        if data is None:
            summary, found = entry.rendered_video(work, out, **common), None
        else:
            summary, found = entry.folder_video(
                data, rows, settings.store, out, limits=settings.decode_limits, **common
            )
    for problem in [] if found is None else [*found.missing, *found.broken]:
        print_note(f"left out: {problem}")
    _show(summary, out, as_json=as_json)


@app.command("image")
def image(
    context: typer.Context,
    work: Work,
    out: Out,
    pictures: Pictures = None,
    films: Films = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    length: Lengths = None,
    count: Annotated[int, typer.Option(min=1, help="Largest number of pictures.")] = 20,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hide single pictures in long videos, at six depths.

    A picture is shown for four seconds. Pictures and haystacks are rendered unless files are given.
    """
    _run("image", context, work, out, pictures, films, store, profile, length, count, seed, quiet, as_json)


@app.command("chain")
def chain(
    context: typer.Context,
    work: Work,
    out: Out,
    pictures: Pictures = None,
    films: Films = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    length: Lengths = None,
    count: Annotated[int, typer.Option(min=1, help="Largest number of chains.")] = 60,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hide chains of pictures that name each other, among decoys (multi-hop).

    Q1 asks for the caption of the last picture of the chain, Q2 a question about it.
    """
    _run("chain", context, work, out, pictures, films, store, profile, length, count, seed, quiet, as_json)


def _run(
    kind: str,
    context: typer.Context,
    work: Path,
    out: Path,
    pictures: Path | None,
    films: Path | None,
    store: str | None,
    profile: str | None,
    length: list[int] | None,
    count: int,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    settings = settings_of(context, store=store, profile=profile)
    lengths = _lengths(length, least=40)
    entry = import_module(_ENTRY)
    with _stages(quiet=quiet or as_json) as advance:
        summary = entry.pictures(
            kind,
            store or str(work / f"store-{Path(settings.profile).stem}"),
            work / "drawn",
            out,
            profile=settings.profile,
            device=settings.device,
            lengths=lengths,
            count=count,
            seed=seed,
            rows=pictures,
            films=films,
            limits=settings.decode_limits,
            on_progress=advance,
        )
    _show(summary, out, as_json=as_json)


def _lengths(given: list[int] | None, *, least: int) -> tuple[int, ...]:
    """The lengths, ascending, each once. Raises UsageError if one is below `least`."""
    lengths = tuple(sorted(set(given or Draw().lengths)))
    if min(lengths) < least:
        raise UsageError(f"--length must be at least {least}, got {min(lengths)}")
    return lengths


@contextmanager
def _stages(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar; gives a function that shows a stage, what is done of it, and all of it."""
    with progress(quiet=quiet) as bar, interruptible(_STOPPED):
        task = bar.add_task("footage", total=None, detail="")

        def advance(stage: str, done: int, total: int) -> None:
            """Show how far a stage is."""
            bar.update(task, description=stage, completed=done, total=total)

        yield advance


def _show(summary: BaseModel, out: Path, *, as_json: bool) -> None:
    """Print the figures of a run."""
    if as_json:
        print_json(summary)
        return
    print_line((out / "report.md").read_text())
    print_note(f"heat map: {out / 'heatmap.png'}")
