"""Retention of a store: what is older than its stream may be, or beyond the bytes that it may have, is deleted.

A rule applies to the streams that match its pattern; of several patterns the first one counts. Age is applied by the
hour (by a 24th of the time if that is less), so that a run every few minutes does not write a day's file again each
time. Of a stream with too many bytes the oldest UTC days are deleted; if only one day is left, its oldest part, so that
nine tenths of the allowed bytes remain. Sizes are those of the files that the newest version lists.

What is held as evidence (`index.maintenance.holds`) stays and is reported. Its bytes, by its share of the frames of
each day, do not count, so that a hold does not make other footage of the stream expire earlier.

Deleting is done by `index.maintenance.retention`, which removes the files from the disk at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from index.columns import day_of
from index.commits.held import Stretch, merged
from index.delta.failures import translate_errors
from index.delta.row_filter import in_window, on_day
from index.maintenance.holds import list_holds
from index.maintenance.retention import forget
from index.maintenance.rules import RetentionRule
from index.search.faiss_shards import FaissShards
from index.stream_patterns import matches
from index.tables import Tables

__all__ = ["Expired", "apply_retention", "stream_bytes"]

_DAY = 86_400_000_000  # microseconds
_HOUR = _DAY // 24
_SHARE = 0.9  # of the allowed bytes that remain of a stream of one day


class Expired(BaseModel):
    """What a rule deleted of one stream."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream_id: str
    """The stream."""
    pattern: str
    """The pattern of the rule."""
    before: int
    """Frames before this time were deleted, UTC microseconds."""
    frames: int
    """Number of frames."""
    bytes: int
    """Bytes of files that the stream has less than before."""
    held: int = 0
    """Number of frames before this time, one a second, that evidence locks keep."""


def stream_bytes(tables: Tables) -> dict[str, dict[str, int]]:
    """The bytes of each stream in all tables, by UTC day."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for table in tables.all():
        with translate_errors(table.uri):
            rows = table.open().get_add_actions(flatten=True)
            names = ("partition.stream_id", "partition.date", "size_bytes")
            columns = [rows.column(name).to_pylist() if name in rows.schema.names else None for name in names]
        streams, days, sizes = columns[0] or [], columns[1], columns[2] or []
        for i, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
            found[stream][str(days[i]) if days is not None else ""] += size
    return {stream: dict(days) for stream, days in found.items()}


def apply_retention(
    tables: Tables, shards: FaissShards, rules: Mapping[str, RetentionRule], now: int, *, dry_run: bool = False
) -> list[Expired]:
    """Delete what the rules do not allow.

    Args:
        tables: the store.
        shards: its FAISS shards.
        rules: rules by pattern, see `index.stream_patterns`; the first that matches a stream applies to it.
        now: the present, UTC microseconds.
        dry_run: delete nothing; the result has no frames and no bytes.

    Returns:
        The streams that something was deleted of, or is held of, by name.

    Raises:
        StoreError: a deletion failed; the same call completes it.
    """
    expired: list[Expired] = []
    sizes = stream_bytes(tables) if rules else {}
    for stream, days in sorted(sizes.items()):
        pattern = next((each for each in rules if matches(stream, each)), None)
        if pattern is None:
            continue
        kept = merged((hold.start, hold.end) for hold in list_holds(tables, stream))
        cut = _cut(tables, stream, days, rules[pattern], now, kept)
        if cut is None:
            continue
        held, free = _held_before(tables, stream, cut, kept)
        frames = forget(tables, shards, stream, cut, staging=False, keep_held=True) if free and not dry_run else 0
        after = sum(stream_bytes(tables).get(stream, {}).values()) if free and not dry_run else sum(days.values())
        gone = sum(days.values()) - after
        expired.append(Expired(stream_id=stream, pattern=pattern, before=cut, frames=frames, bytes=gone, held=held))
    return expired


def _held_before(tables: Tables, stream: str, cut: int, kept: Sequence[Stretch]) -> tuple[int, bool]:
    """How many frames before `cut` (UTC microseconds) are held, and whether any is not."""
    if not kept:
        return 0, True
    rows = tables.frames.read(["captured_at"], in_window([stream], None, cut))
    times = rows["captured_at"].cast(pa.int64()).to_pylist()
    held = sum(_is_held(time, kept) for time in times)
    return held, held < len(times)


def _is_held(time: int, kept: Sequence[Stretch]) -> bool:
    return any(start <= time < end for start, end in kept)


def _cut(
    tables: Tables, stream: str, days: Mapping[str, int], rule: RetentionRule, now: int, kept: Sequence[Stretch]
) -> int | None:
    """The time before which frames of a stream are deleted, UTC microseconds; None if all may stay."""
    dates = sorted(day for day in days if day)
    cuts: list[int] = []
    if rule.days is not None:
        step = min(_HOUR, max(1, round(rule.days * _HOUR)))
        limit = now - round(rule.days * _DAY)
        cuts.append(limit - limit % step)
    if rule.bytes is not None and sum(days.values()) > rule.bytes:
        counted = {day: round(size * _free_share(tables, stream, day, kept)) for day, size in days.items()}
        if sum(counted.values()) > rule.bytes:
            cuts.append(_cut_by_bytes(tables, stream, counted, dates, rule.bytes, kept))
    cut = max(cuts, default=None)
    if cut is None or not dates or dates[0] > day_of(cut):
        return None
    return cut if dates[0] < day_of(cut) or _times(tables, stream, dates[0])[0] < cut else None


def _free_share(tables: Tables, stream: str, day: str, kept: Sequence[Stretch]) -> float:
    """The share of a day's frames that is not held."""
    if not day or not any(day_of(start) <= day <= day_of(end) for start, end in kept):
        return 1.0
    times = _times(tables, stream, day)
    return sum(not _is_held(time, kept) for time in times) / max(1, len(times))


def _cut_by_bytes(
    tables: Tables,
    stream: str,
    days: Mapping[str, int],
    dates: Sequence[str],
    allowed: int,
    held: Sequence[Stretch],
) -> int:
    total = sum(days.values())
    for i, date in enumerate(dates[:-1]):
        total -= days[date]
        if total <= allowed:
            return _times(tables, stream, dates[i + 1])[0]
    times = [time for time in _times(tables, stream, dates[-1]) if not _is_held(time, held)]
    kept = int(len(times) * min(1.0, _SHARE * allowed / max(1, total)))
    return times[len(times) - kept] if kept else times[-1] + 1


def _times(tables: Tables, stream: str, day: str) -> list[int]:
    """The times of a stream's frames on a UTC day, UTC microseconds, ascending."""
    rows = tables.frames.read(["captured_at"], on_day(stream, day))
    return sorted(rows["captured_at"].cast(pa.int64()).to_pylist())
