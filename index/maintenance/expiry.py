"""Retention of a store: what is older than its stream may be, or beyond the bytes that it may have, is deleted.

A rule applies to the streams that match its pattern; of several patterns the first one counts. Age is applied by the
hour (by a 24th of the time if that is less), so that a run every few minutes does not write a day's file again each
time. Of a stream with too many bytes the oldest UTC days are deleted; if only one day is left, its oldest part, so that
nine tenths of the allowed bytes remain. Sizes are those of the files that the newest version lists.

Deleting is done by `index.maintenance.retention`, which removes the files from the disk at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from index.columns import day_of
from index.delta.failures import translate_errors
from index.delta.row_filter import on_day
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
        The streams that something was deleted of, by name.

    Raises:
        StoreError: a deletion failed; the same call completes it.
    """
    expired: list[Expired] = []
    sizes = stream_bytes(tables) if rules else {}
    for stream, days in sorted(sizes.items()):
        pattern = next((each for each in rules if matches(stream, each)), None)
        if pattern is None:
            continue
        cut = _cut(tables, stream, days, rules[pattern], now)
        if cut is None:
            continue
        frames = 0 if dry_run else forget(tables, shards, stream, cut, staging=False)
        after = 0 if dry_run else sum(stream_bytes(tables).get(stream, {}).values())
        gone = 0 if dry_run else sum(days.values()) - after
        expired.append(Expired(stream_id=stream, pattern=pattern, before=cut, frames=frames, bytes=gone))
    return expired


def _cut(tables: Tables, stream: str, days: Mapping[str, int], rule: RetentionRule, now: int) -> int | None:
    """The time before which frames of a stream are deleted, UTC microseconds; None if all may stay."""
    dates = sorted(day for day in days if day)
    cuts: list[int] = []
    if rule.days is not None:
        step = min(_HOUR, max(1, round(rule.days * _HOUR)))
        limit = now - round(rule.days * _DAY)
        cuts.append(limit - limit % step)
    if rule.bytes is not None and sum(days.values()) > rule.bytes:
        cuts.append(_cut_by_bytes(tables, stream, days, dates, rule.bytes))
    cut = max(cuts, default=None)
    if cut is None or not dates or dates[0] > day_of(cut):
        return None
    return cut if dates[0] < day_of(cut) or _times(tables, stream, dates[0])[0] < cut else None


def _cut_by_bytes(tables: Tables, stream: str, days: Mapping[str, int], dates: Sequence[str], allowed: int) -> int:
    total = sum(days.values())
    for i, date in enumerate(dates[:-1]):
        total -= days[date]
        if total <= allowed:
            return _times(tables, stream, dates[i + 1])[0]
    times = _times(tables, stream, dates[-1])
    kept = int(len(times) * min(1.0, _SHARE * allowed / max(1, total)))
    return times[len(times) - kept] if kept else times[-1] + 1


def _times(tables: Tables, stream: str, day: str) -> list[int]:
    """The times of a stream's frames on a UTC day, UTC microseconds, ascending."""
    rows = tables.frames.read(["captured_at"], on_day(stream, day))
    return sorted(rows["captured_at"].cast(pa.int64()).to_pylist())
