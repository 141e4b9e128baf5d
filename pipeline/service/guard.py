"""ASGI middleware in front of all routes: request ids, the token, the size and the transfer time of bodies.

Every reply has the header `x-request-id`: the client's own, or a new one; log lines about the request have it too. The
health checks and the page of documentation need no token and wait for nothing.

A service without a token listens on loopback addresses only. It then requires a loopback `Host` header, so that a web
page in a browser on the same machine cannot reach it under another name (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac

import structlog
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import ServiceDenied
from pipeline.http.bodies import BodyReader, body_or_refusal, busy, replay, request_id
from pipeline.http.hosts import host_name, is_loopback
from pipeline.service.schemas import Problem, problem_of

__all__ = ["PUBLIC_PATHS", "RequestGuard"]

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/docs"})
"""Paths that need no token."""


class RequestGuard:
    """ASGI middleware that authenticates requests and reads their bodies.

    Args:
        app: the application.
        token: bearer token that every route but the health checks requires; without it, a loopback `Host` header.
        max_body_bytes: largest body.
        max_held_bytes: largest size of all bodies together that have not arrived completely.
        body_seconds: longest time for a body to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: SecretStr | None,
        max_body_bytes: int,
        max_held_bytes: int = 64 * 2**20,
        body_seconds: float = 30.0,
    ) -> None:
        self.app = app
        self.bodies = BodyReader(max_bytes=max_body_bytes, max_held_bytes=max_held_bytes, seconds=body_seconds)
        self._digest = None if token is None else _digest(token.get_secret_value().encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        chosen = request_id(headers.get(b"x-request-id", b""))

        async def send_with_id(message: Message) -> None:
            """Send a message; the first one with the request's id."""
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", chosen)]}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=chosen.decode()):
            await self._guarded(scope, headers, receive, send_with_id)

    async def overloaded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application of a connection above the limit: health checks are answered, all else gets status 503."""
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self(scope, receive, send)
            return
        await busy(_answer, "there are too many connections")(scope, receive, send)

    async def _guarded(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        if scope["path"] in PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(headers)) is not None:
            await refusal(scope, receive, send)
            return
        body = await body_or_refusal(self.bodies, scope["path"], headers, receive, _answer)
        if isinstance(body, Response):
            await body(scope, receive, send)
        elif body is not None:
            await self.app(scope, replay(body, receive), send)

    def _refusal(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        if self._digest is None:
            if is_loopback(host_name(headers.get(b"host", b""))):
                return None
            return _answer(
                421, "misdirected_request", "this service has no token, so it answers requests to loopback names only"
            )
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length whatever was sent, so the time of the comparison reveals nothing about the token.
        right = hmac.compare_digest(_digest(given.strip()), self._digest)
        if scheme.lower() == b"bearer" and right:
            return None
        error = ServiceDenied("a token is required: send `Authorization: Bearer …`")
        response = JSONResponse({"error": problem_of(error).model_dump()}, 401)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _answer(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": Problem(type=code, message=message, code=code).model_dump()}, status)
