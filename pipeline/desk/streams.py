"""Streams of the desk: what the store has of each camera and archive, with its gaps, and whether it is live.

Everything is computed from the times of the frames in memory, once for each version of a stream.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.columns import MICROS_PER_DAY, day_of
from index.errors import SourceNotFound
from index.records import rfc3339
from index.search.resident_frames import ResidentStream
from index.stream_patterns import matches
from ingest.live.status import CameraState, read_status
from ingest.live.supervisor import STATUS_FILE
from pipeline.access.caller import Caller
from pipeline.desk.desk import Desk
from pipeline.desk.links import decode_cursor, encode_cursor, thumbnail_url
from pipeline.http.replies import Reply, TimeText

__all__ = [
    "Coverage",
    "EncoderNames",
    "LiveState",
    "RetentionLimits",
    "StreamDay",
    "StreamEntry",
    "StreamPage",
    "coverage",
    "list_streams",
]

_SECOND = 1_000_000
_GAP_SECONDS = 5.0
_GAPS_A_DAY = 48
_INTERVALS = 2_000


class StreamDay(Reply):
    """One UTC day of a stream."""

    day: str
    """The day, YYYY-MM-DD."""
    seconds: int
    """Seconds of which the store has a frame."""
    gaps: list[tuple[TimeText, TimeText]]
    """The longest stretches without frames between the first and the last frame of the day, in the order of time."""


class LiveState(Reply):
    """State of the camera of a stream, where `watch` or `record` runs."""

    state: str
    """connecting, live, stalled, failed or stopped."""
    newest_age_seconds: float | None
    """Age of the newest frame; null before the first."""
    drops: int
    """Frames that arrived and were lost."""
    why: str | None
    """Why the camera is not live; null if it is."""


class RetentionLimits(Reply):
    """How long frames of a stream are kept."""

    days: float | None
    """Largest age in days; null for no limit."""
    bytes: int | None
    """Largest size in bytes; null for no limit."""


class EncoderNames(Reply):
    """The encoders of a stream's vectors."""

    frame: str
    """Name of the encoder of whole frames."""
    patch: str
    """Name of the encoder of patches."""


class StreamEntry(Reply):
    """What the store has of one stream."""

    stream_id: str
    """Name of the stream."""
    frames: int
    """Number of frames."""
    first: TimeText
    """Time of the first frame, RFC 3339 UTC."""
    last: TimeText
    """Time of the last frame, RFC 3339 UTC."""
    days: list[StreamDay]
    """Days with frames, ascending; the newest 366."""
    clock_sources: list[str]
    """Where the times come from: given, filename, container, mtime or arrival."""
    picture: str
    """Address of the newest picture."""
    live: LiveState | None
    """State of its camera; null if none is read."""
    retention: RetentionLimits | None
    """How long frames are kept; null for ever."""
    encoder: EncoderNames
    """The encoders of its vectors."""
    holds: int
    """Number of evidence locks on the stream."""


class StreamPage(Reply):
    """Streams by name."""

    items: list[StreamEntry]
    """The streams."""
    next: str | None
    """Cursor of the next page; null at the end."""


class Coverage(Reply):
    """The stretches of a stream that the store has frames of."""

    stream_id: str
    """Name of the stream."""
    intervals: list[tuple[TimeText, TimeText]]
    """First and last frame of each stretch, RFC 3339 UTC, ascending."""
    resolution_seconds: float
    """Gaps up to this length are not shown, so that there are at most 2,000 intervals."""


def list_streams(desk: Desk, caller: Caller, *, limit: int = 100, cursor: str | None = None) -> StreamPage:
    """The streams that a caller may see, by name.

    Args:
        desk: the desk.
        caller: the caller.
        limit: largest number of streams.
        cursor: `next` of the page before.

    Raises:
        UsageError: the cursor is invalid.
        StoreError: the store cannot be read.
    """
    after = decode_cursor(cursor, after=str)
    seen = desk.scope(caller)
    names = [name for name in seen if after is None or name > after["after"]]
    cameras = _cameras(desk)
    held = Counter(hold.stream_id for hold in desk.store.holds())
    items = [_entry(desk, seen[name], cameras.get(name), held[name]) for name in names[:limit]]
    more = len(names) > limit
    return StreamPage(items=items, next=encode_cursor({"after": names[limit - 1]}) if more else None)


def coverage(desk: Desk, caller: Caller, stream_id: str, *, start: int | None, end: int | None) -> Coverage:
    """The stretches of a stream with frames, start ≤ time < end in UTC microseconds.

    Raises:
        UnknownStream: there is no such stream that the caller may see.
    """
    stream = desk.stream(caller, stream_id)
    times = stream.captured_at[stream.between(start, end)]
    resolution = 2.0
    steps = np.diff(times)
    while np.count_nonzero(steps > resolution * _SECOND) >= _INTERVALS:
        resolution *= 2
    intervals = [(rfc3339(a), rfc3339(b)) for a, b in _stretches(times, resolution)]
    return Coverage(stream_id=stream.stream_id, intervals=intervals, resolution_seconds=resolution)


def _stretches(times: NDArray[np.int64], gap_seconds: float) -> list[tuple[int, int]]:
    """First and last time of each run of times without a longer gap."""
    if not len(times):
        return []
    cuts = np.flatnonzero(np.diff(times) > gap_seconds * _SECOND)
    first, last = times[np.r_[0, cuts + 1]], times[np.r_[cuts, len(times) - 1]]
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _days_of(times: NDArray[np.int64]) -> list[StreamDay]:
    days, starts = np.unique(times // MICROS_PER_DAY, return_index=True)
    found = []
    for number, low, high in zip(days[-366:], starts[-366:], np.r_[starts[1:], len(times)][-366:], strict=True):
        held = times[low:high]
        steps = np.diff(held)
        gaps = np.flatnonzero(steps > _GAP_SECONDS * _SECOND)
        if len(gaps) > _GAPS_A_DAY:
            gaps = np.sort(gaps[np.argsort(-steps[gaps], kind="stable")[:_GAPS_A_DAY]])
        found.append(
            StreamDay(
                day=day_of(int(number) * MICROS_PER_DAY),
                seconds=int(high - low),
                gaps=[(rfc3339(held[i]), rfc3339(held[i + 1])) for i in gaps.tolist()],
            )
        )
    return found


def _entry(desk: Desk, stream: ResidentStream, camera: CameraState | None, holds: int) -> StreamEntry:
    first, last = int(stream.captured_at[0]), int(stream.captured_at[-1])
    encoders = desk.store.encoders
    return StreamEntry(
        stream_id=stream.stream_id,
        frames=len(stream),
        first=rfc3339(first),
        last=rfc3339(last),
        days=desk.days.get(stream.paths, lambda: _days_of(stream.captured_at)),
        clock_sources=list(stream.clock_sources),
        picture=thumbnail_url(stream.stream_id, last),
        live=None if camera is None else _live(camera, last),
        retention=_retention(desk, stream.stream_id),
        encoder=EncoderNames(frame=encoders.frame.name, patch=encoders.patch.name),
        holds=holds,
    )


def _retention(desk: Desk, stream_id: str) -> RetentionLimits | None:
    rule = next((rule for pattern, rule in desk.settings.retention.items() if matches(stream_id, pattern)), None)
    return None if rule is None else RetentionLimits(days=rule.days, bytes=rule.bytes)


def _cameras(desk: Desk) -> dict[str, Any]:
    """The cameras that are read at this moment, by stream."""
    if desk.settings.live is None:
        return {}
    try:
        status = read_status(desk.settings.live / STATUS_FILE)
    except SourceNotFound:
        return {}
    if not status.running:
        cameras = [camera.model_copy(update={"state": "stopped"}) for camera in status.cameras]
    else:
        cameras = status.cameras
    return {camera.stream: camera for camera in cameras}


def _live(camera: CameraState, last: int) -> LiveState:
    newest = camera.newest.timestamp() if camera.newest is not None else last / 1e6
    age = datetime.now(UTC).timestamp() - newest
    return LiveState(
        state=camera.state, newest_age_seconds=round(max(0.0, age), 1), drops=camera.dropped, why=camera.why
    )
