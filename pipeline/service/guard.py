"""ASGI middleware in front of all routes: request ids, the token, the size and the transfer time of bodies.

Every reply has the header `x-request-id`: the client's own, or a new one; log lines about the request have it too. The
health checks and the page of documentation need no token and wait for nothing.

A service without a token listens on loopback addresses only. It then requires a loopback `Host` header, so that a web
page in a browser on the same machine cannot reach it under another name (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import uuid

import structlog
from pydantic import SecretStr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import ServiceDenied
from pipeline.service.schemas import Problem, problem_of

__all__ = ["RequestGuard", "is_loopback"]

_PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/docs"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_MAX_DISCARDED_BYTES = 8 * 2**20


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address or name, which only this machine can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Disconnected(Exception):
    """The client closed the connection before its body was complete."""


class _TooManyBytes(Exception):
    """The bodies that arrive at this time are too large together."""


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
        self.app, self.max_body_bytes, self.body_seconds = app, max_body_bytes, body_seconds
        self.max_held_bytes = max_held_bytes
        self._held = 0
        self._digest = None if token is None else _digest(token.get_secret_value().encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = _request_id(headers.get(b"x-request-id", b""))

        async def send_with_id(message: Message) -> None:
            """Send a message; the first one with the request's id."""
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            await self._guarded(scope, headers, receive, send_with_id)

    async def overloaded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application of a connection above the limit: health checks are answered, all else gets status 503."""
        if scope["type"] != "http" or scope["path"] in _PUBLIC_PATHS:
            await self(scope, receive, send)
            return
        await _busy("there are too many connections")(scope, receive, send)

    async def _guarded(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        if scope["path"] in _PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(headers)) is not None:
            await refusal(scope, receive, send)
            return
        declared = headers.get(b"content-length", b"0")
        too_large = not declared.isdigit() or len(declared) > 18 or int(declared) > self.max_body_bytes
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await self._body(receive, hold=not too_large)
        except _Disconnected:
            return
        except _TooManyBytes:
            await _busy("too many requests arrive at once")(scope, receive, send)
            return
        except TimeoutError:
            await _answer(408, "request_timeout", f"the body did not arrive within {self.body_seconds:g} s")(
                scope, receive, send
            )
            return
        if body is None:
            await self._too_large()(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    def _refusal(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        if self._digest is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host if host.count(":") > 1 and not host.startswith("[") else _without_port(host)
            if is_loopback(name):
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

    async def _body(self, receive: Receive, *, hold: bool) -> bytes | None:
        """The body, or None if it is larger than allowed. Never holds more than `max_body_bytes` and one message.

        Raises:
            _Disconnected: the client closed the connection.
            _TooManyBytes: with this body, all bodies that are arriving exceed `max_held_bytes`.

        The rest of a body that is too large is read and discarded, up to a limit: a client whose connection is closed
        while it still sends would not receive the error.
        """
        held, size = bytearray(), 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Disconnected
                part = message.get("body", b"")
                size += len(part)
                if size > self.max_body_bytes:
                    hold = False
                    self._held -= len(held)
                    held.clear()
                if hold:
                    if self._held + len(part) > self.max_held_bytes:
                        raise _TooManyBytes
                    held += part
                    self._held += len(part)
                if size > self.max_body_bytes + _MAX_DISCARDED_BYTES:
                    return None
                if not message.get("more_body", False):
                    return bytes(held) if hold else None
        finally:
            self._held -= len(held)

    def _too_large(self) -> JSONResponse:
        response = _answer(413, "body_too_large", f"the body is larger than {self.max_body_bytes} bytes")
        response.headers["Connection"] = "close"  # the rest of the body is not read
        return response


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _without_port(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]


def _request_id(given: bytes) -> bytes:
    """The client's id of a request if it is short and of plain letters; else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()


def _busy(reason: str) -> JSONResponse:
    response = _answer(503, "service_unavailable", f"{reason}; try again in a second")
    response.headers["Retry-After"] = "1"
    response.headers["Connection"] = "close"
    return response


def _answer(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": Problem(type=code, message=message, code=code).model_dump()}, status)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns `body` once, and after that the messages of the server (a disconnection)."""
    sent = False

    async def replay() -> Message:
        """Return the body once, then messages of the server."""
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
