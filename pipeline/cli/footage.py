"""Commands about footage and the store: render, ingest, streams, verify, reindex, forget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Json, ProfileName, StoreUrl, opened_store, settings_of
from pipeline.console import complain, emit, progress, say

if TYPE_CHECKING:
    from index.patches.codec import PatchEncoding
    from ingest.file_ingest import FileReport, IngestProgress

__all__ = ["forget", "ingest", "reindex", "render", "streams", "verify"]


def render(
    seed: Annotated[int, typer.Option(help="Same seed, same footage.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    minutes: Annotated[float, typer.Option(help="Length of each camera's file.")] = 20.0,
    cameras: Annotated[int, typer.Option(help="Number of cameras.")] = 2,
    as_json: Json = False,
) -> None:
    """Render footage whose truth is known: <camera>.mp4 files and truth.json."""
    from pipeline.demo.render import render as run

    with progress(quiet=as_json) as bar:
        task = bar.add_task("rendering", total=cameras, detail=f"{cameras} × {minutes:g} min")
        truth = run(seed, minutes, cameras, out, lambda done, _: bar.update(task, completed=done))
    if as_json:
        emit({"truth": str(truth), "files": sorted(str(path) for path in out.glob("camera-*.mp4"))})
    else:
        say(f"{cameras} × {minutes:g} minutes in {out}, the truth in {truth}")


def ingest(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs.")],
    store: StoreUrl = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Stream id; the file's name by default.")] = None,
    start: Annotated[str | None, typer.Option("--start", help="RFC 3339 time of the first frame.")] = None,
    profile: ProfileName = None,
    patches: Annotated[
        str | None, typer.Option("--patches", help="How a new store keeps patches: fp16 (exact), int8, differential.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Differential: 1 − cosine from which a patch is written anew.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch footage once, a frame a second, and store what was seen. Running again goes on where it stopped.

    Exit code 1 when some source gave nothing at all; a file that was cut off keeps what decoded, with a warning.
    """
    from index.records import from_micros
    from index.store import Store
    from ingest.decoding.limits import DecodeLimits
    from ingest.file_ingest import ingest_sources
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile
    from pipeline.questions.asker import parse_time

    settings = settings_of(context, store=store, profile=profile)
    encoding = _encoding(patches or settings.patches, settings.epsilon if epsilon is None else epsilon)
    began = parse_time(start, "--start")
    encoders = load_encoders(load_profile(settings.profile), settings.device)
    opened = Store.open_or_create(settings.store, encoders.pair, encoding)
    limits = DecodeLimits(
        pixels=settings.max_pixels, memory_bytes=settings.memory_bytes, stall_seconds=settings.stall_seconds
    )
    with progress(quiet=as_json) as bar:
        task = bar.add_task("ingesting", total=None, detail="")

        def tell(p: IngestProgress) -> None:
            elapsed = bar.tasks[0].elapsed or 1.0
            detail = f"{p.frames / elapsed:.0f} frames/s, {p.seconds / elapsed:.0f}× real time"
            name = f"{Path(p.file).name} ({p.number + 1}/{p.files})"
            bar.update(task, description=name, completed=p.seconds, total=p.duration, detail=detail)

        report = ingest_sources(
            sources,
            store=opened,
            encoders=encoders,
            stream=stream,
            start=None if began is None else from_micros(began),
            on_progress=tell,
            segment_seconds=settings.segment_seconds,
            limits=limits,
        )
    if as_json:
        emit(report)
    else:
        for file in report.files:
            say(f"{file.file}: {_state(file)}")
        say(f"{report.frames} frames, {report.frames_per_second:.0f} a second, {report.realtime_factor:.0f}× real time")
    lost = [file for file in report.failed if not file.frames and not file.skipped]
    for file in report.failed:
        complain(str(file.problem) if file in lost else f"warning: {file.problem}")
    if lost:
        raise typer.Exit(1)


def _encoding(kind: str | None, epsilon: float | None) -> PatchEncoding | None:
    """What was asked for, None when nothing was. Raises UsageError."""
    from pydantic import ValidationError

    from index.errors import UsageError
    from index.patches.codec import PatchEncoding as Encoding

    if epsilon is not None and kind != "differential":
        raise UsageError("--epsilon goes with --patches differential")
    try:
        given = {"kind": kind, **({} if epsilon is None else {"epsilon": epsilon})}
        return None if kind is None else Encoding.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"--patches: {error.errors()[0]['msg']}") from None


def _state(file: FileReport) -> str:
    if file.skipped:
        return "stored already"
    if file.problem and not file.frames:
        return "not stored"
    return f"{file.frames} frames, decoded: {file.decode_mode}"


def streams(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """List the streams of a store."""
    from index.records import rfc3339

    opened = opened_store(context, store)
    encoders = {"frame": opened.encoders.frame.name, "patch": opened.encoders.patch.name}
    rows = [(s.stream_id, s.frames, rfc3339(s.first), rfc3339(s.last)) for s in opened.streams()]
    if as_json:
        names = ("stream_id", "frames", "first", "last")
        emit([{**dict(zip(names, row, strict=True)), "encoders": encoders} for row in rows])
        return
    for name, frames, first, last in rows:
        say(f"{name}  {frames} frames  {first} to {last}  {encoders['frame']}, {encoders['patch']}")


def verify(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """Check Parquet against FAISS against the encoders' identity; exit 1 and a list when they differ."""
    problems = opened_store(context, store).verify()
    if as_json:
        emit({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            say(problem)
        say(f"{len(problems)} problems" if problems else "the store agrees with itself")
    if problems:
        raise typer.Exit(1)


def reindex(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """Build the FAISS shards anew from Parquet."""
    written = opened_store(context, store).reindex()
    if as_json:
        emit({"shards": written})
    else:
        say(f"{written} shards written")


def forget(
    context: typer.Context,
    stream: Annotated[str, typer.Option("--stream", help="Stream to forget.")],
    store: StoreUrl = None,
    before: Annotated[
        str | None, typer.Option("--before", help="Only frames captured before this RFC 3339 time.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a stream's frames, vectors, patches and pictures for good, old table versions too."""
    from index.errors import UsageError
    from pipeline.questions.asker import parse_time

    cut = parse_time(before, "--before")
    opened = opened_store(context, store)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("forgetting cannot be undone; pass --yes where nobody can be asked")
        earlier = f" before {before}" if before else ""
        if not typer.confirm(f"Remove {stream}{earlier} for good?", err=True):
            raise typer.Exit(1)
    removed = opened.forget(stream, cut)
    if as_json:
        emit({"stream_id": stream, "frames": removed})
    else:
        say(f"{removed} frames of {stream} are gone")
