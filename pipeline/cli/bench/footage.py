"""Benchmarks of decoding, encoding and ingest: `sightline bench decode`, `ingest` and others.

Modules that load torch, Apache Beam or a Kafka client are imported when their command runs.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from pipeline.bench import decode, memory
from pipeline.cli.bench.group import RandomWeights, Repeats, app
from pipeline.cli.options import ProfileName, settings_of
from pipeline.console import print_json

__all__: list[str] = []


@app.command("decode")
def bench_decode(
    path: Annotated[Path | None, typer.Option(help="A video file; default: two generated files.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of the generated files, in seconds.")] = 300.0,
) -> None:
    """Measure the decoder, and ffmpeg on the same files.

    The ffmpeg command is `ffmpeg -vf fps=1`. Reports factors of real time.
    """
    print_json(decode.bench_decode(path, seconds=seconds))


@app.command("ingest")
def bench_ingest(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(help="Length of each camera's footage.")] = 5.0,
    cameras: Annotated[int, typer.Option(min=1, max=64, help="Number of cameras.")] = 1,
    full_hd: Annotated[
        bool, typer.Option("--full-hd", help="1920 × 1080 at 30 frames a second instead of rendered footage.")
    ] = False,
    gop: Annotated[int, typer.Option(min=1, help="Distance of intra frames, with --full-hd.")] = 30,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Frames in a batch, repeatable; default: 1, 8, 32.")
    ] = None,
    random_weights: RandomWeights = False,
    profile: ProfileName = None,
) -> None:
    """Measure ingest, and each of its stages alone in the same run.

    Reports CPU seconds, bytes and FLOPs of a frame by stage, the ratio of the whole to each stage, and cameras a core.
    """
    settings = settings_of(context, profile=profile)
    report = import_module("pipeline.bench.ingest").bench_ingest(  # loads torch
        settings.profile,
        minutes=minutes,
        cameras=cameras,
        full_hd=full_hd,
        gop=gop,
        random_weights=random_weights,
        batches=batches or (1, 8, 32),
        device=settings.device,
    )
    print_json(report)


@app.command("memory")
def bench_memory(
    context: typer.Context,
    short: Annotated[int, typer.Option(help="Length of the shorter footage, in minutes.")] = 10,
    long: Annotated[int, typer.Option(help="Length of the longer footage, in minutes.")] = 180,
    profile: ProfileName = None,
) -> None:
    """Measure the peak memory of ingesting short and long footage."""
    print_json(
        memory.bench_memory(settings_of(context, profile=profile).profile, short_minutes=short, long_minutes=long)
    )


@app.command("encoders")
def bench_encoders(
    context: typer.Context,
    profile: ProfileName = None,
    random_weights: RandomWeights = False,
    frames: Annotated[int, typer.Option(min=1, help="Number of frames of 1920 × 1080.")] = 64,
    repeats: Repeats = 3,
) -> None:
    """Measure CLIP and SigLIP in frames a second.

    Runs on the GPU if there is one.
    """
    from pipeline.bench import encoders

    settings = settings_of(context, profile=profile)
    report = encoders.bench_encoders(
        settings.profile, frames=frames, random_weights=random_weights, device=settings.device, repeats=repeats
    )
    print_json(report)


@app.command("patches")
def bench_patches(
    context: typer.Context,
    path: Annotated[Path | None, typer.Option(help="A video file; default: rendered footage.")] = None,
    store: Annotated[Path | None, typer.Option(help="A finished fp16 store of the rendered footage of --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the footage and of the questions.")] = 101,
    minutes: Annotated[float, typer.Option(help="Length of the rendered footage.")] = 20.0,
    each: Annotated[int, typer.Option(help="Number of questions of every kind.")] = 6,
    epsilon: Annotated[list[float] | None, typer.Option(help="An ε, repeatable; default: 1e-5 to 1e-1.")] = None,
    frames: Annotated[int, typer.Option(help="Number of frames whose loading is timed; 0: none.")] = 10_000,
    full_frames: Annotated[
        int, typer.Option(help="Number of frames with synthetic patches of full size whose loading is timed.")
    ] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Folder on the disk to measure; default: the folder for temporary files.")
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Measure size, exactness and speed of patch encodings."""
    from pipeline.bench.patches import encodings

    report = encodings.bench_patches(
        settings_of(context, profile=profile).profile,
        path=path,
        store=store,
        seed=seed,
        minutes=minutes,
        each=each,
        epsilons=epsilon or encodings.EPSILONS,
        load_frames=frames,
        full_frames=full_frames,
        work=work,
    )
    print_json(report)


@app.command("alerts")
def bench_alerts(
    context: typer.Context,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A seed of footage, repeatable; default: 201 to 203.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Length of each stream.")] = 20.0,
    cameras: Annotated[int, typer.Option(help="Number of cameras of each seed.")] = 2,
    work: Annotated[
        Path | None, typer.Option(help="Folder for footage and stores; a later run uses them again.")
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Measure precision and recall of alerts.

    Uses rendered footage, and compares with the best fixed threshold.
    """
    from pipeline.bench import alerts

    report = alerts.bench_alerts(
        settings_of(context, profile=profile).profile,
        seeds=seeds or (201, 202, 203),
        minutes=minutes,
        cameras=cameras,
        work=work,
    )
    print_json(report)


@app.command("backfill")
def bench_backfill(
    context: typer.Context,
    files: Annotated[int, typer.Option(help="Number of files.")] = 30,
    minutes: Annotated[float, typer.Option(help="Length of each file.")] = 10.0,
    repeats: Annotated[int, typer.Option(min=1, help="Number of runs of each kind; medians are reported.")] = 3,
    profile: ProfileName = None,
) -> None:
    """Measure overhead and scaling of backfill.

    Compares it with ingest of the same files, and two worker processes with one.
    """
    from pipeline.bench import backfill

    report = backfill.bench_backfill(
        settings_of(context, profile=profile).profile, files=files, minutes=minutes, repeats=repeats
    )
    print_json(report)


@app.command("consume")
def bench_consume(
    context: typer.Context,
    servers: Annotated[
        str | None, typer.Option("--servers", help="Kafka's host:port; the benchmark creates topics of its own.")
    ] = None,
    cameras: Annotated[int, typer.Option(min=1, max=64, help="Number of rendered cameras.")] = 8,
    minutes: Annotated[float, typer.Option(min=0.2, max=120, help="Length of each camera's footage.")] = 2.0,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Shortest length of a segment, in seconds.")] = 10.0,
    profile: ProfileName = None,
) -> None:
    """Measure a Kafka worker in segments a second.

    Compares it with the limit that the encoder sets in the same run.
    """
    from pipeline.bench import consume

    settings = settings_of(context, profile=profile)
    report = consume.bench_consume(
        settings.profile,
        servers=servers or settings.kafka.servers,
        cameras=cameras,
        minutes=minutes,
        seconds=seconds,
        device=settings.device,
    )
    print_json(report)
