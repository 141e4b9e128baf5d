"""Commands about live cameras: watch, record, cameras, clip."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from index.commits.held import Hold
from index.errors import UsageError, mask_url
from index.store import Store
from index.tables import normalize_url, store_exists
from ingest.kafka.settings import KafkaSettings
from ingest.live.clip import clip as cut_clip
from ingest.live.config import CameraList, LiveSettings, cameras_of, read_cameras
from ingest.live.recorder import Recorder, folder_url
from ingest.live.spool import SpooledSegment
from ingest.live.status import CameraState, LiveReport, StatusRegistry, read_status
from ingest.live.store_sink import StoreSink
from ingest.live.supervisor import STATUS_FILE, run_live
from ingest.messages import AlertMessage
from ingest.metrics_server import serve_metrics
from ingest.outbox import Outbox, publish_alerts
from pipeline.cli.alerts import alert_line
from pipeline.cli.options import (
    Json,
    MetricsAddress,
    MetricsPort,
    ProfileName,
    RequireSandbox,
    Servers,
    StoreUrl,
    Zone,
    check_store,
    kafka_settings,
    load_models,
    report_sandbox,
    settings_of,
    time_range,
    validate,
)
from pipeline.console import print_json, print_line, print_note, stop_event
from pipeline.media.clip import clip_ingested
from pipeline.media.footage import FootageFinder
from pipeline.settings import Settings

__all__ = ["app", "cameras", "clip", "record", "watch"]

app = typer.Typer(rich_markup_mode=None)

_TABLE_WIDTH = 110
"""Columns of a terminal below which the cameras are listed without a table."""

Urls = Annotated[
    list[str] | None,
    typer.Argument(help="rtsp, rtmp, http(s) (HLS), udp or srt URLs, or loop:FILE; NAME=URL sets the stream id."),
]
CameraFile = Annotated[
    Path | None,
    typer.Option("--cameras", "--config", help="List of cameras, a TOML file; it is read again when it changes."),
]
Transport = Annotated[str, typer.Option("--transport", help="Transport of the RTSP URLs given here: tcp or udp.")]
Folder = Annotated[Path | None, typer.Option("--folder", help="Folder for waiting segments and the cameras' state.")]
Seconds = Annotated[
    float | None, typer.Option("--seconds", help="Shortest length of a segment, in seconds; default: 10.")
]


def _live_settings(settings: Settings, folder: Path | None, seconds: float | None) -> LiveSettings:
    given = {name: value for name, value in (("folder", folder), ("segment_seconds", seconds)) if value is not None}
    return validate(LiveSettings, {**settings.live.model_dump(), **given}, "--seconds")


def _camera_list(urls: list[str] | None, path: Path | None, transport: str) -> CameraList | Path:
    if bool(urls) == (path is not None):
        raise UsageError("give either the cameras' URLs or a list of cameras, --cameras cameras.toml")
    return path if path is not None else cameras_of(urls or [], transport)


def _run(
    cameras: CameraList | Path,
    live: LiveSettings,
    sink: Any,
    command: str,
    port: int | None,
    address: str,
    *,
    on_drop: Callable[[SpooledSegment], None],
) -> LiveReport:
    """Read the cameras until SIGINT or SIGTERM; SIGHUP reads the list of cameras again."""
    stop, reload = stop_event(), threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: reload.set())

    def metrics(registry: StatusRegistry) -> None:
        """Serve the metrics, if a port is given."""
        if port is not None:
            print_note(serve_metrics(registry, port, address))

    return run_live(cameras, live, sink, command=command, stop=stop, reload=reload, metrics=metrics, on_drop=on_drop)


def _outbox(settings: Settings, servers: str | None, stack: ExitStack) -> tuple[KafkaSettings, Outbox]:
    """The Kafka settings, and a sender that `stack` closes; creates missing topics."""
    from ingest.kafka.clients import Sender, make_topics  # needs the extra kafka

    kafka = kafka_settings(settings, servers)
    make_topics(kafka)
    return kafka, stack.enter_context(Sender(kafka))


@app.command("watch")
def watch(
    context: typer.Context,
    urls: Urls = None,
    cameras: CameraFile = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    publish: Annotated[bool, typer.Option("--publish", help="Send alerts to Kafka as well.")] = False,
    servers: Servers = None,
    transport: Transport = "tcp",
    seconds: Seconds = None,
    folder: Folder = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    require_sandbox: RequireSandbox = False,
    as_json: Json = False,
) -> None:
    """Index live cameras, one frame a second, and report alerts.

    Runs until it is interrupted. Alerts of the store's standing questions are printed on standard error.
    """
    settings = settings_of(context, store=store, profile=profile, require_sandbox=require_sandbox)
    live, listed = _live_settings(settings, folder, seconds), _camera_list(urls, cameras, transport)
    if isinstance(listed, Path):
        read_cameras(listed)  # before the models are loaded, so that a mistake is reported at once
    check_store(settings)
    report_sandbox(settings)
    with ExitStack() as stack:
        kafka, outbox = _outbox(settings, servers, stack) if publish else (settings.kafka, None)
        encoders = load_models(settings, quiet=as_json)
        opened = Store.open_or_create(settings.store, encoders.pair)

        def report(alerts: Sequence[AlertMessage]) -> None:
            """Print alerts, and send them to Kafka if requested."""
            if outbox is not None:
                publish_alerts(outbox, kafka.alerts, alerts)
            for alert in alerts:
                print_note(alert_line(alert))

        sink = StoreSink(opened, encoders, settings.consume, settings.decode_limits, on_alerts=report)
        received = _run(listed, live, sink, "watch", metrics_port, metrics_address, on_drop=sink.drop)
    _print_end(
        f"{sink.frames} frames, {sink.commits} commits, {sink.alerts} alerts", sink.report(), received, as_json=as_json
    )


def _print_end(counts: str, report: dict[str, Any], received: LiveReport, *, as_json: bool) -> None:
    """Print what a command did, and what of the cameras' frames was lost."""
    if as_json:
        print_json({**report, **dict(received)})
        return
    print_line(counts)
    print_line(str(report["footage"]))
    if losses := str(received):
        print_line(losses)


def _holds_of(store: str) -> Callable[[], Sequence[Hold]]:
    """Reads the evidence locks of a store that exists when `record` begins; none otherwise."""
    url = normalize_url(store)
    if not store_exists(url):
        return list
    print_note(f"recordings that {mask_url(url)} holds as evidence are not deleted")
    return lambda: Store.open(url).holds()


@app.command("record")
def record(
    context: typer.Context,
    urls: Urls = None,
    cameras: CameraFile = None,
    to: Annotated[str | None, typer.Option("--to", help="Folder or bucket for the segments.")] = None,
    keep_days: Annotated[
        float | None,
        typer.Option("--keep-days", help="Delete older segments from --to, such as 30 or 0.5; default: keep all."),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Send each segment to Kafka.")] = False,
    servers: Servers = None,
    transport: Transport = "tcp",
    seconds: Seconds = None,
    folder: Folder = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    require_sandbox: RequireSandbox = False,
    as_json: Json = False,
) -> None:
    """Keep the compressed video of live cameras.

    Writes to a folder or bucket (--to), to Kafka (--publish), or to both. Runs until it is interrupted. The video is
    not encoded again. With --keep-days, what is held as evidence stays: by the store of the settings, if there is one,
    and by the markers that `evidence hold --recordings` writes into the folder.
    """
    if to is None and not publish:
        raise UsageError("record needs --to FOLDER, --publish, or both")
    if keep_days is not None and (to is None or not keep_days > 0):
        raise UsageError("--keep-days must be a number of days above 0, and needs --to")
    settings = settings_of(context, require_sandbox=require_sandbox)
    live, listed = _live_settings(settings, folder, seconds), _camera_list(urls, cameras, transport)
    report_sandbox(settings)
    with ExitStack() as stack:
        kafka, outbox = _outbox(settings, servers, stack) if publish else (settings.kafka, None)
        recorder = Recorder(
            None if to is None else folder_url(to),
            aside=live.folder / "refused",
            outbox=outbox,
            kafka=kafka,
            keep_seconds=None if keep_days is None else keep_days * 86_400,
            holds=_holds_of(settings.store) if keep_days is not None else list,
        )
        received = _run(listed, live, recorder, "record", metrics_port, metrics_address, on_drop=recorder.drop)
    counts = f"{recorder.kept} segments kept, {recorder.sent} sent"
    _print_end(counts, recorder.report(), received, as_json=as_json)


@app.command("cameras")
def cameras(context: typer.Context, folder: Folder = None, as_json: Json = False) -> None:
    """Show the state of the cameras of `watch` or `record`.

    Lists the newest frame of each camera, its losses, and the reason for its state.
    """
    state = read_status((folder or settings_of(context).live.folder) / STATUS_FILE)
    if not state.running:  # a process that was killed could not write that its cameras have stopped
        for camera in state.cameras:
            camera.state = "stopped"
    if as_json:
        print_json({"running": state.running, **state.model_dump(mode="json")})
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("stream", "state", "newest", "frames", "dropped", "late", "reconnects", "drift", "why")
    console = Console()
    if console.is_terminal and console.width < _TABLE_WIDTH:
        for camera in state.cameras:
            stream, condition, *values = _row(camera)
            print_line(f"{stream}  {condition}")
            for name, value in zip(columns[2:], values, strict=True):
                if value:
                    print_line(f"  {name} {value}")
    else:
        table = Table(*columns)
        for camera in state.cameras:
            table.add_row(*_row(camera))
        Console(width=None if console.is_terminal else 160).print(table)
    if state.waiting_segments:
        print_line(f"{state.waiting_segments} segments wait, {state.waiting_bytes / 1e6:.1f} MB")
    if state.problem:
        print_note(state.problem)
    if not state.running:
        print_note(f"{state.command} is not running; this is its state at {state.updated:%Y-%m-%dT%H:%M:%SZ}")


def _row(camera: CameraState) -> list[str]:
    newest = f"{camera.newest:%H:%M:%S}" if camera.newest else ""
    numbers = [str(n) for n in (camera.frames, camera.dropped, camera.late, camera.reconnects)]
    return [camera.stream, camera.state, newest, *numbers, f"{camera.drift_seconds:+.3f} s", camera.why or ""]


@app.command("clip")
def clip(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="File for the clip, .mp4 or .mkv.")],
    stream: Annotated[str, typer.Option("--stream", help="The camera.")],
    start: Annotated[str, typer.Option("--from", help="Start, such as 2024-03-01T08:00:00Z or 'yesterday 14:00'.")],
    end: Annotated[str, typer.Option("--to", help="End, exclusive; written as --from.")],
    recording: Annotated[
        list[str] | None,
        typer.Option(
            "--recording",
            help="Folder or bucket of `record --to`, repeatable: a gap of one is filled from the next; default: the "
            "ingested file.",
        ),
    ] = None,
    store: StoreUrl = None,
    footage: Annotated[
        list[Path] | None,
        typer.Option("--footage", help="Folder below which ingested files are searched and opened, repeatable."),
    ] = None,
    timezone: Zone = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    require_sandbox: RequireSandbox = False,
    as_json: Json = False,
) -> None:
    """Cut a playable clip from a recording, or from the file that was ingested.

    Without --recording the store says which file the stream was ingested from; it is used if it is still the same. The
    clip starts at the last intra frame before the start; the video is not encoded again.
    """
    if out.exists() and not force:
        raise UsageError(f"{out}: the file exists; choose another name, or pass --force to replace it")
    window = time_range(None, start, end, timezone)
    settings = settings_of(context, store=store, require_sandbox=require_sandbox)
    low, high, limits = window["start"], window["end"], settings.decode_limits
    if recording:
        report = cut_clip([folder_url(each) for each in recording], stream, low, high, out, limits=limits)
    else:
        finder = FootageFinder(Store.open(settings.store), roots=footage)
        report = clip_ingested(finder, stream, low, high, out, limits=limits)
    if as_json:
        print_json(report)
        return
    print_line(f"{report.file}: {report.frames} frames, {report.start} to {report.end}")
    if report.missing_seconds > 0:
        print_note(
            f"{report.missing_seconds:.1f} s are missing from the recording; the clip shows the last frame there"
        )
