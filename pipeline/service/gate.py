"""In front of every route: the token, the size of the body, and how long it may take to arrive. Plain ASGI.

Without a token the service listens on loopback only; then the gate asks for a loopback `Host` instead, so that a web
page in a browser on the same machine cannot reach it under a name of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress

from pydantic import SecretStr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.errors import ServiceDenied
from pipeline.service.schemas import Problem, problem_of

__all__ = ["Gate", "is_loopback"]

_OPEN = frozenset({"/healthz", "/readyz"})
_DISCARDED_BYTES = 8 * 2**20


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Gone(Exception):
    """The client left before its body was whole."""


class Gate:
    """ASGI middleware; `max_body_bytes` and `body_seconds` bound every body, `token` guards every route but health."""

    def __init__(
        self, app: ASGIApp, *, token: SecretStr | None, max_body_bytes: int, body_seconds: float = 30.0
    ) -> None:
        self.app, self.max_body_bytes, self.body_seconds = app, max_body_bytes, body_seconds
        self._digest = None if token is None else _digest(token.get_secret_value().encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in _OPEN and (refusal := self._refusal(headers)) is not None:
            await refusal(scope, receive, send)
            return
        declared = headers.get(b"content-length", b"0")
        too_large = not declared.isdigit() or len(declared) > 18 or int(declared) > self.max_body_bytes
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await self._body(receive, hold=not too_large)
        except _Gone:
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
            return _answer(421, "misdirected_request", "this service has no token and answers to loopback names only")
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests are of one length whatever was sent, so that comparing them tells nothing about the token.
        right = hmac.compare_digest(_digest(given.strip()), self._digest)
        if scheme.lower() == b"bearer" and right:
            return None
        error = ServiceDenied("the service wants its token: send `Authorization: Bearer …`")
        response = JSONResponse({"error": problem_of(error).model_dump()}, 401)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _body(self, receive: Receive, *, hold: bool) -> bytes | None:
        """The whole body, or None when there is more of it than may be; no more than that is ever held.

        Of a body that is too large some more is read and thrown away: a client that is cut off while it writes would
        not hear why.
        """
        held, size = bytearray(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            size += len(part)
            if size > self.max_body_bytes:
                hold = False
                held.clear()
            if hold:
                held += part
            if size > self.max_body_bytes + _DISCARDED_BYTES:
                return None
            if not message.get("more_body", False):
                return bytes(held) if hold else None

    def _too_large(self) -> JSONResponse:
        response = _answer(413, "body_too_large", f"the body is larger than {self.max_body_bytes} bytes")
        response.headers["Connection"] = "close"  # there may be more of it
        return response


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _without_port(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]


def _answer(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": Problem(type=code, message=message, code=code).model_dump()}, status)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` once, then what the server says (a disconnection)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
