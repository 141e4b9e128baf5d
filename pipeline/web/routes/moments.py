"""Routes of pictures and moments: `GET /thumbnail`, `/frame`, `/frames`, `/moment`.

A picture never changes, so that a browser may keep it; its ETag is a digest of its bytes.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Header, Query
from starlette.responses import Response

from index.records import parse_rfc3339, parse_time, rfc3339
from pipeline.access.roles import Action
from pipeline.desk import moments as desk_moments
from pipeline.desk.moments import FramePage, MomentView
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.fields import Cursor, Limit, MicrosText, StreamText

__all__ = ["cached_reply", "routes"]

routes = GuardedRouter(tag="moments")
_KEEP_SECONDS = 86_400
_Stream = Annotated[StreamText, Query(description="Name of the stream.")]
_At = Annotated[MicrosText, Query(description="Time, RFC 3339.")]
_IfNoneMatch = Annotated[str | None, Header(max_length=4_096, description="ETags that the client holds.")]
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "The picture."},
    304: {"description": "The client holds this picture."},
}


def cached_reply(data: bytes, media_type: str, if_none_match: str | None) -> Response:
    """A reply that a browser may keep for a day, without a body if the browser holds it already."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={_KEEP_SECONDS}, immutable"}
    held = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if tag in held or "*" in held:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


@routes.get("/thumbnail", action=Action.VIEW, response_class=Response, responses=_JPEG)
def get_thumbnail(
    desk: DeskOf,
    caller: CallerOf,
    stream: _Stream,
    at: _At,
    width: Annotated[int, Query(ge=16, le=1_280, description="Largest width in pixels, rounded up.")] = 320,
    if_none_match: _IfNoneMatch = None,
) -> Response:
    """A small picture of a frame, JPEG."""
    when = parse_rfc3339(at)
    data = desk_moments.thumbnail(desk, caller, stream, when, width)
    day = rfc3339(when)[:10]
    desk.audit_once(caller, "thumbnails", stream=stream, what=day, detail={"day": day})
    return cached_reply(data, "image/jpeg", if_none_match)


@routes.get("/frame", action=Action.VIEW, response_class=Response, responses=_JPEG)
def get_frame(desk: DeskOf, caller: CallerOf, stream: _Stream, at: _At, if_none_match: _IfNoneMatch = None) -> Response:
    """The whole stored picture of a frame, JPEG."""
    data = desk_moments.picture(desk, caller, stream, parse_rfc3339(at))
    desk.audit(caller, "frame", streams=[stream], detail={"at": at})
    return cached_reply(data, "image/jpeg", if_none_match)


@routes.get("/frames", action=Action.VIEW)
def list_frames(
    desk: DeskOf,
    caller: CallerOf,
    stream: _Stream,
    start: Annotated[MicrosText | None, Query(alias="from", description="First time, RFC 3339.")] = None,
    end: Annotated[MicrosText | None, Query(alias="to", description="Last time, exclusive, RFC 3339.")] = None,
    text: Annotated[str | None, Query(max_length=2_000, description="Text to compare each frame with.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> FramePage:
    """The frames of a stream in the order of time."""
    found = desk_moments.frames(
        desk,
        caller,
        stream,
        start=parse_time(start, "from"),
        end=parse_time(end, "to"),
        text=text,
        limit=limit,
        cursor=cursor,
    )
    if text is not None and cursor is None:  # without a text it lists times, and each picture is recorded
        desk.audit(caller, "search", streams=[stream], detail={"search": text})
    return found


@routes.get("/moment", action=Action.VIEW)
def get_moment(
    desk: DeskOf,
    caller: CallerOf,
    stream: _Stream,
    at: _At,
    span: Annotated[float, Query(ge=1, le=3_600, description="Length of the strip of frames, in seconds.")] = 30.0,
) -> MomentView:
    """The frames around a time, the other streams at that time, and how it can be played."""
    found = desk_moments.moment(desk, caller, stream, parse_rfc3339(at), span_seconds=span)
    desk.audit(caller, "moment", streams=[stream], detail={"at": at})
    return found
