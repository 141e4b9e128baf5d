"""The ASGI application of the desk: the API below `/api/v1`, and the files of the page.

    request ─▶ RequestGuard (ids, size and time of bodies, Host) ─▶ guard (who is it) ─▶ routes ─▶ functions of the desk

Every route names an action or is public, which is checked when the application is made. Every error is a problem
document. Does not know the process that it runs in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk
from pipeline.desk.links import API
from pipeline.service.guard import RequestGuard, is_loopback
from pipeline.service.limits import ServiceLimits
from pipeline.service.reference_page import reference_page
from pipeline.web.problems import ProblemDocument, add_handlers, problem_response
from pipeline.web.routes import moments, search, session, streams
from pipeline.web.routes.guarded import GuardedRouter, check_routes

__all__ = ["ASSETS", "Guard", "local_guard", "make_app", "make_routes"]

ASSETS = Path(__file__).parent / "assets"
"""Folder with the files of the page."""
Guard = Callable[[ASGIApp], ASGIApp]
"""Wraps an application so that `request.state.caller` is set for requests with credentials."""
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    b"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}


def routers() -> Sequence[GuardedRouter]:
    """The routes of the API, by subject."""
    return (session.health, session.routes, streams.routes, search.routes, moments.routes)


def make_routes(desk: Desk) -> FastAPI:
    """The routes over a desk, without guards.

    Raises:
        UsageError: a route names no action and is not public.
    """
    # FastAPI's own pages would load scripts from other hosts.
    app = FastAPI(title="Sightline", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    add_handlers(app)
    for router in routers():
        router.attach(app, API)
    for router in (session.health, _reference(app), _page()):
        router.attach(app, documented=False)
    app.mount("/assets", _PageFiles(directory=ASSETS, check_dir=False), name="assets")
    check_routes(app.routes)
    return app


def make_app(desk: Desk, *, limits: ServiceLimits, guard: Guard | None = None) -> RequestGuard:
    """The complete application.

    Args:
        desk: the desk.
        limits: limits of requests.
        guard: sets the caller of each request; `local_guard` if None.
    """
    guarded = _SecureReplies((guard or local_guard)(make_routes(desk)))
    return RequestGuard(
        guarded,
        token=None,
        max_body_bytes=limits.max_body_bytes,
        max_held_bytes=max(limits.max_held_bytes, limits.max_body_bytes),
        body_seconds=limits.body_seconds,
        refuse=_foreign_host if guard is None else lambda _: None,
        answer=problem_response,
    )


def local_guard(app: ASGIApp) -> ASGIApp:
    """The guard of a desk on loopback without users: every request is the only user's."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        """Set the caller."""
        if scope["type"] == "http":
            origin = (scope.get("client") or ("local", 0))[0]
            scope.setdefault("state", {})["caller"] = replace(Caller.local(), origin=origin)
        await app(scope, receive, send)

    return guarded


def _foreign_host(headers: Mapping[bytes, bytes]) -> Response | None:
    """The refusal of a request to another name than loopback's (DNS rebinding), or from a page of another site."""
    host = headers.get(b"host", b"").decode("latin-1")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    if not is_loopback(name):
        return problem_response(421, "misdirected_request", "this desk has no users, so it answers loopback names only")
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
        return problem_response(403, "forbidden", "the request comes from a page of another site")
    return None


class _SecureReplies:
    """Adds the headers that protect the page to every reply that does not set them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secure(message: Message) -> None:
            """Send a message; the first one with the headers."""
            if message["type"] == "http.response.start":
                held = {name.lower() for name, _ in message.get("headers", ())}
                missing = [(name, value) for name, value in _HEADERS.items() if name not in held]
                if b"cache-control" not in held:
                    missing.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message.get("headers", ()), *missing]}
            await send(message)

        await self._app(scope, receive, send_secure)


class _PageFiles(StaticFiles):
    """The files of the page. A browser asks each time whether they changed, because their names do not."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """The reply with a file."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _page() -> GuardedRouter:
    router = GuardedRouter(tag="page")

    @router.get("/", public=True)
    def page() -> Response:
        """The page."""
        return FileResponse(ASSETS / "index.html", headers={"Cache-Control": "no-cache"})

    return router


def _reference(app: FastAPI) -> GuardedRouter:
    router = GuardedRouter(tag="reference")

    def schema() -> dict[str, Any]:
        """The OpenAPI schema, made once."""
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                routes=app.routes,
                description="The investigator's desk: streams, searches, questions, moments and evidence of one store.",
            )
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            schemas["ProblemDocument"] = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI documents this way of extending it

    @router.get(f"{API}/openapi.json", action=Action.VIEW)
    def openapi() -> JSONResponse:
        """The OpenAPI schema of the API."""
        return JSONResponse(schema())

    @router.get("/api", action=Action.VIEW)
    @router.get(API, action=Action.VIEW)
    def reference(_: Request) -> Response:
        """The routes and the fields of their requests, as a page without scripts."""
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(reference_page(schema()), media_type="text/html; charset=utf-8", headers=headers)

    return router
