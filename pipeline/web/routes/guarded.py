"""A router whose routes say who may call them.

    router = GuardedRouter()

    @router.get("/streams", action=Action.VIEW)
    def streams(desk: DeskOf, caller: CallerOf) -> StreamList: ...

Each route names an action, or is public. The action is checked before the body is read: a caller without it gets 403,
nobody gets 401. `check_routes` refuses an application with a route that was declared otherwise. Handlers pass the
caller to the functions of the desk, which decide about each stream.

The caller is `request.state.caller`, which a middleware sets (`pipeline.web.guard`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount

from index.errors import Forbidden, LoginRequired, UsageError
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk
from pipeline.web.problems import documented

__all__ = ["CallerOf", "DeskOf", "GuardedRouter", "OptionalCaller", "action_of", "check_routes", "is_public"]

Handler = TypeVar("Handler", bound=Callable[..., Any])
_ACTION, _PUBLIC = "x-sightline-action", "x-sightline-public"


def optional_caller(request: Request) -> Caller | None:
    """The caller of a request, None if it has no credentials."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller


def current_caller(request: Request) -> Caller:
    """The caller of a request. Raises LoginRequired."""
    caller = optional_caller(request)
    if caller is None:
        raise LoginRequired("log in, or send `Authorization: Bearer …` with an API token")
    return caller


def current_desk(request: Request) -> Desk:
    """The desk of the application."""
    desk: Desk = request.app.state.desk
    return desk


CallerOf = Annotated[Caller, Depends(current_caller)]
"""Type of a handler's parameter that is the caller."""
OptionalCaller = Annotated[Caller | None, Depends(optional_caller)]
"""The same for public routes: None if the request has no credentials."""
DeskOf = Annotated[Desk, Depends(current_desk)]
"""Type of a handler's parameter that is the desk."""


def _require(action: Action) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        """Raise unless the caller may do this with some stream."""
        caller = current_caller(request)
        if not caller.may_somewhere(action):
            raise Forbidden(f"{caller.name} may not {action.value}; ask an administrator for a role")

    return check


class GuardedRouter:
    """Routes with an action each, which `attach` adds to an application.

    Args:
        tag: subject of the routes in the OpenAPI schema.
    """

    def __init__(self, *, tag: str) -> None:
        self._tag = tag
        self._declared: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []

    def attach(self, app: FastAPI, prefix: str = "", *, documented: bool = True) -> None:
        """Add the routes to an application.

        Args:
            app: the application.
            prefix: prefix of their paths.
            documented: whether they are in the OpenAPI schema.
        """
        for path, handler, options in self._declared:
            app.add_api_route(f"{prefix}{path}", handler, include_in_schema=documented, **options)

    def get(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Declare a GET route; see `declare`."""
        return self.declare("GET", path, **options)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Declare a POST route; see `declare`."""
        return self.declare("POST", path, **options)

    def patch(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Declare a PATCH route; see `declare`."""
        return self.declare("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Declare a DELETE route; see `declare`."""
        return self.declare("DELETE", path, **options)

    def declare(
        self,
        method: str,
        path: str,
        *,
        action: Action | None = None,
        public: bool = False,
        errors: Iterable[int] = (),
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> Callable[[Handler], Handler]:
        """Declare a route.

        Args:
            method: HTTP method.
            path: path below the prefix of the API.
            action: what a caller must be allowed to do, at least with one stream.
            public: the route needs no caller.
            errors: further status codes that the route answers with, as problem documents.
            responses: further replies, as FastAPI takes them.
            options: as `FastAPI.add_api_route` takes them.

        Raises:
            UsageError: neither an action nor `public`, or both.
        """
        if (action is None) == (not public):
            raise UsageError(f"{method} {path}: a route has an action, or is public")
        mark = {_PUBLIC: True} if action is None else {_ACTION: action.value}
        extra = {**mark, **({"security": []} if public else {}), **options.pop("openapi_extra", {})}

        def add(handler: Handler) -> Handler:
            """Add the route."""
            self._declared.append(
                (
                    path,
                    handler,
                    {
                        "methods": [method],
                        "tags": [self._tag],
                        "dependencies": [] if action is None else [Depends(_require(action))],
                        "responses": {**documented(errors), **(responses or {})},
                        "openapi_extra": extra,
                        **options,
                    },
                )
            )
            return handler

        return add


def action_of(route: BaseRoute) -> Action | None:
    """The action that a route was declared with, None for a public one."""
    value = (getattr(route, "openapi_extra", None) or {}).get(_ACTION)
    return None if value is None else Action(value)


def is_public(route: BaseRoute) -> bool:
    """Whether a route was declared as public. The mounted folder of the page's files is."""
    if isinstance(route, Mount):
        return route.name == "assets"
    return bool((getattr(route, "openapi_extra", None) or {}).get(_PUBLIC))


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Check that every route has an action or is public.

    Raises:
        UsageError: a route has neither.
    """
    for route in routes:
        if not is_public(route) and (not isinstance(route, APIRoute) or action_of(route) is None):
            raise UsageError(
                f"{getattr(route, 'path', route)}: this route says neither an action nor that it is public"
            )
