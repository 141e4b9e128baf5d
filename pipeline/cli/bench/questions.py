"""Benchmarks of questions and of the models that answer: `sightline bench ask`, `model` and others.

Modules that load torch, Apache Beam or a Kafka client are imported when their command runs.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from index.child_processes import process_pool
from index.errors import UsageError
from index.extras import require_extra
from pipeline.bench import ask, service
from pipeline.bench.counted import question
from pipeline.cli.bench.group import RandomWeights, Repeats, app
from pipeline.cli.options import ProfileName, settings_of
from pipeline.console import configure_logging, print_json, progress
from pipeline.evaluation import selectors

__all__: list[str] = []


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
