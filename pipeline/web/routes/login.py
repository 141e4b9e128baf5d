"""Routes that begin and end sessions: log-in with a password or through a provider, log-out, the own password."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from index.errors import Forbidden, LoginRequired, SightlineError, TooManyAttempts, UnknownQuestion, UsageError
from pipeline.access.authentication import Authentication
from pipeline.access.roles import Action
from pipeline.audit.log import AuditLog
from pipeline.audit.record import AuditRecord
from pipeline.web.address import DeskAddress
from pipeline.web.guard import session_cookie
from pipeline.web.routes.access import AddressOf, AuditLogOf, AuthenticationOf
from pipeline.web.routes.guarded import CallerOf, GuardedRouter, OptionalCaller
from pipeline.web.schemas.users import LogInBody, PasswordBody

__all__ = ["routes"]

routes = GuardedRouter(tag="session")
_WAITING_SECONDS = 600


@routes.post("/session", public=True, status_code=204, response_class=Response)
def log_in(
    request: Request, body: LogInBody, authentication: AuthenticationOf, audit: AuditLogOf, address: AddressOf
) -> Response:
    """Log in with a password. The reply sets the cookie of a new session; one that the browser had before ends."""
    if not authentication.users.any():
        raise UsageError("this desk has no users with passwords")
    origin = request.state.origin
    known = authentication.users.find(body.name) is not None
    # A password that was typed in place of the name must not be recorded.
    who = body.name if known else "unknown"
    try:
        chosen = authentication.log_in(body.name, body.password, origin)
    except LoginRequired:
        audit.append(AuditRecord(who, "login", (), {}, "password", origin, "refused"), grouped=True)
        raise
    except TooManyAttempts:
        audit.append(AuditRecord(who, "login", (), {"why": "too many"}, "password", origin, "refused"), grouped=True)
        raise
    _record(authentication, audit, chosen, AuditRecord(who, "login", (), {}, "session", origin))
    return _with_session(request, authentication, address, chosen, Response(status_code=204))


@routes.delete("/session", public=True, status_code=204, response_class=Response)
def log_out(
    request: Request,
    caller: OptionalCaller,
    authentication: AuthenticationOf,
    audit: AuditLogOf,
    address: AddressOf,
) -> Response:
    """Log out: the session ends, and the browser forgets its cookie and what it has cached."""
    if caller is not None and request.state.session is not None:
        authentication.sessions.end(request.state.session)
        audit.append(AuditRecord.of(caller, "logout"))
    response = Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(
        session_cookie(secure=address.secure, port=_port(request)), secure=address.secure, httponly=True
    )
    return response


@routes.post("/session/password", action=Action.VIEW, status_code=204, response_class=Response)
def change_password(
    request: Request,
    body: PasswordBody,
    caller: CallerOf,
    authentication: AuthenticationOf,
    audit: AuditLogOf,
    address: AddressOf,
) -> Response:
    """Change the caller's own password. All sessions of the user end; the reply sets the cookie of a new one."""
    if caller.via != "session":
        raise Forbidden("the own password is changed in a session that began with it")
    ended = authentication.log_in(caller.name, body.password, request.state.origin)  # checks it, and throttles
    authentication.sessions.end(ended)
    with authentication.database.transaction():
        authentication.users.set_password(caller.name, body.new_password)
        audit.append(AuditRecord.of(caller, "users.password", (), {"user": caller.name}))
    chosen = authentication.sessions.begin(caller.name, "session")
    return _with_session(request, authentication, address, chosen, Response(status_code=204))


@routes.get("/session/oidc", public=True, status_code=303, response_class=RedirectResponse, errors=(404,))
def begin_oidc(authentication: AuthenticationOf, address: AddressOf) -> Response:
    """Send the browser to the OpenID Connect provider."""
    if authentication.oidc is None:
        raise UnknownQuestion("this desk has no OpenID Connect provider")
    start = authentication.oidc.begin()
    response = RedirectResponse(start.url, status_code=303)
    # Lax: the provider sends the browser back from another site, and the cookie must come along.
    response.set_cookie(
        _waiting_cookie(address),
        start.binding,
        max_age=_WAITING_SECONDS,
        secure=address.secure,
        httponly=True,
        samesite="lax",
    )
    return response


@routes.get("/session/oidc/callback", public=True, status_code=303, response_class=RedirectResponse, errors=(404,))
def finish_oidc(request: Request, authentication: AuthenticationOf, audit: AuditLogOf, address: AddressOf) -> Response:
    """Where the provider sends the browser back: begins a session and shows the page, or that it failed."""
    if authentication.oidc is None:
        raise UnknownQuestion("this desk has no OpenID Connect provider")
    origin, name = request.state.origin, "unknown"
    try:
        binding = request.cookies.get(_waiting_cookie(address), "")
        user = authentication.oidc.finish(dict(request.query_params), binding)
        name = user.name
        chosen = authentication.enter(user, authentication.oidc.grants(user))
    except SightlineError as error:
        detail = {"why": str(error)}
        audit.append(AuditRecord(name, "login", (), detail, "oidc", origin, "refused"), grouped=True)
        response: Response = RedirectResponse("/?error=login", status_code=303)
    else:
        _record(authentication, audit, chosen, AuditRecord(name, "login", (), {}, "oidc", origin))
        response = RedirectResponse("/", status_code=303)
        response = _with_session(request, authentication, address, chosen, response)
    response.delete_cookie(_waiting_cookie(address), secure=address.secure, httponly=True, samesite="lax")
    return response


def _record(authentication: Authentication, audit: AuditLog, chosen: str, record: AuditRecord) -> None:
    """Record a log-in; a session that cannot be recorded ends."""
    try:
        audit.append(record)
    except BaseException:
        authentication.sessions.end(chosen)
        raise


def _with_session(
    request: Request, authentication: Authentication, address: DeskAddress, chosen: str, response: Response
) -> Response:
    """The response with the cookie of a new session; the session before ends."""
    if request.state.session is not None:
        authentication.sessions.end(request.state.session)
    response.set_cookie(
        session_cookie(secure=address.secure, port=_port(request)),
        chosen,
        max_age=int(authentication.sessions.seconds),
        secure=address.secure,
        httponly=True,
        samesite="strict",
    )
    return response


def _waiting_cookie(address: DeskAddress) -> str:
    return "__Host-sightline-oidc" if address.secure else "sightline-oidc"


def _port(request: Request) -> int:
    server = request.scope.get("server")
    return int(server[1]) if server and server[1] else 0
