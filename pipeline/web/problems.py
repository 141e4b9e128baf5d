"""Errors as problem documents (RFC 9457): `{type, title, status, detail, code, request_id}`.

An error of `index.errors` is reported with its message, which never has credentials; of any other the reply says only
that it happened, and the log has the details. Every route documents the errors that it can answer with.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from index.errors import (
    AccessError,
    AuditBroken,
    BudgetExceeded,
    DeadlineExceeded,
    DecodeFailed,
    EmptyWindow,
    EvidenceInvalid,
    FootageHeld,
    Forbidden,
    IdentityMismatch,
    LoginRequired,
    OutOfMemory,
    ServiceBusy,
    ServiceUnavailable,
    SightlineError,
    SourceDenied,
    SourceError,
    SourceNotFound,
    StoreBusy,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TooManyAttempts,
    UnknownFrame,
    UnknownItem,
    UnknownQuestion,
    UnknownStream,
    UsageError,
    mask_url,
)
from pipeline.service.admission import RequestCancelled
from pipeline.service.chat.errors import chat_problem, invalid_parameter, is_chat_path
from pipeline.service.schemas import code_of

__all__ = [
    "PROBLEM_TYPE",
    "ProblemDocument",
    "add_handlers",
    "documented",
    "problem_of",
    "problem_response",
    "status_of",
]

PROBLEM_TYPE = "application/problem+json"
"""Media type of an error."""
_log = structlog.get_logger("sightline.desk")
_STATUS: dict[type[SightlineError], int] = {
    UsageError: 422,
    BudgetExceeded: 422,
    SourceDenied: 422,
    DecodeFailed: 422,
    EvidenceInvalid: 422,
    LoginRequired: 401,
    Forbidden: 403,
    AccessError: 403,
    TooManyAttempts: 429,
    UnknownStream: 404,
    UnknownFrame: 404,
    UnknownItem: 404,
    UnknownQuestion: 404,
    EmptyWindow: 404,
    SourceNotFound: 404,
    FootageHeld: 409,
    AuditBroken: 409,
    StoreBusy: 409,
    IdentityMismatch: 409,
    SourceError: 422,
    StoreDenied: 503,
    StoreFull: 507,
    StoreUnavailable: 503,
    StoreError: 503,
    ServiceBusy: 429,
    ServiceUnavailable: 503,
    DeadlineExceeded: 504,
    OutOfMemory: 507,
}
_ALWAYS = (400, 401, 403, 404, 405, 408, 413, 421, 422, 429, 503)
"""What every route may answer: its guard, the limits of requests, and a store that cannot be read."""


class ProblemDocument(BaseModel):
    """An error, RFC 9457."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """URI of the kind of error, `urn:sightline:error:CODE`."""
    title: str
    """The status in words."""
    status: int
    """Status code of the reply."""
    detail: str
    """What happened and what to do, in one line."""
    code: str
    """Name of the error in snake case, such as `unknown_stream`."""
    request_id: str | None = None
    """Id of the request, which lines of the log have too."""


def status_of(error: SightlineError) -> int:
    """The status code of an error."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def problem_of(error: Exception, request_id: str | None = None) -> ProblemDocument:
    """The document of an error of any kind; of one that is not meant for users it says only that it happened."""
    if isinstance(error, SightlineError):
        return make_problem(status_of(error), code_of(type(error)), mask_url(str(error)), request_id)
    return make_problem(500, "internal_error", "the desk failed to process the request; see its log", request_id)


def make_problem(status: int, code: str, detail: str, request_id: str | None = None) -> ProblemDocument:
    """A document with the title and the type that belong to `status` and `code`."""
    return ProblemDocument(
        type=f"urn:sightline:error:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail[:2_000],
        code=code,
        request_id=request_id,
    )


def problem_response(
    status: int, code: str, detail: str, *, request_id: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A reply with a problem document."""
    problem = make_problem(status, code, detail, request_id)
    return JSONResponse(problem.model_dump(), status, headers, media_type=PROBLEM_TYPE)


def documented(errors: Iterable[int] = ()) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, as FastAPI documents replies: those of every route, and further status codes."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted({*_ALWAYS, *errors})
    }


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""

    async def sightline_error(request: Request, error: Exception) -> JSONResponse:
        """An error of `index.errors`."""
        assert isinstance(error, SightlineError)
        status = status_of(error)
        if status >= 500:
            _log.warning("refused", code=code_of(type(error)), status=status, problem=mask_url(str(error)))
        headers = {}
        if isinstance(error, ServiceBusy):
            headers["Retry-After"] = str(error.retry_after)
        elif status in (429, 503):
            headers["Retry-After"] = str(getattr(error, "retry_after", 5))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if is_chat_path(request.url.path):
            own, found = chat_problem(error)
            return JSONResponse({"error": found.model_dump()}, own or status, headers)
        problem = problem_of(error, _request_id(request))
        return JSONResponse(problem.model_dump(), status, headers, media_type=PROBLEM_TYPE)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        """The first invalid fields and why; never their values, which may be secret."""
        assert isinstance(error, RequestValidationError)
        if is_chat_path(request.url.path):
            return JSONResponse({"error": invalid_parameter(error.errors()).model_dump()}, 400)
        found = error.errors()[:5]
        detail = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found)
        return problem_response(422, "invalid_request", detail, request_id=_request_id(request))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        """An error of the framework, such as an unknown path."""
        assert isinstance(error, HTTPException)
        return problem_response(
            error.status_code,
            f"http_{error.status_code}",
            str(error.detail),
            request_id=_request_id(request),
            headers=dict(error.headers or {}),
        )

    async def defect(request: Request, error: Exception) -> JSONResponse:
        """Anything else, which is a defect."""
        _log.error("a request failed", details=mask_url("".join(traceback.format_exception(error))))
        problem = problem_of(error, _request_id(request))
        return JSONResponse(problem.model_dump(), 500, media_type=PROBLEM_TYPE)

    async def disconnected(_: Request, error: Exception) -> Response:
        """The client has closed the connection, so nobody receives this."""
        return Response(status_code=499)

    app.add_exception_handler(SightlineError, sightline_error)
    app.add_exception_handler(RequestCancelled, disconnected)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, defect)


def _request_id(request: Request) -> str | None:
    found = structlog.contextvars.get_contextvars().get("request_id")
    return None if found is None else str(found)
