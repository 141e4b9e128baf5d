"""A guard in front of a small application, with users in a temporary state folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.access.authentication import DATABASE, Authentication
from pipeline.access.caller import Grant
from pipeline.access.database import make_state_folder
from pipeline.access.roles import Role
from pipeline.web.address import DeskAddress
from pipeline.web.guard import DeskGuard

PASSWORD = "correct horse battery"


@dataclass
class Guarded:
    """A guard and what the application behind it saw."""

    authentication: Authentication
    guard: DeskGuard
    seen: list[dict[str, Any]] = field(default_factory=list)

    def client(self, base: str = "http://localhost:8080", **options: Any) -> httpx.AsyncClient:
        """A client whose requests go to the guard without a network."""
        port = httpx.URL(base).port or (443 if base.startswith("https") else 80)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            """The guard behind a server that listens on the port of the URL."""
            await self.guard({**scope, "server": ("127.0.0.1", port), "state": {}}, receive, send)

        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base, **options)


def guarded(state: Path, *, address: DeskAddress | None = None, **options: Any) -> Guarded:
    """A guard in front of an application that answers every path."""
    authentication = Authentication(state)
    seen: list[dict[str, Any]] = []

    async def answer(request: Request) -> JSONResponse:
        """Say who called, and what arrived."""
        caller = getattr(request.state, "caller", None)
        body = await request.body()
        seen.append({"path": request.url.path, "caller": caller, "body": body})
        name = None if caller is None else caller.name
        return JSONResponse({"name": name, "bytes": len(body), "origin": request.state.origin})

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app = Starlette(routes=[Route("/{path:path}", answer, methods=methods)])
    guard = DeskGuard(app, authentication=authentication, address=address or DeskAddress(), **options)
    return Guarded(authentication, guard, seen)


def with_users(state: Path, **options: Any) -> Guarded:
    """The same with the users ann (admin) and eve (viewer of gate-*)."""
    add_users(state)
    return guarded(state, **options)


def add_users(state: Path) -> None:
    """Put the database with the users ann and eve into a state folder; each password is hashed once a process."""
    make_state_folder(state)
    (state / DATABASE).write_bytes(_database())


@cache
def _database() -> bytes:
    with TemporaryDirectory() as folder:
        authentication = Authentication(Path(folder))
        authentication.users.add("ann", PASSWORD, [Grant("*", Role.ADMIN)])
        authentication.users.add("eve", PASSWORD, [Grant("gate-*", Role.VIEWER)])
        authentication.close()
        return (Path(folder) / DATABASE).read_bytes()
