"""Deleting a stream's footage for good: from the tables, their old versions, the FAISS shards and pending work.

`forget` records the deletion, deletes the rows of frames, patches and segments (`index.commits.deletion`) and then the
files that held them. One that was stopped at any moment is completed by the same call, by the next `forget` of the
stream and by `finish_deletions`; the next append to the stream completes the deletion of its rows.

This module does not decide what is old: the caller names the stream and the time.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from index.columns import day_of
from index.commits.deletion import (
    Deletion,
    begin,
    check_held,
    delete_rows,
    deletion_in_progress,
    finish,
    finish_nameless,
)
from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.errors import UnknownStream
from index.records import to_micros
from index.schemas import compose_stream_id, decode_stream_id, partition_folder
from index.search.faiss_shards import FaissShards
from index.standing_questions import StandingQuestionStore
from index.tables import Tables, is_remote

__all__ = ["finish_deletions", "forget", "unfinished_deletions"]


def forget(
    tables: Tables,
    shards: FaissShards,
    stream_id: str,
    before: int | None = None,
    *,
    staging: bool = True,
    keep_held: bool = False,
) -> int:
    """Delete a stream's frames captured before `before`, UTC microseconds; all frames when None.

    Afterwards no file of the store contains them, and the alert state of the stream is deleted. With the whole stream
    its standing questions are deleted; one that names other streams too keeps them. Deleted footage may be ingested
    again. Frames that a stopped backfill left in its staging folder are deleted too, of all streams; the next backfill
    makes them again.

    With `staging` False and a time, as regular retention calls it, the staging folder and the alert state stay: alerts
    would otherwise begin with their warm-up every day.

    Returns:
        The number of frames deleted.

    Raises:
        UnknownStream: the store has no such stream.
        UsageError: not a valid name of a stream.
        FootageHeld: footage before that time is held, and `keep_held` is False.
        StoreFull: no space is left. The deletion is recorded; `forget` completes it when there is space.
    """
    stream_id = compose_stream_id(stream_id)
    pending = deletion_in_progress(tables, stream_id)
    if not pending and not tables.read_segments(stream_id) and not _has_files(tables, stream_id):
        raise UnknownStream(f"{stream_id}: the store has no such stream; `sightline streams` lists those it has")
    check_held(tables.segments.configuration(), stream_id, before, keep_held=keep_held)
    removed = 0
    while True:
        _drop_shards(shards, stream_id, before)  # first: what a shard contains is found by a search
        deletion = pending or begin(tables, stream_id, before, keep_held=keep_held)
        older_than = None if pending is None or before is None else deletion.begun
        removed += _complete(tables, shards, stream_id, deletion, staging=staging, older_than=older_than)
        if deletion.before == before and (pending is None or pending.has_rows):
            return removed
        pending = None


def unfinished_deletions(tables: Tables) -> dict[str, Deletion]:
    """The deletions that were not completed, by stream."""
    found = {name: deletion_in_progress(tables, name) for name in _names(tables)}
    return {name: deletion for name, deletion in found.items() if deletion}


def finish_deletions(tables: Tables, shards: FaissShards) -> None:
    """Complete every deletion that was stopped. What was added since it began stays."""
    for stream_id, deletion in unfinished_deletions(tables).items():
        _complete(tables, shards, stream_id, deletion, older_than=deletion.begun)
    finish_nameless(tables, _names(tables))


def _drop_shards(shards: FaissShards, stream_id: str, before: int | None) -> None:
    """Delete the shards with frames before `before`, UTC microseconds; all of the stream when None."""
    shards.drop(stream_id, None if before is None else day_of(before))


def _complete(
    tables: Tables,
    shards: FaissShards,
    stream_id: str,
    deletion: Deletion,
    *,
    staging: bool = True,
    older_than: int | None = None,
) -> int:
    """Do what is left of a deletion; returns the number of frames.

    The files of the tables come last: by them `finish_deletions` knows the names of streams.

    Args:
        older_than: UTC microseconds; standing questions, alert state and staged frames that are newer stay. The stream
            may have been stored again, and questions about it added, since the deletion was stopped.
    """
    standing = StandingQuestionStore(tables.url)
    if staging or deletion.before is None:
        standing.delete_state(stream_id, older_than)
    if deletion.before is None and not deletion.kept:
        standing.forget_stream(stream_id, older_than)
    if staging:
        _remove_staged(tables, older_than)
    removed = delete_rows(tables, stream_id, deletion) if deletion.has_rows else 0
    _drop_shards(shards, stream_id, deletion.before)
    for table in tables.all():
        table.purge()
        if not is_remote(tables.url):
            _remove_empty_folders(Path(table.uri, partition_folder(stream_id)))
    finish(tables, stream_id, deletion)
    return removed


def _remove_staged(tables: Tables, older_than: int | None) -> None:
    """Remove the frames that backfills have staged, of all streams; with a time, UTC microseconds, only older ones."""
    with translate_errors(tables.url):
        files, staged = file_system(f"{tables.url}/staging")
        if not files.exists(staged):
            return
        if older_than is None:
            files.rm(staged, recursive=True)
            return
        for path in files.find(staged):
            with suppress(FileNotFoundError):  # a backfill removes what it has committed
                if to_micros(files.modified(path)) < older_than:
                    files.rm_file(path)


def _names(tables: Tables) -> set[str]:
    """The streams that any table has rows or files of."""
    names = {name for table in tables.all() for name in table.partition_values("stream_id")}
    for table in tables.all():
        with translate_errors(table.uri):
            files, root = file_system(table.uri)
            listed = files.ls(root, detail=False)
        for path in listed:
            _, found, name = str(path).rstrip("/").rpartition("/stream_id=")
            if found:
                names.add(decode_stream_id(name))
    return names


def _has_files(tables: Tables, stream_id: str) -> bool:
    """Whether any table has files of a stream, listed or not: those of a `forget` that was killed before it deleted
    them."""
    for table in tables.all():
        with translate_errors(table.uri):
            files, folder = file_system(f"{table.uri}/{partition_folder(stream_id)}")
            if files.exists(folder):
                return True
    return False


def _remove_empty_folders(partition: Path) -> None:
    """Remove what is left of a partition's folders, whose names contain the name of the stream."""
    for folder in sorted(partition.glob("**/"), reverse=True):
        with suppress(OSError):  # not empty, or an append has just put a file there
            folder.rmdir()
