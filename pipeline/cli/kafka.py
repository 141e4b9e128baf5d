"""Commands about Kafka: publish, consume, deadletter."""

from __future__ import annotations

from typing import Annotated

import typer

from index.errors import UsageError
from index.records import parse_zoned_time
from index.store import Store
from ingest.footage_report import FootageReport
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.publisher import publish_files
from ingest.kafka.reachability import check_brokers
from ingest.messages import DeadLetter
from ingest.metrics_server import serve_metrics
from ingest.shutdown import end_process
from pipeline.cli.options import (
    Json,
    MetricsAddress,
    MetricsPort,
    Names,
    OverlapChoice,
    ProfileName,
    Quiet,
    RequireSandbox,
    Servers,
    StoreUrl,
    TimeZone,
    check_names,
    check_overlap,
    check_store,
    kafka_settings,
    load_models,
    report_sandbox,
    settings_of,
)
from pipeline.console import (
    interruptible,
    print_bytes,
    print_error,
    print_json,
    print_line,
    print_note,
    progress,
    stop_event,
)

__all__ = ["app", "consume", "deadletter_list", "deadletter_replay", "deadletter_show", "publish"]

app = typer.Typer(rich_markup_mode=None)
_deadletter = typer.Typer(help="List, show and replay the messages that could not be stored.", no_args_is_help=True)
app.add_typer(_deadletter, name="deadletter")


@app.command("publish")
def publish(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs.")],
    stream: Annotated[str | None, typer.Option("--stream", help="Stream id; default: the file's name.")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Time of the first frame, such as 2024-03-01T08:00:00Z (RFC 3339).")
    ] = None,
    names: Names = None,
    timezone: TimeZone = None,
    overlap: OverlapChoice = "error",
    seconds: Annotated[float, typer.Option("--seconds", help="Shortest length of a segment, in seconds.")] = 10.0,
    objects: Annotated[
        str | None,
        typer.Option("--objects", help="Folder or bucket for the segments; default: inside the messages."),
    ] = None,
    servers: Servers = None,
    require_sandbox: RequireSandbox = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cut footage into segments and send them to Kafka.

    The video is not encoded again. Sending the same footage twice stores it once.
    """
    from ingest.kafka.clients import Sender, make_topics  # needs the extra kafka

    settings = settings_of(context, require_sandbox=require_sandbox)
    kafka = kafka_settings(settings, servers)
    began = parse_zoned_time(start, "--start")
    chosen_overlap = check_overlap(overlap)
    check_names(stream, names, timezone)
    report_sandbox(settings, announce=False)
    check_brokers(kafka)
    make_topics(kafka)
    safe = "the segments that were sent stay in Kafka; run the same command again, which stores nothing twice"
    with interruptible(safe), progress(quiet=quiet or as_json) as bar:
        task = bar.add_task("publishing", total=None, detail="")
        report = publish_files(
            files,
            settings=kafka,
            sender=lambda: Sender(kafka),
            stream=stream,
            start=began,
            names=names,
            timezone=timezone,
            overlap=chosen_overlap,
            seconds=seconds,
            objects=objects,
            limits=settings.decode_limits,
            on_segment=lambda name, _: bar.update(task, advance=1, detail=name),
        )
    if as_json:
        print_json(report)
    else:
        for file in report:
            print_line(f"{file.file}: {file.segments} segments of {file.stream_id}, {file.seconds:.1f} s")
        total = FootageReport()
        for file in report:
            total.include(file.footage)
        print_line(str(total))
    for file in report:
        if file.problem:
            print_error(file.problem)
    if any(file.problem for file in report):
        raise typer.Exit(1)


@app.command("consume")
def consume(
    context: typer.Context,
    group: Annotated[str, typer.Option("--group", help="Consumer group; its workers share the partitions.")],
    store: StoreUrl = None,
    profile: ProfileName = None,
    servers: Servers = None,
    drain: Annotated[bool, typer.Option("--drain", help="Stop when all segments in Kafka are stored.")] = False,
    accept_recreated: Annotated[
        bool, typer.Option("--accept-recreated", help="Read a topic that was deleted and created again from its start.")
    ] = False,
    accept_expired: Annotated[
        bool, typer.Option("--accept-expired", help="Continue although messages expired before they were stored.")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    require_sandbox: RequireSandbox = False,
    as_json: Json = False,
) -> None:
    """Index the segments that cameras and `publish` send to Kafka.

    Runs until it is interrupted. Each second of each stream is stored exactly once.
    """
    from ingest.kafka.clients import make_topics  # needs the extra kafka
    from ingest.kafka.poller import consume as consume_segments

    settings = settings_of(context, store=store, profile=profile, require_sandbox=require_sandbox)
    kafka = kafka_settings(settings, servers)
    check_store(settings)
    make_topics(kafka)  # before the models are loaded, so that a broker that does not answer is reported at once
    stop = stop_event()
    report_sandbox(settings)
    metrics = ConsumerMetrics()
    if metrics_port is not None:
        print_note(serve_metrics(metrics.registry, metrics_port, metrics_address))
    encoders = load_models(settings, quiet=as_json)
    report = consume_segments(
        Store.open_or_create(settings.store, encoders.pair),
        encoders,
        kafka=kafka,
        group=group,
        settings=settings.consume,
        limits=settings.decode_limits,
        stop=stop,
        drain=drain,
        accept_recreated=accept_recreated,
        accept_expired=accept_expired,
        metrics=metrics,
        on_stall=end_process,
    )
    if as_json:
        print_json(report)
    else:
        print_line(
            f"{report.segments} segments, {report.frames} frames, {report.commits} commits, "
            f"{report.dead_letters} dead letters"
        )
        print_line(str(report.footage))


def _letter_fields(letter: DeadLetter) -> dict[str, object]:
    return {
        "origin": letter.origin,
        **letter.model_dump(mode="json", exclude={"text", "data", "key_data", "headers", "version"}),
    }


@_deadletter.command("list")
def deadletter_list(context: typer.Context, servers: Servers = None, as_json: Json = False) -> None:
    """List the messages that could not be stored, with the reasons."""
    from ingest.kafka.dead_letters import list_letters  # needs the extra kafka

    kafka = kafka_settings(settings_of(context), servers)
    check_brokers(kafka)
    letters = list_letters(kafka)
    if as_json:
        print_json([_letter_fields(letter) for letter in letters])
        return
    for letter in letters:
        print_line(
            f"{letter.origin}  {letter.failed_at:%Y-%m-%dT%H:%M:%SZ}  attempt {letter.attempt}  {letter.where}  "
            f"{letter.reason}"
        )
    print_line(f"{len(letters)} dead letters")


@_deadletter.command("show")
def deadletter_show(
    context: typer.Context,
    origin: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET, as `deadletter list` prints it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the message's bytes to standard output.")] = False,
    servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Show one message that could not be stored, or its bytes as they came."""
    from ingest.kafka.dead_letters import find_letter, raw_value  # needs the extra kafka

    kafka = kafka_settings(settings_of(context), servers)
    letter = find_letter(kafka, origin)
    if raw:
        print_bytes(raw_value(kafka, letter))
    elif as_json:
        print_json({**_letter_fields(letter), "text": letter.text, "data": letter.data})
    else:
        for name, value in _letter_fields(letter).items():
            print_line(
                f"{name}: {value!r}" if isinstance(value, str) and not value.isprintable() else f"{name}: {value}"
            )


@_deadletter.command("replay")
def deadletter_replay(
    context: typer.Context,
    origins: Annotated[
        list[str] | None,
        typer.Argument(help="TOPIC/PARTITION/OFFSET of dead letters, as `deadletter list` prints them."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Replay every dead letter.")] = False,
    servers: Servers = None,
    as_json: Json = False,
) -> None:
    """Send dead letters again, after the cause of the failure is removed."""
    from ingest.kafka.dead_letters import replay as replay_letters  # needs the extra kafka

    if bool(origins) == everything:
        raise UsageError("name the dead letters to replay, or pass --all")
    kafka = kafka_settings(settings_of(context), servers)
    check_brokers(kafka)
    done = replay_letters(kafka, origins or None)
    if as_json:
        print_json([_letter_fields(letter) for letter in done])
    else:
        print_line(f"{len(done)} dead letters sent again")
