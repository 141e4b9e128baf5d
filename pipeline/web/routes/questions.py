"""Routes of questions: `POST /ask`, `GET /questions`, `GET` and `DELETE /questions/{id}`, `GET /heatmap`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Path, Query
from starlette.responses import Response

from index.records import parse_rfc3339, parse_time
from pipeline.access.roles import Action
from pipeline.desk import asking
from pipeline.desk.asking import (
    AnswerEvent,
    AskQuery,
    AskRun,
    QuestionEntry,
    QuestionPage,
    SelectedEvent,
    TextEvent,
)
from pipeline.desk.heatmap import HeatMap, heat_map
from pipeline.web.events import EventStream, documented_events, event
from pipeline.web.problems import ProblemDocument, problem_of
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.fields import Cursor, Limit, MicrosText, StreamText
from pipeline.web.schemas.questions import AskBody

__all__ = ["routes"]

routes = GuardedRouter(tag="questions")
_Id = Annotated[str, Path(min_length=1, max_length=64, description="Id of the question.")]


_EVENTS = documented_events(selected=SelectedEvent, text=TextEvent, answer=AnswerEvent, error=ProblemDocument)


@routes.post("/ask", action=Action.ASK, responses=_EVENTS, response_class=Response, errors=(409, 504, 507))
def ask(desk: DeskOf, caller: CallerOf, body: AskBody) -> Response:
    """Answer a question. Events: `selected`, `text` for each part, and `answer`, or `error` with a problem document.

    The question is answered even if the connection is closed; `GET /questions/{id}` has the answer then.
    """
    query = AskQuery(
        question=body.question,
        options=body.options or (),
        streams=body.streams,
        start=parse_time(body.start, "start"),
        end=parse_time(body.end, "end"),
        k=body.k,
        max_frames=body.max_frames,
    )
    return EventStream(_events(asking.ask_recorded(desk, caller, query)))


async def _events(run: AskRun) -> AsyncIterator[bytes]:
    async for name, data in run.events():
        yield event(name, problem_of(data) if isinstance(data, Exception) else data)


@routes.get("/questions", action=Action.ASK)
def list_questions(desk: DeskOf, caller: CallerOf, limit: Limit = 50, cursor: Cursor = None) -> QuestionPage:
    """The caller's questions, the newest first."""
    return asking.list_questions(desk, caller, limit=limit, cursor=cursor)


@routes.get("/questions/{question_id}", action=Action.ASK)
def get_question(desk: DeskOf, caller: CallerOf, question_id: _Id) -> QuestionEntry:
    """One of the caller's questions, with its keyframes and its answer."""
    return asking.read_question(desk, caller, question_id)


@routes.delete("/questions/{question_id}", action=Action.ASK, status_code=204)
def delete_question(desk: DeskOf, caller: CallerOf, question_id: _Id) -> None:
    """Remove one of the caller's questions; one that is being answered is cancelled."""
    asking.forget_question(desk, caller, question_id)
    desk.audit(caller, "question.remove", detail={"id": question_id})


@routes.get("/heatmap", action=Action.ASK, errors=(409,))
def get_heat_map(
    desk: DeskOf,
    caller: CallerOf,
    stream: Annotated[StreamText, Query(description="Name of the stream.")],
    at: Annotated[MicrosText, Query(description="Time of the frame, RFC 3339.")],
    question: Annotated[str, Query(min_length=1, max_length=64, description="Id of one of the caller's questions.")],
) -> HeatMap:
    """What differential feature merging kept of a frame for a question."""
    found = heat_map(desk, caller, stream, parse_rfc3339(at), question)
    desk.audit(caller, "heatmap", streams=[stream], detail={"at": at, "question": question})
    return found
