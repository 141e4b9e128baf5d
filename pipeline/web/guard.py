"""ASGI middleware in front of the desk: the host's name, the caller, forged requests, bodies, headers of replies.

In this order, a request

- must name a host that the desk answers to, else 421 (`DeskAddress.answers_to`);
- gets its caller, `request.state.caller`: of its bearer token, else of its session's cookie; on a desk without users
  the local user. Only `PUBLIC_PATHS` are served without a caller, all else answers 401, whether it exists or not;
- must not be forged by the page of another site, else 403: its `Origin` is the desk's own, its `Sec-Fetch-Site` is not
  another site's, and an unsafe method with a cookie has the session's token in `X-CSRF-Token`;
- has a body that arrives in time and is not too large.

Every reply has headers that keep browsers from executing, framing or caching what they should not; a header that a
route sets is kept. `request.state` also has `origin`, the client's address; `users_required`, whether callers log in;
and for a caller with a cookie `session`, the id in it, and `csrf`, the token of that session; else both are None.

It is the outermost application, as `pipeline.service.guard.RequestGuard` is for the model service. Both read bodies by
`pipeline.http.bodies`; who may call, and the form of a refusal, have nothing in common.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import structlog
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.access.authentication import Authentication
from pipeline.access.caller import Caller
from pipeline.access.sessions import csrf_token
from pipeline.http.bodies import BodyReader, body_or_refusal, busy, replay, request_id
from pipeline.http.hosts import host_name
from pipeline.web.address import DeskAddress
from pipeline.web.problems import problem_response

__all__ = ["PUBLIC_PATHS", "DeskGuard", "is_public_path", "session_cookie"]

PUBLIC_PATHS = frozenset(
    {
        "/",
        "/favicon.ico",
        "/healthz",
        "/api/v1/healthz",
        "/api/v1/session",
        "/api/v1/session/oidc",
        "/api/v1/session/oidc/callback",
    }
)
"""Paths that need no caller, besides the files of the page below `/assets/`."""

_ASSETS = "/assets/"
_LOGIN = "/api/v1/session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PUBLIC_BODY_BYTES = 16 * 1024
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
}


def is_public_path(path: str) -> bool:
    """Whether a path is served without a caller."""
    return path in PUBLIC_PATHS or path.startswith(_ASSETS)


def session_cookie(*, secure: bool, port: int) -> str:
    """Name of the cookie with the session's id. Browsers send a `__Host-` cookie to this very host only, over https.

    Without https the name has the port, because desks on one host would otherwise share the cookie.
    """
    return "__Host-sightline" if secure else f"sightline-{port}"


@dataclass(frozen=True, slots=True)
class _Identity:
    caller: Caller | None
    session: str | None = None  # id in the cookie; None if the caller is not one of a session
    required: bool = True


class DeskGuard:
    """ASGI middleware; see the module's docstring.

    Args:
        app: the application.
        authentication: the users, sessions and tokens.
        address: where the desk listens.
        max_body_bytes: largest body; a function of the request's path if it depends on that.
        max_held_bytes: largest size of all bodies together that have not arrived completely.
        body_seconds: longest time for a body to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authentication: Authentication,
        address: DeskAddress,
        max_body_bytes: int | Callable[[str], int] = 2**20,
        max_held_bytes: int = 128 * 2**20,
        body_seconds: float = 30.0,
    ) -> None:
        self.app, self.authentication, self.address = app, authentication, address
        self._bodies = BodyReader(max_bytes=max_body_bytes, max_held_bytes=max_held_bytes, seconds=body_seconds)
        self._public_bodies = BodyReader(
            max_bytes=_PUBLIC_BODY_BYTES, max_held_bytes=256 * _PUBLIC_BODY_BYTES, seconds=body_seconds
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        chosen = request_id(headers.get(b"x-request-id", b""))
        protected = self._protected(scope["path"], send, chosen)
        with structlog.contextvars.bound_contextvars(request_id=chosen.decode()):
            await self._guarded(scope, headers, receive, protected)

    async def overloaded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application of a connection above the limit: health checks are answered, all else gets status 503."""
        if scope["type"] != "http" or scope["path"] == "/healthz":
            await self(scope, receive, send)
            return
        await busy(_refuse, "there are too many connections")(scope, receive, send)

    async def _guarded(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        refusal: Response | None = None
        if not self.address.answers_to(host_name(headers.get(b"host", b""))):
            refusal = _refuse(
                421, "misdirected_request", "the desk does not answer to this host name; see --allowed-host"
            )
            await refusal(scope, receive, send)
            return
        path, public = scope["path"], is_public_path(scope["path"])
        origin = self._origin(scope, headers)
        identity = _Identity(None)
        if not public or path.startswith(_LOGIN):
            identity = await asyncio.to_thread(self._identify, scope, headers, origin)
        if identity.caller is None and not public:
            refusal = _refuse(401, "login_required", "log in, or send `Authorization: Bearer …` with a valid API token")
            refusal.headers["WWW-Authenticate"] = "Bearer"
        elif why := self._forged(scope, headers, identity):
            refusal = _refuse(403, "forged_request", why)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        bodies = self._public_bodies if public else self._bodies
        body = await body_or_refusal(bodies, path, headers, receive, _refuse)
        if body is None:
            return
        if isinstance(body, Response):
            await body(scope, receive, send)
            return
        session = identity.session
        state = {**scope.get("state", {}), "origin": origin, "session": session, "users_required": identity.required}
        state["csrf"] = None if session is None else csrf_token(session)
        if identity.caller is not None:
            state["caller"] = identity.caller
        await self.app({**scope, "state": state}, replay(body, receive), send)

    def _identify(self, scope: Scope, headers: Mapping[bytes, bytes], origin: str) -> _Identity:
        """The caller of a request. A token that is invalid is not replaced by a cookie."""
        authentication = self.authentication
        if not authentication.required:
            local = replace(Caller.local(), origin=origin) if self.address.private else None
            return _Identity(local, required=local is None)
        if (given := headers.get(b"authorization")) is not None:
            scheme, _, token = given.decode("latin-1").partition(" ")
            return _Identity(authentication.of_token(token.strip(), origin) if scheme.lower() == "bearer" else None)
        name = session_cookie(secure=self.address.secure, port=_port(scope))
        session = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(name)
        caller = authentication.of_session(session, origin) if session else None
        return _Identity(caller, session if caller is not None else None)

    def _forged(self, scope: Scope, headers: Mapping[bytes, bytes], identity: _Identity) -> str | None:
        """Why a request seems to be forged by the page of another site; None if it does not."""
        path, safe = scope["path"], scope["method"] in _SAFE
        navigation = safe and headers.get(b"sec-fetch-mode") == b"navigate"
        if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none") and not navigation:
            return "a page of another site must not use the desk"
        if (given := headers.get(b"origin")) is not None and not safe:
            own = f"{'https' if self.address.secure else 'http'}://{headers.get(b'host', b'').decode('latin-1')}"
            expected = _normal(own)
            if expected is None or _normal(given.decode("latin-1")) != expected:
                return f"the request comes from a page of another site; the desk's own is {own}"
        if identity.session is not None and not safe and not (path == _LOGIN and scope["method"] == "POST"):
            token = headers.get(b"x-csrf-token", b"")
            if not hmac.compare_digest(token, csrf_token(identity.session).encode()):
                return "the header X-CSRF-Token must have the session's token, which GET /api/v1/session returns"
        return None

    def _origin(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """The client's address. A proxy adds the address that it sees at the end of `X-Forwarded-For`."""
        if self.address.behind_proxy and (forwarded := headers.get(b"x-forwarded-for")):
            last = forwarded.decode("latin-1").rpartition(",")[2].strip()
            return "".join(letter for letter in last if letter.isprintable())[:64]
        client = scope.get("client")
        return str(client[0]) if client else "local"

    def _protected(self, path: str, send: Send, chosen: bytes) -> Send:
        """A `send` that adds the request's id and the protecting headers to the reply."""
        added = {**_HEADERS, b"cache-control": b"no-cache" if path.startswith(_ASSETS) else b"private, no-store"}
        if self.address.secure:
            added[b"strict-transport-security"] = b"max-age=31536000"

        async def protected(message: Message) -> None:
            """Send a message; the first one with more headers."""
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                present = {name.lower() for name, _ in own}
                more = [(name, value) for name, value in added.items() if name not in present]
                message = {**message, "headers": [*own, *more, (b"x-request-id", chosen)]}
            await send(message)

        return protected


def _port(scope: Scope) -> int:
    server = scope.get("server")
    return int(server[1]) if server and server[1] else 0


def _normal(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of an origin; None if it has none, as `null`, which matches nothing."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _refuse(status: int, code: str, detail: str) -> JSONResponse:
    found = structlog.contextvars.get_contextvars().get("request_id")
    return problem_response(status, code, detail, request_id=None if found is None else str(found))
