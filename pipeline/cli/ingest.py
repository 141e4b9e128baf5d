"""Commands that index footage from files: ingest, backfill; and vectors: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.errors import UsageError
from index.extras import require_extra
from index.maintenance.imports import import_vectors
from index.patches.codec import PatchEncoding
from index.records import parse_zoned_time
from index.store import Store
from index.tables import normalize_url
from ingest.file_ingest import FileReport, IngestProgress, ingest_sources
from ingest.sources.files import expand
from model.encoders.encoder import pick_device
from pipeline.backfill.estimate import dry_run as estimate_backfill
from pipeline.backfill.manifest import read_manifest
from pipeline.backfill.report import table
from pipeline.cli.options import (
    Json,
    Names,
    OverlapChoice,
    ProfileName,
    Quiet,
    RequireSandbox,
    StoreUrl,
    TimeZone,
    check_names,
    check_overlap,
    check_store,
    load_models,
    report_sandbox,
    settings_of,
    validate,
)
from pipeline.console import interruptible, print_error, print_json, print_line, progress

__all__ = ["app", "backfill", "import_command", "ingest"]

app = typer.Typer(rich_markup_mode=None)

_SHOWN = 10
"""Skipped files that are listed one by one."""


@app.command("ingest")
def ingest(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs.")],
    store: StoreUrl = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Stream id; default: the file's name.")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Time of the first frame, such as 2024-03-01T08:00:00Z (RFC 3339).")
    ] = None,
    names: Names = None,
    timezone: TimeZone = None,
    overlap: OverlapChoice = "error",
    profile: ProfileName = None,
    patches: Annotated[
        str | None,
        typer.Option("--patches", help="Encoding of patches in a new store: fp16 (exact), int8, differential."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="With differential: store a patch again if 1 − cosine is larger than this."),
    ] = None,
    require_sandbox: RequireSandbox = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Index footage, one frame a second.

    The same command resumes a run that was interrupted; footage that is stored already is skipped. Exits with code 1
    if a source has no readable frame. Of a truncated file the readable frames are stored, with a warning.
    """
    settings = settings_of(context, store=store, profile=profile, require_sandbox=require_sandbox)
    encoding = _patch_encoding(patches or settings.patches, settings.epsilon if epsilon is None else epsilon)
    began = parse_zoned_time(start, "--start")
    chosen_overlap = check_overlap(overlap)
    check_names(stream, names, timezone)
    check_store(settings, encoding)
    _check_sources(sources)
    report_sandbox(settings, announce=False)
    encoders = load_models(settings, quiet=quiet or as_json)
    opened = Store.open_or_create(settings.store, encoders.pair, encoding)
    latest: list[IngestProgress] = []  # none, or the last one
    with interruptible(lambda: _safe(latest, settings.segment_seconds)), progress(quiet=quiet or as_json) as bar:
        task = bar.add_task("ingesting", total=None, detail="")

        def show(p: IngestProgress) -> None:
            """Update the progress bar."""
            elapsed = bar.tasks[0].elapsed or 1.0
            detail = f"{p.frames / elapsed:.0f} frames/s, {p.seconds / elapsed:.0f}× real time"
            latest[:] = [p]
            name = f"{Path(p.file).name} ({p.number + 1}/{p.files})"
            bar.update(task, description=name, completed=p.seconds, total=p.duration, detail=detail)

        report = ingest_sources(
            sources,
            store=opened,
            encoders=encoders,
            stream=stream,
            start=began,
            names=names,
            timezone=timezone,
            overlap=chosen_overlap,
            on_progress=show,
            segment_seconds=settings.segment_seconds,
            limits=settings.decode_limits,
        )
    if as_json:
        print_json(report)
    else:
        if report.layout:
            print_line(f"names are read as {report.layout} writes them; give --names if that is wrong")
        for file in report.files:
            print_line(f"{file.file}: {_outcome(file)}")
        for passed_over in report.skipped[:_SHOWN]:
            print_line(f"skipped {passed_over}")
        if len(report.skipped) > _SHOWN:
            print_line(f"skipped {len(report.skipped) - _SHOWN} more files, listed by --json")
        print_line(
            f"{report.frames} frames, {report.frames_per_second:.0f} a second, {report.realtime_factor:.0f}× real time"
        )
        print_line(str(report.footage))
    lost = [file for file in report.failed if not file.frames and not file.skipped]
    for file in report.failed:
        print_error(str(file.problem) if file in lost else f"warning: {file.problem}")
    if lost:
        raise typer.Exit(1)


def _check_sources(sources: list[str]) -> None:
    """Raise the error of the first source if all are local and none has a file, before models are loaded."""
    if any("://" in source for source in sources):
        return
    found = expand(sources)
    if found.problems and not found.files:
        raise found.problems[0][1]


def _safe(latest: list[IngestProgress], segment_seconds: int) -> str:
    """What an interrupted ingest has stored, by its last progress if there was any."""
    done = "".join(
        f"{p.number} of {p.files} files are stored, and of {Path(p.file).name} whole parts of {segment_seconds} s; "
        for p in latest
    )
    return f"{done}run the same command again to continue"


def _patch_encoding(kind: str | None, epsilon: float | None) -> PatchEncoding | None:
    """The encoding that the options select, None if they select none. Raises UsageError."""
    if epsilon is not None and kind != "differential":
        raise UsageError("--epsilon needs --patches differential")
    given = {"kind": kind, **({} if epsilon is None else {"epsilon": epsilon})}
    return None if kind is None else validate(PatchEncoding, given, "--patches")


def _outcome(file: FileReport) -> str:
    if file.skipped:
        return "stored already"
    if file.problem and not file.frames:
        return "not stored"
    repeated = f", {file.repeated} repeated (the stream has frames of those seconds)" if file.repeated else ""
    when = f" from {file.start}, clock: {file.clock}" if file.start else ""
    return f"{file.frames} frames of stream {file.stream_id}{when}{repeated}, decoded: {file.decode_mode}"


@app.command("backfill")
def backfill(
    context: typer.Context,
    manifest: Annotated[
        str,
        typer.Option(
            "--manifest", help="Parquet, CSV or JSON Lines file with uri, stream and start; or a folder or glob."
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of Apache Beam, after `--`.", metavar="[-- BEAM]")
    ] = None,
    names: Names = None,
    timezone: TimeZone = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    runner: Annotated[
        str, typer.Option("--runner", help="Beam runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner.")
    ] = "DirectRunner",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate the cost; store nothing.")] = False,
    sample: Annotated[int, typer.Option("--sample", help="With --dry-run: number of files to examine.")] = 16,
    speed: Annotated[
        float | None,
        typer.Option("--frames-per-second", help="With --dry-run: speed of the encoders; default: measured here."),
    ] = None,
    max_lost: Annotated[
        float, typer.Option("--max-lost", help="Fail if a larger fraction of the files has no readable frame.")
    ] = 0.05,
    piece: Annotated[
        float, typer.Option("--piece-minutes", help="Files longer than this are split into parts of this length.")
    ] = 60.0,
    staging: Annotated[
        str | None, typer.Option("--staging", help="Folder that all workers can reach; default: inside the store.")
    ] = None,
    dead_letters: Annotated[
        str | None, typer.Option("--dead-letters", help="JSON Lines file for the files that failed.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of each worker process.")] = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="JSON file for the report.")] = None,
    require_sandbox: RequireSandbox = False,
    as_json: Json = False,
) -> None:
    """Index an archive with Apache Beam.

    The same command resumes a run that was interrupted; a run that is repeated changes nothing.
    """
    if not dry_run:
        require_extra("beam", "sightline backfill")
    settings = settings_of(context, store=store, profile=profile, require_sandbox=require_sandbox)
    check_names(None, names, timezone)
    check_store(settings)
    entries = read_manifest(manifest, names=names, timezone=timezone)
    report_sandbox(settings, announce=False)
    if dry_run:
        encoders = load_models(settings, quiet=as_json)
        cost = estimate_backfill(
            entries,
            encoders,
            device=str(pick_device(settings.device)),
            sample=sample,
            limits=settings.decode_limits,
            frames_per_second=speed,
        )
        if as_json:
            print_json(cost)
            return
        print_line(
            f"{cost.files} files, about {cost.hours:.2f} hours, {cost.frames} frames, {cost.footage_bytes / 1e9:.3f} GB"
        )
        print_line(f"about {cost.store_bytes / 1e9:.3f} GB in the store, without the overhead of Parquet and the logs")
        print_line(f"{cost.gpu_hours:.3f} GPU hours at {cost.frames_per_second:.0f} frames a second ({cost.device})")
        print_line(f"estimated from {cost.sampled} files, of which {cost.unreadable} are not readable")
        return

    from pipeline.backfill import job  # loads Apache Beam

    with interruptible("what is committed stays stored; run the same command again to continue"):
        report = job.backfill(
            entries,
            store=settings.store,
            profile=settings.profile,
            device=settings.device,
            runner=runner,
            options=options or (),
            segment_seconds=settings.segment_seconds,
            piece_seconds=round(piece * 60),
            staging=staging,
            limits=settings.decode_limits,
            threads=threads,
            max_lost=max_lost,
            dead_letters=dead_letters,
        )
    if report_to is not None:
        report_to.parent.mkdir(parents=True, exist_ok=True)
        report_to.write_text(report.model_dump_json(indent=1) + "\n")
    if as_json:
        print_json(report)
    else:
        print_line(table(report))
    if report.dead_letters:
        print_error(f"warning: {sum(report.errors.values())} files have problems, see {report.dead_letters}")


@app.command("import")
def import_command(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder with img_emb/*.npy and metadata/*.parquet.")],
    store: StoreUrl = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Profile whose frame encoder made the vectors, where no export.json says it."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Store frame vectors and metadata that `export` or clip-retrieval wrote.

    The store is one without patches: it can be searched, and not asked. All files are checked before anything is
    written. The same command continues an import that was stopped; repeated, it changes nothing.
    """
    settings = settings_of(context, store=store, profile=profile)
    check_store(settings)
    frame = None if profile is None else load_models(settings, quiet=quiet or as_json).pair.frame
    with progress(quiet=quiet or as_json) as bar, interruptible("run the same command again to continue"):
        task = bar.add_task("import", total=None, detail="")
        added = import_vectors(
            normalize_url(settings.store),
            folder,
            frame=frame,
            on_progress=lambda done, of: bar.update(task, completed=done, total=of, detail=f"{done:,} frames"),
        )
    if as_json:
        print_json({"frames": added, "store": settings.store})
    else:
        print_line(f"{added} frames added")
