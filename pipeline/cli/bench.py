"""Commands that run benchmarks: `sightline bench …`. Each prints its figures as JSON on standard output.

Benchmarks that load torch, Apache Beam or a Kafka client are imported when their command runs.
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
from pipeline.bench import ask, decode, dks, ingest, memory, service
from pipeline.bench.counted import question
from pipeline.bench.scale import operations, synthetic
from pipeline.bench.search import run as search
from pipeline.bench.search.devices import bench_devices
from pipeline.cli.options import ProfileName, settings_of
from pipeline.console import configure_logging, print_json, print_line, progress
from pipeline.evaluation import selectors
from pipeline.figures import figures_page
from pipeline.pages import write_page

__all__ = ["app"]

app = typer.Typer(name="bench", help="Run benchmarks; they print JSON.", rich_markup_mode=None)

RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Use random weights of the profile's sizes; needs no files.")
]
Repeats = Annotated[int, typer.Option(min=1, help="Number of measured runs.")]


@app.command("decode")
def bench_decode(
    path: Annotated[Path | None, typer.Option(help="A video file; default: two generated files.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of the generated files, in seconds.")] = 300.0,
) -> None:
    """Measure the decoder, and ffmpeg on the same files.

    The ffmpeg command is `ffmpeg -vf fps=1`. Reports factors of real time.
    """
    print_json(decode.bench_decode(path, seconds=seconds))


@app.command("page")
def bench_page(
    figures: Annotated[Path, typer.Option(help="Folder with the output of the benchmarks.")] = Path("benchmarks"),
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("figures.html"),
) -> None:
    """Write an HTML page that shows the figures of a folder."""
    print_line(f"figures in {write_page(out, figures_page(figures))}")


@app.command("dks")
def bench_dks(
    frames: Annotated[
        list[int] | None, typer.Option(help="Number of frames, repeatable; default: 10,000 and 1,000,000.")
    ] = None,
) -> None:
    """Measure keyframe selection on one core.

    Compares it with the naive N × N algorithm and with the memory bandwidth.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # numpy reads them when it is loaded, so the benchmark needs a new process
    with process_pool(1) as pool:
        print_json(pool.submit(dks.bench_dks, frames or [10_000, 1_000_000]).result())


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


@app.command("dfm")
def bench_dfm(
    profile: Annotated[str, typer.Option(help="Model profile that gives the sizes, or a TOML file.")] = "vilamp",
    frames: Annotated[
        list[int] | None, typer.Option(help="Frames of one keyframe, repeatable; default: 1 to 10,000.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: CUDA if available.")] = None,
) -> None:
    """Measure DFM: its kernel against plain torch on the same patches.

    Reports seconds, the share of the memory bandwidth and the error of both.
    """
    module = import_module("pipeline.bench.kernels.dfm")  # loads torch
    print_json(module.bench_dfm(profile, frames or (1, 32, 312, 1024, 10_000), device=device))


@app.command("selectors")
def bench_selectors(
    work: Annotated[Path, typer.Option(help="Folder for footage and stores, which a second run uses again.")] = Path(
        "selectors-work"
    ),
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Seed of a world; default: 101 to 103.")] = None,
    minutes: Annotated[float, typer.Option(help="Length of each camera's footage.")] = 20.0,
) -> None:
    """Compare the selectors of keyframes on rendered footage.

    A scene that all frames share is added in five strengths, with and without a change from day to night.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # numpy reads them when it is loaded, so the benchmark needs a new process
    with process_pool(1) as pool:
        pool.submit(configure_logging, debug=False).result()  # logs go to standard error there too
        task = pool.submit(selectors.bench_selectors, work, seeds=seeds or [101, 102, 103], minutes=minutes)
        print_json(task.result())


@app.command("readings")
def bench_readings(
    work: Annotated[Path, typer.Option(help="Folder for footage and stores, which a second run uses again.")] = Path(
        "readings-work"
    ),
    profiles: Annotated[list[str] | None, typer.Option("--profile", help="Default: micro and micro-hico.")] = None,
    frames: Annotated[list[int] | None, typer.Option("--frames", help="Length; default: 500 to 4,000.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rendered world.")] = 201,
    each: Annotated[int, typer.Option(help="Questions of every kind.")] = 8,
    dropping: Annotated[bool, typer.Option("--dropping/--no-dropping", help="Also HiCo with dropping.")] = True,
) -> None:
    """Compare DFM and HiCo on the same questions about rendered footage.

    Reports accuracy, tokens, counted FLOPs, memory and seconds for each length.
    """
    readings = import_module("pipeline.evaluation.readings")  # loads torch
    with progress() as bar:
        task = bar.add_task("readings", total=None, detail="")
        print_json(
            readings.bench_readings(
                work,
                profiles=profiles or ["micro", "micro-hico"],
                lengths=frames or [500, 1000, 2000, 4000],
                seed=seed,
                each=each,
                dropping=dropping,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )


@app.command("ingest")
def bench_ingest(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(help="Length of the rendered footage.")] = 5.0,
    profile: ProfileName = None,
) -> None:
    """Measure ingest by stage, in frames a second.

    Ingests footage that is rendered for the benchmark.
    """
    print_json(ingest.bench_ingest(settings_of(context, profile=profile).profile, minutes=minutes))


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
) -> None:
    """Make a store of any size with synthetic vectors and tiny patches.

    The store is valid, and `verify` finds no problem in it. Its vectors are not of footage: use it for times and sizes.
    """
    encoders = None
    if profile is not None:
        named = load_profile(settings_of(context, profile=profile).profile)
        encoders = import_module("model.encoders.encoder").load_encoders(named).pair
        dimension = encoders.frame.dimension
    plan = synthetic.StorePlan(streams, days, frames, every, files, segments, dimension, seed)
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


@app.command("ask")
def bench_ask(
    context: typer.Context,
    frames: Annotated[
        list[int] | None, typer.Option(help="Number of frames of a question, repeatable; default: 1,200 and 10,000.")
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Measure the stages of a question over windows of several sizes."""
    print_json(ask.bench_ask(settings_of(context, profile=profile).profile, frames or [1_200, 10_000]))


@app.command("model")
def bench_model(
    context: typer.Context,
    profile: ProfileName = None,
    random_weights: RandomWeights = False,
    stored_lengths: Annotated[
        bool, typer.Option("--stored-lengths", help="Assume that ingest stored the lengths of the learned merger.")
    ] = False,
    frames: Annotated[str, typer.Option(help="Window sizes, separated by commas.")] = "64,256,1024,8192,10000",
    repeats: Repeats = 3,
    counted: Annotated[
        bool, typer.Option("--counted", help="Count FLOPs and bytes from the profile's sizes instead of running it.")
    ] = False,
    dropping: Annotated[
        bool | None, typer.Option(help="Drop visual tokens in deep layers, or never; default: what the profile does.")
    ] = None,
) -> None:
    """Measure DFM or the reading of clips, projector and prefill.

    Reports time, memory, FLOPs and bytes, on the GPU if there is one.
    """
    from pipeline.bench import model

    try:
        sizes = [int(part) for part in frames.split(",")]
    except ValueError:
        raise UsageError(f"--frames {frames}: give whole numbers separated by commas, such as 64,256") from None
    settings = settings_of(context, profile=profile)
    if counted:
        print_json(question.count_questions(settings.profile, sizes))
        return
    report = model.bench_model(
        settings.profile,
        sizes,
        random_weights=random_weights,
        stored_lengths=stored_lengths,
        device=settings.device,
        repeats=repeats,
        dropping=dropping,
    )
    print_json(report)


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


@app.command("service")
def bench_service(
    context: typer.Context,
    clients: Annotated[int, typer.Option(min=1, max=1_000, help="Number of concurrent clients.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="Length of the test, in seconds.")] = 180.0,
    minutes: Annotated[float, typer.Option(min=0.2, max=120, help="Length of the rendered footage.")] = 2.0,
    profile: ProfileName = None,
) -> None:
    """Measure a model service under load.

    Reports latency, memory over time, and lost or wrong answers.
    """
    require_extra("service", "sightline bench service")

    report = service.bench_service(
        settings_of(context, profile=profile).profile, clients=clients, seconds=seconds, minutes=minutes
    )
    print_json(report)
