"""The command line. Heavy packages are imported inside the commands, so that `sightline --help` is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.console import configure_logging, emit, explain, progress, say

app = typer.Typer(
    name="sightline",
    help="Ask questions about hours of video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
train = typer.Typer(help="Train models.", no_args_is_help=True)
bench = typer.Typer(help="Measure, JSON out.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")

Store = Annotated[str | None, typer.Option("--store", help="URL or path of the store.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="micro, edge, vilamp, or a TOML file.")]
Streams = Annotated[list[str] | None, typer.Option("--stream", help="Stream id; may be repeated. All by default.")]
From = Annotated[str | None, typer.Option("--from", help="RFC 3339 time, inclusive.")]
To = Annotated[str | None, typer.Option("--to", help="RFC 3339 time, exclusive.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
K = Annotated[int | None, typer.Option("--k", help="Most keyframes (profile's K by default).")]
Tau = Annotated[float | None, typer.Option("--tau", help="Similarity threshold of DKS (profile's τ by default).")]
Fill = Annotated[bool, typer.Option("--fill", help="Fill gaps between keyframes until there are K.")]


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and full logs.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")] = None,
) -> None:
    configure_logging(debug=debug)
    context.obj = config


def _settings(context: typer.Context, *, store: str | None = None, profile: str | None = None) -> Any:
    from pipeline.settings import load_settings

    given = {name: value for name, value in (("store", store), ("profile", profile)) if value is not None}
    return load_settings(context.obj).model_copy(update=given)


def _where(streams: list[str] | None, start: str | None, end: str | None) -> dict[str, Any]:
    from index.errors import UsageError
    from pipeline.asking import moment

    low, high = moment(start, "--from"), moment(end, "--to")
    if low is not None and high is not None and low >= high:
        raise UsageError(f"--from {start} is not before --to {end}")
    return {"streams": streams or None, "start": low, "end": high}


def _asker(settings: Any) -> Any:
    from index.store import Store as StoreClass
    from pipeline.asking import Asker

    StoreClass.open(settings.store)  # a missing store is said before models are loaded
    return Asker(settings.store, settings.profile, settings.device)


@app.command()
def render(
    seed: Annotated[int, typer.Option(help="Same seed, same footage.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    minutes: Annotated[float, typer.Option(help="Length of each camera's file.")] = 20.0,
    cameras: Annotated[int, typer.Option(help="Number of cameras.")] = 2,
    as_json: Json = False,
) -> None:
    """Render footage whose truth is known: <camera>.mp4 files and truth.json."""
    from pipeline.render import render as run

    with progress() as bar:
        task = bar.add_task("rendering", total=cameras, detail=f"{cameras} × {minutes:g} min")
        truth = run(seed, minutes, cameras, out, lambda done, _: bar.update(task, completed=done))
    if as_json:
        emit({"truth": str(truth), "files": sorted(str(p) for p in out.glob("camera-*.mp4"))})
    else:
        say(f"{cameras} × {minutes:g} minutes in {out}, truth in {truth}")


@app.command()
def ingest(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs.")],
    store: Store = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Stream id; by file name by default.")] = None,
    start: Annotated[str | None, typer.Option("--start", help="RFC 3339 time of the first frame.")] = None,
    profile: ProfileOption = None,
    as_json: Json = False,
) -> None:
    """Watch footage once, a frame a second, and store what was seen. Running again goes on where it stopped."""
    from index.records import from_micros
    from index.store import Store as StoreClass
    from ingest.limits import Limits
    from ingest.worker import IngestProgress, ingest_sources
    from model.encoders import load_encoders
    from model.profiles import load_profile
    from pipeline.asking import moment

    settings = _settings(context, store=store, profile=profile)
    began = moment(start, "--start")
    encoders = load_encoders(load_profile(settings.profile), settings.device)
    opened = StoreClass.open_or_create(settings.store, encoders.pair)
    limits = Limits(
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
            state = file.problem or ("stored already" if file.skipped else f"{file.frames} frames, decoded: {file.decode_mode}")
            say(f"{file.file}: {state}")
        say(f"{report.frames} frames, {report.frames_per_second:.0f} a second, {report.realtime_factor:.0f}× real time")
    for file in report.failed:
        sys.stderr.write(f"sightline: {file.problem}\n")
    if report.failed:
        raise typer.Exit(1)


@app.command()
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for.")],
    store: Store = None,
    streams: Streams = None,
    start: From = None,
    end: To = None,
    top: Annotated[int, typer.Option("--top", help="Moments to list.")] = 10,
    profile: ProfileOption = None,
    as_json: Json = False,
) -> None:
    """Find moments that look like a text; neighbouring frames are one moment."""
    from pipeline.searching import search as run

    settings = _settings(context, store=store, profile=profile)
    moments = run(text, settings=settings, top=top, **_where(streams, start, end))
    if as_json:
        emit(moments)
        return
    for found in moments:
        say(f"{found.score:6.3f}  {found.stream_id}  {found.start} – {found.end}  best {found.best}")


@app.command()
def keyframes(
    context: typer.Context,
    question: str,
    store: Store = None,
    streams: Streams = None,
    start: From = None,
    end: To = None,
    k: K = None,
    tau: Tau = None,
    fill: Fill = False,
    profile: ProfileOption = None,
    as_json: Json = False,
) -> None:
    """Choose keyframes for a question (DKS) without answering it."""
    where = _where(streams, start, end)
    chosen = _asker(_settings(context, store=store, profile=profile)).keyframes(question, k=k, tau=tau, fill=fill, **where)
    if as_json:
        emit(chosen)
        return
    for frame in chosen:
        say(f"{frame.score:6.3f}  {frame.stream_id}  {frame.captured_at}  +{frame.offset_seconds:.0f} s")


@app.command()
def ask(
    context: typer.Context,
    question: str,
    store: Store = None,
    streams: Streams = None,
    start: From = None,
    end: To = None,
    options: Annotated[list[str] | None, typer.Option("--option", help="An answer to choose from; repeat it.")] = None,
    k: K = None,
    tau: Tau = None,
    fill: Fill = False,
    max_frames: Annotated[int | None, typer.Option("--max-frames", help="Most frames to read (10,000).")] = None,
    profile: ProfileOption = None,
    as_json: Json = False,
) -> None:
    """Answer a question and show the moments it rests on."""
    where = _where(streams, start, end)
    asker = _asker(_settings(context, store=store, profile=profile))
    asked = asker.ask(
        question,
        options=options,
        max_frames=max_frames,
        k=k,
        tau=tau,
        fill=fill,
        on_text=(lambda _: None) if as_json else (lambda piece: say(piece, end="")),
        **where,
    )
    if as_json:
        emit(asked)
        return
    say("\n")
    for frame in sorted(asked.keyframes, key=lambda f: -f.score)[:8]:
        say(f"{frame.score:6.3f}  {frame.stream_id}  {frame.captured_at}  +{frame.offset_seconds:.0f} s")
    say(f"{len(asked.keyframes)} keyframes of {asked.frames} frames, {asked.visual_tokens} visual tokens, "
        f"{asked.timings_seconds['total']:.2f} s")
    for notice in asked.notices:
        sys.stderr.write(f"note: {notice}\n")


@app.command()
def streams(context: typer.Context, store: Store = None, as_json: Json = False) -> None:
    """List the streams of a store."""
    from index.records import rfc3339
    from index.store import Store as StoreClass

    opened = StoreClass.open(_settings(context, store=store).store)
    encoders = {"frame": opened.encoders.frame.name, "patch": opened.encoders.patch.name}
    rows = [
        {"stream_id": s.stream_id, "frames": s.frames, "first": rfc3339(s.first), "last": rfc3339(s.last), "encoders": encoders}
        for s in opened.streams()
    ]
    if as_json:
        emit(rows)
        return
    for row in rows:
        say(f"{row['stream_id']}  {row['frames']} frames  {row['first']} – {row['last']}  {encoders['frame']}, {encoders['patch']}")


@app.command()
def verify(context: typer.Context, store: Store = None, as_json: Json = False) -> None:
    """Check Parquet against FAISS against the encoders' identity; exit 1 and a list when they differ."""
    from index.store import Store as StoreClass

    problems = StoreClass.open(_settings(context, store=store).store).verify()
    if as_json:
        emit({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            say(problem)
        say("the store agrees with itself" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def reindex(context: typer.Context, store: Store = None, as_json: Json = False) -> None:
    """Build the FAISS shards anew from Parquet."""
    from index.store import Store as StoreClass

    written = StoreClass.open(_settings(context, store=store).store).reindex()
    if as_json:
        emit({"shards": written})
    else:
        say(f"{written} shards written")


@app.command()
def forget(
    context: typer.Context,
    stream: Annotated[str, typer.Option("--stream", help="Stream to forget.")],
    store: Store = None,
    before: Annotated[str | None, typer.Option("--before", help="Only frames captured before this RFC 3339 time.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a stream's frames, vectors, patches and pictures for good, old table versions too."""
    from index.errors import UsageError
    from index.store import Store as StoreClass
    from pipeline.asking import moment

    cut = moment(before, "--before")
    opened = StoreClass.open(_settings(context, store=store).store)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("forgetting cannot be undone; pass --yes where nobody can be asked")
        if not typer.confirm(f"Remove {stream}{f' before {before}' if before else ''} for good?"):
            raise typer.Exit(1)
    removed = opened.forget(stream, cut)
    if as_json:
        emit({"stream_id": stream, "frames": removed})
    else:
        say(f"{removed} frames of {stream} are gone")


@train.command("micro")
def train_micro(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    seed: Annotated[int, typer.Option()] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder for bank, features and checkpoints.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A MicroPlan as JSON, for smaller runs.")] = None,
) -> None:
    """Train the micro profile from nothing (about two hours on two cores); resumable."""
    from model.train_micro import MicroPlan, Progress
    from model.train_micro import train_micro as run

    chosen = MicroPlan.model_validate_json(plan.read_text()) if plan else MicroPlan(seed=seed)
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def tell(p: Progress) -> None:
            if p.stage not in tasks:
                tasks[p.stage] = bar.add_task(p.stage, total=p.total, detail="")
            detail = "  ".join(f"{name} {value:.3f}" for name, value in p.figures.items())
            bar.update(tasks[p.stage], completed=p.done, detail=detail)

        run(out, plan=chosen, work=work, on_progress=tell)
    say(f"weights in {out}, loss curves in {out / 'training.svg'}")


@bench.command("decode")
def bench_decode(
    path: Annotated[Path | None, typer.Option(help="A video file; made for the purpose by default.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of the files that are made.")] = 60.0,
) -> None:
    """Real-time factors of the decoder beside `ffmpeg -vf fps=1` on the same files."""
    from pipeline.bench_decode import bench_decode as run

    emit(run(path, seconds=seconds))


@bench.command("dks")
def bench_dks(
    frames: Annotated[list[int] | None, typer.Option(help="Sizes; 10,000 and 1,000,000 by default.")] = None,
) -> None:
    """Keyframe selection on one core beside the naive N × N algorithm."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before numpy is imported
    from pipeline.bench_dks import bench_dks as run

    emit(run(frames or [10_000, 1_000_000]))


@bench.command("ingest")
def bench_ingest(context: typer.Context, minutes: float = 5.0, profile: ProfileOption = None) -> None:
    """Frames a second of the whole ingest, and its stages, on rendered footage."""
    from pipeline.bench_question import bench_ingest as run

    emit(run(_settings(context, profile=profile).profile, minutes=minutes))


@bench.command("ask")
def bench_ask(
    context: typer.Context,
    frames: Annotated[list[int] | None, typer.Option(help="Frames a question; 1,200 and 10,000 by default.")] = None,
    profile: ProfileOption = None,
) -> None:
    """Seconds of every stage of a question over windows of several sizes."""
    from pipeline.bench_question import bench_ask as run

    emit(run(_settings(context, profile=profile).profile, frames or [1_200, 10_000]))


@app.command()
def evaluate(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Folder for footage and stores; kept.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Seeds of footage; 101, 102, 103 by default.")] = None,
    minutes: float = 20.0,
    out: Annotated[Path | None, typer.Option(help="Write JSON and a Markdown table beside it.")] = None,
    profile: ProfileOption = None,
) -> None:
    """What a profile gets right on rendered footage of unseen seeds."""
    from pipeline.evaluate import evaluate as run
    from pipeline.evaluation_table import table

    settings = _settings(context, profile=profile)
    with progress() as bar:
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
    say(text)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for footage, store and report.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option()] = 7,
    minutes: Annotated[float, typer.Option()] = 20.0,
    profile: str = "micro",
) -> None:
    """Render two cameras, ingest them, ask what the renderer knows, and write a report."""
    from pipeline.demo import demo as run

    run(out, seed=seed, minutes=minutes, profile=profile)


def main() -> None:
    """Entry point of the `sightline` command."""
    debug = "--debug" in sys.argv
    if debug:  # wherever it stands
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(explain(KeyboardInterrupt(), debug=debug))
    except Exception as error:
        from click import ClickException
        from click.exceptions import NoArgsIsHelpError

        if isinstance(error, NoArgsIsHelpError):
            error.show()
            sys.exit(0)
        if isinstance(error, ClickException):
            sys.stderr.write(f"sightline: {error.format_message()}\n")
            sys.exit(2)
        sys.exit(explain(error, debug=debug))
    except KeyboardInterrupt as error:
        sys.exit(explain(error, debug=debug))


if __name__ == "__main__":
    main()
