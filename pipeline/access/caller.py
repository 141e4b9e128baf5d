"""The caller of a function of the desk, and the streams that exist for this caller.

A caller has grants: a role for the streams that match a pattern, such as `gate-*`. Everything that reads the store on
behalf of somebody first reduces the streams with `Caller.visible`, so that a stream without a grant appears in no list,
count, error or ranking.

This module does not know how a caller was authenticated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from index.errors import Forbidden
from index.stream_patterns import match_streams, matches
from pipeline.access.roles import Action, Role, allows

__all__ = ["Caller", "Grant"]


@dataclass(frozen=True, slots=True)
class Grant:
    """A role for the streams that match a pattern."""

    pattern: str
    """A stream id, or a pattern with `*`, `?` and `[…]`; case counts."""
    role: Role
    """The role for these streams."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody on whose behalf a function runs."""

    name: str
    """Name of the user; `local` for the only user of a desk on loopback."""
    grants: tuple[Grant, ...]
    """What the caller may do, and on which streams; an action is allowed if one grant allows it."""
    origin: str = "local"
    """Address that the request came from, for the audit trail."""
    via: str = "local"
    """How the caller was authenticated: local, session, oidc, token or mcp."""
    scopes: frozenset[Action] | None = None
    """The actions that an API token is limited to; None for no limit."""

    @classmethod
    def local(cls, via: str = "local") -> Caller:
        """The only user of a desk without users, who may do everything."""
        return cls("local", (Grant("*", Role.ADMIN),), via=via)

    def may(self, action: Action, stream_id: str) -> bool:
        """Whether the caller may do something with a stream."""
        if self.scopes is not None and action not in self.scopes:
            return False
        return any(allows(grant.role, action) and matches(stream_id, grant.pattern) for grant in self.grants)

    def may_somewhere(self, action: Action) -> bool:
        """Whether there can be a stream with which the caller may do something."""
        if self.scopes is not None and action not in self.scopes:
            return False
        return any(allows(grant.role, action) for grant in self.grants)

    def may_everywhere(self, action: Action) -> bool:
        """Whether the caller may do something with every stream, those that do not exist yet included."""
        if self.scopes is not None and action not in self.scopes:
            return False
        return any(allows(grant.role, action) and grant.pattern == "*" for grant in self.grants)

    def visible(self, streams: Iterable[str], action: Action = Action.VIEW) -> list[str]:
        """The streams with which the caller may do something, ascending."""
        return sorted(stream for stream in streams if self.may(action, stream))

    def scope(self, wanted: Sequence[str] | None, known: Iterable[str], action: Action = Action.VIEW) -> list[str]:
        """The streams that names and patterns mean for this caller, ascending; all visible ones if None.

        A stream that the caller may not see is unknown: the error is that of a stream that does not exist.

        Args:
            wanted: names and patterns such as `gate-*`.
            known: the streams of the store.
            action: what the caller wants to do.

        Raises:
            UnknownStream: a name or pattern matches no visible stream.
            Forbidden: the caller may see a stream that is named, but not do this with it.
        """
        seen = self.visible(known)
        names = match_streams(wanted, seen) if wanted else seen
        if action is Action.VIEW:
            return names
        granted = [name for name in names if self.may(action, name)]
        if names and len(granted) < len(names) and (wanted or not granted):
            refused = next(name for name in names if name not in granted)
            raise Forbidden(
                f"{refused}: {self.name} may not {action.value} this stream; ask an administrator for a role"
            )
        return granted
