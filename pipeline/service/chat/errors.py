"""Errors of the OpenAI routes: status 400 for an invalid request, and the name of the parameter in `param`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from index.errors import BudgetExceeded, EmptyWindow, SightlineError, UnknownStream, UsageError
from pipeline.service.schemas import Problem, problem_of

__all__ = ["chat_problem", "invalid_parameter", "is_chat_path", "unknown_model"]

_MAX_SHOWN = 200
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
}
_PATHS = ("/v1/chat/", "/v1/models")
_OURS = frozenset({"invalid_value", "unsupported_value"})


def is_chat_path(path: str) -> bool:
    """Whether a path is one of OpenAI's, whose errors have OpenAI's form."""
    return path.startswith(_PATHS)


def invalid_parameter(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem for the first of pydantic's errors; it never contains the value, which may be secret.

    An unknown parameter has precedence, because it is often the cause of the others.
    """
    error = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    kind = str(error["type"])
    param = "" if kind == "json_invalid" else _parameter(error["loc"])
    message = f"{param}: {error['msg']}" if param else str(error["msg"])
    if kind == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}. The service refuses what it would ignore."
    elif kind == "missing":
        message = f"Missing required parameter: {param}" if param else "The request has no JSON body"
    elif kind == "json_invalid":
        message = "The body of the request is not valid JSON"
    code = kind if kind in _OURS else _CODES.get(kind, "invalid_value")
    return Problem(type="invalid_request_error", message=message[:1_000], code=code, param=param or None)


def chat_problem(error: SightlineError, **numbers: int | float | None) -> tuple[int | None, Problem]:
    """Status and problem for an error of the OpenAI routes; the status is None if it is that of all routes."""
    problem = problem_of(error, **numbers)
    if isinstance(error, BudgetExceeded):
        return 400, problem.model_copy(
            update={"type": "invalid_request_error", "code": "context_length_exceeded", "param": "messages"}
        )
    if isinstance(error, UsageError):
        return 400, problem.model_copy(update={"type": "invalid_request_error", "code": "invalid_value"})
    if isinstance(error, UnknownStream):
        return None, problem.model_copy(update={"type": "invalid_request_error", "param": "sightline.streams"})
    if isinstance(error, EmptyWindow):
        return None, problem.model_copy(update={"type": "invalid_request_error", "param": "sightline"})
    return None, problem


def unknown_model(served: str) -> Problem:
    """The problem for a model that the service does not run; `served` is the one that it runs."""
    message = f"unknown model; the service runs {served!r}"
    return Problem(type="invalid_request_error", message=message, code="model_not_found", param="model")


def _parameter(place: Sequence[str | int]) -> str:
    """Name of a parameter as OpenAI writes it, such as `messages[0].content`; long names of the client are cut."""
    name = ""
    for part in place[1:]:  # the first is `body`
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
