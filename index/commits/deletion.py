"""Deleting a stream's rows: recorded first, so that it is completed whatever happens, and fenced off from appends.

The table `segments` has two properties for each stream that footage was deleted from:

    sightline.generation.<digest of the stream>   how often; part of the application ids of later appends, so that
                                                  deleted footage may be stored again
    sightline.deletion.<digest of the stream>     the deletion in progress: "<generation> <before> rows <kept>
                                                  <begun>", then with "files" for "rows" while files are removed from
                                                  the disk, and empty when all is done; <kept> lists the held
                                                  stretches that the deletion leaves, "<start>:<end>,…" or "-"; times
                                                  are UTC microseconds

1. `begin` sets both. From then on the deletion takes place: by the same process, or, if that is killed, by the next
   append to the stream, the next `forget` and the next `compact`.
   A deletion of held footage (`index.commits.held`) is refused in that commit, or leaves what is held.
2. `delete_rows` sets the generation of `frames` and `patches` too. Every append requires the generation that it began
   with, so an append that is in progress is refused at its next commit and begins again.
3. Rows are deleted by one commit in each table, which carries the transaction ("sightline.deletion/<digest>",
   generation). So they are deleted once, and never rows that were appended later.

4. Files of the stream that no version lists are removed, while no append of the new generation can have begun: those
   of appends that were killed or refused.

Rows of an append that was killed before it reached `segments` are deleted as well: their transactions are of an earlier
generation, so the same append would write them again. From the stage "files" on, footage of the stream may be stored
again, so nothing that is newer than the deletion may be removed.

This module does not remove the files that a version listed; `index.maintenance.retention` does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from index.columns import day_of, digest, sql_string, sql_timestamp
from index.commits.held import Stretch, holds_of, merged
from index.delta.row_filter import of_streams
from index.delta.unlisted import partition_files, remove_unlisted
from index.errors import CommitFenced, FootageHeld, StoreBusy, mask_url
from index.records import rfc3339
from index.schemas import DELETION_KEY, GENERATION_KEY
from index.tables import Tables

__all__ = [
    "ATTEMPTS",
    "Deletion",
    "begin",
    "check_held",
    "delete_rows",
    "deletion_in_progress",
    "finish",
    "finish_nameless",
    "generations_for_append",
    "parse_deletion",
    "requirement",
]

ATTEMPTS = 8
"""Attempts to delete footage of a stream, or to store more, while another process deletes footage of it."""

_ALL = "all"
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deletion that has begun and is not complete."""

    generation: int
    """Its number among the deletions of the stream, from 1."""

    before: int | None
    """Frames before this time are deleted, UTC microseconds; all frames when None."""

    has_rows: bool = True
    """Whether rows may be left; otherwise only files are."""

    kept: tuple[Stretch, ...] = ()
    """Held stretches before `before` that are not deleted, ascending and apart from each other."""

    begun: int = 0
    """When it began, UTC microseconds; 0 in a record of an earlier version."""

    def __str__(self) -> str:
        before = _ALL if self.before is None else self.before
        kept = ",".join(f"{start}:{end}" for start, end in self.kept) or _NONE
        return f"{self.generation} {before} {'rows' if self.has_rows else 'files'} {kept} {self.begun}"


def requirement(stream_id: str, generation: int) -> dict[str, str]:
    """The property that a commit of rows of a stream requires of each table."""
    return {_name(GENERATION_KEY, stream_id): str(generation)}


def deletion_in_progress(tables: Tables, stream_id: str) -> Deletion | None:
    """The deletion of a stream's footage that was not completed, if there is one."""
    return parse_deletion(tables.segments.newest_configuration(), stream_id)


def parse_deletion(configuration: Mapping[str, str], stream_id: str) -> Deletion | None:
    """The deletion of a stream's footage in the properties of `segments`, None if all are complete."""
    return _parse(configuration.get(_name(DELETION_KEY, stream_id), ""))


def generations_for_append(tables: Tables, streams: Iterable[str], *, update: bool = True) -> dict[str, int]:
    """How often footage of each stream was deleted. Rows that a deletion has left are deleted first.

    Args:
        tables: the store.
        streams: ids of the streams.
        update: look for deletions of others first; without it, as of the last look of this process, and the commits
            that require these generations find what is newer.
    """
    held = tables.segments.newest_configuration(update=update)
    generations = {}
    for stream in streams:
        while (pending := _parse(held.get(_name(DELETION_KEY, stream), ""))) and pending.has_rows:
            delete_rows(tables, stream, pending)
            held = tables.segments.newest_configuration()
        generations[stream] = int(held.get(_name(GENERATION_KEY, stream), "0"))
    return generations


def begin(tables: Tables, stream_id: str, before: int | None, *, keep_held: bool = False) -> Deletion:
    """Record that the frames of a stream before `before`, UTC microseconds, are deleted; all frames when None.

    Args:
        keep_held: leave footage that is held, instead of refusing to delete any.

    Returns:
        The deletion: this one, or one that another process began in the meantime, which must be completed first.

    Raises:
        FootageHeld: footage before that time is held, and `keep_held` is False; nothing is deleted.
    """
    begun: list[Deletion] = []

    def change(held: Mapping[str, str]) -> dict[str, str]:
        pending = _parse(held.get(_name(DELETION_KEY, stream_id), ""))
        generation = int(held.get(_name(GENERATION_KEY, stream_id), "0")) + 1
        kept = check_held(held, stream_id, before, keep_held=keep_held)
        begun.append(pending or Deletion(generation, before, kept=kept, begun=time.time_ns() // 1000))
        if pending:
            return {}
        return {**requirement(stream_id, generation), _name(DELETION_KEY, stream_id): str(begun[-1])}

    tables.segments.change_configuration(change)
    return begun[-1]


def check_held(
    configuration: Mapping[str, str], stream_id: str, before: int | None, *, keep_held: bool
) -> tuple[Stretch, ...]:
    """The held stretches of a stream before `before`, UTC microseconds.

    Raises:
        FootageHeld: there are some, and `keep_held` is False.
    """
    holds = holds_of(configuration, stream_id)
    kept = tuple(merged(((hold.start, hold.end) for hold in holds), before))
    if kept and not keep_held:
        first = next(hold for hold in holds if before is None or hold.start < before)
        more = f" and {len(kept) - 1} more stretches" if len(kept) > 1 else ""
        raise FootageHeld(
            f"{stream_id}: {rfc3339(first.start)} to {rfc3339(first.end)}{more} is held as evidence by "
            f"{first.placed_by} ({first.reason}); nothing was deleted: delete everything else with --except-held, or "
            "let an administrator release it (`sightline evidence release`)"
        )
    return kept


def delete_rows(tables: Tables, stream_id: str, deletion: Deletion) -> int:
    """Delete the rows that a deletion is about, and rows and files of appends that did not finish; returns the number
    of frames.

    Raises:
        StoreBusy: another process does the same, and was faster at each attempt.
    """
    for _ in range(ATTEMPTS):
        try:
            removed = _delete_rows(tables, stream_id, deletion)
        except CommitFenced:
            continue
        _remove_unlisted(tables, stream_id, deletion)
        _advance(tables, stream_id, deletion, replace(deletion, has_rows=False))
        return removed
    raise StoreBusy(f"{mask_url(tables.url)}: another process deletes footage of {stream_id}; run `forget` again later")


def _delete_rows(tables: Tables, stream_id: str, deletion: Deletion) -> int:
    app, number = _application(stream_id), deletion.generation
    for table in (tables.frames, tables.patches):
        table.configure(requirement(stream_id, number))
    where = _predicate(tables, stream_id, deletion)
    if (tables.patches.transaction_versions([app])[app] or 0) < number:
        begins = [start for start, _ in deletion.kept]
        for first in begins if deletion.before is None else [*begins, deletion.before]:
            tables.patch_store.make_independent(stream_id, first, app)
    removed = tables.frames.delete_once(where, app, number)
    tables.patches.delete_once(where, app, number)
    if deletion.before is None and not deletion.kept:
        tables.segments.delete_once(where, app, number)
    else:
        _correct_segments(tables, stream_id, deletion)
    return removed


def _remove_unlisted(tables: Tables, stream_id: str, deletion: Deletion) -> None:
    """Remove the files that appends of earlier generations wrote and did not commit."""
    until = None if deletion.before is None else day_of(deletion.before)
    for table in tables.all():
        found = partition_files(table, stream_id, until)
        now = deletion_in_progress(tables, stream_id)
        if now is None or now.generation != deletion.generation or not now.has_rows:
            return  # another process has done this, and what was found may be of an append that has begun since
        remove_unlisted(table, found)


def finish(tables: Tables, stream_id: str, deletion: Deletion) -> None:
    """Record that a deletion is complete: no file is left either."""
    _advance(tables, stream_id, deletion, None)


def finish_nameless(tables: Tables, known: Iterable[str]) -> None:
    """Record that the deletions of all streams but `known` are complete.

    A record does not hold the name of its stream. One of a stream that nothing in the store names any more is of a
    process that was killed after its last removal.
    """
    names = {_name(DELETION_KEY, stream) for stream in known}

    def change(held: Mapping[str, str]) -> dict[str, str]:
        pending = [name for name, value in held.items() if name.startswith(f"{DELETION_KEY}.") and value]
        return dict.fromkeys(set(pending) - names, "")

    tables.segments.change_configuration(change)


def _advance(tables: Tables, stream_id: str, deletion: Deletion, then: Deletion | None) -> None:
    """Replace the record of a deletion, unless it is already of a later state."""
    name = _name(DELETION_KEY, stream_id)

    def change(held: Mapping[str, str]) -> dict[str, str]:
        pending = _parse(held.get(name, ""))
        same = pending is not None and pending.generation == deletion.generation
        return {name: "" if then is None else str(then)} if same else {}

    tables.segments.change_configuration(change)


def _predicate(tables: Tables, stream_id: str, deletion: Deletion) -> str:
    """The rows of `frames` and `patches` that are deleted."""
    of_stream = f"stream_id = {sql_string(stream_id)}"
    if deletion.before is None and not deletion.kept:
        return of_stream
    parts = [table.read(["segment"], of_streams([stream_id]))["segment"] for table in (tables.frames, tables.patches)]
    held = {key for part in parts for key in pc.unique(part.cast(pa.string())).to_pylist()}
    listed = tables.segments.read(["segment"], of_streams([stream_id]))["segment"].to_pylist()
    early = "TRUE" if deletion.before is None else f"captured_at < {sql_timestamp(deletion.before)}"
    for start, end in deletion.kept:
        early += f" AND NOT (captured_at >= {sql_timestamp(start)} AND captured_at < {sql_timestamp(end)})"
    if unlisted := sorted(held.difference(listed)):
        early = f"({early} OR segment IN ({', '.join(map(sql_string, unlisted))}))"
    return f"{of_stream} AND {early}"


def _correct_segments(tables: Tables, stream_id: str, deletion: Deletion) -> None:
    """Delete the segments without footage that is left, and correct the number of frames of the others."""
    app, table = _application(stream_id), tables.segments
    reached = table.transaction_versions([app])[app]
    if (reached or 0) >= deletion.generation:
        return
    rows = table.read(table.schema.names, of_streams([stream_id]))
    left = tables.frames.read(["segment"], of_streams([stream_id]))["segment"].cast(pa.string())
    counts = {row["values"]: row["counts"] for row in pc.value_counts(left).to_pylist()}
    replace_where = f"stream_id = {sql_string(stream_id)}"
    remaining = pc.is_in(rows["segment"].cast(pa.string()), pa.array(list(counts), pa.string()))
    for first, last in deletion.kept:
        remaining = pc.or_(
            remaining, pc.and_(pc.less(rows["start"], _time(last)), pc.greater(rows["end"], _time(first)))
        )
    if deletion.before is not None:
        replace_where += f" AND start < {sql_timestamp(deletion.before)}"
        remaining = pc.or_(remaining, pc.greater(rows["end"], _time(deletion.before)))
        remaining = pc.and_(remaining, pc.less(rows["start"], _time(deletion.before)))
    rows = rows.filter(remaining)
    if len(rows):
        frames = pa.array([counts.get(key, 0) for key in rows["segment"].to_pylist()], pa.int64())
        rows = rows.set_column(rows.schema.get_field_index("frames"), table.schema.field("frames"), frames)
    table.append_and_advance(
        rows if len(rows) else table.schema.empty_table(), {app: (reached, deletion.generation)}, replace=replace_where
    )


def _time(micros: int) -> pa.Scalar:
    return pa.scalar(micros, pa.timestamp("us", "UTC"))


def _name(key: str, stream_id: str) -> str:
    """The name of a stream's property, which does not contain the name of the stream."""
    return f"{key}.{digest(stream_id)}"


def _application(stream_id: str) -> str:
    return f"sightline.deletion/{digest(stream_id)}"


def _parse(text: str) -> Deletion | None:
    if not text:
        return None
    generation, before, left, *more = text.split()
    stretches = [each.split(":") for each in more[0].split(",")] if more and more[0] != _NONE else []
    return Deletion(
        int(generation),
        None if before == _ALL else int(before),
        left == "rows",
        tuple((int(start), int(end)) for start, end in stretches),
        int(more[1]) if len(more) > 1 else 0,
    )
