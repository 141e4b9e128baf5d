"""Routes about the caller and the process: `GET /session`, `GET /healthz`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import Request

from pipeline.access.authentication import Authentication
from pipeline.access.roles import Action, Role
from pipeline.web.routes.guarded import DeskOf, GuardedRouter, OptionalCaller
from pipeline.web.schemas.session import Health, Session

__all__ = ["health", "routes"]

routes = GuardedRouter(tag="session")
health = GuardedRouter(tag="session")


@health.get("/healthz", public=True)
async def healthz() -> Health:
    """Whether the process answers."""
    return Health()


@routes.get("/session", public=True)
def get_session(request: Request, desk: DeskOf, caller: OptionalCaller) -> Session:
    """Who the caller is, and what the desk offers; without a caller, only how to log in."""
    authentication: Authentication = request.app.state.authentication
    if caller is None:
        return Session(users_required=True, oidc=authentication.oidc is not None)
    return Session(
        oidc=authentication.oidc is not None,
        name=caller.name,
        role=max((grant.role for grant in caller.grants), key=list(Role).index, default=None),
        via=caller.via,
        csrf=getattr(request.state, "csrf", None),
        users_required=bool(getattr(request.state, "users_required", False)),
        timezone=desk.settings.timezone,
        actions=[action for action in Action if caller.may_somewhere(action)],
        version=_version(),
        profile=desk.settings.profile,
        model=desk.models.state,
        notices=desk.models.notices,
    )


def _version() -> str:
    try:
        return version("sightline")
    except PackageNotFoundError:
        return "unknown"
