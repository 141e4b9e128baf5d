"""Commands that inspect and maintain a store: streams, verify, reindex, compact, forget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from index.errors import UnknownStream, UsageError
from index.maintenance.compaction import TableCompaction
from index.maintenance.expiry import Expired
from index.maintenance.export import export_vectors
from index.records import clock_text, rfc3339
from index.standing_questions import StandingQuestionStore
from index.store import Store, StreamClock
from index.stream_patterns import is_pattern
from ingest.live.spool import forget_spooled
from pipeline.access.state import state_folder
from pipeline.audit.command import record_command
from pipeline.audit.log import AuditTable
from pipeline.audit.verification import verify_trails
from pipeline.cli.options import (
    From,
    Json,
    StoreUrl,
    StreamIds,
    To,
    Zone,
    open_store,
    point_in_time,
    run_every,
    settings_of,
    time_range,
)
from pipeline.console import print_json, print_line, print_note, progress
from pipeline.times import zone_of

__all__ = ["app", "compact", "export", "forget", "reindex", "streams", "verify"]

app = typer.Typer(rich_markup_mode=None)

_NOT_OWNED = (
    "original files",
    "recordings in the folder or bucket of `record --to` and `publish --objects`",
    "messages in Kafka (segments, alerts, dead letters), which end with the retention of their topics",
    "caches of other machines that use the store, until they next search it",
)


@app.command("streams")
def streams(
    context: typer.Context,
    store: StoreUrl = None,
    stream: StreamIds = None,
    clocks: Annotated[
        bool, typer.Option("--clocks", help="Also list where the times of each stream come from, with their zones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the streams of a store."""
    opened = open_store(context, store)
    chosen = opened.check_scope(stream) if stream else None
    encoders = {"frame": opened.encoders.frame.name, "patch": opened.encoders.patch.name}
    rows = [
        (s.stream_id, s.frames, rfc3339(s.first), rfc3339(s.last))
        for s in opened.streams()
        if chosen is None or s.stream_id in chosen
    ]
    if as_json:
        names = ("stream_id", "frames", "first", "last")
        listed = [{**dict(zip(names, row, strict=True)), "encoders": encoders} for row in rows]
        if clocks:
            for each in listed:
                each["clocks"] = [_clock_fields(clock) for clock in opened.clocks([str(each["stream_id"])])]
        print_json(listed)
        return
    if not rows:
        print_note("nothing yet: the store has no frames; ingest some footage first")
    for name, frames, first, last in rows:
        print_line(f"{name}  {frames} frames  {first} to {last}  {encoders['frame']}, {encoders['patch']}")
        for clock in opened.clocks([name]) if clocks else ():
            text = clock_text(clock.source, clock.zone, clock.fold)
            print_line(f"    clock: {text}  {clock.segments} segments  {rfc3339(clock.first)} to {rfc3339(clock.last)}")


def _clock_fields(clock: StreamClock) -> dict[str, object]:
    return {
        "source": clock.source,
        "zone": clock.zone,
        "fold": clock.fold,
        "segments": clock.segments,
        "first": rfc3339(clock.first),
        "last": rfc3339(clock.last),
    }


@app.command("verify")
def verify(
    context: typer.Context,
    store: StoreUrl = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder of `serve`; default: the store's one in your home.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare logs, sizes of files and shards; read no rows. Takes seconds.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was stopped; days that it read are not read again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a store for errors.

    Checks that the tables, the FAISS shards and the encoders agree, and that no record of the audit trail was changed
    or removed. Lists the problems and exits with code 1 if there are any.
    """
    if quick and resume:
        raise UsageError("--quick and --resume exclude each other")
    opened = open_store(context, store)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("verify", total=None, detail="")
        problems = opened.verify(
            quick=quick, resume=resume, on_progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    problems += verify_trails(opened.url, state_folder(opened.url, state))
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            print_line(problem)
        print_line(f"{len(problems)} problems" if problems else "no problems")
    if problems:
        raise typer.Exit(1)


@app.command("export")
def export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    store: StoreUrl = None,
    stream: StreamIds = None,
    start: From = None,
    end: To = None,
    timezone: Zone = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Also the pictures, as a column of the metadata.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Vectors as float32, not float16.")] = False,
    as_json: Json = False,
) -> None:
    """Write frame vectors and metadata as .npy and Parquet files.

    The folder has the layout of clip-retrieval: img_emb/img_emb_00000.npy and metadata/metadata_00000.parquet, row i of
    one for row i of the other, by stream and time. Its file export.json is written last. Patches are not exported.
    """
    window = time_range(stream, start, end, timezone)
    opened = open_store(context, store)
    opened.check_window(**window)
    names = opened.check_scope(**window)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("export", total=None, detail="")
        try:
            count = export_vectors(
                opened.tables,
                folder,
                names,
                window["start"],
                window["end"],
                exact=exact,
                pictures=pictures,
                on_progress=lambda done: bar.update(task, completed=done, detail=f"{done} frames"),
            )
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror or type(error).__name__})") from error
    if as_json:
        print_json({"frames": count, "folder": str(folder)})
    else:
        print_line(f"{count} frames in {folder}")


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
    at_most: Annotated[
        float | None,
        typer.Option("--at-most", min=1, help="Merge about so many megabytes of each table a run, oldest days first."),
    ] = None,
    heartbeat: Annotated[
        Path | None, typer.Option("--heartbeat", help="File that is touched after each run, for a health check.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge the small files of a store, and delete what the retention does not allow.

    Live streams leave many small files. Also removes old log entries. Without --stream, the rules of `[retention]` in
    the settings file are applied first. Safe while other processes write to the store or read it.
    """
    if every is not None and dry_run:
        raise UsageError("--every and --dry-run exclude each other")
    rules = {} if stream else settings_of(context).retention

    def run() -> None:
        """Apply the retention and compact, once."""
        opened = open_store(context, store)
        for expired in opened.expire(rules, dry_run=dry_run):
            if not dry_run:
                removed = {"before": rfc3339(expired.before), "pattern": expired.pattern, "frames": expired.frames}
                record_command(opened.url, "retention", [expired.stream_id], removed)
            _report_expired(expired, as_json=as_json, dry_run=dry_run)
        most = None if at_most is None else round(at_most * 1e6)
        _print_compaction(opened.compact(stream, dry_run=dry_run, most_bytes=most), as_json=as_json, dry_run=dry_run)
        if not dry_run:
            AuditTable(f"{opened.url}/audit").compact()
        if heartbeat is not None:
            heartbeat.touch()

    run_every(every, run)


def _report_expired(expired: Expired, *, as_json: bool, dry_run: bool) -> None:
    where = f"{expired.stream_id} before {rfc3339(expired.before)} (retention {expired.pattern!r})"
    if dry_run:
        line = f"{where}: would be deleted"
    else:
        line = f"{where}: {expired.frames} frames deleted, {expired.bytes / 1e6:.1f} MB"
    if expired.held:
        line += f"; {expired.held} seconds are held as evidence and stay"
    print_note(line) if as_json else print_line(line)


def _print_compaction(report: list[TableCompaction], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(report)
        return
    if not any(table.merged or table.removed for table in report):
        verb = "would be" if dry_run else "was"
        print_line(f"nothing {verb} merged or removed: no partition has four small files or more")
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
    streams: Annotated[
        list[str], typer.Option("--stream", help="The stream, or a pattern such as 'gate-*'; repeatable.")
    ],
    store: StoreUrl = None,
    before: Annotated[
        str | None,
        typer.Option("--before", help="Delete only frames before this time, such as 2024-03-01T08:00:00Z."),
    ] = None,
    timezone: Zone = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Folder of an ended `watch` or `record`, whose spool is searched too."),
    ] = None,
    except_held: Annotated[
        bool, typer.Option("--except-held", help="Leave what is held as evidence, and delete everything else.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete streams, or their older part, permanently.

    Deletes frames, vectors, patches and pictures, also from old versions of the tables, so this cannot be undone; the
    state of its alerts; the staged frames of a stopped backfill; and its segments in the spool of an ended `watch` or
    `record`. With the whole stream, its standing questions. Recordings, original files and messages in Kafka are not
    the store's, and stay. The audit trail keeps the record that the stream was deleted. Footage that is held as
    evidence is not deleted: the command is refused, or leaves it with --except-held.
    """
    cut = point_in_time(before, "--before", zone_of(timezone))
    opened = open_store(context, store)
    names = opened.forgettable(streams)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("forget deletes permanently and standard input is not a terminal; pass --yes to confirm")
        earlier = f" before {rfc3339(cut)}" if cut is not None else ""
        if not typer.confirm(f"Delete {', '.join(names)}{earlier} permanently?", err=True):
            raise typer.Exit(1)
    place = folder or settings_of(context, store=store).live.folder
    done = []
    for name in names:
        detail = {"before": None if cut is None else rfc3339(cut)}
        record_command(opened.url, "forget", [name], detail, outcome="begun")
        try:
            done.append(_forget(opened, name, cut, place, except_held))
        except BaseException as error:
            record_command(opened.url, "forget", [name], {**detail, "why": type(error).__name__}, outcome="failed")
            raise
        counts = {each: done[-1][each] for each in ("frames", "held", "spooled")}
        record_command(opened.url, "forget", [name], {**detail, **counts})
        if not as_json:
            print_line(f"{done[-1]['frames']} frames of {name} deleted")
            if done[-1]["held"]:
                print_line(f"{done[-1]['held']} seconds of {name} are held as evidence and stay")
            if done[-1]["spooled"]:
                print_line(f"{done[-1]['spooled']} segments in the spool deleted")
            if done[-1]["questions"]:
                print_line(f"standing questions that no longer apply to it: {', '.join(done[-1]['questions'])}")
    if as_json:
        one_name = len(streams) == 1 and not is_pattern(streams[0])
        print_json(done[0] if one_name else done)
    elif done:
        print_note(f"not deleted, because they are not the store's: {'; '.join(done[-1]['not_deleted'])}")


def _forget(store: Store, stream: str, before: int | None, folder: Path, except_held: bool) -> dict[str, Any]:
    """Delete a stream from the store and from the spool in `folder`; returns what `--json` prints.

    Raises:
        FootageHeld: footage of it is held as evidence, and `except_held` is False; nothing is deleted.
        UnknownStream: neither the store nor the spool has the stream.
    """
    kept, spooled = list(_NOT_OWNED), 0
    store.check_held(stream, before, keep_held=except_held)
    try:
        spooled = forget_spooled(folder, stream, before)
    except UsageError:
        kept.insert(0, f"the spool in {folder}, which a running `watch` or `record` uses: stop it and forget again")
    standing = StandingQuestionStore(store.url)
    asked = {question.name for question in standing.questions() if stream in question.streams}
    try:
        removed = store.forget(stream, before, keep_held=except_held)
    except UnknownStream:
        if not spooled:
            raise
        removed = 0
    changed = sorted(asked - {question.name for question in standing.questions() if stream in question.streams})
    held = store.held_seconds(stream, before)
    done = {"stream_id": stream, "frames": removed, "held": held, "spooled": spooled, "questions": changed}
    return {**done, "not_deleted": kept}
