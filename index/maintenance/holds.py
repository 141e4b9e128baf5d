"""Placing and releasing evidence locks: a stretch of a stream that retention, `forget` and expiry leave as it is.

A hold is one commit to the table `segments` (`index.commits.held`), and the beginning of a deletion is another. The log
of the table orders them, whatever processes make them:

- A hold that is committed before a deletion begins is obeyed by it, also by the process that completes it after a kill.
- While a deletion that began earlier still has rows to delete, a hold of footage that it deletes is refused with
  StoreBusy. When it is complete, what is left can be held.

Compaction writes rows to other files and never changes them. A hold keeps frames of committed segments; those of an
append that was killed are written again by the same append. It may reach into the future.

This module does not know who may place or release a hold.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from index.commits.deletion import parse_deletion
from index.commits.held import Hold, all_holds, holds_name, holds_of, holds_text, merged, uncovered
from index.delta.row_filter import in_window
from index.errors import StoreBusy, UnknownStream, UsageError, mask_url
from index.records import rfc3339
from index.schemas import compose_stream_id
from index.tables import Tables

__all__ = ["MAX_HOLDS", "MAX_REASON", "held_frames", "list_holds", "place", "release"]

MAX_HOLDS = 500
"""Most holds of one stream."""
MAX_REASON = 500
"""Most characters of a reason."""


def list_holds(tables: Tables, stream_id: str | None = None) -> list[Hold]:
    """The holds of a stream, of all streams when None; by stream and start. Raises StoreCorrupt."""
    held = tables.segments.configuration()
    return all_holds(held) if stream_id is None else holds_of(held, stream_id)


def held_frames(tables: Tables, stream_id: str, before: int | None = None) -> int:
    """Number of frames of a stream, one a second, before `before` (UTC microseconds) that holds keep at present."""
    stretches = merged(((hold.start, hold.end) for hold in list_holds(tables, stream_id)), before)
    return sum(len(tables.frames.read(["captured_at"], in_window([stream_id], *each))) for each in stretches)


def place(
    tables: Tables, stream_id: str, start: int, end: int, *, reason: str, placed_by: str, now: int | None = None
) -> Hold:
    """Protect the footage of a stream with start ≤ captured_at < end, UTC microseconds, from deletion.

    Args:
        tables: the store.
        stream_id: a stream of the store.
        start, end: UTC microseconds; `end` may be in the future.
        reason: why, at most `MAX_REASON` characters.
        placed_by: name of the user.
        now: the present, UTC microseconds; read from the clock when None.

    Raises:
        UnknownStream: the store has no such stream.
        UsageError: the stretch is empty, there is no reason, or the stream has `MAX_HOLDS` holds.
        StoreBusy: a deletion of this footage has begun.
        StoreDenied: the store is read-only.
    """
    stream_id = compose_stream_id(stream_id)
    if start >= end:
        raise UsageError(f"the hold ends ({rfc3339(end)}) before it begins ({rfc3339(start)})")
    reason = _checked(reason)
    if stream_id not in tables.segments.partition_values("stream_id"):
        raise UnknownStream(f"{stream_id}: the store has no such stream; `sightline streams` lists those it has")
    hold = Hold(
        id=secrets.token_hex(8),
        stream_id=stream_id,
        start=start,
        end=end,
        reason=reason,
        placed_by=placed_by[:200],
        placed_at=time.time_ns() // 1000 if now is None else now,
    )

    def change(held: Mapping[str, str]) -> dict[str, str]:
        pending = parse_deletion(held, stream_id)
        if pending is not None and pending.has_rows:
            last = end if pending.before is None else min(end, pending.before)
            if start < last and uncovered((start, last), pending.kept):
                raise StoreBusy(
                    f"{stream_id}: footage of this time is being deleted, by a deletion that began earlier; let it "
                    "end, or complete it with `sightline compact`, and hold what is left"
                )
        present = holds_of(held, stream_id)
        if len(present) >= MAX_HOLDS:
            raise UsageError(f"{stream_id}: has {MAX_HOLDS} holds already; release some, or hold a longer stretch")
        return {holds_name(stream_id): holds_text([*present, hold])}

    tables.segments.change_configuration(change)
    return hold


def release(tables: Tables, hold_id: str, *, reason: str) -> Hold:
    """End a hold; deletions that begin afterwards delete the footage. The caller keeps the reason.

    Raises:
        UsageError: there is no hold of this id, or no reason.
    """
    _checked(reason)
    released: list[Hold] = []

    def change(held: Mapping[str, str]) -> dict[str, str]:
        found = next((hold for hold in all_holds(held) if hold.id == hold_id), None)
        if found is None:
            raise UsageError(
                f"{hold_id[:40]!r}: {mask_url(tables.url)} has no such hold; `sightline evidence holds` lists them"
            )
        released[:] = [found]
        rest = [hold for hold in holds_of(held, found.stream_id) if hold.id != hold_id]
        return {holds_name(found.stream_id): holds_text(rest)}

    tables.segments.change_configuration(change)
    return released[0]


def _checked(reason: str) -> str:
    text = " ".join(reason.split())
    if not text or len(text) > MAX_REASON:
        raise UsageError(f"a hold and its release need a reason of 1 to {MAX_REASON} characters")
    return text
