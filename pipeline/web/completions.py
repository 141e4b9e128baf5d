"""Routes in OpenAI's format, for programs that know it: one question about stored footage, answered by the desk.

    POST /v1/chat/completions   `sightline: {streams, start, end}` names the footage; all of the caller's if absent
    GET  /v1/models  /v1/models/{model}

The bodies, the format and the errors are those of the model service (`pipeline.service.chat`); the question is one of
`pipeline.desk.asking`, so it is about the caller's streams only, waits in the same queue, and is in the history. The
bearer key is an API token with the scope `ask`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import Path, Request
from starlette.responses import JSONResponse, Response

from index.records import EncoderPair, parse_rfc3339, parse_time
from model.answers import Answer
from model.profiles.profile import Profile
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk import asking
from pipeline.desk.asking import AskQuery, AskRun, TextEvent
from pipeline.desk.desk import Desk
from pipeline.questions.asker import Keyframe
from pipeline.service.answers.finished import FinishedAnswer, FrameReferences
from pipeline.service.answers.reply import reply_with
from pipeline.service.chat.errors import unknown_model
from pipeline.service.chat.format import ChatFormat
from pipeline.service.chat.models import ModelList, ServedModel
from pipeline.service.chat.replies import COMPLETION, ChatError
from pipeline.service.chat.schemas import ChatBody
from pipeline.service.schemas import Problem, Usage
from pipeline.web.problems import PROBLEM_TYPE
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter

__all__ = ["routes"]

routes = GuardedRouter(tag="openai")
_STARTED = int(time.time())


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How the routes document their errors: those of the guard are problem documents, all others OpenAI's."""
    ours = {"application/json": {}, PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "model": ChatError, "content": ours}
        for status in (400, 401, 403, 404, 405, 408, 413, 421, 422, 429, 503, *statuses)
    }


@routes.post(
    "/v1/chat/completions",
    action=Action.ASK,
    responses={**COMPLETION, **_errors(409, 504, 507)},
    response_class=Response,
)
async def complete(request: Request, desk: DeskOf, caller: CallerOf, body: ChatBody) -> Response:
    """Answer a question about footage that the desk selects, in OpenAI's format.

    Work on the question ends when the client closes the connection.
    """
    profile = await asyncio.to_thread(lambda: desk.models.asker.profile)
    if body.model != profile.name:
        return _refused(unknown_model(profile.name))
    largest = profile.language_model.max_new_tokens if isinstance(profile, Profile) else None
    limit = min((each for each in (body.limit, largest) if each is not None), default=None)
    run = await asyncio.to_thread(_begin, desk, caller, body, limit)
    form = ChatFormat(profile.name, limit=limit, usage=body.wants_usage, notices=list(body.notices))
    return await reply_with(
        request,
        _pieces(run, desk.store.encoders),
        form,
        stream=bool(body.stream),
        cancel=lambda: asking.cancel(desk, run),
        seconds_left=lambda: run.seconds_left,
    )


@routes.get("/v1/models", action=Action.ASK, responses=_errors())
def list_models(desk: DeskOf) -> ModelList:
    """The list of models in OpenAI's format; it has one entry, the profile."""
    return ModelList(data=[_model(desk)])


@routes.get("/v1/models/{model:path}", action=Action.ASK, responses=_errors(), response_model=ServedModel)
def get_model(desk: DeskOf, model: Annotated[str, Path(description="Name of a profile.")]) -> Any:
    """The profile in OpenAI's format; status 404 for any other name."""
    entry = _model(desk)
    return entry if model == entry.id else _refused(unknown_model(entry.id))


def _model(desk: Desk) -> ServedModel:
    return ServedModel(id=desk.models.asker.profile.name, created=_STARTED)


def _refused(problem: Problem) -> JSONResponse:
    return JSONResponse({"error": problem.model_dump()}, 404)


def _begin(desk: Desk, caller: Caller, body: ChatBody, limit: int | None) -> AskRun:
    """Admit the question of a request and record it. Raises as `asking.ask`."""
    scope = body.footage
    query = AskQuery(
        question=body.question,
        options=scope.options,
        streams=scope.streams,
        start=parse_time(scope.start, "start"),
        end=parse_time(scope.end, "end"),
        k=scope.k,
        tau=scope.tau,
        max_new_tokens=limit,
        sampling=body.sampling,
        seconds=min(body.deadline_seconds or asking.DEADLINE_SECONDS, asking.DEADLINE_SECONDS),
    )
    return asking.ask_recorded(desk, caller, query)


async def _pieces(run: AskRun, pair: EncoderPair) -> AsyncGenerator[str | FinishedAnswer]:
    """The parts of an answer, then the whole. Raises the error of a question that failed."""
    async for _, data in run.events():
        if isinstance(data, Exception):
            raise data
        if isinstance(data, TextEvent):
            yield data.text
    yield _finished(run, pair)


def _finished(run: AskRun, pair: EncoderPair) -> FinishedAnswer:
    asked = run.result
    assert asked is not None  # an answer without an error has a result
    options = list(run.query.options)
    answer = Answer(
        asked.answer,
        None if asked.option is None else options.index(asked.option),
        tuple(asked.probabilities.values()),
        asked.visual_tokens,
        asked.prompt_tokens,
        asked.timings_seconds,
        asked.completion_tokens,
    )
    usage = Usage(
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=asked.completion_tokens,
        visual_tokens=asked.visual_tokens,
        frames=asked.frames,
        keyframes=len(asked.keyframes),
        patch_bytes=asked.frames * pair.patches * pair.patch.dimension * 2,  # float16
    )
    waited = 0.0 if run.job is None else run.job.waited
    return FinishedAnswer(answer, usage, _references(asked.keyframes), waited, asked.notices)


def _references(keyframes: Sequence[Keyframe]) -> FrameReferences:
    names = list(dict.fromkeys(each.stream_id for each in keyframes))
    return FrameReferences(
        names,
        np.asarray([names.index(each.stream_id) for each in keyframes], np.int32),
        np.asarray([parse_rfc3339(each.captured_at) for each in keyframes], np.int64),
        np.ones(len(keyframes), np.bool_),
    )
