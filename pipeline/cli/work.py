"""Commands that measure and train: evaluate, train, bench."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Json, ProfileName, settings_of
from pipeline.console import emit, progress, say

if TYPE_CHECKING:
    from rich.progress import TaskID

    from model.training.micro.recipe import Progress

__all__ = ["bench", "evaluate", "train"]

train = typer.Typer(help="Train models.")
bench = typer.Typer(help="Measure; JSON on standard output.")


@train.command("micro")
def train_micro(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    seed: Annotated[int, typer.Option(help="Same seed, same data in the same order.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder for bank, features and checkpoints.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A MicroPlan as JSON, for smaller runs.")] = None,
) -> None:
    """Train the micro profile from nothing (about two hours on two cores); running again resumes."""
    from pydantic import ValidationError

    from index.errors import UsageError
    from model.training.micro.recipe import MicroPlan
    from model.training.micro.recipe import train_micro as run

    try:
        chosen = MicroPlan.model_validate_json(plan.read_text()) if plan else MicroPlan(seed=seed)
    except (OSError, ValidationError) as error:
        raise UsageError(f"{plan or '--seed'}: not a plan ({str(error).splitlines()[0]})") from None
    with progress() as bar:
        tasks: dict[str, TaskID] = {}

        def tell(p: Progress) -> None:
            if p.stage not in tasks:
                tasks[p.stage] = bar.add_task(p.stage, total=p.total, detail="")
            detail = "  ".join(f"{name} {value:.3f}" for name, value in p.figures.items())
            bar.update(tasks[p.stage], completed=p.done, detail=detail)

        run(out, plan=chosen, work=work, on_progress=tell)
    say(f"weights in {out}, loss curves in {out / 'training.svg'}")


@bench.command("decode")
def bench_decode(
    path: Annotated[Path | None, typer.Option(help="A video file; two are made for the purpose by default.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of the files that are made.")] = 300.0,
) -> None:
    """Real-time factors of the decoder beside `ffmpeg -vf fps=1` on the same files."""
    from pipeline.bench.decode import bench_decode as run

    emit(run(path, seconds=seconds))


@bench.command("page")
def bench_page(
    figures: Annotated[Path, typer.Option(help="Folder of what the other benchmarks printed.")] = Path("benchmarks"),
    out: Annotated[Path, typer.Option(help="The page.")] = Path("figures.html"),
) -> None:
    """One page that shows the figures of a folder."""
    from pipeline.figures import figures_page
    from pipeline.pages import write_page

    say(f"figures in {write_page(out, figures_page(figures))}")


@bench.command("dks")
def bench_dks(
    frames: Annotated[list[int] | None, typer.Option(help="Sizes; 10,000 and 1,000,000 by default.")] = None,
) -> None:
    """Keyframe selection on one core beside the naive N × N algorithm."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before numpy is imported
    from pipeline.bench.dks import bench_dks as run

    emit(run(frames or [10_000, 1_000_000]))


@bench.command("ingest")
def bench_ingest(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(help="Length of the footage that is rendered.")] = 5.0,
    profile: ProfileName = None,
) -> None:
    """Frames a second of the whole ingest, and its stages, on rendered footage."""
    from pipeline.bench.question import bench_ingest as run

    emit(run(settings_of(context, profile=profile).profile, minutes=minutes))


@bench.command("memory")
def bench_memory(
    context: typer.Context,
    short: Annotated[int, typer.Option(help="Minutes of the shorter footage.")] = 10,
    long: Annotated[int, typer.Option(help="Minutes of the longer footage.")] = 180,
    profile: ProfileName = None,
) -> None:
    """Peak memory of ingesting minutes beside ingesting hours."""
    from pipeline.bench.memory import bench_memory as run

    emit(run(settings_of(context, profile=profile).profile, short_minutes=short, long_minutes=long))


@bench.command("ask")
def bench_ask(
    context: typer.Context,
    frames: Annotated[list[int] | None, typer.Option(help="Frames a question; 1,200 and 10,000 by default.")] = None,
    profile: ProfileName = None,
) -> None:
    """Seconds of every stage of a question over windows of several sizes."""
    from pipeline.bench.question import bench_ask as run

    emit(run(settings_of(context, profile=profile).profile, frames or [1_200, 10_000]))


@bench.command("model")
def bench_model(
    context: typer.Context,
    profile: ProfileName = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Make the model from the sizes in the profile; needs no files.")
    ] = False,
    stored_lengths: Annotated[
        bool, typer.Option("--stored-lengths", help="As if the learned merger's lengths had been stored at ingest.")
    ] = False,
    frames: Annotated[str, typer.Option(help="Window sizes, separated by commas.")] = "64,256,1024,8192,10000",
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs of each size.")] = 3,
) -> None:
    """Seconds, memory, FLOPs and bytes of DFM, projector and prefill, on the GPU if there is one."""
    from index.errors import UsageError
    from pipeline.bench.model import bench_model as run

    try:
        sizes = [int(part) for part in frames.split(",")]
    except ValueError:
        raise UsageError(f"--frames {frames}: give whole numbers separated by commas, such as 64,256") from None
    settings = settings_of(context, profile=profile)
    report = run(
        settings.profile,
        sizes,
        random_weights=random_weights,
        stored_lengths=stored_lengths,
        device=settings.device,
        repeats=repeats,
    )
    emit(report)


@bench.command("encoders")
def bench_encoders(
    context: typer.Context,
    profile: ProfileName = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Make the encoders from the sizes in the profile; needs no files.")
    ] = False,
    frames: Annotated[int, typer.Option(min=1, help="Frames of 1920 × 1080.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 3,
) -> None:
    """Frames a second of CLIP and SigLIP, on the GPU if there is one."""
    from pipeline.bench.encoders import bench_encoders as run

    settings = settings_of(context, profile=profile)
    emit(run(settings.profile, frames=frames, random_weights=random_weights, device=settings.device, repeats=repeats))


@bench.command("patches")
def bench_patches(
    context: typer.Context,
    path: Annotated[Path | None, typer.Option(help="A video file in place of rendered footage.")] = None,
    store: Annotated[Path | None, typer.Option(help="A finished fp16 store of the rendered footage of --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the footage and of the questions.")] = 101,
    minutes: Annotated[float, typer.Option(help="Length of the footage that is rendered.")] = 20.0,
    each: Annotated[int, typer.Option(help="Questions of every kind.")] = 6,
    epsilon: Annotated[list[float] | None, typer.Option(help="ε to measure; 1e-5 to 1e-1 by default.")] = None,
    frames: Annotated[int, typer.Option(help="Frames whose loading is timed; 0 for none.")] = 10_000,
    full_frames: Annotated[int, typer.Option(help="The same with synthetic patches of the full size.")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Folder on the disk to measure; the temporary one by default.")
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Bytes, exactness and loading speed of each way to keep patches."""
    from pipeline.bench.patches import EPSILONS
    from pipeline.bench.patches import bench_patches as run

    name = settings_of(context, profile=profile).profile
    emit(
        run(
            name,
            path=path,
            store=store,
            seed=seed,
            minutes=minutes,
            each=each,
            epsilons=epsilon or EPSILONS,
            load_frames=frames,
            full_frames=full_frames,
            work=work,
        )
    )


def evaluate(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Folder for footage and stores; kept.")],
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A seed of footage; 101, 102 and 103 by default.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Length of each stream.")] = 20.0,
    out: Annotated[Path | None, typer.Option(help="Write JSON there and a Markdown table beside it.")] = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """What a profile gets right on rendered footage of unseen seeds."""
    from pipeline.evaluation.rendered import evaluate as run
    from pipeline.evaluation.table import table

    settings = settings_of(context, profile=profile)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("evaluating", total=None, detail="")
        result = run(
            work,
            profile=settings.profile,
            seeds=seeds or (101, 102, 103),
            minutes=minutes,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    text = table(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.model_dump_json(indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    if as_json:
        emit(result)
    else:
        say(text)
