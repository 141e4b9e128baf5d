"""Benchmarks of stores and of search in them: `sightline bench store`, `search` and others.

Modules that load torch, Apache Beam or a Kafka client are imported when their command runs.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from index.child_processes import process_pool
from index.errors import UsageError
from index.extras import require_extra
from index.store import Store
from model.profiles.profile import load_profile
from pipeline.bench import dks
from pipeline.bench.scale import operations, synthetic
from pipeline.bench.search import run as search
from pipeline.bench.search.devices import bench_devices
from pipeline.cli.bench.group import app
from pipeline.cli.options import settings_of
from pipeline.console import print_json, progress

__all__: list[str] = []


@app.command("search")
def bench_search(
    frames: Annotated[int, typer.Option(min=1_000, help="Number of frames.")] = 1_000_000,
    cameras: Annotated[int, typer.Option(min=1, max=1_000, help="Number of streams.")] = 200,
    queries: Annotated[int, typer.Option(min=1, help="Number of texts.")] = 100,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the store, which a later run uses again; 2.2 GB a million frames.")
    ] = None,
    exact: Annotated[bool, typer.Option(help="Also measure the exact search of all frames.")] = True,
    gpu: Annotated[bool, typer.Option("--gpu", help="Compare FAISS on a GPU with the CPU instead.")] = False,
) -> None:
    """Measure search over many frames with the large index, in made vectors of cameras: recall, latency and memory."""
    bench: Any = bench_devices if gpu else lambda *a, **k: search.bench_search(*a, exact=exact, **k)
    print_json(bench(frames, cameras=cameras, queries=queries, work=work))


@app.command("dks")
def bench_dks(
    frames: Annotated[
        list[int] | None, typer.Option(help="Number of frames, repeatable; default: 10,000 and 1,000,000.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Select among all frames of a store in place of made ones.")
    ] = None,
) -> None:
    """Measure keyframe selection on one core.

    Compares it with the naive N × N algorithm and with the memory bandwidth.
    More than two million frames, and a store, are read in parts with two threads.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # numpy reads them when it is loaded, so the benchmark needs a new process
    with process_pool(1) as pool:
        print_json(pool.submit(dks.bench_dks, frames or [10_000, 1_000_000], store=store).result())


@app.command("desk")
def bench_desk(
    store: Annotated[Path, typer.Option(help="Folder of the store, which is made if it is missing.")] = Path(
        "desk-store"
    ),
    frames: Annotated[int, typer.Option(min=1, help="Frames of a store that is made.")] = 1_000_000,
    picture_width: Annotated[int, typer.Option(min=16, help="Width of its pictures, in pixels.")] = 480,
    searches: Annotated[int, typer.Option(min=1, max=100, help="Number of searches.")] = 30,
    thumbnails: Annotated[int, typer.Option(min=1, help="Number of thumbnails.")] = 300,
) -> None:
    """Measure what a browser waits for at the desk: first page, list of results, thumbnails.

    The store has random vectors and no patches. Its pictures have 16 kB at a width of 480, and 3 kB at 128.
    """
    require_extra("web", "sightline bench desk")
    desk = import_module("pipeline.bench.desk")  # loads torch and the desk's server
    sizes = {"frames": frames, "picture_width": picture_width, "searches": searches, "thumbnails": thumbnails}
    print_json(desk.bench_desk(store, **sizes))


@app.command("store")
def bench_store(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(help="Folder of the store; one that was stopped half-way is completed.")],
    streams: Annotated[int, typer.Option(min=1, help="Number of streams.")] = 200,
    days: Annotated[int, typer.Option(min=1, help="Days of footage of each stream.")] = 2,
    frames: Annotated[int, typer.Option(min=1, max=86_400, help="Frames of a stream's day.")] = 2_085,
    every: Annotated[int, typer.Option(min=1, help="Seconds between two frames.")] = 1,
    files: Annotated[
        int, typer.Option(min=1, help="Files of a stream's day in each table; 1 is a compacted store.")
    ] = 1,
    segments: Annotated[int, typer.Option(min=1, help="Segments of a stream's day, a multiple of the files.")] = 24,
    dimension: Annotated[int, typer.Option(min=1, help="Length of the frame vectors.")] = 512,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Profile whose encoders the store claims, so that texts can be asked."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the vectors.")] = 0,
    shuffled: Annotated[
        bool,
        typer.Option("--shuffled", help="Commit the files of a day in no order, as workers of a backfill do."),
    ] = False,
) -> None:
    """Make a store of any size with synthetic vectors and tiny patches.

    The store is valid, and `verify` finds no problem in it. Its vectors are not of footage: use it for times and sizes.
    """
    encoders = None
    if profile is not None:
        named = load_profile(settings_of(context, profile=profile).profile)
        encoders = import_module("model.encoders.encoder").load_encoders(named).pair
        dimension = encoders.frame.dimension
    plan = synthetic.StorePlan(streams, days, frames, every, files, segments, dimension, seed, shuffled)
    began = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("store", total=None, detail="")
        synthetic.make_synthetic_store(
            store,
            plan,
            encoders=encoders,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_json(
        {**asdict(plan), "total_frames": streams * days * frames, "seconds": round(time.perf_counter() - began, 1)}
    )


@app.command("operations")
def bench_operations(
    store: Annotated[Path, typer.Argument(help="A store that `bench store` made.")],
    change: Annotated[
        bool, typer.Option("--change/--no-change", help="Also seal and compact it, and measure what follows.")
    ] = True,
    appends: Annotated[
        list[int] | None,
        typer.Option("--appends", help="Measure appends instead, after so many of them; repeatable, ascending."),
    ] = None,
) -> None:
    """Measure the operations on a store: seconds, CPU seconds, bytes and calls of reads."""
    found = Store.open(store)
    if appends:
        print_json({"machine": operations.machine(), "appends": operations.measure_appends(found.url, appends)})
        return
    query = synthetic.concepts(synthetic.StorePlan(dimension=found.encoders.frame.dimension))[7]
    print_json({"machine": operations.machine(), "operations": operations.measure(found.url, query, change=change)})


@app.command("writers")
def bench_writers(
    writers: Annotated[
        list[int] | None,
        typer.Option("--writers", min=1, max=64, help="Number of writers, repeatable; default: 2, 4, 8."),
    ] = None,
    commits: Annotated[int, typer.Option(min=1, help="Commits of each writer.")] = 10,
    pause: Annotated[float, typer.Option(min=0, help="Seconds between two commits of a writer.")] = 2.0,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a commit.")] = 60,
) -> None:
    """Measure what several writers of one store cost one another.

    Each is a process that commits to one S3 server, which counts requests. Needs moto, of the extra dev.
    """
    try:
        contention = import_module("pipeline.bench.scale.contention")  # loads moto
    except ModuleNotFoundError as error:
        raise UsageError(f"sightline bench writers needs {error.name}: pip install 'sightline[dev]'") from None
    print_json(contention.bench_writers(writers or [2, 4, 8], commits=commits, pause=pause, frames=frames))
