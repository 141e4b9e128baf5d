"""Routes of searches: `POST /search`."""

from __future__ import annotations

from index.records import parse_rfc3339, parse_time
from pipeline.access.roles import Action
from pipeline.desk import search as desk_search
from pipeline.desk.search import FoundPage, Likeness, SearchQuery
from pipeline.times import parse_day_time, zone_of
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
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
        detail = {"search": body.text, "like": None if like is None else f"{like.stream} {like.at}"}
        desk.audit(caller, "search", streams=found.searched.streams, detail=detail)
    return found
