"""Routes about users and API tokens. A change is recorded in the audit trail before it takes effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Path
from starlette.responses import Response

from index.errors import Forbidden
from pipeline.access.authentication import Authentication
from pipeline.access.caller import Caller, Grant
from pipeline.access.roles import Action
from pipeline.audit.log import AuditLog
from pipeline.audit.record import AuditRecord
from pipeline.web.routes.access import AuditLogOf, AuthenticationOf, require_everywhere
from pipeline.web.routes.guarded import CallerOf, GuardedRouter
from pipeline.web.schemas.users import (
    MadeToken,
    TokenBody,
    TokenList,
    TokenReply,
    UserBody,
    UserChange,
    UserList,
    UserReply,
)

__all__ = ["routes"]

routes = GuardedRouter(tag="users")
Name = Annotated[str, Path(min_length=1, max_length=100, description="Name of the user.")]


@routes.get("/users", action=Action.USERS)
def list_users(caller: CallerOf, authentication: AuthenticationOf) -> UserList:
    """All users, by name."""
    require_everywhere(caller, Action.USERS)
    return UserList(items=[UserReply.of(user) for user in authentication.users.all()])


@routes.post("/users", action=Action.USERS, status_code=201)
def add_user(body: UserBody, caller: CallerOf, authentication: AuthenticationOf, audit: AuditLogOf) -> UserReply:
    """Add a user with a password. The first one must be an administrator of all streams."""
    require_everywhere(caller, Action.USERS)
    grants = [grant.grant() for grant in body.grants]
    with _recorded(authentication, audit, caller, "users.add", {"user": body.name, "grants": _texts(grants)}):
        return UserReply.of(authentication.users.add(body.name, body.password, grants))


@routes.patch("/users/{name}", action=Action.USERS)
def change_user(
    name: Name, body: UserChange, caller: CallerOf, authentication: AuthenticationOf, audit: AuditLogOf
) -> UserReply:
    """Change the roles or the password of a user, or refuse it."""
    require_everywhere(caller, Action.USERS)
    users, detail = authentication.users, dict[str, Any](user=name)
    grants = None if body.grants is None else [grant.grant() for grant in body.grants]
    if grants is not None:
        detail["grants"] = _texts(grants)
    if body.disabled is not None:
        detail["disabled"] = body.disabled
    if body.password is not None:
        detail["changed"] = "the way to log in"
    with _recorded(authentication, audit, caller, "users.change", detail):
        if grants is not None:
            users.set_grants(name, grants)
        if body.disabled is not None:
            users.disable(name, body.disabled)
        if body.password is not None:
            users.set_password(name, body.password)
        return UserReply.of(users.get(name))


@routes.delete("/users/{name}", action=Action.USERS, status_code=204, response_class=Response)
def remove_user(name: Name, caller: CallerOf, authentication: AuthenticationOf, audit: AuditLogOf) -> Response:
    """Remove a user with all sessions and tokens. The last one is removed with `sightline users remove`."""
    require_everywhere(caller, Action.USERS)
    with _recorded(authentication, audit, caller, "users.remove", {"user": name}):
        authentication.users.remove(name)
    return Response(status_code=204)


@routes.get("/users/{name}/tokens", action=Action.VIEW)
def list_tokens(name: Name, caller: CallerOf, authentication: AuthenticationOf) -> TokenList:
    """The tokens of a user: one's own, or those of anybody for an administrator."""
    _check_owner(name, caller)
    authentication.users.get(name)
    return TokenList(items=[TokenReply.of(token) for token in authentication.tokens.of_user(name)])


@routes.post("/users/{name}/tokens", action=Action.VIEW, status_code=201)
def make_token(
    name: Name, body: TokenBody, caller: CallerOf, authentication: AuthenticationOf, audit: AuditLogOf
) -> MadeToken:
    """Make a token; the reply is the only one that has its text. A token makes only tokens of its own scopes."""
    _check_owner(name, caller)
    if caller.scopes is not None and not set(body.scopes) <= caller.scopes:
        raise Forbidden("a token makes only tokens of its own scopes")
    detail = {"user": name, "name": body.name, "scopes": sorted(set(body.scopes)), "days": body.expires_days}
    with authentication.database.transaction():
        made, text = authentication.tokens.make(name, body.name, body.scopes, body.expires_days)
        audit.append(AuditRecord.of(caller, "tokens.make", (), {**detail, "id": made.prefix}))
    return MadeToken(**TokenReply.of(made).model_dump(), token=text)


@routes.delete("/users/{name}/tokens/{token}", action=Action.VIEW, status_code=204, response_class=Response)
def revoke_token(
    name: Name,
    token: Annotated[str, Path(min_length=1, max_length=100, description="Id of the token.")],
    caller: CallerOf,
    authentication: AuthenticationOf,
    audit: AuditLogOf,
) -> Response:
    """Revoke a token; it is refused from then on."""
    _check_owner(name, caller)
    with _recorded(authentication, audit, caller, "tokens.revoke", {"user": name, "id": token}):
        authentication.tokens.revoke(name, token)
    return Response(status_code=204)


def _check_owner(name: str, caller: Caller) -> None:
    """Raise Forbidden unless the tokens of `name` are the caller's own, in a session, or it manages users."""
    if caller.may_everywhere(Action.USERS) or (name == caller.name and caller.via in ("session", "oidc")):
        return
    raise Forbidden(f"{caller.name} may manage only its own tokens, in a session")


def _texts(grants: list[Grant]) -> list[str]:
    return [f"{grant.role}:{grant.pattern}" for grant in grants]


@contextmanager
def _recorded(
    authentication: Authentication, audit: AuditLog, caller: Caller, action: str, detail: Mapping[str, Any]
) -> Iterator[None]:
    """Make a change and record it: both or none."""
    with authentication.database.transaction():
        yield
        audit.append(AuditRecord.of(caller, action, (), detail))
