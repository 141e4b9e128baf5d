"""Commands for whoever keeps it running: compact, bench consume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Json, ProfileName, StoreUrl, StreamIds, opened_store, settings_of
from pipeline.console import complain, emit, say

if TYPE_CHECKING:
    from index.maintenance.compaction import TableCompaction

__all__ = ["bench_consume", "compact"]


def compact(
    context: typer.Context,
    store: StoreUrl = None,
    stream: StreamIds = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be merged; change nothing.")] = False,
    every: Annotated[
        float | None, typer.Option("--every", min=1, help="Seconds; do it again and again until interrupted.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge the small files that live streams leave, and clean the logs; beside whoever writes or asks."""
    import signal
    import threading

    from index.errors import StoreError, UsageError

    if every is None:
        _show(opened_store(context, store).compact(stream, dry_run=dry_run), as_json=as_json, dry_run=dry_run)
        return
    if dry_run:
        raise UsageError("--every and --dry-run do not go together")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            _show(opened_store(context, store).compact(stream), as_json=as_json, dry_run=False)
        except StoreError as error:  # not there yet, another one at it: the next time will do
            complain(str(error))
        stop.wait(every)


def _show(report: list[TableCompaction], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        emit(report)
        return
    for table in report:
        if dry_run:
            say(
                f"{table.table}: {table.merged} of {table.files_before} files in {table.partitions} partitions to be merged"
            )
        else:
            say(
                f"{table.table}: {table.files_before} files are now {table.files_after}, {table.removed} old ones removed, "
                f"{table.bytes_after / 1e6:.1f} MB, {table.log_after} log entries"
            )


def bench_consume(
    context: typer.Context,
    servers: Annotated[
        str | None, typer.Option("--servers", help="host:port of Kafka; topics of its own are made.")
    ] = None,
    cameras: Annotated[int, typer.Option(min=1, max=64, help="Cameras that are rendered.")] = 8,
    minutes: Annotated[float, typer.Option(min=0.2, max=120, help="Length of each.")] = 2.0,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Least length of a segment.")] = 10.0,
    profile: ProfileName = None,
) -> None:
    """Segments a second from a Kafka that runs into a store, beside the encoder's own limit in the same run."""
    from pipeline.bench.consume import bench_consume as run

    settings = settings_of(context, profile=profile)
    chosen = servers or settings.kafka.servers
    emit(
        run(settings.profile, servers=chosen, cameras=cameras, minutes=minutes, seconds=seconds, device=settings.device)
    )
