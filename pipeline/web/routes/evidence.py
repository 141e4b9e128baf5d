"""Routes of evidence: `POST /exports`, `GET /exports/{id}`, and `GET`, `POST` and `DELETE /holds`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi import Path
from pydantic import Field, StringConstraints
from starlette.responses import Response

from index.commits.held import Hold
from index.errors import UsageError
from index.records import parse_time, rfc3339
from ingest.segments.clipping import Redaction
from pipeline.access.roles import Action
from pipeline.evidence import exports, holding
from pipeline.evidence.exports import ExportQuery
from pipeline.web.ranges import BytesResponse, IfRangeHeader, RangeHeader, attachment, open_file
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.fields import Body, MicrosText, Reply, StreamText, TimeText, at_query
from pipeline.web.schemas.questions import JobBegun

__all__ = ["routes"]

routes = GuardedRouter(tag="evidence")
_Reason = Annotated[str, StringConstraints(min_length=1, max_length=500)]
_Share = Annotated[float, Field(ge=0, le=1)]
_FILE: dict[int | str, dict[str, Any]] = {
    status: {
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/zip", "image/jpeg", "video/mp4", "video/x-matroska", "video/webm")
        },
        "description": description,
    }
    for status, description in ((200, "The file."), (206, "A range of bytes of the file."))
}


class BlurBox(Body):
    """A box that is removed for some time."""

    start: MicrosText
    """From this time on."""
    end: MicrosText
    """Until before this time."""
    box: tuple[_Share, _Share, _Share, _Share]
    """Left, top, right and bottom, as shares of the picture."""


class ExportBody(Body):
    """What is exported."""

    kind: Literal["clip", "sheet", "evidence"]
    """clip: footage; sheet: a contact sheet; evidence: a signed bundle."""
    stream: StreamText | None = None
    """The stream; that of most keyframes of the question by default."""
    streams: Annotated[list[StreamText], Field(max_length=1)] | None = None
    """The same as a list of one."""
    start: MicrosText | None = None
    """Start; a little before the first keyframe of the question by default."""
    end: MicrosText | None = None
    """End, exclusive; a little behind the last keyframe by default."""
    question_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """A question of the caller."""
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    """Why; it is part of a bundle."""
    blur: Annotated[list[BlurBox], Field(max_length=500)] | None = None
    """Boxes that are removed from pictures and clip."""


class HoldBody(Body):
    """A stretch that is to be held."""

    stream: StreamText
    """The stream."""
    start: MicrosText
    """Start."""
    end: MicrosText
    """End, exclusive; it may be in the future."""
    reason: _Reason
    """Why."""


class ReleaseBody(Body):
    """Why a hold ends."""

    reason: _Reason
    """Why."""


class HoldView(Reply):
    """A hold."""

    id: str
    """Its id."""
    stream_id: str
    """The stream."""
    start: TimeText
    """Start, RFC 3339 UTC."""
    end: TimeText
    """End, exclusive, RFC 3339 UTC."""
    reason: str
    """Why the footage is held."""
    by: str
    """Name of the user who placed it."""
    placed_at: TimeText
    """When it was placed, RFC 3339 UTC."""
    notices: list[str] = Field(default_factory=list)
    """What a reader must know."""

    @classmethod
    def of(cls, hold: Hold, notices: list[str] | None = None) -> Self:
        """The view of a hold."""
        return cls(
            id=hold.id,
            stream_id=hold.stream_id,
            start=rfc3339(hold.start),
            end=rfc3339(hold.end),
            reason=hold.reason,
            by=hold.placed_by,
            placed_at=rfc3339(hold.placed_at),
            notices=notices or [],
        )


class HoldList(Reply):
    """Holds."""

    items: list[HoldView]
    """The holds, by stream and start."""
    next: str | None = None
    """Always null: there is one page."""


@routes.post("/exports", action=Action.EXPORT, status_code=202)
def begin_export(desk: DeskOf, caller: CallerOf, body: ExportBody) -> JobBegun:
    """Begin to make a file; `GET /jobs/{id}` says when it is done, and where it is."""
    names = {*(body.streams or ()), *([body.stream] if body.stream else [])}
    if len(names) > 1:
        raise UsageError("an export is of one stream; name it in `stream`")
    boxes = [Redaction(at_query(each.start), at_query(each.end), each.box) for each in body.blur or ()]
    query = ExportQuery(
        kind=body.kind,
        stream_id=next(iter(names), None),
        start=parse_time(body.start, "start"),
        end=parse_time(body.end, "end"),
        question_id=body.question_id,
        reason=body.reason,
        redactions=boxes,
    )
    return JobBegun(job=exports.begin_export(desk, caller, query).id)


@routes.get("/exports/{export_id}", action=Action.EXPORT, responses=_FILE, response_class=Response, errors=(416,))
def download_export(
    desk: DeskOf,
    caller: CallerOf,
    export_id: Annotated[str, Path(min_length=1, max_length=64, description="Id of the export, from its job.")],
    range_: RangeHeader = None,
    if_range: IfRangeHeader = None,
) -> Response:
    """The file of an export of the caller."""
    found = exports.find_export(desk, caller, export_id)
    desk.audit(caller, Action.EXPORT, streams=[found.stream_id], detail={"download": found.name})
    headers = {"Cache-Control": "private, no-store", "Content-Disposition": attachment(found.name)}
    return BytesResponse(open_file(found.path, found.media_type), range_, if_range, headers=headers)


@routes.get("/holds", action=Action.HOLD)
def list_holds(desk: DeskOf, caller: CallerOf) -> HoldList:
    """What is held of the streams that the caller may hold."""
    return HoldList(items=[HoldView.of(each) for each in holding.list_holds(desk, caller)])


@routes.post("/holds", action=Action.HOLD, status_code=201, errors=(409,))
def place_hold(desk: DeskOf, caller: CallerOf, body: HoldBody) -> HoldView:
    """Keep a stretch of a stream from deletion."""
    hold, notices = holding.place_hold(
        desk, caller, body.stream, at_query(body.start), at_query(body.end), reason=body.reason
    )
    return HoldView.of(hold, notices)


@routes.delete("/holds/{hold_id}", action=Action.RELEASE)
def release_hold(
    desk: DeskOf,
    caller: CallerOf,
    hold_id: Annotated[str, Path(min_length=1, max_length=64, description="Id of the hold.")],
    body: ReleaseBody,
) -> HoldView:
    """End a hold; the reason is recorded."""
    return HoldView.of(holding.release_hold(desk, caller, hold_id, reason=body.reason))
