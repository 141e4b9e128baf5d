"""Commands about cameras: watch, record, cameras, clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.alerts import alert_line
from pipeline.cli.options import Json, ProfileName, Servers, StoreUrl, kafka_of, settings_of
from pipeline.console import emit, note, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from ingest.kafka.settings import KafkaSettings
    from ingest.live.config import CameraList, LiveSettings
    from ingest.live.status import CameraState, StateBoard
    from ingest.messages import AlertMessage
    from ingest.outbox import Outbox
    from pipeline.settings import Settings

__all__ = ["cameras", "clip", "record", "watch"]

Urls = Annotated[
    list[str] | None,
    typer.Argument(help="rtsp, rtmp, http(s) (HLS), udp, srt, or loop:FILE; NAME=URL names the stream."),
]
List = Annotated[Path | None, typer.Option("--cameras", "--config", help="cameras.toml; editing it adds and removes.")]
Transport = Annotated[str, typer.Option("--transport", help="Of RTSP URLs given here: tcp or udp.")]
Folder = Annotated[Path | None, typer.Option("--folder", help="Where segments wait and the state is kept.")]
MetricsPort = Annotated[int | None, typer.Option("--metrics-port", help="Serve Prometheus metrics there.")]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Least length of a segment; 10 by default.")]


def _live(settings: Settings, folder: Path | None, seconds: float | None) -> LiveSettings:
    from pydantic import ValidationError

    from index.errors import UsageError
    from ingest.live.config import LiveSettings

    given = {name: value for name, value in (("folder", folder), ("segment_seconds", seconds)) if value is not None}
    try:
        return LiveSettings(**{**settings.live.model_dump(), **given})
    except ValidationError as error:
        raise UsageError(f"--seconds: {error.errors()[0]['msg']}") from None


def _listed(urls: list[str] | None, path: Path | None, transport: str) -> CameraList | Path:
    from index.errors import UsageError
    from ingest.live.config import cameras_of

    if bool(urls) == (path is not None):
        raise UsageError("name the cameras' URLs, or their list with --cameras cameras.toml, and not both")
    return path if path is not None else cameras_of(urls or [], transport)


def _run(cameras: CameraList | Path, live: LiveSettings, taker: Any, command: str, port: int | None) -> None:
    """Until SIGINT or SIGTERM; SIGHUP reads the list again."""
    import signal
    import threading

    from ingest.live.supervisor import run_live
    from ingest.metrics_server import serve_metrics

    stop, reload = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: reload.set())

    def metrics(board: StateBoard) -> None:
        if port is not None:
            note(f"metrics on port {serve_metrics(board, port)}")

    run_live(cameras, live, taker, command=command, stop=stop, reload=reload, metrics=metrics)


def _outbox(settings: Settings, servers: str | None, stack: ExitStack) -> tuple[KafkaSettings, Outbox]:
    """Kafka, and a sender to it that `stack` closes; its topics are there then."""
    from ingest.kafka.clients import Sender, make_topics

    kafka = kafka_of(settings, servers)
    make_topics(kafka)
    return kafka, stack.enter_context(Sender(kafka))


def watch(
    context: typer.Context,
    urls: Urls = None,
    cameras: List = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    publish: Annotated[bool, typer.Option("--publish", help="Send alerts to Kafka as well.")] = False,
    servers: Servers = None,
    transport: Transport = "tcp",
    seconds: Seconds = None,
    folder: Folder = None,
    metrics_port: MetricsPort = None,
    as_json: Json = False,
) -> None:
    """Store what cameras see, one frame a second, and tell what standing questions find, until interrupted."""
    from contextlib import ExitStack

    from index.store import Store
    from ingest.decoding.limits import DecodeLimits
    from ingest.live.store_sink import StoreSink
    from ingest.outbox import publish_alerts
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile

    settings = settings_of(context, store=store, profile=profile)
    live, listed = _live(settings, folder, seconds), _listed(urls, cameras, transport)
    encoders = load_encoders(load_profile(settings.profile), settings.device)
    limits = DecodeLimits(
        pixels=settings.max_pixels, memory_bytes=settings.memory_bytes, stall_seconds=settings.stall_seconds
    )
    kept = Store.open_or_create(settings.store, encoders.pair)
    with ExitStack() as stack:
        kafka, outbox = _outbox(settings, servers, stack) if publish else (settings.kafka, None)

        def tell(told: Sequence[AlertMessage]) -> None:
            if outbox is not None:
                publish_alerts(outbox, kafka.alerts, told)
            for alert in told:
                note(alert_line(alert))

        taker = StoreSink(kept, encoders, settings.consume, limits, on_alerts=tell)
        _run(listed, live, taker, "watch", metrics_port)
    if as_json:
        emit(taker.report())
    else:
        say(f"{taker.frames} frames, {taker.commits} commits, {taker.alerts} alerts")


def record(
    context: typer.Context,
    urls: Urls = None,
    cameras: List = None,
    to: Annotated[str | None, typer.Option("--to", help="Folder or bucket that keeps the segments.")] = None,
    keep_days: Annotated[
        float | None, typer.Option("--keep-days", help="Delete segments in --to that are older; never by default.")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Send each segment to Kafka.")] = False,
    servers: Servers = None,
    transport: Transport = "tcp",
    seconds: Seconds = None,
    folder: Folder = None,
    metrics_port: MetricsPort = None,
    as_json: Json = False,
) -> None:
    """Keep what cameras send without encoding it again, in a folder or bucket, or in Kafka, until interrupted."""
    from contextlib import ExitStack

    from index.errors import UsageError
    from ingest.live.recorder import Recorder, place_of

    if to is None and not publish:
        raise UsageError("record needs --to FOLDER, --publish, or both")
    if keep_days is not None and (to is None or not keep_days > 0):
        raise UsageError("--keep-days is a number of days above 0, and goes with --to")
    settings = settings_of(context)
    live, listed = _live(settings, folder, seconds), _listed(urls, cameras, transport)
    with ExitStack() as stack:
        kafka, outbox = _outbox(settings, servers, stack) if publish else (settings.kafka, None)
        recorder = Recorder(
            None if to is None else place_of(to),
            aside=live.folder / "refused",
            outbox=outbox,
            kafka=kafka,
            keep_seconds=None if keep_days is None else keep_days * 86_400,
        )
        _run(listed, live, recorder, "record", metrics_port)
    if as_json:
        emit({"kept": recorder.kept, "sent": recorder.sent, "refused": recorder.refused, "expired": recorder.expired})
    else:
        say(f"{recorder.kept} segments kept, {recorder.sent} sent")


def cameras(context: typer.Context, folder: Folder = None, as_json: Json = False) -> None:
    """Show every camera that `watch` or `record` reads: its state and why, its newest frame, and what was lost."""
    from ingest.live.status import read_state
    from ingest.live.supervisor import STATE_FILE

    where = folder or settings_of(context).live.folder
    state = read_state(where / STATE_FILE)
    if as_json:
        emit({"running": state.running, **state.model_dump(mode="json")})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("stream", "state", "newest", "frames", "dropped", "late", "reconnects", "drift", "why")
    for camera in state.cameras:
        table.add_row(*_row(camera))
    Console(width=None if Console().is_terminal else 160).print(table)
    if state.waiting_segments:
        say(f"{state.waiting_segments} segments wait, {state.waiting_bytes / 1e6:.1f} MB")
    if state.problem:
        note(state.problem)
    if not state.running:
        note(f"{state.command} is not running; this is what it wrote at {state.updated:%Y-%m-%dT%H:%M:%SZ}")


def _row(camera: CameraState) -> list[str]:
    newest = f"{camera.newest:%H:%M:%S}" if camera.newest else ""
    numbers = [str(n) for n in (camera.frames, camera.dropped, camera.late, camera.reconnects)]
    return [camera.stream, camera.state, newest, *numbers, f"{camera.drift_seconds:+.3f} s", camera.why or ""]


def clip(
    out: Annotated[Path, typer.Argument(help="The clip, .mp4 or .mkv.")],
    stream: Annotated[str, typer.Option("--stream", help="The camera.")],
    start: Annotated[str, typer.Option("--from", help="RFC 3339 time.")],
    end: Annotated[str, typer.Option("--to", help="RFC 3339 time.")],
    recording: Annotated[str, typer.Option("--recording", help="What `record --to` was given.")],
    as_json: Json = False,
) -> None:
    """Cut a playable clip from what was recorded, exact to a group of pictures."""
    from ingest.live.clip import clip as run
    from ingest.live.recorder import place_of
    from pipeline.questions.asker import parse_time

    began, ends = parse_time(start, "--from"), parse_time(end, "--to")
    assert began is not None  # None only comes of None
    assert ends is not None
    report = run(place_of(recording), stream, began, ends, out)
    if as_json:
        emit(report)
        return
    say(f"{report.file}: {report.frames} frames, {report.start} to {report.end}")
    if report.missing_seconds > 0:
        note(f"{report.missing_seconds:.1f} s of it were not recorded; the last picture stands for them")
