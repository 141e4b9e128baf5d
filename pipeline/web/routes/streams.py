"""Routes about streams: `GET /streams`, `GET /streams/coverage`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from index.records import parse_time
from pipeline.access.roles import Action
from pipeline.desk import streams as desk_streams
from pipeline.desk.streams import Coverage, StreamPage
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.fields import Cursor, Limit, MicrosText, StreamText

__all__ = ["routes"]

routes = GuardedRouter(tag="streams")


@routes.get("/streams", action=Action.VIEW)
def list_streams(desk: DeskOf, caller: CallerOf, limit: Limit = 100, cursor: Cursor = None) -> StreamPage:
    """The streams that the caller may see, by name."""
    return desk_streams.list_streams(desk, caller, limit=limit, cursor=cursor)


@routes.get("/streams/coverage", action=Action.VIEW)
def get_coverage(
    desk: DeskOf,
    caller: CallerOf,
    stream: Annotated[StreamText, Query(description="Name of the stream.")],
    start: Annotated[MicrosText | None, Query(alias="from", description="First time, RFC 3339.")] = None,
    end: Annotated[MicrosText | None, Query(alias="to", description="Last time, exclusive, RFC 3339.")] = None,
) -> Coverage:
    """The stretches of a stream that the store has frames of."""
    return desk_streams.coverage(desk, caller, stream, start=parse_time(start, "from"), end=parse_time(end, "to"))
