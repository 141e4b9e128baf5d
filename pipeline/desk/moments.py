"""Moments of the desk: the pictures of frames, the strip around a time, and the other cameras at that time."""

from __future__ import annotations

import io
from typing import Literal
from urllib.parse import urlencode

import numpy as np
from PIL import Image, UnidentifiedImageError

from index.errors import StoreCorrupt, UsageError
from index.records import rfc3339
from index.search.resident_frames import ResidentStream
from pipeline.access.caller import Caller
from pipeline.desk.desk import Desk
from pipeline.desk.links import API, decode_cursor, encode_cursor, play_url, thumbnail_url
from pipeline.http.replies import Reply, TimeText

__all__ = [
    "Clock",
    "FrameEntry",
    "FramePage",
    "MomentView",
    "OtherView",
    "Play",
    "frames",
    "moment",
    "picture",
    "thumbnail",
]

WIDTHS = (80, 160, 240, 320, 480, 640, 960, 1_280)
"""Widths of thumbnails, in pixels; another width is rounded up, so that few are made."""
_SECOND = 1_000_000
_STRIP = 61
_OTHERS = 24
_NEAR_SECONDS = 30.0
_QUALITY = 80
_STEPPER_SECONDS = 60


class FrameEntry(Reply):
    """One frame of a stream."""

    captured_at: TimeText
    """Capture time, RFC 3339 UTC."""
    pts_seconds: float
    """Seconds of the stream's own clock."""
    score: float | None = None
    """Cosine of the frame and the text of the request; null without a text."""
    thumbnail: str
    """Address of its picture."""


class FramePage(Reply):
    """Frames in the order of time."""

    items: list[FrameEntry]
    """The frames."""
    next: str | None
    """Cursor of the next page; null at the end."""


class OtherView(Reply):
    """Another stream at the time of a moment."""

    stream_id: str
    """Name of the stream."""
    at: TimeText
    """Time of its frame that is nearest, RFC 3339 UTC."""
    thumbnail: str
    """Address of the picture."""


class Play(Reply):
    """How a moment can be played."""

    kind: Literal["video", "stepper", "none"]
    """video: a browser plays it; stepper: its pictures are shown one after the other; none: there are no pictures."""
    url: str | None
    """Address of the video, or of the list of pictures."""
    type: str | None
    """Media type of the video."""
    start_offset_seconds: float
    """Position of the moment in the video."""
    start: TimeText | None = None
    """Time of the first frame of the video, RFC 3339 UTC."""
    end: TimeText | None = None
    """Time at which the video ends before the footage does, RFC 3339 UTC; null where it lasts as long."""
    why: str
    """The reason, if it is not a video or is encoded anew; empty otherwise."""


class Clock(Reply):
    """Where the time of a frame comes from."""

    source: str
    """given, filename, container, mtime or arrival."""
    zone: str
    """Zone of the desk, an IANA name."""


class MomentView(Reply):
    """A moment: the frames around a time, and what else there is of that time."""

    stream_id: str
    """Name of the stream."""
    at: TimeText
    """Time of the frame that is nearest to the time of the request, RFC 3339 UTC."""
    frames: list[FrameEntry]
    """The strip around it."""
    others: list[OtherView]
    """Other streams at that time."""
    play: Play
    """How it can be played."""
    clock: Clock
    """Where the time comes from."""


def picture(desk: Desk, caller: Caller, stream_id: str, at: int) -> bytes:
    """The whole stored picture of the frame at a time (UTC microseconds), JPEG.

    Raises:
        UnknownStream, UnknownFrame: there is none that the caller may see.
        StoreError: the store cannot be read.
    """
    stream = desk.stream(caller, stream_id)
    return stream.picture(stream.row(at))


def thumbnail(desk: Desk, caller: Caller, stream_id: str, at: int, width: int) -> bytes:
    """The picture of the frame at a time (UTC microseconds), at most `width` pixels wide rounded up to `WIDTHS`, JPEG.

    Raises:
        UnknownStream, UnknownFrame: there is none that the caller may see.
        StoreCorrupt: the stored picture is not one.
    """
    stream = desk.stream(caller, stream_id)
    row = stream.row(at)
    size = next((each for each in WIDTHS if each >= width), WIDTHS[-1])
    return desk.thumbnails.get(
        (stream.stream_id, at, size, stream.paths), lambda: _shrink(stream.picture(row), size, stream_id, at)
    )


def _shrink(data: bytes, width: int, stream_id: str, at: int) -> bytes:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width <= width:
                return data
            image.draft("RGB", (width, width * image.height // image.width))
            image.thumbnail((width, width * 4))
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=_QUALITY)
            return out.getvalue()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise StoreCorrupt(f"{stream_id} at {rfc3339(at)}: the stored picture cannot be read ({error})") from None


def frames(
    desk: Desk,
    caller: Caller,
    stream_id: str,
    *,
    start: int | None = None,
    end: int | None = None,
    text: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> FramePage:
    """The frames of a stream with start ≤ time < end (UTC microseconds), in the order of time.

    Args:
        desk: the desk.
        caller: the caller.
        stream_id: the stream.
        start: first time.
        end: last time, exclusive.
        text: a text to compare each frame with.
        limit: largest number of frames.
        cursor: `next` of the page before.

    Raises:
        UnknownStream: there is no such stream that the caller may see.
        UsageError: the cursor is invalid, or the window ends before it begins.
    """
    if start is not None and end is not None and start >= end:
        raise UsageError(f"from {rfc3339(start)} is not before to {rfc3339(end)}")
    place = decode_cursor(cursor, after=int)
    stream = desk.stream(caller, stream_id)
    part = stream.between(start if place is None else place["after"] + 1, end)
    rows = range(part.start, min(part.stop, part.start + limit))
    scores = stream.scores(desk.models.text_vector(text)) if text else None
    more = part.stop > rows.stop and len(rows) > 0
    return FramePage(
        items=[_frame(stream, row, None if scores is None else float(scores[row])) for row in rows],
        next=encode_cursor({"after": int(stream.captured_at[rows[-1]])}) if more else None,
    )


def moment(desk: Desk, caller: Caller, stream_id: str, at: int, *, span_seconds: float = 30.0) -> MomentView:
    """The moment around a time, UTC microseconds.

    Args:
        desk: the desk.
        caller: the caller.
        stream_id: the stream.
        at: the time.
        span_seconds: length of the strip of frames, in seconds; of a long one an even selection is shown.

    Raises:
        UnknownStream: there is no such stream that the caller may see.
    """
    stream = desk.stream(caller, stream_id)
    row = stream.nearest(at)
    middle = int(stream.captured_at[row])
    reach = round(span_seconds * _SECOND / 2)
    part = stream.between(middle - reach, middle + reach + 1)
    rows = np.arange(part.start, part.stop)
    if len(rows) > _STRIP:
        rows = np.unique(np.r_[rows[np.linspace(0, len(rows) - 1, _STRIP).round().astype(int)], row])
    others = []
    for name, other in desk.scope(caller).items():
        near = int(other.captured_at[other.nearest(middle)])
        if name != stream.stream_id and abs(near - middle) <= _NEAR_SECONDS * _SECOND:
            others.append(OtherView(stream_id=name, at=rfc3339(near), thumbnail=thumbnail_url(name, near)))
            if len(others) == _OTHERS:
                break
    return MomentView(
        stream_id=stream.stream_id,
        at=rfc3339(middle),
        frames=[_frame(stream, each, None) for each in rows.tolist()],
        others=others,
        play=_play(desk, stream, middle),
        clock=Clock(source=", ".join(stream.clock_sources), zone=desk.settings.timezone),
    )


def _play(desk: Desk, stream: ResidentStream, at: int) -> Play:
    """The footage of a moment; else the pictures of the store, one after the other."""
    plan = desk.player.plan(stream.stream_id, at)
    if plan.kind == "video" and plan.start is not None:
        url = play_url(stream.stream_id, at, transcode=plan.transcoded)
        return Play(
            kind="video",
            url=url,
            type=plan.media_type,
            start_offset_seconds=round(plan.start_offset_seconds, 6),
            start=rfc3339(plan.start),
            end=None if plan.end is None else rfc3339(plan.end),
            why=plan.why,
        )
    query = urlencode({"stream": stream.stream_id, "from": rfc3339(at), "to": rfc3339(at + _STEPPER_SECONDS * _SECOND)})
    why = f"{plan.why} The stored pictures, one a second, are shown."
    return Play(kind="stepper", url=f"{API}/stepper?{query}", type=None, start_offset_seconds=0.0, why=why)


def _frame(stream: ResidentStream, row: int, score: float | None) -> FrameEntry:
    at = int(stream.captured_at[row])
    return FrameEntry(
        captured_at=rfc3339(at),
        pts_seconds=float(stream.pts_seconds[row]),
        score=None if score is None else round(score, 6),
        thumbnail=thumbnail_url(stream.stream_id, at),
    )
