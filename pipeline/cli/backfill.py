"""`sightline backfill`: an archive of files, indexed by a Beam pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, ProfileName, StoreUrl, settings_of
from pipeline.console import complain, emit, say

__all__ = ["backfill", "bench_backfill"]


def backfill(
    context: typer.Context,
    manifest: Annotated[
        str, typer.Option("--manifest", help="Parquet, CSV or JSON Lines of uri, stream, start; or a folder or glob.")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="Beam's options, after `--`.", metavar="[-- BEAM]")
    ] = None,
    names: Annotated[
        str | None, typer.Option("--names", help="How a glob's file names read: {stream}_{start:%Y%m%dT%H%M%S}.mp4")
    ] = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    runner: Annotated[str, typer.Option("--runner", help="DirectRunner, FlinkRunner, SparkRunner, DataflowRunner.")] = (
        "DirectRunner"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    sample: Annotated[int, typer.Option("--sample", help="Files a dry run looks at.")] = 16,
    speed: Annotated[
        float | None,
        typer.Option("--frames-per-second", help="Dry run: the encoders' speed; measured here by default."),
    ] = None,
    max_lost: Annotated[float, typer.Option("--max-lost", help="Fail when a greater part gives nothing.")] = 0.05,
    piece: Annotated[float, typer.Option("--piece-minutes", help="Longer files are cut into such pieces.")] = 60.0,
    staging: Annotated[str | None, typer.Option("--staging", help="A folder all workers see; in the store.")] = None,
    dead_letters: Annotated[str | None, typer.Option("--dead-letters", help="JSON Lines of bad files.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of each worker process.")] = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="Write the report there as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Index an archive on a batch engine. Stopped anywhere, the same command goes on; done twice, it changes nothing."""
    from ingest.decoding.limits import DecodeLimits
    from pipeline.backfill.manifest import read_manifest

    settings = settings_of(context, store=store, profile=profile)
    limits = DecodeLimits(
        pixels=settings.max_pixels, memory_bytes=settings.memory_bytes, stall_seconds=settings.stall_seconds
    )
    entries = read_manifest(manifest, names=names)
    if dry_run:
        from model.encoders.encoder import load_encoders, pick_device
        from model.profiles.profile import load_profile
        from pipeline.backfill.estimate import dry_run as estimate

        encoders = load_encoders(load_profile(settings.profile), settings.device)
        device = str(pick_device(settings.device))
        cost = estimate(entries, encoders, device=device, sample=sample, limits=limits, frames_per_second=speed)
        if as_json:
            emit(cost)
            return
        say(
            f"{cost.files} files, about {cost.hours:.2f} hours, {cost.frames} frames, {cost.footage_bytes / 1e9:.3f} GB"
        )
        say(f"about {cost.store_bytes / 1e9:.3f} GB in the store, before Parquet's and the logs' own")
        say(f"{cost.gpu_hours:.3f} GPU hours at {cost.frames_per_second:.0f} frames a second ({cost.device})")
        say(f"from {cost.sampled} files, of which {cost.unreadable} cannot be read")
        return
    from pipeline.backfill.job import backfill as run
    from pipeline.backfill.report import table

    report = run(
        entries,
        store=settings.store,
        profile=settings.profile,
        device=settings.device,
        runner=runner,
        options=options or (),
        segment_seconds=settings.segment_seconds,
        piece_seconds=round(piece * 60),
        staging=staging,
        limits=limits,
        threads=threads,
        max_lost=max_lost,
        dead_letters=dead_letters,
    )
    if report_to is not None:
        report_to.parent.mkdir(parents=True, exist_ok=True)
        report_to.write_text(report.model_dump_json(indent=1) + "\n")
    if as_json:
        emit(report)
    else:
        say(table(report))
    if report.dead_letters:
        complain(f"warning: {sum(report.errors.values())} files have problems, see {report.dead_letters}")


def bench_backfill(
    context: typer.Context,
    files: Annotated[int, typer.Option(help="Files that are rendered.")] = 30,
    minutes: Annotated[float, typer.Option(help="Length of each.")] = 10.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind; medians count.")] = 3,
    profile: ProfileName = None,
) -> None:
    """Overhead of the pipeline over plain ingest on the same files, and scaling from one to two worker processes."""
    from pipeline.bench.backfill import bench_backfill as run

    emit(run(settings_of(context, profile=profile).profile, files=files, minutes=minutes, repeats=repeats))
