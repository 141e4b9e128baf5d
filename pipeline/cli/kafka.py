"""Commands about Kafka: publish, consume, deadletter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Json, ProfileName, Servers, StoreUrl, kafka_of, settings_of
from pipeline.console import complain, emit, note, progress, say

if TYPE_CHECKING:
    from ingest.messages import DeadLetter

__all__ = ["consume", "deadletter", "publish"]


def publish(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs.")],
    stream: Annotated[str | None, typer.Option("--stream", help="Stream id; the file's name by default.")] = None,
    start: Annotated[str | None, typer.Option("--start", help="RFC 3339 time of the first frame.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Least length of a segment.")] = 10.0,
    objects: Annotated[
        str | None, typer.Option("--objects", help="Folder or bucket for the segments; inside the messages by default.")
    ] = None,
    servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Cut footage into segments without encoding it again, and produce them to Kafka. Doing it twice doubles nothing."""
    from index.records import from_micros
    from ingest.kafka.clients import Sender, make_topics
    from ingest.kafka.publisher import publish_files
    from pipeline.questions.asker import parse_time

    kafka = kafka_of(settings_of(context), servers)
    began = parse_time(start, "--start")
    make_topics(kafka)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("publishing", total=None, detail="")
        report = publish_files(
            files,
            settings=kafka,
            sender=lambda: Sender(kafka),
            stream=stream,
            start=None if began is None else from_micros(began),
            seconds=seconds,
            place=objects,
            on_segment=lambda name, _: bar.update(task, advance=1, detail=name),
        )
    if as_json:
        emit(report)
    else:
        for file in report:
            say(f"{file.file}: {file.segments} segments of {file.stream_id}, {file.seconds:.1f} s")
    for file in report:
        if file.problem:
            complain(file.problem)
    if any(file.problem for file in report):
        raise typer.Exit(1)


def consume(
    context: typer.Context,
    group: Annotated[str, typer.Option("--group", help="Consumer group; workers of one group share the partitions.")],
    store: StoreUrl = None,
    profile: ProfileName = None,
    servers: Servers = None,
    drain: Annotated[bool, typer.Option("--drain", help="Stop when everything there is has been stored.")] = False,
    accept_recreated: Annotated[
        bool, typer.Option("--accept-recreated", help="Read a topic that was made again from its first message.")
    ] = False,
    accept_expired: Annotated[
        bool, typer.Option("--accept-expired", help="Go on although messages expired before they were stored.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", min=0, max=65535, help="Serve Prometheus metrics there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Store the segments that cameras and `publish` produce, each second of each camera once, until interrupted."""
    import signal
    import threading

    from index.store import Store
    from ingest.decoding.limits import DecodeLimits
    from ingest.kafka.metrics import ConsumerMetrics
    from ingest.kafka.poller import consume as run
    from ingest.metrics_server import serve_metrics
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile

    settings = settings_of(context, store=store, profile=profile)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = ConsumerMetrics()
    if metrics_port is not None:
        note(f"metrics on port {serve_metrics(metrics.registry, metrics_port)}")
    encoders = load_encoders(load_profile(settings.profile), settings.device)
    report = run(
        Store.open_or_create(settings.store, encoders.pair),
        encoders,
        kafka=kafka_of(settings_of(context), servers),
        group=group,
        settings=settings.consume,
        limits=DecodeLimits(
            pixels=settings.max_pixels, memory_bytes=settings.memory_bytes, stall_seconds=settings.stall_seconds
        ),
        stop=stop,
        drain=drain,
        accept_recreated=accept_recreated,
        accept_expired=accept_expired,
        metrics=metrics,
    )
    if as_json:
        emit(report)
    else:
        say(
            f"{report.segments} segments, {report.frames} frames, {report.commits} commits, {report.dead_letters} dead letters"
        )


deadletter = typer.Typer(help="Messages that could not be stored.", no_args_is_help=True, rich_markup_mode=None)


def _letter(letter: DeadLetter) -> dict[str, object]:
    return {"origin": letter.origin, **letter.model_dump(mode="json", exclude={"text", "data", "version"})}


@deadletter.command("list")
def list_(context: typer.Context, servers: Servers = None, as_json: Json = False) -> None:
    """Show what could not be stored, and why."""
    from ingest.kafka.dead_letters import list_letters

    letters = list_letters(kafka_of(settings_of(context), servers))
    if as_json:
        emit([_letter(letter) for letter in letters])
        return
    for letter in letters:
        say(
            f"{letter.origin}  {letter.failed_at:%Y-%m-%dT%H:%M:%SZ}  attempt {letter.attempt}  {letter.where}  {letter.reason}"
        )
    say(f"{len(letters)} dead letters")


@deadletter.command("replay")
def replay(
    context: typer.Context,
    origins: Annotated[list[str] | None, typer.Argument(help="topic/partition/offset; as `list` shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Produce dead letters once more, for when their cause is gone."""
    from index.errors import UsageError
    from ingest.kafka.dead_letters import replay as run

    if bool(origins) == everything:
        raise UsageError("name the dead letters to replay, or pass --all")
    done = run(kafka_of(settings_of(context), servers), origins or None)
    if as_json:
        emit([_letter(letter) for letter in done])
    else:
        say(f"{len(done)} produced once more")
