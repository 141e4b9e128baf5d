"""The OpenAPI schema of the desk, from which clients can be generated.

FastAPI makes it from the routes. Added are the models that no route returns as JSON (errors, the data of events), and
how callers are authenticated. The name of an operation is that of its function.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pipeline.desk.asking import AnswerEvent, SelectedEvent, TextEvent
from pipeline.service.chat.replies import ChatChunk
from pipeline.web.problems import ProblemDocument

__all__ = ["openapi_schema"]

_MORE = (ProblemDocument, SelectedEvent, TextEvent, AnswerEvent, ChatChunk)
_FRAMEWORK = ("HTTPValidationError", "ValidationError")
_SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API token, from `sightline users token` or `POST /users/{name}/tokens`.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-sightline",
        "description": (
            "The cookie of `POST /session`; `sightline-PORT` without TLS. Other methods than GET then need the header "
            "`X-CSRF-Token`, with `csrf` of `GET /session`."
        ),
    },
}


def openapi_schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema of an application, made once.

    A desk without users needs no credentials, therefore none is one of the choices.
    """
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            routes=app.routes,
            description="The investigator's desk: streams, searches, questions, moments and evidence of one store.",
        )
        parts = made.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for model in _MORE:
            schema = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
            for name, nested in schema.pop("$defs", {}).items():
                schemas.setdefault(name, nested)
            schemas.setdefault(model.__name__, schema)
        for name in _FRAMEWORK:
            schemas.pop(name, None)
        parts["securitySchemes"] = _SECURITY
        made["security"] = [{}, *({name: []} for name in _SECURITY)]
        app.openapi_schema = made
    return app.openapi_schema
