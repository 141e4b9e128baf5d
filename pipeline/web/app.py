"""The ASGI application of the desk: the API below `/api/v1`, and the files of the page.

    request ─▶ DeskGuard (host, caller, body) ─▶ routes (action) ─▶ functions of the desk (streams)

Every route names an action or is public, which is checked when the application is made. Every error is a problem
document. Does not know the process that it runs in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from pipeline.access.authentication import Authentication
from pipeline.access.roles import Action
from pipeline.audit.log import AuditLog
from pipeline.desk.desk import Desk
from pipeline.desk.links import API
from pipeline.http.reference_page import reference_page
from pipeline.service.limits import ServiceLimits
from pipeline.web import completions
from pipeline.web.address import DeskAddress
from pipeline.web.guard import DeskGuard
from pipeline.web.openapi import openapi_schema
from pipeline.web.problems import add_handlers
from pipeline.web.routes import (
    audit,
    evidence,
    jobs,
    login,
    media,
    moments,
    questions,
    search,
    session,
    standing,
    streams,
    users,
)
from pipeline.web.routes.guarded import GuardedRouter, check_routes

__all__ = ["ASSETS", "make_app", "make_routes"]

ASSETS = Path(__file__).parent / "assets"
"""Folder with the files of the page."""
_BODY_BYTES = 2**20  # of all requests but uploads of pictures


def routers() -> Sequence[GuardedRouter]:
    """The routes of the API, by subject."""
    return (
        session.health,
        session.routes,
        login.routes,
        streams.routes,
        search.routes,
        moments.routes,
        media.routes,
        evidence.routes,
        questions.routes,
        jobs.routes,
        standing.routes,
        users.routes,
        audit.routes,
    )


def make_routes(desk: Desk) -> FastAPI:
    """The routes over a desk, without guards.

    Raises:
        UsageError: a route names no action and is not public.
    """
    # FastAPI's own pages would load scripts from other hosts.
    app = FastAPI(
        title="Sightline",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=lambda route: route.name,  # names of the functions of generated clients
    )
    app.state.desk = desk
    add_handlers(app)
    for router in routers():
        router.attach(app, API)
    completions.routes.attach(app)
    for router in (session.health, _reference(app), _page()):
        router.attach(app, documented=False)
    app.mount("/assets", _PageFiles(directory=ASSETS, check_dir=False), name="assets")
    check_routes(app.routes)
    return app


def make_app(
    desk: Desk, *, authentication: Authentication, audit_log: AuditLog, address: DeskAddress, limits: ServiceLimits
) -> DeskGuard:
    """The complete application.

    Args:
        desk: the desk.
        authentication: its users, sessions and tokens.
        audit_log: its audit trail.
        address: where it listens.
        limits: limits of requests.
    """
    routes = make_routes(desk)
    routes.state.authentication, routes.state.audit_log, routes.state.address = authentication, audit_log, address
    return DeskGuard(
        routes,
        authentication=authentication,
        address=address,
        max_body_bytes=lambda path: limits.max_body_bytes if path == f"{API}/pictures" else _BODY_BYTES,
        max_held_bytes=max(limits.max_held_bytes, limits.max_body_bytes),
        body_seconds=limits.body_seconds,
    )


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

    @router.get("/openapi.json", action=Action.VIEW)
    @router.get(f"{API}/openapi.json", action=Action.VIEW)
    def openapi() -> JSONResponse:
        """The OpenAPI schema of the API."""
        return JSONResponse(openapi_schema(app))

    @router.get("/api", action=Action.VIEW)
    @router.get(API, action=Action.VIEW)
    def reference(_: Request) -> Response:
        """The routes and the fields of their requests, as a page without scripts."""
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(reference_page(openapi_schema(app)), media_type="text/html; charset=utf-8", headers=headers)

    return router
