"""Routes of footage: `GET /play` in ranges of bytes, and `GET /stepper`, the pictures in place of a video."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from index.records import parse_rfc3339, parse_time
from pipeline.access.roles import Action
from pipeline.desk import moments as desk_moments
from pipeline.desk.moments import FramePage
from pipeline.desk.playing import play
from pipeline.web.ranges import BytesResponse, IfRangeHeader, RangeHeader
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.fields import Cursor, Limit, MicrosText, StreamText

__all__ = ["routes"]

routes = GuardedRouter(tag="media")
_VIDEO: dict[str, Any] = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "video/webm")
}
_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {"content": _VIDEO, "description": "The video; without a length while it is being made."},
    206: {"content": _VIDEO, "description": "The requested range of bytes."},
}


@routes.get("/play", action=Action.VIEW, response_class=Response, responses=_REPLIES, errors=(416,))
def get_play(
    desk: DeskOf,
    caller: CallerOf,
    stream: Annotated[StreamText, Query(description="Name of the stream.")],
    at: Annotated[MicrosText, Query(description="Time that the video begins with or contains, RFC 3339.")],
    transcode: Annotated[bool, Query(description="Encode it anew, whatever the footage is.")] = False,
    range_: RangeHeader = None,
    if_range: IfRangeHeader = None,
) -> Response:
    """The footage of a stream from a time on: as it is, or encoded anew where a browser cannot play it."""
    playable = play(desk, caller, stream, parse_rfc3339(at), transcode=transcode)
    return BytesResponse(playable, range_, if_range)


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
