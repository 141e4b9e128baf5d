"""Routes of standing questions: `GET`, `POST /standing`, `GET`, `PATCH`, `DELETE /standing/{id}`, `POST
/standing/preview`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from pipeline.access.roles import Action
from pipeline.desk import standing
from pipeline.desk.standing import NewStanding, Preview, StandingEntry, StandingHistory, StandingList
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.standing import PreviewBody, StandingBody, StandingChange

__all__ = ["routes"]

routes = GuardedRouter(tag="standing questions")
_Id = Annotated[str, Path(min_length=1, max_length=64, description="Id of the question.")]


@routes.get("/standing", action=Action.STANDING)
def list_standing(desk: DeskOf, caller: CallerOf) -> StandingList:
    """The standing questions that the caller may see, the oldest first."""
    return standing.list_standing(desk, caller)


@routes.post("/standing", action=Action.STANDING, status_code=201, errors=(409, 504, 507))
def add_standing(desk: DeskOf, caller: CallerOf, body: StandingBody) -> NewStanding:
    """Add a standing question; workers and the desk compare every new frame with it."""
    made = standing.add(
        desk,
        caller,
        body.text,
        name=body.name,
        streams=body.streams,
        floor=body.floor,
        warm_up=body.warm_up,
        webhook=body.webhook,
    )
    detail = {"id": made.id, "text": made.text, "webhook": made.webhook}
    desk.audit(caller, "standing.add", streams=made.streams, detail=detail)
    return made


@routes.post("/standing/preview", action=Action.STANDING, errors=(409, 504))
def preview_standing(desk: DeskOf, caller: CallerOf, body: PreviewBody) -> Preview:
    """What a standing question would have done over the last day of the streams."""
    found = standing.preview(desk, caller, body.text, streams=body.streams, floor=body.floor, warm_up=body.warm_up)
    desk.audit(caller, "standing.preview", streams=body.streams or (), detail={"text": body.text})
    return found


@routes.get("/standing/{question_id}", action=Action.STANDING)
def get_standing(desk: DeskOf, caller: CallerOf, question_id: _Id) -> StandingHistory:
    """A standing question with its newest alerts."""
    return standing.history(desk, caller, question_id)


@routes.patch("/standing/{question_id}", action=Action.STANDING)
def change_standing(desk: DeskOf, caller: CallerOf, question_id: _Id, body: StandingChange) -> StandingEntry:
    """Mute or unmute a standing question."""
    changed = standing.change(desk, caller, question_id, muted=body.muted)
    desk.audit(caller, "standing.mute", streams=changed.streams, detail={"id": changed.id, "muted": changed.muted})
    return changed


@routes.delete("/standing/{question_id}", action=Action.STANDING, status_code=204, errors=(507,))
def remove_standing(desk: DeskOf, caller: CallerOf, question_id: _Id) -> None:
    """Remove a standing question and its history."""
    standing.remove(desk, caller, question_id)
    desk.audit(caller, "standing.remove", detail={"id": question_id})
