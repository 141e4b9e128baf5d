"""Routes of footage: `GET /play` in ranges of bytes, and `GET /stepper`, the pictures in place of a video."""

from __future__ import annotations

import re
from typing import Annotated, Any

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread
from fastapi import Header, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from index.records import parse_rfc3339, parse_time
from pipeline.access.roles import Action
from pipeline.desk import moments as desk_moments
from pipeline.desk.moments import FramePage
from pipeline.desk.playing import play
from pipeline.media.playback import Playable
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.fields import Cursor, Limit, MicrosText, StreamText

__all__ = ["PlayResponse", "requested_range", "routes"]

routes = GuardedRouter(tag="media")
_THREADS = 16
"""Videos that are read at the same moment."""
_BLOCK = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_VIDEO: dict[str, Any] = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "video/webm")
}
_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {"content": _VIDEO, "description": "The video; without a length while it is being made."},
    206: {"content": _VIDEO, "description": "The requested range of bytes."},
    416: {"description": "The range begins behind the end."},
}


@routes.get("/play", action=Action.VIEW, response_class=Response, responses=_REPLIES)
def get_play(
    desk: DeskOf,
    caller: CallerOf,
    stream: Annotated[StreamText, Query(description="Name of the stream.")],
    at: Annotated[MicrosText, Query(description="Time that the video begins with or contains, RFC 3339.")],
    transcode: Annotated[bool, Query(description="Encode it anew, whatever the footage is.")] = False,
    range_: Annotated[str | None, Header(alias="Range", max_length=1_000, description="A range of bytes.")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range", max_length=1_000, description="ETag.")] = None,
) -> Response:
    """The footage of a stream from a time on: as it is, or encoded anew where a browser cannot play it."""
    playable = play(desk, caller, stream, parse_rfc3339(at), transcode=transcode)
    return PlayResponse(playable, range_ if if_range in (None, f'"{playable.etag}"') else None)


@routes.get("/stepper", action=Action.VIEW)
def get_stepper(
    desk: DeskOf,
    caller: CallerOf,
    stream: Annotated[StreamText, Query(description="Name of the stream.")],
    start: Annotated[MicrosText, Query(alias="from", description="First time, RFC 3339.")],
    end: Annotated[MicrosText, Query(alias="to", description="Last time, exclusive, RFC 3339.")],
    limit: Limit = 100,
    cursor: Cursor = None,
) -> FramePage:
    """The stored pictures of a stretch, to be shown one after the other."""
    return desk_moments.frames(
        desk, caller, stream, start=parse_time(start, "from"), end=parse_time(end, "to"), limit=limit, cursor=cursor
    )


def requested_range(text: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte (inclusive) that a header `Range` asks for; None for all.

    Several ranges, and what is no range, mean all, as RFC 9110 allows.

    Args:
        text: the header.
        size: bytes of the file.

    Raises:
        ValueError: the range begins behind the end.
    """
    found = _RANGE.fullmatch(text.strip()) if text is not None else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        count = int(found[2])
        if not count or not size:
            raise ValueError(text)
        return max(0, size - count), size - 1
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None
    if first >= size:
        raise ValueError(text)
    return first, min(last, size - 1)


class PlayResponse(Response):
    """Sends a video, and closes it at the end or when the client leaves.

    Args:
        playable: the video.
        wanted: the header `Range`; a video that is still being made is sent whole.
    """

    def __init__(self, playable: Playable, wanted: str | None) -> None:
        self._playable, self._first, self._count = playable, 0, None if playable.size() is None else playable.size()
        size, status = playable.size(), 200
        headers = {"ETag": f'"{playable.etag}"', "Cache-Control": "private, no-cache", "Accept-Ranges": "none"}
        if size is not None:
            headers["Accept-Ranges"] = "bytes"
            try:
                part = requested_range(wanted, size)
            except ValueError:
                status, self._count = 416, 0
                headers["Content-Range"] = f"bytes */{size}"
            else:
                if part is not None:
                    status, self._first, self._count = 206, part[0], part[1] - part[0] + 1
                    headers["Content-Range"] = f"bytes {part[0]}-{part[1]}/{size}"
            headers["Content-Length"] = str(self._count)
        super().__init__(status_code=status, media_type=playable.media_type)
        del self.headers["content-length"]  # of the empty body
        self.headers.update(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the video."""
        try:
            async with anyio.create_task_group() as group:

                async def leave() -> None:
                    """Stop when the client leaves."""
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(leave)
                await self._send(send)
                group.cancel_scope.cancel()
        finally:
            self._playable.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        at, left = self._first, self._count
        while left is None or left > 0:
            most = _BLOCK if left is None else min(_BLOCK, left)
            data = await to_thread.run_sync(self._playable.read_some, at, most, limiter=_limiter())
            if data is None:
                continue
            if not data:
                break
            at += len(data)
            left = None if left is None else left - len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_limiters = anyio.lowlevel.RunVar[CapacityLimiter]("sightline-play")


def _limiter() -> CapacityLimiter:
    """The limit of threads that read videos, of this event loop."""
    try:
        return _limiters.get()
    except LookupError:
        _limiters.set(limiter := CapacityLimiter(_THREADS))
        return limiter
