"""Commands that inspect and maintain a store: streams, verify, reindex, compact, forget."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from index.errors import StoreError, UsageError
from index.maintenance.compaction import TableCompaction
from index.records import parse_time, rfc3339
from pipeline.cli.options import Json, StoreUrl, StreamIds, open_store
from pipeline.console import print_error, print_json, print_line, stop_event

__all__ = ["app", "compact", "forget", "reindex", "streams", "verify"]

app = typer.Typer(rich_markup_mode=None)


@app.command("streams")
def streams(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """List the streams of a store."""
    opened = open_store(context, store)
    encoders = {"frame": opened.encoders.frame.name, "patch": opened.encoders.patch.name}
    rows = [(s.stream_id, s.frames, rfc3339(s.first), rfc3339(s.last)) for s in opened.streams()]
    if as_json:
        names = ("stream_id", "frames", "first", "last")
        print_json([{**dict(zip(names, row, strict=True)), "encoders": encoders} for row in rows])
        return
    for name, frames, first, last in rows:
        print_line(f"{name}  {frames} frames  {first} to {last}  {encoders['frame']}, {encoders['patch']}")


@app.command("verify")
def verify(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """Check a store for errors.

    Checks that the tables, the FAISS shards and the encoders agree. Lists the problems and exits with code 1 if there
    are any.
    """
    problems = open_store(context, store).verify()
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            print_line(problem)
        print_line(f"{len(problems)} problems" if problems else "no problems")
    if problems:
        raise typer.Exit(1)


@app.command("reindex")
def reindex(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """Build the FAISS shards again from the Parquet tables."""
    written = open_store(context, store).reindex()
    if as_json:
        print_json({"shards": written})
    else:
        print_line(f"{written} shards written")


@app.command("compact")
def compact(
    context: typer.Context,
    store: StoreUrl = None,
    stream: StreamIds = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be merged.")] = False,
    every: Annotated[
        float | None, typer.Option("--every", min=1, help="Repeat every so many seconds until interrupted.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge the small files of a store.

    Live streams leave many small files. Also removes old log entries. Safe while other processes write to the store or
    read it.
    """
    if every is None:
        _print_compaction(open_store(context, store).compact(stream, dry_run=dry_run), as_json=as_json, dry_run=dry_run)
        return
    if dry_run:
        raise UsageError("--every and --dry-run exclude each other")
    stop = stop_event()
    while not stop.is_set():
        try:
            _print_compaction(open_store(context, store).compact(stream), as_json=as_json, dry_run=False)
        except StoreError as error:  # no store yet, or another compaction is running: try again next time
            print_error(str(error))
        stop.wait(every)


def _print_compaction(report: list[TableCompaction], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(report)
        return
    for table in report:
        if dry_run:
            print_line(
                f"{table.table}: {table.merged} of {table.files_before} files in {table.partitions} partitions "
                "would be merged"
            )
        else:
            print_line(
                f"{table.table}: {table.files_before} files before, {table.files_after} after, "
                f"{table.removed} old files removed, {table.bytes_after / 1e6:.1f} MB, {table.log_after} log entries"
            )


@app.command("forget")
def forget(
    context: typer.Context,
    stream: Annotated[str, typer.Option("--stream", help="The stream.")],
    store: StoreUrl = None,
    before: Annotated[
        str | None,
        typer.Option("--before", help="Delete only frames before this time, such as 2024-03-01T08:00:00Z (RFC 3339)."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a stream, or its older part, permanently.

    Deletes frames, vectors, patches and pictures, also from old versions of the tables, so this cannot be undone.
    """
    cut = parse_time(before, "--before")
    opened = open_store(context, store)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("forget deletes permanently and standard input is not a terminal; pass --yes to confirm")
        earlier = f" before {before}" if before else ""
        if not typer.confirm(f"Delete {stream}{earlier} permanently?", err=True):
            raise typer.Exit(1)
    removed = opened.forget(stream, cut)
    if as_json:
        print_json({"stream_id": stream, "frames": removed})
    else:
        print_line(f"{removed} frames of {stream} deleted")
