"""Roles and actions: what each role may do.

    viewer        view
    investigator  viewer's actions, ask, export, hold
    operator      investigator's actions, standing, retention
    admin         everything

This module does not know users or streams.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Action", "Role", "allows"]


class Action(StrEnum):
    """Something that a caller does."""

    VIEW = "view"
    """List streams, search, see pictures, play footage."""
    ASK = "ask"
    """Ask the language model."""
    EXPORT = "export"
    """Take clips, contact sheets and evidence out of the installation."""
    HOLD = "hold"
    """Protect footage from deletion."""
    STANDING = "standing"
    """Manage standing questions."""
    RETENTION = "retention"
    """See and change how long footage is kept."""
    RELEASE = "release"
    """End the protection of footage."""
    USERS = "users"
    """Manage users, their roles and their tokens."""
    AUDIT = "audit"
    """Read the audit trail."""


class Role(StrEnum):
    """A set of actions; each role includes those before it."""

    VIEWER = "viewer"
    """Looks at footage."""
    INVESTIGATOR = "investigator"
    """Asks questions and exports evidence."""
    OPERATOR = "operator"
    """Keeps cameras and standing questions."""
    ADMIN = "admin"
    """Manages users and reads the audit trail."""


_OWN: dict[Role, frozenset[Action]] = {
    Role.VIEWER: frozenset({Action.VIEW}),
    Role.INVESTIGATOR: frozenset({Action.ASK, Action.EXPORT, Action.HOLD}),
    Role.OPERATOR: frozenset({Action.STANDING, Action.RETENTION}),
    Role.ADMIN: frozenset({Action.RELEASE, Action.USERS, Action.AUDIT}),
}
_ORDER = tuple(Role)


def allows(role: Role, action: Action) -> bool:
    """Whether a role includes an action."""
    return any(action in _OWN[each] for each in _ORDER[: _ORDER.index(role) + 1])
