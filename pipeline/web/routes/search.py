"""Routes of searches: `POST /search`, `POST /pictures`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Request

from index.records import parse_rfc3339, parse_time
from pipeline.access.roles import Action
from pipeline.desk import search as desk_search
from pipeline.desk import uploads
from pipeline.desk.search import FoundPage, Likeness, SearchQuery
from pipeline.times import parse_day_time, zone_of
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.questions import Picture
from pipeline.web.schemas.search import SearchBody

__all__ = ["routes"]

routes = GuardedRouter(tag="search")


@routes.post("/search", action=Action.VIEW, errors=(409, 504))
def search(desk: DeskOf, caller: CallerOf, body: SearchBody) -> FoundPage:
    """The moments that match a text, a picture, a frame or a part of one, the best first."""
    like = body.like
    query = SearchQuery(
        text=body.text,
        like=None if like is None else Likeness(like.stream, parse_rfc3339(like.at), like.box),
        picture=None if body.picture is None else uploads.picture_vector(desk, caller, body.picture),
        weight=body.weight,
        streams=body.streams,
        start=parse_time(body.start, "start"),
        end=parse_time(body.end, "end"),
        time_of_day=None
        if body.time_of_day is None
        else parse_day_time(body.time_of_day, zone_of(body.timezone), "time_of_day"),
        min_percentile=body.min_percentile,
    )
    found = desk_search.search(desk, caller, query, limit=body.limit, cursor=body.cursor)
    if body.cursor is None:
        frame = None if like is None else f"{like.stream} {like.at}"
        asked = {"search": body.text, "like": frame, "picture": body.picture}
        detail = {name: value for name, value in asked.items() if value is not None}
        desk.audit(caller, "search", streams=found.searched.streams, detail=detail)
    return found


_KINDS = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _KINDS},
    }
}


async def _body(request: Request) -> bytes:
    """The bytes of an upload. Raises HTTPException if they are no picture's."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _KINDS:
        raise HTTPException(415, f"send a picture with one of the content types {', '.join(_KINDS)}")
    return await request.body()


@routes.post("/pictures", action=Action.VIEW, status_code=201, errors=(409, 415, 504), openapi_extra=_UPLOAD)
def upload_picture(desk: DeskOf, caller: CallerOf, data: Annotated[bytes, Depends(_body)]) -> Picture:
    """Send a picture to search by; it is decoded in a confined process and kept for 30 minutes, for this caller."""
    found = uploads.upload(desk, caller, data)
    desk.audit(caller, "upload", detail={"picture": found.id, "bytes": len(data)})
    return Picture(id=found.id, width=found.width, height=found.height)
